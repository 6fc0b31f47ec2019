"""What a run trains for: the seam between the loop and session, which serve every run, and what differs between pre-training and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..data.batch import PackedBatch
from .distributed import World
from .loop import LoopConfig, Step, TrainState
from .lora import LoraConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from .precision import Precision


class RunRecipe(LoopConfig, Protocol):
    """What a session reads of a recipe; it is a frozen dataclass."""

    @property
    def lora(self) -> LoraConfig: ...

    def to_toml(self) -> str:
        """Return the recipe as TOML text."""


class Batches(Protocol):
    """Batches by number: `batch(step)` is a pure function of (seed, step)."""

    def batch(self, step: int, probability: float | None = None) -> list[PackedBatch]:
        """Return the micro-batches of a step."""

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Return how many steps an epoch has."""

    def document_id(self, document: int) -> str:
        """Return the name of a document or example."""

    def tokens_of(self, document: int) -> np.ndarray:
        """Return the token ids of a document, or of the beginning of an example."""

    def divide(self, rank: int, size: int) -> None:
        """Give, from now on, only the part of every step that is one of `size` processes' own."""


class Objective(ABC):
    """A model with its batches, its loss, its numbers and its card. Making one twice from a recipe gives the same.

    `recipe` has what "auto" came to; `loader` gives the batches by number; `unit` names what `count` counts, in log lines.
    """

    recipe: Any  # a RunRecipe
    device: torch.device
    precision: Precision
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel
    loader: Any  # Batches
    unit: str = "examples"
    evaluates_together = False  # whether all processes take part in `evaluate`; otherwise the first does it alone, and tells the others
    world = World()

    def share(self, world: World) -> None:
        """Take part in the work of several processes: train on this one's share of every step."""
        self.world = world
        if world.size > 1:
            self.loader.divide(world.rank, world.size)

    @abstractmethod
    def loss_sum(self, model: Any, batch: PackedBatch) -> Tensor:
        """Return the summed loss of a micro-batch; the loop divides it once, by the `count` of the whole step."""

    def count(self, batch: PackedBatch) -> float:
        """Return what a micro-batch adds to the number that the step's loss is divided by."""
        return len(batch.labels)

    def probability_of(self, step: int, state: TrainState) -> float | None:
        """Return the mask rate of a step, for a loader that masks on a schedule."""
        return None

    def begin(self, evaluate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is noted once a run, before its first step; every checkpoint keeps it. `evaluate` measures the model, and logs it."""
        return {"start": evaluate()} if self.is_measured else {}

    def take_up(self, info: dict[str, Any]) -> None:  # noqa: B027  (most have nothing to do)
        """Be told, before the first step of every sitting, what `begin` noted."""

    def watch(self, step: Step, progress: float) -> str | None:
        """Return what to tell the user about a step, if anything."""
        return None

    @property
    @abstractmethod
    def is_measured(self) -> bool:
        """Whether there is held-out data to measure on."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """Return the numbers of the model as it stands on held-out data; a table among them becomes an event of its own in the log."""

    @abstractmethod
    def rank(self, metrics: dict[str, Any]) -> float:
        """Return the number by which the best checkpoint is known: the lowest is the best."""

    @abstractmethod
    def line(self, metrics: dict[str, Any]) -> str:
        """Return an evaluation as the user is told of it."""

    @abstractmethod
    def finish(self, folder: Path, metrics: dict[str, Any], totals: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        """Complete the folder of the finished model, a copy of the chosen checkpoint's, with its card; return the run's metrics.

        `metrics` are those of the chosen checkpoint's evaluation (empty where nothing was measured), `totals` are step, last_step, tokens
        and seconds of the run, `info` is what `begin` noted.
        """


Make = Callable[..., Objective]  # (recipe, folder, model_folder=..., say=...)
