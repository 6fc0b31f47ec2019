"""A recipe: everything that a run is made of, as one TOML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..data.masking import MaskingConfig
from ..errors import ConfigError
from ..model.presets import ModelConfig
from .loop import TrainConfig
from .lora import LoraConfig
from .optim import OptimConfig

HELD_OUT, REPLAY_RATIO = 0.01, 0.1  # where a recipe says nothing


@dataclass(frozen=True)
class DataConfig:
    """The text of a run, its tokenizer, and how many tokens meet the model at a time."""

    sources: tuple[str, ...] = ()  # files, folders, globs, "python-docs", "hub:NAME", or one packed corpus
    tokenizer: str | None = None  # a folder, a file or a Hub id; unset: the packed corpus's or the model's own, or one is trained
    tokenizer_kind: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"  # of a tokenizer that is trained
    vocab_size: int = 16_384  # of a tokenizer that is trained
    extend_vocab: int = 0  # words of the text to add to the vocabulary of a model that is continued
    general: tuple[str, ...] = ()  # text that a model which is continued must not forget: it is measured on it, before and after
    replay: tuple[str, ...] = ()  # general text (files, or one packed corpus) that a part of every step is taken from, against forgetting
    replay_ratio: float | None = None  # that part, as a share of the tokens; unset: 0.1
    format: str | None = None  # txt, jsonl, csv, tsv, parquet; unset: by the file's name
    text_column: str = "text"  # of tables and JSON lines
    encoding: str = "utf-8"  # of text files
    held_out: float | None = None  # share of the documents that is kept from training and measured on; 0: none; unset: 0.01
    max_length: int = 128  # tokens in a window, special ones included; longer documents are cut into several
    batch_tokens: int = 4096  # tokens in a step
    batch_tokens_start: int | None = None  # tokens in the first step, from which they rise evenly; unset: batch_tokens from the first on
    batch_ramp_steps: int = 0  # steps that they rise for
    micro_tokens: int | None = None  # tokens in one pass through the model; unset: all of the step's; found by itself when memory runs out

    def __post_init__(self) -> None:
        for name in ("vocab_size", "max_length", "batch_tokens", "batch_tokens_start", "micro_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} = {value!r}; allowed: a whole number from 1")
        if self.batch_ramp_steps < 0:
            raise ConfigError(
                f"data.batch_ramp_steps = {self.batch_ramp_steps!r}; allowed: 0 (the number does not rise), or how many steps"
            )
        if self.extend_vocab < 0:
            raise ConfigError(f"data.extend_vocab = {self.extend_vocab!r}; allowed: 0 (no words are added), or how many words")
        if not 0 < self.replay_share < 1:
            raise ConfigError(
                f"data.replay_ratio = {self.replay_ratio!r}; allowed: a share of the tokens above 0 and below 1 (0.1 is usual)"
            )
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(f"data.held_out = {self.held_out!r}; allowed: a share from 0 up to, not including, 1 (0.01 is usual)")

    @property
    def replay_share(self) -> float:
        """The share of the tokens of a step that is replayed, where anything is."""
        return REPLAY_RATIO if self.replay_ratio is None else self.replay_ratio

    @property
    def held_out_share(self) -> float:
        """The share of the documents that is held out."""
        return HELD_OUT if self.held_out is None else self.held_out


@dataclass(frozen=True)
class Recipe:
    """A training run. `[model]` describes a model from scratch; with `base_model`, an existing one is continued instead."""

    base_model: str | None = None  # a folder or a Hub id to continue from
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_toml(self) -> str:
        """Return the recipe as TOML text."""
        if self.base_model is not None:
            return config.dump(dataclasses.replace(self, model=None))  # type: ignore[arg-type]  # None is left out
        return config.dump(self)


# what differs from the defaults when an existing model is continued: it must not forget, and it keeps its own dropout
ADAPT: dict[str, Any] = {
    "optim": {"optimizer": "adamw", "learning_rate": 1e-4, "schedule": "linear", "warmup_ratio": 0.06},
    "masking": {"mlm_probability": 0.15},
}
LORA: dict[str, Any] = {"optim": {"learning_rate": 1e-3}}  # LoRA's matrices begin at nothing and have far to go


def load(
    path: str | Path | None = None,
    *,
    base_model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> Recipe:
    """Return a recipe from a TOML file, then `settings` (a nested dict), then `section.key=value` overrides.

    Raises: ConfigError for a key that does not exist (with the nearest one that does) or a value that cannot be.
    """
    written: dict[str, Any] = config.read_toml(path) if path is not None else {}
    config.merge(written, dict(settings or {}))
    if base_model is not None:
        written["base_model"] = str(base_model)
    for item in overrides:
        key, value = config.parse_override(item)
        config.merge(written, config.nest(key, value))
    data: dict[str, Any] = {}
    if written.get("base_model"):
        config.merge(data, ADAPT)
        if isinstance(written.get("lora"), Mapping) and written["lora"].get("r"):
            config.merge(data, LORA)
        if "model" in written:
            raise ConfigError(
                f"{path or 'the settings'}: [model] describes a model from scratch, but base_model = {written['base_model']!r} "
                "is to be continued; remove one of the two"
            )
    config.merge(data, written)
    return config.from_dict(Recipe, data, where=str(path or "the settings"))


def full(name: str) -> str:
    """Return a path made absolute; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def absolute(recipe: Recipe) -> Recipe:
    """Return the recipe with the paths in it made absolute, so that a run can be resumed from anywhere."""
    sources = tuple(full(source) for source in recipe.data.sources)
    general = tuple(full(source) for source in recipe.data.general)
    replay = tuple(full(source) for source in recipe.data.replay)
    tokenizer = None if recipe.data.tokenizer is None else full(recipe.data.tokenizer)
    data = dataclasses.replace(recipe.data, sources=sources, tokenizer=tokenizer, general=general, replay=replay)
    return dataclasses.replace(recipe, data=data, base_model=None if recipe.base_model is None else full(recipe.base_model))


SECTIONS: dict[str, type] = {
    "model": ModelConfig, "data": DataConfig, "masking": MaskingConfig, "optim": OptimConfig, "lora": LoraConfig, "train": TrainConfig,
}  # fmt: skip


def nested(settings: Mapping[str, Any], sections: Mapping[str, type] = SECTIONS, top: Iterable[str] = ("base_model",)) -> dict[str, Any]:
    """Return keyword settings as a nested dict: a section's name takes a dict, a field's name (`max_minutes=5`) finds its section.

    `top` are fields that stand in no section.
    Raises: ConfigError for a name that no section has.
    """
    homes: dict[str, str] = {}
    for section, cls in sections.items():
        for item in dataclasses.fields(cls):
            homes.setdefault(item.name, section)
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if name in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name} = {value!r}; allowed: a dict of its settings")
            config.merge(result, {name: dict(value)})
        elif "." in name:
            config.merge(result, config.nest(name, value))
        elif name in homes:
            config.merge(result, {homes[name]: {name: value}})
        elif name in top:
            result[name] = value
        else:
            raise ConfigError(config.unknown_key(name, [*homes, *sections], "the settings"))
    return result
