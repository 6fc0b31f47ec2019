"""Gradients of embeddings as the rows that a step has looked up: the rest are zeros, which nobody has to write, measure or scale.

Of a model that is fine-tuned on short texts the embeddings are most of the weights, and a step looks up a fiftieth of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def enable(model: nn.Module) -> None:
    """Have the word embeddings of a model on the CPU give such gradients, where nothing else uses their weights."""
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    if not isinstance(embeddings, nn.Embedding) or embeddings.weight.device.type != "cpu":
        return
    owners = [module for module in model.modules() if any(p is embeddings.weight for p in module.parameters(recurse=False))]
    embeddings.sparse = len(owners) == 1


class RowGradients:
    """The gradients of a step: of parameters as they are, of embeddings as rows, until `spread` gives optimizers what they know."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._whole: dict[int, Tensor] = {}  # kept between steps, with zeros everywhere but in the rows of the step

    def tensors(self) -> list[Tensor]:
        """Return what of the gradients is not zero for certain: what a norm is of, and a factor goes to."""
        found = []
        for place, parameter in enumerate(self.parameters):
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                if place not in self._rows:
                    grad = grad.coalesce()
                    self._rows[place] = grad.indices()[0], grad.values()
                grad = self._rows[place][1]
            found.append(grad)
        return found

    def clip(self, norm: float, max_norm: float) -> None:
        """Scale the gradients, whose norm is known, to a norm of at most `max_norm`."""
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            torch._foreach_mul_(self.tensors(), factor)

    def spread(self) -> None:
        """Put the rows of embeddings into gradients of full size."""
        for place, (rows, values) in self._rows.items():
            parameter = self.parameters[place]
            if place not in self._whole:
                self._whole[place] = torch.zeros_like(parameter)
            parameter.grad = self._whole[place].index_copy_(0, rows, values)

    def clear(self) -> None:
        """Forget the gradients of the step."""
        for place, (rows, _) in self._rows.items():
            if place in self._whole:
                self._whole[place].index_fill_(0, rows, 0.0)
        self._rows = {}
        for parameter in self.parameters:
            parameter.grad = None
