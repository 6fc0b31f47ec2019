"""Words that two tokenizers both see: found in the text itself, hidden in two models alike, scored piece by piece and added up.

Models whose tokenizers differ have no token in common to be compared on. They have the text: a word of it is hidden whole from both,
each model is asked for its own pieces of it, and what is compared is the log-probability of the word, per word and per byte.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.tokenizer import frame, special_ids
from ..data.words import ALONE, CONTINUES, SPACE, character_class
from ..errors import TaskError
from ..rng import uniforms

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.text import Document
    from ..infer.engine import Engine, Request

SHARE = 0.15  # of the words that are hidden at once


class _Classes(dict[str, int]):
    def __missing__(self, char: str) -> int:
        self[char] = found = character_class(char)
        return found


_classes = _Classes()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text as one tokenizer cuts it: token ids and where in the text each begins and ends, spaces around it left out, (T,) each."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def encoded(text: str, encoding: Any) -> Encoded:
    """Return an encoding with spaces trimmed off its tokens; a lone space, which marks the word behind it, stands where that begins."""
    starts, stops = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    for place, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        if text[start:stop].isspace():
            starts[place] = stops[place] = stop if text[start:stop] == " " else start
            continue
        while start < stop and text[start].isspace():
            start += 1
        while start < stop and text[stop - 1].isspace():
            stop -= 1
        starts[place], stops[place] = start, stop
    return Encoded(np.array(encoding.ids, dtype=np.int64), starts, stops)


def word_edges(text: str, encodings: Iterable[Encoded]) -> np.ndarray:
    """Return where words begin that all of the tokenizers cut there too, (words,): a run of letters, of digits or of signs, or longer.

    In scripts without spaces every character may begin one. No token reaches over an edge: where one would, there is no edge.
    """
    size = len(text)
    classes = np.fromiter((_classes[char] for char in text), np.int64, size)
    own = np.where(classes == CONTINUES, 0, np.arange(size))  # an accent, a joiner: of the class of what stands before it
    classes = classes[np.maximum.accumulate(own)] if size else classes
    before = np.concatenate([[SPACE], classes[:-1]])
    begins = (classes != SPACE) & ((classes != before) | (classes == ALONE))
    begins[1:] &= np.fromiter((_classes[char] != CONTINUES for char in text[1:]), bool, max(0, size - 1))
    for one in encodings:
        inside = np.zeros(size + 1, np.int64)
        longer = one.stops - one.starts > 1
        np.add.at(inside, one.starts[longer] + 1, 1)
        np.add.at(inside, one.stops[longer], -1)
        begins &= np.cumsum(inside)[:size] == 0
    return np.flatnonzero(begins)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a document: where each begins and ends in the text, and for each tokenizer its tokens.

    Shapes: starts, stops (words,); of each tokenizer firsts (words + 1,), the index of each word's first token, and the number of tokens;
        pieces (words,), how many tokens each word is. Tokens of nothing but space are in no word.
    """

    starts: np.ndarray
    stops: np.ndarray
    firsts: tuple[np.ndarray, ...]
    pieces: tuple[np.ndarray, ...]


def find_words(text: str, encodings: tuple[Encoded, ...]) -> Words:
    """Return the words of a text that all tokenizers share."""
    starts = word_edges(text, encodings)
    stops = np.append(starts[1:], len(text))[: len(starts)]
    for word in range(len(starts)):
        while stops[word] > starts[word] + 1 and text[stops[word] - 1].isspace():
            stops[word] -= 1
    firsts = tuple(np.append(np.searchsorted(one.starts, starts), len(one.ids)) for one in encodings)
    pieces = tuple(np.searchsorted(one.starts, stops) - first[:-1] for one, first in zip(encodings, firsts, strict=True))
    return Words(starts, stops, firsts, pieces)


@dataclass(slots=True)
class Side:
    """One of the models: its tokenizer's ways, the engine that runs it, and how many tokens it may see at once."""

    engine: Engine
    tokenizer: Any
    max_length: int | None = None
    prefix: list[int] = field(init=False)
    suffix: list[int] = field(init=False)
    room: int = field(init=False)
    mask: int = field(init=False)
    unknown: int | None = field(init=False)
    backend: Any = field(init=False)

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer

        self.prefix, self.suffix = frame(self.tokenizer)
        specials = special_ids(self.tokenizer)
        self.mask, self.unknown = specials.mask, specials.unk
        limit = min(filter(None, (self.engine.max_length, self.max_length)), default=512)
        self.room = limit - len(self.prefix) - len(self.suffix)
        if self.room < 1:
            raise TaskError(f"max_length = {limit} leaves no room beside {len(self.prefix) + len(self.suffix)} special tokens; give more")
        # a copy: a "[MASK]" that stands in a text is text
        self.backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True


@dataclass(slots=True)
class Item:
    """A document on its way through both engines: the words chosen, and for each side the results, piece by piece."""

    document: Document
    words: Words
    chosen: np.ndarray
    encodings: tuple[Encoded, ...]
    windows: list[tuple[int, int]]
    num_unscored: int
    results: tuple[list[tuple[Tensor, ...]], ...] = ()

    def labels(self, side: int) -> np.ndarray:
        """Return the ids of the pieces of the chosen words, end to end."""
        return self.encodings[side].ids[self.places(side)]

    def places(self, side: int) -> np.ndarray:
        """Return which tokens of a side are the pieces of the chosen words."""
        bounds, counts = self.words.firsts[side][self.chosen], self.words.pieces[side][self.chosen]
        return np.repeat(bounds - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))


def prepare(document: Document, encodings: tuple[Encoded, ...], sides: tuple[Side, ...], seed: int) -> Item:
    """Return a document with its words chosen: by a hash of (what it says, where the word begins, seed), one at least.

    Left out of the choice and counted: words that a tokenizer does not know or drops, and words longer than a window.
    What has no letter and no digit is no word.
    """
    text = document.text
    words = find_words(text, encodings)
    named = np.array([any(char.isalnum() for char in text[a:b]) for a, b in zip(words.starts, words.stops, strict=True)], dtype=bool)
    fits = np.ones(len(words.starts), dtype=bool)
    for number, (side, one) in enumerate(zip(sides, encodings, strict=True)):
        fits &= (words.pieces[number] > 0) & (np.diff(words.firsts[number]) <= side.room)
        if side.unknown is not None and len(one.ids):
            unknown = np.concatenate([[0], np.cumsum(one.ids == side.unknown)])
            firsts = words.firsts[number][:-1]
            fits &= unknown[firsts + words.pieces[number]] == unknown[firsts]
    allowed = np.flatnonzero(named & fits)
    key = int.from_bytes(hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest(), "little")
    drawn = uniforms(seed, "shared words", rows=np.array(key, dtype=np.uint64), columns=words.starts[allowed])
    chosen = allowed[(drawn < SHARE) | (drawn == drawn.min(initial=2.0))]
    return Item(document, words, chosen, encodings, cut(words, sides), int((named & ~fits).sum()))


def cut(words: Words, sides: tuple[Side, ...]) -> list[tuple[int, int]]:
    """Return windows as (first word, end) that fit into every model, so that all of them see the same text around a word."""
    windows, first, count = [], 0, len(words.starts)
    while first < count:
        pairs = zip(sides, words.firsts, strict=True)
        end = min(int(np.searchsorted(firsts, firsts[first] + side.room, "right")) - 1 for side, firsts in pairs)
        if end > first:
            windows.append((first, end))
        first = max(end, first + 1)  # a word longer than a window is in none
    return windows


def requests(item: Item, side: Side, number: int, *, left_to_right: bool = False) -> Iterator[Request]:
    """Yield what one model is asked of a document: its windows that hold chosen words, all their pieces behind masks.

    `left_to_right` asks for the pieces of a word one after the other: again and again the words that have more pieces show one more.
    """
    from ..infer.engine import Request

    bounds, places, ids = item.words.firsts[number], item.places(number), item.encodings[number].ids
    hidden = ids.copy()
    hidden[places] = side.mask
    before = len(side.prefix)
    for first, end in item.windows:
        low, high = int(bounds[first]), int(bounds[end])
        inside = places[(places >= low) & (places < high)]
        if len(inside):
            window = np.concatenate([side.prefix, hidden[low:high], side.suffix]).astype(np.int64)
            if not left_to_right:
                yield Request(window, inside - low + before, ids[inside])
                continue
            turn, longest = turns(item, number, inside)
            for piece in range(int(longest.max())):
                seen = inside[(turn < piece) & (longest > piece)]
                shown = window.copy()
                shown[seen - low + before] = ids[seen]
                asked = inside[turn == piece]
                yield Request(shown, asked - low + before, ids[asked])


def turns(item: Item, number: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return of pieces of chosen words, given by their places, which piece of its word each is (from 0), and how many that word has."""
    word = np.searchsorted(item.words.firsts[number], places, side="right") - 1
    return places - item.words.firsts[number][word], item.words.pieces[number][word]


def answer(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return of each piece the log-probability of the true id, the most probable id, and its log-probability."""
    top, best = logits.max(-1)
    total = logits.logsumexp(-1)
    return (logits.gather(1, labels[:, None])[:, 0] - total).cpu(), best.cpu(), (top - total).cpu()


@dataclass(frozen=True, slots=True)
class Answered:
    """A document with what both models said of its chosen words: for each model (words,), and `predicted` the ids of each word's pieces."""

    item: Item
    log_prob: tuple[np.ndarray, ...]
    confidence: tuple[np.ndarray, ...]
    correct: tuple[np.ndarray, ...]
    predicted: tuple[list[np.ndarray], ...]


def ask(
    documents: Iterable[Document], sides: tuple[Side, ...], *, seed: int = 0, chunk: int = 256, left_to_right: bool = False
) -> Iterator[Answered]:
    """Yield every document with the answers of all models to its hidden words, in order, in bounded memory."""
    waiting: deque[Document] = deque()

    def answers(items: list[Item]) -> Iterator[Answered]:
        found = []
        for number, side in enumerate(sides):
            asked = (one for item in items for one in requests(item, side, number, left_to_right=left_to_right))
            found.append(_gather(items, number, side.engine.run(asked, answer, labelled=True), left_to_right))
        for number, item in enumerate(items):
            yield Answered(item, *(tuple(side[number][part] for side in found) for part in range(4)))  # type: ignore[arg-type]

    def flush() -> Iterator[Answered]:
        texts = [document.text.encode("utf-8", errors="replace").decode() for document in waiting]  # half a surrogate pair is no text
        lists = [side.backend.encode_batch(texts, add_special_tokens=False) for side in sides]
        items = []
        for document, *encodings in zip(waiting, *lists, strict=True):
            items.append(prepare(document, tuple(encoded(document.text, one) for one in encodings), sides, seed))
        waiting.clear()
        yield from answers(items)

    size = 0
    for document in documents:
        waiting.append(document)
        size += len(document.text)
        if len(waiting) == chunk or size > 2**20:
            yield from flush()
            size = 0
    if waiting:
        yield from flush()


def _gather(items: list[Item], number: int, results: Iterator[tuple[Tensor, ...]], left_to_right: bool) -> list[tuple[Any, ...]]:
    """Return for each document the sums over the pieces of its words: log-probability, confidence, whether all are right, the guesses."""
    parts = list(results)
    flat = [np.concatenate([part[column].numpy() for part in parts]) if parts else np.zeros(0) for column in range(3)]
    found, first = [], 0
    for item in items:
        counts = item.words.pieces[number][item.chosen]
        end = first + int(counts.sum())
        log_prob, best, confidence = (column[first:end] for column in flat)
        if left_to_right:  # answers came window by window, first pieces first
            places, bounds = item.places(number), [item.words.firsts[number][last] for _, last in item.windows]
            order = np.lexsort((places, turns(item, number, places)[0], np.searchsorted(bounds, places, side="right")))
            back = np.argsort(order)
            log_prob, best, confidence = log_prob[back], best[back], confidence[back]
        starts = np.cumsum(counts) - counts
        if len(counts):
            sums = np.add.reduceat(log_prob, starts, dtype=np.float64)
            sure = np.exp(np.add.reduceat(confidence, starts, dtype=np.float64))
            right = np.logical_and.reduceat(best == item.labels(number), starts)
        else:
            sums, sure, right = np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool)
        found.append((sums, sure, right, np.split(best, starts[1:])))
        first = end
    return found
