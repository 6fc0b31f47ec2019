"""Notice a run that has learned how often words occur, and nothing else."""

from __future__ import annotations

import numpy as np

from ..data.store import TokenStore

NEAR = 0.97  # a loss above this share of the unigram loss is on the plateau
PATIENCE = 0.2  # share of the budget before which nothing is said
MIN_STEPS = 200  # steps before which nothing is said
COUNT_TOKENS = 2_000_000  # tokens that are counted: frequencies need no more

HELP = (
    "What helps: a lower optim.learning_rate, a longer optim.warmup_ratio (0.1), or model.family=modernbert, whose layers "
    "normalise first (post-norm BERT from scratch is known to sit there for long)"
)


def unigram_loss(store: TokenStore) -> float:
    """Return the loss, in nats, of predicting every token by its frequency alone: the entropy of the frequencies."""
    last = int(np.searchsorted(np.cumsum(store.lengths), COUNT_TOKENS)) + 1
    ids, _ = store.gather(np.arange(min(last, len(store))))
    counts = np.bincount(ids, minlength=1).astype(np.float64)
    shares = counts[counts > 0] / max(1.0, counts.sum())
    return float(-(shares * np.log(shares)).sum())


class Plateau:
    """Watch the training loss; say once when it has sat at the unigram loss for long."""

    def __init__(self, unigram: float, *, warmup_ratio: float = 0.0) -> None:
        self.unigram, self.after = unigram, max(PATIENCE, 2 * warmup_ratio)
        self.mean: float | None = None
        self.steps, self.said = 0, False

    def update(self, loss: float, progress: float) -> str | None:
        """Take a step's loss; return what to tell the user, or None."""
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.steps += 1
        if self.said or self.steps < MIN_STEPS or progress < self.after or self.mean < NEAR * self.unigram:
            return None
        self.said = True
        return (
            f"the training loss ({self.mean:.2f}) still sits at what word frequencies alone give ({self.unigram:.2f}) after "
            f"{progress:.0%} of the budget. {HELP}"
        )
