"""Text classification: one label, several, or a number, of a text or of a pair of texts. Training is beside it, in classify_training.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..data.examples import Examples
from ..errors import DataError
from .classify_data import TextItem, apart, number, read_items
from .classify_scores import MultiLabel, Regression, SingleLabel
from .encode import Segment, cuts, gather, room, tokenize
from .predictor import Predictor, Scores

if TYPE_CHECKING:
    from .findings import Findings
    from .recipe import TaskData

Text = str | tuple[str, str] | TextItem
BEST = {"single": "macro_f1", "multi": "macro_average_precision", "regression": "root_mean_squared_error"}
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}


@dataclass(frozen=True, slots=True)
class Classified:
    """What a model says of a text: `labels` (one, or those that hold), every label's probability in `scores`, or a number, `value`.

    `windows` says into how many parts a long text was cut: none of it is left out. `error` says why there is no result.
    """

    labels: tuple[str, ...]
    scores: dict[str, float]
    logits: tuple[float, ...]
    windows: int
    value: float | None = None
    error: str | None = None

    @property
    def label(self) -> str | None:
        """The likeliest label; None where the model gives a number."""
        return max(self.scores, key=self.scores.__getitem__) if self.scores else None

    @property
    def score(self) -> float | None:
        """The probability of the likeliest label."""
        return self.scores[self.label] if self.label is not None else None

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """Return the result as JSON holds it, with the `top_k` likeliest labels' scores."""
        if self.error is not None:
            return {"error": self.error}
        if self.value is not None:
            return {"value": self.value, "windows": self.windows}
        best = sorted(self.scores.items(), key=lambda pair: -pair[1])[:top_k]
        return {"label": self.label, "labels": list(self.labels), "score": self.score, "scores": dict(best), "windows": self.windows}


class Classifier(Predictor):
    """Classifies texts with a fine-tuned model. Threads may share one."""

    name, head = "classify", "sequence_classification"

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(model, tokenizer, **options)
        kinds = {written: kind for kind, written in PROBLEMS.items()}
        # as the stock classes guess it, where nothing is written
        self.problem = kinds.get(self.config.get("problem_type") or "", "regression" if len(self.labels) == 1 else "single")
        self.separator = self.settings.get("label_separator")
        self.temperature = float(self.settings.get("temperature", 1.0))
        self.thresholds = np.array(self.settings.get("thresholds") or [0.5] * len(self.labels))
        self.window_pooling = self.settings.get("window_pooling", "mean")
        self.number = {label: row for row, label in enumerate(self.labels)}
        self.best = BEST[self.problem], self.problem != "regression"

    @overload
    def predict(self, texts: str) -> Classified: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: tuple[str, str]) -> Classified: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, texts: Iterable[Text]) -> list[Classified]: ...
    def predict(self, texts: Text | Iterable[Text]) -> Classified | list[Classified]:
        """Return what the model says of a text (a tuple of two is a pair), or a list for many.

        Raises: TaskError for an empty text (in a list, its result says so in `error`).
        """
        return self.one_or_many(texts, (str, tuple, TextItem))  # type: ignore[no-any-return]

    def fault(self, item: Text) -> str | None:
        """Return what is wrong with a text, None where nothing is."""
        item = as_item(item)
        for text in (item.text, item.pair):
            if text is not None and not text.strip():
                return f"{item.where + ': ' if item.where else ''}the text is empty; give a text"
        return None

    def failed(self, error: str) -> Classified:
        """Return the result of a text that cannot be classified."""
        return Classified((), {}, (), 0, error=error)

    def encode(self, items: Sequence[Text]) -> Examples:
        """Return texts as segments, a row at the first token of each; a text longer than the window as several of equal length."""
        read = list(map(as_item, items))
        firsts = tokenize(self.tokenizer, (item.text for item in read))
        seconds = tokenize(self.tokenizer, (item.pair or "" for item in read)) if any(item.pair is not None for item in read) else []
        segments: list[Segment] = []
        for place, item in enumerate(read):
            second = None if item.pair is None else seconds[place]
            segments += [Segment(place, ids, [0], types=types) for ids, types in self._windows(firsts[place], second)]
        return gather(segments, [item.where or f"text {place}" for place, item in enumerate(read)])

    def _windows(self, first: list[int], second: list[int] | None) -> Iterable[tuple[list[int], list[int] | None]]:
        """Yield the ids and types of the windows of a text.

        Of a pair the shorter text stands in every window where it takes half of one at most; otherwise both are cut into as many parts,
        and those of one number stand together.
        """
        if second is None:
            for start, stop in cuts(len(first), room(self.max_length, self.frame.num_special)):
                yield self.frame.one(first[start:stop]), None
            return
        space = room(self.max_length, self.frame.num_special_pair)
        shorter = min(len(first), len(second))
        if len(first) + len(second) <= space or shorter > space // 2:
            count = max(1, -(-(len(first) + len(second)) // max(1, space - 1)))
            count = 1 if len(first) + len(second) <= space else count
            a, b = ([(n * len(ids) // count, (n + 1) * len(ids) // count) for n in range(count)] for ids in (first, second))
            for (start, stop), (begin, end) in zip(a, b, strict=True):
                yield self.frame.two(first[start:stop], second[begin:end])
        elif len(first) <= len(second):
            for start, stop in cuts(len(second), space - len(first)):
                yield self.frame.two(first, second[start:stop])
        else:
            for start, stop in cuts(len(first), space - len(second)):
                yield self.frame.two(first[start:stop], second)

    def logits(self, examples: Examples, rows: np.ndarray) -> np.ndarray:
        """Return the logits of each example from those of its windows, (E, L)."""
        starts = np.searchsorted(examples.example, np.arange(len(examples)))
        if self.window_pooling == "max":
            return np.maximum.reduceat(rows, starts, axis=0)
        counts = np.diff(np.append(starts, len(rows)))
        return np.add.reduceat(rows.astype(np.float64), starts, axis=0) / counts[:, None]

    def probabilities(self, logits: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        """Return the probability of each label, (E, L), from logits and one temperature, or one an example."""
        scaled = logits / np.reshape(temperature, (-1, 1))
        if self.problem == "multi":
            return 1 / (1 + np.exp(-scaled))
        scaled = np.exp(scaled - scaled.max(1, keepdims=True))
        return scaled / scaled.sum(1, keepdims=True)

    def decode(self, items: Sequence[Text], examples: Examples, rows: np.ndarray) -> list[Classified]:
        """Return a result for each text."""
        return self.results(examples, self.logits(examples, rows), self.temperature) if len(items) else []

    def results(
        self, examples: Examples, logits: np.ndarray, temperature: np.ndarray | float, thresholds: np.ndarray | None = None
    ) -> list[Classified]:
        """Return a result for each row of logits; a temperature and thresholds for all, or for each."""
        windows = np.bincount(examples.example, minlength=len(examples)).tolist()
        if self.problem == "regression":
            return [Classified((), {}, (float(row[0]),), count, float(row[0])) for row, count in zip(logits, windows, strict=True)]
        probs = self.probabilities(logits, temperature)
        said = probs >= (self.thresholds if thresholds is None else thresholds) if self.problem == "multi" else None
        found = []
        for place, (row, count) in enumerate(zip(logits.tolist(), windows, strict=True)):
            chosen = [int(probs[place].argmax())] if said is None else np.flatnonzero(said[place])
            scores = dict(zip(self.labels, probs[place].tolist(), strict=True))
            found.append(Classified(tuple(self.labels[number] for number in chosen), scores, tuple(row), count))
        return found

    def targets(self, items: Sequence[TextItem]) -> np.ndarray:
        """Return what is right: (n,) numbers of labels, (n, L) float32 of several, (n,) float32.

        Raises: DataError for a label that the model does not have.
        """
        if self.problem == "regression":
            return np.array([number(item.label[0]) if item.label else None for item in items], np.float32)
        known = self.number
        rows = []
        for item in items:
            label = apart(item.label or (), self.separator) if self.problem == "multi" else item.label or ()
            wrong = next((name for name in label if name not in known), None)
            if wrong is not None or (self.problem == "single" and len(label) != 1):
                what = (
                    f"the label {wrong!r}, which the model does not have"
                    if wrong is not None
                    else f"{len(label)} labels, where one is asked"
                )
                raise DataError(f"{item.where or item.id}: {what}; its labels are: {', '.join(self.labels[:20])}")
            rows.append([known[name] for name in label])
        if self.problem == "single":
            return np.array([row[0] for row in rows], np.int64)
        table = np.zeros((len(items), len(self.labels)), np.float32)
        for place, row in enumerate(rows):
            table[place, row] = 1
        return table

    @classmethod
    def read(cls, sources: Sequence[str], data: TaskData) -> tuple[list[TextItem], Findings]:
        """Return the texts of files: a column of them, or a text a line."""
        return read_items(sources, data, labelled=False)

    def shown(self, line: Mapping[str, Any], top_k: int) -> str:
        """Return a line of predictions.jsonl as a person reads it on a terminal."""
        return shown(line, top_k)

    def record(self, item: Text, result: Classified) -> dict[str, Any]:
        """Return a line of predictions.jsonl."""
        item = as_item(item)
        line: dict[str, Any] = {"id": item.id, "text": item.text}
        if item.pair is not None:
            line["pair"] = item.pair
        if item.label is not None:
            gold = apart(item.label, self.separator) if self.problem == "multi" else item.label
            line["gold"] = number(gold[0]) if self.problem == "regression" else list(gold)
        return {**line, **result.to_dict(), **({"logits": list(result.logits)} if result.error is None else {})}

    def score(self, items: Sequence[TextItem], results: Sequence[Classified]) -> Scores:
        """Return the numbers of results beside the labels of the items."""
        gold = self.targets(items)
        if self.problem == "regression":
            return Regression(gold, np.array([result.value for result in results]))
        probs = np.array([[result.scores[label] for label in self.labels] for result in results])
        # without a temperature, which differs from item to item where it is cross-fitted
        order = self.probabilities(np.array([result.logits for result in results]), 1.0)
        if self.problem == "single":
            return SingleLabel(gold, probs, self.labels, order=order)
        said = np.array([[label in result.labels for label in self.labels] for result in results])
        return MultiLabel(gold, probs, said, self.labels, order=order)


def shown(line: Mapping[str, Any], top_k: int) -> str:
    """Return a line of predictions.jsonl as a person reads it on a terminal."""
    text = " ".join(line["text"].split())
    text = text if len(text) <= 60 else f"{text[:59]}…"
    if "error" in line:
        return f"{line['error']}  {text}"
    if "value" in line:
        return f"{line['value']:10.4f}  {text}"
    best = sorted(line["scores"].items(), key=lambda pair: -pair[1])[:top_k]
    said = ", ".join(line["labels"]) or "–"
    return f"{said:20}  {'  '.join(f'{label} {score:.3f}' for label, score in best)}  {text}"


def as_item(item: Text) -> TextItem:
    """Return a text, or a pair of them, as an item."""
    if isinstance(item, str):
        return TextItem(item)
    return TextItem(*item) if isinstance(item, tuple) else item


PREDICTOR = Classifier
