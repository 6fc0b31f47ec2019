"""Linear layers with their weights laid out once for the CPU's matrix kernels, instead of plain ones in every product.

oneDNN multiplies by weights in blocks of its own order; given plain ones in fp32, torch takes another library's kernel, which is slower.
Laid out beforehand a pass takes 10 to 20% less time, and the weights once more their memory. (bf16 has infer/backends/twin.py.)
This module is the only one that knows those doors; where they are shut the layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

BATCH = 4096  # rows that the layout is made for; any number can be multiplied


class LaidOut:
    """The fp32 linear layers of a model, laid out: `with laid_out.used(): ...` multiplies by them, without gradients."""

    def __init__(self, model: nn.Module) -> None:
        possible = torch.backends.mkldnn.is_available() and all(
            hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
        )
        self.layers = [module for module in model.modules() if type(module) is nn.Linear and _is_plain(module)] if possible else []
        self.made: dict[nn.Linear, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {}

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Make the layers multiply by their laid out weights while the context lasts; what has changed since is laid out again."""
        if torch.is_grad_enabled():
            yield
            return
        for layer in self.layers:
            layer.forward = self._forward(layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _forward(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        parts = [part for part in (layer.weight, layer.bias) if part is not None]
        state = tuple(number for part in parts for number in (part.data_ptr(), -1 if part.is_inference() else part._version))
        if layer not in self.made or self.made[layer][0] != state:
            self.made[layer] = (state, _multiply(layer))
        return self.made[layer][1]


def _is_plain(layer: nn.Linear) -> bool:
    return layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu" and "forward" not in layer.__dict__


def _multiply(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), BATCH), layer.bias
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
