"""Differences of two models: hand-computed tests, intervals that pair, and every way in which a verdict can come out."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from unmask.evaluate.paired import Difference, difference, mcnemar, verdict
from unmask.evaluate.stats import expanded, weights


def made(low, high, *, num_documents=50):
    interval = None if low is None else (low, high)
    why = "one document only" if low is None else None
    middle = 0.0 if low is None else (low + high) / 2
    return Difference(3.0, 3.0 + middle, middle, interval, 1000, num_documents, why)


@pytest.mark.parametrize(
    ("found", "lower_is_better", "word", "why"),
    [
        (made(-0.3, -0.1), True, "better", "leaves out zero"),
        (made(0.1, 0.3), True, "worse", "where lower is better"),
        (made(0.1, 0.3), False, "better", "where higher is better"),
        (made(-0.3, -0.1), False, "worse", "leaves out zero"),
        (made(-0.005, 0.008), True, "equivalent", "within the margin of 0.01"),
        (made(-0.01, 0.01), True, "equivalent", "within the margin"),
        (made(-0.009, -0.002), True, "equivalent", "though not at zero"),
        (made(-0.02, -0.005), True, "better", "leaves out zero"),
        (made(-0.02, 0.005), True, "cannot tell", "reaches over the margin of 0.01"),
        (made(0.0, 0.0), True, "equivalent", "no document tells the two apart"),
        (made(None, None, num_documents=1), True, "cannot tell", "one document only"),
        (made(-0.3, -0.1, num_documents=5), True, "cannot tell", "5 documents are too few"),
        (made(-0.3, -0.1, num_documents=6), True, "better", "leaves out zero"),
        (made(0.0, 0.0, num_documents=2), True, "equivalent", "no document"),
    ],
)
def test_verdicts(found, lower_is_better, word, why):
    said, reason = verdict("masked_loss", found, margin=0.01, lower_is_better=lower_is_better, unit="nats")
    assert said == word and why in reason and reason.count("nats") == 1 and reason.endswith(".")


def test_without_a_margin_only_what_is_equal_is_equivalent():
    assert verdict("x", made(-0.001, 0.001), margin=0.0, lower_is_better=True)[0] == "cannot tell"
    assert verdict("x", made(0.0, 0.0), margin=0.0, lower_is_better=True)[0] == "equivalent"


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0], dtype=bool)
    b = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 0], dtype=bool)
    found = mcnemar(a, b)
    # one to six of seven disagreements: twice (1 + 7) / 2**7
    assert found == {"num_both": 3, "num_only_a": 1, "num_only_b": 6, "num_neither": 2, "p_value": pytest.approx(0.125)}
    assert mcnemar(b, a)["p_value"] == found["p_value"]


def test_models_that_never_disagree_have_nothing_to_test():
    assert mcnemar(np.ones(4, bool), np.ones(4, bool))["p_value"] == 1.0
    assert mcnemar(np.array([1, 0], bool), np.array([0, 1], bool))["p_value"] == 1.0


def drawn(values, counts, resamples=2000):
    """Return the resamples of a mean over tokens, from the sums and counts of each document."""
    return np.concatenate([(weight @ values) / (weight @ counts) for weight in weights(len(values), resamples, 0)])


def test_what_both_models_share_cancels_out():
    random = np.random.default_rng(0)
    counts = random.integers(5, 40, size=30).astype(float)
    a = counts * random.uniform(1, 9, size=30)  # documents are of very different difficulty
    b = a - 0.5 * counts
    samples = drawn(a, counts), drawn(b, counts)
    found = difference(a.sum() / counts.sum(), b.sum() / counts.sum(), *samples, count=1, num_documents=30, resamples=2000)
    assert found.interval == pytest.approx((-0.5, -0.5)) and found.difference == pytest.approx(-0.5)
    assert expanded(2) > 0.999 and expanded(6) == pytest.approx(0.99514, abs=1e-4) and expanded(10_000) == pytest.approx(0.95, abs=1e-4)
    apart = np.quantile(samples[1] - samples[0][::-1], [0.025, 0.975])  # as if not paired
    assert apart[1] - apart[0] > 1.0


@pytest.mark.parametrize("num_documents", [6, 20])
def test_a_difference_of_nothing_is_seldom_called_real(num_documents):
    random = np.random.default_rng(3)
    real, plain = 0, 0
    for number in range(300):
        if number % 20 == 0:
            drawn_weights = np.concatenate(list(weights(num_documents, 500, number)))
        counts = random.integers(5, 60, size=num_documents).astype(float)
        samples = (drawn_weights @ (counts * random.normal(0, 0.3, size=num_documents))) / (drawn_weights @ counts)
        low, high = difference(0.0, 0.0, 0 * samples, samples, count=1, num_documents=num_documents, resamples=500).interval
        real += low > 0 or high < 0
        low, high = np.quantile(samples, [0.025, 0.975])
        plain += low > 0 or high < 0
    # with 6 documents and 500 resamples 7.8% were counted in 3,600 draws: 23 of 300, and three standard deviations more are 37
    assert real <= 37 and 1.2 * real < plain


def test_the_interval_is_that_of_scipy():
    random = np.random.default_rng(1)
    counts = random.integers(5, 40, size=40).astype(float)
    a = counts * random.uniform(2, 4, size=40)
    b = a - counts * random.normal(0.1, 0.3, size=40)
    found = difference(0.0, 0.0, drawn(a, counts), drawn(b, counts), count=1, num_documents=40, resamples=2000)
    theirs = bootstrap(
        (a, b, counts), lambda a, b, n, axis=-1: (b.sum(axis) - a.sum(axis)) / n.sum(axis),
        paired=True, vectorized=True, n_resamples=20_000, method="percentile", confidence_level=expanded(40), rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found.interval == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_no_interval_says_why():
    one = difference(1.0, 2.0, np.zeros(0), np.zeros(0), count=9, num_documents=1, resamples=1000)
    assert one.interval is None and "one document" in one.why
    assert one.to_dict() == {
        "a": 1.0, "b": 2.0, "difference": 1.0, "low": None, "high": None, "count": 9, "num_documents": 1, "why": one.why,
    }  # fmt: skip
    rare = np.array([np.nan] * 8 + [1.0, 2.0])
    assert "too few documents" in difference(1.0, 2.0, rare, rare, count=9, num_documents=2, resamples=10).why
