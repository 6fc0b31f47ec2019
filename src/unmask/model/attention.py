"""Attention over packed segments, laid under stock transformers models through their attention registry.

transformers 5 looks attention up by name and hands unknown keyword arguments of `forward` on to it. One registered function that
understands `segments` therefore runs BERT, RoBERTa, ModernBERT and their like without padding, whatever else their layers do.
This module is the only one that knows those doors; tests/model/test_parity.py says when one has moved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "unmask_packed"


class Segments:
    """Where the segments of a pack lie, and how the CPU groups them by length; made once a batch, used by every layer.

    Shapes: T tokens become P >= T rows, a block (B, L) for each group of like lengths; `rows` (P,) indexes T, `slots` (T,) indexes P.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int) -> None:
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self._masks: dict[tuple[int, torch.dtype, int | None], Tensor | None] = {}
        if cu_seqlens.device.type == "cpu":
            self._group(cu_seqlens.numpy().astype(np.int64))

    def _group(self, bounds: np.ndarray) -> None:
        lengths = np.diff(bounds)
        order = np.argsort(-lengths, kind="stable")
        self.blocks: list[tuple[int, int, int]] = []
        self.lengths: list[np.ndarray] = []
        rows, start, offset = [], 0, 0
        while start < len(order):
            longest = lengths[order[start]]
            # a group ends where padding would cost more than the call that one group more costs
            stop = start + int(np.searchsorted(-lengths[order[start:]], -max(longest * 3 // 4, longest - 16) + 1))
            stop = max(stop, start + 1)
            members = order[start:stop]
            steps = np.arange(longest)
            inside = steps < lengths[members][:, None]
            rows.append(np.where(inside, bounds[members][:, None] + steps, -1).ravel())
            self.blocks.append((offset, len(members), int(longest)))
            self.lengths.append(lengths[members])
            offset += len(members) * int(longest)
            start = stop
        flat = np.concatenate(rows)
        slots = np.empty(int(bounds[-1]), dtype=np.int64)
        filled = np.flatnonzero(flat >= 0)
        slots[flat[filled]] = filled
        self.slots = torch.from_numpy(slots)
        self.rows = torch.from_numpy(np.maximum(flat, 0))

    def mask(self, group: int, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """Return what is added to the scores of a group, (B, 1, L, L) or (1, 1, L, L); None where every token sees every other."""
        _, _, longest = self.blocks[group]
        if window is not None and window >= longest:
            window = None
        key = (group, dtype, window)
        if key not in self._masks:
            lengths = torch.from_numpy(self.lengths[group])
            steps = torch.arange(longest)
            allowed = None
            if int(lengths.min()) < longest:
                allowed = (steps < lengths[:, None])[:, None, None, :].expand(-1, 1, longest, -1)
            if window is not None:
                near = ((steps[:, None] - steps).abs() < window)[None, None]
                # a padding row beyond the window of the last real key would see nothing: its output is thrown away, but must be finite
                allowed = near if allowed is None else (near & allowed) | torch.eye(longest, dtype=torch.bool)
            self._masks[key] = None if allowed is None else torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
        return self._masks[key]


class _Rows(torch.autograd.Function):
    """x[rows] whose gradient is gathered, not scattered: every row that counts is used once, so no addition is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].index_select(0, slots), None, None


class _Slots(torch.autograd.Function):
    """The way back: y[slots]; the gradient of the rows that only filled a block up is zero."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.num_rows = y.shape[0]
        return y.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.num_rows, *grads[0].shape[1:]).index_copy_(0, slots, grads[0]), None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within the segments of a pack; without `segments`, do what stock SDPA does.

    Shapes: query, key, value (1, heads, T, head size); returns (1, T, heads, head size).
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window, **kwargs
        )
    if query.device.type == "cuda":
        return _attend_cuda(query, key, value, segments, scaling, dropout, sliding_window), None
    num_groups = getattr(module, "num_key_value_groups", 1)
    if num_groups > 1:
        key, value = repeat_kv(key, num_groups), repeat_kv(value, num_groups)
    return _attend_cpu(query, key, value, segments, scaling, dropout, sliding_window), None


def _attend_cpu(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    heads, size = query.shape[1], query.shape[3]
    grouped = [_Rows.apply(x[0].transpose(0, 1), segments.rows, segments.slots) for x in (query, key, value)]
    outputs = []
    for group, (offset, count, length) in enumerate(segments.blocks):
        q, k, v = (x[offset : offset + count * length].view(count, length, heads, size).transpose(1, 2) for x in grouped)
        mask = segments.mask(group, query.dtype, window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(count * length, heads, size))
    return _Slots.apply(torch.cat(outputs), segments.slots)[None]


def _attend_cuda(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout > 0:
        raise NotImplementedError("packed attention on CUDA has no dropout; forward_packed takes the padded path for it")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    span = (-1, -1) if window is None else (window - 1, window - 1)
    out = varlen_attn(
        q, k, v, segments.cu_seqlens, segments.cu_seqlens, segments.max_seqlen, segments.max_seqlen,
        scale=scaling, window_size=span, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out[None]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def supports_packing(model: PreTrainedModel) -> tuple[bool, str]:
    """Return whether a model runs packed, and the reason where it does not."""
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        return False, f"{name} does not route its attention through transformers' attention interface"
    if getattr(model.config, "position_embedding_type", "absolute") not in (None, "absolute"):
        return False, f"{name} uses relative positions ({model.config.position_embedding_type}) inside its attention"
    return True, ""


def enable_packing(model: PreTrainedModel) -> bool:
    """Set the packed attention on a model where it can be; return whether it was."""
    possible, _ = supports_packing(model)
    if possible:
        model.set_attn_implementation(PACKED)
    return possible


def is_packed(model: PreTrainedModel) -> bool:
    """Return whether `enable_packing` took effect on the model."""
    return model.config._attn_implementation == PACKED
