"""The one training loop: every verb that trains runs it."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..data.batch import PackedBatch
from ..errors import ConfigError, RunError
from .optim import OptimConfig, schedule

MAX_SKIPPED = 3  # steps in a row whose loss or gradient is not finite
DEFAULT_EPOCHS = 3.0  # where no budget is given


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

    def __post_init__(self) -> None:
        for name in ("max_steps", "num_epochs", "max_tokens", "max_minutes", "save_total_limit", "log_steps", "patience"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"train.{name} = {value!r}; allowed: a number above 0")
        for name in ("eval_steps", "eval_tokens", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"train.{name} = {value!r}; allowed: a whole number from 0")

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
    skipped: bool = False
    documents: list[int] = field(default_factory=list)  # of a skipped step: whose they are


def train(
    state: TrainState,
    batches: Iterator[Sequence[PackedBatch]],
    step_loss: Callable[[Any, PackedBatch], Tensor],
    config: LoopConfig,
    on_step: Callable[[TrainState, Step], bool | None],
    count: Callable[[PackedBatch], float] = lambda batch: len(batch.labels),
) -> TrainState:
    """Train until the budget is used up, or `on_step` returns True; return the state, which is changed in place.

    `batches` gives the micro-batches of a step, `step_loss` the *summed* loss of one of them, `count` its part of the number that the sum
    over the step is divided by; `on_step` is called after every step.
    Raises: RunError when the loss is not finite three times in a row, or when a single window does not fit into memory.
    """
    parameters = [p for optimizer in state.optimizers for group in optimizer.param_groups for p in group["params"]]
    begin = time.perf_counter() - state.seconds
    state.model.train()
    while state.progress(config.train) < 1:
        start = time.perf_counter()
        micro_batches = next(batches)
        waited = time.perf_counter() - start
        num_tokens, num_labels = sum(batch.num_tokens for batch in micro_batches), sum(count(batch) for batch in micro_batches)

        rate = set_learning_rates(state, config, num_tokens)
        total = accumulate(state, micro_batches, step_loss, num_labels)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss, grad_norm = torch.stack([total, norm]).tolist()
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        if finite:
            if config.optim.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, config.optim.max_grad_norm, norm)
            for optimizer in state.optimizers:
                optimizer.step()
        for parameter in parameters:
            parameter.grad = None

        state.step += 1
        state.tokens += num_tokens
        state.skipped = 0 if finite else state.skipped + 1
        state.seconds = time.perf_counter() - begin
        culprits = [] if finite else sorted({int(d) for batch in micro_batches for d in batch.documents if d >= 0})
        seconds = time.perf_counter() - start
        stop = on_step(state, Step(loss, grad_norm, rate, num_tokens, num_labels, seconds, waited, not finite, culprits))
        state.seconds = time.perf_counter() - begin
        if state.skipped >= MAX_SKIPPED:
            raise RunError(
                f"the loss or its gradient was not finite in {MAX_SKIPPED} steps in a row, the last one step {state.step} (loss {loss}, "
                f"gradient norm {grad_norm}); those steps were skipped, and log.jsonl names their documents. What helps: a lower "
                "optim.learning_rate, a longer optim.warmup_ratio, train.precision=fp32"
            )
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
    state: TrainState, micro_batches: Sequence[PackedBatch], step_loss: Callable[[Any, PackedBatch], Tensor], num_labels: float
) -> Tensor:
    """Leave the gradient of the step's mean loss in the parameters, and return that loss.

    Every micro-batch's sum is divided by the labels of the whole step, so that how a step is cut changes nothing. When memory runs out
    the micro-batches are halved, from then on, and the step is done again.
    """
    while True:
        pieces = [piece for batch in micro_batches for piece in halve(batch, state.halvings) if len(piece.labels)]
        try:
            total = torch.zeros(())
            for piece in pieces:
                loss = step_loss(state.model, piece) / (num_labels or 1)
                loss.backward()
                total = total.to(loss.device) + loss.detach()
            return total
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # out of the handler, so that the failed step's tensors are no longer held by the traceback
        state.model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        state.halvings += 1
        if sum(len(halve(batch, state.halvings)) for batch in micro_batches) == sum(
            len(halve(batch, state.halvings - 1)) for batch in micro_batches
        ):
            raise RunError(
                f"memory runs out even for a single window ({reason}); lower data.max_length ({max(b.max_seqlen for b in micro_batches)} "
                "tokens here), or take a smaller model"
            )


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
