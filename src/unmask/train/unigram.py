"""How often tokens occur: the baseline that every model must beat, and the notice for a run that does not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..data.batch import PackedBatch
from ..data.store import TokenStore
from .heldout import numbers
from .sharded import like, whole

NEAR = 0.97  # a loss above this share of the unigram loss is on the plateau
PATIENCE = 0.2  # share of the budget before which nothing is said
MIN_STEPS = 200  # steps before which nothing is said
ENOUGH = 50_000_000  # tokens: of a larger corpus every so many-th document is counted

HELP = (
    "What helps: a lower optim.learning_rate, a longer optim.warmup_ratio (0.1), or model.family=modernbert, whose layers "
    "normalise first (post-norm BERT from scratch is known to sit there for long)"
)


def token_counts(store: TokenStore, vocab_size: int) -> np.ndarray:
    """Return how often each token occurs in a store (of a large one, in a sample of some 50 million tokens); (vocab_size,) int64."""
    counts = np.zeros(vocab_size, np.int64)
    documents = np.arange(0, len(store), 1 + store.num_tokens // ENOUGH)
    ends = np.cumsum(store.lengths[documents])
    for group in np.split(documents, np.flatnonzero(np.diff(ends // 2**22)) + 1):
        ids, _ = store.gather(group)
        counts += np.bincount(ids, minlength=vocab_size)
    return counts


def entropy(counts: np.ndarray) -> float:
    """Return the loss, in nats, of predicting the counted tokens by their frequencies alone."""
    shares = counts[counts > 0] / max(1, int(counts.sum()))
    return float(-(shares * np.log(shares)).sum())


def unigram(counts: np.ndarray, batches: Iterable[PackedBatch]) -> dict[str, Any]:
    """Return the held-out numbers of the baseline that predicts every masked token by add-one frequencies of the training text."""
    log_probs = np.log(counts + 1.0) - math.log(float(counts.sum()) + len(counts))
    most_frequent = int(counts.argmax())
    loss, right, number = 0.0, 0, 0
    for batch in batches:
        labels = batch.labels.cpu().numpy()
        loss -= float(log_probs[labels].sum())
        right += int((labels == most_frequent).sum())
        number += len(labels)
    return numbers(loss, right, number)


def start_at_frequencies(model: Any, counts: np.ndarray) -> None:
    """Set the bias of a fresh model's output to the log frequencies of the tokens, so that no step is spent on learning them.

    A model whose output has no bias is left as it is.
    """
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        log_probs = np.log(counts + 1.0) - math.log(float(counts.sum()) + len(counts))
        with torch.no_grad():
            values = whole(bias.detach()).clone()
            values[: len(counts)] = torch.from_numpy(log_probs).to(values)
            bias.copy_(like(values, bias))


class Plateau:
    """Watch the training loss; say once when it has sat at the unigram loss for long."""

    def __init__(self, unigram_loss: float, *, warmup_ratio: float = 0.0) -> None:
        self.unigram_loss, self.after = unigram_loss, max(PATIENCE, 2 * warmup_ratio)
        self.mean: float | None = None
        self.steps, self.said = 0, False

    def update(self, loss: float, progress: float) -> str | None:
        """Take a step's loss; return what to tell the user, or None."""
        self.mean = loss if self.mean is None else 0.98 * self.mean + 0.02 * loss
        self.steps += 1
        if self.said or self.steps < MIN_STEPS or progress < self.after or self.mean < NEAR * self.unigram_loss:
            return None
        self.said = True
        return (
            f"the training loss ({self.mean:.2f}) still sits at what word frequencies alone give ({self.unigram_loss:.2f}) after "
            f"{progress:.0%} of the budget. {HELP}"
        )
