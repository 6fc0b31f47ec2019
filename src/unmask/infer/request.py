"""What inference is asked, and the pack in which many such questions meet a backend: numpy alone, so that an export needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence of token ids, special ones included, and the places in it at which the model's answer is wanted.

    `labels` are the ids that truly stand at those places, for a `reduce` that asks for them; by default what stands in `input_ids`.
    `token_type_ids` tell the sentences of a pair apart, for models that have such an input; by default all are 0.
    """

    input_ids: Sequence[int] | np.ndarray
    positions: Sequence[int] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    token_type_ids: Sequence[int] | np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """S sequences laid end to end, T tokens, N of them asked for.

    Shapes: input_ids (T,), position_ids (T,) from 0 in every sequence, bounds (S+1,), label_positions (N,) ascending, labels (N,),
        token_type_ids (T,) or None where all are 0; int64 all.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    bounds: np.ndarray
    label_positions: np.ndarray
    labels: np.ndarray
    token_type_ids: np.ndarray | None = None

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each sequence. Shapes: (S,)."""
        return np.diff(self.bounds)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def padded(self, pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids and mask, (S, L) both, and where the label positions are in the flattened (S * L)."""
        lengths = self.lengths
        width = int(lengths.max())
        mask = np.arange(width) < lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = self.input_ids
        return ids, mask.astype(np.int64), np.flatnonzero(mask)[self.label_positions]

    def split(self) -> tuple[Pack, Pack]:
        """Return the pack as two of about half the tokens, cut between sequences."""
        middle = 1 + int(np.argmin(np.abs(2 * self.bounds[1:-1] - self.bounds[-1])))
        return self._part(0, middle), self._part(middle, len(self))

    def _part(self, first: int, last: int) -> Pack:
        low, high = self.bounds[first], self.bounds[last]
        inside = slice(*np.searchsorted(self.label_positions, [low, high]))
        types = None if self.token_type_ids is None else self.token_type_ids[low:high]
        return Pack(
            self.input_ids[low:high], self.position_ids[low:high], self.bounds[first : last + 1] - low,
            self.label_positions[inside] - low, self.labels[inside], types,
        )  # fmt: skip


def pack(requests: Sequence[Request]) -> tuple[Pack, list[np.ndarray]]:
    """Return requests as one pack, and for each the order that makes of its rows those that it asked for, in the order it named them."""
    lengths = [len(request.input_ids) for request in requests]
    bounds = np.cumsum([0, *lengths])
    ids = np.concatenate([np.asarray(request.input_ids, dtype=np.int64) for request in requests])
    places = [np.asarray(request.positions, dtype=np.int64) for request in requests]
    orders = [np.argsort(place, kind="stable") for place in places]
    positions = np.concatenate([place[order] + low for place, order, low in zip(places, orders, bounds.tolist(), strict=False)])
    labels = ids[positions]
    ends = np.cumsum([len(place) for place in places]).tolist()
    types = np.zeros(len(ids), dtype=np.int64) if any(request.token_type_ids is not None for request in requests) else None
    for number, request in enumerate(requests):
        if request.labels is not None:
            labels[ends[number] - len(places[number]) : ends[number]] = np.asarray(request.labels, dtype=np.int64)[orders[number]]
        if types is not None and request.token_type_ids is not None:
            types[bounds[number] : bounds[number + 1]] = request.token_type_ids
    steps = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
    return Pack(ids, steps, bounds, positions, labels, types), [np.argsort(order, kind="stable") for order in orders]


def plan(lengths: np.ndarray, max_tokens: int, *, padded: bool) -> Iterator[list[int]]:
    """Yield which sequences go together, the longest first: if one pass does not fit in memory it is the first.

    `padded` counts every sequence of a pass at the length of the longest.
    """
    members: list[int] = []
    total = longest = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        longest = max(longest, length)
        after = (len(members) + 1) * longest if padded else total + length
        if members and after > max_tokens:
            yield members
            members, total, longest = [], 0, length
        members.append(number)
        total += length
    if members:
        yield members
