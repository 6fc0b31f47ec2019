"""Texts with entities, from columns as CoNLL has them and from JSON lines; what is wrong with them is counted, never passed over."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import files
from ..data.rows import read_rows
from ..data.text import expand, suffix_format
from ..data.text import read as read_texts
from ..data.words import _NO_SPACES
from ..errors import DataError
from .classify_data import IDS
from .findings import Findings
from .ner_tags import Span, as_bio, chunks, legal, parse, scheme_of

if TYPE_CHECKING:
    from .recipe import TaskData

FORMATS = ("conll", "jsonl", "spans")
TOKENS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "labels", "ner")
SPANS, KINDS = ("spans", "entities", "label", "labels"), ("label", "type", "entity", "tag", "entity_group")
SEPARATORS: tuple[str, ...] = ("\t", " +", ",", ";", r"\|")
STRANGE = re.compile(r"[^\W\d_][-_].")  # X-PER, b-per
LOOK = 1000  # lines by which the separator of columns is known
_ALONE = "".join(f"{chr(low)}-{chr(high)}" for low, high in _NO_SPACES)
# a run of letters and digits with their marks; a letter of a script without spaces with its marks; any other character with those on it
WORD = re.compile(
    rf"[{_ALONE}][\u0300-\u036f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*|(?:(?![{_ALONE}])[\w\u0300-\u036f\u200c\u200d])+|[^\w\s][\u0300-\u036f\ufe0f\u200d]*"
)


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A text, where its words stand, and its entities, all in characters; None where entities are not known.

    `given`: the words are those of the file; its text is these with spaces between.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    entities: tuple[Span, ...] | None = None
    id: str = ""
    where: str = ""
    given: bool = False


def words_of(text: str) -> tuple[tuple[int, int], ...]:
    """Return where the words of a text stand: runs of letters and digits, everything else alone."""
    return tuple(match.span() for match in WORD.finditer(text))


def of_words(words: Sequence[str], spans: Iterable[Span] | None = None, *, id: str = "", where: str = "") -> TaggedText:
    """Return words as a text, with entities that are spans of words."""
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    found = None if spans is None else tuple((places[start][0], places[stop - 1][1], kind) for start, stop, kind in spans)
    return TaggedText(" ".join(words), tuple(places), found, id, where, True)


def read_tagged(
    sources: Sequence[str] | str, data: TaskData, *, names: Sequence[str] | None = None, labelled: bool = True
) -> tuple[list[TaggedText], Findings]:
    """Return the texts of files that can be used, and what is wrong with the others; `names` are those of tags that stand as numbers.

    Raises: DataError for files that cannot be read.
    """
    if data.format is not None and labelled and data.format not in FORMATS:
        raise DataError(f"format = {data.format!r}; texts with entities are read as {', '.join(FORMATS)}")
    findings, items = Findings(), []
    for source in expand(sources, format=data.format):
        kind = data.format or {"jsonl": "jsonl", "csv": "csv", "md": "txt", "rst": "txt"}.get(suffix_format(source.path) or "", "conll")
        if not labelled and data.format is None and suffix_format(source.path) == "txt":
            kind = "txt"
        if kind == "conll":
            items += _tagged(_conll(source.path, data, findings, labelled=labelled), findings, labelled=labelled)
        elif kind in ("jsonl", "spans") or (kind == "csv" and not labelled):
            items += _rows(source.path, data, findings, names, "csv" if kind == "csv" else "jsonl", labelled=labelled)
        elif not labelled:
            found = read_texts([source.path], format=data.format, text_column=data.text_column or "text", encoding=data.encoding)
            items += [TaggedText(one.text, words_of(one.text), None, one.id, one.id) for one in found]
        else:
            raise DataError(f"{source.path}: entities are read from columns (--format conll) or JSON lines (--format jsonl), not {kind}")
    return items, findings


Sentence = tuple[str, str, list[str], list[str] | None]  # id, where, words, tags


def _conll(path: str, data: TaskData, findings: Findings, *, labelled: bool) -> list[Sentence]:
    lines = list(files.lines(files.decode(path, data.encoding), path))
    full = [line for _, line in lines if line.strip() and not line.startswith("-DOCSTART-")]
    # a line that begins with '#' may be a comment, or a word: the others say how many columns there are
    split, width = _columns([line for line in full if not line.startswith("#")][:LOOK] or full)
    if width < 2 and labelled:
        raise DataError(f"{path}: there is one column, where words and tags are wanted; part them by a tab, spaces, ',', ';' or '|'")
    token, tag = (_column(path, name, width, flag, usual) for name, flag, usual in (
        (data.text_column, "--text-column", 0), (data.label_column, "--label-column", width - 1)))  # fmt: skip
    found: list[Sentence] = []
    block: list[list[str]] = []
    first = bad = 0
    for number, line in [*lines, (len(lines) + 1, "")]:
        start = line.startswith("-DOCSTART-")
        if not line.strip() or start:
            if start:
                findings.add("note", "docstart", "line -DOCSTART- begins a document; it is no word")
            if block and bad:
                findings.add(
                    "error", "columns", f"line has not {width} columns, as the others have; its sentence cannot be used", f"{path}:{bad}"
                )
            elif block:
                tags = None if width < 2 else [parts[tag] for parts in block]
                found.append((f"{Path(path).name}:{first}", f"{path}:{first}", [parts[token] for parts in block], tags))
            block, bad = [], 0
            continue
        parts = split(line)
        if line.startswith("#") and len(parts) != width:
            findings.add("note", "comment", "line that begins with '#' is a comment")
            continue
        first = first if block else number
        bad = bad or (number if len(parts) != width else 0)
        block.append(parts)
    return found


def _columns(lines: Sequence[str]) -> tuple[Callable[[str], list[str]], int]:
    """Return what splits a line into columns, and how many there are: the first separator that gives (nearly) all lines as many."""
    for mark in SEPARATORS:
        counts = [len(re.split(mark, line)) for line in lines]
        width = max(set(counts), key=counts.count, default=1)
        if width > 1 and counts.count(width) >= 0.9 * len(counts):
            return re.compile(mark).split, width
    return re.compile("\t").split, 1


def _column(path: str, name: str | None, width: int, flag: str, usual: int) -> int:
    if name is None:
        return usual
    if not name.isdigit() or int(name) >= width:
        raise DataError(f"{path}: {flag} {name}: columns of this format are numbers from 0 to {width - 1}")
    return int(name)


def _rows(path: str, data: TaskData, findings: Findings, names: Sequence[str] | None, kind: str, *, labelled: bool) -> list[TaggedText]:
    sentences: list[Sentence] = []
    items: list[TaggedText] = []
    for row in read_rows([path], format=kind, encoding=data.encoding):
        has, where = row.values, row.where
        name = next((str(has[key]) for key in IDS if has.get(key) is not None), where)
        text_key = data.text_column or ("text" if isinstance(has.get("text"), str) else None)
        token_key = next((key for key in TOKENS if isinstance(has.get(key), list)), None)
        if text_key is not None and isinstance(has.get(text_key), list):
            token_key, text_key = text_key, None
        span_key = data.label_column or next((key for key in SPANS if isinstance(has.get(key), list)), None)
        if text_key is not None and (not labelled or span_key is not None or token_key is None):
            items += _spans(has, text_key, span_key, name, where, findings, labelled=labelled)
            continue
        tag_key = data.label_column or next((key for key in TAGS if key in has), None)
        if token_key is None or (labelled and (tag_key is None or data.format == "spans")):
            raise DataError(
                f"{where}: a row has text and spans, or tokens and tags; its keys are: {', '.join(has)} (--text-column, --label-column)"
            )
        words, tags = has[token_key], has.get(tag_key) if tag_key is not None else None
        if not all(isinstance(word, str) for word in words) or not words:
            findings.add("error", "no_words", "tokens are not a list of words", where)
        elif labelled and (not isinstance(tags, list) or len(tags) != len(words)):
            findings.add("error", "tag_count", "tokens and tags differ in their number", where)
        elif not labelled:
            items.append(of_words(words, id=name, where=where))
        elif any(isinstance(tag, int) for tag in tags or ()):
            if names is None:
                raise DataError(f"{where}: tags are numbers; name them in a file, one a line: -s options.label_names=FILE")
            findings.add("note", "numbers", f"tags are numbers: 0 is {names[0]}, {len(names) - 1} is {names[-1]}", count=0)
            if all(isinstance(tag, int) and 0 <= tag < len(names) for tag in tags or ()):
                sentences.append((name, where, words, [names[tag] for tag in tags or ()]))
            else:
                findings.add("error", "no_such_number", f"tag is not a number from 0 to {len(names) - 1}, as label_names asks for", where)
        else:
            sentences.append((name, where, words, ["" if tag is None else str(tag) for tag in tags or ()]))
    return [*items, *_tagged(sentences, findings, labelled=labelled)]


def _tagged(sentences: Sequence[Sentence], findings: Findings, *, labelled: bool) -> list[TaggedText]:
    """Return sentences as texts; their tags are of one scheme, and where they break its rules they are read as conlleval reads them."""
    if not labelled and any(tags is None for *_, tags in sentences):
        return [of_words(words, id=name, where=where) for name, where, words, _ in sentences]
    scheme = scheme_of(tags or () for *_, tags in sentences)
    if sentences:
        findings.add("note", f"scheme:{scheme}", f"tags are in the scheme {scheme.upper()}", count=0)
    items = []
    for name, where, words, tags in sentences:
        # where types stand alone, a letter that is no scheme's would become a part of them
        pairs = [None if scheme == "io" and STRANGE.match(tag) else parse(tag, bare=scheme == "io") for tag in tags or ()]
        known = [pair for pair in pairs if pair is not None]
        if len(known) < len(pairs):
            wrong = next(tag for tag, pair in zip(tags or (), pairs, strict=True) if pair is None)
            if labelled:
                text = "tag is none of O, B-TYPE, I-TYPE (E-, S-, L-, U- too), nor a type alone"
                findings.add("error", "unknown_tag", text, f"{where}: {wrong!r}")
            else:
                items.append(of_words(words, id=name, where=where))
            continue
        steps = zip([("O", ""), *known], [*known, ("O", "")], strict=True)
        broken = sum(not legal(one, two, scheme) for one, two in steps)
        if broken:
            findings.add(
                "warning", "illegal", f"tag cannot stand where it does in {scheme.upper()}; read as conlleval reads it", where, broken
            )
        if not all(word.strip() for word in words):
            findings.add("warning", "empty_word", "word is empty: a model cannot see it", where, sum(not word.strip() for word in words))
        items.append(of_words(words, chunks(as_bio(known)), id=name, where=where))
    return items


def _spans(
    has: dict[str, Any], text_key: str, span_key: str | None, name: str, where: str, findings: Findings, *, labelled: bool
) -> list[TaggedText]:
    text, given = has.get(text_key), has.get(span_key) if span_key is not None else None
    if not isinstance(text, str) or not text.strip():
        findings.add("error", "empty_text", "the text is empty, or none", where)
        return []
    if not labelled and not isinstance(given, list):
        return [TaggedText(text, words_of(text), None, name, where)]
    if not isinstance(given, list):
        findings.add("error", "no_spans", "there is no list of spans (an empty one says that there are no entities)", where)
        return []
    words, found = words_of(text), []
    begins, stops = {start for start, _ in words}, {stop for _, stop in words}
    for span in given:
        if isinstance(span, dict):
            span = [span.get("start"), span.get("end"), next((span[key] for key in KINDS if span.get(key)), None)]
        if not isinstance(span, list) or len(span) != 3 or not all(type(one) is int for one in span[:2]) or not isinstance(span[2], str):
            findings.add("error", "bad_span", "span is not start, end (in characters) and a label", where)
            return []
        start, stop, kind = span
        if not 0 <= start < stop <= len(text):
            findings.add("error", "span_outside", "span is empty, or outside of its text", f"{where}: {start} to {stop} of {len(text)}")
            return []
        inside = text[start:stop]
        if inside != inside.strip():
            findings.add("warning", "span_space", "span begins or ends with a space; the spaces are left out of it", where)
            start, stop = start + len(inside) - len(inside.lstrip()), stop - len(inside) + len(inside.rstrip())
        if start >= stop:
            findings.add("error", "span_outside", "span is empty, or outside of its text", where)
            return []
        if start not in begins or stop not in stops:
            findings.add("warning", "misaligned", "span begins or ends inside a word: all of the word is learnt, the span cannot be found",
                         f"{where}: {text[start:stop]!r}")  # fmt: skip
        found.append((start, stop, kind))
    if len(set(found)) < len(found):
        findings.add("warning", "span_twice", "span stands twice in its text; taken once", where, len(found) - len(set(found)))
    found = sorted(set(found))
    if any(two[0] < one[1] for one, two in itertools.pairwise(found)):
        findings.add("error", "overlap", "spans overlap, which tags cannot say; keep one of them", where)
        return []
    return [TaggedText(text, words, tuple(found), name, where)]
