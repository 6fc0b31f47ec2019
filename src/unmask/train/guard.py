"""Steps that go wrong: whose loss leaps, or is not finite. Their batches are left out; a run that does not recover from it goes back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RunError

WINDOW, ENOUGH = 64, 32  # losses that a new one is held against, and how many there must be
FLOOR = 0.01  # of their median: losses that hardly differ make no leap of a little more
PATIENCE = 3  # bad steps in a row: then it is not their batches, but the weights


@dataclass(frozen=True)
class Fault:
    """What is wrong with a step, in words, and whether it was known before that its batch is to be left out."""

    reason: str
    known: bool = False


class Diverged(RunError):
    """So many steps in a row were bad, up to `last`, that the weights must be."""

    def __init__(self, last: int, fault: Fault) -> None:
        super().__init__(
            f"{PATIENCE} steps in a row went wrong, the last one step {last}: {fault.reason}; none of them changed the weights, and "
            "log.jsonl names their documents. What helps: a lower optim.learning_rate, a longer optim.warmup_ratio, "
            "train.precision=fp32, or, where the text itself becomes so much harder, train.spike_score=0"
        )
        self.last = last

    @property
    def suspects(self) -> range:
        """The steps to do without: the bad ones, and the one before them, the last that changed the weights."""
        return range(self.last - PATIENCE, self.last + 1)


class Guard:
    """Judges every step before the weights are changed by it; its state is small, and part of every checkpoint.

    A loss leaps where it lies more than `spike_score` times their spread above the median of the last 64 good ones (0: none does). Their
    spread is 1.4826 times the median distance from the median (as a normal distribution's standard deviation), at least 1% of the median.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.losses: deque[float] = deque(state.get("losses", ()), maxlen=WINDOW)
        self.left_out: set[int] = set(state.get("left_out", ()))  # steps whose batches a run that went back does without

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, for JSON."""
        return {"losses": list(self.losses), "left_out": sorted(self.left_out)}

    def before(self, step: int) -> Fault | None:
        """Return why a step is not to be computed at all."""
        return Fault("the run went back to before it, and does without its batch", known=True) if step in self.left_out else None

    def after(self, loss: float, grad_norm: float, spike_score: float) -> Fault | None:
        """Return what is wrong with a step's loss or gradient, None where nothing is: then the loss is remembered."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return Fault(f"its loss ({loss}) or gradient norm ({grad_norm}) is not finite")
        score = self.score(loss)
        if spike_score and score > spike_score:
            return Fault(f"its loss {loss:.4g} lies {score:.1f} times their spread above the last (train.spike_score = {spike_score:g})")
        self.losses.append(loss)
        return None

    def score(self, loss: float) -> float:
        """Return how many times their spread a loss lies above the median of the last good ones; 0 where there are too few of them."""
        if len(self.losses) < ENOUGH:
            return 0.0
        known = np.array(self.losses)
        median = float(np.median(known))
        spread = max(1.4826 * float(np.median(np.abs(known - median))), FLOOR * abs(median), np.finfo(float).tiny)
        return (loss - median) / spread
