"""Activation checkpointing: what a layer makes on its way is forgotten, and made again in the pass back; memory for a third more time."""

from __future__ import annotations

import functools
from typing import Any

from torch.utils.checkpoint import checkpoint

from .compiling import encoder_layers


def recompute_layers(model: Any) -> None:
    """Make the layers of a model, in place, keep no more than what goes into them; dropout falls as it did the first time."""
    for layer in encoder_layers(model):
        layer.forward = functools.partial(_again, layer.forward)


def _again(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
