"""Random numbers as a function of a key: the same key gives the same numbers on any machine, in any order."""

from __future__ import annotations

import hashlib

import numpy as np


def rng(seed: int, *key: int | str) -> np.random.Generator:
    """Return a generator that depends on nothing but (seed, *key).

    Source: Philox, a counter-based generator (Salmon et al. 2011), keyed by the first 128 bits of BLAKE2b over the key,
    so that no state has to be saved, and no two keys share a stream.
    """
    text = "\x1f".join([str(int(seed)), *(str(part) for part in key)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))


def uniforms(seed: int, *key: int | str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return numbers uniform in [0, 1), one for each (row, column): each depends on nothing but (seed, *key, row, column).

    Where `rng` would need a generator for every document, this draws for thousands of documents at once.
    Shapes: rows and columns are non-negative integers that broadcast together; the result, float64, has that shape.
    Source: the finaliser of SplitMix64 (Steele, Lea & Flood 2014; constants of Stafford's variant 13), applied to the row and again
    to the column, each offset by 64 bits of BLAKE2b over the key.
    """
    text = "\x1f".join(["uniforms", str(int(seed)), *(str(part) for part in key)])
    first, second = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype="<u8")
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        state = _mix(np.asarray(rows).astype(np.uint64) * _GAMMA + first)
        state = _mix(state ^ (np.asarray(columns).astype(np.uint64) * _GAMMA + second))
    return (state >> np.uint64(11)) * 2.0**-53


def hashes(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return a uint64 for each (row, column), the same on any machine: what `uniforms` does, without a key."""
    with np.errstate(over="ignore"):
        return _mix(_mix((np.asarray(rows).astype(np.uint64) + np.uint64(1)) * _GAMMA) ^ (np.asarray(columns).astype(np.uint64) * _GAMMA))


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    state = state ^ (state >> np.uint64(30))
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state
