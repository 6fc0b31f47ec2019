"""Random numbers as a function of a key: the same everywhere, and nothing shared between keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.rng import rng, uniforms

GOLDEN_INTEGERS = [211, 342, 76, 17, 321, 122]
GOLDEN_UNIFORMS = [0.5947083893650655, 0.4168258546546194, 0.6680960321973102]
keys = st.lists(st.one_of(st.integers(0, 2**40), st.text(alphabet="abcdefgh-", min_size=1, max_size=8)), max_size=3)


@given(seed=st.integers(0, 2**63), key=keys)
def test_the_same_key_gives_the_same_numbers(seed, key):
    assert np.array_equal(rng(seed, *key).random(4), rng(seed, *key).random(4))
    rows = np.arange(4)
    assert np.array_equal(uniforms(seed, *key, rows=rows, columns=rows), uniforms(seed, *key, rows=rows, columns=rows))


def test_the_numbers_are_what_they_have_always_been():
    # a run that is resumed with another version of Unmask must find its order and its masks again
    assert rng(0, "order", 1).integers(0, 1000, 6).tolist() == GOLDEN_INTEGERS
    assert uniforms(7, "mask", 3, "select", rows=np.array([0, 1, 5]), columns=np.array([0, 0, 9])) == pytest.approx(
        GOLDEN_UNIFORMS, abs=1e-15
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "a"), (1, "a")),
        ((0, "a"), (0, "b")),
        ((0,), (0, "")),
        ((0, "a", "b"), (0, "ab")),
        ((0, "ab", "c"), (0, "a", "bc")),
        ((0, 1, 23), (0, 12, 3)),
        ((0, "mask", 1), (0, "order", 1)),
    ],
)
def test_keys_that_differ_share_no_numbers(one, other):
    assert not np.isin(rng(*one).random(32), rng(*other).random(32)).any()
    rows = np.arange(32)
    assert not np.isin(uniforms(*one, rows=rows, columns=rows), uniforms(*other, rows=rows, columns=rows)).any()


def test_a_generator_and_the_uniforms_of_its_key_are_not_related():
    rows = np.arange(64)
    assert not np.isin(rng(3, "x").random(64), uniforms(3, "x", rows=rows, columns=np.zeros(64, int))).any()


def test_a_key_of_a_number_and_of_its_digits_is_one():
    # document names and numbers are both keys; that 1 and "1" agree is said here so that nobody counts on the contrary
    assert rng(0, 1).random() == rng(0, "1").random()


@given(rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=20), columns=st.lists(st.integers(0, 2**31), min_size=1, max_size=20))
def test_a_uniform_depends_on_its_row_and_column_alone(rows, columns):
    table = uniforms(5, "t", rows=np.array(rows)[:, None], columns=np.array(columns)[None])
    assert table.shape == (len(rows), len(columns)) and table.dtype == np.float64
    assert ((table >= 0) & (table < 1)).all()
    assert table[-1, -1] == uniforms(5, "t", rows=np.array([rows[-1]]), columns=np.array([columns[-1]]))[0]
    backwards = uniforms(5, "t", rows=np.array(rows)[::-1, None], columns=np.array(columns)[None, ::-1])
    assert np.array_equal(backwards, table[::-1, ::-1])


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_uniforms_are_uniform_and_neighbours_unrelated(axis):
    from scipy import stats

    counter, zero = np.arange(20_000), np.zeros(20_000, dtype=int)
    numbers = uniforms(11, "u", rows=counter if axis == "rows" else zero, columns=counter if axis == "columns" else zero)
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert len(np.unique(numbers)) == len(numbers)
