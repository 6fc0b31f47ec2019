"""A model in as many parts as there are processes (FSDP2): each has a part of the weights, their gradients and the optimizers' state."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError

if TYPE_CHECKING:
    from .distributed import Processes
    from .objective import RunRecipe


def check(recipe: RunRecipe) -> None:
    """Raise ConfigError for what a sharded model cannot be trained with."""
    if recipe.train.parallel != "fsdp":
        return
    if recipe.optim.optimizer == "muon":
        raise ConfigError(
            'train.parallel = "fsdp" cuts matrices into parts, and optim.optimizer = "muon" needs them whole; set optim.optimizer = "adamw"'
        )
    if recipe.lora.r:
        raise ConfigError(f'train.parallel = "fsdp", and lora.r = {recipe.lora.r}: what LoRA trains is small; set train.parallel = "ddp"')
    if hasattr(recipe, "task"):
        raise ConfigError('train.parallel = "fsdp" is for pretrain and adapt, not for tasks; set train.parallel = "ddp"')


class Shards:
    """The gradients of a sharded model: summed, a part in each process, in the last pass of a step.

    Every pass gathers the weights from all processes, layer by layer, so that all must run as many.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @contextlib.contextmanager
    def backward(self, *, last: bool) -> Iterator[None]:
        """Have the gradients summed in the `last` pass of a step."""
        self.model.set_requires_gradient_sync(last)
        yield

    def finish(self) -> None:
        """Do nothing: the last pass has summed the gradients."""


def shard(model: Any, world: Processes, *, bf16: bool) -> None:
    """Cut a model's weights, in place: layer by layer, and then what is outside of layers. Products are in `bf16`, or fp32.

    Gradients are summed (not averaged), in fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from .compiling import encoder_layers

    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # it is not changed in place
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    for module in (*encoder_layers(model, every=True), model):
        cut: Any = fully_shard(module, mesh=mesh, mp_policy=policy)
        cut.set_gradient_divide_factor(1.0)
        cut.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of a sharded one every process must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, other: Any) -> Tensor:
    """Return a tensor that all processes have as the shards that another one is in, where it is in shards."""
    if not hasattr(other, "full_tensor") or not tensor.ndim:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
