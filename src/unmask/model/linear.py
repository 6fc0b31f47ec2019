"""Linear layers with their weights laid out once for the CPU's matrix kernels, instead of plain ones in every product.

oneDNN multiplies by weights in blocks of its own order. Given plain ones in fp32, torch takes another library's kernel, which is slower;
under bf16 autocast it casts every weight again in every pass. Laid out beforehand a pass takes 10 to 20% less time, for the memory of the
weights once more (half of it in bf16). This module is the only one that knows those doors; where they are shut the layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

BATCH = 4096  # rows that the layout is made for; any number can be multiplied


class LaidOut:
    """The linear layers of an fp32 model, laid out: `with laid_out.used(): ...` multiplies by them, in fp32 or bf16, without gradients.

    The layer that makes the logits stays in fp32: bf16 would leave them two digits.
    What is written into a weight through `weight.data` torch does not count, so that it is not seen here: write under `torch.no_grad()`
    into the weight itself, or make a new one of these (a new Engine) afterwards.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        found = [module for module in model.modules() if type(module) is nn.Linear and _is_plain(module)] if _possible(dtype) else []
        # of a head that classifies it is the last layer there is
        last = getattr(model, "get_output_embeddings", lambda: None)() or (found[-1] if found else None)
        self.layers = {layer: torch.float32 if layer is last else dtype for layer in found}
        self.made: dict[nn.Linear, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {}

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Make the layers multiply by their laid out weights while the context lasts; what has changed since is laid out again."""
        if torch.is_grad_enabled():
            yield
            return
        for layer in self.layers:
            layer.forward = self._forward(layer)  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def forget(self) -> None:
        """Let go of the laid out weights; they are laid out again when they are next used."""
        self.made.clear()

    def _forward(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        parts = [part for part in (layer.weight, layer.bias) if part is not None]
        state = tuple(number for part in parts for number in (part.data_ptr(), -1 if part.is_inference() else part._version))
        if layer not in self.made or self.made[layer][0] != state:
            self.made[layer] = (state, _multiply(layer, self.layers[layer]))
        return self.made[layer][1]


def _is_plain(layer: nn.Linear) -> bool:
    return layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu" and "forward" not in layer.__dict__


def _multiply(layer: nn.Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), BATCH)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x.to(dtype).contiguous(), weight, bias, "none", [], "")


def _possible(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(hasattr(ops, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return dtype == torch.float32 or bool(hasattr(ops, "_is_mkldnn_bf16_supported") and ops._is_mkldnn_bf16_supported())
