"""Labelled examples as segments of tokens in memory, and their batches by number: what fine-tuning trains on.

`loader.batch(step)` is a pure function of (seed, step), as it is in pre-training, so that a resumed run needs no state of its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..rng import rng, uniforms
from .plan import deal
from .sizes import rounded

if TYPE_CHECKING:
    from .batch import PackedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """S segments laid end to end, T tokens, that belong to E examples; N of the tokens are rows that carry a label.

    Shapes: input_ids (T,) int32, special tokens included; bounds (S+1,) int64; example (S,) int64, rising, whose segment each is;
        label_positions (N,) int64, indices into T, rising; labels (N, ...), what the task's loss wants of each row;
        token_type_ids (T,) int8, or None where there are no pairs; names (E,), what each example is called in messages.
    """

    input_ids: np.ndarray
    bounds: np.ndarray
    example: np.ndarray
    label_positions: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    token_type_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each segment. Shapes: (S,)."""
        return np.diff(self.bounds)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the indices start, start + 1, ... of each span, one span after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


class ExampleLoader:
    """The batches of a fine-tuning run: `batch_size` examples a step, every one once an epoch, in an order that follows from the seed.

    `weights` (E,) draw the examples of an epoch with replacement instead, each in proportion to its weight. A step is as many packs as
    `micro_tokens` asks for, cut between segments. Of the tokens that `can_hide` (vocabulary,) allows, a share `hide_prob` is `mask_id`
    instead, others in every epoch.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        seed: int,
        batch_size: int,
        micro_tokens: int,
        position_offset: int = 0,
        pad_id: int = 0,
        weights: np.ndarray | None = None,
        hide_prob: float = 0.0,
        mask_id: int | None = None,
        can_hide: np.ndarray | None = None,
    ) -> None:
        if not len(examples):
            raise DataError("there is no example to train on; name files that hold some")
        self.examples, self.seed, self.batch_size, self.micro_tokens = examples, seed, batch_size, micro_tokens
        self.position_offset, self.pad_id = position_offset, pad_id
        self.hide_prob, self.mask_id, self.can_hide = hide_prob, mask_id, can_hide
        self.chances = None if weights is None else weights / weights.sum()
        self._first = np.searchsorted(examples.example, np.arange(len(examples) + 1))  # of each example, its first segment
        self._rows = np.searchsorted(examples.label_positions, examples.bounds)  # of each segment, its first row
        self._lengths = examples.lengths
        self.rank, self.size = 0, 1
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))  # replaced whole: a prefetching thread asks too

    def order(self, epoch: int) -> np.ndarray:
        """Return the examples of an epoch in the order in which steps take them, (E,) int64."""
        known, order = self._order
        if known != epoch:
            draws = rng(self.seed, "order", epoch)
            count = len(self.examples)
            order = draws.permutation(count) if self.chances is None else draws.choice(count, count, p=self.chances)
            self._order = (epoch, order)
        return order

    def divide(self, rank: int, size: int) -> None:
        """Give, from now on, only the part of every step that is one of `size` processes' own; where examples are few, it may be none."""
        self.rank, self.size = rank, size

    def batch(self, step: int, probability: float | None = None) -> list[PackedBatch]:
        """Return the micro-batches of a step, counted from 0 over the whole run; `probability` is for loaders that mask."""
        epoch, inside = divmod(step, self.steps_per_epoch())
        chosen = self.order(epoch)[inside * self.batch_size : (inside + 1) * self.batch_size]
        segments = spans(self._first[chosen], self._first[chosen + 1] - self._first[chosen])
        if self.size > 1:
            segments = segments[deal(self._lengths[segments], self.size) == self.rank]
        return [self.pack(part, epoch) for part in self._cut(segments) if len(part)]

    def _cut(self, segments: np.ndarray) -> list[np.ndarray]:
        """Return segments in groups of at most `micro_tokens` tokens; a longer segment is a group of its own."""
        parts, first, total = [], 0, 0
        for number, length in enumerate(self._lengths[segments].tolist()):
            if total + length > self.micro_tokens and number > first:
                parts.append(segments[first:number])
                first, total = number, 0
            total += length
        return [*parts, segments[first:]]

    def pack(self, segments: np.ndarray, epoch: int = 0) -> PackedBatch:
        """Return segments as one pack, their examples' numbers in `documents`, filled up to one of few sizes."""
        import torch

        from .batch import PackedBatch

        examples, lengths = self.examples, self._lengths[segments]
        used, longest = int(lengths.sum()), int(lengths.max())
        room = rounded(used) - used
        # the filling is no longer a segment than the others are: the model has positions for those
        filling = np.full(-(-room // longest), longest, dtype=np.int64)
        filling[-1:] = room - longest * (len(filling) - 1)
        bounds = np.concatenate([[0], np.cumsum(np.concatenate([lengths, filling]))])
        tokens = spans(examples.bounds[segments], lengths)
        ids = np.full(used + room, self.pad_id, dtype=np.int64)
        ids[:used] = examples.input_ids[tokens]
        if self.hide_prob and self.can_hide is not None and self.mask_id is not None:
            # drawn for each token of the data: however steps are cut, the same are hidden
            drawn = uniforms(self.seed, "hide", epoch, rows=tokens, columns=np.zeros(1, np.int64))
            ids[:used][(drawn < self.hide_prob) & self.can_hide[ids[:used]]] = self.mask_id
        types = None
        if examples.token_type_ids is not None:
            types = np.zeros(used + room, dtype=np.int64)
            types[:used] = examples.token_type_ids[tokens]
        counts = self._rows[segments + 1] - self._rows[segments]
        rows = spans(self._rows[segments], counts)
        places = examples.label_positions[rows] + np.repeat(bounds[: len(segments)] - examples.bounds[segments], counts)
        positions = np.arange(len(ids)) - np.repeat(bounds[:-1] - self.position_offset, np.diff(bounds))
        return PackedBatch(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=torch.from_numpy(positions)[None],
            cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
            max_seqlen=longest,
            label_positions=torch.from_numpy(places),
            labels=torch.from_numpy(examples.labels[rows]),
            documents=torch.from_numpy(np.concatenate([examples.example[segments], np.full(len(filling), -1)])),
            num_tokens=used,
            token_type_ids=None if types is None else torch.from_numpy(types)[None],
        )

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Return how many steps an epoch has: the same for every epoch."""
        return -(-len(self.examples) // self.batch_size)

    def document_id(self, document: int) -> str:
        """Return the name of an example."""
        return self.examples.names[document]

    def tokens_of(self, document: int) -> np.ndarray:
        """Return the token ids of an example, of its first segment."""
        first, last = self.examples.bounds[self._first[document] : self._first[document] + 2]
        return self.examples.input_ids[first:last]
