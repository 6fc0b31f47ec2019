"""torch.compile of a model's layers, where it is asked for or where a few steps measure faster with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface

from ..errors import RunError
from ..model.attention import PACKED, packed_attention
from ..model.tail import last_layer

WORTH_IT = 1.03  # compiling takes a minute, and again for new shapes
TRIALS = 3


def compile_layers(mode: str, model: Any, backward: Callable[[], None], say: Callable[[str], None]) -> Literal["on", "off"]:
    """Compile the layers of a model in place, or do not; return "on" or "off" for what was done.

    `backward` runs a forward and a backward pass; its gradients are forgotten. "auto" measures on a GPU only: on CPU compiling added
    nothing at the sizes that a CPU trains. Layers are compiled one by one, attention left out, because packs differ in their segments
    and not in their tokens: one graph serves every layer and every step.
    Raises: RunError where compiling was asked for and fails.
    """
    device = next(model.parameters()).device
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return "off"
    with _undisturbed(model, device):
        plain = _seconds(backward, device) if mode == "auto" else 0.0
        layers = encoder_layers(model)
        AttentionInterface.register(PACKED, torch.compiler.disable(packed_attention))
        for layer in layers:
            layer.compile(dynamic=False)
        try:
            fast = _seconds(backward, device)
        except Exception as error:  # dynamo, inductor and the C++ compiler each fail in their own way
            _undo(layers)
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if mode == "on":
                raise RunError(f"torch.compile failed: {reason}; set train.compile=off") from error
            say(f"torch.compile failed ({reason}); going on without it")
            return "off"
    if mode == "auto":
        say(f"torch.compile: {plain / fast:.2f} times as fast")
        if plain / fast < WORTH_IT:
            _undo(layers)
            return "off"
    return "on"


def encoder_layers(model: Any, *, every: bool = False) -> list[nn.Module]:
    """Return the layers of a model's body that are alike; the last one, where it is computed at the labels only, with `every`."""
    stacks = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    largest: Any = max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=[])  # type: ignore[attr-defined]
    last = None if every else last_layer(model)
    return [layer for layer in largest if layer is not last]


def _undo(layers: list[nn.Module]) -> None:
    for layer in layers:
        layer._compiled_call_impl = None  # what Module.compile sets, and has no public way back from
    AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def _undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Forget the gradients, and what was drawn of dropout's random numbers."""
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def _seconds(backward: Callable[[], None], device: torch.device) -> float:
    best = float("inf")
    for attempt in range(TRIALS + 1):  # the first one compiles
        start = time.perf_counter()
        backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if attempt:
            best = min(best, time.perf_counter() - start)
    return best
