"""Is the difference between two models on the same tokens more than chance? Paired bootstrap, McNemar's test, and a verdict in a word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .stats import expanded, finite, interval, no_interval

FLIPS = "flips.jsonl"
KIND = "comparison"
LOWER_IS_BETTER = {
    "masked_loss", "masked_perplexity", "bits_per_byte", "expected_calibration_error", "masked_word_loss", "masked_word_perplexity",
}  # fmt: skip
# what is too little to matter unless --margin says otherwise: a hundredth of a nat is one per cent of perplexity
MARGINS = {"nats": 0.01, "bits": 0.01, "share": 0.005}
KINDS = ("right_to_wrong", "wrong_to_right")
# with fewer documents than this, all of them agreeing is what chance does more often than once in twenty: 2 * 0.5 ** 5 = 0.06
MIN_DOCUMENTS = 6


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of two models and B - A, with the 95% interval of the difference; None where there can be none, and `why`."""

    a: float
    b: float
    difference: float
    interval: tuple[float, float] | None
    count: int
    num_documents: int
    why: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds of it; null stands for what is no number."""
        low, high = self.interval or (None, None)
        numbers = {"a": finite(self.a), "b": finite(self.b), "difference": finite(self.difference), "low": low, "high": high}
        return {**numbers, "count": self.count, "num_documents": self.num_documents, **({"why": self.why} if self.why else {})}


def difference(
    a: float, b: float, samples_a: np.ndarray, samples_b: np.ndarray, *, count: int, num_documents: int, resamples: int
) -> Difference:
    """Return B - A with the interval of a paired bootstrap: resample by resample the same documents were drawn for both.

    How hard a document is, which both models share, cancels out; what is left is how far documents differ in what the models differ in.
    Source: Koehn 2004 for the pairing; Hesterberg 2015 for the percentiles, see `expanded`.
    """
    why = no_interval(num_documents, resamples)
    found = None if why else interval(samples_b - samples_a, expanded(num_documents))
    if why is None and found is None:
        why = "most resamples hold nothing of it: it stands in too few documents; measure on more"
    return Difference(a, b, b - a, found, count, num_documents, why)


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
        return "cannot tell", f"{what}, and no interval can be had: {found.why}."
    low, high = found.interval
    within = f"its 95% interval, {signed(low)} to {signed(high)}"
    if low == high == 0:
        return "equivalent", f"{what} in every resample: no document tells the two apart."
    if found.num_documents < MIN_DOCUMENTS:
        return "cannot tell", f"{what} ({within}), but {found.num_documents} documents are too few to rest on; at least {MIN_DOCUMENTS}."
    if -margin <= low and high <= margin:
        real = " (though not at zero)" if low > 0 or high < 0 else ""
        return "equivalent", f"{what}; {within}, lies within the margin of {margin:g} on both sides{real}."
    if low > 0 or high < 0:
        good = (high < 0) == lower_is_better
        sense = "lower" if lower_is_better else "higher"
        return "better" if good else "worse", f"{what}, where {sense} is better; {within}, leaves out zero."
    return "cannot tell", f"{what}; {within}, holds zero and reaches over the margin of {margin:g}: more text would narrow it."


def signed(value: float) -> str:
    """Return a difference as a reader wants it: with its sign, four digits."""
    return f"{value:+.4f}" if abs(value) < 100 else f"{value:+,.1f}"
