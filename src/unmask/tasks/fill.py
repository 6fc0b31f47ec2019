"""Fill the masks in texts: what does the model expect to stand there?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..box import or_box
from ..errors import TaskError
from ..infer.arrays import log_normalizer, top_k
from ..infer.backends import Backend
from ..infer.engine import Engine
from .allowed import Allowed, Kind
from .filled import Candidate, Combination, Filled, whole_word
from .joint import MOST_MASKS, Blanks, Filling, Search
from .masked_text import MaskedText, MaskedTexts, Text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..infer.request import Request

__all__ = ["Candidate", "Combination", "FillOptions", "Filled", "Filler", "fill"]

CHUNK = 256  # texts tokenized at a time
DEEP = 64  # texts filled jointly at a time
WIDEST = 1024  # fillings that are followed at a time
NO_NUMBERS = "the model answers with what is no number (NaN): its weights are damaged; take another copy of it"


@dataclass(frozen=True, slots=True)
class FillOptions:
    """How masks are filled.

    top_k: candidates a mask.
    independent: do not fill the masks of one text (at most MOST_MASKS, 64) together as well.
    targets: what to score instead of what the model expects, in this order: a list for every mask, or a list of lists, one a mask.
    renormalize: scores are shares among the targets, not of all that so many tokens can say.
    vocabulary: only these words may stand at a mask.
    whole_words: only whole words, and no punctuation.
    no_subwords: nothing that goes on with the word before it.
    max_pieces: a blank (`___`, not a mask token) is filled by whole words of one to so many tokens (at most MOST_MASKS).
    beam: how many joint fillings are followed at a time.
    """

    top_k: int = 5
    independent: bool = False
    targets: Sequence[str] | Sequence[Sequence[str]] | None = None
    renormalize: bool = False
    vocabulary: Sequence[str] | None = None
    whole_words: bool = False
    no_subwords: bool = False
    max_pieces: int = 1
    beam: int | None = None

    def __post_init__(self) -> None:
        for name in ("top_k", "max_pieces", "beam"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TaskError(f"{name} = {value}; at least 1")
        if self.beam is not None and self.beam > WIDEST:
            raise TaskError(f"beam = {self.beam}; at most {WIDEST:,}")
        if self.max_pieces > MOST_MASKS:
            raise TaskError(f"max_pieces = {self.max_pieces}; at most {MOST_MASKS}: each number of pieces is a search of its own")
        for name in ("targets", "vocabulary"):
            value = getattr(self, name)
            if isinstance(value, str) or (value is not None and not len(value)):
                raise TaskError(f"{name} = {value!r}; give a list of words")
        if self.targets is not None and (self.vocabulary is not None or self.max_pieces > 1 or self.whole_words or self.no_subwords):
            raise TaskError("targets say what to score: vocabulary, whole_words, no_subwords and max_pieces do not go with them")
        if self.vocabulary is not None and (self.whole_words or self.no_subwords or self.max_pieces > 1):
            raise TaskError("a vocabulary says what may stand at a mask: whole_words, no_subwords and max_pieces do not go with it")
        if self.renormalize and self.targets is None:
            raise TaskError("renormalize = True shares one among the targets; give targets")

    @property
    def kind(self) -> Kind:
        """Which tokens may stand at a mask."""
        return "whole_words" if self.whole_words else "no_subwords" if self.no_subwords else "ordinary"

    @property
    def width(self) -> int:
        """The beam, whose default grows with what is asked for, up to WIDEST."""
        return self.beam or min(WIDEST, max(8, 2 * self.top_k))


class Filler:
    """Fills masks with a masked language model; `options` go to the Engine.

    `<mask>`, `[MASK]`, `___` (three underscores or more) and the tokenizer's own mask token all mean a mask. Threads may share a Filler.
    """

    def __init__(self, model: PreTrainedModel | Backend, tokenizer: Any, *, max_length: int | None = None, **options: Any) -> None:
        if not isinstance(model, Backend):
            from ..model.load import check_fit

            check_fit(model, tokenizer, max_length)
        self.engine = Engine(model, **options)
        self.tokenizer = tokenizer
        limits = [limit for limit in (self.engine.max_length, max_length) if limit is not None]
        self.max_length = min(limits) if limits else None
        self.texts = MaskedTexts(tokenizer, self.max_length)
        self.marker, self.specials = self.texts.marker, self.texts.specials
        self.allowed = Allowed(self.texts)

    @classmethod
    def load(cls, name_or_path: str | Path | None = None, *, device: str = "auto", **options: Any) -> Filler:
        """Return a Filler of a model folder, an exported one or a Hub id, by default of the model in the box.

        `device` is auto, cpu, cuda, cuda:1..., `options` as of Filler.
        Raises: CheckpointError, TokenizerError.
        """
        from ..infer.load import load

        return cls(*load(name_or_path, device=device, precision=options.get("precision", "fp32")), **options)

    @overload
    def fill(self, text: str, **options: Any) -> Filled: ...  # type: ignore[overload-overlap]
    @overload
    def fill(self, text: tuple[str, str], **options: Any) -> Filled: ...  # type: ignore[overload-overlap]
    @overload
    def fill(self, text: Iterable[Text], **options: Any) -> list[Filled]: ...
    def fill(self, text: Text | Iterable[Text], **options: Any) -> Filled | list[Filled]:
        """Return for each mask of a text (a tuple of two is a pair) what may stand there; a list for many texts. `options`: FillOptions.

        Scores are shares of the whole vocabulary; special tokens are not offered. Several masks of a text are filled each on its own,
        and together in `joint`.
        Raises: TaskError for a text without a mask (in a list, its result says so in `error`).
        """
        if isinstance(text, (str, tuple)):
            (result,) = self.stream([text], **options)  # type: ignore[list-item]
            if result.error is not None:
                raise TaskError(result.error)
            return result
        return list(self.stream(text, **options))

    def stream(self, texts: Iterable[Text], **options: Any) -> Iterator[Filled]:
        """Yield a result for each of any number of texts, in order and in bounded memory; one that fails says why in `error`."""
        wrong = sorted(set(options) - {field.name for field in fields(FillOptions)})
        if wrong:
            raise TaskError(
                f"there is no option {wrong[0]!r} of filling; allowed: {', '.join(field.name for field in fields(FillOptions))}"
            )
        chosen = FillOptions(**options)
        if chosen.targets is not None:
            from .fill_targets import fill_targets

            yield from fill_targets(self, ((text, chosen) for text in texts))
            return
        waiting: list[tuple[MaskedText, Filled]] = []
        for item, result in self._marginals(texts, chosen):
            # what is filled further is done together, a number of texts at a time; the rest goes straight on
            if waiting or (item.error is None and self._goes_on(item, chosen)):
                waiting.append((item, result))
                if len(waiting) < DEEP:
                    continue
                yield from self._deepen(waiting, chosen)
                waiting = []
            else:
                yield result
        yield from self._deepen(waiting, chosen)

    def _marginals(self, texts: Iterable[Text], chosen: FillOptions) -> Iterator[tuple[MaskedText, Filled]]:
        """Yield texts with each of their masks filled on its own."""

        def best(logits: Any, labels: Any) -> tuple[Any, ...]:
            values, ids = top_k(self.allowed.masked(logits - log_normalizer(logits), labels), min(chosen.top_k, logits.shape[1]))
            return values, ids

        waiting: deque[tuple[MaskedText, int]] = deque()

        def requests() -> Iterator[Request]:
            rest = iter(texts)
            while chunk := list(islice(rest, CHUNK)):
                for item in self.texts.read(chunk):
                    if item.error is None and len(item.spans) > MOST_MASKS and self._is_joint(item, chosen):
                        item.error = (
                            f"there are {len(item.spans):,} masks in a text, and at most {MOST_MASKS} are filled together; fill each on "
                            "its own (independent=True, --independent), or cut the text up"
                        )
                    made = [] if item.error is not None else self.texts.requests(item, self._sets(item, chosen))
                    waiting.append((item, len(made)))
                    yield from made

        rows: list[tuple[list[float], list[int]]] = []
        num_results = 0
        for values, ids in self.engine.run(requests(), best, labelled=True):
            while num_results == waiting[0][1]:
                item = waiting.popleft()[0]
                yield item, self._finish(item, rows)
                rows, num_results = [], 0
            rows += zip(values.tolist(), ids.tolist(), strict=True)
            num_results += 1
        while waiting:
            item = waiting.popleft()[0]
            yield item, self._finish(item, rows)
            rows = []

    def _sets(self, item: MaskedText, chosen: FillOptions) -> list[int]:
        """Return the set of tokens that may stand at each mask of a text."""
        masks = range(len(item.spans))
        if chosen.vocabulary is None:
            return [self.allowed.number(chosen.kind, item, mask) for mask in masks]
        return [self.allowed.words(chosen.vocabulary, item, mask)[0] for mask in masks]

    def _finish(self, item: MaskedText, rows: list[tuple[list[float], list[int]]]) -> Filled:
        if item.error is None and any(math.isnan(value) for values, _ in rows for value in values):
            item.error = NO_NUMBERS
        masks = []
        for mask, (values, ids) in enumerate(rows if item.error is None else []):
            masks.append(tuple(self.candidate(item, mask, (number,), value) for value, number in zip(values, ids, strict=True)
                               if value > -math.inf))  # fmt: skip
        return self.result(item, masks)

    def result(self, item: MaskedText, masks: Sequence[tuple[Candidate, ...]] = (), joint: Sequence[Combination] = ()) -> Filled:
        """Return what a text comes back with."""
        pair = item.parts[1] if len(item.parts) == 2 else None
        if item.error is not None:
            return Filled(item.parts[0], error=item.error, pair=pair)
        return Filled(item.parts[0], tuple(masks), item.truncated, None, tuple(joint), pair)

    def candidate(self, item: MaskedText, mask: int, ids: Sequence[int], log_prob: float, score: float | None = None) -> Candidate:
        """Return what stands at a mask when tokens are put there."""
        sequence, start, token, joined = self.texts.filled(item, mask, ids)
        word = whole_word(sequence, start, start + len(token))
        score = math.exp(log_prob) if score is None else score
        return Candidate(token, ids[0], score, sequence, start, joined, word, log_prob, tuple(ids))

    # filling further

    def _goes_on(self, item: MaskedText, chosen: FillOptions) -> bool:
        return bool(self._blanks(item, chosen)) or self._is_joint(item, chosen) or chosen.vocabulary is not None

    def _blanks(self, item: MaskedText, chosen: FillOptions) -> list[int]:
        """Return which masks are filled by words of several pieces."""
        return [mask for mask in range(len(item.spans)) if item.is_blank(mask)] if chosen.max_pieces > 1 else []

    def _is_joint(self, item: MaskedText, chosen: FillOptions) -> bool:
        return len(item.spans) > 1 and not chosen.independent and not self._blanks(item, chosen)

    def _deepen(self, waiting: Sequence[tuple[MaskedText, Filled]], chosen: FillOptions) -> Iterator[Filled]:
        search = Search(self.engine, self.texts, self.allowed, chosen.width)
        together: dict[int, Blanks] = {}
        words: dict[tuple[int, int], list[Blanks]] = {}
        for number, (item, result) in enumerate(waiting):
            if result.error is not None:
                continue
            if self._is_joint(item, chosen):
                together[number] = Blanks(item, item.ids, item.num_first, item.places, self._sets(item, chosen))
            for mask in self._blanks(item, chosen):
                words[number, mask] = [self._word(item, mask, count) for count in range(1, chosen.max_pieces + 1)]
        search.run([*together.values(), *(one for group in words.values() for one in group)])
        for number, (item, result) in enumerate(waiting):
            if result.error is not None:
                yield result
                continue
            masks = list(result.masks)
            for mask in self._blanks(item, chosen):
                masks[mask] = self._words(item, mask, words[number, mask], chosen)
            if chosen.vocabulary is not None:
                masks, error = self._long_words(item, masks, chosen, joint=number in together)
                item.error = error
            joint = [self._combination(item, *pair) for pair in together[number].found[: chosen.top_k]] if number in together else []
            yield self.result(item, masks, joint)

    def _word(self, item: MaskedText, mask: int, count: int) -> Blanks:
        """Return a mask as that many masks, to be filled by one whole word."""
        place = item.places[mask]
        ids = [*item.ids[:place], *[self.specials.mask] * count, *item.ids[place + 1 :]]
        sets = [self.allowed.number("whole_words" if piece == 0 else "rest", item, mask) for piece in range(count)]
        item.truncated = item.truncated or not self.texts.fits(item, count - 1)
        num_first = item.num_first + (count - 1 if place < item.num_first else 0)
        return Blanks(item, ids, num_first, list(range(place, place + count)), sets)

    def _words(self, item: MaskedText, mask: int, group: Sequence[Blanks], chosen: FillOptions) -> tuple[Candidate, ...]:
        """Return the likeliest words of any number of pieces, by their log-probability a piece."""
        found = [pair for blanks in group for pair in blanks.found]
        best = sorted(found, key=lambda pair: -pair[1] / len(pair[0]))[: chosen.top_k]
        return tuple(self.candidate(item, mask, ids, log_prob) for ids, log_prob in best)

    def _long_words(
        self, item: MaskedText, masks: list[tuple[Candidate, ...]], chosen: FillOptions, *, joint: bool
    ) -> tuple[list[tuple[Candidate, ...]], str | None]:
        """Return the candidates of a vocabulary with its words of several pieces among them, by log-probability a piece."""
        assert chosen.vocabulary is not None
        long = [self.allowed.words(chosen.vocabulary, item, mask)[1] for mask in range(len(item.spans))]
        if joint and any(long):
            word = next(words[0] for words in long if words)
            return (
                masks,
                f"{word!r} of the vocabulary has several pieces, which joint filling cannot place; leave it out, or fill independent",
            )
        from .fill_targets import score

        for mask, words in enumerate(long):
            if words:
                scored = score(self, item, mask, words)
                failed = next(((word, one.error) for word, one in zip(words, scored, strict=True) if one.error is not None), None)
                if failed is not None:
                    return masks, f"{failed[0]!r} of the vocabulary cannot be scored here ({failed[1]}); leave it out"
                both = sorted([*masks[mask], *scored], key=lambda one: -one.log_prob / one.num_pieces)
                masks[mask] = tuple(both[: chosen.top_k])
        return masks, None

    def _combination(self, item: MaskedText, ids: Filling, log_prob: float) -> Combination:
        texts, found = self.texts.render(item, [(number,) for number in ids])
        starts, tokens = zip(*found, strict=True)
        return Combination(tokens, ids, math.exp(log_prob), log_prob, "\n".join(texts), starts)


@lru_cache(maxsize=1)
def _cached(name: str, stamp: float) -> Filler:
    return Filler.load(name)


@overload
def fill(model: str | Path | Filler | None, text: str, **options: Any) -> Filled: ...  # type: ignore[overload-overlap]
@overload
def fill(model: str | Path | Filler | None, text: tuple[str, str], **options: Any) -> Filled: ...  # type: ignore[overload-overlap]
@overload
def fill(model: str | Path | Filler | None, text: Iterable[Text], **options: Any) -> list[Filled]: ...
def fill(model: str | Path | Filler | None, text: Text | Iterable[Text], **options: Any) -> Filled | list[Filled]:
    """Return what a model folder, Hub id or Filler puts at the masks of a text, or of many (the last model named is kept loaded).

    None is the model in the box. `options` are those of FillOptions: top_k, targets, vocabulary ...
    Raises: TaskError, CheckpointError, TokenizerError.
    """
    if isinstance(model, Filler):
        return model.fill(text, **options)  # type: ignore[arg-type]
    model = or_box(model)
    # a folder that was written anew is loaded anew
    stamps = [file.stat().st_mtime for file in Path(model).glob("*") if file.is_file()] if Path(model).is_dir() else []
    return _cached(str(model), max(stamps, default=0.0)).fill(text, **options)  # type: ignore[arg-type]
