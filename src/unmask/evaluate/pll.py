"""Pseudo-log-likelihood: how probable a masked language model finds a text, each of its tokens masked in turn.

What comes of it is a pseudo-perplexity. It is neither the masked perplexity of `unmask evaluate` nor the perplexity of a causal model, and
compares with other pseudo-perplexities of the same method only: per word and per byte also across vocabularies.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np

from ..box import or_box
from ..data.encode import Encoder
from ..data.over import Place
from ..data.tokenizer import frame, special_ids
from ..errors import TaskError
from ..infer.arrays import is_numpy, log_normalizer, to_numpy
from ..rng import uniforms
from .evaluation import model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..infer.engine import Backend, Request

Method = Literal["original", "word_l2r", "sampled"]
METHODS: tuple[str, ...] = get_args(Method)
CHUNK = 256  # texts tokenized at a time
WINDOW = 512  # tokens that the model sees at once unless told otherwise: what a longer one costs grows with its square
CHUNK_ELEMENTS = 2**18  # logits looked at together
MAX_EXPONENT = 700.0  # exp of more is no float


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A text with the log-probability of each of its tokens, natural logarithm; `error` says why there are none.

    `total` is their sum, the pseudo-log-likelihood; of the sampled method an unbiased estimate of it, with its `standard_error`, and
    tokens that were not sampled are NaN in `log_probs`. `word_index` numbers the words that the pieces belong to, as data/words.py
    cuts them; `num_words` counts words between spaces and `num_bytes` UTF-8, which depend on no tokenizer. `windows` says into how many
    windows the text was cut, `truncated` whether it was: each token then saw a window around it, not the whole text.
    Shapes: tokens, token_ids, log_probs, word_index (num_tokens,).
    """

    text: str
    tokens: tuple[str, ...] = ()
    token_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    log_probs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    word_index: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    total: float = math.nan
    standard_error: float | None = None
    num_tokens: int = 0
    num_scored_tokens: int = 0
    num_words: int = 0
    num_bytes: int = 0
    num_unknown: int = 0
    windows: int = 0
    error: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the model never saw the text as a whole."""
        return self.windows > 1

    @property
    def word_log_probs(self) -> np.ndarray:
        """Return the sum over the pieces of each word, NaN where not all were sampled. Shapes: (words,)."""
        if not self.num_tokens:
            return np.zeros(0)
        return np.add.reduceat(self.log_probs, np.flatnonzero(np.diff(self.word_index, prepend=-1)))

    @property
    def pseudo_perplexity(self) -> float | None:
        """Return exp(-total / num_tokens)."""
        return perplexity(self.total, self.num_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return what `unmask score --json` prints of a text."""
        if self.error is not None:
            return {"text": self.text, "error": self.error}
        sampled = (
            {} if self.standard_error is None else {"standard_error": self.standard_error, "num_scored_tokens": self.num_scored_tokens}
        )
        return {
            "text": self.text,
            "pseudo_log_likelihood": self.total,
            **sampled,
            "pseudo_perplexity": self.pseudo_perplexity,
            "pseudo_perplexity_per_word": perplexity(self.total, self.num_words),
            "pseudo_perplexity_per_byte": perplexity(self.total, self.num_bytes),
            "num_tokens": self.num_tokens,
            "num_words": self.num_words,
            "num_bytes": self.num_bytes,
            "num_unknown": self.num_unknown,
            "windows": self.windows,
            "truncated": self.truncated,
            "tokens": list(self.tokens),
            "token_ids": self.token_ids.tolist(),
            "log_probs": _with_none(self.log_probs),
            "word_index": self.word_index.tolist(),
            "word_log_probs": _with_none(self.word_log_probs),
        }


def _with_none(values: np.ndarray) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]


def perplexity(total: float, count: int) -> float | None:
    """Return exp(-total / count); None where there is nothing to divide by, or the result is no float."""
    if not count or not -total / count <= MAX_EXPONENT:
        return None
    return math.exp(-total / count)


class Totals:
    """The sums over the texts of a corpus, in float64: every token weighs the same, whatever text it stands in."""

    def __init__(self) -> None:
        self.num_texts = self.num_failed = self.num_truncated_texts = self.num_windows = 0
        self.num_tokens = self.num_scored_tokens = self.num_words = self.num_bytes = self.num_unknown = 0
        self.total = self.variance = 0.0
        self.sampled = False

    def add(self, scored: Scored) -> None:
        """Add a text; one that failed is counted and nothing else."""
        self.num_texts += 1
        if scored.error is not None:
            self.num_failed += 1
            return
        for name in ("num_tokens", "num_scored_tokens", "num_words", "num_bytes", "num_unknown", "total"):
            setattr(self, name, getattr(self, name) + getattr(scored, name))
        self.num_windows += scored.windows
        self.num_truncated_texts += scored.truncated
        if scored.standard_error is not None:
            self.sampled = True
            self.variance += scored.standard_error**2

    def metrics(self) -> dict[str, Any]:
        """Return the named numbers; None where no text could be scored, or a number is no float.

        The standard errors (of the sampled method) say what sampling the tokens costs, not how much texts differ; that of the
        pseudo-perplexity is its first-order one.
        """
        numbers: dict[str, Any] = {"pseudo_log_likelihood": self.total if self.num_tokens else None}
        for key, count in (("", self.num_tokens), ("_per_word", self.num_words), ("_per_byte", self.num_bytes)):
            numbers[f"pseudo_perplexity{key}"] = perplexity(self.total, count)
        numbers["pseudo_bits_per_byte"] = -self.total / self.num_bytes / math.log(2) if self.num_bytes else None
        if self.sampled:
            error, value = math.sqrt(self.variance), numbers["pseudo_perplexity"]
            numbers["pseudo_log_likelihood_standard_error"] = error
            numbers["pseudo_perplexity_standard_error"] = None if value is None else value * error / self.num_tokens
        counts = ("num_texts", "num_failed", "num_truncated_texts", "num_windows", "num_tokens", "num_scored_tokens", "num_words",
                  "num_bytes", "num_unknown")  # fmt: skip
        return numbers | {name: getattr(self, name) for name in counts}


@dataclass(slots=True)
class _Item:
    """A text on its way through the engine; `chosen` are the places to be scored, `ends` where the masks that begin there end."""

    text: str
    error: str | None = None
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    words: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    chosen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ends: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    num_done: int = 0
    windows: int = 1


class Scorer:
    """Scores texts with a masked language model; `options` go to the Engine.

    A text of more than `max_length` tokens (special ones included; by default 512, or what the model has) is cut into windows in which
    each token is scored once, with at least `context` tokens (by default a quarter of the window) on both sides of it where the text
    has them. A mask token that stands in a text is text.
    """

    def __init__(
        self, model: PreTrainedModel | Backend, tokenizer: Any, *, max_length: int | None = None, context: int | None = None, **options: Any
    ) -> None:
        from ..infer.engine import Backend, Engine

        if not isinstance(model, Backend):
            from ..model.load import check_fit

            check_fit(model, tokenizer, max_length)
        self.engine = Engine(model, **options)
        self.encoder = Encoder(tokenizer)
        self.specials = special_ids(tokenizer)
        self.prefix, self.suffix = (np.array(part, dtype=np.int64) for part in frame(tokenizer))
        self.max_length = max_length or min(self.engine.max_length or WINDOW, WINDOW)
        self.room = self.max_length - len(self.prefix) - len(self.suffix)
        if self.room < 1:
            raise TaskError(
                f"max_length = {self.max_length} leaves no room beside {len(self.prefix) + len(self.suffix)} special tokens; give more"
            )
        self.context = self.room // 4 if context is None else context
        if not 0 <= 2 * self.context < self.room:
            raise TaskError(
                f"context = {self.context} tokens on both sides; allowed in windows of {self.room} (max_length without special tokens): "
                f"0 to {(self.room - 1) // 2}"
            )
        self.surfaces = np.array(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), dtype=object)

    @classmethod
    def load(cls, name_or_path: str | Path | None = None, *, device: str = "auto", on: Place | None = None, **options: Any) -> Scorer:
        """Return a Scorer of a model folder, a run's folder or a Hub id, by default of the model in the box.

        `device` is auto, cpu, cuda, cuda:1..., `options` as of Scorer. `on` is a Cluster that runs the model, which is sent to its workers.
        Raises: CheckpointError, TokenizerError, TaskError.
        """
        from ..infer.load import load, spread

        folder = model_folder(or_box(name_or_path))
        model, tokenizer = load(folder, device=device if on is None else "cpu", precision=options.get("precision", "fp32"))
        scorer = cls(model, tokenizer, **options)
        if on is not None:
            spread(scorer.engine, on, folder, tokenizer, device)
        return scorer

    def score(self, texts: Iterable[str], method: Method = "original", *, sample: int = 16, seed: int = 0) -> Iterator[Scored]:
        """Yield the score of each of any number of texts, in order and in bounded memory; one that fails says why in `error`.

        method: "original" masks one token at a time; "word_l2r" masks the later pieces of its word with it, so that a word is not
        given away by its own end; "sampled" estimates "original" from `sample` tokens a text, drawn by (seed, text).
        Source: Salazar et al. 2020; Kauf & Ivanova 2023, whose words are ours of data/words.py.
        Raises: TaskError for another method, or a sample of less than two tokens, which has no standard error.
        """
        if method not in METHODS:
            raise TaskError(f"method = {method!r}; allowed: {', '.join(METHODS)}")
        if method == "sampled" and sample < 2:
            raise TaskError(f"sample = {sample} tokens a text; at least 2, or there is no standard error")
        return self._score(texts, method, sample, seed)

    def _score(self, texts: Iterable[str], method: str, sample: int, seed: int) -> Iterator[Scored]:
        waiting: deque[_Item] = deque()

        def requests() -> Iterator[Request]:
            for item in self._items(texts):
                if item.error is None:
                    self._choose(item, method, sample, seed)
                waiting.append(item)
                yield from self._copies(item)

        for (value,) in self.engine.run(requests(), truth, labelled=True):
            while waiting[0].num_done == len(waiting[0].chosen):
                yield self._finish(waiting.popleft(), method)
            item = waiting[0]
            item.values[item.num_done : item.num_done + len(value)] = value
            item.num_done += len(value)
        while waiting:
            yield self._finish(waiting.popleft(), method)

    def _items(self, texts: Iterable[str]) -> Iterator[_Item]:
        """Yield texts with their tokens; the next ones are being tokenized meanwhile."""
        chunks: deque[list[_Item]] = deque()

        def batches() -> Iterator[tuple[str, list[str], list[str]]]:
            rest = iter(texts)
            while chunk := [_read(text) for text in islice(rest, CHUNK)]:
                chunks.append(chunk)
                # half a surrogate pair is no text
                good = [item.text.encode("utf-8", errors="replace").decode() for item in chunk if item.error is None]
                yield "", [""] * len(good), good

        for _, _, _, (flat, starts, lengths) in self.encoder.encode_all(batches()):
            chunk = chunks.popleft()
            ids, words = flat.astype(np.int64), np.cumsum(starts)
            bounds = np.cumsum([0, *lengths.tolist()]).tolist()
            good = (item for item in chunk if item.error is None)
            for item, start, stop in zip(good, bounds, bounds[1:], strict=False):
                if start == stop:
                    item.error = f"the tokenizer makes no token of {item.text[:80]!r}; give a text with a word in it"
                    continue
                item.ids, item.words = ids[start:stop], words[start:stop] - words[start]
            yield from chunk

    def _choose(self, item: _Item, method: str, sample: int, seed: int) -> None:
        """Set which tokens of a text are scored, and how far their masks reach."""
        size = len(item.ids)
        places = np.arange(size)
        if method == "sampled" and sample < size:
            content = int.from_bytes(hashlib.blake2b(item.ids.tobytes(), digest_size=8).digest(), "little") >> 1
            drawn = uniforms(seed, "pll", rows=np.array(content), columns=places)
            places = np.sort(np.argpartition(drawn, sample)[:sample])
        item.chosen, item.ends = places, places + 1
        if method == "word_l2r":
            item.ends = np.searchsorted(item.words, item.words, side="right")
        item.values = np.empty(len(places))
        if size > self.room:
            stride = self.room - 2 * self.context
            item.windows = 1 + -(-(size - self.room) // stride)

    def _copies(self, item: _Item) -> Iterator[Request]:
        """Yield the masked copies of a text, or of its windows."""
        from ..infer.engine import Request

        size, before = min(len(item.ids), self.room), len(self.prefix)
        stride = self.room - 2 * self.context
        window = np.clip((item.chosen - self.context) // stride, 0, item.windows - 1)
        bounds = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(window)]
        for low, high in pairwise(bounds):
            if low == high:
                continue
            start = min(int(window[low]) * stride, len(item.ids) - size)
            ids = np.concatenate([self.prefix, item.ids[start : start + size], self.suffix])
            chosen = item.chosen[low:high]
            first = (chosen - start + before).tolist()
            last = (np.minimum(item.ends[low:high], start + size) - start + before).tolist()
            for place, end, label in zip(first, last, item.ids[chosen].tolist(), strict=True):
                copy = ids.copy()
                copy[place:end] = self.specials.mask
                yield Request(copy, [place], [label])

    def _finish(self, item: _Item, method: str) -> Scored:
        if item.error is not None:
            return Scored(item.text, error=item.error)
        if np.isnan(item.values).any():
            return Scored(
                item.text, error="the model answers with what is no number (NaN): its weights are damaged; take another copy of it"
            )
        size, count = len(item.ids), len(item.chosen)
        log_probs = item.values
        if count < size:
            log_probs = np.full(size, np.nan)
            log_probs[item.chosen] = item.values
        error = None
        if method == "sampled":  # drawn without putting back: where all are drawn, nothing is left to err about
            error = size * math.sqrt(item.values.var(ddof=1) / count * (1 - count / size)) if count < size else 0.0
        unknown = self.specials.unk
        return Scored(
            text=item.text,
            tokens=tuple(self.surfaces[item.ids]),
            token_ids=item.ids,
            log_probs=log_probs,
            word_index=item.words,
            total=float(item.values.sum()) * (size / count),
            standard_error=error,
            num_tokens=size,
            num_scored_tokens=count,
            num_words=len(item.text.split()),
            num_bytes=len(item.text.encode("utf-8", errors="replace")),
            num_unknown=0 if unknown is None else int((item.ids == unknown).sum()),
            windows=item.windows,
        )


def truth(logits: Any, labels: Any) -> tuple[np.ndarray]:
    """Return the log-probabilities of the labels. Shapes: logits (N, V) and labels (N,) of torch or numpy; the result (N,) of numpy."""
    if is_numpy(logits):
        return ((np.take_along_axis(logits, labels[:, None], 1) - log_normalizer(logits))[:, 0],)
    # few rows at a time, which a core's cache holds: five times as fast on a CPU as torch's logsumexp of all
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(labels))
    parts = zip(logits.split(rows), labels.split(rows), strict=True)
    return (np.concatenate([to_numpy(part.log_softmax(-1).gather(1, label[:, None]))[:, 0] for part, label in parts]),)


def _read(text: Any) -> _Item:
    if not isinstance(text, str):
        return _Item(str(text), error=f"a text is a string, not {text!r:.80}")
    if not text.strip():
        return _Item(text, error=f"there is nothing to score in {text[:80]!r}; give a text with a word in it")
    return _Item(text)


@overload
def score(model: str | Path | Scorer | None, texts: str, method: Method = ..., *, sample: int = ..., seed: int = ...) -> Scored: ...  # type: ignore[overload-overlap]
@overload
def score(
    model: str | Path | Scorer | None, texts: Iterable[str], method: Method = ..., *, sample: int = ..., seed: int = ...
) -> list[Scored]: ...
def score(
    model: str | Path | Scorer | None, texts: str | Iterable[str], method: Method = "original", *, sample: int = 16, seed: int = 0
) -> Scored | list[Scored]:
    """Return the pseudo-log-likelihood of a text, or of each of many, by a model folder, a Hub id or a Scorer; see Scorer.score.

    None is the model in the box.
    Raises: TaskError (for a single text also where it cannot be scored), CheckpointError, TokenizerError.
    """
    scorer = model if isinstance(model, Scorer) else Scorer.load(model)
    if not isinstance(texts, str):
        return list(scorer.score(texts, method, sample=sample, seed=seed))
    (result,) = scorer.score([texts], method, sample=sample, seed=seed)
    if result.error is not None:
        raise TaskError(result.error)
    return result
