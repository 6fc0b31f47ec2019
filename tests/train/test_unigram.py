"""The unigram baseline, and the notice of a run that sits on it."""

import math

import numpy as np
import pytest

from unmask.train.unigram import Plateau, entropy, token_counts, unigram


def test_every_token_of_the_store_is_counted(store, tokenizer):
    counts = token_counts(store, len(tokenizer))
    assert counts.sum() == store.num_tokens
    assert counts[7] == sum(int((store.ids(document) == 7).sum()) for document in range(len(store)))


def test_entropy():
    assert entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))


def test_the_baseline_is_add_one_smoothed_over_the_whole_vocabulary(store, tokenizer, make_loader):
    counts = token_counts(store, len(tokenizer))
    batches = make_loader().batch(0)
    labels = batches[0].labels.numpy()
    metrics = unigram(counts, batches)
    expected = -np.mean([math.log((counts[label] + 1) / (counts.sum() + len(tokenizer))) for label in labels])
    assert metrics["masked_loss"] == pytest.approx(expected)
    assert metrics["masked_perplexity"] == pytest.approx(math.exp(expected))
    assert metrics["num_masked_tokens"] == len(labels)
    assert metrics["masked_accuracy"] == pytest.approx((labels == counts.argmax()).mean())


def test_a_run_on_the_plateau_is_told_once_and_what_helps():
    plateau = Plateau(7.4, warmup_ratio=0.05)
    said = [plateau.update(7.35, step / 1000) for step in range(1000)]
    assert [step for step, notice in enumerate(said) if notice] == [200]
    for word in ("7.35", "7.40", "optim.learning_rate", "optim.warmup_ratio", "model.family=modernbert"):
        assert word in said[200]


def test_a_long_warm_up_is_waited_for():
    plateau = Plateau(7.4, warmup_ratio=0.3)
    assert [step for step in range(1000) if plateau.update(7.4, step / 1000)] == [600]


@pytest.mark.parametrize("loss", [lambda step: 7.4 - step / 200, lambda step: 5.0])
def test_a_run_that_learns_is_left_alone(loss):
    plateau = Plateau(7.4)
    assert not any(plateau.update(loss(step), step / 1000) for step in range(1000))
