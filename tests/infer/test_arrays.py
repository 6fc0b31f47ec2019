"""What is done with numpy's logits is what torch does with its own."""

import numpy as np
import pytest
import torch

from unmask.infer.arrays import log_normalizer, top_k


@pytest.mark.parametrize(("rows", "width"), [(1, 7), (3, 64), (5, 1000), (4, 16_411), (2, 30_522), (0, 500)])
@pytest.mark.parametrize("k", [1, 2, 5, 40, 1000])
def test_the_largest_are_those_of_torch(rows, width, k):
    k = min(k, width)
    rng = np.random.default_rng(rows * width + k)
    # few different numbers: ties, some of them at the k-th place
    for logits in (rng.normal(size=(rows, width)), rng.integers(0, 30, (rows, width)), np.sort(rng.normal(size=(rows, width)), 1)):
        logits = logits.astype(np.float32)
        values, ids = top_k(logits, k)
        expected, _ = top_k(torch.from_numpy(logits), k)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(np.take_along_axis(logits, ids, 1), values)
        assert all(len(set(row)) == k for row in ids.tolist())


def test_minus_infinity_is_the_smallest_number():
    logits = np.full((2, 5000), -np.inf, np.float32)
    logits[0, [4999, 17]], logits[1, 3] = [1, 2], 0
    values, ids = top_k(logits, 3)
    assert ids[0, :2].tolist() == [17, 4999] and ids[1, 0] == 3 and values[1].tolist() == [0, -np.inf, -np.inf]


def test_normalizers_are_those_of_torch():
    logits = (np.random.default_rng(0).normal(size=(40, 3000)) * 30).astype(np.float32)
    np.testing.assert_allclose(log_normalizer(logits), log_normalizer(torch.from_numpy(logits)).numpy(), rtol=1e-6)
