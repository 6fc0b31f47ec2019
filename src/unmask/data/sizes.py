"""Sizes of batches: few different ones, because the CPU's matrix kernels are compiled for each, which can take longer than to run one."""

from __future__ import annotations


def rounded(size: int) -> int:
    """Return the next size that is used: 16 between a power of two and the next one, and multiples of 8 where those lie closer."""
    step = max(8, 1 << max(0, (size - 1).bit_length() - 5))
    return -(-size // step) * step
