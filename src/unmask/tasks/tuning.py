"""What is set after training, on held-out items: a temperature and thresholds, cross-fitted so that the numbers told are honest.

A setting that is tuned on items and measured on the same looks better than it is. So items are cut into folds by a hash; what is told is
measured on each fold with what the others gave, and what is stored is what all folds together give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from ..data.clean import content_hash

FOLDS = 5
FEW = 5  # items of a label below which its threshold is the common one
ENOUGH = (
    50  # items that a temperature is found on: where 1 is right, they give 0.6 to 1.4 in nine cases of ten, 16 items 0.05 to 2 (simulated)
)


def too_few(labels: Sequence[Hashable]) -> str | None:
    """Return why nothing can be found on items with these labels: they are too few, or nearly all alike; None where something can."""
    if len(labels) < ENOUGH:
        return f"{len(labels):,} held-out examples, and at least {ENOUGH} are wanted"
    others = len(labels) - max(Counter(labels).values())
    if others < FEW:
        return f"all but {others} of {len(labels):,} held-out examples are labelled alike, and at least {FEW} others are wanted"
    return None


def folds(keys: Sequence[str]) -> np.ndarray:
    """Return the fold of each item, by a hash of what it says, (n,)."""
    return np.array([content_hash(f"fold\x1f{key}") % FOLDS for key in keys], np.int64)


def cross_fitted(fit: Callable[[np.ndarray], np.ndarray], fold: np.ndarray) -> np.ndarray:
    """Return for each item what `fit` gives for the items of all other folds, (n, ...); for all items where they are too few to cut.

    `fit` takes which items to look at, (n,) bool.
    """
    everything = np.ones(len(fold), bool)
    whole = np.asarray(fit(everything))
    found = np.repeat(whole[None], len(fold), axis=0)
    for number in np.unique(fold).tolist():
        others = fold != number
        if others.any():
            found[~others] = fit(others)
    return found


def temperature(logits: np.ndarray, gold: np.ndarray, *, multi: bool) -> float:
    """Return by what logits are to be divided for the least loss, between 1/20 and 20.

    Source: Guo et al. 2017. Shapes: logits (n, L); gold (n,) numbers of labels, of several labels (n, L) bool.
    """
    if not len(gold):
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        if multi:
            return float((np.logaddexp(0, scaled) - scaled * gold).mean())
        peak = scaled.max(1, keepdims=True)
        normal = peak[:, 0] + np.log(np.exp(scaled - peak).sum(1))
        return float((normal - np.take_along_axis(scaled, gold[:, None], 1)[:, 0]).mean())

    found = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x)) if loss(found.x) < loss(0.0) else 1.0


def thresholds(probs: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return for each label the probability from which on it is predicted, for the highest F1, (L,).

    A label with fewer than five items has the one that is best for all labels together. Shapes: probs (n, L), gold (n, L) bool.
    """
    common = best_cut(probs.ravel(), gold.ravel())
    enough = gold.sum(0) >= FEW
    return np.array([best_cut(probs[:, label], gold[:, label]) if enough[label] else common for label in range(gold.shape[1])])


def best_cut(probs: np.ndarray, gold: np.ndarray) -> float:
    """Return the cut with the highest F1, halfway between the scores on either side; 0.5 where no item has the label."""
    if not gold.any():
        return 0.5
    order = np.argsort(-probs, kind="stable")
    sorted_probs = probs[order]
    last = np.flatnonzero(np.diff(sorted_probs, append=-np.inf))  # of equal scores, all are taken or none
    hits = np.cumsum(gold[order])[last]
    f1 = 2 * hits / (last + 1 + gold.sum())
    place = int(f1.argmax())
    below = sorted_probs[last[place] + 1] if last[place] + 1 < len(probs) else 0.0
    return float((sorted_probs[last[place]] + below) / 2)
