"""Sizes of batches are few, and none is much more than was asked for."""

from unmask.data.sizes import rounded


def test_sizes_are_few_and_near():
    sizes = [rounded(size) for size in range(1, 8193)]
    assert len(set(sizes)) < 120 and sizes == sorted(sizes)
    for size, found in enumerate(sizes, 1):
        assert size <= found == rounded(found) and found - size < max(8, size / 16 + 1)
