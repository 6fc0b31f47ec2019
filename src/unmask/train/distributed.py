"""The processes that train together: who they are, what they agree on, and how their gradients become one sum."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError, RunError, UnmaskError
from . import turns
from .sharded import Shards, shard
from .watch import Watch, ending_with

if TYPE_CHECKING:
    from .loop import TrainConfig

T = TypeVar("T")
LossSum = Callable[[Any, Any], Tensor]
FOR_EVER = datetime.timedelta(days=30)  # the first process may pack a corpus while the others wait; who hangs in training, Watch finds
to_stop = threading.Event()  # set by whoever has started this process and wants it to stop after the step in hand, but sends no signal
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Socket closed", "NCCL")


class World:
    """The processes that train together, as one of them sees it. This one is alone: there is nobody to agree with."""

    rank, size = 0, 1
    is_sharded = False  # whether each process holds a part of the model only
    aside: Any = None  # of processes that each hold a part: their group for what goes on beside training
    waited = 0.0  # seconds spent waiting for the other processes, since `take_waited` was called

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what a run leaves behind, and talks to the user."""
        return self.rank == 0

    @property
    def is_orphan(self) -> bool:
        """Whether the launcher that started this process has gone, or wants it to stop."""
        return to_stop.is_set()

    def sum(self, *values: float) -> list[float]:
        """Return the sum over all processes of each value."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        return bool(self.sum(float(flag))[0])

    def of_first(self, value: float) -> float:
        """Return the first process's value."""
        return self.sum(value if self.is_first else 0.0)[0]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all processes of a number on the device."""
        return value

    def gather(self, content: bytes) -> list[bytes]:
        """Return what every process gives, by rank."""
        return [content]

    def agree(self, value: Any) -> Any:
        """Return what the first process gives (as JSON holds it); what the others give does not count."""
        return value

    def first_does(self, work: Callable[[], T]) -> T | None:
        """Have the first process do something, while the others wait; return what came of it, None in the others.

        Raises: RunError in the others where it failed.
        """
        return work()

    def wrap(self, model: Any, loss_sum: LossSum, config: TrainConfig) -> LossSum:
        """Return what to train with in place of `loss_sum`: its gradients are those of all processes once `finish` was called."""
        return loss_sum

    def shard(self, model: Any, *, bf16: bool) -> None:
        """Cut a model, in place, into as many parts as there are processes."""

    def passes(self, number: int) -> int:
        """Return how many passes a process that has so many to do must do."""
        return number

    def backward(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of a forward and backward pass; the gradients go on their way in the `last` one of a step."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """End a step's passes, also where there were none, or one of them has failed: the gradients are summed when it returns."""

    def step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Change the weights by what the optimizers make of their gradients."""
        for optimizer in optimizers:
            optimizer.step()

    def complete(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Have every process know all of the optimizers' state, of which it may have had a part."""

    def watching(self, seconds: float) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which a process that makes the others wait for so long ends them all."""
        return contextlib.nullcontext()

    def take_waited(self) -> float:
        """Return how many seconds this process has waited for others since it was asked before."""
        waited, self.waited = self.waited, 0.0
        return waited


class Processes(World):
    """Several processes, on one machine or many, which torchrun (or `--processes`) has started."""

    def __init__(self, device: torch.device, launcher: int) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.waited, self.moved, self.is_waiting = 0.0, time.monotonic(), False  # `moved`: when it last got through a place of waiting
        self.gradients: Replicas | Shards | None = None
        self._launcher = launcher

    @property
    def is_orphan(self) -> bool:
        """Whether the launcher that started this process has gone, or wants it to stop."""
        return super().is_orphan or os.getppid() != self._launcher

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.is_waiting = True
        if self.device.type == "cuda":  # what the device has still to do is no waiting
            torch.cuda.current_stream().synchronize()
        start = time.perf_counter()
        yield
        self.is_waiting, self.moved = False, time.monotonic()
        self.waited += time.perf_counter() - start

    def sum(self, *values: float) -> list[float]:
        """Return the sum over all processes of each value."""
        found: list[float] = self.total(torch.tensor(values, dtype=torch.float64)).tolist()
        return [int(one) if one.is_integer() else one for one in found]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all processes of a number on the device."""
        result = value.detach().to(self.device, copy=True)
        with self._waiting():
            dist.all_reduce(result)
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        return result

    def gather(self, content: bytes) -> list[bytes]:
        """Return what every process gives, by rank."""
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(lengths, torch.tensor([len(content)]))
        longest = int(torch.cat(lengths).max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        with self._waiting():
            dist.all_gather(found, padded)
        return [one[: int(length)].numpy().tobytes() for one, length in zip(found, lengths, strict=True)]

    def agree(self, value: Any) -> Any:
        """Return what the first process gives (as JSON holds it); what the others give does not count."""
        return json.loads(self.gather(json.dumps(value).encode() if self.is_first else b"")[0])

    def first_does(self, work: Callable[[], T]) -> T | None:
        """Have the first process do something, while the others wait; return what came of it, None in the others.

        Raises: RunError in the others where it failed.
        """
        result, code = None, 1
        try:
            if self.is_first:
                result = work()
            code = 0
        except UnmaskError as error:
            code = error.exit_code
            raise
        finally:
            code = self.agree(code)
        if code:
            failed = RunError("the first process has failed; its message says why")
            failed.exit_code = code  # what was wrong with the input is as wrong for all
            raise failed
        return result

    def wrap(self, model: Any, loss_sum: LossSum, config: TrainConfig) -> LossSum:
        """Return what to train with in place of `loss_sum`: its gradients are those of all processes once `finish` was called."""
        if self.is_sharded:
            return loss_sum
        self.gradients = Replicas(self, model, loss_sum, config)
        return self.gradients.loss_sum

    def shard(self, model: Any, *, bf16: bool) -> None:
        """Cut a model, in place, into as many parts as there are processes."""
        shard(model, self, bf16=bf16)
        if self.aside is None:
            self.aside = dist.new_group(backend="gloo", timeout=FOR_EVER)
        self.gradients, self.is_sharded = Shards(model), True

    def passes(self, number: int) -> int:
        """Return how many passes a process that has so many to do must do: of a sharded model, as many as any other."""
        if not self.is_sharded:
            return number
        passes = [int(one) for one in self.gather(str(number).encode())]
        if min(passes) == 0 < max(passes):
            raise RunError(
                "a step has fewer windows than there are processes, and a sharded model wants one for each; raise data.batch_tokens"
            )
        return max(passes)

    def backward(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of a forward and backward pass; the gradients go on their way in the `last` one of a step."""
        return contextlib.nullcontext() if self.gradients is None else self.gradients.backward(last=last)

    def finish(self) -> None:
        """End a step's passes, also where there were none, or one of them has failed: the gradients are summed when it returns."""
        if self.gradients is not None:
            self.gradients.finish()

    def step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Change the weights by what the optimizers make of their gradients; on CPUs Muon, which takes long, is shared out."""
        for optimizer in optimizers:
            if self._shares_out(optimizer):
                turns.shared_step(optimizer, self.rank, self.size)
            else:
                optimizer.step()

    def complete(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Have every process know all of the optimizers' state, of which it may have had a part."""
        for optimizer in optimizers:
            if self._shares_out(optimizer):
                turns.complete(optimizer, self.rank, self.size)

    def _shares_out(self, optimizer: torch.optim.Optimizer) -> TypeGuard[torch.optim.Muon]:
        # a GPU has made all matrices in less time than it takes to send them
        return isinstance(optimizer, torch.optim.Muon) and self.device.type == "cpu"

    def watching(self, seconds: float) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which a process that makes the others wait for so long ends them all."""
        return Watch(self, seconds)

    def leave(self) -> None:
        """Let go of what holds the group of the processes: its threads end now, not in the middle of Python's own end, where they abort."""
        if isinstance(self.gradients, Replicas):
            del self.gradients.ddp
        self.gradients = self.aside = None
        gc.collect()


class _LossModule(nn.Module):
    """What is a forward pass to DDP: the summed loss of a micro-batch, or, without one, a zero that all parameters have a part in."""

    def __init__(self, model: Any, loss_sum: LossSum) -> None:
        super().__init__()
        self.model, self.loss_sum = model, loss_sum

    def forward(self, batch: Any) -> Tensor:
        return self.loss_sum(self.model, batch) if batch is not None else _zero([p for p in self.parameters() if p.requires_grad])


class Replicas:
    """The same model in every process, its gradients summed by DDP in buckets, each on its way while the backward pass goes on.

    A process that runs out of memory, has no micro-batch or leaves a parameter out would keep the others waiting: `finish` sends what
    is missing as zeros. The buckets are laid out before the first step, and always alike, so that a resumed run sums in the same order.
    """

    def __init__(self, world: Processes, model: Any, loss_sum: LossSum, config: TrainConfig) -> None:
        self.world, self.compress = world, config.gradient_compression == "bf16"
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.ready: set[int] = set()  # whose gradients are on their way
        self.armed, self.sent = False, None  # type: bool, float | None
        self.ddp = nn.parallel.DistributedDataParallel(
            _LossModule(model, loss_sum), bucket_cap_mb=config.bucket_megabytes, gradient_as_bucket_view=True, forward_sync_buffers=False
        )
        self.ddp.register_comm_hook(None, lambda state, bucket: self._send(bucket))
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)
        # DDP lays out its buckets in the order in which gradients arrive first
        self.finish()
        for parameter in self.parameters:
            parameter.grad = None

    def loss_sum(self, model: Any, batch: Any) -> Tensor:
        """Return the summed loss of a micro-batch."""
        loss: Tensor = self.ddp(batch)
        if self.ddp.require_backward_grad_sync:
            self._arm()
        return loss

    def backward(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context of a forward and backward pass."""
        return contextlib.nullcontext() if last else self.ddp.no_sync()

    def finish(self) -> None:
        """Wait until the gradients of all processes are summed; those that this one does not have are zeros."""
        if not self.armed:
            zero = self.ddp(None)
            self._arm()
            zero.backward()
        missing = [parameter for parameter in self.parameters if id(parameter) not in self.ready]
        if missing:
            _zero(missing).backward()
        self.armed = False
        if self.sent is not None:
            self.world.waited += time.perf_counter() - self.sent
        self.sent, self.world.is_waiting, self.world.moved = None, False, time.monotonic()

    def _arm(self) -> None:
        self.armed = True
        self.ready.clear()

    def _arrived(self, parameter: Tensor) -> None:
        self.ready.add(id(parameter))

    def _send(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        buffer = bucket.buffer()
        sent = buffer.to(torch.bfloat16) if self.compress else buffer
        future = dist.all_reduce(sent, async_op=True).get_future()
        if bucket.is_last():  # from here on there is nothing to do but to wait
            self.sent, self.world.is_waiting = time.perf_counter(), True
        return future.then(lambda done: buffer.copy_(done.value()[0]) if self.compress else done.value()[0])


def _zero(parameters: list[Tensor]) -> Tensor:
    """Return a zero whose gradient is zero in every parameter; the last one's comes first, as in a model."""
    total = torch.zeros((), device=parameters[0].device)
    for parameter in parameters:
        total = total + parameter.reshape(-1)[0].float() * 0.0
    return total


def launched() -> tuple[int, int]:
    """Return the rank of this process and how many were launched with it; (0, 1) where nobody launched it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def launcher() -> int:
    """Return the process that has started this one, which may have gone meanwhile; what `--processes` starts is told."""
    return int(os.environ.get("UNMASK_LAUNCHED", os.getppid()))


def is_restarted() -> bool:
    """Return whether torchrun has started this process again, after one of its fellows died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Yield the world of this process: alone, or with those that were launched with it.

    Raises: ConfigError for a device that they cannot share; RunError when one of them is lost.
    """
    rank, size = launched()
    if size == 1:
        yield World()
        return
    check_device(device)
    parent = launcher()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    try:
        with ending_with(parent):
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=FOR_EVER)
        world = Processes(device, parent)
        yield world
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(phrase in str(error) for phrase in LOST):
            raise
        raise RunError(
            f"process {rank} of {size} has lost another one, which has failed or was killed ({str(error).strip().splitlines()[-1]}); "
            "the run goes on from its last checkpoint with `unmask resume`"
        ) from error
    world.leave()
    dist.destroy_process_group()


def check_device(device: torch.device) -> None:
    """Raise ConfigError for a device that several processes cannot share."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda" and device.index is not None and here > 1:
        raise ConfigError(f"train.device = '{device}' is one GPU, and {here} processes run on this machine; use cuda: each takes its own")
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise ConfigError(
            f"{here} processes for the {torch.cuda.device_count()} GPUs of this machine; start as many as it has, or set train.device=cpu"
        )
