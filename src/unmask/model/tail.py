"""The last layer of a body, computed only at the rows that are read from it.

In the last layer a token that nobody reads is needed for its keys and values alone: its output projection and its feed-forward
block, two thirds and more of the layer, are work for nothing. With 15% of the tokens labelled that is a fifth of a four-layer model.
This module is the only one that knows the inside of a layer; tests/model/test_parity.py says when one has changed.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .dropout import noise
from .gather import Gather

if TYPE_CHECKING:
    from .attention import Segments


def _post_norm(layer: Any, hidden: Tensor, attention_mask: Tensor | None, rows: Tensor, **kwargs: Any) -> Tensor:
    """BERT's layer: add and norm after attention, add and norm after the feed-forward block."""
    context = _lone_queries(layer.attention.self, hidden, kwargs["segments"])
    if context is None:
        context = layer.attention.self(hidden, attention_mask=attention_mask, **kwargs)[0].index_select(1, rows)
    attended = layer.attention.output(context, hidden.index_select(1, rows))
    return layer.feed_forward_chunk(attended)


def _lone_queries(attention: Any, hidden: Tensor, segments: Segments) -> Tensor | None:
    """Return what the one token that is read of each segment attends to, None where more than one is read of any.

    With one query a segment no token needs a key or a value: q (W_k h) = (q W_k) h, so the projections move from the tokens to the query
    and to what it has seen.
    Shapes: S segments, of which N are read; hidden (1, T, D), result (1, N, D).
    """
    parts = attention.key, attention.value
    lone = segments.lone_rows()
    if lone is None or any(type(part) is not nn.Linear for part in parts):  # LoRA's layers are more than their weights
        return None
    rows, owners = lone
    heads, size = attention.num_attention_heads, attention.attention_head_size
    query = attention.query(hidden[0].index_select(0, rows)).float().view(-1, heads, size)
    share = attention.dropout.p if attention.training else 0.0
    with torch.autocast("cpu", enabled=False):  # in bf16 a kernel is compiled for every new shape, and there are many
        (key, key_bias), (value, value_bias) = (
            (part.weight.float().view(heads, size, -1), part.bias.float().view(heads, size)) for part in parts
        )
        order = torch.from_numpy(np.concatenate(segments.members))
        query = query.index_select(0, order)
        counts = [count for _, count, _ in segments.blocks]
        asked = torch.bmm(query.transpose(0, 1), key).transpose(0, 1).split(counts)
        same = (query * key_bias).sum(-1, keepdim=True).split(counts)  # the key's bias: the same for all that a query sees
        cells = Gather.apply(hidden[0], *segments.index(1)).float().split([count * length for _, count, length in segments.blocks])
        seen, total = [], []
        for group, (_, count, length) in enumerate(segments.blocks):
            tokens = cells[group].view(count, length, -1)
            scores = (torch.bmm(asked[group], tokens.transpose(1, 2)) + same[group]) * size**-0.5
            mask = segments.mask(group, torch.float32, None)
            weights = torch.softmax(scores if mask is None else scores + mask[:, 0], -1)
            if share:
                stays, factor = noise(weights.shape, share, weights.dtype)
                weights = weights * stays.mul_(factor)
            seen.append(torch.bmm(weights, tokens))
            total.append(weights.sum(-1))
        values = torch.bmm(torch.cat(seen).transpose(0, 1), value.transpose(1, 2)).transpose(0, 1)
        values = values + torch.cat(total)[..., None] * value_bias
        return values.index_select(0, order.argsort()[owners]).reshape(1, -1, heads * size).to(hidden.dtype)


def _modernbert(layer: Any, hidden: Tensor, attention_mask: Tensor | None, rows: Tensor, **kwargs: Any) -> Tensor:
    """ModernBERT's layer: norm before, residuals around."""
    handle = layer.attn.Wo.register_forward_pre_hook(lambda module, args: (args[0].index_select(1, rows),))
    try:
        attended = layer.attn(layer.attn_norm(hidden), attention_mask=attention_mask, **kwargs)[0]
    finally:
        handle.remove()
    hidden = hidden.index_select(1, rows) + attended
    return hidden + layer.mlp(layer.mlp_norm(hidden))


_LAYERS: dict[str, Callable[..., Tensor]] = {
    "BertLayer": _post_norm,
    "RobertaLayer": _post_norm,
    "XLMRobertaLayer": _post_norm,
    "CamembertLayer": _post_norm,
    "ElectraLayer": _post_norm,
    "ModernBertEncoderLayer": _modernbert,
}


def layers_of(model: PreTrainedModel) -> Any:
    """Return the list of layers of a model's body, None where it is not where it usually is."""
    body = model.base_model
    return getattr(getattr(body, "encoder", body), "layer", None) or getattr(body, "layers", None)


def last_layer(model: PreTrainedModel) -> nn.Module | None:
    """Return the last layer of a model's body where its class is known and it is used once, else None."""
    layers = layers_of(model)
    if layers is None or not len(layers) or type(layers[-1]).__name__ not in _LAYERS or getattr(model.config, "is_decoder", False):
        return None
    return layers[-1]


def install(model: PreTrainedModel) -> bool:
    """Make the last layer compute only `segments.rows` where a packed batch names them; return whether it could be done.

    Without `segments`, and while activations are recomputed for the backward pass, the layer stays the stock one.
    """
    layer = last_layer(model)
    if layer is None:
        return False
    if "forward" in layer.__dict__:
        return True
    # the class's own function, not this layer's bound one: a copy of the model must not run the layer that it was copied from
    stock, tail = type(layer).forward, _LAYERS[type(layer).__name__]

    def forward(self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        segments = kwargs.get("segments")
        if segments is None or segments.rows is None or getattr(self, "gradient_checkpointing", False):
            return stock(self, hidden_states, attention_mask, *args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("encoder_") and name != "past_key_values"}
        segments.rows_taken = True
        return tail(self, hidden_states, attention_mask, segments.rows, **kwargs)

    layer.forward = types.MethodType(forward, layer)
    return True
