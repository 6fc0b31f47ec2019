"""LoRA: small matrices beside the frozen ones are trained, and merged into them whenever a model is written."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, require
from ..rng import rng

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "base"  # in the run's folder: the model as it was, which merged weights cannot give back to the bit
ADAPTER = "unmask"
PREFIX = "lora."  # of the tensors of a checkpoint
MOST = 10_000  # no matrix of a model that is adapted has a higher rank


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021) through peft, whose names these are."""

    r: int = 0  # rank of the matrices that are trained; 0: no LoRA, all weights are trained
    lora_alpha: float | None = None  # the update counts lora_alpha / r; unset: 2 r
    lora_dropout: float = 0.0  # on the input of the matrices
    target_modules: tuple[str, ...] = ("all-linear",)  # names of modules; "all-linear": every linear layer but the output's

    def __post_init__(self) -> None:
        if not 0 <= self.r <= MOST:
            raise ConfigError(f"lora.r = {self.r!r}; allowed: 0 (no LoRA) or a rank up to {MOST:,} (8 and 16 are usual)")
        if self.lora_alpha is not None and not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise ConfigError(f"lora.lora_alpha = {self.lora_alpha!r}; allowed: a number above 0 (twice the rank is usual)")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora.lora_dropout = {self.lora_dropout!r}; allowed: a probability from 0 up to, not including, 1")
        if not self.target_modules:
            raise ConfigError('lora.target_modules is empty; name modules (["query", "value"]), or "all-linear"')


def check(config: LoraConfig, base_model: str | None) -> None:
    """Raise ConfigError for LoRA without a model to adapt, MissingExtra where peft is not installed."""
    if config.r:
        if base_model is None:
            raise ConfigError(f"lora.r = {config.r}: LoRA adapts an existing model; name one (base_model), or set lora.r = 0")
        require("peft", extra="lora", why="LoRA (lora.r)")


def inject(model: PreTrainedModel, config: LoraConfig, *, seed: int, head: bool = False) -> None:
    """Put the matrices beside the linear layers of a model, in place, and freeze everything else.

    A new `head` is trained as it is, with all its weights; the matrices are then those of the body alone.
    Raises: ConfigError for names that no module of the model has.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    targets: str | list[str] = "all-linear" if config.target_modules == ("all-linear",) else list(config.target_modules)
    own = [name for name, _ in model.named_parameters() if head and is_head(model, name)]
    if head and targets == "all-linear":
        linear = (name for name, module in model.named_modules() if type(module) is torch.nn.Linear)
        targets = [name for name in linear if not is_head(model, name)]
    options: dict[str, Any] = {"r": config.r, "lora_alpha": config.lora_alpha or 2 * config.r, "lora_dropout": config.lora_dropout}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng(seed, "lora").integers(2**63)))
        try:
            inject_adapter_in_model(PeftConfig(target_modules=targets, **options), model, adapter_name=ADAPTER)
        except ValueError as error:
            raise ConfigError(f"lora.target_modules = {', '.join(config.target_modules)}: {str(error).partition('. ')[0]}") from None
    for name in own:
        model.get_parameter(name).requires_grad_(True)


def is_head(model: PreTrainedModel, name: str) -> bool:
    """Return whether a parameter or module of that name is of a model's head, and not of its body."""
    body = f"{model.base_model_prefix}."
    return not name.startswith(body) or name.startswith(f"{body}pooler")


def train_embeddings(model: PreTrainedModel) -> None:
    """Let the token embeddings (and what is tied to them) learn too: rows of new words cannot be left as they began."""
    table: Any = model.get_input_embeddings()
    table.weight.requires_grad_(True)


def tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return what a checkpoint needs beside the base model: every parameter that is trained."""
    return {f"{PREFIX}{name}": parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_tensors(model: PreTrainedModel, saved: dict[str, Tensor], where: Path) -> None:
    """Give a model back what `tensors` returned.

    Raises: CheckpointError where they are not those of this model.
    """
    own = tensors(model)
    found = {name: tensor for name, tensor in saved.items() if name.startswith(PREFIX)}
    if own.keys() != found.keys() or any(own[name].shape != found[name].shape for name in own):
        raise CheckpointError(f"the LoRA matrices in the checkpoint '{where}' are not those of this run; was the recipe edited?")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the model without LoRA, its weights changed by what the matrices have learnt."""
    from peft.tuners.lora import LoraLayer

    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # type: ignore[operator]
            twin.set_submodule(name, module.get_base_layer())
    if hasattr(twin, "peft_config"):
        del twin.peft_config
    return twin


def keep_base(folder: Path, model: Callable[[], PreTrainedModel], tokenizer: Any) -> Path:
    """Write the model as it is before training into the run's folder, once, and return where it is."""
    from ..data.manifest import write_manifest
    from ..model.load import save_model
    from .checkpoint import write_folder

    base = folder / BASE
    if not base.is_dir():
        write_folder(base, lambda partial: write_manifest(save_model(model(), tokenizer, partial)))
    return base


def is_matrix(name: str) -> bool:
    """Return whether a parameter of that name is one of LoRA's own."""
    return ".lora_" in name
