"""Labelled texts for classification, from whatever columns they stand in; what is wrong with them is counted, never passed over."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.clean import content_hash
from ..data.rows import Row, read_rows
from ..data.text import no_column
from ..errors import DataError
from .findings import Findings

if TYPE_CHECKING:
    from .recipe import TaskData

TEXTS = ("text", "sentence", "content", "document", "review", "utterance", "comment", "title")
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text", "text_pair"), ("text1", "text2"),
         ("text_a", "text_b"), ("question", "sentence"), ("query", "passage"))  # fmt: skip
LABELS = ("label", "labels", "category", "intent", "class", "target", "sentiment", "emotion", "score", "gold_label")
IDS = ("id", "idx", "guid")
NOTHING = {"", "nan", "<na>"}  # what files write for a label that is not there


@dataclass(frozen=True, slots=True)
class TextItem:
    """A text, or a pair of texts, with its labels as the file has them; None where none is known."""

    text: str
    pair: str | None = None
    label: tuple[str, ...] | None = None
    id: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what."""

    text: str
    label: str | None
    pair: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        parts = {"text": self.text, "pair": self.pair, "label": self.label, "id": self.id}
        return ", ".join(f"{role} in column '{name}'" for role, name in parts.items() if name is not None)


def read_items(sources: Sequence[str | Path] | str | Path, data: TaskData, *, labelled: bool = True) -> tuple[list[TextItem], Findings]:
    """Return the items of files that can be used, and what is wrong with the others.

    Raises: DataError for files that cannot be read, or whose columns cannot be found.
    """
    findings = Findings()
    given = [name for name in (data.text_column, data.label_column, data.pair_column) if name is not None]
    known = {*given, *TEXTS, *LABELS, *IDS, *(name for pair in PAIRS for name in pair)}
    rows = read_rows(sources, format=data.format, encoding=data.encoding, known=known)
    items: list[TextItem] = []
    kinds: dict[str, set[str]] = {}
    columns: dict[str, Columns] = {}
    for row in rows:
        path = row.where.rpartition(":")[0]
        if path not in columns:
            columns[path] = find_columns(row, data, labelled=labelled)
            findings.add("note", f"columns:{columns[path]}", f"read: {columns[path]}", count=0)
        item = _item(row, columns[path], findings, kinds, labelled=labelled)
        if item is not None:
            items.append(item)
    mixed = sorted(label for label, seen in kinds.items() if len(seen) > 1)
    for label in mixed:
        findings.add("warning", "mixed_labels", "label stands both as text and as a number (or truth value); taken as one", repr(label))
    return items, findings


def find_columns(row: Row, data: TaskData, *, labelled: bool) -> Columns:
    """Return the columns of a file from the names in a row of it: those that were given, or those with a usual name.

    Raises: DataError that names the columns there are.
    """
    has = row.values
    path = row.where.rpartition(":")[0]
    for name, flag in ((data.text_column, "--text-column"), (data.label_column, "--label-column"), (data.pair_column, "--pair-column")):
        if name is not None and name not in has and (labelled or flag != "--label-column"):
            raise no_column(path, name, has, flag)
    text, pair = data.text_column, data.pair_column
    label = data.label_column or next((name for name in LABELS if name in has), None)
    if text is None and pair is None:
        text, pair = next((names for names in PAIRS if names[0] in has and names[1] in has), (None, None))
    bare = all(name.isdigit() for name in has)
    if bare:
        text = text or "0"
        label = label or ("1" if "1" in has and pair != "1" else None)
    text = text or next((name for name in TEXTS if name in has), None)
    if text is None:
        raise DataError(f"{path}: which column holds the text? The columns are: {', '.join(has)}; choose with --text-column")
    if label is None and labelled:
        raise DataError(f"{path}: which column holds the label? The columns are: {', '.join(has)}; choose with --label-column")
    if label is not None and label not in has:
        label = None
    return Columns(text, label, pair, next((name for name in (*IDS, *(["2"] if bare else [])) if name in has and name != pair), None))


def _item(row: Row, columns: Columns, findings: Findings, kinds: dict[str, set[str]], *, labelled: bool) -> TextItem | None:
    texts = []
    for column in (columns.text, columns.pair):
        if column is None:
            continue
        value = row.values.get(column)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
            findings.add("warning", "number_text", "text is a number; read as text", row.where)
            value = str(value)
        if value is not None and not isinstance(value, str):
            findings.add("error", "not_text", "text is neither a string nor a number", row.where)
            return None
        if not value or value.isspace():
            findings.add("error", "empty_text", "the text is empty", row.where)
            return None
        texts.append(value)
    label: tuple[str, ...] | None = None
    if columns.label is not None:
        raw = row.values.get(columns.label)
        label = _labels(raw, row.where, findings, kinds)
        if label is None and labelled:
            return None
    name = row.values.get(columns.id) if columns.id is not None else None
    return TextItem(texts[0], texts[1] if len(texts) > 1 else None, label, row.where if name is None else str(name), row.where)


def _labels(raw: Any, where: str, findings: Findings, kinds: dict[str, set[str]]) -> tuple[str, ...] | None:
    """Return the labels of a row as text, None (and a finding) where there are none."""
    several = isinstance(raw, (list, tuple))
    found = []
    for value in raw if several else [raw]:
        text = label_text(value)
        if text is None:
            findings.add("error", "no_label", "there is no label (empty, null or NaN)", where)
            return None
        kinds.setdefault(text, set()).add("text" if isinstance(value, str) else "number")
        found.append(text)
    if several and not found:
        return ("",)  # an empty list: a text of which no label holds
    return tuple(dict.fromkeys(found))


def label_text(value: Any) -> str | None:
    """Return a label as text: 1, 1.0 and "1" are one label; None for what is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or isinstance(value, (dict, list)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value).strip()
    return None if text.lower() in NOTHING else text


def read_names(path: str | Path) -> list[str]:
    """Return the names of labels, one a line."""
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the labels' names cannot be read from '{path}': {error}; name a text file with one a line") from None
    if len(set(names)) < len(names):
        raise DataError(f"'{path}' has a name twice; every label has a name of its own")
    return names


# what the labels are


def problem_of(labels: Iterable[tuple[str, ...]], separator: str | None = None) -> tuple[str, str | None]:
    """Return what a file's labels ask for, "single", "multi" or "regression", and what parts several labels in one field."""
    found = list(labels)
    if separator is not None or any(len(label) != 1 or label == ("",) for label in found):
        return "multi", separator
    counts = Counter(label[0] for label in found)
    if all(number(text) is not None for text in counts) and any("." in text or "e" in text.lower() for text in counts):
        return "regression", None
    # "4,27": only where every part is a label by itself elsewhere, so that a name with a comma in it stays whole
    for mark in (",", "|", ";"):
        joined = [text for text in counts if mark in text]
        if joined and all(part.strip() in counts for text in joined for part in text.split(mark)):
            return "multi", mark
    return "single", None


def number(text: str) -> float | None:
    """Return a label as a finite number, None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def parted(items: Iterable[TextItem], separator: str | None) -> list[TextItem]:
    """Return items with labels that stand in one field taken apart, and without the empty one that says that none holds."""
    return [item if item.label is None else replace(item, label=apart(item.label, separator)) for item in items]


def named(items: Iterable[TextItem], names: Sequence[str], findings: Findings) -> list[TextItem]:
    """Return items whose labels, numbers from 0, have got their names; one with another label is left out, and a finding."""
    known = {str(place): name for place, name in enumerate(names)}
    found = []
    for item in items:
        if set(item.label or ()) <= known.keys():
            found.append(replace(item, label=None if item.label is None else tuple(known[label] for label in item.label)))
        else:
            text = f"label is not a number from 0 to {len(names) - 1}, as label_names asks for"
            findings.add("error", "no_such_number", text, item.where)
    return found


def apart(label: tuple[str, ...], separator: str | None) -> tuple[str, ...]:
    """Return labels taken apart at a separator."""
    parts = (part.strip() for text in label for part in (text.split(separator) if separator else [text]))
    return tuple(dict.fromkeys(part for part in parts if part))


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels in order: numbers by their size, anything else by the alphabet."""
    found = sorted(set(labels))
    return sorted(found, key=lambda text: number(text) or 0.0) if all(number(text) is not None for text in found) else found


# what is wrong between them


def check(train: Sequence[TextItem], dev: Sequence[TextItem], findings: Findings, *, given_dev: bool, numbers: bool = False) -> None:
    """Add to the findings what is wrong with items as a whole: duplicates, conflicts, leakage, rare labels (unless they are `numbers`)."""
    seen: dict[int, TextItem] = {}
    for item in train:
        key = key_of(item)
        before = seen.setdefault(key, item)
        if before is not item:
            if before.label == item.label:
                findings.add("warning", "duplicate", "text stands in the training data more than once", item.where)
            else:
                findings.add("warning", "conflict", "text stands in the training data with different labels", item.where)
    for item in dev:
        if key_of(item) in seen:
            findings.add("warning", "leak", "text of the held-out data stands in the training data too", item.where)
    if numbers:
        return
    counts = Counter(label for item in train for label in item.label or ())
    for label, count in sorted(counts.items(), key=lambda pair: pair[1]):
        if count < 5:
            findings.add("warning", "rare_label", "label has fewer than 5 training examples", f"{label!r}: {count}")
    there = {label for item in dev for label in item.label or ()}
    if dev:
        lost = [f"{label!r} ({count:,} to train on)" for label, count in counts.most_common() if label not in there]
        findings.absent("label of the training data stands in no held-out example", lost)
    if not given_dev:
        for label in sorted(there - counts.keys()):
            findings.add("warning", "untrained_label", "label is in the held-out part alone; give dev files, or more examples", repr(label))


def key_of(item: TextItem) -> int:
    """Return a hash of what an item says."""
    return content_hash(f"{' '.join(item.text.split())}\x1f{' '.join((item.pair or '').split())}")


def balance(items: Sequence[TextItem]) -> dict[str, int]:
    """Return how many items have each label, the most frequent first."""
    return dict(Counter(label for item in items for label in item.label or ()).most_common())


def balanced_weights(counts: Mapping[str, int]) -> dict[str, float]:
    """Return the weight of each label by which all count alike: examples / (labels * examples of the label), as scikit-learn has it."""
    total = sum(counts.values())
    return {label: total / (len(counts) * count) for label, count in counts.items() if count}
