"""What is wrong with labelled data, or worth knowing of it: counted by kind, the first places of each named; nothing goes in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import DataError

Level = Literal["error", "dropped", "warning", "note"]
PLACES = 5  # of a kind that are named
NAMES = 20  # of labels that are named


@dataclass
class Finding:
    """One kind of finding. An `error` keeps an example from being used, and is `dropped` where that was asked for; a `warning` should be
    looked at; a `note` is for information.
    """

    level: Level
    code: str
    text: str
    count: int = 0
    places: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.places) and self.places else ""
        where = f" ({', '.join(self.places)}{more})" if self.places else ""
        return f"{self.level}: {self.counted}{where}"

    @property
    def counted(self) -> str:
        """What it says, and how often, without the places: these are of the user's files."""
        return f"{self.count:,} x {self.text}" if self.count else self.text


class Findings:
    """Findings by code, in the order in which they were first met."""

    def __init__(self) -> None:
        self.kinds: dict[str, Finding] = {}

    def add(self, level: Level, code: str, text: str, where: str | None = None, count: int = 1) -> None:
        """Count one more of a kind; `text` says what it is and what to do, `where` is file:line."""
        kind = self.kinds.setdefault(code, Finding(level, code, text))
        kind.count += count
        if where is not None and len(kind.places) < PLACES:
            kind.places.append(where)

    def absent(self, what: str, names: Sequence[str]) -> None:
        """Warn of labels that nothing is measured on; `what` says whose they are and where they are not."""
        if names:
            more = f" and {len(names) - NAMES:,} more" if len(names) > NAMES else ""
            text = f"{what}, so the numbers do not say how well it is found: {', '.join(names[:NAMES])}{more}"
            self.add("warning", "absent_label", text, count=len(names))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.kinds.values())

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of a level."""
        return [kind for kind in self if kind.level == level]

    def merge(self, other: Findings) -> None:
        """Take over the findings of other data."""
        for kind in other:
            mine = self.kinds.setdefault(kind.code, Finding(kind.level, kind.code, kind.text))
            mine.count += kind.count
            mine.places = [*mine.places, *kind.places][:PLACES]

    def refuse(self, on_bad: str) -> None:
        """Raise DataError where there are errors, unless they are to be dropped (`on_bad` = "drop"): then they are counted, and told."""
        wrong = self.of("error")
        if on_bad == "drop":
            for kind in wrong:
                kind.level = "dropped"
        elif wrong:
            raise DataError(
                "the data cannot be used as it is:\n"
                + "\n".join(f"  {kind}" for kind in wrong)
                + "\nmend these, or leave them out with --on-bad drop (data.on_bad): they are then counted in the report"
            )

    def to_list(self) -> list[dict[str, Any]]:
        """Return the findings as JSON holds them."""
        return [vars(kind) for kind in self]
