"""Queries, keys and values of BERT's attention by one product while training on the CPU.

Three products read the same tokens: each casts them for itself under autocast, and so do their gradients on the way back. One of three
times the width does it once, multiplies faster, and its result is gathered into blocks in one go. This module knows the inside of a
self-attention; tests/model/test_parity.py says when one has changed.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gather import Gather

_CLASSES = {"BertSelfAttention", "RobertaSelfAttention", "XLMRobertaSelfAttention", "CamembertSelfAttention", "ElectraSelfAttention"}


def install(model: nn.Module) -> None:
    """Make the self-attentions of a model project in one product where a packed batch comes with its segments, and gradients are wanted."""
    for module in model.modules():
        if type(module).__name__ in _CLASSES and "forward" not in module.__dict__:
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    segments = kwargs.get("segments")
    parts = self.query, self.key, self.value
    if segments is None or not torch.is_grad_enabled() or hidden_states.device.type != "cpu" or not all(map(_is_plain, parts)):
        found: tuple[Tensor, Tensor | None] = type(self).forward(self, hidden_states, *args, **kwargs)
        return found
    from .attention import attend_blocks

    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_states.dtype
    weight, bias = (torch.cat([getattr(part, name).to(dtype) for part in parts]) for name in ("weight", "bias"))
    heads, size = self.num_attention_heads, self.attention_head_size
    made = F.linear(hidden_states[0].to(dtype), weight, bias).view(-1, size)
    blocks = [Gather.apply(made, *segments.index(heads, 3))]
    attended = attend_blocks(blocks, segments, heads, self.scaling, self.dropout.p if self.training else 0.0)
    return attended.reshape(*hidden_states.shape[:-1], -1), None


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer does nothing but multiply by its weight: LoRA's do more, and whoever hooks into one wants to see it called."""
    return type(layer) is nn.Linear and "forward" not in layer.__dict__ and not (layer._forward_hooks or layer._forward_pre_hooks)
