"""What comes back from filling masks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

_BEFORE, _AFTER = re.compile(r"[^\W_]*\Z"), re.compile(r"[^\W_]*")


def whole_word(text: str, start: int, stop: int) -> str:
    """Return the characters from `start` to `stop`, with the letters and digits that touch them on either side."""
    # looking is quicker than searching, and most touch none
    begins = text[start : start + 1].isalnum() and text[start - 1 : start].isalnum()
    ends = text[stop - 1 : stop].isalnum() and text[stop : stop + 1].isalnum()
    before = _BEFORE.search(text[max(0, start - 64) : start]) if begins else None
    after = _AFTER.match(text[stop : stop + 64]) if ends else None
    return (before[0] if before else "") + text[start:stop] + (after[0] if after else "")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may stand at a mask: its text, its id, its probability, and the text with the mask filled (other masks stay).

    `start` is where in `sequence` it begins; `joined` is True where it goes on with what precedes it, without a space. `word` is the whole
    word that it is, or is part of; `token_ids` are its pieces (`token_id` the first), and `log_prob` (natural) is that of all of them:
    `score` is its exponential, or, renormalised, the share among the targets. `error` says why a target has no score (NaN).
    """

    token: str
    token_id: int
    score: float
    sequence: str
    start: int
    joined: bool = False
    word: str = ""
    log_prob: float = math.nan
    token_ids: tuple[int, ...] = ()
    error: str | None = None

    @property
    def num_pieces(self) -> int:
        """How many tokens it is."""
        return len(self.token_ids)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, in which there is no NaN."""
        return _plain(self)


@dataclass(frozen=True, slots=True)
class Combination:
    """What may stand at all masks of a text together, in their order; `score` is the probability of all of it, `sequence` the whole text.

    `starts` says where in `sequence` each token begins (in its part, of a pair).
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    score: float
    log_prob: float
    sequence: str
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with, for each of its masks, the candidates in order of their probability; `error` says why there are none.

    `joint` are the best fillings of several masks together. `truncated` is True where the model saw a window around each mask only,
    because the text has more tokens than it has positions. `pair` is the second text of a pair.
    """

    text: str
    masks: tuple[tuple[Candidate, ...], ...] = ()
    truncated: bool = False
    error: str | None = None
    joint: tuple[Combination, ...] = field(default=())
    pair: str | None = None

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, mask: int) -> tuple[Candidate, ...]:
        return self.masks[mask]

    def __iter__(self) -> Iterator[tuple[Candidate, ...]]:
        return iter(self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Return what `unmask fill --json` prints."""
        made: dict[str, Any] = {"text": self.text}
        if self.pair is not None:
            made["pair"] = self.pair
        if self.error is not None:
            return made | {"error": self.error}
        made |= {"truncated": self.truncated, "masks": [[candidate.to_dict() for candidate in mask] for mask in self.masks]}
        if self.joint:
            made["joint"] = [_plain(combination) for combination in self.joint]
        return made


def _plain(made: Candidate | Combination) -> dict[str, Any]:
    values = {name.name: getattr(made, name.name) for name in fields(made)}
    for key, value in values.items():
        if isinstance(value, tuple):
            values[key] = list(value)
        elif isinstance(value, float) and math.isnan(value):
            values[key] = None
    return values
