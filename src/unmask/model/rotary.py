"""ModernBERT's attention on CPU with its rotation done in one go.

The stock rotation slices, negates, joins and casts queries and keys in a dozen passes over memory, and its gradient takes as many again;
on CPU that is a quarter of a training step. Here queries and keys are rotated where the fused projection left them, there and back.
This module is the only one that knows ModernBertAttention; tests/model/test_parity.py says when it has changed.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class _Rotate(torch.autograd.Function):
    """Split the fused projection into queries and keys, rotated, and values.

    Shapes: qkv (T, 3, heads, head size); cos, sin (T, 1, 1, head size / 2), fp32; returns three (T, heads, head size).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        turned = torch.empty_like(qkv[:, :2])
        _turn(qkv[:, :2], cos, sin, turned)
        return turned[:, 0], turned[:, 1], qkv[:, 2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        dq, dk, dv = grads
        out = dq.new_empty(dq.shape[0], 3, *dq.shape[1:])
        _turn(torch.stack((dq, dk), 1), cos, -sin, out[:, :2])
        out[:, 2] = dv
        return out, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    """Rotate the pairs (i, i + half) of the last dimension of x into `out`, in fp32."""
    half = x.shape[-1] // 2
    first, second = x[..., :half].float(), x[..., half:].float()
    out[..., :half] = (first * cos).addcmul_(second, sin, value=-1)
    out[..., half:] = (second * cos).addcmul_(first, sin)


def _forward(
    self: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor] | None = None, attention_mask: Any = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    segments = kwargs.get("segments")
    if segments is None or hidden_states.is_cuda or position_embeddings is None:
        return type(self).forward(self, hidden_states, position_embeddings=position_embeddings, attention_mask=attention_mask, **kwargs)
    from .attention import packed_attention

    qkv = self.Wqkv(hidden_states).view(hidden_states.shape[1], 3, -1, self.head_dim)
    half = self.head_dim // 2
    cos, sin = (x[0, :, None, None, :half].float() for x in position_embeddings)
    q, k, v = (x.transpose(0, 1)[None] for x in _Rotate.apply(qkv, cos, sin))
    context, _ = packed_attention(
        self, q, k, v, None, dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.head_dim**-0.5, sliding_window=self.sliding_window, segments=segments,
    )  # fmt: skip
    return self.out_drop(self.Wo(context.reshape(1, hidden_states.shape[1], -1))), None


def install(model: PreTrainedModel) -> None:
    """Give every ModernBertAttention of a model the rotation of this module, for packed batches on CPU."""
    for module in model.modules():
        if type(module).__name__ == "ModernBertAttention":
            module.forward = types.MethodType(_forward, module)  # type: ignore[assignment]
