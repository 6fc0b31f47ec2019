"""The guard: what is a leap of the loss, what is none, and that its state is all it knows."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.train.guard import ENOUGH, WINDOW, Diverged, Fault, Guard


def fed(losses, score=10.0):
    guard = Guard()
    for loss in losses:
        assert guard.after(loss, 1.0, score) is None
    return guard


def steady(number, level=3.0, spread=0.1, seed=0):
    return (level + spread * np.random.default_rng(seed).standard_normal(number)).tolist()


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
@pytest.mark.parametrize("score", [0.0, 10.0])
def test_what_is_not_finite_is_a_fault_from_the_first_step_on(loss, norm, score):
    guard = Guard()
    assert "is not finite" in guard.after(loss, norm, score).reason
    assert not guard.losses


def test_the_rule_is_the_one_that_is_stated():
    losses = steady(200)
    guard = fed(losses)
    last = np.array(losses[-WINDOW:])
    median = np.median(last)
    spread = 1.4826 * np.median(np.abs(last - median))
    assert spread == pytest.approx(0.1, rel=0.4)
    assert guard.score(median + 3 * spread) == pytest.approx(3)
    assert guard.after(median + 9.99 * spread, 1.0, 10.0) is None
    guard = fed(losses)
    fault = guard.after(median + 10.01 * spread, 1.0, 10.0)
    assert "lies 10.0 times their spread above the last" in fault.reason and not fault.known
    assert list(guard.losses) == losses[-WINDOW:]  # what leaps is no measure for what follows


def test_losses_that_hardly_differ_make_no_leap_of_a_little_more():
    guard = fed([2.0] * 50)
    assert guard.after(2.0 + 10 * 0.02 - 1e-6, 1.0, 10.0) is None
    assert guard.after(2.0 + 10 * 0.02 + 1e-6, 1.0, 10.0) is not None


def test_nothing_is_said_of_the_first_steps_nor_where_it_is_turned_off():
    assert fed(steady(ENOUGH - 1)).after(1e6, 1.0, 10.0) is None
    assert fed(steady(ENOUGH)).after(1e6, 1.0, 10.0) is not None
    assert fed(steady(200), score=0.0).after(1e6, 1.0, 0.0) is None


@pytest.mark.parametrize("seed", range(3))
def test_training_as_it_goes_does_not_leap(seed):
    """A loss that falls from 10 to 3 as losses do, with the noise of batches of twenty masked tokens; then a plateau; and a jump down."""
    generator = np.random.default_rng(seed)
    curve = np.concatenate([3 + 7 * np.exp(-np.arange(600) / 150), np.full(300, 3.0), np.full(200, 2.0)])
    fed((curve + generator.standard_t(5, len(curve)) * 0.3 * np.sqrt(curve / 3)).tolist())


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=150), st.integers(0, 150))
def test_its_state_is_all_it_knows(losses, cut):
    """Bit for bit, by way of JSON, as a checkpoint keeps it."""
    whole, parts = Guard(), Guard()
    for number, loss in enumerate(losses):
        if number == cut:
            parts = Guard(json.loads(json.dumps(parts.state())))
        assert whole.after(loss, 1.0, 3.0) == parts.after(loss, 1.0, 3.0)
    assert whole.state() == parts.state()


def test_steps_to_do_without():
    guard = Guard()
    guard.left_out.update(Diverged(9, Fault("it leaps")).suspects)
    again = Guard(json.loads(json.dumps(guard.state())))
    assert [step for step in range(10) if again.before(step)] == [6, 7, 8, 9] and again.before(7).known
