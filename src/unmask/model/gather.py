"""Rows of a pack gathered into blocks and put back, where every row that counts is used once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Gather(torch.autograd.Function):
    """x[gather], whose gradient is gathered too: every row that counts is used once, so nothing has to be added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        return x.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scatter,) = ctx.saved_tensors
        return grads[0].index_select(0, scatter), None, None


class Scatter(torch.autograd.Function):
    """The way back, y[scatter]; the gradient of the cells that only filled a block up is zero."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        ctx.num_rows = y.shape[0]
        return y.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (scatter,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.num_rows, *grads[0].shape[1:]).index_copy_(0, scatter, grads[0]), None
