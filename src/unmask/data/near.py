"""Near-duplicates: MinHash keys of documents, and an index of keys on disk that finds those that come again.

Two documents are near-duplicates when their sets of five-word shingles have a Jaccard similarity of about 0.7 or more: found is one pair
in four at 0.6, one in two at 0.7, 95% at 0.8, all but two in ten thousand at 0.9.
Source: Broder 1997 (MinHash), Dahlgaard et al. 2017 (the sketch of the library `rensa`); the bands of keys as in FineWeb (2024).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

SHINGLE_WORDS = 5
NUM_BANDS, BAND_ROWS = 16, 8
SEGMENT_BYTES = 1 << 20  # text is hashed in pieces of this size, so that a document of 50 MB takes no more memory than many short ones
KEYS_IN_MEMORY = 1 << 19

_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64


def band_keys(texts: Sequence[str]) -> np.ndarray:
    """Return the keys of documents: two that share one in any column are near-duplicates. Shapes: (documents, NUM_BANDS) uint64."""
    from rensa import RMinHash

    hashes, counts = shingle_hashes(texts)
    offsets = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts, out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, NUM_BANDS * BAND_ROWS, 1)
    rows = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(texts), NUM_BANDS, BAND_ROWS)
    keys = rows[:, :, 0].copy()
    for row in range(1, BAND_ROWS):
        keys = _mix(keys * np.uint64(_BASE) + rows[:, :, row])
    return keys


def shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the shingles of documents laid end to end, and how many each has, at least one.

    A word is a run of letters and digits, without regard to the case of ASCII letters; in scripts written without spaces, a character.
    """
    found: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for group in _segments(texts):
        if len(group) == 1 and len(group[0]) > SEGMENT_BYTES:  # one long document, in pieces
            words = np.concatenate([_word_hashes([piece])[0] for piece in _pieces(group[0])])
            num_words = np.array([len(words)])
        else:
            words, num_words = _word_hashes(group)
        hashes, num = _shingles(words, num_words)
        for index in np.flatnonzero(num_words == 0):  # nothing but marks: its bytes are its only shingle
            hashes[num[: index + 1].sum() - 1] = _hash_of(group[index])
        found.append(hashes)
        counts.append(num)
    return np.concatenate(found), np.concatenate(counts)


def _segments(texts: Sequence[str]) -> Iterator[list[bytes]]:
    """Yield texts in UTF-8, as many together as SEGMENT_BYTES holds; a longer one comes alone."""
    group: list[bytes] = []
    size = 0
    for text in texts:
        data = text.encode("utf-8")
        if group and size + len(data) > SEGMENT_BYTES:
            yield group
            group, size = [], 0
        group.append(data)
        size += len(data) + 1
    yield group


def _shingles(words: np.ndarray, num_words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of every SHINGLE_WORDS words in a row within documents, and how many each has; a short document is one."""
    counts = np.maximum(num_words - SHINGLE_WORDS + 1, 1)
    if len(num_words) == 1 and num_words[0] >= SHINGLE_WORDS:
        hashes = np.empty(counts[0], np.uint64)
        for low in range(0, len(hashes), SEGMENT_BYTES):
            some = words[low : low + SEGMENT_BYTES + SHINGLE_WORDS - 1]
            hashes[low : low + SEGMENT_BYTES] = _polynomial([some[i : len(some) - SHINGLE_WORDS + 1 + i] for i in range(SHINGLE_WORDS)])
        return hashes, counts
    starts, ends = np.cumsum(num_words) - num_words, np.cumsum(counts)
    first = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
    widths = np.repeat(np.clip(num_words, 1, SHINGLE_WORDS), counts)
    padded = np.concatenate([words, np.zeros(SHINGLE_WORDS, np.uint64)])
    return _polynomial([np.where(widths > i, padded[first + i], np.uint64(0)) for i in range(SHINGLE_WORDS)]), counts


def _polynomial(words: list[np.ndarray]) -> np.ndarray:
    hashes = words[0]
    for word in words[1:]:
        hashes = hashes * np.uint64(_BASE) + word
    return _mix(hashes)


def _hash_of(data: bytes) -> np.uint64:
    return np.frombuffer(hashlib.blake2b(data, digest_size=8).digest(), np.uint64)[0]


def _pieces(text: bytes) -> Iterator[bytes]:
    """Cut a long text at spaces, or where there is none for long, anywhere but inside a character."""
    start = 0
    while start < len(text):
        end = start + SEGMENT_BYTES
        if end < len(text):
            space = text.rfind(b" ", start + 1, end)
            end = space if space > 0 else end
            while end < len(text) and text[end] & 0xC0 == 0x80:
                end -= 1
        yield text[start:end]
        start = end


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, for every byte, its number, whether it belongs to a word, whether it is a word's first; and the powers of the base."""
    number = _mix(np.arange(1, 257, dtype=np.uint64)) | np.uint64(1)
    number[65:91] = number[97:123]
    inside = np.array([byte >= 128 or chr(byte).isalnum() for byte in range(256)])
    alone = np.zeros(256, bool)
    alone[[0xE0, 0xE1, *range(0xE3, 0xEE), *range(0xF0, 0xF5)]] = True  # the first byte of a character of a script without spaces
    powers = np.full(SEGMENT_BYTES + 2, _BASE, np.uint64)
    powers[0] = 1
    return np.where(inside, number, np.uint64(0)), inside, alone, np.cumprod(powers)


@cache
def _inverse_powers() -> np.ndarray:
    powers = np.full(SEGMENT_BYTES + 2, pow(_BASE, -1, 2**64), np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _word_hashes(data: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    number, inside, alone, powers = _tables()
    buffer = np.frombuffer(b" " + b" ".join(data) + b" ", np.uint8)
    # a polynomial over the bytes of each word, from sums over all bytes before its end and before its start
    sums = number[buffer]
    sums *= powers[: len(sums)]
    np.cumsum(sums, out=sums)
    within = inside[buffer]
    lead = alone[buffer]
    starts = np.flatnonzero(within[1:] & (~within[:-1] | lead[1:])) + 1
    ends = np.flatnonzero(within[:-1] & (~within[1:] | lead[1:])) + 1
    words = _mix((sums[ends - 1] - sums[starts - 1]) * _inverse_powers()[starts])
    bounds = np.cumsum(np.fromiter((len(text) + 1 for text in data), np.int64, len(data)))
    return words, np.diff(np.searchsorted(starts, bounds + 1), prepend=0)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return 64-bit numbers scrambled. Source: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class KeyIndex:
    """Columns of 64-bit keys on disk, a row a document; finds the rows whose key came before, in memory that does not grow."""

    def __init__(self, folder: Path, num_columns: int, *, keys_in_memory: int = KEYS_IN_MEMORY) -> None:
        folder.mkdir(parents=True)
        self.folder, self.keys_in_memory, self.num_rows = folder, keys_in_memory, 0
        self._files = [open(folder / f"column-{column:02d}", "wb") for column in range(num_columns)]

    def add(self, keys: np.ndarray) -> None:
        """Append rows. Shapes: (rows, columns) uint64."""
        for file, column in zip(self._files, keys.T, strict=True):
            file.write(np.ascontiguousarray(column, dtype="<u8").data)
        self.num_rows += len(keys)

    def finish(self) -> None:
        """End the writing."""
        for file in self._files:
            file.close()

    def mark(self, column: int, flags: np.ndarray, *, again: int, shared: int, without: int) -> None:
        """Set the bit `again` in the flags of rows whose key came before, `shared` in those of all rows that share a key.

        Rows that have one of the bits `without` set are passed over. Shapes: flags (rows,) uint8.
        """
        for keys, rows in self._groups(column, flags, without):
            order = np.argsort(keys, kind="stable")
            keys, rows = keys[order], rows[order]
            same = keys[1:] == keys[:-1]
            flags[rows[1:][same]] |= again | shared
            flags[rows[:-1][same]] |= shared

    def _groups(self, column: int, flags: np.ndarray, without: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (keys, rows), all rows of equal keys in one group, rows ascending; large columns are partitioned on disk first."""
        num_parts = -(-self.num_rows // self.keys_in_memory)
        if num_parts <= 1:
            yield from self._chunks(column, flags, without)
            return
        parts = [self.folder / f"part-{part}" for part in range(num_parts)]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "wb")) for path in parts]
            for keys, rows in self._chunks(column, flags, without):
                which = (keys >> np.uint64(20)) % np.uint64(num_parts)
                for part, file in enumerate(files):
                    chosen = which == part
                    file.write(np.stack([keys[chosen], rows[chosen].astype(np.uint64)], axis=1).data)
        for path in parts:
            pairs = np.fromfile(path, dtype=np.uint64).reshape(-1, 2)
            path.unlink()
            yield pairs[:, 0], pairs[:, 1].astype(np.int64)

    def _chunks(self, column: int, flags: np.ndarray, without: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with open(self.folder / f"column-{column:02d}", "rb") as file:
            for first in range(0, self.num_rows, self.keys_in_memory):
                keys = np.fromfile(file, dtype="<u8", count=self.keys_in_memory)
                rows = np.flatnonzero((flags[first : first + len(keys)] & without) == 0)
                yield keys[rows], rows + first
