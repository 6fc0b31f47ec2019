"""The first layer's projections, computed once for tokens that look the same to it.

Masked copies of one sentence differ in a token each. Before the first attention a token is nothing but its id, its place and its
type, so that a pack of L copies of L tokens holds 2 L different ones, not L * L: queries, keys and values of the rest are copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..data.batch import PackedBatch
from ..data.sizes import rounded
from .tail import layers_of

WORTH_IT = 0.5  # of the tokens may be different at most: sorting them and copying back cost something too

# by the class of a layer, what projects the tokens that enter it
_PROJECTIONS = {
    **dict.fromkeys(
        ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer"),
        ("attention.self.query", "attention.self.key", "attention.self.value"),
    ),
    "ModernBertEncoderLayer": ("attn.Wqkv",),
}


@contextlib.contextmanager
def share_first_layer(model: PreTrainedModel, batch: PackedBatch) -> Iterator[None]:
    """Make the first layer project each kind of token once while the context lasts, where that saves something; the numbers are the same.

    Only without gradients, and on the CPU, where the matrix product is what takes the time.
    """
    layers = layers_of(model)
    # an only layer is the last one too, which has its own way (tail.py)
    names = _PROJECTIONS.get(type(layers[0]).__name__, ()) if layers is not None and len(layers) > 1 else ()
    if not names or torch.is_grad_enabled() or batch.input_ids.device.type != "cpu":
        yield
        return
    first, inverse = _kinds(batch)
    if len(first) > WORTH_IT * len(inverse):
        yield
        return
    first = np.append(first, np.zeros(rounded(len(first)) - len(first), first.dtype))  # some are made that nobody reads: see sizes.py
    rows, back = torch.from_numpy(first), torch.from_numpy(inverse)

    def once(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_select(1, rows), *args[1:])

    def again(module: Any, args: Any, output: Any) -> Any:
        return output.index_select(1, back)

    handles = []
    for name in names:
        projection = attrgetter(name)(layers[0])
        handles += [projection.register_forward_pre_hook(once), projection.register_forward_hook(again)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kinds(batch: PackedBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return a token of each kind, and the kind of each token."""
    place = batch.position_ids[0].numpy()
    kind = batch.input_ids[0].numpy() * (int(place.max()) + 1) + place
    if batch.token_type_ids is not None:
        kind = kind * 2 + batch.token_type_ids[0].numpy()
    _, first, inverse = np.unique(kind, return_index=True, return_inverse=True)
    return first, inverse
