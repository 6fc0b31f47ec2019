"""Masked language modelling as an objective: what pre-training and adapting train for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.batch import PackedBatch
from ..model.heads import forward_packed
from .card import model_card
from .heldout import heldout
from .loop import Step, TrainState
from .loss import masked_loss_sum
from .objective import Objective
from .recipe import Recipe
from .setup import Setup, prepare
from .unigram import Plateau, entropy, start_at_frequencies, token_counts, unigram

if TYPE_CHECKING:
    from torch import Tensor


class MaskedLanguageModel(Objective):
    """Predict the masked tokens; measured on frozen masks of held-out text, beside word frequencies and the model as it began."""

    unit = "masked_tokens"
    evaluates_together = True

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.recipe, self.device, self.precision = setup.recipe, setup.device, setup.precision
        self.tokenizer, self.model, self.loader = setup.tokenizer, setup.model, setup.loader

    @classmethod
    def make(cls, recipe: Recipe, folder: Path, *, model_folder: Path | None = None, say: Callable[[str], None]) -> MaskedLanguageModel:
        """Return the objective of a recipe in a run's folder, with the model from `model_folder` (a checkpoint) where one is given."""
        return cls(prepare(recipe, folder, model_folder=model_folder, say=say))

    def loss_sum(self, model: Any, batch: PackedBatch) -> Tensor:
        """Return the summed loss of a micro-batch as the loop wants it."""
        batch = batch.to(self.device)
        with self.precision.autocast():
            logits = forward_packed(model, batch, spare=True)
        return masked_loss_sum(logits, batch.labels)

    def probability_of(self, step: int, state: TrainState) -> float | None:
        """Return the mask rate of a step, where it follows a schedule.

        Batches are made ahead: of a budget in tokens or minutes the progress at that step is what it will be, about.
        """
        if self.recipe.masking.mlm_probability_end is None:
            return None
        tokens = step * self.loader.tokens_a_step
        return self.recipe.masking.probability_at(self.recipe.train.progress(step, tokens, state.seconds, state.steps_per_epoch))

    def begin(self, evaluate: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Note down, once a run, what its numbers will be compared with."""
        counts = token_counts(self.setup.store, self.loader.packer.vocabulary.size)
        info: dict[str, Any] = {"unigram_loss": entropy(counts)}
        if self.is_measured:
            info |= {"start": evaluate(), "unigram": unigram(counts, self.setup.eval_batches)}
        if self.recipe.base_model is None:
            start_at_frequencies(self.model, counts)
        return info

    def take_up(self, info: dict[str, Any]) -> None:
        """Watch for the plateau at the loss of word frequencies."""
        self.plateau = Plateau(info["unigram_loss"], warmup_ratio=self.recipe.optim.warmup_ratio)

    def watch(self, step: Step, progress: float) -> str | None:
        """Return what to say of a run that sits on the plateau."""
        return self.plateau.update(step.loss, progress)

    @property
    def is_measured(self) -> bool:
        """Whether there is held-out text to measure on."""
        return bool(self.setup.eval_batches)

    def evaluate(self) -> dict[str, Any]:
        """Return the model's numbers on the frozen masks of the held-out text, and of the general text where some is replayed."""
        metrics = heldout(self.model, self.setup.eval_batches, self.precision, self.world)
        if self.setup.general_batches:
            metrics["general"] = heldout(self.model, self.setup.general_batches, self.precision, self.world)
        return metrics

    def rank(self, metrics: dict[str, Any]) -> float:
        """Return the held-out loss."""
        return float(metrics["masked_loss"])

    def line(self, metrics: dict[str, Any]) -> str:
        """Return an evaluation as the user is told of it."""
        general = f"; general text {metrics['general']['masked_loss']:.3f}" if "general" in metrics else ""
        return f"held-out loss {metrics['masked_loss']:.3f}, accuracy {metrics['masked_accuracy']:.1%}{general}"

    def finish(self, folder: Path, metrics: dict[str, Any], totals: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        """Write the model card, and return the metrics beside those of the baselines."""
        if metrics:
            start = "untrained" if self.recipe.base_model is None else "before"
            metrics |= {"masks_fingerprint": self.setup.masks_fingerprint, "unigram": info["unigram"], start: info["start"]}
        metrics |= totals
        (folder / "README.md").write_text(model_card(self.recipe, metrics, self.setup), encoding="utf-8")
        return metrics
