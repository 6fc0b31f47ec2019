"""How a model is fine-tuned to answer questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.examples import Examples
from ..errors import ConfigError, DataError
from ..model.heads import segments_of
from . import tuning
from .encode import tokenize
from .findings import Findings
from .objective import Data, Spec, TaskObjective
from .predictor import Predictor
from .qa import LONGEST, Answered, Answerer, Windows
from .qa_data import Gold, QuestionItem, check, read_items, trained_answer
from .qa_scores import AnswerScores, best_threshold, question_word
from .qa_windows import Tokens
from .recipe import TaskData, TaskRecipe

METRICS = ("f1", "exact_match", "has_answer_f1", "any_script_f1", "any_script_exact_match")


@dataclass(frozen=True)
class QaOptions:
    """How questions are answered, and how that is learnt."""

    max_answer_length: int = LONGEST  # tokens of an answer
    stride: int | None = None  # tokens that neighbouring windows share; unset: a third of the window, and an answer's length
    null_weight: float = 1.0  # what the windows without the answer weigh together, beside those with it, in a question's loss
    best: str = "f1"  # the number by which the best checkpoint is known; any_script_f1 for scripts without spaces

    def __post_init__(self) -> None:
        if self.max_answer_length < 1:
            raise ConfigError(
                f"options.max_answer_length = {self.max_answer_length!r}; allowed: a whole number from 1 ({LONGEST} is usual)"
            )
        if self.stride is not None and self.stride < 0:
            raise ConfigError(f"options.stride = {self.stride!r}; allowed: a whole number from 0")
        if not 0 <= self.null_weight < np.inf:
            raise ConfigError(f"options.null_weight = {self.null_weight!r}; allowed: a number from 0 (1 is usual)")
        if self.best not in METRICS:
            raise ConfigError(f"options.best = {self.best!r}; allowed: {', '.join(METRICS)}")


class QaObjective(TaskObjective):
    """Fine-tunes a model to answer questions."""

    name, head, pipeline_tag = "qa", "question_answering", "question-answering"
    hide_prob = 0.0  # which words question and context share says where the answer is
    options_type, predictor_type = QaOptions, Answerer
    predictor: Answerer

    @classmethod
    def read(cls, sources: Sequence[str], data: TaskData, options: QaOptions) -> tuple[list[QuestionItem], Findings]:
        """Return the questions of files with their answers."""
        return read_items(sources, data)

    @classmethod
    def split_key(cls, item: QuestionItem) -> str:
        """Return the contexts of a question: none is on both sides."""
        return "\x1f".join(item.contexts)

    @classmethod
    def settle(cls, train: list[QuestionItem], dev: list[QuestionItem], options: QaOptions, findings: Findings, *, given_dev: bool) -> Spec:
        """Return how answers are looked for; a model that is trained on questions without an answer may say that there is none."""
        check(train, dev, findings)
        if options.best.startswith("has_answer") and dev and all(item.answers for item in dev):
            raise ConfigError(f"options.best = {options.best!r}: every held-out question has an answer, so there is but one F1; choose f1")
        settings: dict[str, Any] = {"max_answer_length": options.max_answer_length, "stride": options.stride}
        if not all(item.answers for item in train):
            settings["no_answer_threshold"] = 0.0
            why = too_few([bool(item.answers) for item in dev]) if dev else None
            if why is not None:
                text = f"the odds from which on there is an answer are not tuned: {why}; there is one where it is likelier than none"
                findings.add("warning", "untuned", text, count=0)
                settings["untuned"] = why
        return Spec(None, {"id2label": {0: "start", 1: "end"}, "label2id": {"start": 0, "end": 1}}, settings)

    @classmethod
    def describe(cls, data: Data) -> dict[str, Any]:
        """Return how many questions have no answer, how long answers are, and what is asked."""
        words = [len(gold.text.split()) for item in data.train if (gold := trained_answer(item)) is not None]
        shares = {f"{share:.0%}": float(np.quantile(words, share)) for share in (0.5, 0.9, 0.99, 1.0)} if words else {}
        return {
            "contexts": len({item.contexts for item in data.train}),
            "without_answer": sum(not item.answers for item in data.train),
            "without_answer_of_dev": sum(not item.answers for item in data.dev),
            "words_of_answers": shares,
            "question_words": dict(Counter(question_word(item.question) for item in data.train).most_common()),
        }

    def find_model(self, recipe: TaskRecipe, folder: Path, model_folder: Path | None) -> Any:
        """Return the model of a run; questions that are too long for its window are errors."""
        model = super().find_model(recipe, folder, model_folder)
        predictor = Answerer(model, self.tokenizer)
        for part in (self.data.train, self.data.dev):
            lengths = [len(ids) for ids in tokenize(self.tokenizer, (item.question for item in part))]
            for item, length in zip(part, lengths, strict=True):
                if length > predictor.longest_question:
                    text = f"question has more than {predictor.longest_question} tokens: a window of {predictor.max_length} leaves no room"
                    self.data.findings.add("error", "long_question", f"{text} for its context; raise max_length", item.where)
            part[:] = [item for item, length in zip(part, lengths, strict=True) if length <= predictor.longest_question]
        self.data.findings.refuse(recipe.data.on_bad)
        if not self.data.train:
            raise DataError("no question is left to train on: all are too long for the window; raise max_length")
        return model

    @property
    def best(self) -> tuple[str, bool]:
        """The number by which the best checkpoint is known."""
        return self.options.best, True

    def labelled(self, items: Sequence[QuestionItem]) -> Examples:
        """Return questions as windows, each with its answer's first and last token, or the null answer where it is not whole in there.

        A row has the weights (start, end) by which it is right. The windows with the answer weigh 1 together, those without it
        `null_weight`, of a question without an answer 1: so a long document does not drown the others.
        """
        examples = self.predictor.encode(items)
        return replace(examples, labels=self.targets(items, examples))

    def targets(self, items: Sequence[QuestionItem], examples: Windows) -> np.ndarray:
        """Return the weights by which rows are right, (N, 2) float32."""
        counts = np.diff(np.searchsorted(examples.label_positions, examples.bounds))
        null = np.cumsum(counts) - counts  # the row of each segment's first token
        start, end = null.copy(), null.copy()
        golds = [trained_answer(item) for item in items]
        spots = [None if gold is None else token_span(examples.tokens[place][gold.context], gold, items[place].where)
                 for place, gold in enumerate(golds)]  # fmt: skip
        for segment, (place, (number, low, high)) in enumerate(zip(examples.example.tolist(), examples.windows, strict=True)):
            gold, spot = golds[place], spots[place]
            if gold is not None and spot is not None and gold.context == number and low <= spot[0] and spot[1] < high:
                start[segment] += 1 + spot[0] - low
                end[segment] += 1 + spot[1] - low
        holds = start != null
        whole = np.bincount(examples.example, holds, len(items))
        rest = np.bincount(examples.example, ~holds, len(items))
        lost = [place for place, gold in enumerate(golds) if gold is not None and not whole[place]]
        if lost:
            # longer than the windows' overlap, and across a border
            text = "answer is whole in no window: trained on as if there were none; raise max_length or options.stride"
            self.data.findings.add("warning", "cut_answer", text, items[lost[0]].where, count=len(lost))
        weight = np.where(holds, 1.0 / np.maximum(whole, 1)[examples.example], 1.0 / np.maximum(rest, 1)[examples.example])
        weight[~holds & (whole[examples.example] > 0)] *= self.options.null_weight
        labels = np.zeros((int(counts.sum()), 2), np.float32)
        labels[start, 0], labels[end, 1] = weight, weight
        return labels

    def count(self, batch: Any) -> float:
        """Return what the windows of a batch weigh."""
        return float(batch.labels[:, 0].sum())

    def loss_from(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the mean of the cross-entropies of start and end, summed over windows: in each a softmax over its rows."""
        owner = segments_of(batch).to(logits.device)
        size = int(batch.cu_seqlens.shape[0]) - 1
        peak = logits.new_full((size, 2), -torch.inf).scatter_reduce(0, owner[:, None].expand(-1, 2), logits.detach(), "amax")
        sums = logits.new_zeros(size, 2).index_add(0, owner, (logits - peak[owner]).exp())
        return (batch.labels * (sums[owner].log() + peak[owner] - logits)).sum() / 2

    # after training

    @property
    def is_tuned(self) -> bool:
        """Whether the odds from which on a question is answered are found when training has ended."""
        settings = self.data.spec.settings
        return settings.get("no_answer_threshold") is not None and "untuned" not in settings

    def complete(self, predictor: Predictor) -> dict[str, Any]:
        """Return from which odds on a question is answered, if the model may say that there is no answer."""
        assert isinstance(predictor, Answerer)
        if not self.is_tuned:
            return {}
        return {"no_answer_threshold": self._threshold(self.results(predictor))(np.ones(len(self.data.dev), bool)).item()}

    def final_results(self, predictor: Predictor) -> list[Answered]:
        """Return what the finished model says, to each question with a threshold that its context had no part in."""
        assert isinstance(predictor, Answerer)
        results: list[Answered] = self.results(predictor)
        if not self.is_tuned:
            return results
        fold = tuning.folds([self.split_key(item) for item in self.data.dev])
        cuts = tuning.cross_fitted(self._threshold(results), fold)
        return [predictor.decided(result, float(cut)) for result, cut in zip(results, cuts, strict=True)]

    def _threshold(self, results: list[Answered]) -> Any:
        margins, worth, has = AnswerScores(self.data.dev, results).if_answered()
        return lambda rows: np.array(best_threshold(margins[rows], worth[rows], has[rows])[0])


def too_few(has: Sequence[bool]) -> str | None:
    """Return why no threshold can be found on questions that have an answer or none; None where one can."""
    if len(has) < tuning.ENOUGH:
        return f"{len(has):,} held-out questions, and at least {tuning.ENOUGH} are wanted"
    for count, what in ((len(has) - sum(has), "no answer"), (sum(has), "one")):
        if count < tuning.FEW:
            return f"{count} of {len(has):,} held-out questions have {what}, and at least {tuning.FEW} are wanted"
    return None


def token_span(tokens: Tokens, gold: Gold, where: str) -> tuple[int, int]:
    """Return the first and the last token of an answer.

    Raises: DataError where the tokenizer makes nothing of it.
    """
    first = int(np.searchsorted(tokens.ends, gold.start, side="right"))
    last = int(np.searchsorted(tokens.starts, gold.end, side="left")) - 1
    if first > last:
        raise DataError(f"{where}: this tokenizer makes no token of the answer {gold.text!r}; leave the question out")
    return first, last


OBJECTIVE = QaObjective
