"""How a model is fine-tuned to find entities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from ..data.clean import content_hash
from ..data.examples import Examples
from ..errors import DataError
from .classify_data import balanced_weights, read_names
from .findings import Findings
from .losses import LossOptions, cross_entropy, label_weights
from .ner import Tagger
from .ner_data import TaggedText, read_tagged
from .ner_scores import word_tags
from .ner_tags import Span, labels_of, tags_of
from .objective import Data, Spec, TaskObjective
from .recipe import TaskData

IGNORED = -1  # the label of a row that is not learnt from


@dataclass(frozen=True)
class NerOptions(LossOptions):
    """How entities are tagged, and how that is learnt; class_weights are of types, and of "O"."""

    scheme: Literal["bio", "bioes", "bilou"] = "bio"  # of the model's tags, whatever that of the files is
    label_names: str | None = None  # a file with a tag a line, where the tags are numbers from 0
    token_loss: Literal["first", "all"] = "first"  # what is learnt of a word of several pieces: its first piece, or all
    best: Literal["f1", "macro_f1", "partial_f1"] = "f1"  # the number by which the best checkpoint is known


class NerObjective(TaskObjective):
    """Fine-tunes a model to find entities."""

    name, head, pipeline_tag = "ner", "token_classification", "token-classification"
    options_type, predictor_type = NerOptions, Tagger
    predictor: Tagger

    @classmethod
    def read(cls, sources: Sequence[str], data: TaskData, options: NerOptions) -> tuple[list[TaggedText], Findings]:
        """Return the texts of files with their entities."""
        return read_tagged(sources, data, names=tag_names(options))

    @classmethod
    def read_for(cls, predictor: Tagger, data: TaskData) -> tuple[list[TaggedText], Findings]:
        """Return the texts of files whose types of entities the model has; tags that stand as numbers are those of its training files."""
        items, findings = read_tagged(data.sources, data, names=predictor.settings.get("tag_names", predictor.labels))
        unknown(items, set(predictor.types), findings, f"none of the model's: {', '.join(predictor.types[:20])}")
        there = types(items)
        findings.absent("type of the model stands in no text", [repr(kind) for kind in predictor.types if kind not in there])
        return items, findings

    @classmethod
    def split_key(cls, item: TaggedText) -> str:
        """Return what an item says."""
        return item.text

    @classmethod
    def settle(
        cls, train: list[TaggedText], dev: list[TaggedText], options: NerOptions, findings: Findings, *, given_dev: bool
    ) -> Spec:  # fmt: skip
        """Return the tags of the types of entities that the training data has; dev items with others are errors."""
        counts = types(train)
        if not counts:
            raise DataError("there is no entity in the training data: there is nothing to learn; give texts with entities")
        if not given_dev:
            for kind in sorted(types(dev).keys() - counts.keys()):
                findings.add("warning", "untrained_type", "type is in the held-out part alone; give dev files, or more texts", repr(kind))
        known = set(counts) if given_dev else {*counts, *types(dev)}
        unknown(dev, known, findings, "in the held-out data, and in no training text")
        check(train, dev, findings)
        for kind, count in counts.items():
            if count < 5:
                findings.add("warning", "rare_type", "type has fewer than 5 entities to train on", f"{kind!r}: {count}")
        if dev:
            there = types(dev)
            lost = [f"{kind!r} ({count:,} to train on)" for kind, count in counts.items() if kind not in there]
            findings.absent("type of the training data stands in no held-out text", lost)
        settings: dict[str, Any] = {"scheme": "bio" if options.scheme == "bio" else "bioes"}
        if options.label_names is not None:
            settings["tag_names"] = tag_names(options)
        return Spec(labels_of(sorted(known), options.scheme), {}, settings)

    @classmethod
    def describe(cls, data: Data) -> dict[str, Any]:
        """Return how many words and entities there are, of which types, and the weights by which all would count alike."""
        counts = types(data.train)
        inside = Counter(tag for item in data.train for tag in kinds_of(item.words, item.entities or ()))
        return {
            "num_words": sum(len(item.words) for item in data.train), "num_entities": sum(counts.values()),
            "texts_without_entities": sum(not item.entities for item in data.train), "types": counts, "types_of_dev": types(data.dev),
            "balanced_weights": balanced_weights(inside),
        }  # fmt: skip

    @property
    def best(self) -> tuple[str, bool]:
        """The number by which the best checkpoint is known."""
        return self.options.best, True

    def labelled(self, items: Sequence[TaggedText]) -> Examples:
        """Return texts as segments, with a tag for each word (or piece) that is learnt."""
        examples = self.predictor.encode(items, every=self.options.token_loss == "all")
        rows = np.asarray(examples.labels)
        owner = examples.example[np.searchsorted(examples.bounds, examples.label_positions, side="right") - 1]
        starts = np.searchsorted(owner, np.arange(len(items) + 1))
        self.number = {label: place for place, label in enumerate(self.predictor.labels)}
        labels = np.full(len(rows), IGNORED, np.int64)
        for place, item in enumerate(items):
            part = slice(starts[place], starts[place + 1])
            labels[part], lost = self._tags(rows[part], item.entities or ())
            if lost:
                text = "entity is in one piece of the model's vocabulary with another, or in none: it is not learnt from"
                self.data.findings.add("warning", "shared_piece", text, item.where, lost)
        self.weights = self.tag_weights(items)
        return replace(examples, labels=labels)

    def _tags(self, rows: np.ndarray, entities: Sequence[Span]) -> tuple[list[int], int]:
        """Return the number of the tag of each row of a text, and how many entities have none."""
        is_first = rows[:, 2] > 0
        words = rows[is_first]
        spans: list[Span] = []
        for start, stop, kind in sorted(entities):
            low = max(int(np.searchsorted(words[:, 1], start, side="right")), spans[-1][1] if spans else 0)
            high = int(np.searchsorted(words[:, 0], stop, side="left"))
            if low < high:
                spans.append((low, high, kind))
        tags = tags_of(spans, len(words), self.options.scheme)
        found, place = [], -1
        for first, (_, stop, _) in zip(is_first.tolist(), rows.tolist(), strict=True):
            place += first
            if not stop:
                found.append(IGNORED)
            else:  # of a word's later pieces, its tag as inside of the entity
                tag = tags[place]
                if not first and tag != "O":
                    letter = {"B": "I", "S": "E", "U": "L"}.get(tag[0], tag[0])
                    tag = letter + tag[1:]
                found.append(self.number[tag])
        return found, len(entities) - len(spans)

    def tag_weights(self, items: Sequence[TaggedText]) -> torch.Tensor:
        """Return the weight of each tag, (L,)."""
        inside = Counter(kind for item in items for kind in kinds_of(item.words, item.entities or ()))
        weights = label_weights(self.options.class_weights, ["O", *self.predictor.types], balanced_weights(inside))
        return torch.tensor([weights["O" if label == "O" else label[2:]] for label in self.predictor.labels])

    def row_weights(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the weight of each row, (N,); 0 for one that is not learnt from."""
        return self.weights.to(labels.device)[labels.clamp(min=0)] * (labels != IGNORED)

    def count(self, batch: Any) -> float:
        """Return the weight of the rows of a batch, as cross-entropy with weights divides by it."""
        return float(self.row_weights(batch.labels).sum())

    def loss_from(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the summed loss of the rows of a batch."""
        loss = cross_entropy(logits, batch.labels.clamp(min=0), self.options.gamma)
        return (loss * self.row_weights(batch.labels)).sum()


def tag_names(options: NerOptions) -> list[str] | None:
    """Return what tags are called that stand as numbers; None where that is not said."""
    return None if options.label_names is None else read_names(options.label_names)


def types(items: Sequence[TaggedText]) -> dict[str, int]:
    """Return how many entities of each type there are, the most frequent first."""
    return dict(Counter(kind for item in items for *_, kind in item.entities or ()).most_common())


def kinds_of(words: Sequence[tuple[int, int]], entities: Sequence[Span]) -> list[str]:
    """Return for each word the type of the entity that it is in, or "O"."""
    return [tag if tag == "O" else tag[2:] for tag in word_tags(words, entities)]


def unknown(items: list[TaggedText], known: set[str], findings: Findings, what: str) -> None:
    """Take texts with entities of unknown types out of a list, each of them a finding."""
    kept = []
    for item in items:
        wrong = next((kind for *_, kind in item.entities or () if kind not in known), None)
        if wrong is None:
            kept.append(item)
        else:
            findings.add("error", f"unknown_type:{wrong}", f"text has an entity of type {wrong!r}, which is {what}", item.where)
    items[:] = kept


def check(train: Sequence[TaggedText], dev: Sequence[TaggedText], findings: Findings) -> None:
    """Add to the findings texts that stand in the data twice, with other entities, or on both sides."""
    seen: dict[int, TaggedText] = {}
    for item in train:
        before = seen.setdefault(content_hash(item.text), item)
        if before is not item and before.entities == item.entities:
            findings.add("warning", "duplicate", "text stands in the training data more than once", item.where)
        elif before is not item:
            findings.add("warning", "conflict", "text stands in the training data with different entities", item.where)
    for item in dev:
        if content_hash(item.text) in seen:
            findings.add("warning", "leak", "text of the held-out data stands in the training data too", item.where)


OBJECTIVE = NerObjective
