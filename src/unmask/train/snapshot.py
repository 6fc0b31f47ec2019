"""What a checkpoint is written of: a copy on the host, made between two steps, which is all that training waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from .distributed import World


class Snapshot:
    """Tensors as they are now: the first process copies all of them, or its part where they are in shards, and each other one its part."""

    def __init__(self, tensors: Mapping[str, Tensor], world: World) -> None:
        self.world = world
        self.parts: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}  # of those in shards: how many rows all parts have together
        copies: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            is_part = hasattr(tensor, "to_local")
            if not is_part and not world.is_first:
                continue
            if is_part:
                self.rows[name] = tensor.shape[0]
            if id(tensor) not in copies:  # tied weights stay one
                local: Tensor = tensor.to_local() if is_part else tensor  # type: ignore[attr-defined, operator]
                copies[id(tensor)] = local.detach().to("cpu", copy=True)
            self.parts[name] = copies[id(tensor)]

    def whole(self) -> dict[str, Tensor]:
        """Return the tensors, whole, in the first process; every process must ask, each in one thread at a time, and sends its parts."""
        found: dict[int, Tensor] = {}
        for name, part in self.parts.items():
            if id(part) not in found:
                found[id(part)] = _joined(part, self.rows[name], self.world) if name in self.rows else part
        return {name: found[id(part)] for name, part in self.parts.items()}


def _joined(part: Tensor, rows: int, world: World) -> Tensor:
    """Return in the first process a tensor of which each has some rows, dealt out as FSDP2 does: the last ones may have fewer, or none."""
    if not world.is_first:
        if len(part):
            dist.send(part.contiguous(), 0, group=world.aside)
        return part
    whole = torch.empty((rows, *part.shape[1:]), dtype=part.dtype)
    for rank, rest in enumerate(whole.split(max(1, -(-rows // world.size)))):
        if rank == 0:
            rest.copy_(part)
        else:
            dist.recv(rest, rank, group=world.aside)
    return whole
