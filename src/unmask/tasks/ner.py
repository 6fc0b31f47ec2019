"""Named entities: where they stand in a text, to the character, and of what type they are. Training is beside it, in ner_training.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..data.examples import Examples
from ..errors import DataError, TaskError
from .encode import Segment, gather, room, tokenize
from .ner_data import TaggedText, of_words, read_tagged, words_of
from .ner_decode import Grammar, decode
from .ner_scores import Entities
from .ner_tags import Scheme, Span, parse
from .ner_write import conll
from .predictor import Predictor, Scores

if TYPE_CHECKING:
    from .findings import Findings
    from .recipe import TaskData

Text = str | tuple[str, ...] | TaggedText
OVERLAP = 4  # the part of a window that the next one reads again: a fourth


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity: from which to which character of the text it stands, its type, and its probability among all ways to tag the text."""

    start: int
    end: int
    label: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Tagged:
    """The entities of a text. `windows` says in how many parts a long text was read: all of it. `error` says why there is no result."""

    entities: tuple[Entity, ...]
    windows: int
    error: str | None = None

    def __iter__(self) -> Iterator[Entity]:
        return iter(self.entities)

    def __len__(self) -> int:
        return len(self.entities)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON holds it."""
        if self.error is not None:
            return {"error": self.error}
        found = [{"start": one.start, "end": one.end, "label": one.label, "text": one.text, "score": one.score} for one in self.entities]
        return {"entities": found, "windows": self.windows}


class Tagger(Predictor):
    """Finds entities with a fine-tuned model. Threads may share one.

    `scheme` says what the tags of a model mean that was not made here: bio, iob1, bioes, bilou, io; by default their letters tell.
    """

    name, head = "ner", "token_classification"

    def __init__(self, model: Any, tokenizer: Any, *, scheme: Scheme | None = None, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        self.bare = not any(parse(label) for label in self.labels if label != "O")
        tags = [parse(label, bare=self.bare) for label in self.labels]
        if None in tags:
            raise TaskError(
                f"the model's label {self.labels[tags.index(None)]!r} is no tag; allowed: O, B-TYPE, I-TYPE (E-, S-, L-, U- too)"
            )
        letters = {tag[0] for tag in tags if tag is not None}
        usual: Scheme = "bioes" if letters & set("ES") else "bio" if "B" in letters else "io"
        self.scheme: Scheme = scheme or self.settings.get("scheme") or usual
        self.grammar = Grammar.of([tag for tag in tags if tag is not None], self.scheme)
        self.types = list(dict.fromkeys(tag[1] for tag in tags if tag is not None and tag[1]))

    @overload
    def predict(self, texts: str) -> Tagged: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: tuple[str, ...]) -> Tagged: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[Text]) -> list[Tagged]: ...
    def predict(self, texts: Text | Iterable[Text]) -> Tagged | list[Tagged]:
        """Return the entities of a text (a tuple is one that is cut into words already), or a list for many.

        Raises: TaskError for an empty text (in a list, its result says so in `error`).
        """
        return self.one_or_many(texts, (str, tuple, TaggedText))  # type: ignore[no-any-return]

    def fault(self, item: Text) -> str | None:
        """Return what is wrong with a text, None where nothing is."""
        if isinstance(item, tuple) and not all(isinstance(word, str) for word in item):
            return "the words of a text are strings"
        item = as_item(item)
        return None if item.text.strip() else f"{item.where + ': ' if item.where else ''}the text is empty; give a text"

    def failed(self, error: str) -> Tagged:
        """Return the result of a text that cannot be read."""
        return Tagged((), 0, error)

    def encode(self, items: Sequence[Text], *, every: bool = False) -> Examples:
        """Return texts as segments, a row at the first piece of each word (`every`: at each piece).

        `labels` are, of each row, where in the text its word begins and ends, and whether the piece is the word's first. A text longer
        than the window is read in several that overlap; a word is asked for in one of them, up to the middle of the overlap.
        """
        read = list(map(as_item, items))
        segments: list[Segment] = []
        for place, encoding in enumerate(tokenize(self.tokenizer, (item.text for item in read), offsets=True)):
            rows = pieces(read[place].words, encoding.offsets, len(read[place].text))
            rows = rows if every else [row for row in rows if row[3]]
            segments += self._segments(place, encoding.ids, rows)
        return gather(segments, [item.where or f"text {place}" for place, item in enumerate(read)])

    def _segments(self, place: int, ids: list[int], rows: list[tuple[int, int, int, int]]) -> Iterator[Segment]:
        before = len(self.frame.before)
        asked = 0
        for start, stop, _, high in windows(len(ids), room(self.max_length, self.frame.num_special)):
            first = asked
            while asked < len(rows) and rows[asked][0] < high:
                asked += 1
            own = rows[first:asked]
            if own:
                yield Segment(place, self.frame.one(ids[start:stop]), [before + row[0] - start for row in own], [row[1:] for row in own])
        if not rows:  # nothing of it is in the vocabulary's reach: a row that says nothing
            yield Segment(place, self.frame.one(ids[: room(self.max_length, self.frame.num_special)]), [0], [(0, 0, 0)])

    def decode(self, items: Sequence[Text], examples: Examples, rows: np.ndarray) -> list[Tagged]:
        """Return the entities of each text: the best tags that are legal over all of it, whatever windows it was read in."""
        if not len(items):
            return []
        real = np.asarray(examples.labels)[:, 1] > 0
        places = np.asarray(examples.labels)[real]
        owner = examples.example[np.searchsorted(examples.bounds, examples.label_positions, side="right") - 1][real]
        counts = np.bincount(owner, minlength=len(items))
        seen = np.bincount(examples.example, minlength=len(items)).tolist()
        starts = np.cumsum([0, *counts])
        results = []
        for place, found in enumerate(decode(rows[real], counts, self.grammar)):
            text, own, entities = as_item(items[place]).text, places[starts[place] : starts[place + 1]], []
            for (low, high, kind), score in found:
                start, stop = int(own[low][0]), int(own[high - 1][1])
                entities.append(Entity(start, stop, kind, text[start:stop], score))
            results.append(Tagged(tuple(entities), seen[place]))
        return results

    @classmethod
    def read(cls, sources: Sequence[str], data: TaskData) -> tuple[list[TaggedText], Findings]:
        """Return the texts of files: columns of words, JSON lines with text or tokens, a column of texts, or a text a line."""
        return read_tagged(sources, data, labelled=False)

    def record(self, item: Text, result: Tagged) -> dict[str, Any]:
        """Return a line of predictions.jsonl."""
        item = as_item(item)
        line: dict[str, Any] = {"id": item.id, "text": item.text}
        if item.given:
            line["tokens"] = [item.text[start:stop] for start, stop in item.words]
        if item.entities is not None:
            line["gold"] = [{"start": a, "end": b, "label": kind, "text": item.text[a:b]} for a, b, kind in item.entities]
        return {**line, **result.to_dict()}

    def shown(self, line: Mapping[str, Any], top_k: int) -> str:
        """Return a line of predictions.jsonl as a person reads it on a terminal: the text, its entities in brackets."""
        if "error" in line:
            return f"{line['error']}"
        text, parts, at = line["text"], [], 0
        for one in line["entities"]:
            parts += [text[at : one["start"]], f"[{one['text']}]({one['label']} {one['score']:.2f})"]
            at = one["end"]
        return " ".join("".join([*parts, text[at:]]).split())

    def conll(self, line: Mapping[str, Any]) -> str:
        """Return a line of predictions.jsonl in columns as CoNLL has them, in the model's own scheme; `ner_write.conll` writes others."""
        return conll(line, self.scheme)

    def score(self, items: Sequence[TaggedText], results: Sequence[Tagged]) -> Scores:
        """Return the numbers of results beside the entities of the items.

        Raises: DataError for an item of which they are not known.
        """
        gold: list[Sequence[Span]] = []
        for item in items:
            if item.entities is None:
                raise DataError(f"{item.where or item.id}: which entities are right is not known; give labelled data")
            gold.append(item.entities)
        said = [[(one.start, one.end, one.label) for one in result.entities] for result in results]
        return Entities(gold, said, [item.words for item in items])


def as_item(item: Text) -> TaggedText:
    """Return a text, or its words, as an item."""
    if isinstance(item, str):
        return TaggedText(item, words_of(item))
    return of_words(item) if isinstance(item, tuple) else item


def pieces(words: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int, int, int]]:
    """Return (piece, begin and end of its word, whether it is the word's first) of each piece that belongs to a word.

    Words that share a piece are one; a word that no piece stands for has no row.
    """
    owner = np.full(length + 1, -1, np.int64)
    for number, (start, stop) in enumerate(words):
        owner[start:stop] = number
    groups: list[list[int]] = []  # first word, last word
    found: list[tuple[int, int]] = []  # piece, group
    firsts: list[int] = []
    for piece, (start, stop) in enumerate(offsets):
        inside = owner[start:stop]
        inside = inside[inside >= 0]
        if not len(inside):
            continue
        first, last = int(inside[0]), int(inside[-1])
        if not groups or first > groups[-1][1]:
            groups.append([first, last])
            firsts.append(piece)
        groups[-1][1] = max(groups[-1][1], last)
        found.append((piece, len(groups) - 1))
    return [(piece, words[groups[g][0]][0], words[groups[g][1]][1], int(piece == firsts[g])) for piece, g in found]


def windows(length: int, capacity: int) -> list[tuple[int, int, int, int]]:
    """Return (start, stop, low, high) of windows over tokens: what each reads, and which part of that is its own.

    Windows overlap by a fourth at least; each token is one window's own, the border lies in the middle of the overlap.
    """
    if length <= capacity:
        return [(0, length, 0, length)]
    overlap = min(capacity // OVERLAP, capacity - 1)
    count = -(-(length - overlap) // (capacity - overlap))
    starts = [number * (length - capacity) // (count - 1) for number in range(count)]
    borders = [0, *((after + start + capacity) // 2 for start, after in itertools.pairwise(starts)), length]
    return [(start, start + capacity, borders[n], borders[n + 1]) for n, start in enumerate(starts)]


PREDICTOR = Tagger
