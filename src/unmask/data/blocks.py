"""The blocks of a shard, each checked by its CRC-32 before it is read for the first time: a byte that has changed is never trained on."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np


class Blocks:
    """The bytes of a shard, and which blocks of them were not checked yet; `shard` is its entry in store.json.

    Raises: ValueError for sums that are not those of a shard of this size.
    """

    def __init__(self, data: np.ndarray, shard: dict[str, Any]) -> None:
        self.data, self.size = data.data, int(shard["block_bytes"])
        self.sums = np.frombuffer(base64.b64decode(shard["crc32"], validate=True), "<u4")
        if self.size <= 0 or len(self.sums) != -(-len(data) // self.size):
            raise ValueError(f"{len(self.sums)} sums for {len(data)} bytes in blocks of {self.size}")
        self.unchecked = np.ones(len(self.sums), bool)

    def check(self, start: np.ndarray, stop: np.ndarray) -> None:
        """Check the blocks that hold bytes [start, stop), unless they were before. Shapes: both (n,).

        Raises: ValueError for one that is not as it was written.
        """
        first = start // self.size
        counts = -(-stop // self.size) - first
        blocks = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        self._check(np.unique(blocks[self.unchecked[blocks]]))

    def check_but(self, start: np.ndarray, stop: np.ndarray) -> None:
        """Check all blocks but those that lie wholly inside of one of the ranges [start, stop)."""
        wanted = self.unchecked.copy()
        for low, high in zip(-(-start // self.size), stop // self.size, strict=True):
            wanted[low:high] = False
        self._check(np.flatnonzero(wanted))

    def _check(self, blocks: np.ndarray) -> None:
        for block in blocks.tolist():
            low = block * self.size
            if zlib.crc32(self.data[low : low + self.size]) != self.sums[block]:
                raise ValueError(f"its bytes {low:,} to {min(low + self.size, len(self.data)) - 1:,} are not those that were written")
        self.unchecked[blocks] = False
