"""One sitting of a run: from its newest checkpoint (or none) to its end, or to an interruption."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.prefetch import prefetch
from ..data.whole import alone, whole_file
from ..errors import CheckpointError
from ..model.load import save_model
from ..rng import rng
from . import lora, optim
from .checkpoint import COMPLETE, INFO, MANIFEST, TENSORS, Checkpoint, Checkpoints, write_folder
from .compiling import compile_layers
from .loop import Step, TrainState, train
from .objective import Make, Objective, RunRecipe
from .runlog import RunLog, finite
from .signals import StopRequest

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


def run_session(folder: Path, recipe: RunRecipe, make: Make) -> Run:
    """Go on with the run in a folder until its budget is used up or it is interrupted, and return it; `make` makes its objective."""
    checkpoints = Checkpoints(folder / "checkpoints", recipe.train.save_total_limit)
    with alone(folder), torch.random.fork_rng():
        found = checkpoints.latest()
        torch.manual_seed(int(rng(recipe.train.seed, "dropout").integers(2**63)))
        objective = make(recipe, folder, model_folder=found.folder if found else None, say=tell)
        session = Session(folder, objective, checkpoints, found)
        try:
            return session.run()
        finally:
            session.log.close()


class Session:
    """What happens between the steps: the log, evaluations, checkpoints, and the end; what is trained for is the objective's business."""

    def __init__(self, folder: Path, objective: Objective, checkpoints: Checkpoints, found: Checkpoint | None) -> None:
        self.folder, self.objective, self.recipe, self.checkpoints = folder, objective, objective.recipe, checkpoints
        self.config = self.recipe.train
        optimizers = optim.build(objective.model, self.recipe.optim, fp32=objective.precision.name == "fp32")
        self.state = TrainState(objective.model, optimizers, steps_per_epoch=objective.loader.steps_per_epoch(0))
        self.info: dict[str, Any] = {}  # what a checkpoint says beside the counters of the state
        self.metrics: dict[str, Any] | None = None  # of the last evaluation
        self.last_evaluation = self.last_save = (0, 0.0)
        if found is not None:
            self.restore(found)
        self.last_save = self.now()
        self.log = RunLog(folder, step=self.state.step, config=self.config, unit=objective.unit)
        self.stop = StopRequest()
        compiled = compile_layers(self.config.compile, objective.model, self.try_backward, self.log.notice)
        self.recipe = dataclasses.replace(self.recipe, train=dataclasses.replace(self.config, compile=compiled))
        write_text(folder / "config.toml", self.recipe.to_toml())
        if found is None:
            self.info = objective.begin(self.evaluate)
        objective.take_up(self.info)

    def run(self) -> Run:
        """Train to the end or to an interruption, finish, and return the run."""
        if not self.is_over:
            with StopRequest() as self.stop, prefetch(self.objective.loader, self.state.step, self.probability_of) as batches:
                train(self.state, batches, self.objective.loss_sum, self.recipe, self.on_step, self.objective.count)
        if not self.is_over:
            self.log.notice(f"interrupted at step {self.state.step}, with a checkpoint; go on with: unmask resume {self.folder}")
            return Run(self.folder, self.metrics or {}, self.state.step, interrupted=True)
        return Run(self.folder, self.finish(), self.state.step)

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, or so many evaluations in a row were no better that it is not worth going on."""
        patience = self.config.patience
        return self.state.progress(self.config) >= 1 or (patience is not None and self.info.get("num_worse", 0) >= patience)

    def try_backward(self) -> None:
        """Run a forward and a backward pass of the next step."""
        self.objective.loss_sum(self.objective.model, self.objective.loader.batch(self.state.step)[0]).backward()

    def probability_of(self, step: int) -> float | None:
        """Return the mask rate of a step, where it follows a schedule."""
        return self.objective.probability_of(step, self.state)

    def on_step(self, state: TrainState, step: Step) -> bool:
        """Log a step, evaluate and save where it is time to; return whether to stop."""
        progress = state.progress(self.config)
        ending = progress >= 1 or self.stop.requested
        if step.skipped:
            names = [self.objective.loader.document_id(document) for document in step.documents]
            self.log.write({"event": "skipped", "step": state.step, "loss": repr(step.loss), "documents": names})
            self.log.notice(f"step {state.step} was skipped: its loss or gradient is not finite (documents in log.jsonl)")
        else:
            self.log.step(state, step, progress, final=ending)
            notice = self.objective.watch(step, progress)
            if notice:
                self.log.write({"event": "plateau", "step": state.step, "notice": notice})
                self.log.notice(notice)
        better = False
        if self.objective.is_measured and (progress >= 1 or self.due(self.config.eval_steps, self.last_evaluation, progress)):
            better = self.evaluate_and_compare()
            if self.is_over and progress < 1:
                self.log.write({"event": "stopped", "step": state.step, "num_worse": self.info["num_worse"]})
                self.log.notice(f"step {state.step}: {self.info['num_worse']} evaluations in a row were no better; the run ends here")
        over = self.is_over or self.stop.requested
        if over or better or self.due(self.config.save_steps, self.last_save, progress):
            self.save()
        return over

    def due(self, every: int | None, last: tuple[int, float], progress: float) -> bool:
        """Return whether something that happens every so many steps, or ten times in a run, is to happen now."""
        if every is not None:
            return every > 0 and self.state.step % every == 0
        return self.state.step - last[0] >= AUTO_APART and math.floor(progress * AUTO_TIMES) > math.floor(last[1] * AUTO_TIMES)

    def evaluate(self) -> dict[str, Any]:
        """Return the model's numbers on held-out data, and log them; a table among them is an event of its own."""
        metrics = self.objective.evaluate()
        self.last_evaluation = self.now()
        tables = {name: value for name, value in metrics.items() if isinstance(value, dict)}
        own = {name: value for name, value in metrics.items() if name not in tables}
        for event, values in {"heldout": own, **tables}.items():
            self.log.write({"event": event, "step": self.state.step, **values})
        return metrics

    def evaluate_and_compare(self) -> bool:
        """Evaluate, and return whether the model is better than at any evaluation before."""
        self.metrics = self.evaluate()
        self.log.notice(f"step {self.state.step}: {self.objective.line(self.metrics)}")
        rank = self.objective.rank(self.metrics)
        better = rank < self.info.get("best_loss", math.inf)
        if better:
            self.info["best_loss"], self.info["best_step"] = rank, self.state.step
        if self.config.patience is not None:
            self.info["num_worse"] = 0 if better else self.info.get("num_worse", 0) + 1
        return better

    def now(self) -> tuple[int, float]:
        """Return the step and the progress of the run."""
        return self.state.step, self.state.progress(self.config)

    def save(self) -> None:
        """Write a checkpoint: a complete model folder, the optimizers, the random numbers of dropout, and the counters."""
        state = self.state
        tensors = {**optim.state_tensors(state.optimizers), "rng.cpu": torch.get_rng_state()}
        if self.objective.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.objective.device)
        info = {name: getattr(state, name) for name in COUNTERS}
        info |= {"progress": state.progress(self.config), "last_evaluation": self.last_evaluation, "session": self.info}
        info["heldout"] = self.metrics if self.last_evaluation[0] == state.step else None
        loss = self.objective.rank(info["heldout"]) if info["heldout"] else None
        model = state.model
        if self.recipe.lora.r:
            tensors |= lora.tensors(model)
            model = lora.merged(model)
        self.checkpoints.save(state.step, lambda folder: save_model(model, self.objective.tokenizer, folder), tensors, info, loss=loss)
        self.last_save = self.now()

    def restore(self, found: Checkpoint) -> None:
        """Take up the run where a checkpoint stands (its weights are in the model already)."""
        tensors, info = found.tensors(), found.info
        try:
            for name in COUNTERS:
                setattr(self.state, name, info[name])
            self.info = dict(info["session"])
            if self.recipe.lora.r:
                lora.load_tensors(self.objective.model, tensors, found.folder)
            optim.load_state_tensors(self.state.optimizers, tensors)
            torch.set_rng_state(tensors["rng.cpu"])
        except KeyError as error:
            raise CheckpointError(f"the checkpoint '{found.folder}' lacks {error}; remove it, and the one before is taken") from None
        if self.objective.device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.objective.device)
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
        totals = {"step": chosen.step, "last_step": self.state.step, "tokens": self.state.tokens, "seconds": self.state.seconds}
        metrics: dict[str, Any] = {}

        def fill(folder: Path) -> None:
            export(chosen, folder)
            metrics.update(self.objective.finish(folder, dict(chosen.info["heldout"] or {}), totals, self.info))

        write_folder(self.folder / "model", fill)
        write_text(self.folder / "metrics.json", json.dumps(finite(metrics), indent=1, allow_nan=False) + "\n")
        self.log.write({"event": "end", "step": self.state.step, "chosen": chosen.step})
        return metrics


def export(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy a checkpoint's model, without what only training needs, into a folder."""
    for path in checkpoint.folder.iterdir():
        if path.name not in (TENSORS, INFO, MANIFEST, COMPLETE):
            shutil.copyfile(path, folder / path.name)


def tell(text: str) -> None:
    """Tell the user something, before there is a log."""
    print(text, file=sys.stderr, flush=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    with whole_file(path) as file:
        file.write(text)
