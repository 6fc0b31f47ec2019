"""Run a model with any head on a PackedBatch, with its head at the labels only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..data.batch import PackedBatch
from ..data.sizes import rounded
from .attention import Segments, is_packed
from .sharing import share_first_layer

TEXT_HEAD = "ForSequenceClassification"  # how transformers names every class whose head says one thing of a whole text
# of those, the ones that are known to read the first token of a text, and nothing else, or (ModernBERT) the mean of all of them
_READ_FIRST = {
    "BertForSequenceClassification", "RobertaForSequenceClassification", "XLMRobertaForSequenceClassification",
    "CamembertForSequenceClassification", "DistilBertForSequenceClassification", "ElectraForSequenceClassification",
    "AlbertForSequenceClassification", "ModernBertForSequenceClassification",
}  # fmt: skip


def reads_texts(model: PreTrainedModel) -> bool:
    """Return whether a model's head says one thing of a whole text, and not one of each token."""
    return type(model).__name__.endswith(TEXT_HEAD)


def pooling(model: PreTrainedModel) -> str:
    """Return what the head of a model reads of a text: "cls", its first token; "mean", all of them; "tokens", each for itself.

    Of a class that is not known here: "unknown".
    """
    if not reads_texts(model):
        return "tokens"
    if type(model).__name__ not in _READ_FIRST:
        return "unknown"
    return "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "cls"


@contextlib.contextmanager
def only_rows(model: PreTrainedModel, rows: Tensor, segments: Segments | None = None) -> Iterator[None]:
    """Make what the body of a model returns hold just `rows` of its flattened (B * L, D) output while the context lasts.

    A forward hook on the body does it, so that the head above, whatever its architecture, computes nothing else.
    """

    def select(hidden: Tensor) -> Tensor:
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)[None]

    with _body_gives(model.base_model, lambda hidden: hidden if segments is not None and segments.rows_taken else select(hidden)):
        yield


@contextlib.contextmanager
def one_row_a_text(model: PreTrainedModel, batch: PackedBatch, segments: Segments) -> Iterator[None]:
    """Make a head that reads whole texts see the labelled segments of a pack as texts of one token each while the context lasts.

    That token is the segment's row at its label, or the mean of its rows. Where the body has a pooler the row is taken before it.
    """
    body: Any = model.base_model
    inside = body.encoder if getattr(body, "pooler", None) is not None else body
    mean = pooling(model) == "mean"

    def texts(hidden: Tensor) -> Tensor:
        if mean:
            return _means(hidden[0], batch)[:, None]
        return (hidden[0] if segments.rows_taken else hidden[0].index_select(0, batch.label_positions))[:, None]

    with _body_gives(inside, texts):
        yield


def _means(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Return the mean row of each labelled segment, (N, D), in fp32 at least."""
    lengths = batch.cu_seqlens.long().diff()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), lengths)
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    sums = hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, owner, hidden)
    return (sums / lengths[:, None])[segments_of(batch)]


def segments_of(batch: PackedBatch) -> Tensor:
    """Return the segment that each label position lies in, (N,)."""
    return torch.searchsorted(batch.cu_seqlens.long(), batch.label_positions, right=True) - 1


@contextlib.contextmanager
def _body_gives(body: nn.Module, change: Any) -> Iterator[None]:
    """Change the hidden states that a module returns while the context lasts."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        changed = change(output[0])
        if isinstance(output, tuple):
            return (changed, *output[1:])
        output["last_hidden_state"] = changed
        return output

    handle = body.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def forward_packed(model: PreTrainedModel, batch: PackedBatch, *, spare: bool = False) -> Tensor:
    """Return what a model's head says at the label positions of a batch, (N, V), in their order; with `spare`, rows may follow those.

    V is the vocabulary, or the labels of a head that classifies, or 2 for the start and the end of an answer. A head that classifies
    whole texts says one thing of the segment that a position lies in: the position is that of the first token.
    Where `runs_packed` says no, the segments are run padded; the numbers are the same.
    """
    if not runs_packed(model, batch.input_ids.device.type):
        return _forward_padded(model, batch)
    kind = pooling(model)
    rows = batch.label_positions
    if kind == "tokens" and rows.device.type == "cpu" and 0 < len(rows) != len(batch.cu_seqlens) - 1:
        rows = torch.cat([rows, rows[-1:].expand(rounded(len(rows)) - len(rows))])
    segments = Segments(batch.cu_seqlens, batch.max_seqlen, None if kind == "mean" else rows)
    # a mask of four dimensions is taken as it comes by transformers' mask making, and packed attention does not look at it; a head that
    # pools by the mean does: of texts of one token, by ones, it is that token
    no_mask = batch.input_ids.new_ones(1, 1, 1, 1)
    types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    seen = only_rows(model, rows, segments) if kind == "tokens" else one_row_a_text(model, batch, segments)
    with seen, share_first_layer(model, batch):
        output = model(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=no_mask, segments=segments, **types)
    logits = _logits(output)
    return logits if spare else logits[: len(batch.label_positions)]


def _logits(output: Any) -> Tensor:
    """Return the rows of a model's output, (N, V)."""
    if "start_logits" in output:
        return torch.stack((output["start_logits"][0], output["end_logits"][0]), -1)
    logits: Tensor = output["logits"]
    return logits.flatten(0, -2)


def _forward_padded(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    bounds = batch.cu_seqlens.long()
    lengths = (bounds[1:] - bounds[:-1]).tolist()
    ids = pad_sequence(list(batch.input_ids[0].split(lengths)), batch_first=True, padding_value=model.config.pad_token_id or 0)
    mask = pad_sequence([torch.ones(length, dtype=torch.long) for length in lengths], batch_first=True).to(ids.device)
    types = {}
    if batch.token_type_ids is not None:
        types = {"token_type_ids": pad_sequence(list(batch.token_type_ids[0].split(lengths)), batch_first=True)}
    segment = segments_of(batch)
    if reads_texts(model):
        return _logits(model(input_ids=ids, attention_mask=mask, **types))[segment]
    rows = segment * ids.shape[1] + batch.label_positions - bounds[segment]
    with only_rows(model, rows):
        return _logits(model(input_ids=ids, attention_mask=mask, **types))


def runs_packed(model: PreTrainedModel, device_type: str) -> bool:
    """Return whether a batch on a kind of device runs packed, as model, mode and autocast stand.

    CUDA's kernel for segments takes 16-bit numbers only and has no dropout; what it cannot do is done padded, not dropped.
    """
    if not is_packed(model) or pooling(model) == "unknown":
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
