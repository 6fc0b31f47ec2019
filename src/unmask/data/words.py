"""Where words begin in a list of tokens, for any tokenizer and any script, from tables made once a vocabulary."""

from __future__ import annotations

import json
import re
import unicodedata
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# what a token begins or ends with; a word ends where the class changes
CONTINUES, LETTER, NUMBER, OTHER, SPACE, ALONE, SPECIAL, GLUE = range(8)

# scripts written without spaces between words: every piece that begins with one of their letters is a word of its own
_NO_SPACES = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9D), (0x20000, 0x3FFFF),
)  # fmt: skip

_JOINERS = "\u200c\u200d"  # written inside words of Persian and the scripts of India
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class WordTable:
    """Tells where words begin from token ids alone.

    Shapes: opens (V,) bool, tokens that always begin a word; first, last (V,) uint8, the class of a token's first and last character.
    """

    opens: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def starts(self, ids: np.ndarray, bounds: np.ndarray | None = None) -> np.ndarray:
        """Return (T,) bool for the ids of texts laid end to end; `bounds` are the indices at which a text begins."""
        starts = self.opens[ids]
        if len(ids):
            first = self.first[ids]
            before = self.last[ids[:-1]]
            starts[1:] |= (first[1:] != before) & (first[1:] != CONTINUES) & (before != GLUE)
            starts[0] = True
            if bounds is not None:
                starts[bounds[bounds < len(ids)]] = True
        return starts


def word_starts(tokenizer: PreTrainedTokenizerBase, encodings: Iterable[Any]) -> list[np.ndarray]:
    """Return for every text a bool array that is True where a token begins a word.

    `encodings` are what `encode_batch` returns, a BatchEncoding, or plain lists of ids. A run of letters is a word, so is a run of
    digits or of punctuation; in scripts without spaces every piece is one.
    """
    items: Sequence[Any] = getattr(encodings, "encodings", None) or list(encodings)
    table = word_table(tokenizer)
    if table is None:
        return [_from_word_ids(item) for item in items]
    ids = [np.asarray(item.ids if hasattr(item, "ids") else item, dtype=np.int64) for item in items]
    if not ids:
        return []
    bounds = np.cumsum([0, *(len(one) for one in ids)])
    return np.split(table.starts(np.concatenate(ids), bounds[:-1]), bounds[1:-1])


def _from_word_ids(encoding: Any) -> np.ndarray:
    if not hasattr(encoding, "word_ids"):
        raise TypeError("this tokenizer marks no words in its vocabulary: word_starts needs its encodings, not only their ids")
    words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
    starts = np.ones(len(words), dtype=bool)
    starts[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
    return starts


_tables: weakref.WeakKeyDictionary[Any, tuple[int, WordTable | None]] = weakref.WeakKeyDictionary()


def word_table(tokenizer: PreTrainedTokenizerBase) -> WordTable | None:
    """Return the tables of a tokenizer's vocabulary, or None for a kind that does not mark words in its vocabulary."""
    size = len(tokenizer)
    found = _tables.get(tokenizer)
    if found is None or found[0] != size:
        found = (size, _make_table(tokenizer))
        _tables[tokenizer] = found
    return found[1]


def _make_table(tokenizer: Any) -> WordTable | None:
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in spec["added_tokens"]}
    vocab = tokenizer.get_vocab()
    size = max(len(tokenizer), max(vocab.values(), default=-1) + 1)
    opens, first, last = np.zeros(size, dtype=bool), np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
    kind, mark = _marking(spec)
    read = _reader(kind, mark)
    if read is None:
        return None
    special = set(tokenizer.all_special_ids) | {number for number, token in added.items() if token["special"]}
    for token, number in vocab.items():
        if number in special:
            opens[number], first[number], last[number] = True, SPECIAL, SPECIAL
        elif number in added:  # its text stands as it is, whatever the rest of the vocabulary looks like
            begin, end = (character_class(token[0]), character_class(token[-1])) if token else (OTHER, OTHER)
            opens[number], first[number], last[number] = True, begin, LETTER if end == CONTINUES else end
        else:
            opens[number], first[number], last[number] = read(token)
    return WordTable(opens, first, last)


def _marking(spec: dict[str, Any]) -> tuple[str, str]:
    """Return how the vocabulary of a tokenizer.json marks words, with the mark: prefix, suffix, bytes, metaspace, words, or nothing."""
    model = spec["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece")
    around = json.dumps([spec["normalizer"], spec["pre_tokenizer"], spec["decoder"]])
    if kind == "WordLevel":
        return "words", ""
    if model.get("continuing_subword_prefix") and kind in ("WordPiece", "BPE"):
        return "prefix", model["continuing_subword_prefix"]
    if model.get("end_of_word_suffix"):
        return "suffix", model["end_of_word_suffix"]
    if '"ByteLevel"' in around:
        return "bytes", "Ġ"
    if '"Metaspace"' in around or "\\u2581" in around or kind == "Unigram":
        return "metaspace", "▁"
    return "nothing", ""


def _reader(kind: str, mark: str) -> Any:
    """Return the function token -> (opens, first, last) for a way of marking words."""
    if kind == "words":
        return lambda token: (True, CONTINUES, CONTINUES)
    if kind == "prefix":
        return lambda token: (not token.startswith(mark) or character_class(token[len(mark) :][:1]) == ALONE, CONTINUES, CONTINUES)
    if kind == "suffix":  # a word begins after a token that ends one
        return lambda token: (False, LETTER, SPACE if token.endswith(mark) else LETTER)
    return {"bytes": _read_byte_level, "metaspace": _read_metaspace}.get(kind)


class Surfaces:
    """Tells how tokens look in running text."""

    def __init__(self, tokenizer: Any) -> None:
        self.kind, self.mark = _marking(json.loads(tokenizer.backend_tokenizer.to_str()))
        self.tokenizer = tokenizer
        self.added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}

    @property
    def marks_spaces(self) -> bool:
        """Whether the space before a word is part of its first token."""
        return self.kind in ("bytes", "metaspace")

    def text(self, number: int) -> tuple[str, bool]:
        """Return a token's text without marks, and whether it is joined to what stands before it without a space."""
        token = self.added.get(number) or self.tokenizer.convert_ids_to_tokens(number) or ""
        if number in self.added:
            return token.strip() or token, False
        if self.kind == "prefix" and token.startswith(self.mark):
            return token[len(self.mark) :], True
        if self.kind == "suffix":
            return token.removesuffix(self.mark), False
        if self.kind == "bytes":
            if (read := byte_text(token)) is None:
                return token, False
            token = read
        elif self.kind == "metaspace":
            token = token.replace("\u2581", " ")
        else:
            return token, False
        return token[1:] if token.startswith(" ") and token != " " else token, not token.startswith(" ")


def byte_text(token: str) -> str | None:
    """Return the text of a token of a byte-level vocabulary; None where it is not made of byte characters."""
    try:
        return bytes(_BYTES[char] for char in token).decode(errors="replace")
    except KeyError:
        return None


def _read_metaspace(token: str) -> tuple[bool, int, int]:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        return _read_bytes(bytes([int(byte[1], 16)]))
    text = token.replace("\u2581", " ")
    return _read_text(text)


def _read_text(text: str) -> tuple[bool, int, int]:
    if text == " ":  # a space that no merge has joined to its word
        return True, SPACE, GLUE
    begin, end = character_class(text[:1]), character_class(text[-1:])
    return begin in (SPACE, ALONE), begin, LETTER if end == CONTINUES else end


def _read_byte_level(token: str) -> tuple[bool, int, int]:
    try:
        return _read_bytes(bytes(_BYTES[char] for char in token))
    except KeyError:  # not made of byte characters: a token added by hand
        return _read_text(token)


def _read_bytes(data: bytes) -> tuple[bool, int, int]:
    """Read a token that may begin or end inside a character."""
    if data == b" ":
        return True, SPACE, GLUE
    begin = _first_class(data)
    tail = len(data) - 1
    while tail > 0 and data[tail] & 0xC0 == 0x80:
        tail -= 1
    end = _first_class(data[tail:])
    return begin in (SPACE, ALONE), begin, LETTER if end == CONTINUES else end


def _first_class(data: bytes) -> int:
    if not data or data[0] & 0xC0 == 0x80:
        return CONTINUES
    lead = data[0]
    length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    try:
        return character_class(data[:length].decode())
    except UnicodeDecodeError:  # only the beginning of a character is here: its first byte tells the region of Unicode
        if lead in (0xC2, 0xE2, 0xEF) or lead >= 0xF0:
            return OTHER
        return ALONE if 0xE3 <= lead <= 0xE9 else LETTER


def character_class(char: str) -> int:
    """Return what kind of character this is, as words are cut."""
    if not char:
        return CONTINUES
    kind = unicodedata.category(char)
    if kind[0] == "M" or char in _JOINERS:
        return CONTINUES
    if char.isspace() or kind[0] == "Z":
        return SPACE
    if kind[0] == "L":
        return ALONE if any(low <= ord(char) <= high for low, high in _NO_SPACES) else LETTER
    return NUMBER if kind[0] == "N" else OTHER


def _byte_characters() -> dict[str, int]:
    """Return the printable character that byte-level tokenizers write for each byte, as character -> byte. Source: GPT-2."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in set(plain))})
    return table


_BYTES = _byte_characters()
