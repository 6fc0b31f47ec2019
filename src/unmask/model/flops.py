"""How big a model is, and how many floating-point operations a token of it takes."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .tail import last_layer

# in a last layer that is computed at the labels only (tail.py), these are still computed at every token
EVERY_TOKEN = ("attention.self.", "attn.Wqkv")


class Products(NamedTuple):
    """2 x in x out of the linear layers that run at every token and at labelled tokens only; the keys in sight, by layer."""

    every_token: float
    labelled: float
    windows: list[float]


def num_parameters(model: nn.Module, *, embeddings: bool = True) -> int:
    """Return the number of parameters, tied ones counted once; without `embeddings`, those of the lookup tables are left out."""
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters(recurse=False)}
    return sum(p.numel() for p in model.parameters() if embeddings or id(p) not in tables)


def flops_per_token(model: PreTrainedModel, seqlen: float, label_share: float, *, training: bool = True) -> float:
    """Return the model FLOPs of a token: the matrix products, at as many tokens as they are computed for, and nothing else.

    Every linear layer of the body counts 2 x in x out as often as it runs (ALBERT's run more than once); the head, and what of a last
    layer Unmask computes at labels only, counts for the share of tokens that carries one; attention counts 4 x hidden x keys in sight.
    `seqlen` is the length that a token meets: sum of squared lengths over sum of lengths where they vary. Training is three times a
    forward pass (the backward pass makes two products of each). DeBERTa's products with relative positions are not counted.
    For what a plain padded model computes, pass a stock model and label_share=1.
    """
    count = _count(model)
    config: Any = model.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    keys = sum(min(seqlen, window) for window in count.windows)
    forward = count.every_token + label_share * count.labelled + 4.0 * width * keys
    return (3 if training else 1) * forward


def _count(model: PreTrainedModel) -> Products:
    """Run a copy without memory (on the meta device) on a few tokens, and let its linear layers report themselves."""
    length, sums = 7, {True: 0.0, False: 0.0}
    config: Any = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        twin = type(model)(config).eval()
        ids = torch.zeros(1, length, dtype=torch.long)
    twin.config.pad_token_id = None  # or transformers looks for padding in ids that are not there
    labelled = {id(module) for module in twin.modules()} - {id(module) for module in twin.base_model.modules()}
    layer = last_layer(model)
    if layer is not None and "forward" in layer.__dict__:
        last: Any = last_layer(twin)
        labelled |= {id(module) for name, module in last.named_modules() if not name.startswith(EVERY_TOKEN)}

    def report(module: Any, args: Any, output: torch.Tensor) -> None:
        # what runs once a batch and not once a token (a pooler, DeBERTa's projections of relative positions) is left out
        if output.numel() == length * module.out_features:
            sums[id(module) in labelled] += 2.0 * module.in_features * module.out_features

    for module in twin.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(report)
    with torch.no_grad():
        twin(input_ids=ids)
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = 2.0 * (getattr(config, "sliding_window", None) or 0) + 1
    return Products(sums[False], sums[True], [window if kind == "sliding_attention" else float("inf") for kind in types])
