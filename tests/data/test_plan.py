"""The plan of an epoch: every token once, packs that are full, steps that are a division."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.plan import Plan, cut, pack
from unmask.errors import ConfigError


def natural(count, mean, spread=0.7, seed=0):
    """Return lengths as natural text has them: log-normal."""
    return np.maximum(1, np.random.default_rng(seed).lognormal(np.log(mean) - spread**2 / 2, spread, count)).astype(np.int64)


def plan(lengths, *, seed=0, max_length=32, num_special=2, micro_tokens=64, batch_tokens=None, shuffle=True, **more):
    return Plan(
        np.asarray(lengths), seed=seed, max_length=max_length, num_special=num_special, micro_tokens=micro_tokens,
        batch_tokens=batch_tokens or micro_tokens, shuffle=shuffle, **more,
    )  # fmt: skip


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 130))
def test_windows_hold_every_token_once_and_are_balanced(lengths, capacity):
    windows = cut(np.array(lengths, dtype=np.int64), capacity)
    for number, length in enumerate(lengths):
        mine = windows.document == number
        start, stop = windows.start[mine], windows.stop[mine]
        assert len(start) == -(-length // capacity)
        if length:
            assert start[0] == 0 and stop[-1] == length and (start[1:] == stop[:-1]).all()
            assert (stop - start).min() >= 1 and (stop - start).max() <= capacity and np.ptp(stop - start) <= 1


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=300), st.integers(50, 400), st.randoms(use_true_random=False))
def test_packs_hold_every_window_once(sizes, room, random):
    order = np.array(random.sample(range(len(sizes)), len(sizes)), dtype=np.int64)
    packs = pack(np.array(sizes, dtype=np.int64), order, room)
    assert sorted(packs.order.tolist()) == list(range(len(sizes)))
    assert packs.bounds[0] == 0 and packs.bounds[-1] == len(sizes)
    for number in range(len(packs)):
        assert len(packs[number]) >= 1 and sum(sizes[window] for window in packs[number]) <= room


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=60).filter(any), st.integers(3, 40), st.integers(1, 4), st.integers(1, 3),
    st.integers(0, 99), st.booleans(),
)  # fmt: skip
def test_every_window_once_an_epoch_and_steps_are_a_division(lengths, max_length, times, packs_a_step, seed, shuffle):
    micro_tokens = max_length * times
    made = plan(
        lengths, seed=seed, max_length=max_length, micro_tokens=micro_tokens, batch_tokens=micro_tokens * packs_a_step, shuffle=shuffle
    )
    for epoch in (0, 1, 5):
        steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
        seen = []
        for step in steps:
            of, packs = made.packs(step)
            assert of == epoch
            assert len(packs) == packs_a_step or (step == steps[-1] and 1 <= len(packs) <= packs_a_step)
            assert all(made.sizes[windows].sum() <= micro_tokens and len(windows) for windows in packs)
            seen += [window for windows in packs for window in windows.tolist()]
        assert sorted(seen) == list(range(len(made.windows)))


@pytest.mark.parametrize(
    ("mean", "max_length", "micro_tokens"), [(66, 128, 4096), (28, 128, 4096), (66, 512, 4096), (66, 512, 1024), (250, 512, 8192)]
)
def test_less_than_one_percent_is_padding(mean, max_length, micro_tokens):
    made = plan(natural(20_000, mean), max_length=max_length, micro_tokens=micro_tokens)
    for epoch in (0, 1):
        assert made.sizes.sum() / (len(made.epoch(epoch)) * micro_tokens) > 0.99


def test_packs_mix_long_and_short_windows():
    made = plan(natural(20_000, 66), max_length=128, micro_tokens=4096)
    packs = made.epoch(1)
    means = np.array([made.sizes[packs[number]].mean() for number in range(len(packs))])
    assert (np.abs(means / made.sizes.mean() - 1) < 0.25).mean() > 0.95


def test_epochs_and_seeds_differ_and_the_same_ones_do_not():
    lengths = natural(500, 30)
    first, again = plan(lengths, seed=1), plan(lengths, seed=1)
    again.packs(7 * again.steps_per_epoch)  # whatever was asked before
    assert (first.epoch(2).order == again.epoch(2).order).all() and (first.epoch(2).bounds == again.epoch(2).bounds).all()
    assert (first.epoch(2).order != first.epoch(3).order).any()
    assert (first.epoch(2).order != plan(lengths, seed=2).epoch(2).order).any()
    assert len(first.epoch(2)) == len(first.epoch(3)) == len(first.epoch(400))


def test_an_order_that_needs_more_packs_falls_back_on_the_first_epochs():
    made = plan(natural(300, 30), seed=3)
    fallback = made._swap(np.random.default_rng(0))
    reference = made._reference
    assert sorted(fallback.order.tolist()) == list(range(len(made.windows)))
    assert (fallback.order != reference.order).any()
    assert (made.sizes[fallback.order] == made.sizes[reference.order]).all() and (fallback.bounds == reference.bounds).all()
    made.num_packs = len(reference) - 1  # no order of its own fits: the packs of the first epoch, exchanged
    assert sorted(made.epoch(4).order.tolist()) == list(range(len(made.windows)))


def test_without_shuffle_every_epoch_is_the_same():
    made = plan(natural(300, 30), shuffle=False)
    assert (made.epoch(0).order == made.epoch(9).order).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 2}, "max_length = 2 leaves no room beside 2 special tokens; allowed: 3 or more"),
        ({"max_length": 128}, "micro_tokens = 64 is less than max_length = 128"),
        ({"batch_tokens": 100}, "batch_tokens = 100 is not a multiple of micro_tokens = 64; the nearest is 128"),
        ({"batch_tokens": 32}, "batch_tokens = 32 is not a multiple of micro_tokens = 64; the nearest is 64"),
        ({"lengths": [0, 0]}, "holds no token"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(ConfigError) as error:
        plan(**{"lengths": [5, 6], **options})
    assert message in str(error.value)


def test_a_negative_step():
    with pytest.raises(ConfigError, match="step = -1; allowed: 0 or more"):
        plan([5, 6]).packs(-1)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 120), min_size=1, max_size=60).filter(any), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9),
    st.integers(0, 99),
)  # fmt: skip
def test_steps_that_grow_take_the_same_packs(lengths, first, more, ramp_steps, seed):
    """A ramp changes where steps are cut, and nothing of the packs or of their order."""
    tokens = {"batch_tokens": 64 * (first + more), "seed": seed}
    plain = plan(lengths, **tokens)
    made = Plan(
        np.asarray(lengths), max_length=32, num_special=2, micro_tokens=64, batch_tokens_start=64 * first, ramp_steps=ramp_steps, **tokens
    )
    packs: dict[int, list[list[int]]] = {}
    sizes, last = [], 0
    for step in range(ramp_steps + 5 * plain.steps_per_epoch):
        epoch, taken = made.packs(step)
        assert epoch in (last, last + 1) and taken and made.epoch_of(step) == epoch
        last = epoch
        packs.setdefault(epoch, []).extend(pack.tolist() for pack in taken)
        sizes.append(len(taken))
        wanted = min(first + more, round(first + more * step / ramp_steps)) if step < ramp_steps else first + more
        assert sizes[-1] == wanted or (sizes[-1] < wanted and len(packs[epoch]) == made.num_packs)  # the end of an epoch
    for epoch in range(last):
        assert packs[epoch] == [pack.tolist() for pack in (plain.epoch(epoch)[number] for number in range(plain.num_packs))]


@pytest.mark.parametrize("start", [32, 96, 320])
def test_a_ramp_that_cannot_be_is_named(start):
    with pytest.raises(ConfigError, match=f"batch_tokens_start = {start}; allowed: a multiple of micro_tokens = 64, up to"):
        Plan(np.array([9]), seed=0, max_length=32, num_special=2, micro_tokens=64, batch_tokens=256, batch_tokens_start=start, ramp_steps=3)
