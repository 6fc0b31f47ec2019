"""The best legal tags of texts, and how likely an entity is among all legal ones. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .ner_tags import OUTSIDE, Scheme, Span, as_bio, begins, chunks, ends, legal

CELLS = 1 << 22  # numbers that a step of the search may hold


@dataclass(frozen=True)
class Grammar:
    """Which tags may follow one another, begin and end a text; `parts`: between which an entity ends. All (L, L) or (L,)."""

    tags: Sequence[tuple[str, str]]
    between: np.ndarray
    first: np.ndarray
    last: np.ndarray
    parts: np.ndarray
    scheme: Scheme

    @classmethod
    def of(cls, tags: Sequence[tuple[str, str]], scheme: Scheme) -> Grammar:
        """Return the grammar of (letter, type) pairs in a scheme."""
        between = np.array([[legal(one, two, scheme) for two in tags] for one in tags])
        # what BIOES says by letters is bounded by legality; the other schemes by the rules of conlleval
        parts = np.array([[one[0] in "ES" or ends(one, two) or begins(one, two) for two in tags] for one in tags])
        first = np.array([legal(OUTSIDE, tag, scheme) for tag in tags])
        last = np.array([legal(tag, OUTSIDE, scheme) for tag in tags])
        return cls(tags, between, first, last, between & parts, scheme)


def decode(rows: np.ndarray, lengths: np.ndarray, grammar: Grammar) -> list[list[tuple[Span, float]]]:
    """Return for each text the entities of its best legal tags, each with its probability among all legal tags.

    `rows` are the logits of words, text after text. Shapes: rows (N, L), lengths (texts,).
    """
    rows = rows.astype(np.float64)
    rows = rows - rows.max(1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(1, keepdims=True))
    starts = np.cumsum([0, *lengths])[:-1]
    order = np.argsort(-lengths, kind="stable")
    size = max(1, CELLS // len(grammar.tags) ** 2)
    found: list[list[tuple[Span, float]]] = [[] for _ in lengths]
    for low in range(0, len(order), size):
        members = order[low : low + size]
        members = members[lengths[members] > 0]
        if len(members):
            for member, entities in zip(members.tolist(), _together(rows, starts[members], lengths[members], grammar), strict=True):
                found[member] = entities
    return found


def _together(rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray, grammar: Grammar) -> list[list[tuple[Span, float]]]:
    """Decode texts in step, the longest first."""
    best, forward, backward = (np.full_like(rows, -np.inf) for _ in range(3))
    back = np.zeros(rows.shape, np.int32)
    wall = np.where(grammar.between, 0.0, -np.inf)
    alive = np.searchsorted(-lengths, -np.arange(int(lengths[0])), side="left")  # of each step, how many texts are that long
    for step, count in enumerate(alive.tolist()):
        now = starts[:count] + step
        if step == 0:
            best[now] = forward[now] = rows[now] + np.where(grammar.first, 0.0, -np.inf)
        else:
            reach = best[now - 1][:, :, None] + wall
            back[now] = reach.argmax(1)
            best[now] = reach.max(1) + rows[now]
            forward[now] = _spread(forward[now - 1], grammar.between) + rows[now]
    final = starts + lengths - 1
    backward[final] = np.where(grammar.last, 0.0, -np.inf)
    for step in range(len(alive) - 2, -1, -1):
        now = starts[: alive[step + 1]] + step
        backward[now] = _spread(rows[now + 1] + backward[now + 1], grammar.between.T)
    tags = np.zeros(len(rows), np.int64)
    tags[final] = (best[final] + backward[final]).argmax(1)
    for step in range(len(alive) - 1, 0, -1):
        now = starts[: alive[step]] + step
        tags[now - 1] = back[now, tags[now]]
    found = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        path = tags[start : start + length]
        total = _sum(forward[start + length - 1] + backward[start + length - 1])
        spans = chunks(as_bio([grammar.tags[tag] for tag in path]))
        entities = []
        for low, high, kind in spans:
            score = _before(rows, forward, start, low, path, grammar)
            score += rows[np.arange(start + low + 1, start + high), path[low + 1 : high]].sum()
            if high < length:
                after = grammar.parts[path[high - 1]]
                score += _sum(np.where(after, rows[start + high] + backward[start + high], -np.inf))
            entities.append(((low, high, kind), float(np.exp(min(0.0, score - total)))))
        found.append(entities)
    return found


def _before(rows: np.ndarray, forward: np.ndarray, start: int, low: int, path: np.ndarray, grammar: Grammar) -> float:
    """Return the weight of everything before an entity, with its first tag."""
    kind = grammar.tags[path[low]][1]
    # in IOB1 what stands before says whether it begins with I or B; elsewhere there is one way to tag it
    tags = [number for number, tag in enumerate(grammar.tags) if tag[1] == kind] if grammar.scheme == "iob1" else [path[low]]
    if low == 0:
        return _sum(forward[start, tags])
    ways = [rows[start + low, tag] + _sum(np.where(grammar.parts[:, tag], forward[start + low - 1], -np.inf)) for tag in tags]
    return _sum(np.array(ways))


def _spread(values: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return log(exp(values) @ allowed), row by row."""
    peak = values.max(1, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - peak) @ allowed.astype(np.float64)) + peak


def _sum(values: np.ndarray) -> float:
    peak = values.max()
    return float(peak + np.log(np.exp(values - peak).sum())) if np.isfinite(peak) else float("-inf")
