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

from ..errors import RunError
from . import dropout as dropouts
from . import projection, tail
from .gather import Gather, Scatter

PACKED = "unmask_packed"
SHORT = 64  # up to this length products are made in fp32: in bf16 a kernel is compiled for every new shape, for longer than they take
STEP = 16  # beyond it lengths are multiples of this, and numbers of segments powers of two
LONG = 1024  # beyond this length the scores of a segment are no longer held whole
FUSED = 128  # from this length the fused fp32 kernel is faster where no gradients are wanted: 1.2 times here, 2.4 times at 512 tokens
# so is its bf16, from SHORT on and up to four times, but on matrix units alone
MATRIX_UNITS = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


class Segments:
    """Where the segments of a pack lie, and how the CPU groups them by length; made once a batch, used by every layer.

    Shapes: T tokens become P >= T cells, a block of B segments by L cells for each group of like lengths.
    """

    def __init__(self, cu_seqlens: Tensor, max_seqlen: int, rows: Tensor | None = None) -> None:
        self.cu_seqlens = cu_seqlens
        self.max_seqlen = max_seqlen
        self.rows = rows  # (N,): the rows of the last layer that will be read, where that is known
        self.rows_taken = False  # whether the last layer has already given those rows alone (see tail.py)
        self._masks: dict[tuple[int, torch.dtype, int | None], Tensor | None] = {}
        self._index: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        if cu_seqlens.device.type == "cpu":
            self._group(cu_seqlens.numpy().astype(np.int64))

    def _group(self, bounds: np.ndarray) -> None:
        lengths = np.diff(bounds)
        order = np.argsort(-lengths, kind="stable")
        self.blocks: list[tuple[int, int, int]] = []
        self.lengths: list[np.ndarray] = []
        self.members: list[np.ndarray] = []
        cells, start, offset = [], 0, 0
        while start < len(order):
            longest = lengths[order[start]]
            # a group ends where padding would cost more than the call that one group more costs
            stop = start + int(np.searchsorted(-lengths[order[start:]], -max(longest * 3 // 5, longest - 24) + 1))
            stop = max(stop, start + 1)
            if longest > SHORT:  # few different shapes: see data/sizes.py
                longest = -(-longest // STEP) * STEP
                stop = start + (1 << (stop - start).bit_length() - 1)
            members = order[start:stop]
            steps = np.arange(longest)
            inside = steps < lengths[members][:, None]
            cells.append(np.where(inside, bounds[members][:, None] + steps, -1))
            self.blocks.append((offset, len(members), int(longest)))
            self.lengths.append(lengths[members])
            self.members.append(members)
            offset += len(members) * int(longest)
            start = stop
        self._cells = cells

    def lone_rows(self) -> tuple[Tensor, Tensor] | None:
        """Return a row of every segment, (S,), and which segments' are read, (N,); None where more than one is read of any.

        Of a segment of which none is read (one that only fills the pack up) it is the first. Also None elsewhere than on the CPU.
        """
        if self.rows is None or self.rows.device.type != "cpu" or not 0 < len(self.rows) < len(self.cu_seqlens):
            return None
        owners = torch.searchsorted(self.cu_seqlens.long(), self.rows, right=True) - 1
        if not bool((owners.diff() > 0).all()):
            return None
        return self.cu_seqlens[:-1].long().index_copy(0, owners, self.rows), owners

    def index(self, heads: int, parts: int = 1) -> tuple[Tensor, Tensor]:
        """Return `gather` (parts * P * heads,): (T * parts * heads) rows to blocks of (B, heads, L), those of one part after another's.

        And `scatter` (T * parts * heads,), the way back. A cell that only fills a block up gathers row 0, and is never scattered.
        """
        if (heads, parts) not in self._index:
            head = np.arange(heads)[None, :, None]
            width = parts * heads
            one = np.concatenate([np.where(block[:, None] >= 0, block[:, None] * width + head, -1).ravel() for block in self._cells])
            flat = np.concatenate([np.where(one >= 0, one + part * heads, -1) for part in range(parts)])
            filled = np.flatnonzero(flat >= 0)
            scatter = np.empty(len(filled), dtype=np.int64)
            scatter[flat[filled]] = filled
            self._index[heads, parts] = torch.from_numpy(np.maximum(flat, 0)), torch.from_numpy(scatter)
        return self._index[heads, parts]

    def sizes(self, heads: int) -> list[int]:
        """Return how many rows of each group's block the gathered ones hold."""
        return [count * length * heads for _, count, length in self.blocks]

    def mask(self, group: int, dtype: torch.dtype, window: int | None) -> Tensor | None:
        """Return what is added to the scores of a group, (B or 1, 1, L or 1, L); None where every token sees every other."""
        _, _, longest = self.blocks[group]
        if window is not None and window >= longest:
            window = None
        key = (group, dtype, window)
        if key not in self._masks:
            lengths = torch.from_numpy(self.lengths[group])
            steps = torch.arange(longest)
            allowed = None
            if int(lengths.min()) < longest:
                allowed = (steps < lengths[:, None])[:, None, None, :]
            if window is not None:
                near = ((steps[:, None] - steps).abs() < window)[None, None]
                # a filling cell far from the last real key would see nothing: its output is thrown away, but must be finite
                allowed = near if allowed is None else (near & allowed) | torch.eye(longest, dtype=torch.bool)
            self._masks[key] = None if allowed is None else torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
        return self._masks[key]


class _Attend(torch.autograd.Function):
    """Attention of short segments by plain batched products: on CPU four times as fast, there and back, as the fused kernel's bf16.

    Shapes: q, k, v (B * heads, L, head size); mask broadcasts to (B, heads, L, L).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, heads: int, dropout: float) -> Tensor:
        q = q * scale  # of a head's size a token: the scores have a number a pair of tokens
        scores = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            scores.view(-1, heads, *scores.shape[1:]).add_(mask)
        weights = torch.softmax(scores, -1)
        stays, factor = dropouts.noise(weights.shape, dropout, weights.dtype) if dropout else (None, 1.0)
        ctx.save_for_backward(q, k, v, weights, stays)
        ctx.scale, ctx.factor = scale, factor
        return torch.bmm(weights, v) if stays is None else torch.bmm(weights * stays, v).mul_(factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, stays = ctx.saved_tensors
        grad = grads[0] if stays is None else grads[0] * ctx.factor
        dv = torch.bmm((weights if stays is None else weights * stays).transpose(1, 2), grad)
        dweights = torch.bmm(grad, v.transpose(1, 2))
        if stays is not None:
            dweights.mul_(stays)
        dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
        return torch.bmm(dscores, k).mul_(ctx.scale), torch.bmm(dscores.transpose(1, 2), q), dv, None, None, None, None


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
    # rotary positions may leave queries and keys in fp32 under autocast, where SDPA would cast them itself
    query, key = query.to(value.dtype), key.to(value.dtype)
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
    gather, scatter = segments.index(heads)
    blocks = [Gather.apply(x[0].transpose(0, 1).reshape(-1, size), gather, scatter) for x in (query, key, value)]
    return attend_blocks(blocks, segments, heads, size**-0.5 if scaling is None else scaling, dropout, window)


def attend_blocks(blocks: list[Tensor], segments: Segments, heads: int, scale: float, dropout: float, window: int | None = None) -> Tensor:
    """Attend within the segments on the CPU.

    Shapes: P cells; `blocks`, as `Segments.index` gathers them, are one of (3 * P * heads, head size) or three of (P * heads, head size),
    queries, keys, values; returns (1, T, heads, head size).
    """
    size, dtype = blocks[0].shape[-1], blocks[0].dtype
    if max(length for _, _, length in segments.blocks) <= SHORT:  # all of it in one go
        blocks = [block.float() for block in blocks]
    # split, not sliced: the gradients of slices are added up in full-size zeros, one for each
    sizes = segments.sizes(heads)
    parts = [part for block in blocks for part in block.split(sizes * (3 // len(blocks)))]
    outputs = []
    for group, (_, count, length) in enumerate(segments.blocks):
        q, k, v = parts[group :: len(sizes)]
        kind = torch.float32 if length <= SHORT else dtype
        mask = segments.mask(group, kind, window)
        faster = length >= FUSED if kind == torch.float32 else MATRIX_UNITS
        if length > LONG or (faster and not torch.is_grad_enabled()):
            fq, fk, fv = (x.view(count, heads, length, size) for x in (q, k, v))
            outputs.append(F.scaled_dot_product_attention(fq, fk, fv, attn_mask=mask, dropout_p=dropout, scale=scale).reshape(-1, size))
        else:
            with torch.autocast("cpu", enabled=False):
                attended = _Attend.apply(*(x.view(count * heads, length, size).to(kind) for x in (q, k, v)), mask, scale, heads, dropout)
            outputs.append(attended.to(parts[0].dtype).view(-1, size))
    return Scatter.apply(torch.cat(outputs).to(dtype), segments.index(heads)[1]).view(1, -1, heads, size)


def _attend_cuda(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    if dropout > 0:  # heads.runs_packed sends such a batch down the padded path; here it would be lost in silence
        raise RunError("packed attention on CUDA has no dropout; run the model through forward_packed, or set its attention dropout to 0")
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
        tail.install(model)
        projection.install(model)
        dropouts.install(model)
    return possible


def is_packed(model: PreTrainedModel) -> bool:
    """Return whether `enable_packing` took effect on the model."""
    return model.config._attn_implementation == PACKED
