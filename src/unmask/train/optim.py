"""Optimizers, their parameter groups, and the learning rate as a function of how far a run has come."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from .lora import is_matrix
from .sharded import like

Schedule = Literal["linear", "cosine", "wsd", "constant"]


@dataclass(frozen=True)
class OptimConfig:
    """How the weights follow the gradient."""

    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon for the hidden matrices and AdamW for the rest; adamw: AdamW for all
    learning_rate: float = 3e-3  # of AdamW, at its highest
    muon_learning_rate: float = 1e-2  # of Muon, at its highest
    weight_decay: float = 0.01  # of both; norms and biases have none
    beta1: float = 0.9  # AdamW's memory of the gradient
    beta2: float = 0.98  # AdamW's memory of its square
    eps: float = 1e-8  # what AdamW adds to the root of the square
    muon_momentum: float = 0.95  # Muon's memory of the gradient
    max_grad_norm: float = 1.0  # the gradient is clipped to this length; 0: never
    schedule: Schedule = "wsd"  # linear or cosine to nothing; wsd (warm-up, stable, decay): straight to nothing at the end; constant
    warmup_ratio: float = 0.02  # share of the budget over which the rate rises from nothing
    decay_ratio: float = 0.6  # wsd: share of the budget, at its end, over which the rate falls
    reference_batch_tokens: int | None = None  # the rates are for steps of so many tokens; for larger ones they grow by the square root
    layer_decay: float | None = None  # a layer's rate is this share of the rate of the one above it; unset: all learn alike

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"optim.schedule = {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
        for name in ("learning_rate", "muon_learning_rate", "weight_decay", "eps", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"optim.{name} = {value!r}; allowed: a number from 0")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optim.{name} = {getattr(self, name)!r}; allowed: a number from 0 up to, not including, 1")
        if self.reference_batch_tokens is not None and self.reference_batch_tokens < 1:
            raise ConfigError(f"optim.reference_batch_tokens = {self.reference_batch_tokens!r}; allowed: a whole number from 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay = {self.layer_decay!r}; allowed: a share above 0, at most 1 (0.9 is usual)")
        for name in ("warmup_ratio", "decay_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} = {getattr(self, name)!r}; allowed: a share of the budget, from 0 to 1")


def _linear(progress: float, config: OptimConfig) -> float:
    return (1 - progress) / (1 - config.warmup_ratio) if config.warmup_ratio < 1 else 1.0


def _cosine(progress: float, config: OptimConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * (1 - _linear(progress, config))))


def _wsd(progress: float, config: OptimConfig) -> float:
    return min(1.0, (1 - progress) / config.decay_ratio) if config.decay_ratio > 0 else 1.0


# each gives the factor after the warm-up, from the progress in [0, 1]; the warm-up is the same for all
SCHEDULES: dict[str, Callable[[float, OptimConfig], float]] = {
    "linear": _linear, "cosine": _cosine, "wsd": _wsd, "constant": lambda progress, config: 1.0,
}  # fmt: skip


def schedule(progress: float, config: OptimConfig) -> float:
    """Return the factor on the learning rates when `progress`, in [0, 1], of the budget is used up."""
    progress = min(max(progress, 0.0), 1.0)
    warmup = min(1.0, progress / config.warmup_ratio) if config.warmup_ratio > 0 else 1.0
    return max(0.0, min(warmup, SCHEDULES[config.schedule](max(progress, config.warmup_ratio), config)))


def build(model: nn.Module, config: OptimConfig, *, fp32: bool = False, batch_tokens: int | None = None) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a model: Muon (if asked for) with its hidden matrices, AdamW with everything else.

    Every group carries `initial_lr`, the highest rate, which the loop multiplies by the schedule. `fp32` runs Muon's products
    in fp32, for machines where bf16 is slow. `batch_tokens` is how many tokens a step has.
    Source: rates that follow the square root of the batch, Malladi et al. 2022 (for Adam; here for Muon, too).
    """
    scale = batch_scale(config, batch_tokens)
    groups = group_parameters(model, muon=config.optimizer == "muon")
    shares = layer_shares(model, config.layer_decay)
    optimizers: list[torch.optim.Optimizer] = []
    if groups["muon"]:
        kind = Fp32Muon if fp32 else torch.optim.Muon
        optimizers.append(
            kind(
                by_share(groups["muon"], shares, config.muon_learning_rate), lr=config.muon_learning_rate,
                weight_decay=config.weight_decay, momentum=config.muon_momentum,
            )
        )  # fmt: skip
    rest = [
        {**group, "weight_decay": decay}
        for name, decay in (("decay", config.weight_decay), ("no_decay", 0.0))
        for group in by_share(groups[name], shares, config.learning_rate)
    ]
    optimizers.append(
        torch.optim.AdamW(rest, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
    )  # fmt: skip
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"] = group["lr"] * scale
    return optimizers


def batch_scale(config: OptimConfig, batch_tokens: int | None) -> float:
    """Return what the learning rates are multiplied by for steps of so many tokens.

    Raises: ConfigError where a step is counted in something else.
    """
    if config.reference_batch_tokens is None:
        return 1.0
    if batch_tokens is None:
        raise ConfigError(
            f"optim.reference_batch_tokens = {config.reference_batch_tokens}, but a step of this run is counted in examples; leave it out"
        )
    return math.sqrt(batch_tokens / config.reference_batch_tokens)


def layer_shares(model: nn.Module, layer_decay: float | None) -> dict[int, float]:
    """Return by the id of a parameter what share of the learning rate it has; parameters that are not named have all of it.

    The head has all of it, the last layer `layer_decay` of it, and so on down to the embeddings.
    Source: discriminative fine-tuning (Howard & Ruder 2018), as in ELECTRA's and BEiT's.
    """
    if layer_decay is None:
        return {}
    from .compiling import encoder_layers

    layers = encoder_layers(model, every=True)
    body = getattr(model, "base_model", model)
    shares = {id(parameter): layer_decay ** (len(layers) + 1) for name, parameter in body.named_parameters() if "embed" in name}
    for number, layer in enumerate(layers):
        shares.update({id(parameter): layer_decay ** (len(layers) - number) for parameter in layer.parameters()})
    return shares


def by_share(parameters: list[Tensor], shares: dict[int, float], learning_rate: float) -> list[dict[str, Any]]:
    """Return parameters in groups of one learning rate each, the lowest first; no groups for no parameters."""
    found: dict[float, list[Tensor]] = {}
    for parameter in parameters:
        found.setdefault(shares.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": found[share], "lr": learning_rate * share} for share in sorted(found)]


def group_parameters(model: nn.Module, *, muon: bool) -> dict[str, list[Tensor]]:
    """Return the trainable parameters in three lists: "muon" (matrices of the body that are no embeddings), "decay", "no_decay"."""
    body = getattr(model, "base_model", model)
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters(recurse=False)}
    # LoRA's factors are no maps from one space to another by themselves: to make them orthogonal means nothing
    hidden = {id(p) for name, p in body.named_parameters() if muon and p.ndim == 2 and id(p) not in tables and not is_matrix(name)}
    groups: dict[str, list[Tensor]] = {"muon": [], "decay": [], "no_decay": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = "muon" if id(parameter) in hidden else "decay" if parameter.ndim >= 2 else "no_decay"
            groups[name].append(parameter)
    return groups


class Fp32Muon(torch.optim.Muon):
    """torch's Muon, with the products of its Newton-Schulz iteration in the format of the gradient instead of bf16."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; `closure` is not supported."""
        for group in self.param_groups:
            momentum = group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = _orthogonal(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def _orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def state_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return every tensor that the optimizers remember, named `optim.<optimizer>.<parameter>.<name>`."""
    tensors = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optim.{number}.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def load_state_tensors(optimizers: Iterable[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Give the optimizers back what `state_tensors` returned.

    Raises: CheckpointError where the tensors are not those of these optimizers.
    """
    optimizers = list(optimizers)
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        head, *rest = key.split(".", 3)
        if head != "optim":
            continue
        number, index = int(rest[0]), int(rest[1])
        if number >= len(optimizers):
            raise CheckpointError(f"the checkpoint holds the state of optimizer {number}, and this run has {len(optimizers)}")
        states[number].setdefault(index, {})[rest[2]] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, values in state.items():
            if index >= len(parameters) or any(v.ndim and v.shape != parameters[index].shape for v in values.values()):
                raise CheckpointError("the optimizer state in the checkpoint is not that of this model; was the recipe edited?")
            state[index] = {name: like(value, parameters[index]) for name, value in values.items()}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
