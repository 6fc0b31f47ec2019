"""The one way inference runs: sequences sorted by length, packed to a token budget, read where they are asked, given back in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.over import Over, here
from ..errors import RunError, TaskError
from .arrays import concatenate
from .backends import Backend
from .request import Pack, Request, pack, plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Backend", "Engine", "Reduce", "Request"]

Reduce = Callable[..., tuple[Any, ...]]

log = logging.getLogger(__name__)


class Engine:
    """Runs a masked language model over any number of sequences in bounded memory.

    The model is one of transformers or a Backend. `max_tokens` is what one forward pass holds (a longer sequence runs alone), `lookahead`
    how many passes' worth of sequences are read ahead to be sorted by length; `precision` is fp32, bf16 or auto (whichever multiplies
    faster here; a Backend has its own). Threads may share an engine or a model: passes take turns. `over` is where groups of sequences are
    run, here unless a Cluster has set it.
    """

    def __init__(
        self, model: PreTrainedModel | Backend, *, max_tokens: int | None = None, lookahead: int = 16, precision: str = "fp32"
    ) -> None:
        if isinstance(model, Backend):
            if precision == "bf16":
                raise TaskError(f"precision = 'bf16': the model runs as it was exported, in {model.precision}; leave it out")
            self.backend = model
        else:
            from .backends.torch import TorchBackend  # here, so that an export runs without torch

            self.backend = TorchBackend(model, precision)
        if max_tokens is not None and max_tokens < 1:
            raise TaskError(f"max_tokens = {max_tokens}; at least 1")
        self.max_tokens = max_tokens or self.backend.max_tokens
        self.lookahead = lookahead
        self.device = self.backend.device
        self.precision = self.backend.precision
        self.max_length = self.backend.max_length
        self.over: Over | None = None

    @property
    def model(self) -> Any:
        """The model of transformers that runs; None where it is another backend."""
        return getattr(self.backend, "model", None)

    @property
    def precision_name(self) -> str:
        """The name of the numbers in which the model runs."""
        return str(getattr(self.precision, "name", self.precision))

    def logits(self, requests: Iterable[Request]) -> Iterator[Any]:
        """Yield for each request, in order, the fp32 logits at its positions. Shapes: (N, V)."""
        for (logits,) in self.run(requests, lambda logits: (logits,)):
            yield logits

    def run(self, requests: Iterable[Request], reduce: Reduce, *, labelled: bool = False) -> Iterator[tuple[Any, ...]]:
        """Yield for each request, in order, what `reduce` makes of the logits at its positions.

        `reduce` takes the fp32 logits of a whole pass, (N, V), with `labelled` also the labels there, (N,), and returns arrays of
        N rows each: what it leaves out never piles up. Arrays are of the backend: tensors of torch, or of numpy.
        Raises: TaskError for a sequence longer than the model has positions, or one that asks for nothing; RunError where a single
            sequence does not fit in memory.
        """
        over = self.over or here(self)
        for results in over(partial(_passes, reduce=reduce, labelled=labelled), self._groups(requests)):
            yield from results

    def _groups(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        """Yield sequences as they are sorted and packed together."""
        waiting: list[Request] = []
        num_tokens = 0
        for number, request in enumerate(requests):
            self._check(request, number)
            waiting.append(request)
            num_tokens += len(request.input_ids)
            if num_tokens >= self.max_tokens * self.lookahead:
                yield waiting
                waiting, num_tokens = [], 0
        if waiting:
            yield waiting

    def _check(self, request: Request, number: int) -> None:
        length, positions = len(request.input_ids), np.asarray(request.positions, dtype=np.int64)
        if self.max_length is not None and length > self.max_length:
            raise TaskError(
                f"sequence {number} has {length} tokens and the model has positions for {self.max_length}; cut it into windows of no more"
            )
        if positions.ndim != 1 or len(positions) == 0 or positions.min() < 0 or positions.max() >= length:
            raise TaskError(f"sequence {number} of {length} tokens asks for positions {positions.tolist()[:8]}; allowed: 0 to {length - 1}")

    def _run_sorted(self, requests: list[Request], reduce: Reduce) -> list[tuple[Any, ...]]:
        lengths = np.array([len(request.input_ids) for request in requests])
        results: list[tuple[Any, ...]] = [()] * len(requests)
        for members in plan(lengths, self.max_tokens, padded=self.backend.padded):
            batch, orders = pack([requests[member] for member in members])
            reduced = self._forward(batch, reduce)
            start = 0
            for member, order in zip(members, orders, strict=True):
                results[member] = tuple(part[start : start + len(order)][order] for part in reduced)
                start += len(order)
        return results

    def _forward(self, batch: Pack, reduce: Reduce) -> tuple[Any, ...]:
        """Run a pack, in halves where memory runs out; from then on passes are as small as what was found to fit."""
        if len(batch) > 1 and self._cost(batch) > self.max_tokens:
            return self._halves(batch, reduce)
        try:
            with self.backend.running():
                return reduce(self.backend.forward(batch), self.backend.labels(batch))
        except Exception as error:
            if not self.backend.is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0] or type(error).__name__
        # outside the handler, so that the memory which the failed pass held is free again
        self.backend.release()
        if len(batch) < 2:
            raise RunError(
                f"memory runs out even for a single sequence of {batch.num_tokens} tokens ({reason}); cut it into shorter windows "
                "(max_length), or take a smaller model"
            )
        budget = max(1, self._cost(batch) // 2)
        if budget < self.max_tokens:
            log.warning("memory ran out with %d tokens in a pass: going on with %d", self._cost(batch), budget)
            self.max_tokens = budget
        return self._halves(batch, reduce)

    def _halves(self, batch: Pack, reduce: Reduce) -> tuple[Any, ...]:
        first, second = batch.split()
        pairs = zip(self._forward(first, reduce), self._forward(second, reduce), strict=True)
        return tuple(concatenate(list(pair)) for pair in pairs)

    def _cost(self, batch: Pack) -> int:
        return len(batch) * int(batch.lengths.max()) if self.backend.padded else batch.num_tokens


def _passes(engine: Engine, groups: Iterable[list[Request]], *, reduce: Reduce, labelled: bool) -> Iterator[list[tuple[Any, ...]]]:
    take = reduce if labelled else lambda logits, labels: reduce(logits)
    for group in groups:
        yield engine._run_sorted(group, take)
