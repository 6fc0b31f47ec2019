"""Extractive question answering: where in one text or several, of any length, the answer to a question stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.examples import Examples
from ..errors import ConfigError, DataError, TaskError
from .encode import Segment, gather, room, tokenize
from .fill import NO_NUMBERS
from .predictor import CHUNK, Predictor, Scores
from .qa_data import QuestionItem, read_items
from .qa_scores import AnswerScores
from .qa_windows import Spans, Tokens, best_spans, log_sum, neighbours, overlapping, read_tokens

if TYPE_CHECKING:
    from .findings import Findings
    from .recipe import TaskData

Asked = tuple[str, str | Sequence[str]] | QuestionItem
LONGEST, BEST = 30, 5  # tokens of an answer; answers that are told, the likeliest first
CHARACTERS = 1 << 21  # of contexts, that are read together: with what the model says of them, some hundred megabytes
PASSAGE = 120  # characters on either side of an answer in what is written down


@dataclass(frozen=True, slots=True)
class Answer:
    """A part of a context that may answer a question: `text` is context[start:end], `context` the number of the context."""

    text: str
    start: int
    end: int
    score: float
    context: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model says to a question: the likeliest answers, the first of which is given unless `answered` is False.

    A score is a probability among all spans of all windows (and "no answer", for a model that may say so); `no_answer` is that of none,
    `margin` the log odds of the best span against none. `windows` says into how many parts the contexts were cut: none of it is left out.
    """

    answers: tuple[Answer, ...]
    no_answer: float
    margin: float
    answered: bool
    windows: int
    error: str | None = None

    @property
    def best(self) -> Answer | None:
        """The answer; None where the model says that there is none."""
        return self.answers[0] if self.answered else None

    @property
    def text(self) -> str | None:
        """The text of the answer; None where the model says that there is none."""
        return self.best.text if self.best is not None else None

    @property
    def score(self) -> float:
        """The probability of what is said: of the answer, or of there being none."""
        return self.best.score if self.best is not None else self.no_answer

    def to_dict(self, top_k: int | None = None) -> dict[str, Any]:
        """Return the result as JSON holds it, with the `top_k` likeliest answers."""
        if self.error is not None:
            return {"error": self.error}
        names = ("text", "start", "end", "score", "context")
        answers = [{name: getattr(one, name) for name in names} for one in self.answers[:top_k]]
        first = answers[0] if self.answered else {"text": "", "score": self.no_answer}
        margin = self.margin if np.isfinite(self.margin) else None
        return {**first, "answers": answers, "no_answer": self.no_answer, "margin": margin, "windows": self.windows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows(Examples):
    """Questions with windows of their contexts: the rows of a segment are its first token and those of the context.

    `windows` has (context, start, stop) in tokens of the context, a segment each; `tokens` those of each example's contexts.
    """

    windows: Sequence[tuple[int, int, int]]
    tokens: Sequence[Sequence[Tokens]]


class Answerer(Predictor):
    """Answers questions from texts with a fine-tuned model. Threads may share one.

    `num_best` answers are told. `max_answer_length` is in tokens, `stride` how many of them neighbouring windows share, and where the log
    odds of the best answer are below `no_answer_threshold` there is none (None: every question is answered); by default as in training.
    """

    name, head = "qa", "question_answering"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        num_best: int = BEST,
        max_answer_length: int | None = None,
        stride: int | None = None,
        no_answer_threshold: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self.labels = []  # its outputs are a start and an end
        settings = self.settings
        self.num_best = num_best
        self.longest = int(max_answer_length or settings.get("max_answer_length") or LONGEST)
        self.stride = settings.get("stride") if stride is None else stride
        told = settings.get("no_answer_threshold")
        self.threshold: float | None = no_answer_threshold if no_answer_threshold is not None else None if told is None else float(told)
        for name, value, least in (("num_best", num_best, 1), ("max_answer_length", self.longest, 1), ("stride", self.stride or 0, 0)):
            if value < least:
                raise ConfigError(f"{name} = {value!r}; allowed: a whole number from {least}")

    def answer(self, question: str, context: str | Sequence[str], top_k: int | None = None) -> Answered:
        """Return the answer to a question that a text, or one of several, holds, with the `top_k` likeliest (by default `num_best`).

        Raises: TaskError for an empty question or context, or a question that is too long for the window.
        """
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k = {top_k!r}; allowed: a whole number from 1")
        asked = (question, context)
        fault = self.fault(asked)
        if fault is not None:
            raise TaskError(fault)
        examples = self.encode([asked])
        (result,) = self._decode([asked], examples, self.outputs(examples), top_k or self.num_best)
        if result.error is not None:
            raise TaskError(result.error)
        return result

    def predict(self, questions: Iterable[Asked]) -> list[Answered]:
        """Return the answers to many questions, (question, context) or (question, contexts) each; `error` says why one has failed."""
        return list(self.stream(questions))

    def fault(self, item: Asked) -> str | None:
        """Return what is wrong with a question, None where nothing is."""
        item = as_item(item)
        where = f"{item.where}: " if item.where else ""
        if not isinstance(item.question, str) or not item.question.strip():
            return f"{where}the question is empty; ask something"
        if not item.contexts or not all(isinstance(one, str) and one.strip() for one in item.contexts):
            return f"{where}a context is empty; give the text that holds the answer"
        return None

    @property
    def longest_question(self) -> int:
        """How many tokens a question may have: a quarter of the window is left to the context."""
        return room(self.max_length, self.frame.num_special_pair) * 3 // 4

    def encode(self, items: Sequence[Asked]) -> Windows:
        """Return questions with their contexts as segments; a context that is longer than the window as several, which overlap.

        A question that is too long for the window has none.
        """
        read = list(map(as_item, items))
        texts = {text: place for place, text in enumerate(dict.fromkeys(text for item in read for text in item.contexts))}
        tokens = read_tokens(self.tokenizer, texts)  # of a context that several questions are asked about, once
        asked = tokenize(self.tokenizer, (item.question for item in read))
        windows: list[tuple[int, int, int]] = []
        space = room(self.max_length, self.frame.num_special_pair)

        def segments() -> Iterator[Segment]:
            for place, (item, ids) in enumerate(zip(read, asked, strict=True)):
                start = self.frame.second_start(len(ids))
                for number, text in enumerate(item.contexts if len(ids) <= self.longest_question else ()):
                    context = tokens[texts[text]]
                    for low, high in overlapping(len(context), space - len(ids), self.overlap(space - len(ids))):
                        windows.append((number, low, high))
                        framed, types = self.frame.two(ids, context.ids[low:high].tolist())
                        yield Segment(place, framed, [0, *range(start, start + high - low)], types=types)

        made = gather(segments(), [item.where or f"question {place}" for place, item in enumerate(read)])
        return Windows(
            input_ids=made.input_ids, bounds=made.bounds, example=made.example, label_positions=made.label_positions, labels=made.labels,
            names=made.names, token_type_ids=made.token_type_ids, windows=windows,
            tokens=[[tokens[texts[text]] for text in item.contexts] for item in read],
        )  # fmt: skip

    def overlap(self, capacity: int) -> int:
        """Return how many tokens neighbouring windows share: a third, and an answer's length; never more than half."""
        wanted = max(capacity // 3, self.longest) if self.stride is None else self.stride
        return min(wanted, capacity // 2)

    def decode(self, items: Sequence[Asked], examples: Examples, rows: np.ndarray) -> list[Answered]:
        """Return a result for each question: the spans of its windows, all contexts together, under one softmax."""
        return self._decode(items, examples, rows, self.num_best)

    def _decode(self, items: Sequence[Asked], examples: Examples, rows: np.ndarray, count: int) -> list[Answered]:
        assert isinstance(examples, Windows)
        first = np.searchsorted(examples.example, np.arange(len(examples) + 1)).tolist()
        bounds = np.searchsorted(examples.label_positions, examples.bounds).tolist()
        results = []
        for place, item in enumerate(map(as_item, items)):
            found: list[tuple[int, Spans]] = []
            mine = range(first[place], first[place + 1])
            if not mine:
                results.append(self.failed(self._too_long(item)))
                continue
            if not np.isfinite(rows[bounds[mine.start] : bounds[mine.stop]]).all():
                results.append(self.failed(NO_NUMBERS))
                continue
            for number, group in itertools.groupby(mine, lambda segment: examples.windows[segment][0]):
                inside = list(group)
                spans = neighbours([examples.windows[segment][1:] for segment in inside])
                for segment, (window, beside) in zip(inside, spans, strict=True):
                    part = rows[bounds[segment] : bounds[segment + 1]]
                    context = examples.tokens[place][number]
                    found.append((number, best_spans(part, context, window, beside, longest=self.longest, count=count)))
            results.append(self._result(item, examples.tokens[place], found, count))
        return results

    def _result(self, item: QuestionItem, tokens: Sequence[Tokens], found: Sequence[tuple[int, Spans]], count: int) -> Answered:
        totals = [spans.total for _, spans in found]
        both = log_sum([*totals, 0.0])  # 0: the odds of "no answer" against itself
        normal = both if self.threshold is not None else log_sum(totals)
        spans = sorted(
            (
                (*span, number)
                for number, one in found
                for span in zip(*(part.tolist() for part in (one.scores, one.first, one.last)), strict=True)
            ),
            key=lambda span: (-span[0], span[3], *span[1:3]),
        )[:count]
        answers = []
        for score, first, last, number in spans:
            start, end = int(tokens[number].starts[first]), int(tokens[number].ends[last])
            answers.append(Answer(item.contexts[number][start:end], start, end, float(np.exp(score - normal)), number))
        margin = spans[0][0] if spans else -np.inf
        answered = bool(answers) and (self.threshold is None or margin >= self.threshold)
        return Answered(tuple(answers), float(np.exp(-both)), margin, answered, len(found))

    def _too_long(self, item: QuestionItem) -> str:
        (ids,) = tokenize(self.tokenizer, [item.question])
        return (
            f"{item.where + ': ' if item.where else ''}the question has {len(ids)} tokens, and a window of {self.max_length} leaves "
            f"{self.longest_question} to it; ask a shorter one, or raise max_length"
        )

    def failed(self, error: str) -> Answered:
        """Return the result of a question that cannot be answered."""
        return Answered((), 0.0, -np.inf, False, 0, error)

    def parts(self, items: Iterable[Asked]) -> Iterator[list[Asked]]:
        """Yield questions in lists; so many are read together as have contexts of some length, however long each is."""
        part: list[Asked] = []
        size = 0
        for item in items:
            part.append(item)
            size += sum(len(one) for one in as_item(item).contexts if isinstance(one, str))
            if size >= CHARACTERS or len(part) >= CHUNK:
                yield part
                part, size = [], 0
        if part:
            yield part

    @classmethod
    def read(cls, sources: Sequence[str], data: TaskData) -> tuple[list[QuestionItem], Findings]:
        """Return the questions of files."""
        return read_items(sources, data, labelled=False)

    def score(self, items: Sequence[QuestionItem], results: Sequence[Answered]) -> Scores:
        """Return the numbers of results beside the answers of the items.

        Raises: DataError for an item of which they are not known.
        """
        unknown = next((item for item in items if item.answers is None), None)
        if unknown is not None:
            raise DataError(f"{unknown.where or unknown.id}: which answer is right is not known; give labelled data")
        return AnswerScores(items, results)

    def decided(self, result: Answered, threshold: float | None) -> Answered:
        """Return a result with the answer given or withheld as another threshold has it."""
        if result.error is not None:
            return result
        return replace(result, answered=bool(result.answers) and (threshold is None or result.margin >= threshold))

    def record(self, item: Asked, result: Answered) -> dict[str, Any]:
        """Return a line of predictions.jsonl; of the context it holds what stands around the answer."""
        item = as_item(item)
        line: dict[str, Any] = {"id": item.id, "question": item.question}
        if item.answers is not None:
            line["gold"] = list(dict.fromkeys(gold.text for gold in item.answers))
        line |= result.to_dict()
        for name, spot in (("passage", result.answers[0] if result.answers else None), ("gold_passage", (item.answers or (None,))[0])):
            if spot is not None:
                text = item.contexts[spot.context]
                line[name] = [text[max(0, spot.start - PASSAGE) : spot.start], spot.text, text[spot.end : spot.end + PASSAGE]]
        return line

    def shown(self, line: Mapping[str, Any], top_k: int) -> str:
        """Return a line of predictions.jsonl as a person reads it on a terminal."""
        asked = " ".join(line["question"].split())
        if "error" in line:
            return f"{asked}\n  {line['error']}"
        rows = [f"  {one['score']:.3f}  {' '.join(one['text'].split())}  (context {one['context']}, {one['start']}-{one['end']})"
                for one in line["answers"][:top_k]]  # fmt: skip
        if not line["text"]:
            rows.insert(0, f"  {line['no_answer']:.3f}  no answer")
        return "\n".join([asked, *rows])


def as_item(item: Asked) -> QuestionItem:
    """Return a question with its context or contexts as an item."""
    if isinstance(item, QuestionItem):
        return item
    question, context = item
    return QuestionItem(question, (context,) if isinstance(context, str) else tuple(context))


PREDICTOR = Answerer
