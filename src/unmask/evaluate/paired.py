"""Is the difference between two models on the same tokens more than chance? Paired bootstrap, McNemar's test, and a verdict in a word."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..rng import rng

RESAMPLES = 2000
LEVEL = 0.95
# with fewer documents than this, all of them agreeing is what chance does more often than once in twenty: 2 * 0.5 ** 5 = 0.06
MIN_DOCUMENTS = 6
BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric that is a sum over tokens by a sum over tokens, for two models: the upper sum is theirs, the lower one belongs to the text.

    `unit` is that of the metric and of its margin. `transform` makes the metric of the ratio (exp, for a perplexity).
    Shapes: a, b, below (tokens,).
    """

    a: np.ndarray
    b: np.ndarray
    below: np.ndarray
    lower_is_better: bool
    unit: str
    transform: Callable[[np.ndarray], np.ndarray] = lambda value: value


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two models and B - A, with its 95% interval; None where there can be none, `reason` says why."""

    a: float
    b: float
    difference: float
    interval: tuple[float, float] | None
    count: int
    num_documents: int
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds of it."""
        return {
            "a": self.a, "b": self.b, "difference": self.difference, "interval": list(self.interval) if self.interval else None,
            **({"no_interval": self.reason} if self.reason else {}), "count": self.count, "num_documents": self.num_documents,
        }  # fmt: skip


def differences(ratios: Iterable[Ratio], document: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Difference]:
    """Return the difference of each metric with the percentiles of a bootstrap over documents; all metrics share the resamples.

    `document` (tokens,) says which document each token is of. A document is drawn whole, for both models at once: its tokens are not
    independent of one another, and its difficulty, which both models share, cancels out of the difference.
    Source: Efron & Tibshirani 1993, percentile interval; Koehn 2004 for the pairing.
    """
    names, rows = np.unique(document, return_inverse=True)
    ratios = list(ratios)
    columns = [np.bincount(rows, values, minlength=len(names)) for ratio in ratios for values in (ratio.a, ratio.b, ratio.below)]
    sums = np.stack(columns, axis=1) if columns else np.zeros((len(names), 0))
    drawn = resampled(sums, seed=seed, resamples=resamples) if len(names) > 1 else np.zeros((0, sums.shape[1]))
    return [
        _difference(ratio, sums[:, 3 * number : 3 * number + 3], drawn[:, 3 * number : 3 * number + 3], len(document))
        for number, ratio in enumerate(ratios)
    ]


def resampled(sums: np.ndarray, *, seed: int, resamples: int) -> np.ndarray:
    """Return the totals of `resamples` bootstrap samples of the documents. Shapes: sums (documents, K), result (resamples, K)."""
    count = len(sums)
    random = rng(seed, "paired bootstrap")
    parts, at_once = [], max(1, BLOCK_ELEMENTS // count)
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        picks = random.integers(count, size=(number, count)) + np.arange(number)[:, None] * count
        parts.append(np.bincount(picks.ravel(), minlength=number * count).reshape(number, count) @ sums)
    return np.concatenate(parts)


def _difference(ratio: Ratio, sums: np.ndarray, drawn: np.ndarray, count: int) -> Difference:
    inside = sums[:, 2] > 0
    num_documents = int(inside.sum())
    total = sums.sum(0)
    a, b = (float(ratio.transform(total[side] / total[2])) for side in (0, 1))
    shape = {"a": a, "b": b, "difference": b - a, "count": count, "num_documents": num_documents}
    if num_documents < 2:
        return Difference(**shape, interval=None, reason="one document only: how much documents differ cannot be told from one")  # type: ignore[arg-type]
    drawn = drawn[drawn[:, 2] > 0]  # a resample without a token of a slice says nothing about it
    values = ratio.transform(drawn[:, 1] / drawn[:, 2]) - ratio.transform(drawn[:, 0] / drawn[:, 2])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(**shape, interval=(float(low), float(high)))  # type: ignore[arg-type]


def mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict[str, Any]:
    """Return how many tokens both, only one and neither of two models got right, and the exact p-value of McNemar's test.

    The test asks whether the tokens on which they disagree fall to one side; it takes tokens for independent, which those of a document
    are not quite: the bootstrap over documents does without that.
    """
    from scipy.stats import binomtest

    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {
        "num_both": int((correct_a & correct_b).sum()), "num_only_a": only_a, "num_only_b": only_b,
        "num_neither": int((~correct_a & ~correct_b).sum()), "p_value": p_value,
    }  # fmt: skip


def verdict(name: str, found: Difference, *, margin: float, lower_is_better: bool, unit: str = "") -> tuple[str, str]:
    """Return what model B is against model A ("better", "worse", "equivalent" or "cannot tell") and one sentence that says why.

    Equivalent: the whole interval lies within the margin (two one-sided tests, each at 2.5%). Better or worse: it lies on one side of
    zero. Equivalence goes first: a difference that is real and smaller than what matters is none.
    """
    what = f"{name} of B minus that of A is {signed(found.difference)}{unit and ' ' + unit}"
    if found.interval is None:
        return "cannot tell", f"{what}, and no interval can be had: {found.reason}."
    low, high = found.interval
    within = f"its 95% interval, {signed(low)} to {signed(high)}"
    if low == high == 0:
        return "equivalent", f"{what} in every resample: on this text the two answer alike."
    if found.num_documents < MIN_DOCUMENTS:
        return "cannot tell", f"{what} ({within}), but {found.num_documents} documents are too few to rest on; at least {MIN_DOCUMENTS}."
    if -margin <= low and high <= margin:
        real = " (though not at zero)" if low > 0 or high < 0 else ""
        return "equivalent", f"{what}; {within}, lies within the margin of {margin:g} on both sides{real}."
    if low > 0 or high < 0:
        good = (high < 0) == lower_is_better
        return (
            "better" if good else "worse",
            f"{what}, where {'lower' if lower_is_better else 'higher'} is better; {within}, leaves out zero.",
        )
    return "cannot tell", f"{what}; {within}, holds zero and reaches over the margin of {margin:g}: more text would narrow it."


def signed(value: float) -> str:
    """Return a difference as a reader wants it: with its sign, four digits."""
    return f"{value:+.4f}" if abs(value) < 10 else f"{value:+,.1f}"
