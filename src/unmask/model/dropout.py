"""Dropout on the CPU, of random numbers of sixteen bits each.

torch makes a number of 32 bits, and a call of MKL's generator for every tensor, to say of each element whether it stays: a tenth of a step
of fine-tuning. Sixteen bits say it as well; the share that stays is a multiple of 1/65,536, and what stays is divided by exactly that.
The bits are those of numpy's fastest generator (SFC64), started anew for each tensor from a number of torch's own: a run that goes on with
torch's state draws what it would have drawn.
"""

from __future__ import annotations

import types

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 1 << 16


def noise(shape: torch.Size, probability: float, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return 0 with a probability and else 1, and the factor that keeps the mean; drawn from torch's generator of the CPU."""
    dropped = round(probability * LEVELS)
    if dropped >= LEVELS:
        return torch.zeros(shape, dtype=dtype), 1.0
    count = shape.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))[:count].view(shape)
    # a bool made into a number afterwards takes seven times as long
    stays = torch.ge(bits, dropped - LEVELS // 2, out=torch.empty(shape, dtype=dtype))
    return stays, LEVELS / (LEVELS - dropped)


def install(model: nn.Module) -> None:
    """Make the dropout of a model use `noise` while it trains on the CPU; elsewhere it is torch's."""
    for module in model.modules():
        if type(module) is nn.Dropout and "forward" not in module.__dict__:
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: nn.Dropout, input: Tensor) -> Tensor:
    if not (self.training and 0 < self.p < 1 and input.device.type == "cpu"):
        return nn.Dropout.forward(self, input)
    stays, factor = noise(input.shape, self.p, input.dtype)
    return input * stays.mul_(factor)
