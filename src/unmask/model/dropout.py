"""Dropout on the CPU, of random numbers of sixteen bits each.

torch makes a number of 32 bits, and a call of MKL's generator for every tensor, to say of each element whether it stays: a tenth of a step
of fine-tuning. Sixteen bits say it as well; the share that stays is a multiple of 1/65,536, and what stays is divided by exactly that.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn

LEVELS = 1 << 16


def noise(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """Return what is multiplied by: 0 with a probability, elsewhere what keeps the mean; of torch's own generator of the CPU."""
    dropped = round(probability * LEVELS)
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    return (bits >= dropped - LEVELS // 2).to(dtype).mul_(LEVELS / max(1, LEVELS - dropped)).view(shape)


def install(model: nn.Module) -> None:
    """Make the dropout of a model use `noise` while it trains on the CPU; elsewhere it is torch's."""
    for module in model.modules():
        if type(module) is nn.Dropout and "forward" not in module.__dict__:
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: nn.Dropout, input: Tensor) -> Tensor:
    if not (self.training and 0 < self.p < 1 and input.device.type == "cpu"):
        return nn.Dropout.forward(self, input)
    return input * noise(input.shape, self.p, input.dtype)
