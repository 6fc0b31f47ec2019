"""Contexts as tokens and windows of them, and the best answers that windows' logits give: every span is scored once, in one window."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.words import CONTINUES, GLUE, LETTER, NUMBER, character_class
from .encode import chunks, tokenize

ENCODINGS = 64  # texts whose encodings are held at a time
_JOINER = "\u200d"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A context's tokens. Shapes: ids, starts, ends (T,): the characters of each without spaces around; opens, closes (T,) bool.

    An answer may begin at a token that opens and end at one that closes: there a word does.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    opens: np.ndarray
    closes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Spans:
    """The best spans of a window, and the logarithm of the sum over all of them. Shapes: scores, first, last (K,), tokens."""

    scores: np.ndarray
    first: np.ndarray
    last: np.ndarray
    total: float


@functools.lru_cache(maxsize=1 << 14)
def _class(char: str) -> int:
    if char == _JOINER:
        return GLUE  # of emoji, and of scripts that join letters
    if "\U0001f3fb" <= char <= "\U0001f3ff":
        return CONTINUES  # the colour of the emoji before it
    return character_class(char)


def of_characters(text: str, rule: Callable[[str], int]) -> np.ndarray:
    """Return what a rule says of each character, (len(text),) uint8; each kind of character is asked about once."""
    codes, at = np.unique(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4")), return_inverse=True)
    return np.array([rule(chr(code)) for code in codes.tolist()], np.uint8)[at]


def borders(text: str) -> np.ndarray:
    """Return before which characters (and after the last) no word or character is cut in two, (len(text) + 1,) bool.

    In scripts without spaces every character is a word here; nowhere are marks parted from their letters.
    """
    found = np.ones(len(text) + 1, bool)
    kinds = of_characters(text, _class)
    if len(kinds) > 1:
        before, after = kinds[:-1], kinds[1:]
        marks = after == CONTINUES
        # a mark after a letter goes on with its word
        for place in np.flatnonzero(marks).tolist():
            kinds[place + 1] = kinds[place] if kinds[place] in (LETTER, NUMBER) else CONTINUES
        within = ((before == LETTER) | (before == NUMBER)) & ((after == LETTER) | (after == NUMBER))
        found[1:-1] = ~(within | marks | (before == GLUE) | (after == GLUE))
    return found


def read_tokens(tokenizer: Any, texts: Iterable[str]) -> list[Tokens]:
    """Return the tokens of texts."""
    found: list[Tokens] = []
    for part in chunks(texts, ENCODINGS):  # an Encoding is some hundred times as large as what is kept of it
        found += map(_tokens, part, tokenize(tokenizer, part, offsets=True))
    return found


def _tokens(text: str, encoding: Any) -> Tokens:
    places = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    blank = of_characters(text, str.isspace).astype(bool)
    # the first character from each place on that is no space, and the last one before it
    solid = np.flatnonzero(~blank)
    after = np.append(solid, len(text))[np.searchsorted(solid, np.arange(len(text) + 1))]
    before = np.append(0, solid + 1)[np.searchsorted(solid, np.arange(len(text) + 1))]
    starts = np.minimum(after[places[:, 0]], places[:, 1])
    ends = np.maximum(before[places[:, 1]], starts)
    edges, there = borders(text), ends > starts
    return Tokens(np.array(encoding.ids, np.int32), starts, ends, there & edges[starts], there & edges[ends])


def overlapping(length: int, capacity: int, overlap: int) -> list[tuple[int, int]]:
    """Return (start, stop) of as few windows as hold at most `capacity` tokens, neighbours sharing `overlap`; of like length."""
    if length <= capacity:
        return [(0, length)]
    count = -(-(length - overlap) // (capacity - overlap))
    total = length + (count - 1) * overlap
    return [(k * total // count - k * overlap, (k + 1) * total // count - k * overlap) for k in range(count)]


def best_spans(
    rows: np.ndarray, tokens: Tokens, window: tuple[int, int], neighbours: tuple[Any, Any], *, longest: int, count: int
) -> Spans:
    """Return the best spans of a window and the sum over all, in odds against "this window holds no answer".

    Logits are known but for a constant of the window, since in training each had a softmax of its own. The odds against its null answer
    (the row at its first token) are free of that constant: so they compare between windows, and texts.
    A span that lies in two windows belongs to one of them, by where its middle is: that in which there is more text around it.
    Shapes: rows (1 + window, 2), of the first token and of the context's; `neighbours` are the windows before and after, or None.
    """
    low, high = window
    size = high - low
    longest = min(longest, size)
    if size == 0:
        nothing = np.zeros(0, np.int64)
        return Spans(np.zeros(0), nothing, nothing, -np.inf)
    values = rows.astype(np.float64)
    values = values[1:] - values[0]
    begin = np.where(tokens.opens[low:high], values[:, 0], -np.inf)
    finish = np.concatenate([np.where(tokens.closes[low:high], values[:, 1], -np.inf), np.full(longest - 1, -np.inf)])
    scores = begin[:, None] + np.lib.stride_tricks.sliding_window_view(finish, longest)  # (size, longest): start, length - 1
    if neighbours != (None, None):
        first = np.arange(low, high)[:, None]
        last = first + np.arange(longest)
        before, after = neighbours
        if before is not None:
            scores[(last < before[1]) & (first + last <= before[1] - 1 + low)] = -np.inf
        if after is not None:
            scores[(first >= after[0]) & (first + last > high - 1 + after[0])] = -np.inf
    flat = scores.ravel()
    best = np.argpartition(-flat, count - 1)[:count] if count < len(flat) else np.arange(len(flat))
    best = best[np.isfinite(flat[best])]
    best = best[np.lexsort((best, -flat[best]))]
    if not len(best):
        return Spans(flat[best], best, best, -np.inf)
    peak = flat[best[0]]
    first = low + best // longest
    return Spans(flat[best], first, first + best % longest, float(peak + np.log(np.exp(flat - peak).sum())))


def log_sum(values: Iterable[float]) -> float:
    """Return the logarithm of the sum of exponentials."""
    found = np.array(list(values), np.float64)
    peak = found.max(initial=-np.inf)
    return float(peak + np.log(np.exp(found - peak).sum())) if np.isfinite(peak) else -np.inf


def neighbours(windows: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[Any, Any]]]:
    """Yield each window with those before and after it, None at the ends."""
    for place, window in enumerate(windows):
        yield window, (windows[place - 1] if place else None, windows[place + 1] if place + 1 < len(windows) else None)
