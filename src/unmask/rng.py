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
