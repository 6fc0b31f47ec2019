"""Clean text, its content hash, and the side of the split that the hash puts it on."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

# control characters, byte-order marks, soft hyphens, directional marks; not the joiners (U+200C, U+200D), which spell words
_DROPPED = re.compile("[\x00-\x08\x0e-\x1b\x7f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n ]")
_RUN = re.compile(r"  +")
_EDGES = re.compile(r" ?\n[\n ]*")
_SURROGATES = re.compile("[\ud800-\udfff]")


def normalise(text: str) -> str:
    """Return text in NFC without control characters, its lines without spare spaces and blank lines between them.

    Every step is skipped where a quick look shows nothing to do: most text is clean.
    """
    if not text.replace("\n", "").isprintable():  # printable text has no controls, surrogates or spaces but " "
        text = _SURROGATES.sub("\ufffd", text)
        text = _DROPPED.sub("", _BREAKS.sub("\n", text))
        text = _SPACES.sub(" ", text)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if "  " in text:
        text = _RUN.sub(" ", text)
    if " \n" in text or "\n " in text or "\n\n" in text:
        text = _EDGES.sub("\n", text)
    return text.strip()


def mended(value: Any) -> Any:
    """Return a value of JSON with U+FFFD for every half of a surrogate pair in its texts: JSON can name one, and no file can hold it."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, dict):
        return {mended(key): mended(inner) for key, inner in value.items()}
    return [mended(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def content_hash(text: str) -> int:
    """Return a 64-bit hash of a text, the same on every machine."""
    data = text.encode("utf-8", "surrogatepass")  # half a surrogate pair, which only Python's callers can give, is hashed as it is
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def split_point(text_hash: int) -> float:
    """Return where in [0, 1) a content hash lies: documents below the held-out share are held out."""
    # hashed once more, so that the split does not go along with any other use of the hash
    return (((text_hash + 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF) >> 11) / 2**53


def split_of(text: str, held_out: float) -> str:
    """Return "train" or "heldout" for a text: a function of nothing but its content, so that equal texts are on one side."""
    return "heldout" if split_point(content_hash(text)) < held_out else "train"
