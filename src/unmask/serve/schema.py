"""What comes in and goes out: the shapes of the Hugging Face inference API, and those of our own page.

`huggingface_hub.InferenceClient` sends {"inputs": ..., "parameters": {...}} and reads a list of elements. Fields that are not known here
are refused: a misspelled parameter that is passed over in silence changes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Texts = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]


class Body(BaseModel):
    """A request: nothing is guessed from another type, nothing unknown is passed over."""

    model_config = ConfigDict(extra="forbid", strict=True)


# fill-mask


class FillParameters(Body):
    """How masks are filled; `targets` and `top_k` are those of the inference API, the others are of Unmask.

    `targets` are scored exactly, whatever number of pieces they have: one list for all masks, or a list for each. With `joint` the masks of
    a text are filled together as well, by a beam of that width, and the answer to each text is {"masks": ..., "joint": ...}. `max_pieces`
    fills a blank (___, not a mask token) by whole words of one to so many tokens.
    """

    top_k: Count | None = None
    targets: Texts | Annotated[list[Texts], Field(min_length=1)] | None = None
    renormalize: bool = False
    whole_words: bool = False
    no_subwords: bool = False
    vocabulary: Texts | None = None
    joint: bool = False
    beam: Annotated[int, Field(ge=1, le=100)] | None = None
    max_pieces: Annotated[int, Field(ge=1, le=8)] = 1


class FillRequest(Body):
    """Texts with masks: [MASK], <mask> or ___."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "The [MASK] is playing.", "parameters": {"top_k": 3}}]})

    inputs: str | Texts
    parameters: FillParameters | None = None
    options: dict[str, Any] | None = None  # of the inference API (wait_for_model ...): there is nothing here that they would change


class FillElement(BaseModel):
    """A candidate: the first four fields are those of the inference API."""

    score: float
    token: int
    token_str: str
    sequence: str
    word: str
    log_prob: float
    truncated: bool
    token_ids: list[int]


class Together(BaseModel):
    """Tokens for all masks of a text, in their order, and the probability of all of them."""

    score: float
    log_prob: float
    tokens: list[int]
    token_strs: list[str]
    sequence: str


class FilledTogether(BaseModel):
    """The answer to a text where `joint` was asked for: candidates for each mask on its own, and the best fillings of all together.

    A text with one mask has none of the latter.
    """

    masks: list[list[FillElement]]
    joint: list[Together]


class Failed(BaseModel):
    """In the place of a text's answer, where others of the request have one."""

    error: str


# a text with several masks has a list for each of them; a list of texts has such an answer for each
FillOne = list[FillElement] | list[list[FillElement]] | FilledTogether
FillAnswer = FillOne | list[FillOne | Failed]


# text-classification, token-classification, question-answering


class ClassifyParameters(Body):
    """As of the inference API."""

    top_k: Count | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class ClassifyRequest(Body):
    """Texts to be classified."""

    inputs: str | Texts
    parameters: ClassifyParameters | None = None
    options: dict[str, Any] | None = None


class ClassElement(BaseModel):
    """A label with its probability. The answer to a text is a list of them, the likeliest first, and comes in a list, even if it is one."""

    label: str
    score: float


ClassAnswer = list[list[ClassElement] | Failed]


class TagParameters(Body):
    """As of the inference API."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: list[str] | None = None
    stride: Annotated[int, Field(ge=0)] | None = None


class TagRequest(Body):
    """Texts in which entities are to be found."""

    inputs: str | Texts
    parameters: TagParameters | None = None
    options: dict[str, Any] | None = None


class TagElement(BaseModel):
    """An entity: where in the text it stands, from character to character."""

    entity_group: str
    score: float
    word: str
    start: int
    end: int


TagAnswer = list[TagElement] | list[list[TagElement] | Failed]


class Asked(Body):
    """A question and the text that holds its answer, or several of which one may."""

    question: str
    context: str | Texts


class AnswerParameters(Body):
    """As of the inference API."""

    top_k: Count | None = None
    doc_stride: Count | None = None
    max_answer_len: Count | None = None
    max_seq_len: Count | None = None
    max_question_len: Count | None = None
    handle_impossible_answer: bool | None = None
    align_to_words: bool | None = None


class AnswerRequest(Body):
    """A question, or several."""

    inputs: Asked | Annotated[list[Asked], Field(min_length=1)]
    parameters: AnswerParameters | None = None
    options: dict[str, Any] | None = None


class AnswerElement(BaseModel):
    """An answer, alone where top_k is 1 or not given, in a list of answers otherwise; empty where the text holds none.

    `context` is the number of the text, where there are several.
    """

    answer: str
    score: float
    start: int
    end: int
    context: int


AnswerAnswer = AnswerElement | list[AnswerElement | list[AnswerElement] | Failed]


# scores and tokens


class ScoreParameters(Body):
    """As `unmask score` has them."""

    method: Literal["original", "word_l2r", "sampled"] = "original"
    sample: Annotated[int, Field(ge=2, le=10_000)] = 16
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class ScoreRequest(Body):
    """Texts to be scored; `model` is asked for at /score, where several are served."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "The orchestra is playing."}]})

    inputs: str | Texts
    parameters: ScoreParameters | None = None
    model: str | None = None


class TokenizeRequest(Body):
    """Texts to be cut into tokens."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": "The orchestra is playing."}]})

    inputs: str | Texts
    add_special_tokens: bool = True
    model: str | None = None


class TokenElement(BaseModel):
    """A token, and from which to which character of the text it stands (0 and 0: in no place)."""

    id: int
    token: str
    start: int
    end: int
    special: bool


class Tokenized(BaseModel):
    """The tokens of a text; `truncated`: the model has positions for fewer."""

    tokens: list[TokenElement]
    num_tokens: int
    truncated: bool


# of our own page


class PageFill(Body):
    """A text with masks, and the model that fills them (not needed where one is served)."""

    text: str
    model: str | None = None
    top_k: Count = 5
    targets: Texts | None = None
    joint: bool = False


class PageText(Body):
    """A text, and the model (not needed where one is served)."""

    text: str
    model: str | None = None


class PageCandidate(BaseModel):
    """What may stand at a mask, and the text with it; `error` says why a target has no score."""

    token: str
    word: str
    score: float | None
    logprob: float | None
    text: str
    error: str | None = None


class PageMask(BaseModel):
    """The candidates at a mask."""

    candidates: list[PageCandidate]


class PageTogether(BaseModel):
    """What may stand at all masks together, and the text with it, in which the tokens begin at `starts`."""

    tokens: list[str]
    starts: list[int]
    score: float
    logprob: float
    text: str


class PageFilled(BaseModel):
    """A text's masks, and where it was asked for what fills them together; `truncated`: the model saw a window around each."""

    masks: list[PageMask]
    truncated: bool
    joint: list[PageTogether]


class PageSurprisal(BaseModel):
    """A token, where it stands, and -log of its probability."""

    text: str
    start: int
    end: int
    surprisal_nats: float
    special: bool = False


class PageScored(BaseModel):
    """A text's tokens, and the numbers of `unmask score`."""

    tokens: list[PageSurprisal]
    pseudo_log_likelihood: float
    pseudo_perplexity: float | None
    pseudo_perplexity_per_word: float | None
    pseudo_perplexity_per_byte: float | None
    num_tokens: int
    num_words: int
    num_bytes: int
    windows: int
    truncated: bool


class ModelInfo(BaseModel):
    """A model that is served; what is None is known when it has been loaded."""

    name: str
    task: str
    path_name: str
    loaded: bool
    num_loads: int
    error: str | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    mask_token: str | None = None
    backend: str | None = None
    precision: str | None = None


class ModelList(BaseModel):
    """All models."""

    models: list[ModelInfo]


class State(BaseModel):
    """How the service is."""

    status: str
    models: dict[str, str] | None = None


class ErrorBody(BaseModel):
    """Why a request was not answered; `detail` says what is wrong where."""

    error: str
    detail: list[dict[str, Any]] | None = None


BODIES: Sequence[type[BaseModel]] = (
    FillRequest, ClassifyRequest, TagRequest, AnswerRequest, ScoreRequest, TokenizeRequest, PageFill, PageText,
)  # fmt: skip
