"""Tags of words and the entities that they say: BIO, IOB1, BIOES, BILOU and bare types, read, written, and made one of another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from ..errors import DataError

Span = tuple[int, int, str]  # first, the one after the last, type: of words or of characters
Scheme = Literal["bio", "iob1", "bioes", "bilou", "io"]
SCHEMES: tuple[Scheme, ...] = ("bio", "iob1", "bioes", "bilou", "io")
OUTSIDE = ("O", "")
_PREFIXED = re.compile(r"([BIESLU])[-_](.+)", re.DOTALL)

# (tag, next tag) between which an entity ends or begins by the rules of conlleval, if the types do not say it already
_ENDS = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")}
_BEGINS = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")}


def parse(tag: str, *, bare: bool = False) -> tuple[str, str] | None:
    """Return (letter, type) of a tag, BILOU's letters as those of BIOES; None for one that says nothing known.

    `bare`: tags are types without a letter, and neighbours of one type are one entity.
    """
    if tag == "O":
        return OUTSIDE
    found = None if bare else _PREFIXED.fullmatch(tag)
    if found is not None:
        return {"L": "E", "U": "S"}.get(found[1], found[1]), found[2]
    return ("I", tag) if bare and tag else None


def chunks(tags: Iterable[tuple[str, str]]) -> list[Span]:
    """Return the spans of (letter, type) pairs as conlleval sees them, whatever the sequence: after "O", I begins an entity as B does.

    Source: conlleval of CoNLL-2000 (version of 2004-01-26); its rules for the letters B, I, E, O and for any other are kept.
    """
    found: list[Span] = []
    begin: int | None = None
    before = OUTSIDE
    place = -1
    for place, now in enumerate(tags):
        if begin is not None and ends(before, now):
            found.append((begin, place, before[1]))
            begin = None
        if begins(before, now):
            begin = place
        before = now
    if begin is not None:
        found.append((begin, place + 1, before[1]))
    return found


def ends(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Return whether an entity that holds the first of two neighbours ends there."""
    return (before[0], now[0]) in _ENDS or (before[0] != "O" and before[1] != now[1])


def begins(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """Return whether an entity begins at the second of two neighbours."""
    return (before[0], now[0]) in _BEGINS or (now[0] != "O" and before[1] != now[1])


def as_bio(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of any scheme in the letters B and I alone: what follows an end, and what stands alone, begins anew."""
    found, closed = [], False
    for letter, kind in pairs:
        found.append((letter if letter in "BO" else "B" if letter == "S" or closed else "I", kind))
        closed = letter in "ES"
    return found


def spans_of(tags: Sequence[str], *, bare: bool = False) -> list[Span]:
    """Return the spans of words that tags of any scheme say.

    Raises: DataError for a tag that is none.
    """
    pairs = []
    for tag in tags:
        pair = parse(tag, bare=bare)
        if pair is None:
            raise DataError(f"{tag!r} is no tag; allowed: O, and B-TYPE, I-TYPE (E-, S-, L-, U- too)")
        pairs.append(pair)
    return chunks(as_bio(pairs))


def tags_of(spans: Iterable[Span], num_words: int, scheme: Scheme = "bio") -> list[str]:
    """Return the tags of words that say spans, which must not overlap.

    Raises: DataError for spans that overlap or reach outside.
    """
    tags = ["O"] * num_words
    before: Span = (0, 0, "")
    for span in sorted(spans):
        start, stop, kind = span
        if not before[1] <= start < stop <= num_words:
            raise DataError(
                f"the span {span} of {num_words} words is empty, reaches outside, or overlaps with {before}; tags cannot say it"
            )
        if scheme == "io":
            tags[start:stop] = [kind] * (stop - start)
        else:
            first, inside, last, alone = {"bioes": "BIES", "bilou": "BILU"}.get(scheme, "BIIB")  # type: ignore[str-unpack]
            if scheme == "iob1" and before[1:] != (start, kind):
                first = alone = "I"
            letters = alone if stop - start == 1 else first + inside * (stop - start - 2) + last
            tags[start:stop] = [f"{letter}-{kind}" for letter in letters]
        before = span
    return tags


def convert(tags: Sequence[str], scheme: Scheme, *, bare: bool = False) -> list[str]:
    """Return the tags of another scheme for the same entities (in "io" neighbours of one type become one)."""
    return tags_of(spans_of(tags, bare=bare), len(tags), scheme)


def legal(before: tuple[str, str], now: tuple[str, str], scheme: Scheme) -> bool:
    """Return whether one tag may follow another; (`O`, "") stands before the first and after the last."""
    (p, a), (n, b) = before, now
    if scheme == "io":
        return True
    if scheme == "iob1":
        return n != "B" or (p in "BI" and a == b)
    if scheme == "bio":
        return n != "I" or (p in "BI" and a == b)
    if p in "BI":
        return n in "IE" and a == b
    return n not in "IE"


def scheme_of(texts: Iterable[Sequence[str]]) -> Scheme:
    """Return in which scheme the tags of texts are: the one that allows what they hold, BIO where several do."""
    letters: set[str] = set()
    bare = later = False  # later: there is a B where IOB1 has none; none of this is asked of a text alone
    for tags in texts:
        before: tuple[str, str] = OUTSIDE
        for tag in tags:
            found = _PREFIXED.fullmatch(tag)
            bare |= found is None and tag != "O"
            pair = ("O", "") if found is None else (found[1], found[2])
            letters.add(pair[0])
            later |= not legal(before, pair, "iob1")
            before = pair
    if letters & set("LU"):
        return "bilou"
    if letters & set("ES"):
        return "bioes"
    if bare and letters <= {"O"}:
        return "io"
    return "iob1" if "I" in letters and not later else "bio"


def labels_of(types: Sequence[str], scheme: Scheme) -> list[str]:
    """Return the tags that a model of some types of entities has, "O" first."""
    letters = {"bio": "BI", "iob1": "IB", "bioes": "BIES", "bilou": "BILU", "io": ""}[scheme]
    return ["O", *([f"{letter}-{kind}" for kind in types for letter in letters] if letters else types)]
