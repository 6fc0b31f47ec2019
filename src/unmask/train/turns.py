"""Muon's work shared out: each process makes the updates of some matrices, and is sent the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..data.plan import deal


def shared_step(muon: torch.optim.Muon, rank: int, size: int) -> None:
    """Take a step of Muon: those matrices here that are this process's own, the others elsewhere; then all have all."""
    parameters, owners = _owners(muon, size)
    for parameter, owner in zip(parameters, owners, strict=True):
        if owner != rank:
            parameter.grad = None
    muon.step()
    _exchange(parameters, owners, rank)


def complete(muon: torch.optim.Muon, rank: int, size: int) -> None:
    """Have every process know the momentum of all matrices, which so far their owners do."""
    parameters, owners = _owners(muon, size)
    for parameter in parameters:
        muon.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
    _exchange([muon.state[parameter]["momentum_buffer"] for parameter in parameters], owners, rank)


def _owners(muon: torch.optim.Muon, size: int) -> tuple[list[Tensor], list[int]]:
    """Return the matrices, and for each the process that it is updated in: so that all have about as many products to make."""
    parameters = [parameter for group in muon.param_groups for parameter in group["params"]]
    costs = np.array([parameter.numel() * min(parameter.shape) for parameter in parameters])
    return parameters, deal(costs, size).tolist()


@torch.no_grad()
def _exchange(tensors: Sequence[Tensor], owners: Sequence[int], rank: int) -> None:
    for source in sorted(set(owners)):
        own = [tensor for tensor, owner in zip(tensors, owners, strict=True) if owner == source]
        flat = torch.cat([tensor.reshape(-1) for tensor in own])
        dist.broadcast(flat, src=source)
        if source != rank:
            for tensor, part in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(part.view_as(tensor))
