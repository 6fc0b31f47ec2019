"""The one training loop: every verb that trains runs it."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..data.batch import PackedBatch
from ..errors import ConfigError, RunError
from .distributed import World
from .guard import PATIENCE, Diverged, Guard
from .optim import OptimConfig, schedule
from .row_gradients import RowGradients
from .sharded import whole

DEFAULT_EPOCHS = 3.0  # where no budget is given
BUDGETS = ("max_steps", "num_epochs", "max_tokens", "max_minutes")


@dataclass(frozen=True)
class TrainConfig:
    """How long a run goes on, what it computes in, and what it writes down on the way."""

    max_steps: int | None = None  # budget in steps; where several budgets are given, the first one used up ends the run
    num_epochs: float | None = None  # budget in passes over the corpus (3 where no budget is given at all)
    max_tokens: int | None = None  # budget in real tokens
    max_minutes: float | None = None  # budget in minutes of wall-clock, evaluations and checkpoints included, over all resumes
    seed: int = 0  # of the weights, the order, the masks and the dropout
    device: str = "auto"  # auto (cuda where there is one), cpu, cuda, cuda:1
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the matrix products; auto: measured on this machine; weights are fp32
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto: off on CPU, on a GPU where a few steps measure faster
    eval_steps: int | None = None  # steps between evaluations on held-out text; 0: only at the end; unset: ten in a run
    eval_tokens: int = 100_000  # how much of the held-out text an evaluation reads; 0: all of it
    save_steps: int | None = None  # steps between checkpoints; 0: only at the end; unset: ten in a run
    save_total_limit: int = 2  # checkpoints that are kept, the best among them
    keep: Literal["best", "last"] = "best"  # which weights the finished model has
    patience: int | None = None  # evaluations in a row that are no better than the best, after which the run ends; unset: it goes on
    log_steps: int = 10  # steps between lines of log.jsonl
    trackers: tuple[str, ...] = ()  # tensorboard, wandb, mlflow, trackio
    spike_score: float = 10.0  # how far a loss may leap: times their spread above the last ones; such a batch is left out; 0: however far
    activation_checkpointing: bool = False  # layers forget what they make on the way, and make it again: less memory, a third more time
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: each has the whole model; fsdp: a part of it each
    gradient_compression: Literal["none", "bf16"] = "none"  # what gradients are sent as, where several processes train
    bucket_megabytes: float = 25.0  # of gradients that are sent at a time
    timeout_minutes: float = 30.0  # that processes wait for one of them before the run ends; longer than an evaluation or a save takes

    def __post_init__(self) -> None:
        for name in (*BUDGETS, "save_total_limit", "log_steps", "patience", "bucket_megabytes", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"train.{name} = {value!r}; allowed: a number above 0")
        for name in ("eval_steps", "eval_tokens", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"train.{name} = {value!r}; allowed: a whole number from 0")
        if not self.spike_score >= 0:
            raise ConfigError(f"train.spike_score = {self.spike_score!r}; allowed: a number from 0 (10 is usual; 0: no loss is a leap)")

    def progress(self, step: float, tokens: float, seconds: float, steps_per_epoch: int) -> float:
        """Return the share of the budget that is used up; 1 or more ends the run."""
        num_epochs = self.num_epochs
        if num_epochs is None and self.max_steps is None and self.max_tokens is None and self.max_minutes is None:
            num_epochs = DEFAULT_EPOCHS
        shares = [0.0]
        if self.max_steps is not None:
            shares.append(step / self.max_steps)
        if num_epochs is not None and steps_per_epoch:
            shares.append(step / max(1, round(num_epochs * steps_per_epoch)))
        if self.max_tokens is not None:
            shares.append(tokens / self.max_tokens)
        if self.max_minutes is not None:
            shares.append(seconds / (60 * self.max_minutes))
        return max(shares)


class LoopConfig(Protocol):
    """What the loop reads of a recipe."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def optim(self) -> OptimConfig: ...


@dataclass
class TrainState:
    """Where a run stands: everything that a checkpoint must hold, but for the random numbers of dropout."""

    model: Any
    optimizers: list[torch.optim.Optimizer]
    steps_per_epoch: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0  # wall-clock, over all resumes
    skipped: int = 0  # steps in a row that were skipped
    halvings: int = 0  # how often micro-batches are halved, because memory ran out
    guard: Guard = field(default_factory=Guard)

    def progress(self, config: TrainConfig) -> float:
        """Return the share of the budget that is used up."""
        return config.progress(self.step, self.tokens, self.seconds, self.steps_per_epoch)


@dataclass(frozen=True)
class Step:
    """What happened in a step; `loss` is the mean over its labels (of pre-training: its masked tokens, in nats)."""

    loss: float
    grad_norm: float
    learning_rate: float  # of the last optimizer (AdamW), as scheduled
    num_tokens: int
    num_labels: float
    seconds: float
    wait_seconds: float  # of them, spent waiting for data
    fault: str | None = None  # why it was skipped
    documents: list[int] = field(default_factory=list)  # of a skipped step: whose they are
    talk_seconds: float = 0.0  # of the step, spent waiting for other processes; this and `wait_seconds` are means over the processes


def train(
    state: TrainState,
    batches: Iterator[Sequence[PackedBatch]],
    step_loss: Callable[[Any, PackedBatch], Tensor],
    config: LoopConfig,
    on_step: Callable[[TrainState, Step], bool | None],
    count: Callable[[PackedBatch], float] = lambda batch: len(batch.labels),
    world: World | None = None,
) -> TrainState:
    """Train until the budget is used up, or `on_step` returns True; return the state, which is changed in place.

    `batches` gives the micro-batches of a step, `step_loss` the *summed* loss of one of them, `count` its part of the number that the sum
    over the step is divided by; `on_step` is called after every step. Of several processes (`world`) each has its own micro-batches of
    the step; numbers are those of the whole step, and every decision is the same in all of them.
    A step whose loss leaps or is not finite changes nothing.
    Raises: Diverged (a RunError) when there are three such steps in a row; RunError when a single window does not fit into memory.
    """
    world = world or World()
    parameters = [p for optimizer in state.optimizers for group in optimizer.param_groups for p in group["params"]]
    gradients = RowGradients(parameters)
    begin = time.perf_counter() - state.seconds
    state.model.train()
    while state.progress(config.train) < 1:
        start = time.perf_counter()
        micro_batches = next(batches)
        waited = time.perf_counter() - start
        world.take_waited()  # for an evaluation, or a save
        own = sum(batch.num_tokens for batch in micro_batches), sum(count(batch) for batch in micro_batches)
        num_tokens, num_labels = world.sum(*own)

        rate = set_learning_rates(state, config, int(num_tokens))
        loss = grad_norm = math.nan
        fault = state.guard.before(state.step + 1)
        if fault is None:
            total = accumulate(state, micro_batches, step_loss, num_labels, world)
            norm = whole(torch.nn.utils.get_total_norm(gradients.tensors()))
            loss, grad_norm = torch.stack([total, norm]).tolist()
            fault = state.guard.after(loss, grad_norm, config.train.spike_score)
        if fault is None:
            if config.optim.max_grad_norm:
                gradients.clip(grad_norm, config.optim.max_grad_norm)
            gradients.spread()
            world.step(state.optimizers)
        gradients.clear()

        state.step += 1
        state.tokens += int(num_tokens)
        state.skipped = 0 if fault is None else state.skipped + (not fault.known)
        culprits = [] if fault is None else documents(micro_batches, world)
        waited, talked = (mean / world.size for mean in world.sum(waited, world.take_waited()))
        state.seconds = world.of_first(time.perf_counter() - begin)
        seconds = time.perf_counter() - start
        reason = None if fault is None else fault.reason
        stop = on_step(state, Step(loss, grad_norm, rate, int(num_tokens), num_labels, seconds, waited, reason, culprits, talked))
        state.seconds = world.of_first(time.perf_counter() - begin)
        if fault is not None and not fault.known and state.skipped >= PATIENCE:
            raise Diverged(state.step, fault)
        if stop:
            break
    return state


def set_learning_rates(state: TrainState, config: LoopConfig, num_tokens: int) -> float:
    """Set the rates of a step by the share of the budget at its middle; return the last optimizer's."""
    middle = config.train.progress(state.step + 0.5, state.tokens + num_tokens / 2, state.seconds, state.steps_per_epoch)
    factor = schedule(middle, config.optim)
    rate = 0.0
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate = group["initial_lr"] * factor
    return rate


def accumulate(
    state: TrainState,
    micro_batches: Sequence[PackedBatch],
    step_loss: Callable[[Any, PackedBatch], Tensor],
    num_labels: float,
    world: World | None = None,
) -> Tensor:
    """Leave the gradient of the step's mean loss in the parameters, and return that loss.

    Every micro-batch's sum is divided by the labels of the whole step, so that how a step is cut changes nothing. When memory runs out
    in any process, the micro-batches of all are halved, from then on, and the step is done again.
    """
    world = world or World()
    while True:
        pieces = [piece for batch in micro_batches for piece in halve(batch, state.halvings) if len(piece.labels)]
        reason = None
        try:
            total = torch.zeros(())
            passes = world.passes(len(pieces))
            for number in range(passes):
                with world.backward(last=number == passes - 1):
                    loss = step_loss(state.model, pieces[min(number, len(pieces) - 1)]) / (num_labels or 1)
                    if number >= len(pieces):  # it keeps the others company, and counts for nothing
                        loss = loss * 0.0
                    loss.backward()
                total = total.to(loss.device) + loss.detach()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if world.is_sharded:
                raise RunError(
                    f"memory runs out ({error}), and the processes of a sharded model cannot do a step again; lower data.micro_tokens"
                ) from error
            reason = str(error).partition("\n")[0]
        # out of the handler, so that the failed step's tensors are no longer held by the traceback
        world.finish()
        if not world.any(reason is not None):
            return world.total(total)
        state.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        state.halvings += 1
        now, before = (sum(len(halve(batch, times)) for batch in micro_batches) for times in (state.halvings, state.halvings - 1))
        if not world.any(now > before):
            raise RunError(
                f"memory runs out even for a single window ({reason or 'in another process'}); lower data.max_length "
                f"({max((b.max_seqlen for b in micro_batches), default=0)} tokens here), or take a smaller model"
            )


def documents(micro_batches: Sequence[PackedBatch], world: World) -> list[int]:
    """Return the numbers of the documents of a step, those of all processes."""
    own = {int(number) for batch in micro_batches for number in batch.documents if number >= 0}
    return sorted({number for found in world.gather(json.dumps(sorted(own)).encode()) for number in json.loads(found)})


def halve(batch: PackedBatch, times: int) -> list[PackedBatch]:
    """Return a micro-batch cut in half between its segments, `times` over, as far as it has segments."""
    if times <= 0 or int((batch.documents >= 0).sum()) < 2:
        return [batch]
    return [piece for half in batch.split() for piece in halve(half, times - 1)]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
