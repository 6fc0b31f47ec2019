"""A recipe of fine-tuning: everything that a run for a task is made of, as one TOML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..box import or_box
from ..errors import ConfigError
from ..train import recipe as recipes
from ..train.loop import TrainConfig
from ..train.lora import LoraConfig
from ..train.optim import OptimConfig
from ..train.session import tell
from .kinds import task

DEV_SHARE, DEV_ENOUGH = 0.1, 2000  # what is held out to measure on, and how many examples at most


@dataclass(frozen=True)
class TaskData:
    """The labelled examples of a run, and how many of them meet the model at a time."""

    sources: tuple[str, ...] = ()  # files to train on
    dev: tuple[str, ...] = ()  # files to measure on while training; unset: a share of the sources, by a hash of their content
    dev_share: float | None = None  # that share; unset: 0.1, of more than 20,000 examples as much as makes 2,000
    format: str | None = None  # of the files; unset: by their name and content
    encoding: str = "utf-8"  # of the files
    text_column: str | None = None  # of files with columns; unset: found by its name
    label_column: str | None = None  # likewise
    pair_column: str | None = None  # the second text of a pair; unset: there is none, unless found by its name
    on_bad: Literal["error", "drop"] = "error"  # what becomes of examples that cannot be used; drop: they are left out, and counted
    max_length: int | None = None  # tokens in a window, special ones included; unset: what the model has, at most 512
    batch_size: int = 32  # examples in a step
    micro_tokens: int | None = None  # tokens in one pass through the model; found by itself when memory runs out
    hide_prob: float | None = None  # share of tokens masked in training, so that less is learnt by heart; unset: 0.15, in qa 0

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_size", "micro_tokens"):
            value = getattr(self, name)
            if value is not None and value < (8 if name == "max_length" else 1):
                raise ConfigError(f"data.{name} = {value!r}; allowed: a whole number from {8 if name == 'max_length' else 1}")
        if self.hide_prob is not None and not 0 <= self.hide_prob < 1:
            raise ConfigError(f"data.hide_prob = {self.hide_prob!r}; allowed: a share from 0 and below 1 (0.15 is usual)")
        if self.dev_share is not None and not 0 < self.dev_share < 1:
            raise ConfigError(f"data.dev_share = {self.dev_share!r}; allowed: a share above 0 and below 1 (0.1 is usual)")

    def share_of(self, count: int) -> float:
        """Return the share of so many examples that is held out: measuring ten times in a run is not to take longer than training."""
        return min(DEV_SHARE, DEV_ENOUGH / max(1, count)) if self.dev_share is None else self.dev_share


@dataclass(frozen=True)
class TaskRecipe:
    """A run that fine-tunes a model for a task; `options` are the task's own."""

    task: str
    base_model: str  # a folder or a Hub id
    options: Any
    seeds: int = 1  # runs with other seeds, the best of which is kept; the numbers of all are told
    freeze: int = 0  # layers, from the first one on, that keep their weights; the embeddings with them
    learning_rate_by_size: bool = False  # the learning rate was not given: it follows the width of the model
    data: TaskData = field(default_factory=TaskData)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds = {self.seeds!r}; allowed: a whole number from 1")
        if self.freeze and self.lora.r:
            raise ConfigError(
                f"freeze = {self.freeze} and lora.r = {self.lora.r}: LoRA keeps all weights of the body; leave one of them out"
            )
        if self.freeze < 0:
            raise ConfigError(f"freeze = {self.freeze!r}; allowed: 0 (nothing is frozen), or how many layers")

    def to_toml(self) -> str:
        """Return the recipe as TOML text."""
        return config.dump(self)


# what differs from the defaults of pre-training
DEFAULTS: dict[str, Any] = {
    "optim": {"optimizer": "adamw", "learning_rate": 5e-5, "schedule": "linear", "warmup_ratio": 0.1, "beta2": 0.999},
    "train": {"spike_score": 0.0},  # a batch of a few texts may well be much harder than the ones before
}
WIDE = 512  # hidden size from which a model is fine-tuned at 5e-5; narrower ones want more
NARROW_RATE, LORA_RATE = 3e-4, 1e-3
TOP = ("task", "base_model", "seeds", "freeze", "learning_rate_by_size")


def load(
    path: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> TaskRecipe:
    """Return a recipe from a TOML file, then `settings` (a nested dict), then `section.key=value` overrides.

    Where none names a model, it is the one in the box, which is told.
    Raises: ConfigError for a key that does not exist (with the nearest one that does) or a value that cannot be.
    """
    written: dict[str, Any] = config.read_toml(path) if path is not None else {}
    config.merge(written, dict(settings or {}))
    for item in overrides:
        key, value = config.parse_override(item)
        config.merge(written, config.nest(key, value))
    where = str(path or "the settings")
    if (model := written.get("base_model")) is None or isinstance(model, str):
        written["base_model"] = str(or_box(model, say=tell))
    for name in ("task", "base_model"):
        if not isinstance(written.get(name), str):
            raise ConfigError(f"{where}: {name} = {written.get(name)!r}; name {'a task' if name == 'task' else 'a model to fine-tune'}")
    kind = task(written["task"])
    data: dict[str, Any] = {}
    config.merge(data, DEFAULTS)
    optim = written.get("optim")
    if not isinstance(optim, Mapping) or "learning_rate" not in optim:
        data["learning_rate_by_size"] = True
    config.merge(data, written)
    options: Any = config.from_dict(kind.options_type, data.pop("options", {}), where=where, prefix="options.")
    return config.from_dict(TaskRecipe, {**data, "options": options}, where=where)


def nested(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword settings of a task as a nested dict: a field's name (`batch_size=16`, `loss="focal"`) finds its section.

    Raises: ConfigError for a name that no section has.
    """
    sections = {"options": task(name).options_type, "data": TaskData, "optim": OptimConfig, "lora": LoraConfig, "train": TrainConfig}
    return recipes.nested(settings, sections, TOP)


def absolute(recipe: TaskRecipe) -> TaskRecipe:
    """Return the recipe with the paths in it made absolute, so that a run can be resumed from anywhere."""
    full = recipes.full
    data = dataclasses.replace(recipe.data, sources=tuple(map(full, recipe.data.sources)), dev=tuple(map(full, recipe.data.dev)))
    return dataclasses.replace(recipe, data=data, base_model=full(recipe.base_model))


def by_size(recipe: TaskRecipe, hidden_size: int) -> TaskRecipe:
    """Return the recipe with the learning rate that suits a model's width, where none was given."""
    if not recipe.learning_rate_by_size:
        return recipe
    rate = LORA_RATE if recipe.lora.r else recipe.optim.learning_rate if hidden_size >= WIDE else NARROW_RATE
    return dataclasses.replace(recipe, learning_rate_by_size=False, optim=dataclasses.replace(recipe.optim, learning_rate=rate))
