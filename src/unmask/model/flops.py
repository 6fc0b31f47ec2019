"""How big a model is, and how many floating-point operations a token of it takes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def num_parameters(model: nn.Module, *, embeddings: bool = True) -> int:
    """Return the number of parameters, tied ones counted once; without `embeddings`, those of the lookup tables are left out."""
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters(recurse=False)}
    return sum(p.numel() for p in model.parameters() if embeddings or id(p) not in tables)


def flops_per_token(model: PreTrainedModel, seqlen: float, label_share: float, *, training: bool = True) -> float:
    """Return the model FLOPs of a token: matrix products only, what no implementation can leave out.

    Every linear layer of the body counts 2 x in x out as often as it runs (ALBERT's run more than once), the head likewise but only for
    the share of tokens that carries a label, and attention 4 x hidden x keys in sight (a sliding window sees less).
    `seqlen` is the length that a token meets: sum of squared lengths over sum of lengths where they vary. Training is three times a
    forward pass (the backward pass makes two products of each). DeBERTa's products with relative positions are not counted.
    """
    body, head, layers = _count(model)
    keys = sum(min(seqlen, window) for window in layers)
    width = getattr(model.config, "head_dim", None)
    width = width * model.config.num_attention_heads if width else model.config.hidden_size
    forward = body + label_share * head + 4.0 * width * keys
    return (3 if training else 1) * forward


def _count(model: PreTrainedModel) -> tuple[float, float, list[float]]:
    """Return 2 x in x out summed over the linear layers that each token runs through in body and in head, and each layer's window.

    A copy without memory (on the meta device) is run on a few tokens, and its linear layers report themselves.
    """
    length, sums = 7, [0.0, 0.0]
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        twin = type(model)(config)
        ids = torch.zeros(1, length, dtype=torch.long)
    twin.eval()
    twin.config.pad_token_id = None  # or transformers looks for padding in ids that are not there
    inside = {id(module) for module in twin.base_model.modules()}

    def report(module: nn.Linear, args: Any, output: torch.Tensor) -> None:
        # what runs once a batch and not once a token (a pooler, DeBERTa's projections of relative positions) is left out
        if output.numel() == length * module.out_features:
            sums[0 if id(module) in inside else 1] += 2.0 * module.in_features * module.out_features

    for module in twin.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(report)  # type: ignore[arg-type]
    with torch.no_grad():
        twin(input_ids=ids)
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    window = 2.0 * (getattr(config, "sliding_window", None) or 0) + 1
    return sums[0], sums[1], [window if kind == "sliding_attention" else float("inf") for kind in types]
