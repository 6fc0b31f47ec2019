"""What a fine-tuned model is used through, whatever its task: items in, results out, everything between by the one engine."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from ..data.examples import Examples
from ..data.over import Over, Place, along, here
from ..errors import TaskError
from ..infer.arrays import to_numpy
from ..infer.backends import Backend
from ..infer.engine import Engine, Request
from .encode import Frame, chunks
from .kinds import model_folder, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.load import Head
    from .findings import Findings
    from .recipe import TaskData

CHUNK = 1024  # items that are encoded, run and decoded together
USUAL = 512  # tokens of a window, where neither the user nor the model says less


class Scores(Protocol):
    """The numbers of labelled items, as functions of how often each item is drawn: what a bootstrap needs."""

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each number for each row of weights. Shapes: weights (R, items); every value (R,), not a number where there is none."""

    def counts(self) -> dict[str, int]:
        """Return over how many things (items, entities, questions) each number is taken."""

    def details(self) -> dict[str, Any]:
        """Return what is told beside the numbers (per label, confusions), as JSON holds it."""


class Predictor(ABC):
    """A fine-tuned model with its tokenizer; `settings` is what its config.json says under "unmask". Threads may share one.

    `max_length` is the window, by default that of training; `options` go to the Engine (max_tokens, precision).
    """

    name: ClassVar[str]
    head: ClassVar[Head]
    best: Any = ("f1", True)  # the number that a model is known by, and whether a higher one is better

    def __init__(
        self,
        model: PreTrainedModel | Backend,
        tokenizer: Any,
        *,
        config: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, Backend):
            from ..model.load import check_fit

            check_fit(model, tokenizer, max_length)
            config = model.config.to_dict() if config is None else config
        self.engine = Engine(model, **options)
        self.tokenizer, self.frame = tokenizer, Frame(tokenizer)
        self.config: Mapping[str, Any] = config or {}
        self.settings: dict[str, Any] = dict(self.config.get("unmask") or {})
        names = self.config.get("id2label") or {}
        self.labels = [str(names[key]) for key in sorted(names, key=int)]
        limits = [limit for limit in (self.engine.max_length, max_length or self.settings.get("max_length") or USUAL) if limit is not None]
        self.max_length = min(limits)
        self.over: Over | None = None  # where chunks of items are predicted: here, unless a Cluster has set it

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: str = "auto", on: Place | None = None, **options: Any) -> Self:
        """Return the predictor of a model folder, an exported one, a run's folder or a Hub id; `options` as of the class.

        `on` is a Cluster that predicts, with the model sent to its workers.
        Raises: CheckpointError, TokenizerError; TaskError for a model of another task.
        """
        from ..infer.load import load

        name = model_folder(name_or_path)
        other = task_of(name)
        if other not in (None, cls.name):
            raise TaskError(f"'{name_or_path}' is a model for {other}, not for {cls.name}")
        model, tokenizer = load(name, device=device if on is None else "cpu", head=cls.head)
        config = None
        if isinstance(model, Backend):
            config = json.loads((Path(name).expanduser() / "config.json").read_text(encoding="utf-8"))
        made = cls(model, tokenizer, config=config, **options)
        if on is not None:
            on.spread(made, name, partial(cls.load, **{**options, "precision": made.engine.precision_name}), device=device)
        return made

    @abstractmethod
    def encode(self, items: Sequence[Any]) -> Examples:
        """Return items as segments of at most `max_length` tokens, an example each; nothing of a long one is left out."""

    @abstractmethod
    def decode(self, items: Sequence[Any], examples: Examples, rows: np.ndarray) -> list[Any]:
        """Return a result for each item from what the model said at the rows of its segments. Shapes: rows (N, V)."""

    @abstractmethod
    def fault(self, item: Any) -> str | None:
        """Return why an item cannot be predicted, None where it can; such an item is told in its result, and does not stop the others."""

    @abstractmethod
    def failed(self, error: str) -> Any:
        """Return the result of an item that cannot be predicted."""

    @abstractmethod
    def score(self, items: Sequence[Any], results: Sequence[Any]) -> Scores:
        """Return the numbers of results beside what labelled items say is right."""

    @abstractmethod
    def record(self, item: Any, result: Any) -> dict[str, Any]:
        """Return a line of predictions.jsonl: an item, what is right where that is known, and what was predicted."""

    @abstractmethod
    def shown(self, line: Mapping[str, Any], top_k: int) -> str:
        """Return a line of predictions.jsonl as a person reads it on a terminal."""

    @classmethod
    @abstractmethod
    def read(cls, sources: Sequence[str], data: TaskData) -> tuple[list[Any], Findings]:
        """Return the items of files, labelled or not, and what is wrong with the others."""

    @classmethod
    def items_of(cls, sources: Sequence[str], data: TaskData) -> list[Any]:
        """Return the items of files, labelled or not.

        Raises: DataError where some cannot be used, unless they are to be dropped: then how many is told on the standard error.
        """
        items, findings = cls.read(sources, data)
        findings.refuse(data.on_bad)
        for finding in findings:
            if finding.level != "note":
                print(finding, file=sys.stderr)
        return items

    def one_or_many(self, items: Any, alone: tuple[type, ...]) -> Any:
        """Return the result of an item, which is of one of the types `alone`, or a list of those of many.

        Raises: TaskError for an item that cannot be predicted (in a list, its result says so in `error`).
        """
        if isinstance(items, alone):
            (result,) = self.stream([items])
            if result.error is not None:
                raise TaskError(result.error)
            return result
        return list(self.stream(items))

    def requests(self, examples: Examples) -> Iterator[Request]:
        """Yield what the model is asked about examples, a request a segment."""
        first = np.searchsorted(examples.label_positions, examples.bounds)
        for number, (low, high) in enumerate(zip(examples.bounds[:-1].tolist(), examples.bounds[1:].tolist(), strict=True)):
            places = examples.label_positions[first[number] : first[number + 1]] - low
            types = None if examples.token_type_ids is None else examples.token_type_ids[low:high]
            yield Request(examples.input_ids[low:high], places, token_type_ids=types)

    def outputs(self, examples: Examples) -> np.ndarray:
        """Return what the model says at the rows of examples, in their order. Shapes: (N, V) fp32."""
        parts = [to_numpy(part) for (part,) in self.engine.run(self.requests(examples), lambda logits: (logits,))]
        return np.concatenate(parts) if parts else np.zeros((0, max(1, len(self.labels))), np.float32)

    def stream(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield a result for each of any number of items, in order and in bounded memory; one that fails says why in its `error`."""
        return (result for _, result in self.pairs(items))

    def pairs(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each item with its result, as `stream` does."""
        for chunk, results in along(self.over or here(self), _predicted, self.parts(items), lambda chunk: chunk):
            yield from zip(chunk, results, strict=True)

    def parts(self, items: Iterable[Any]) -> Iterator[list[Any]]:
        """Yield items in lists of those that are encoded, run and decoded together."""
        return chunks(items, CHUNK)

    def predicted(self, chunk: Sequence[Any]) -> list[Any]:
        """Return a result for each of a few items."""
        faults = [self.fault(item) for item in chunk]
        good = [item for item, fault in zip(chunk, faults, strict=True) if fault is None]
        examples = self.encode(good)
        results = iter(self.decode(good, examples, self.outputs(examples)))
        return [next(results) if fault is None else self.failed(fault) for fault in faults]


def _predicted(predictor: Predictor, chunks: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    return map(predictor.predicted, chunks)
