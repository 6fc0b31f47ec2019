"""The loss of a step: summed over masked tokens in fp32, to be divided once by their number in the whole step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# logits held in fp32 at a time: few enough to stay in a CPU's cache, many enough to fill a GPU
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}


class _CrossEntropySum(torch.autograd.Function):
    """Sum of cross-entropies whose gradient is made chunk by chunk in the same pass, so that fp32 copies of (N, V) never exist."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        rows = max(1, CHUNK_ELEMENTS.get(logits.device.type, 2**24) // max(1, logits.shape[1]))
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        wants_grad = ctx.needs_input_grad[0]
        grad = torch.empty_like(logits) if wants_grad else None
        for start in range(0, len(labels), rows):
            target = labels[start : start + rows, None]
            log_probs = torch.log_softmax(logits[start : start + len(target)], -1, dtype=torch.float32)
            total -= log_probs.gather(1, target).sum()
            if grad is not None:
                probs = log_probs.exp_()
                probs.scatter_add_(1, target, torch.full_like(target, -1.0, dtype=probs.dtype))
                grad[start : start + len(target)] = probs
        if grad is not None:
            grad[len(labels) :] = 0
        ctx.grad = grad
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad, ctx.grad = ctx.grad, None  # scaled in place, so that it serves once; a second backward pass would fail here
        return grad.mul_(grads[0]), None


def masked_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the labelled tokens, summed (not averaged) in fp32.

    The caller divides once, by the number of labels of the whole step, so that how a step is cut into micro-batches changes nothing.
    Shapes: logits (N or more, V) of any floating type, rows after the N-th count for nothing; labels (N,) int64; returns () fp32, in nats.
    """
    return _CrossEntropySum.apply(logits, labels)  # type: ignore[no-any-return]
