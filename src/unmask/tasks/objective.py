"""Fine-tuning for a task as an objective of the loop: what all tasks share, and what a task's file must say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..data.clean import split_of
from ..data.examples import ExampleLoader, Examples
from ..data.tokenizer import load_tokenizer
from ..data.whole import whole_file
from ..errors import ConfigError, DataError
from ..model.heads import forward_packed
from ..model.load import Head, check_fit, check_folder, load_model, max_positions, position_offset
from ..model.memory import tune_allocator
from ..model.new_head import with_new_head
from ..train import lora, row_gradients
from ..train.compiling import encoder_layers
from ..train.distributed import launched
from ..train.objective import Objective
from ..train.precision import choose
from ..train.setup import MICRO_TOKENS, find_device
from ..train.trackers import check as check_trackers
from .card import task_card
from .findings import Findings
from .predictor import USUAL, Predictor, Scores
from .recipe import TaskData, TaskRecipe, by_size

DATA = "data.json"  # in the run's folder: what was trained on, and a hash of it
TOLD = ("dropped", "warning")


@dataclass(frozen=True)
class Spec:
    """What the labels of the data ask of the model: the names of its outputs, fields of its config.json, and of "unmask" in there."""

    labels: Sequence[str] | None
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The labelled items of a run."""

    train: list[Any]
    dev: list[Any]
    spec: Spec
    findings: Findings


@dataclass(frozen=True)
class Final:
    """What a finished model says of the held-out items."""

    predictor: Predictor
    items: list[Any]
    results: list[Any]
    scores: Scores


class TaskObjective(Objective):
    """Fine-tunes a model for a task. A task's file subclasses it, and says what is abstract or only declared here.

    `options_type` is a frozen dataclass of the task's own settings, [options] of a recipe; `predictor_type` is what its models are used
    through.
    """

    name: ClassVar[str]
    hide_prob: ClassVar[float] = 0.15  # of tokens, where the recipe does not say it: as in pre-training
    head: ClassVar[Head]
    options_type: ClassVar[type]
    predictor_type: ClassVar[type[Predictor]]
    pipeline_tag: ClassVar[str]  # by which a model hub knows the task
    final: Final | None = None  # once the run has ended

    # what a task's file says of its data; `data.sources` and `data.dev` are read by the same function

    @classmethod
    @abstractmethod
    def read(cls, sources: Sequence[str], data: TaskData, options: Any) -> tuple[list[Any], Findings]:
        """Return the labelled items of files that can be used, and what is wrong with the others. An item has `id` and `where`."""

    @classmethod
    def read_for(cls, predictor: Any, data: TaskData) -> tuple[list[Any], Findings]:
        """Return the labelled items of files for a model that is to be measured on them; labels that it does not have are errors."""
        return cls.read(data.sources, data, cls.options_type())

    @classmethod
    @abstractmethod
    def split_key(cls, item: Any) -> str:
        """Return the text by whose hash an item is on one side of a split: what must not be on both."""

    @classmethod
    @abstractmethod
    def settle(cls, train: list[Any], dev: list[Any], options: Any, findings: Findings, *, given_dev: bool) -> Spec:
        """Return what the data asks of the model; add to `findings` what is wrong between the two parts, and take it out of the lists.

        Without `given_dev` the second part was split off by the hash of `split_key`.
        """

    @classmethod
    def describe(cls, data: Data) -> dict[str, Any]:
        """Return what `unmask doctor` and --dry-run tell of the data beside the findings (the balance of labels, say)."""
        return {}

    # what it says of training

    @abstractmethod
    def labelled(self, items: Sequence[Any]) -> Examples:
        """Return items with labels as segments of at most `self.predictor.max_length` tokens, for `loss_from`."""

    @abstractmethod
    def loss_from(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the summed loss of the rows of a batch. Shapes: logits (N, V) fp32; `batch.labels` (N, ...) as `labelled` made them."""

    @property
    @abstractmethod
    def best(self) -> tuple[str, bool]:
        """The number by which the best checkpoint is known, and whether a higher one is better."""

    def sampling(self) -> np.ndarray | None:
        """Return the weights by which training items are drawn, (items,); None: every one once an epoch."""
        return None

    def complete(self, predictor: Predictor) -> dict[str, Any]:
        """Return settings that are found on `self.data.dev` when training has ended (thresholds, a temperature), for config.json."""
        return {}

    # what is the same for all

    def __init__(self, recipe: TaskRecipe, folder: Path, *, model_folder: Path | None, say: Callable[[str], None]) -> None:
        tune_allocator()
        self.device = find_device(recipe.train.device, setting="train.device")
        self.precision = choose(recipe.train.precision, self.device, setting="train.precision")
        check_trackers(recipe.train.trackers)
        lora.check(recipe.lora, recipe.base_model)
        self.options = recipe.options
        if model_folder is None:
            check_folder(recipe.base_model)
        self.data = self.load_data(recipe)
        self.data.findings.refuse(recipe.data.on_bad)
        check_same(folder, recipe, self.data)
        for finding in self.data.findings:
            if finding.level in TOLD and model_folder is None:
                say(str(finding))
        self.tokenizer = load_tokenizer(model_folder or recipe.base_model)
        self.model = self.find_model(recipe, folder, model_folder)
        check_fit(self.model, self.tokenizer, recipe.data.max_length)
        self.recipe = dataclasses.replace(
            by_size(recipe, int(getattr(self.model.config, "hidden_size", 0))),
            train=dataclasses.replace(recipe.train, precision=self.precision.name),
        )
        self.model.to(self.device)  # type: ignore[arg-type]
        if launched()[1] == 1:  # several processes add up whole gradients
            row_gradients.enable(self.model)
        self.predictor = self.predictor_type(self.model, self.tokenizer, precision=self.precision.name)
        self.loader = ExampleLoader(
            self.labelled(self.data.train), seed=recipe.train.seed, batch_size=recipe.data.batch_size,
            micro_tokens=recipe.data.micro_tokens or MICRO_TOKENS.get(self.device.type, 8192),
            position_offset=position_offset(self.model), pad_id=self.tokenizer.pad_token_id, weights=self.sampling(),
            **self.hiding(recipe),
        )  # fmt: skip
        self.dev = self.predictor.encode(self.data.dev)

    def hiding(self, recipe: TaskRecipe) -> dict[str, Any]:
        """Return what the loader needs to hide tokens behind the mask token, where the recipe asks for it.

        Raises: ConfigError for a tokenizer without one.
        """
        mask_id, given = self.tokenizer.mask_token_id, recipe.data.hide_prob
        if given and mask_id is None:
            raise ConfigError(f"data.hide_prob = {given}: '{recipe.base_model}' has no mask token; leave it 0")
        share = (self.hide_prob if mask_id is not None else 0.0) if given is None else given
        if not share:
            return {}
        can_hide = np.ones(len(self.tokenizer), dtype=bool)
        can_hide[self.tokenizer.all_special_ids] = False
        return {"hide_prob": share, "mask_id": mask_id, "can_hide": can_hide}

    @classmethod
    def make(cls, recipe: TaskRecipe, folder: Path, *, model_folder: Path | None = None, say: Callable[[str], None]) -> TaskObjective:
        """Return the objective of a recipe in a run's folder, with the model from `model_folder` (a checkpoint) where one is given."""
        return cls(recipe, folder, model_folder=model_folder, say=say)

    @classmethod
    def load_data(cls, recipe: TaskRecipe) -> Data:
        """Return the items of a recipe, split where no dev files are named, with all that is found to be wrong with them."""
        if not recipe.data.sources:
            raise ConfigError("no labelled data is named: give --train FILES (data.sources in a recipe)")
        items, findings = cls.read(recipe.data.sources, recipe.data, recipe.options)
        if recipe.data.dev:
            train = items
            dev, more = cls.read(recipe.data.dev, recipe.data, recipe.options)
            findings.merge(more)
        else:
            share = recipe.data.share_of(len(items))
            sides = [split_of(cls.split_key(item), share) for item in items]
            train = [item for item, side in zip(items, sides, strict=True) if side == "train"]
            dev = [item for item, side in zip(items, sides, strict=True) if side != "train"]
        if not train:
            held = "" if recipe.data.dev or not dev else f": all that can be used ({len(dev):,}) are held out; give more, or --dev FILES"
            said = f"{', '.join(recipe.data.sources)}: no example is left to train on{held}"
            raise DataError(said + "".join(f"\n  {f}" for f in findings))
        if not dev:
            findings.add("warning", "no_dev", "no example is held out to measure on: the data is too small for data.dev_share", count=0)
        return Data(train, dev, cls.settle(train, dev, recipe.options, findings, given_dev=bool(recipe.data.dev)), findings)

    def find_model(self, recipe: TaskRecipe, folder: Path, model_folder: Path | None) -> Any:
        """Return the model of a run: a checkpoint's, or the base model with a new head; with LoRA, its matrices beside the base's."""
        if recipe.lora.r:
            base = lora.keep_base(folder, lambda: self.start_model(recipe), self.tokenizer)
            model = load_model(base, head=self.head, tokenizer=self.tokenizer)
            lora.inject(model, recipe.lora, seed=recipe.train.seed, head=True)
            return model
        model = load_model(model_folder, head=self.head, tokenizer=self.tokenizer) if model_folder is not None else self.start_model(recipe)
        freeze(model, recipe.freeze)
        return model

    def start_model(self, recipe: TaskRecipe) -> Any:
        """Return the model that a run begins with: the base model with a new head."""
        spec = self.data.spec
        model = with_new_head(
            recipe.base_model, self.head, labels=spec.labels, seed=recipe.train.seed, tokenizer=self.tokenizer, settings=spec.config
        )
        limit = max_positions(model)
        window = recipe.data.max_length or min(limit or USUAL, USUAL)
        model.config.unmask = {"task": self.name, "max_length": window, **spec.settings}
        return model

    def loss_sum(self, model: Any, batch: Any) -> torch.Tensor:
        """Return the summed loss of a micro-batch."""
        batch = batch.to(self.device)
        with self.precision.autocast():
            logits = forward_packed(model, batch)
        return self.loss_from(logits.float(), batch)

    @property
    def is_measured(self) -> bool:
        """Whether there are items to measure on."""
        return bool(self.data.dev)

    def results(self, predictor: Predictor) -> list[Any]:
        """Return what a predictor says of the items that are measured on."""
        return predictor.decode(self.data.dev, self.dev, predictor.outputs(self.dev))

    def evaluate(self) -> dict[str, Any]:
        """Return the numbers of the model as it stands."""
        scores = self.predictor.score(self.data.dev, self.results(self.predictor))
        self.predictor.engine.backend.forget()  # the next steps change the weights
        return point(scores, len(self.data.dev))

    def rank(self, metrics: dict[str, Any]) -> float:
        """Return the number of `best`, the lower the better."""
        name, higher = self.best
        value = metrics[name]
        if value is None or value != value:
            return float("inf")
        return -float(value) if higher else float(value)

    def line(self, metrics: dict[str, Any]) -> str:
        """Return an evaluation as the user is told of it."""
        return f"{self.best[0]} {metrics[self.best[0]]:.4f} on {metrics['num_examples']:,} held-out examples"

    def load_predictor(self, folder: Path) -> Predictor:
        """Return the predictor of a finished model, on the device and in the precision of the run."""
        return self.predictor_type.load(folder, device=str(self.device), precision=self.precision.name)

    def final_results(self, predictor: Predictor) -> list[Any]:
        """Return the results of a finished model; a task that tunes settings on the same items says here what they are without that."""
        return self.results(predictor)

    def finish(self, folder: Path, metrics: dict[str, Any], totals: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        """Store what is found on the held-out items in config.json, and write the card."""
        if self.is_measured:
            write_settings(folder, self.complete(self.load_predictor(folder)))
            predictor = self.load_predictor(folder)
            results = self.final_results(predictor)
            scores = predictor.score(self.data.dev, results)
            self.final = Final(predictor, self.data.dev, results, scores)
            metrics = point(scores, len(self.data.dev))
        result = {"task": self.name, "best": self.best[0], **metrics, **({"untrained": info["start"]} if "start" in info else {}), **totals}
        (folder / "README.md").write_text(task_card(self, result), encoding="utf-8")
        return result


def point(scores: Scores, count: int) -> dict[str, Any]:
    """Return the numbers of scores, and how many items they are of."""
    found = {name: float(value[0]) for name, value in scores.of(np.ones((1, count))).items()}
    return {**found, "num_examples": count}


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Add to what the config.json of a folder says under "unmask"."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["unmask"] = {**config.get("unmask", {}), **settings}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def freeze(model: Any, count: int) -> None:
    """Let the embeddings and the first layers of a model keep their weights.

    Raises: ConfigError for more layers than there are.
    """
    if not count:
        return
    layers = encoder_layers(model, every=True)
    if count > len(layers):
        raise ConfigError(f"freeze = {count}, and the model has {len(layers)} layers that can be frozen; allowed: 0 to {len(layers)}")
    above = {id(parameter) for layer in layers[count:] for parameter in layer.parameters()}
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    tables = {id(parameter) for name, parameter in model.base_model.named_parameters() if "embed" in name and id(parameter) not in inside}
    for parameter in model.parameters():
        if id(parameter) in tables or (id(parameter) in inside and id(parameter) not in above):
            parameter.requires_grad_(False)


def check_same(folder: Path, recipe: TaskRecipe, data: Data) -> None:
    """Write down what a run trains on, or check that it still is what it was when the run began.

    Raises: DataError where the files have changed.
    """
    digest = hashlib.sha256()
    for item in [*data.train, "dev", *data.dev]:
        digest.update(repr(item).encode("utf-8", errors="backslashreplace"))
    path = folder / DATA
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))["hash"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"'{path}' is not the record of the data that the run began with ({error}); if the files of the data are as they were, "
                "remove it, and go on"
            ) from None
        if known != digest.hexdigest()[:16]:
            raise DataError(
                f"the data of the run in '{folder}' is not what it was when the run began ({', '.join(recipe.data.sources)}): "
                "put the files back as they were, or start a new run"
            )
        return
    record = {
        "hash": digest.hexdigest()[:16], "num_train": len(data.train), "num_dev": len(data.dev),
        "labels": None if data.spec.labels is None else list(data.spec.labels), "findings": data.findings.to_list(),
    }  # fmt: skip
    with whole_file(path) as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
