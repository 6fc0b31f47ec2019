"""Questions with their contexts and answers: SQuAD 1.1 and 2.0, nested or in rows. An answer that is not where it should be is told."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import files
from ..data.clean import content_hash, mended
from ..data.rows import Row, read_rows
from ..data.text import expand, no_column, suffix_format
from ..errors import DataError
from .findings import Findings
from .qa_windows import borders

if TYPE_CHECKING:
    from .recipe import TaskData

QUESTIONS = ("question", "query", "question_text")
CONTEXTS = ("context", "contexts", "passage", "passages", "paragraph", "document", "documents", "text")
ANSWERS = ("answers", "answer", "answer_text", "gold_answer")
STARTS = ("answer_start", "answer_starts", "answer_offset")
NONE = ("is_impossible", "unanswerable")
IDS = ("id", "qid", "question_id", "idx")


@dataclass(frozen=True, slots=True)
class Gold:
    """An answer that is right: its text, and from which character of which context on it stands."""

    text: str
    start: int
    context: int = 0

    @property
    def end(self) -> int:
        """The character after its last one."""
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True)
class QuestionItem:
    """A question with one context or several, and its answers: none where the contexts hold none, None where that is not known."""

    question: str
    contexts: tuple[str, ...]
    answers: tuple[Gold, ...] | None = None
    id: str = ""
    where: str = ""


Written = tuple[Any, Any]  # an answer as a file has it: its text, and its offset or None


def read_items(sources: Sequence[str | Path] | str | Path, data: TaskData, *, labelled: bool = True) -> tuple[list[QuestionItem], Findings]:
    """Return the questions of files that can be used, and what is wrong with the others.

    A .json file is SQuAD's (articles of paragraphs of questions) or a list of rows; rows of it, of CSV, TSV or JSON lines have a column
    each for the question, the context (one text, or a list of several) and the answers.
    Raises: DataError for files that cannot be read, or whose columns cannot be found.
    """
    findings = Findings()
    items: list[QuestionItem] = []
    given = [name for name in (data.text_column, data.label_column, data.pair_column) if name is not None]
    known = {*given, *QUESTIONS, *CONTEXTS, *ANSWERS, *STARTS, *IDS, *NONE}
    for source in expand(sources, format=data.format):
        kind = data.format or suffix_format(source.path)
        if kind in ("json", "squad"):
            found = _json(source.path, data, findings, labelled)
        else:
            found = _rows(read_rows(source.path, format=data.format, encoding=data.encoding, known=known), data, findings, labelled)
        items += [item for item in found if item is not None]
    return items, findings


def _json(path: str, data: TaskData, findings: Findings, labelled: bool) -> Iterator[QuestionItem | None]:
    text = "".join(files.decode(path, data.encoding))
    try:
        root = files.parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); a file of one object a line is JSON lines: name it .jsonl") from None
    articles = root.get("data") if isinstance(root, Mapping) else root
    if not isinstance(articles, list) or not all(isinstance(one, Mapping) for one in articles):
        raise DataError(f'{path}: neither SQuAD\'s {{"data": [{{"paragraphs": [...]}}]}} nor a list of rows; see docs/tasks.md')
    if not articles:
        raise DataError(f"{path} holds no questions; name a file that does")
    if not any("paragraphs" in article for article in articles):
        rows = [Row(f"{path}:[{number}]", Path(path).name, dict(row)) for number, row in enumerate(articles)]
        yield from _rows(rows, data, findings, labelled)
        return
    findings.add("note", "squad", "read: SQuAD's articles, paragraphs and questions", count=0)
    for number, article in enumerate(articles):
        for place, paragraph in enumerate(_list(article, "paragraphs", f"{path}:data[{number}]")):
            where = f"{path}:data[{number}].paragraphs[{place}]"
            for order, asked in enumerate(_list(paragraph, "qas", where)):
                yield _nested(asked, paragraph.get("context"), f"{where}.qas[{order}]", findings, labelled)


def _list(value: Any, name: str, where: str) -> list[Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise DataError(f"{where}: there is no list of the name '{name}', as SQuAD's files have it")
    return found


def _nested(asked: Any, context: Any, where: str, findings: Findings, labelled: bool) -> QuestionItem | None:
    if not isinstance(asked, Mapping):
        raise DataError(f"{where}: a question is an object, not {str(asked)[:60]!r}")
    answers: list[Written] | None = None
    if asked.get("is_impossible") is True:  # its plausible answers are none
        answers = []
    elif isinstance(asked.get("answers"), list):
        answers = [(one.get("text"), one.get("answer_start")) if isinstance(one, Mapping) else (one, None) for one in asked["answers"]]
    name = asked.get("id")
    return make_item(asked.get("question"), context, answers, "" if name is None else str(name), where, findings, labelled)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what."""

    question: str
    context: str
    answers: str | None
    start: str | None
    none: str | None
    id: str | None

    def __str__(self) -> str:
        parts = {"question": self.question, "context": self.context, "answers": self.answers, "offset": self.start,
                 "no answer": self.none, "id": self.id}  # fmt: skip
        return ", ".join(f"{role} in column '{name}'" for role, name in parts.items() if name is not None)


def _rows(rows: Sequence[Row], data: TaskData, findings: Findings, labelled: bool) -> Iterator[QuestionItem | None]:
    columns: dict[str, Columns] = {}
    for row in rows:
        if row.file not in columns:
            columns[row.file] = find_columns(row, data, labelled=labelled)
            findings.add("note", f"columns:{columns[row.file]}", f"read: {columns[row.file]}", count=0)
        named, values = columns[row.file], row.values
        answers = None if named.answers is None else written(values.get(named.answers), values.get(named.start or ""))
        if named.none is not None and str(values.get(named.none)).strip().lower() in ("true", "1", "yes"):
            answers = []
        name = values.get(named.id) if named.id is not None else None
        where = row.where
        yield make_item(
            values.get(named.question), values.get(named.context), answers, "" if name is None else str(name), where, findings, labelled
        )


def find_columns(row: Row, data: TaskData, *, labelled: bool) -> Columns:
    """Return the columns of a file from the names in a row of it: those that were given, or those with a usual name.

    Raises: DataError that names the columns there are.
    """
    has, path = row.values, row.where.rpartition(":")[0]
    flags = ((data.pair_column, "--pair-column"), (data.text_column, "--text-column"), (data.label_column, "--label-column"))
    for name, flag in flags:
        if name is not None and name not in has and (labelled or flag != "--label-column"):
            raise no_column(path, name, has, flag)

    def usual(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in has), None)

    question, context = data.pair_column or usual(QUESTIONS), data.text_column or usual(CONTEXTS)
    answers = data.label_column if data.label_column in has else usual(ANSWERS)
    for role, found, flag in (("question", question, "--pair-column"), ("context", context, "--text-column"),
                              ("answers", answers, "--label-column")):  # fmt: skip
        if found is None and (labelled or role != "answers"):
            raise DataError(f"{path}: which column holds the {role}? The columns are: {', '.join(has)}; choose with {flag}")
    assert question is not None and context is not None
    return Columns(question, context, answers, usual(STARTS), usual(NONE), usual(IDS))


def written(value: Any, starts: Any) -> list[Written] | None:
    """Return the answers of a cell: a text, a list, {"text": [...], "answer_start": [...]}, or one of these as text; None for null."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value = _parsed(value)
    if value is None or value != value:
        return None
    if isinstance(value, Mapping):
        starts = value.get("answer_start", starts)
        value = value.get("text")
    if isinstance(value, (list, tuple)):
        if any(isinstance(one, Mapping) for one in value):
            return [(one.get("text"), one.get("answer_start")) if isinstance(one, Mapping) else (one, None) for one in value]
        offsets = _parsed(starts) if isinstance(starts, str) else starts
        if isinstance(offsets, (list, tuple)):  # of another number than the answers they are nobody's: `locate` says so
            return list(zip(value, offsets if len(offsets) == len(value) else [offsets] * len(value), strict=True))
        return [(text, None if len(value) > 1 else offsets) for text in value]
    return [(str(value), starts[0] if isinstance(starts, (list, tuple)) and starts else starts)]


def _parsed(text: str) -> Any:
    """Return what JSON, or Python's way to write lists and dicts, says; the text itself where it is neither."""
    readers: tuple[Callable[[str], Any], ...] = (files.parse_json, lambda text: mended(ast.literal_eval(text)))
    for reader in readers:
        try:
            found = reader(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # TypeError: a list as a key
            continue
        if isinstance(found, (list, dict)):
            return found
    return text


def make_item(
    question: Any, context: Any, answers: list[Written] | None, name: str, where: str, findings: Findings, labelled: bool
) -> QuestionItem | None:
    """Return a question as an item; None, and a finding, where it cannot be used."""
    contexts = tuple(context) if isinstance(context, (list, tuple)) else (context,)
    if not isinstance(question, str) or not question.strip():
        findings.add("error", "no_question", "there is no question, or it is empty", where)
        return None
    if not contexts or not all(isinstance(one, str) and one.strip() for one in contexts):
        findings.add("error", "no_context", "question without a context, or with an empty one", where)
        return None
    if answers is None and labelled:
        findings.add("error", "no_answers", "nothing says what the answer is, nor that there is none", where)
        return None
    # of questions that are only asked, an answer that is wrong is not known
    found = None if answers is None else read_answers(answers, contexts, where, findings if labelled else Findings())
    return None if found is None and labelled else QuestionItem(question, contexts, found, name or where, where)


def read_answers(answers: Sequence[Written], contexts: Sequence[str], where: str, findings: Findings) -> tuple[Gold, ...] | None:
    """Return answers with their places; None, and a finding, where one cannot be used."""
    found: list[Gold] = []
    for text, start in answers:
        if not isinstance(text, str):
            findings.add("error", "not_text", "answer is not a text", where)
            return None
        if not text.strip():
            findings.add("warning", "empty_answer", "answer is empty; read as: the context holds none", where)
            continue
        gold = locate(text, start, contexts, where, findings)
        if gold is None:
            return None
        found.append(gold)
    for gold in found[:1]:
        edges = borders(contexts[gold.context][max(0, gold.start - 1) : gold.end + 1])
        first = min(1, gold.start)
        if not (edges[first] and edges[first + len(gold.text)]):
            findings.add("warning", "inside_word", "answer begins or ends inside a word; only whole words are answered", where)
    return tuple(found)


def locate(text: str, start: Any, contexts: Sequence[str], where: str, findings: Findings) -> Gold | None:
    """Return where an answer stands; one that is not at its offset is taken from where it is, if that is clear; else it is an error."""
    if isinstance(start, (list, tuple)):
        findings.add("error", "other_offsets", "answers and their offsets differ in number", where)
        return None
    try:
        offset = None if start is None or (isinstance(start, str) and not start.strip()) or start != start else int(float(start))
    except (TypeError, ValueError, OverflowError):
        findings.add("error", "bad_offset", "answer's offset is not a whole number", where)
        return None
    at = [number for number, context in enumerate(contexts) if offset is not None and offset >= 0 and context.startswith(text, offset)]
    if len(at) == 1 and offset is not None:
        return Gold(text, offset, at[0])
    places = [Gold(text, at, number) for number, at in _places(text, contexts)]
    taken = "taken from there"
    if not places:
        findings.add("error", "lost_answer", "answer does not stand in its context", where)
        return None
    if offset is not None and len(places) > 1:
        findings.add("error", "ambiguous_answer", "answer does not stand at its offset, and several times in its context", where)
        return None
    if offset is not None:
        findings.add("warning", "moved_answer", f"answer does not stand at its offset, but once in its context: {taken}", where)
    elif len(places) > 1:
        findings.add("warning", "first_answer", "answer without an offset stands several times in its context: the first is taken", where)
    else:
        findings.add("note", "found_answer", f"answer without an offset stands once in its context: {taken}", where)
    return places[0]


def _places(text: str, contexts: Sequence[str]) -> Iterator[tuple[int, int]]:
    for number, context in enumerate(contexts):
        at = context.find(text)
        while at >= 0:
            yield number, at
            at = context.find(text, at + 1)


# what is wrong between them


def check(train: Sequence[QuestionItem], dev: Sequence[QuestionItem], findings: Findings) -> None:
    """Add to the findings what is wrong with items as a whole: duplicates, conflicts, leakage, answers to be chosen from."""
    seen: dict[int, QuestionItem] = {}
    for item in train:
        before = seen.setdefault(key_of(item), item)
        if before is not item:
            if {gold.text for gold in before.answers or ()} == {gold.text for gold in item.answers or ()}:
                findings.add(
                    "warning", "duplicate", "question stands in the training data more than once, with the same context", item.where
                )
            else:
                findings.add(
                    "warning", "conflict", "question stands in the training data with different answers in one context", item.where
                )
        if len(set(item.answers or ())) > 1:
            findings.add("note", "several", "question has several answers: the most frequent is trained on, any is right", item.where)
    texts = {content_hash(text) for item in train for text in item.contexts}
    for item in dev:
        if any(content_hash(text) in texts for text in item.contexts):
            findings.add("warning", "leak", "context of a held-out question stands in the training data too", item.where)
    if train and not any(item.answers for item in train):
        raise DataError("no training question has an answer: there is nothing to learn; give some that have")
    if any(item.answers == () for item in dev) and all(item.answers for item in train):
        findings.add("warning", "untrained_none", "held-out question has no answer, and all training questions have one: give some that "
                     "have none, or every question is answered", count=sum(item.answers == () for item in dev))  # fmt: skip
    if any(item.answers == () for item in train) and dev and all(item.answers for item in dev):
        findings.add("warning", "unmeasured_none", "training question has no answer, and all held-out questions have one: no number says "
                     "how well that is told", count=sum(item.answers == () for item in train))  # fmt: skip


def key_of(item: QuestionItem) -> int:
    """Return a hash of what an item asks, and of what."""
    return content_hash("\x1f".join([" ".join(item.question.split()), *item.contexts]))


def trained_answer(item: QuestionItem) -> Gold | None:
    """Return the answer that is trained on: the most frequent one, of equal ones the first; None where there is none."""
    return Counter(item.answers or ()).most_common(1)[0][0] if item.answers else None
