"""The one way inference runs: sequences sorted by length, packed to a token budget, read where they are asked, given back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.batch import PackedBatch
from ..errors import TaskError
from ..model.attention import is_packed
from ..model.heads import forward_packed
from ..model.load import max_positions, position_offset
from ..train.precision import choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Reduce = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence of token ids, special ones included, and the places in it at which the model's answer is wanted.

    `labels` are the ids that truly stand at those places, for a `reduce` that asks for them; by default what stands in `input_ids`.
    """

    input_ids: Sequence[int] | np.ndarray
    positions: Sequence[int] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None


class Engine:
    """Runs a masked language model over any number of sequences in bounded memory.

    `max_tokens` is what one forward pass holds (a longer sequence runs alone), `lookahead` how many passes' worth of sequences are read
    ahead to be sorted by length; `precision` is fp32, bf16 or auto (whichever multiplies faster here).
    """

    def __init__(self, model: PreTrainedModel, *, max_tokens: int | None = None, lookahead: int = 16, precision: str = "fp32") -> None:
        self.model = model
        self.device = model.device
        self.max_tokens = max_tokens or (4096 if self.device.type == "cpu" else 65536)
        self.lookahead = lookahead
        self.precision = choose(precision, self.device)
        self.max_length = max_positions(model)
        self.position_offset = position_offset(model)

    def logits(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """Yield for each request, in order, the fp32 logits at its positions. Shapes: (N, V)."""
        for (logits,) in self.run(requests, lambda logits: (logits,)):
            yield logits

    def run(self, requests: Iterable[Request], reduce: Reduce, *, labelled: bool = False) -> Iterator[tuple[Tensor, ...]]:
        """Yield for each request, in order, what `reduce` makes of the logits at its positions.

        `reduce` takes the fp32 logits of a whole pass, (N, V), with `labelled` also the labels there, (N,), and returns tensors of
        N rows each: what it leaves out never piles up.
        Raises: TaskError for a sequence longer than the model has positions, or one that asks for nothing.
        """
        take = reduce if labelled else lambda logits, labels: reduce(logits)
        waiting: list[Request] = []
        num_tokens = 0
        for number, request in enumerate(requests):
            self._check(request, number)
            waiting.append(request)
            num_tokens += len(request.input_ids)
            if num_tokens >= self.max_tokens * self.lookahead:
                yield from self._run_sorted(waiting, take)
                waiting, num_tokens = [], 0
        if waiting:
            yield from self._run_sorted(waiting, take)

    def _check(self, request: Request, number: int) -> None:
        length, positions = len(request.input_ids), np.asarray(request.positions, dtype=np.int64)
        if self.max_length is not None and length > self.max_length:
            raise TaskError(
                f"sequence {number} has {length} tokens and the model has positions for {self.max_length}; cut it into windows of no more"
            )
        if positions.ndim != 1 or len(positions) == 0 or positions.min() < 0 or positions.max() >= length:
            raise TaskError(f"sequence {number} of {length} tokens asks for positions {positions.tolist()[:8]}; allowed: 0 to {length - 1}")

    def _run_sorted(self, requests: list[Request], reduce: Reduce) -> list[tuple[Tensor, ...]]:
        lengths = np.array([len(request.input_ids) for request in requests])
        results: list[tuple[Tensor, ...]] = [()] * len(requests)
        training = self.model.training
        self.model.eval()
        try:
            for members in self._plan(lengths):
                for number, result in zip(members, self._run_pack([requests[member] for member in members], reduce), strict=True):
                    results[number] = result
        finally:
            self.model.train(training)
        return results

    def _plan(self, lengths: np.ndarray) -> Iterator[list[int]]:
        """Yield which sequences go together, the longest first: if one pass does not fit in memory it is the first."""
        padded = not is_packed(self.model)
        members: list[int] = []
        total = longest = 0
        for number in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[number])
            longest = max(longest, length)
            after = (len(members) + 1) * longest if padded else total + length
            if members and after > self.max_tokens:
                yield members
                members, total, longest = [], 0, length
            members.append(number)
            total += length
        if members:
            yield members

    def _run_pack(self, requests: list[Request], reduce: Reduce) -> list[tuple[Tensor, ...]]:
        # places are read in ascending order; `back` restores the order in which each request named its own
        places = [np.asarray(request.positions, dtype=np.int64) for request in requests]
        orders = [np.argsort(place, kind="stable") for place in places]
        batch = self.pack([request.input_ids for request in requests], [place[order] for place, order in zip(places, orders, strict=True)])
        if any(request.labels is not None for request in requests):
            bounds = np.cumsum([0, *(len(place) for place in places)])
            for request, order, start in zip(requests, orders, bounds.tolist(), strict=False):
                if request.labels is not None:
                    batch.labels[start : start + len(order)] = torch.from_numpy(np.asarray(request.labels, dtype=np.int64)[order])
        with torch.inference_mode(), self.precision.autocast():
            reduced = self._forward(batch, reduce)
        counts = [len(order) for order in orders]
        parts = [tensor.split(counts) for tensor in reduced]
        results = []
        for number, order in enumerate(orders):
            back = torch.from_numpy(np.argsort(order, kind="stable"))
            results.append(tuple(part[number][back.to(part[number].device)] for part in parts))
        return results

    def _forward(self, batch: PackedBatch, reduce: Reduce) -> tuple[Tensor, ...]:
        try:
            batch = batch.to(self.device)
            return reduce(forward_packed(self.model, batch).float(), batch.labels)
        except torch.OutOfMemoryError:
            if len(batch.documents) < 2:
                raise
        # outside the handler, so that the memory which the failed pass held is free again
        halves = [self._forward(half, reduce) for half in batch.split()]
        return tuple(torch.cat(pair) for pair in zip(*halves, strict=True))

    def pack(self, sequences: Sequence[Any], places: Sequence[np.ndarray]) -> PackedBatch:
        """Return sequences laid end to end; `labels` are the ids that stand at the places asked for."""
        lengths = [len(sequence) for sequence in sequences]
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        labelled = np.concatenate([place + bound for place, bound in zip(places, bounds[:-1], strict=True)])
        positions = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
        return PackedBatch(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=torch.from_numpy(positions + self.position_offset)[None],
            cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
            max_seqlen=max(lengths),
            label_positions=torch.from_numpy(labelled),
            labels=torch.from_numpy(ids[labelled]),
            documents=torch.arange(len(sequences)),
            num_tokens=len(ids),
        )
