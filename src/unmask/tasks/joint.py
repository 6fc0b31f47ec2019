"""The best ways to fill several masks together.

How probable a filling is follows from the chain rule, left to right: the first mask with all of them hidden, the second with the first
filled in, and so on; over all fillings that sums to one. A beam finds the likeliest. It may pass over a filling that begins unlikely, so
what it found is masked again, one place at a time with the others filled in, and what the model would rather see there joins the others,
until nothing better turns up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..infer.arrays import log_normalizer, log_probs_at, top_k
from ..infer.engine import Engine
from ..infer.request import Request
from .allowed import Allowed
from .masked_text import MaskedText, MaskedTexts

MOST_MASKS = 64  # of a text that are filled together: what is asked of the model grows with their square
NEIGHBOURS = 3  # tokens that are tried at a place that is masked again
ROUNDS = 4

Filling = tuple[int, ...]


@dataclass(slots=True)
class Blanks:
    """Masks to be filled together: the ids that hold them, their places, and the set of tokens that is allowed at each.

    `found` are the fillings with their log-probabilities, the best first.
    """

    item: MaskedText
    ids: list[int]
    num_first: int
    places: list[int]
    sets: list[int]
    found: list[tuple[Filling, float]] = field(default_factory=list)
    known: dict[Filling, float] = field(default_factory=dict)  # by a filling's beginning: the log-probability of its last token


class Search:
    """Fills blanks jointly; `beam` is how many fillings are followed at a time."""

    def __init__(self, engine: Engine, texts: MaskedTexts, allowed: Allowed, beam: int) -> None:
        self.engine, self.texts, self.allowed, self.beam = engine, texts, allowed, beam

    def run(self, blanks: Sequence[Blanks]) -> None:
        """Set `found` of each: up to `beam` fillings, ranked by their joint probability."""
        for one in blanks:
            one.found = [((), 0.0)]
        for depth in range(max((len(one.places) for one in blanks), default=0)):
            self._extend([one for one in blanks if depth < len(one.places)], depth)
        rest = [one for one in blanks if len(one.places) > 1]
        for _ in range(ROUNDS):
            rest = self._improve(rest)

    def _request(self, one: Blanks, filling: Sequence[int | None], place: int, label: int) -> Request:
        ids = list(one.ids)
        for where, number in zip(one.places, filling, strict=False):
            if number is not None:
                ids[where] = number
        return self.texts.request(one.item, ids, [one.places[place]], one.num_first, [label])

    def _best(self, asked: list[tuple[Blanks, Sequence[int | None], int]], count: int) -> list[list[tuple[int, float]]]:
        """Return for each (blanks, filling, place) the likeliest tokens that are allowed at the place."""

        def reduce(logits: Any, labels: Any) -> tuple[Any, ...]:
            total = log_normalizer(logits)
            values, ids = top_k(self.allowed.masked(logits - total, labels), min(count, logits.shape[1]))
            return values, ids

        requests = (self._request(one, filling, place, one.sets[place]) for one, filling, place in asked)
        return [
            [(number, value) for number, value in zip(ids[0].tolist(), values[0].tolist(), strict=True) if value > -math.inf]
            for values, ids in self.engine.run(requests, reduce, labelled=True)
        ]

    def _extend(self, blanks: Sequence[Blanks], depth: int) -> None:
        asked: list[tuple[Blanks, Sequence[int | None], int]] = [(one, filling, depth) for one in blanks for filling, _ in one.found]
        best = iter(self._best(asked, self.beam))
        for one in blanks:
            longer = []
            for filling, log_prob in one.found:
                for number, value in next(best):
                    one.known[(*filling, number)] = value
                    longer.append(((*filling, number), log_prob + value))
            one.found = sorted(longer, key=lambda pair: -pair[1])[: self.beam]

    def _improve(self, blanks: Sequence[Blanks]) -> list[Blanks]:
        """Mask again what was found, place by place; return the blanks that got better."""
        asked: list[tuple[Blanks, Sequence[int | None], int]] = [
            (one, [*filling[:place], None, *filling[place + 1 :]], place)
            for one in blanks
            for filling, _ in one.found
            for place in range(len(one.places) - 1)  # the beam has seen the best of the last place with all others filled in
        ]
        best = iter(self._best(asked, NEIGHBOURS))
        fresh: list[list[Filling]] = []
        for one in blanks:
            there = {filling for filling, _ in one.found}
            fresh.append([])
            for filling, _ in one.found:
                for place in range(len(one.places) - 1):
                    for number, _ in next(best):
                        other = (*filling[:place], number, *filling[place + 1 :])
                        if other not in there:
                            there.add(other)
                            fresh[-1].append(other)
        self._score(blanks, fresh)
        better = []
        for one, others in zip(blanks, fresh, strict=True):
            scored = [(other, math.fsum(one.known[other[: place + 1]] for place in range(len(other)))) for other in others]
            merged = sorted([*one.found, *scored], key=lambda pair: -pair[1])[: self.beam]
            if merged != one.found:
                better.append(one)
            one.found = merged
        return better

    def _score(self, blanks: Sequence[Blanks], fresh: Sequence[Sequence[Filling]]) -> None:
        """Find the log-probability of every token of new fillings, given those before it."""
        wanted = {
            (number, other[: place + 1]): one
            for number, (one, others) in enumerate(zip(blanks, fresh, strict=True))
            for other in others
            for place in range(len(other))
            if other[: place + 1] not in one.known
        }
        requests = (self._request(one, begun[:-1], len(begun) - 1, begun[-1]) for (_, begun), one in wanted.items())
        values = self.engine.run(requests, lambda logits, labels: (log_probs_at(logits, labels),), labelled=True)
        for ((_, begun), one), (value,) in zip(wanted.items(), values, strict=True):
            one.known[begun] = float(value[0])
