"""How a model is fine-tuned to classify texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from ..data.examples import Examples
from ..errors import ConfigError, DataError
from . import tuning
from .classify import BEST, PROBLEMS, Classified, Classifier
from .classify_data import TextItem, balance, balanced_weights, check, in_order, named, number, parted, problem_of, read_items, read_names
from .findings import Findings
from .losses import LossOptions, cross_entropy, label_weights
from .objective import Data, Spec, TaskObjective
from .predictor import Predictor
from .recipe import TaskData, TaskRecipe

LOWER = ("log_loss", "hamming_loss", "expected_calibration_error", "mean_squared_error", "root_mean_squared_error", "mean_absolute_error")
METRICS = (
    "accuracy", "macro_f1", "weighted_f1", "micro_f1", "matthews_correlation", "auroc", "macro_auroc", "macro_average_precision",
    "exact_match", "log_loss", "root_mean_squared_error", "mean_absolute_error", "pearson", "spearman",
)  # fmt: skip


@dataclass(frozen=True)
class ClassifyOptions(LossOptions):
    """How texts are classified, and how that is learnt."""

    problem: Literal["auto", "single", "multi", "regression"] = "auto"  # one label a text, any number, a number; auto: as the data looks
    label_separator: str | None = None  # what parts the labels of a text that stand in one field; unset: found
    label_names: str | None = None  # a file with a name a line, where the labels are numbers from 0
    pooling: Literal["cls", "mean"] = "cls"  # what the head reads: the first token, or the mean of all (where the stock class can)
    window_pooling: Literal["mean", "max"] = "mean"  # of a text that is longer than the window, how its windows' logits become one
    sampling: Literal["all", "balanced"] = "all"  # balanced: examples of rare labels are drawn more often
    best: str | None = None  # the number by which the best checkpoint is known
    calibrate: bool = True  # a temperature (and for several labels thresholds) is found on the held-out examples, if they are enough

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best is not None and self.best not in METRICS:
            raise ConfigError(f"options.best = {self.best!r}; allowed: {', '.join(METRICS)}")


class ClassifyObjective(TaskObjective):
    """Fine-tunes a model to classify texts."""

    name, head, pipeline_tag = "classify", "sequence_classification", "text-classification"
    options_type, predictor_type = ClassifyOptions, Classifier
    predictor: Classifier

    @classmethod
    def read(cls, sources: Sequence[str], data: TaskData, options: ClassifyOptions) -> tuple[list[TextItem], Findings]:
        """Return the labelled texts of files."""
        return read_items(sources, data)

    @classmethod
    def read_for(cls, predictor: Classifier, data: TaskData) -> tuple[list[TextItem], Findings]:
        """Return the labelled texts of files whose labels the model has; where labels stand as numbers, its own order is meant."""
        items, findings = read_items(data.sources, data)
        if predictor.problem == "regression":
            drop(items, lambda item: not item.label or number(item.label[0]) is None, findings, "not_a_number",
                 "label is not a number, which regression asks for")  # fmt: skip
            return items, findings
        items = parted(items, predictor.separator) if predictor.problem == "multi" else items
        known = set(predictor.labels)
        seen = {label for item in items for label in item.label or ()}
        if not seen & known and all(label.isdigit() and int(label) < len(known) for label in seen):
            findings.add("note", "numbers", "the labels are numbers: the model's own are meant, in its order", count=0)
            items = [replace(item, label=tuple(predictor.labels[int(label)] for label in item.label or ())) for item in items]
        if predictor.problem == "single":
            drop(items, lambda item: len(item.label or ()) != 1, findings, "not_one_label", "text has several labels or none")
        for label in sorted({label for item in items for label in item.label or ()} - known):
            drop(items, lambda item, label=label: label in (item.label or ()), findings, f"unknown_label:{label}",
                 f"label {label!r} is none of the model's: {', '.join(predictor.labels[:20])}")  # fmt: skip
        there = {label for item in items for label in item.label or ()}
        findings.absent("label of the model stands in no example", [repr(label) for label in predictor.labels if label not in there])
        return items, findings

    @classmethod
    def split_key(cls, item: TextItem) -> str:
        """Return what an item says."""
        return f"{item.text}\x1f{item.pair or ''}"

    @classmethod
    def settle(cls, train: list[TextItem], dev: list[TextItem], options: ClassifyOptions, findings: Findings, *, given_dev: bool) -> Spec:
        """Return the labels, and of what kind they are; dev items with a label that no training item has are errors."""
        problem, separator = problem_of((item.label or () for item in train), options.label_separator)
        if options.problem != "auto":
            if options.problem == "multi" and separator is None:
                separator = ","
            problem, separator = options.problem, separator if options.problem == "multi" else None
        if separator:
            findings.add("note", "separator", f"several labels of a text are parted by {separator!r}", count=0)
        settings: dict[str, Any] = {"problem": problem, "window_pooling": options.window_pooling}
        config = {"problem_type": PROBLEMS[problem], "classifier_pooling": options.pooling}
        if problem == "regression":
            for part in (train, dev):
                drop(part, lambda item: not item.label or number(item.label[0]) is None, findings, "not_a_number",
                     "label is not a number, which regression asks for")  # fmt: skip
            if len({item.label for item in train}) < 2:
                raise DataError("every training example has the same number: there is nothing to learn; give others too")
            check(train, dev, findings, given_dev=given_dev, numbers=True)
            return Spec(["value"], config, settings)
        train[:], dev[:] = parted(train, separator), parted(dev, separator)
        if problem == "single":
            for part in (train, dev):
                drop(part, lambda item: len(item.label or ()) != 1, findings, "not_one_label",
                     "text has several labels or none, where problem = single asks for one")  # fmt: skip
        names = None
        if options.label_names is not None:
            names = read_names(options.label_names)
            train[:], dev[:] = named(train, names, findings), named(dev, names, findings)
        trained = {label for item in train for label in item.label or ()}
        seen = trained if given_dev else trained | {label for item in dev for label in item.label or ()}
        if len(trained) < (2 if problem == "single" else 1):
            raise DataError(
                f"every training example has the same label, {next(iter(trained), None)!r}: there is nothing to learn; give others"
            )
        for label in sorted({label for item in dev for label in item.label or ()} - seen):
            drop(dev, lambda item, label=label: label in (item.label or ()), findings, f"unknown_label:{label}",
                 f"held-out example has the label {label!r}, which no training example has")  # fmt: skip
        check(train, dev, findings, given_dev=given_dev)
        settings["label_separator"] = separator
        why = tuning.too_few([frozenset(item.label or ()) for item in dev]) if options.calibrate and dev else None
        if why is not None:
            what = "no temperature is" if problem == "single" else "no temperature and no thresholds are"
            findings.add("warning", "uncalibrated", f"{what} fitted: {why}; probabilities are as the model has them", count=0)
            settings["uncalibrated"] = why
        return Spec(names or in_order(seen), config, settings)

    @classmethod
    def describe(cls, data: Data) -> dict[str, Any]:
        """Return the balance of the labels, and the weights by which all would count alike."""
        if data.spec.settings["problem"] == "regression":
            values = np.array([number(item.label[0]) for item in data.train if item.label], float)
            return {"problem": "regression", "least": values.min(), "mean": values.mean(), "most": values.max()}
        counts = balance(data.train)
        return {
            "problem": data.spec.settings["problem"], "label_separator": data.spec.settings["label_separator"], "labels": counts,
            "labels_of_dev": balance(data.dev), "balanced_weights": balanced_weights(counts),
        }  # fmt: skip

    def start_model(self, recipe: TaskRecipe) -> Any:
        """Return the model that a run begins with; where numbers are learnt, a new head begins at their mean."""
        model = super().start_model(recipe)
        if self.data.spec.settings["problem"] == "regression":
            last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
            values = [number(item.label[0]) for item in self.data.train if item.label]
            if last.bias is not None:
                torch.nn.init.constant_(last.bias, float(np.mean(np.array(values, float))))
        return model

    @property
    def best(self) -> tuple[str, bool]:
        """The number by which the best checkpoint is known."""
        name = self.options.best or BEST[self.predictor.problem]
        return name, name not in LOWER

    def labelled(self, items: Sequence[TextItem]) -> Examples:
        """Return texts as segments, each with the label of its text; windows of one text share its weight."""
        examples = self.predictor.encode(items)
        targets = self.predictor.targets(items)
        # a text counts once, into however many windows it is cut
        self.parts = torch.from_numpy(1.0 / np.bincount(examples.example, minlength=len(items))).float()
        self.weights = self.label_weights(items)
        return Examples(
            input_ids=examples.input_ids, bounds=examples.bounds, example=examples.example, label_positions=examples.label_positions,
            labels=targets[examples.example], names=examples.names, token_type_ids=examples.token_type_ids,
        )  # fmt: skip

    def label_weights(self, items: Sequence[TextItem]) -> torch.Tensor | None:
        """Return the weight of each label, (L,); for several labels, that of a label's presence beside its absence."""
        given = self.options.class_weights
        if not given:
            return None
        if self.predictor.problem == "regression":
            raise ConfigError("options.class_weights: numbers have no classes; leave it out")
        counts = balance(items)
        if self.predictor.problem == "single":
            balanced: dict[str, float] = balanced_weights(counts)
        else:
            balanced = {label: (len(items) - count) / count for label, count in counts.items()}
        weights = label_weights(given, self.predictor.labels, balanced)
        return torch.tensor([weights[label] for label in self.predictor.labels])

    def sampling(self) -> np.ndarray | None:
        """Return weights by which all labels are drawn as often, where that is asked for."""
        if self.options.sampling == "all":
            return None
        if self.predictor.problem == "regression":
            raise ConfigError("options.sampling = 'balanced': numbers have no classes; leave it out")
        counts = balance(self.data.train)
        rare = {label: 1 / count for label, count in counts.items()}
        usual = min(rare.values())
        return np.array([max((rare[label] for label in item.label or ()), default=usual) for item in self.data.train])

    def row_weights(self, batch: Any) -> torch.Tensor:
        """Return the share of its text that each row has, (N,)."""
        real = batch.documents[batch.documents >= 0]
        return self.parts[real].to(batch.labels.device)

    def count(self, batch: Any) -> float:
        """Return how many texts a batch holds; with class weights, the weight of them, as cross-entropy with weights divides by it."""
        weights = self.row_weights(batch)
        if self.weights is not None and self.predictor.problem == "single":
            weights = weights * self.weights[batch.labels]
        return float(weights.sum())

    def loss_from(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the summed loss of the texts of a batch."""
        return (self.losses(logits, batch.labels) * self.row_weights(batch)).sum()

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each row, (N,): cross-entropy, the mean over labels of binary ones, or the squared error."""
        weights = None if self.weights is None else self.weights.to(logits.device)
        gamma = self.options.gamma
        if self.predictor.problem == "regression":
            return (logits[:, 0] - labels) ** 2
        if self.predictor.problem == "single":
            loss = cross_entropy(logits, labels, gamma)
            return loss if weights is None else loss * weights[labels]
        loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
        if gamma:
            probs = torch.sigmoid(logits)
            loss = loss * (labels * (1 - probs) + (1 - labels) * probs) ** gamma
        return loss.mean(1)

    # after training

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature is found when training has ended."""
        settings = self.data.spec.settings
        return self.options.calibrate and settings["problem"] != "regression" and "uncalibrated" not in settings

    def complete(self, predictor: Predictor) -> dict[str, Any]:
        """Return a temperature, and for several labels thresholds, that all held-out items give."""
        assert isinstance(predictor, Classifier)
        if not self.is_calibrated:
            return {}
        logits, gold = self._dev_logits(predictor)
        everything = np.ones(len(gold), bool)
        settings: dict[str, Any] = {"temperature": float(self._temperature(predictor, logits, gold)(everything))}
        if predictor.problem == "multi":
            probs = predictor.probabilities(logits, settings["temperature"])
            # the mean over folds moves less with single items than what all of them together give
            fold = tuning.folds([self.split_key(item) for item in self.data.dev])
            fitted = tuning.cross_fitted(lambda rows: tuning.thresholds(probs[rows], gold[rows].astype(bool)), fold)
            _, first = np.unique(fold, return_index=True)
            settings["thresholds"] = [float(value) for value in fitted[first].mean(0)]
        return settings

    def final_results(self, predictor: Predictor) -> list[Classified]:
        """Return what the finished model says, of each item with a temperature and thresholds that it had no part in."""
        assert isinstance(predictor, Classifier)
        if not self.is_calibrated:
            return self.results(predictor)
        logits, gold = self._dev_logits(predictor)
        fold = tuning.folds([self.split_key(item) for item in self.data.dev])
        temperature = tuning.cross_fitted(self._temperature(predictor, logits, gold), fold)
        if predictor.problem == "single":
            return predictor.results(self.dev, logits, temperature)
        probs = predictor.probabilities(logits, temperature)
        cuts = tuning.cross_fitted(lambda rows: tuning.thresholds(probs[rows], gold[rows].astype(bool)), fold)
        return predictor.results(self.dev, logits, temperature, cuts)

    def _dev_logits(self, predictor: Classifier) -> tuple[np.ndarray, np.ndarray]:
        return predictor.logits(self.dev, predictor.outputs(self.dev)), predictor.targets(self.data.dev)

    @staticmethod
    def _temperature(predictor: Classifier, logits: np.ndarray, gold: np.ndarray) -> Any:
        multi = predictor.problem == "multi"
        return lambda rows: np.array(tuning.temperature(logits[rows], gold[rows], multi=multi))


def drop(part: list[TextItem], is_bad: Any, findings: Findings, code: str, text: str) -> None:
    """Take the items that cannot be used out of a list, each of them a finding."""
    for item in part:
        if is_bad(item):
            findings.add("error", code, text, item.where)
    part[:] = [item for item in part if not is_bad(item)]


OBJECTIVE = ClassifyObjective
