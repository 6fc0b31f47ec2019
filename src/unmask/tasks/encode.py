"""Texts and pairs of texts as segments of tokens: what a tokenizer puts around them, windows of long ones, rows that carry labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ..data.examples import Examples
from ..data.tokenizer import frame
from ..errors import ConfigError

CHUNK = 1024  # texts tokenized at a time

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segment:
    """A sequence for the model, of the example of that number: its ids, special ones included, and at which places it carries labels."""

    example: int
    ids: Sequence[int]
    rows: Sequence[int]
    labels: Any = None  # one a row; None where nothing is known
    types: Sequence[int] | None = None


def gather(segments: Iterable[Segment], names: Sequence[str]) -> Examples:
    """Return segments as Examples; those of an example lie together, and examples come in their order. `names` has one an example."""
    ids: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    types: list[np.ndarray | None] = []
    example: list[int] = []
    start = 0
    for segment in segments:
        ids.append(np.asarray(segment.ids, np.int32))
        rows.append(np.asarray(segment.rows, np.int64) + start)
        if len(segment.rows):
            labels.append(np.zeros(len(segment.rows), np.int8) if segment.labels is None else np.asarray(segment.labels))
        types.append(None if segment.types is None else np.asarray(segment.types, np.int8))
        example.append(segment.example)
        start += len(ids[-1])
    typed = any(part is not None and part.any() for part in types)
    parts = zip(types, ids, strict=True)
    return Examples(
        input_ids=np.concatenate(ids) if ids else np.zeros(0, np.int32),
        bounds=np.cumsum([0, *map(len, ids)]),
        example=np.array(example, np.int64),
        label_positions=np.concatenate(rows) if rows else np.zeros(0, np.int64),
        labels=np.concatenate(labels) if labels else np.zeros(0, np.int64),
        names=names,
        token_type_ids=np.concatenate([np.zeros(len(b), np.int8) if a is None else a for a, b in parts]) if typed else None,
    )


def tokenize(tokenizer: Any, texts: Iterable[str], *, offsets: bool = False) -> list[Any]:
    """Return for each text its token ids, without special ones; with `offsets` the whole Encoding of the tokenizers library."""
    found: list[Any] = []
    for chunk in chunks(texts, CHUNK):
        clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in chunk]  # half a surrogate pair is no text
        encodings = tokenizer.backend_tokenizer.encode_batch(clean, add_special_tokens=False)
        found += encodings if offsets else [encoding.ids for encoding in encodings]
    return found


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in lists of a size, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class Frame:
    """What a tokenizer puts around a text, and around and between two: `one` and `two` make sequences of token ids for the model."""

    def __init__(self, tokenizer: Any) -> None:
        self.before, self.after = frame(tokenizer)
        encoding = tokenizer.backend_tokenizer.encode("a", "a", add_special_tokens=True)
        places = [[place for place, number in enumerate(encoding.sequence_ids) if number == which] for which in (0, 1)]
        if all(places):
            (a, b), (c, d) = ((part[0], part[-1] + 1) for part in places)
            self.parts = encoding.ids[:a], encoding.ids[b:c], encoding.ids[d:]
            kinds = encoding.type_ids
            self.kinds = kinds[:a], kinds[a], kinds[b:c], kinds[c], kinds[d:]
        else:  # it makes nothing of a letter
            self.parts = self.before, self.after, self.after
            self.kinds = [0] * len(self.before), 0, [0] * len(self.after), 1, [1] * len(self.after)
        self.num_special = len(self.before) + len(self.after)
        self.num_special_pair = sum(map(len, self.parts))

    def one(self, ids: Sequence[int]) -> list[int]:
        """Return a text's ids between its special ones."""
        return [*self.before, *ids, *self.after]

    def two(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the ids of two texts with the special ones, and the type of each token."""
        before, between, after = self.parts
        kinds = self.kinds
        types = [*kinds[0], *[kinds[1]] * len(first), *kinds[2], *[kinds[3]] * len(second), *kinds[4]]
        return [*before, *first, *between, *second, *after], types

    @property
    def first_start(self) -> int:
        """The place of the first text's first token in what `two` returns."""
        return len(self.parts[0])

    def second_start(self, num_first: int) -> int:
        """Return the place of the second text's first token in what `two` returns."""
        return len(self.parts[0]) + num_first + len(self.parts[1])


def room(max_length: int, num_special: int) -> int:
    """Return how many tokens of text a window holds.

    Raises: ConfigError where there is none.
    """
    if max_length <= num_special:
        raise ConfigError(f"max_length = {max_length} leaves no room beside {num_special} special tokens; raise it")
    return max_length - num_special


def cuts(length: int, capacity: int) -> list[tuple[int, int]]:
    """Return (start, stop) of as few windows as hold at most `capacity` tokens each, of equal length but for one; one for no tokens."""
    count = max(1, -(-length // capacity))
    return [(number * length // count, (number + 1) * length // count) for number in range(count)]
