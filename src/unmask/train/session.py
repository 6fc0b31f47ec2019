"""One sitting of a run: from its newest checkpoint (or none) to its end, or to an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.batch import PackedBatch
from ..data.prefetch import prefetch
from ..errors import CheckpointError
from ..model.heads import forward_packed
from ..model.load import save_model
from ..rng import rng
from . import lora, optim
from .card import model_card
from .checkpoint import COMPLETE, INFO, MANIFEST, TENSORS, Checkpoint, Checkpoints, write_folder
from .compiling import compile_layers
from .heldout import heldout
from .loop import Step, TrainState, train
from .loss import masked_loss_sum
from .recipe import Recipe
from .runlog import RunLog, finite
from .setup import Setup, prepare
from .signals import StopRequest
from .unigram import Plateau, entropy, start_at_frequencies, token_counts, unigram

AUTO_TIMES = 10  # evaluations and checkpoints of a run that does not say how many
AUTO_APART = 10  # steps that lie between them at least
COUNTERS = ("step", "tokens", "seconds", "skipped", "halvings")  # of the state, in a checkpoint


@dataclass(frozen=True)
class Run:
    """A run that has ended, or was interrupted: its folder and its numbers."""

    folder: Path
    metrics: dict[str, Any]
    step: int
    interrupted: bool = False

    @property
    def model(self) -> Path:
        """The folder of the finished model, for `unmask.Filler.load` or any `from_pretrained`."""
        return self.folder / "model"


def run_session(folder: Path, recipe: Recipe) -> Run:
    """Go on with the run in a folder until its budget is used up or it is interrupted, and return it."""
    checkpoints = Checkpoints(folder / "checkpoints", recipe.train.save_total_limit)
    with alone(folder), torch.random.fork_rng():
        found = checkpoints.latest()
        torch.manual_seed(int(rng(recipe.train.seed, "dropout").integers(2**63)))
        setup = prepare(recipe, folder, model_folder=found.folder if found else None, say=tell)
        session = Session(folder, setup, checkpoints, found)
        try:
            return session.run()
        finally:
            session.log.close()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; the system lets go of it however the process ends.

    Raises: CheckpointError where another process trains in it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is at work on the run in '{folder}'; wait for it, stop it, or choose another folder"
            ) from None
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(descriptor)


class Session:
    """What happens between the steps: the log, evaluations, checkpoints, and the end."""

    def __init__(self, folder: Path, setup: Setup, checkpoints: Checkpoints, found: Checkpoint | None) -> None:
        self.folder, self.setup, self.recipe, self.checkpoints = folder, setup, setup.recipe, checkpoints
        self.config = setup.recipe.train
        optimizers = optim.build(setup.model, self.recipe.optim, fp32=setup.precision.name == "fp32")
        self.state = TrainState(setup.model, optimizers, steps_per_epoch=setup.loader.steps_per_epoch(0))
        self.step_loss = step_loss_of(setup)
        self.info: dict[str, Any] = {}  # what a checkpoint says beside the counters of the state
        self.metrics: dict[str, Any] | None = None  # of the last evaluation
        self.last_evaluation = self.last_save = (0, 0.0)
        if found is not None:
            self.restore(found)
        self.last_save = self.now()
        self.log = RunLog(folder, step=self.state.step, config=self.config)
        self.stop = StopRequest()
        compiled = compile_layers(self.config.compile, setup.model, self.try_backward, self.log.notice)
        self.recipe = dataclasses.replace(self.recipe, train=dataclasses.replace(self.config, compile=compiled))
        write_text(folder / "config.toml", self.recipe.to_toml())
        if found is None:
            self.begin()
        self.plateau = Plateau(self.info["unigram_loss"], warmup_ratio=self.recipe.optim.warmup_ratio)

    def begin(self) -> None:
        """Note down, once a run, what its numbers will be compared with."""
        counts = token_counts(self.setup.store, self.setup.loader.packer.vocabulary.size)
        self.info = {"unigram_loss": entropy(counts)}
        if self.setup.eval_batches:
            self.info |= {"start": self.evaluate(), "unigram": unigram(counts, self.setup.eval_batches)}
        if self.recipe.base_model is None:
            start_at_frequencies(self.setup.model, counts)

    def run(self) -> Run:
        """Train to the end or to an interruption, finish, and return the run."""
        with StopRequest() as self.stop, prefetch(self.setup.loader, self.state.step, self.probability_of) as batches:
            train(self.state, batches, self.step_loss, self.recipe, self.on_step)
        if self.state.progress(self.config) < 1:
            self.log.notice(f"interrupted at step {self.state.step}, with a checkpoint; go on with: unmask resume {self.folder}")
            return Run(self.folder, self.metrics or {}, self.state.step, interrupted=True)
        return Run(self.folder, self.finish(), self.state.step)

    def try_backward(self) -> None:
        """Run a forward and a backward pass of the next step."""
        self.step_loss(self.setup.model, self.setup.loader.batch(self.state.step)[0]).backward()

    def probability_of(self, step: int) -> float | None:
        """Return the mask rate of a step, where it follows a schedule.

        Batches are made ahead: of a budget in tokens or minutes the progress at that step is what it will be, about.
        """
        if self.recipe.masking.mlm_probability_end is None:
            return None
        tokens = step * self.setup.loader.tokens_a_step
        return self.recipe.masking.probability_at(self.config.progress(step, tokens, self.state.seconds, self.state.steps_per_epoch))

    def on_step(self, state: TrainState, step: Step) -> bool:
        """Log a step, evaluate and save where it is time to; return whether to stop."""
        progress = state.progress(self.config)
        ending = progress >= 1 or self.stop.requested
        if step.skipped:
            names = [self.setup.loader.document_id(document) for document in step.documents]
            self.log.write({"event": "skipped", "step": state.step, "loss": repr(step.loss), "documents": names})
            self.log.notice(f"step {state.step} was skipped: its loss or gradient is not finite (documents in log.jsonl)")
        else:
            self.log.step(state, step, progress, final=ending)
            notice = self.plateau.update(step.loss, progress)
            if notice:
                self.log.write({"event": "plateau", "step": state.step, "notice": notice})
                self.log.notice(notice)
        better = False
        if self.setup.eval_batches and (progress >= 1 or self.due(self.config.eval_steps, self.last_evaluation, progress)):
            better = self.evaluate_and_compare()
        if ending or better or self.due(self.config.save_steps, self.last_save, progress):
            self.save()
        return self.stop.requested

    def due(self, every: int | None, last: tuple[int, float], progress: float) -> bool:
        """Return whether something that happens every so many steps, or ten times in a run, is to happen now."""
        if every is not None:
            return every > 0 and self.state.step % every == 0
        return self.state.step - last[0] >= AUTO_APART and math.floor(progress * AUTO_TIMES) > math.floor(last[1] * AUTO_TIMES)

    def evaluate(self) -> dict[str, Any]:
        """Return the model's numbers on the frozen masks of the held-out text."""
        metrics = heldout(self.setup.model, self.setup.eval_batches, self.setup.precision)
        self.last_evaluation = self.now()
        self.log.write({"event": "heldout", "step": self.state.step, **metrics})
        if self.setup.general_batches:
            general = heldout(self.setup.model, self.setup.general_batches, self.setup.precision)
            self.log.write({"event": "general", "step": self.state.step, **general})
            metrics["general"] = general
        return metrics

    def evaluate_and_compare(self) -> bool:
        """Evaluate, and return whether the model is better than at any evaluation before."""
        self.metrics = self.evaluate()
        general = f"; general text {self.metrics['general']['masked_loss']:.3f}" if "general" in self.metrics else ""
        self.log.notice(
            f"step {self.state.step}: held-out loss {self.metrics['masked_loss']:.3f}, "
            f"accuracy {self.metrics['masked_accuracy']:.1%}{general}"
        )
        better = self.metrics["masked_loss"] < self.info.get("best_loss", math.inf)
        if better:
            self.info["best_loss"], self.info["best_step"] = self.metrics["masked_loss"], self.state.step
        return better

    def now(self) -> tuple[int, float]:
        """Return the step and the progress of the run."""
        return self.state.step, self.state.progress(self.config)

    def save(self) -> None:
        """Write a checkpoint: a complete model folder, the optimizers, the random numbers of dropout, and the counters."""
        state = self.state
        tensors = {**optim.state_tensors(state.optimizers), "rng.cpu": torch.get_rng_state()}
        if self.setup.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.setup.device)
        info = {name: getattr(state, name) for name in COUNTERS}
        info |= {"progress": state.progress(self.config), "last_evaluation": self.last_evaluation, "session": self.info}
        info["heldout"] = self.metrics if self.last_evaluation[0] == state.step else None
        loss = info["heldout"]["masked_loss"] if info["heldout"] else None
        model = state.model
        if self.recipe.lora.r:
            tensors |= lora.tensors(model)
            model = lora.merged(model)
        self.checkpoints.save(state.step, lambda folder: save_model(model, self.setup.tokenizer, folder), tensors, info, loss=loss)
        self.last_save = self.now()

    def restore(self, found: Checkpoint) -> None:
        """Take up the run where a checkpoint stands (its weights are in the model already)."""
        tensors, info = found.tensors(), found.info
        try:
            for name in COUNTERS:
                setattr(self.state, name, info[name])
            self.info = dict(info["session"])
            if self.recipe.lora.r:
                lora.load_tensors(self.setup.model, tensors, found.folder)
            optim.load_state_tensors(self.state.optimizers, tensors)
            torch.set_rng_state(tensors["rng.cpu"])
        except KeyError as error:
            raise CheckpointError(f"the checkpoint '{found.folder}' lacks {error}; remove it, and the one before is taken") from None
        if self.setup.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.setup.device)
        self.metrics = info.get("heldout")
        # the evaluations to come are those that would have come, and so is the best checkpoint; a longer budget has made the progress less
        step, progress = info.get("last_evaluation", self.now())
        self.last_evaluation = (step, min(progress, self.now()[1]))

    def finish(self) -> dict[str, Any]:
        """Write RUN/model and RUN/metrics.json, and return the metrics."""
        best = self.checkpoints.best() if self.config.keep == "best" else None
        chosen = best or self.checkpoints.latest()
        if chosen is None:
            raise CheckpointError(f"there is no sound checkpoint in '{self.checkpoints.folder}', so no model to finish with")
        start = "untrained" if self.recipe.base_model is None else "before"
        metrics: dict[str, Any] = dict(chosen.info["heldout"] or {})
        if metrics:
            metrics |= {"masks_fingerprint": self.setup.masks_fingerprint, "unigram": self.info["unigram"], start: self.info["start"]}
        metrics |= {"step": chosen.step, "last_step": self.state.step, "tokens": self.state.tokens, "seconds": self.state.seconds}
        card = model_card(self.recipe, metrics, self.setup)
        write_folder(self.folder / "model", lambda folder: export(chosen, folder, card))
        write_text(self.folder / "metrics.json", json.dumps(finite(metrics), indent=1, allow_nan=False) + "\n")
        self.log.write({"event": "end", "step": self.state.step, "chosen": chosen.step})
        return metrics


def step_loss_of(setup: Setup) -> Callable[[Any, PackedBatch], Tensor]:
    """Return the summed loss of a micro-batch as the loop wants it."""

    def step_loss(model: Any, batch: PackedBatch) -> Tensor:
        batch = batch.to(setup.device)
        with setup.precision.autocast():
            logits = forward_packed(model, batch)
        return masked_loss_sum(logits, batch.labels)

    return step_loss


def export(checkpoint: Checkpoint, folder: Path, card: str) -> None:
    """Copy a checkpoint's model, without what only training needs, into a folder with a model card."""
    for path in checkpoint.folder.iterdir():
        if path.name not in (TENSORS, INFO, MANIFEST, COMPLETE):
            shutil.copyfile(path, folder / path.name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def tell(text: str) -> None:
    """Tell the user something, before there is a log."""
    print(text, file=sys.stderr, flush=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
