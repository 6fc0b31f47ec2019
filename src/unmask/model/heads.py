"""Run any masked language model on a PackedBatch, with its head at the labels only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..data.batch import PackedBatch
from .attention import Segments, is_packed
from .sharing import share_first_layer


@contextlib.contextmanager
def only_rows(model: PreTrainedModel, rows: Tensor, segments: Segments | None = None) -> Iterator[None]:
    """Make what the body of a model returns hold just `rows` of its flattened (B * L, D) output while the context lasts.

    A forward hook on the body does it, so that the head above, whatever its architecture, computes nothing else.
    """

    def select(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0]
        if segments is not None and segments.rows_taken:
            return output
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)[None]
        if isinstance(output, tuple):
            return (chosen, *output[1:])
        output["last_hidden_state"] = chosen
        return output

    handle = model.base_model.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


def forward_packed(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Return the logits of the labelled tokens of a batch, (N, V), in the order of `label_positions`.

    Where `runs_packed` says no, the segments are run padded; the numbers are the same.
    """
    if not runs_packed(model, batch.input_ids.device.type):
        return _forward_padded(model, batch)
    segments = Segments(batch.cu_seqlens, batch.max_seqlen, batch.label_positions)
    # a mask of four dimensions is taken as it comes by transformers' mask making, and packed attention does not look at it
    no_mask = batch.input_ids.new_empty(1, 1, 1, 1)
    types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    with only_rows(model, batch.label_positions, segments), share_first_layer(model, batch):
        output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=no_mask, segments=segments, **types)
    return output.logits[0]


def _forward_padded(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    bounds = batch.cu_seqlens.long()
    lengths = (bounds[1:] - bounds[:-1]).tolist()
    ids = pad_sequence(list(batch.input_ids[0].split(lengths)), batch_first=True, padding_value=model.config.pad_token_id or 0)
    mask = pad_sequence([torch.ones(length, dtype=torch.long) for length in lengths], batch_first=True).to(ids.device)
    types = {}
    if batch.token_type_ids is not None:
        types = {"token_type_ids": pad_sequence(list(batch.token_type_ids[0].split(lengths)), batch_first=True)}
    segment = torch.searchsorted(bounds, batch.label_positions, right=True) - 1
    rows = segment * ids.shape[1] + batch.label_positions - bounds[segment]
    with only_rows(model, rows):
        return model(input_ids=ids, attention_mask=mask, **types).logits[0]


def runs_packed(model: PreTrainedModel, device_type: str) -> bool:
    """Return whether a batch on a kind of device runs packed, as model, mode and autocast stand.

    CUDA's kernel for segments takes 16-bit numbers only and has no dropout; what it cannot do is done padded, not dropped.
    """
    if not is_packed(model):
        return False
    if device_type != "cuda":
        return True
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else model.dtype
    return dtype in (torch.bfloat16, torch.float16) and not (model.training and attention_dropout(model) > 0)


def attention_dropout(model: PreTrainedModel) -> float:
    """Return the dropout on attention weights that a model's configuration asks for in training."""
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        value = getattr(model.config, name, None)
        if value:
            return float(value)
    return 0.0
