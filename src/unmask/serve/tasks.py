"""What a served model does: one entry a task. A new task is its shapes in schema.py, and `load`, `read`, `run` and `show` here.

`load` makes the object that does the task (on an Engine, as everything), `read` makes a work of a request's body, `run` does the works of
many requests at once, each with its results or its error, and `show` puts results into the shape of the Hugging Face inference API.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from ..errors import UnmaskError
from ..tasks.fill import Filled, Filler, FillOptions
from . import schema
from .limits import Limits, Refused

if TYPE_CHECKING:
    from ..tasks.classify import Classified, Classifier
    from ..tasks.ner import Tagged, Tagger
    from ..tasks.predictor import Predictor
    from ..tasks.qa import Answered, Answerer

OVERHEAD_TOKENS = 8  # of a text, whatever its length


class Work(NamedTuple):
    """What one request wants done: inputs, how, whether it sent one input alone, and whether it is a search of many passes (`deep`)."""

    inputs: list[Any]
    options: Any
    single: bool = False
    deep: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its name in the Hugging Face inference API, how the architectures that do it end, and the functions of this module's head.

    `cost` is about how many tokens the model will see for a work.
    """

    name: str
    architecture: str
    body: type[BaseModel]
    answer: Any
    load: Callable[..., Any]
    read: Callable[[Any, Limits], Work]
    run: Callable[[Any, Sequence[Work], Limits], list[Any]]
    show: Callable[[Work, Any], Any]
    cost: Callable[[Work], int]


def inputs_of(given: Any, limits: Limits) -> tuple[list[Any], bool]:
    """Return a request's inputs as a list, and whether it was one alone.

    Raises: Refused.
    """
    inputs = given if isinstance(given, list) else [given]
    if len(inputs) > limits.max_inputs:
        raise Refused(413, f"{len(inputs):,} inputs in one request; at most {limits.max_inputs:,}: send several requests")
    return inputs, not isinstance(given, list)


def each(work: Work, results: Sequence[Any], show: Callable[[Any], Any]) -> Any:
    """Return what is shown of each result; of one that failed its error, where others of the request did not.

    Raises: Refused where none is left.
    """
    failed = [{"index": number, "error": result.error} for number, result in enumerate(results) if result.error is not None]
    if len(failed) == len(results):
        raise Refused(422, failed[0]["error"], detail=None if work.single else failed)
    shown = [show(result) if result.error is None else {"error": result.error} for result in results]
    return shown[0] if work.single else shown


def text_cost(work: Work) -> int:
    """Return about how many tokens texts are together."""
    return sum(OVERHEAD_TOKENS + len(text) // 4 for text in work.inputs)


# fill-mask


def read_fill(body: schema.FillRequest, limits: Limits) -> Work:
    """Return a request to fill masks.

    Raises: Refused for options that exclude each other.
    """
    inputs, single = inputs_of(body.inputs, limits)
    asked = body.parameters or schema.FillParameters()
    if asked.joint and (asked.targets is not None or asked.max_pieces > 1):
        raise Refused(422, "joint: targets are scored, and blanks of several pieces filled, each on its own; leave out one or the other")
    if asked.beam is not None and not asked.joint and asked.max_pieces == 1:
        raise Refused(422, "beam is the width of a search; give joint or max_pieces, too")
    options = FillOptions(
        top_k=asked.top_k or (5 if asked.targets is None else 10_000),  # given targets, all of them, unless it says how many
        targets=asked.targets, renormalize=asked.renormalize, vocabulary=asked.vocabulary, whole_words=asked.whole_words,
        no_subwords=asked.no_subwords, independent=not asked.joint, beam=asked.beam, max_pieces=asked.max_pieces,
    )  # fmt: skip
    return Work(inputs, options, single, asked.joint or asked.max_pieces > 1)


def fill_cost(work: Work) -> int:
    """Return about how many tokens the model will see; a search sees a text once for each filling that it follows, and more."""
    return text_cost(work) * (work.options.width if work.deep else 1)


def run_fill(filler: Filler, works: Sequence[Work], limits: Limits) -> list[list[Filled] | UnmaskError]:
    """Fill the masks of many requests: those that differ in nothing but their number of candidates, and all that have targets, together."""
    outcomes: list[Any] = [_too_much(filler, work, limits) for work in works]
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, work in enumerate(works):
        if outcomes[number] is None:
            chosen = work.options
            # by the power of two: candidates that one request asks for are made for all; but a search is as wide as its request has it
            top_k = chosen.top_k if work.deep else 1 << (chosen.top_k - 1).bit_length()
            key = "targets" if chosen.targets is not None else replace(chosen, top_k=top_k, vocabulary=None)
            groups[key, tuple(chosen.vocabulary or ())].append(number)
    for (kind, _), members in groups.items():
        pairs = [(text, works[number].options) for number in members for text in works[number].inputs]
        if kind == "targets":
            from ..tasks.fill_targets import fill_targets

            results = list(fill_targets(filler, pairs))
        else:
            options = replace(pairs[0][1], top_k=max(chosen.top_k for _, chosen in pairs))
            found = filler.fill([text for text, _ in pairs], **asdict(options))
            results = [_cut(result, chosen.top_k) for result, (_, chosen) in zip(found, pairs, strict=True)]
        start = 0
        for number in members:
            count = len(works[number].inputs)
            outcomes[number] = results[start : start + count]
            start += count
    return outcomes


def _cut(result: Filled, top_k: int) -> Filled:
    """Return a result with the candidates that its request asked for; another that ran with it may have asked for more."""
    return replace(result, masks=tuple(mask[:top_k] for mask in result.masks), joint=result.joint[:top_k])


def _too_much(filler: Filler, work: Work, limits: Limits) -> Refused | None:
    total = searched = 0
    for text in work.inputs:
        found = [match[0][0] for match in filler.marker.finditer(text)]
        masks = len(found)
        if masks > limits.max_masks:
            return Refused(413, f"there are {masks:,} masks in a text; at most {limits.max_masks}: send it in parts")
        targets = work.options.targets
        if targets is None:
            words = masks * min(work.options.top_k, len(filler.tokenizer))
        else:
            words = len(targets) * masks if isinstance(targets[0], str) else sum(map(len, targets))
            words += min(work.options.top_k, 100) if work.deep else 0
            searched += _later_pieces(filler, targets) * (masks if isinstance(targets[0], str) else 1)
        total += words * (len(text) + 64)
        searched += _searched(work.options, masks, found.count("_")) if work.deep else 0
    if total > limits.max_answer_characters:
        return Refused(413, f"the answer would hold {total:,} characters of filled texts; at most {limits.max_answer_characters:,}: "
                            "ask for fewer candidates (top_k, targets), or send shorter texts")  # fmt: skip
    if searched > limits.max_searched:
        return Refused(413, f"the search would ask the model up to {searched:,} times; at most {limits.max_searched:,}: "
                            "send fewer masks or blanks, fewer or shorter targets, or a smaller beam, top_k or max_pieces")  # fmt: skip
    return None


def _later_pieces(filler: Filler, targets: Sequence[Any]) -> int:
    """Return how many pieces targets have beyond the first ones: for each the model is asked with those before it filled in."""
    flat = [f" {word}" for group in targets for word in ([group] if isinstance(group, str) else group)]
    found = filler.tokenizer.backend_tokenizer.encode_batch(flat, add_special_tokens=False)
    return sum(max(0, len(encoding.ids) - 1) for encoding in found)


def _searched(chosen: FillOptions, num_masks: int, num_blanks: int) -> int:
    """Return about how many sequences a search asks the model about at most, of which each place that is filled again makes many."""

    def most(places: int) -> int:
        return chosen.width * (1 if places == 1 else 6 * places**2)

    if chosen.independent:
        return num_blanks * sum(map(most, range(1, chosen.max_pieces + 1)))
    return most(num_masks) if num_masks > 1 else 0


def show_fill(work: Work, results: Sequence[Filled]) -> Any:
    """Return candidates as the inference API has them, the likeliest first: a list, or a list for each of several masks.

    Where they were to be filled together as well, the inference API has no shape for it: an object.

    Raises: Refused where a target has no score.
    """

    def show(result: Filled) -> Any:
        masks = [
            [
                {"score": one.score, "token": one.token_id, "token_str": one.token, "sequence": one.sequence, "word": one.word,
                 "log_prob": one.log_prob, "truncated": result.truncated, "token_ids": one.token_ids}
                for one in (mask if work.deep else sorted(mask, key=lambda one: -one.score))[: work.options.top_k]
            ]
            for mask in result
        ]  # fmt: skip
        if not work.options.independent:
            together = [
                {"score": one.score, "log_prob": one.log_prob, "tokens": one.token_ids, "token_strs": one.tokens, "sequence": one.sequence}
                for one in result.joint
            ]
            return {"masks": masks, "joint": together}
        return masks[0] if len(masks) == 1 else masks

    def checked(result: Filled) -> Filled:
        wrong = next((one.error for mask in result for one in mask if one.error is not None), None)
        return result if wrong is None else replace(result, error=wrong)

    return each(work, [checked(result) for result in results], show)


# text-classification


def read_classify(body: schema.ClassifyRequest, limits: Limits) -> Work:
    """Return a request to classify texts."""
    inputs, single = inputs_of(body.inputs, limits)
    return Work(inputs, body.parameters or schema.ClassifyParameters(), single)


def run_predict(predictor: Predictor, works: Sequence[Work], limits: Limits) -> list[Any]:
    """Have a fine-tuned model predict the inputs of many requests together."""
    results = iter(list(predictor.stream([item for work in works for item in work.inputs])))
    return [list(islice(results, len(work.inputs))) for work in works]


def show_classify(work: Work, results: Sequence[Classified]) -> Any:
    """Return the labels of a text, the likeliest first, in a list of lists as the inference API has it; a model's number is a score.

    Raises: Refused for a function of the client's choice.
    """
    if work.options.function_to_apply is not None:
        raise Refused(422, "function_to_apply: a model has the function that it was fine-tuned with; leave it out")

    def show(result: Classified) -> list[dict[str, Any]]:
        scores = {"value": result.value} if result.value is not None else result.scores
        best = sorted(scores.items(), key=lambda pair: -pair[1])[: work.options.top_k]
        return [{"label": label, "score": score} for label, score in best]

    shown = each(work, results, show)
    return [shown] if work.single else shown


def load_classify(path: str | Path, **options: Any) -> Classifier:
    """Return a fine-tuned model."""
    from ..tasks.classify import Classifier

    return Classifier.load(path, **options)


# token-classification


def read_tag(body: schema.TagRequest, limits: Limits) -> Work:
    """Return a request to find entities.

    Raises: Refused for what would break words, or leave the windows to the client.
    """
    inputs, single = inputs_of(body.inputs, limits)
    asked = body.parameters or schema.TagParameters()
    if asked.aggregation_strategy == "none" or asked.stride is not None:
        raise Refused(422, "aggregation_strategy 'none' and stride: entities are of whole words, and windows the service's; leave them out")
    return Work(inputs, asked, single)


def show_tag(work: Work, results: Sequence[Tagged]) -> Any:
    """Return the entities of a text, in their order."""
    ignored = set(work.options.ignore_labels or ())

    def show(result: Tagged) -> list[dict[str, Any]]:
        return [
            {"entity_group": one.label, "score": one.score, "word": one.text, "start": one.start, "end": one.end}
            for one in result
            if one.label not in ignored
        ]

    return each(work, results, show)


def load_tag(path: str | Path, **options: Any) -> Tagger:
    """Return a fine-tuned model."""
    from ..tasks.ner import Tagger

    return Tagger.load(path, **options)


# question-answering

NUM_BEST = 20  # answers to a question, at most
OF_THE_SERVICE = ("align_to_words", "doc_stride", "max_answer_len", "max_question_len", "max_seq_len")


def read_answer(body: schema.AnswerRequest, limits: Limits) -> Work:
    """Return a request to answer questions.

    Raises: Refused for what would break words, cut a question, or leave the windows to the client; for more answers than are kept.
    """
    inputs, single = inputs_of(body.inputs, limits)
    asked = body.parameters or schema.AnswerParameters()
    given = [name for name in OF_THE_SERVICE if getattr(asked, name) not in (None, True)]
    if given:
        raise Refused(422, f"{', '.join(given)}: answers are of whole words, and windows those of the model; leave it out")
    if (asked.top_k or 1) > NUM_BEST:
        raise Refused(422, f"top_k = {asked.top_k}; at most {NUM_BEST} answers to a question")
    return Work([(one.question, one.context) for one in inputs], asked, single)


def show_answer(work: Work, results: Sequence[Answered]) -> Any:
    """Return the answer to a question, or with top_k above 1 a list of the likeliest; an empty one says that the text holds none."""
    top_k = work.options.top_k or 1

    def show(result: Answered) -> Any:
        found = [
            {"answer": one.text, "score": one.score, "start": one.start, "end": one.end, "context": one.context} for one in result.answers
        ]
        nothing = {"answer": "", "score": result.no_answer, "start": 0, "end": 0, "context": 0}
        if not found or not (result.answered or work.options.handle_impossible_answer is False):
            found.insert(0, nothing)
        return found[0] if top_k == 1 else found[:top_k]

    return each(work, results, show)


def answer_cost(work: Work) -> int:
    """Return about how many tokens questions are with their contexts."""
    texts = [text for question, context in work.inputs for text in (question, *([context] if isinstance(context, str) else context))]
    return text_cost(Work(texts, None))


def load_answer(path: str | Path, **options: Any) -> Answerer:
    """Return a fine-tuned model."""
    from ..tasks.qa import Answerer

    return Answerer.load(path, num_best=NUM_BEST, **options)


TASKS = {
    task.name: task
    for task in (
        Task("fill-mask", "ForMaskedLM", schema.FillRequest, schema.FillAnswer,
             Filler.load, read_fill, run_fill, show_fill, fill_cost),
        Task("text-classification", "ForSequenceClassification", schema.ClassifyRequest, schema.ClassAnswer,
             load_classify, read_classify, run_predict, show_classify, text_cost),
        Task("token-classification", "ForTokenClassification", schema.TagRequest, schema.TagAnswer,
             load_tag, read_tag, run_predict, show_tag, text_cost),
        Task("question-answering", "ForQuestionAnswering", schema.AnswerRequest, schema.AnswerAnswer,
             load_answer, read_answer, run_predict, show_answer, answer_cost),
    )
}  # fmt: skip


def task_of(architectures: Sequence[str] | None, path: Path | str) -> Task:
    """Return the task that a model's architecture does.

    Raises: Refused where it is none of those served.
    """
    names = list(architectures or ())
    found = next((task for task in TASKS.values() if any(name.endswith(task.architecture) for name in names)), None)
    if found is not None or not names:
        return found or TASKS["fill-mask"]
    known = ", ".join(f"*{task.architecture}" for task in TASKS.values())
    raise Refused(422, f"'{path}' is a {names[0]}, which is not served; architectures that are: {known}")
