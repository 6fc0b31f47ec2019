"""Texts with entities written as CoNLL has them: a word and its tags a line, in any scheme, a blank line after each text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError, DataError
from .ner_data import of_words, words_of
from .ner_tags import SCHEMES, Scheme, Span, tags_of


def conll(line: Mapping[str, Any], scheme: Scheme = "bio") -> str:
    """Return a line of predictions.jsonl in columns, parted by tabs: the word, the right tag where it is known, the predicted tag.

    Raises: DataError for what columns cannot say: a word that holds a tab or a line's end, or none; two entities in one word.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme = {scheme!r}; allowed: {', '.join(SCHEMES)}")
    where = line.get("id") or "a text"
    if "error" in line:
        raise DataError(f"{where}: {line['error']}")
    words = of_words(line["tokens"]).words if "tokens" in line else words_of(line["text"])
    columns = [[line["text"][start:stop] for start, stop in words]]
    wrong = next((word for word in columns[0] if not word or any(mark in word for mark in "\t\r\n")), None)
    if wrong is not None:
        raise DataError(f"{where}: the word {wrong!r} cannot stand in a column; write JSON lines instead")
    for name in ("gold", "entities"):
        if name in line:
            spans = [(one["start"], one["end"], one["label"]) for one in line[name]]
            columns.append(tags_of(in_words(words, spans, where), len(words), scheme))
    return "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)) + "\n"


def in_words(words: Sequence[tuple[int, int]], spans: Iterable[Span], where: str) -> list[Span]:
    """Return spans of characters as spans of the words that they touch.

    Raises: DataError where two touch one word.
    """
    found: list[Span] = []
    for start, stop, kind in sorted(spans):
        touched = [number for number, (low, high) in enumerate(words) if low < stop and start < high]
        if touched:
            if found and touched[0] < found[-1][1]:
                raise DataError(f"{where}: two entities are in one word, {words[touched[0]]}, which has one tag; write JSON lines instead")
            found.append((touched[0], touched[-1] + 1, kind))
    return found
