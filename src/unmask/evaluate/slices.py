"""Which masked tokens are alike: by frequency, word length, position, and the part of the corpus that they come from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .records import ACTIONS, Records
from .text import NO_VALUE

FREQUENCY = ((10, "below 10"), (100, "10 to 100"), (1000, "100 to 1,000"), (10_000, "1,000 to 10,000"), (np.inf, "10,000 and more"))
POSITION = ((32, "0 to 31"), (128, "32 to 127"), (512, "128 to 511"), (np.inf, "512 and more"))
PIECES = ((2, "1"), (3, "2"), (4, "3"), (np.inf, "4 and more"))
DIMENSIONS = {
    "frequency": "occurrences of the token in a million tokens",
    "word_pieces": "tokens of the word that the token belongs to",
    "word": "whole words, and pieces of longer ones",
    "position": "place of the token in its document, special tokens not counted",
    "action": "what stood in the token's place",
}


class Slices:
    """The slices of some records: `names` holds for each dimension its values, in the order in which they are shown."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.names: dict[str, list[str]] = {
            "frequency": [name for _, name in FREQUENCY],
            "word_pieces": [name for _, name in PIECES],
            "word": ["whole word", "first piece", "later piece"],
            "position": [name for _, name in POSITION],
            "action": list(ACTIONS),
        }
        self.field = records.info.get("slice_by")
        if self.field is not None:
            encoded = records.documents.column("slice").fill_null(NO_VALUE).combine_chunks().dictionary_encode()
            values = encoded.dictionary.to_pylist()
            order = np.argsort(np.array(values, dtype=object), kind="stable")
            self.codes = np.argsort(order)[encoded.indices.to_numpy(zero_copy_only=False)]
            self.names[self.field if self.field not in self.names else f"field {self.field}"] = [values[place] for place in order]

    @property
    def sizes(self) -> list[int]:
        """How many values each dimension has."""
        return [len(names) for names in self.names.values()]

    def of(self, rows: slice) -> Iterator[np.ndarray]:
        """Yield for each dimension the number of the slice that each of the rows belongs to."""
        records = self.records
        pieces = records.word_pieces[rows]
        yield _band(records.per_million[rows], FREQUENCY)
        yield _band(pieces, PIECES)
        yield np.where(pieces == 1, 0, np.where(records.word_start[rows], 1, 2))
        yield _band(records.position[rows], POSITION)
        yield records.action[rows].astype(np.int64)
        if self.field is not None:
            yield self.codes[records.document[rows]]


def _band(values: np.ndarray, bands: tuple[tuple[float, str], ...]) -> np.ndarray:
    return np.searchsorted(np.array([edge for edge, _ in bands[:-1]]), values, side="right")
