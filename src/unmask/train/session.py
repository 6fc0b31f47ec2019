"""One sitting of a run: from its newest checkpoint (or none) to its end, or to an interruption."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.manifest import write_manifest
from ..data.prefetch import prefetch
from ..data.whole import alone, identity, write_text
from ..errors import CheckpointError, RunError
from ..model.load import save_model
from ..rng import rng
from . import lora, optim
from .background import Background
from .checkpoint import Checkpoint, Checkpoints, write_folder
from .compiling import compile_layers
from .distributed import World, join
from .guard import WINDOW, Diverged, Guard
from .loop import Step, TrainState, train
from .objective import Make, Objective, RunRecipe
from .recompute import recompute_layers
from .runlog import NoLog, RunLog, finite
from .setup import find_device
from .sharded import check as check_sharded
from .signals import StopRequest
from .snapshot import Snapshot

AUTO_TIMES = 10  # evaluations and checkpoints of a run that does not say how many
AUTO_APART = 10  # steps that lie between them at least
EXCERPT_TOKENS = 40  # of each document of a step that was skipped, in the log
COUNTERS = ("step", "tokens", "seconds", "skipped", "halvings")  # of the state, in a checkpoint


@dataclass(frozen=True)
class Run:
    """A run that has ended, or was interrupted: its folder and its numbers."""

    folder: Path
    metrics: dict[str, Any]
    step: int
    interrupted: bool = False
    is_first: bool = True  # whether this process is the one that writes, of several that trained together

    @property
    def model(self) -> Path:
        """The folder of the finished model, for `unmask.Filler.load` or any `from_pretrained`."""
        return self.folder / "model"


def run_session(folder: Path, recipe: RunRecipe, make: Make) -> Run:
    """Go on with the run in a folder until its budget is used up or it is interrupted, and return it; `make` makes its objective."""
    checkpoints = Checkpoints(folder / "checkpoints", recipe.train.save_total_limit)
    device = find_device(recipe.train.device, setting="train.device")
    check_sharded(recipe)
    with join(device) as world, contextlib.ExitStack() as stack, torch.random.fork_rng():
        world.first_does(lambda: stack.enter_context(alone(folder)))
        back: Diverged | None = None
        while True:
            session = take_up(folder, recipe, make, checkpoints, world, back)
            try:
                return session.run()
            except Diverged as error:
                back = go_back(checkpoints, world, error, back)
            finally:
                session.log.close()


def take_up(folder: Path, recipe: RunRecipe, make: Make, checkpoints: Checkpoints, world: World, back: Diverged | None) -> Session:
    """Return a session that goes on from the newest checkpoint, without the steps that one which went back is to do without."""

    def newest() -> str | None:
        found = checkpoints.latest()
        return found.folder.name if found else None

    found = checkpoints.named(world.agree(world.first_does(newest)))
    torch.manual_seed(dropout_seed(recipe.train.seed, world.rank))
    options = {"model_folder": found.folder if found else None, "say": tell if world.is_first else silent}
    objective = world.first_does(lambda: make(recipe, folder, **options))
    precision = world.agree(objective.recipe.train.precision if objective else None)
    if objective is None:  # not the first: tokenizer and corpus are there, and what was measured is settled
        objective = make(with_train(recipe, precision=precision), folder, **options)
    return Session(folder, objective, checkpoints, found, world, back)


def go_back(checkpoints: Checkpoints, world: World, error: Diverged, before: Diverged | None) -> Diverged:
    """Leave as the newest checkpoint one from before the weights went wrong, and return the error; or raise it.

    It is raised where no checkpoint is as old, and where the run went back before, for what was the same place, about.
    """
    if before is not None and error.last <= before.last + WINDOW:
        left_out = f"steps {before.suspects.start} to {before.last}"
        error.args = (f"{error}\n(the run had gone back before, and left out {left_out}, and here it is again)",)
        raise error
    if not world.agree(world.first_does(lambda: checkpoints.go_back(error.suspects.start - 1))):
        raise error
    return error


def with_train(recipe: Any, **values: Any) -> Any:
    """Return a recipe with other values in [train]."""
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **values))


def dropout_seed(seed: int, *key: int) -> int:
    """Return what the random numbers of dropout start from in the process of a rank (`key` may go on with a step)."""
    return int(rng(seed, "dropout", *(key if any(key) else ())).integers(2**63))


class Session:
    """What happens between the steps: the log, evaluations, checkpoints, and the end; what is trained for is the objective's business."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        checkpoints: Checkpoints,
        found: Checkpoint | None,
        world: World | None = None,
        back: Diverged | None = None,
    ) -> None:
        self.folder, self.objective, self.recipe, self.checkpoints = folder, objective, objective.recipe, checkpoints
        self.place = identity(folder)
        self.config, self.world = self.recipe.train, world or World()
        objective.share(self.world)
        if self.config.parallel == "fsdp":
            self.world.shard(objective.model, bf16=objective.precision.name == "bf16")
        if self.config.activation_checkpointing:
            recompute_layers(objective.model)
        batch_tokens = getattr(objective.recipe.data, "batch_tokens", None)
        optimizers = optim.build(objective.model, self.recipe.optim, fp32=objective.precision.name == "fp32", batch_tokens=batch_tokens)
        self.state = TrainState(objective.model, optimizers, steps_per_epoch=objective.loader.steps_per_epoch(0))
        self.info: dict[str, Any] = {}  # what a checkpoint says beside the counters of the state
        self.metrics: dict[str, Any] | None = None  # of the last evaluation
        self.last_evaluation = self.last_save = (0, 0.0)
        if found is not None:
            self.restore(found)
        if back is not None:
            self.state.guard.left_out.update(back.suspects)
        self.last_save = self.now()
        self.log: RunLog | NoLog = NoLog()
        if self.world.is_first:
            self.log = RunLog(folder, step=self.state.step, config=self.config, unit=objective.unit, num_processes=self.world.size)
        if back is not None:
            self.log.write({"event": "rollback", "step": self.state.step, "left_out": list(back.suspects), "reason": str(back)})
            self.log.notice(f"back at step {self.state.step}, to do without steps {back.suspects.start} to {back.last}: {back}")
        self.stop, self.saving = StopRequest(), Background()
        self.compile()
        if self.world.is_first:
            write_text(folder / "config.toml", self.recipe.to_toml())
        if found is None:
            self.info |= objective.begin(self.evaluate)
        objective.take_up(self.info)

    def run(self) -> Run:
        """Train to the end or to an interruption, finish, and return the run."""
        if not self.is_over:
            loss_sum = self.world.wrap(self.objective.model, self.objective.loss_sum, self.config)
            with (
                StopRequest(self.world.is_first) as self.stop,
                prefetch(self.objective.loader, self.state.step, self.probability_of) as batches,
                self.world.watching(60 * self.config.timeout_minutes),
                self.saving,
            ):
                train(self.state, batches, loss_sum, self.recipe, self.on_step, self.objective.count, self.world)
        elif self.state.progress(self.config) < 1:
            worse = self.info["num_worse"]
            self.log.notice(
                f"the run ended when {worse} evaluations in a row were no better; to go on: --set train.patience={worse + 1}, or more"
            )
        run = Run(self.folder, self.metrics or {}, self.state.step, not self.is_over, self.world.is_first)
        if run.interrupted:
            self.log.notice(f"interrupted at step {self.state.step}, with a checkpoint; go on with: unmask resume {self.folder}")
        elif run.is_first:
            run = dataclasses.replace(run, metrics=self.finish())
        return run

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up, or so many evaluations in a row were no better that it is not worth going on."""
        patience = self.config.patience
        return self.state.progress(self.config) >= 1 or (patience is not None and self.info.get("num_worse", 0) >= patience)

    def compile(self) -> None:
        """Compile the model's layers where the recipe says so, or where the first process finds it faster."""

        def layers(mode: str) -> str:
            mode = "off" if mode == "auto" and self.world.is_sharded else mode  # one alone cannot measure it
            return compile_layers(mode, self.objective.model, self.try_backward, self.log.notice)

        compiled = layers(self.config.compile) if self.world.is_first else None
        mode = self.world.agree(compiled)
        if not self.world.is_first:
            layers(mode)
        self.recipe = with_train(self.recipe, compile=mode)

    def try_backward(self) -> None:
        """Run a forward and a backward pass of the next step."""
        self.objective.loss_sum(self.objective.model, self.objective.loader.batch(self.state.step)[0]).backward()

    def probability_of(self, step: int) -> float | None:
        """Return the mask rate of a step, where it follows a schedule."""
        return self.objective.probability_of(step, self.state)

    def on_step(self, state: TrainState, step: Step) -> bool:
        """Log a step, evaluate and save where it is time to; return whether to stop."""
        self.saving.check()
        progress = state.progress(self.config)
        stopping = self.world.any(self.stop.requested or self.world.is_orphan)
        ending = progress >= 1 or stopping
        if step.fault is not None:
            loader, decode = self.objective.loader, self.objective.tokenizer.decode
            names = [loader.document_id(document) for document in step.documents]
            texts = [decode(loader.tokens_of(document)[:EXCERPT_TOKENS].tolist()) for document in step.documents]
            what = {"event": "skipped", "step": state.step, "loss": repr(step.loss), "reason": step.fault}
            self.log.write({**what, "documents": names, "texts": texts})
            self.log.notice(f"step {state.step} was skipped: {step.fault} (documents in log.jsonl)")
        else:
            self.log.step(state, step, progress, final=ending)
            notice = self.objective.watch(step, progress)
            if notice:
                self.log.write({"event": "plateau", "step": state.step, "notice": notice})
                self.log.notice(notice)
        better = False
        minutes = self.config.max_minutes  # of this sitting: a run that is prolonged has more
        took = self.info.get("evaluation_seconds", 0.0) / (60 * minutes) if minutes else 0.0
        if self.objective.is_measured and (progress >= 1 or self.due(self.config.eval_steps, self.last_evaluation, progress, took)):
            better = self.evaluate_and_compare()
            if self.is_over and progress < 1:
                self.log.write({"event": "stopped", "step": state.step, "num_worse": self.info["num_worse"]})
                self.log.notice(f"step {state.step}: {self.info['num_worse']} evaluations in a row were no better; the run ends here")
        over = self.is_over or stopping
        if over or better or self.due(self.config.save_steps, self.last_save, progress):
            self.save()
        return over

    def due(self, every: int | None, last: tuple[int, float], progress: float, took: float = 0.0) -> bool:
        """Return whether something that happens every so many steps, or ten times in a run, is to happen now."""
        if every is not None:
            return every > 0 and self.state.step % every == 0
        # where the budget is time, evaluations take some of it: no more than a sixth
        rested = progress - last[1] >= 6 * took
        return rested and self.state.step - last[0] >= AUTO_APART and math.floor(progress * AUTO_TIMES) > math.floor(last[1] * AUTO_TIMES)

    def evaluate(self) -> dict[str, Any]:
        """Return the model's numbers on held-out data, and log them; a table among them is an event of its own."""
        start = time.perf_counter()
        metrics = self.objective.evaluate() if self.world.is_first or self.objective.evaluates_together else None
        metrics = self.world.agree(metrics)
        self.last_evaluation = self.now()
        if self.config.max_minutes:
            self.info["evaluation_seconds"] = self.world.of_first(time.perf_counter() - start)
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
        """Have a checkpoint written: a complete model folder, the optimizers, the random numbers of dropout, and the counters.

        They are copied, and training goes on; one checkpoint is on its way at a time.
        """
        self.saving.wait()
        state, model, world = self.state, self.state.model, self.world
        self.last_save = self.now()
        world.complete(state.optimizers)
        tensors = self.random_states() | optim.state_tensors(state.optimizers)
        if self.recipe.lora.r:
            tensors |= lora.tensors(model)
            model = lora.merged(model)
        copies = Snapshot(tensors, world), Snapshot(model.state_dict(keep_vars=True), world)
        info = {name: getattr(state, name) for name in COUNTERS}
        info |= {
            "progress": state.progress(self.config),
            "last_evaluation": self.last_evaluation,
            "session": self.info,
            "guard": state.guard.state(),
        }
        info["heldout"] = self.metrics if self.last_evaluation[0] == state.step else None
        loss = self.objective.rank(info["heldout"]) if info["heldout"] else None
        self.saving.start(functools.partial(self.write, model, *copies, copy.deepcopy(info), loss))

    def write(self, model: Any, tensors: Snapshot, weights: Snapshot, info: dict[str, Any], loss: float | None) -> None:
        """Write a checkpoint of what was copied, in the first process; the others send what they hold."""
        state, whole = tensors.whole(), weights.whole()
        if not self.world.is_first:
            return
        if identity(self.folder) != self.place:
            raise RunError(
                f"'{self.folder}' is no longer the folder that the run goes on in: its disk is gone, or it was moved; bring it back, "
                "then go on with `unmask resume`"
            )
        tokenizer = self.objective.tokenizer
        self.checkpoints.save(info["step"], lambda folder: save_model(model, tokenizer, folder, weights=whole), state, info, loss=loss)

    def random_states(self) -> dict[str, torch.Tensor]:
        """Return the states of the random numbers of dropout, of every process."""
        kinds = {"rng.cpu": torch.get_rng_state()}
        if self.objective.device.type == "cuda":
            kinds["rng.cuda"] = torch.cuda.get_rng_state(self.objective.device)
        return {
            rank_name(name, rank): torch.from_numpy(np.frombuffer(content, np.uint8).copy())
            for name, state in kinds.items()
            for rank, content in enumerate(self.world.gather(state.numpy().tobytes()))
        }

    def restore(self, found: Checkpoint) -> None:
        """Take up the run where a checkpoint stands (its weights are in the model already)."""
        tensors, info = found.tensors(), found.info
        try:
            for name in COUNTERS:
                setattr(self.state, name, info[name])
            self.info = dict(info["session"])
            self.state.guard = Guard(info.get("guard"))
            if self.recipe.lora.r:
                lora.load_tensors(self.objective.model, tensors, found.folder)
            optim.load_state_tensors(self.state.optimizers, tensors)
            own = {kind: rank_name(kind, self.world.rank) for kind in ("rng.cpu", "rng.cuda")}
            if self.world.is_first or own["rng.cpu"] in tensors:
                torch.set_rng_state(tensors[own["rng.cpu"]])
            else:  # there are more processes than there were
                torch.manual_seed(dropout_seed(self.config.seed, self.world.rank, self.state.step))
        except KeyError as error:
            raise CheckpointError(f"the checkpoint '{found.folder}' lacks {error}; remove it, and the one before is taken") from None
        if self.objective.device.type == "cuda" and own["rng.cuda"] in tensors:
            torch.cuda.set_rng_state(tensors[own["rng.cuda"]], self.objective.device)
        self.metrics = info.get("heldout")
        # the evaluations to come are those that would have come, and so is the best checkpoint; a longer budget has made the progress less
        step, progress = info.get("last_evaluation", self.now())
        self.last_evaluation = (step, min(progress, self.now()[1]))

    def finish(self) -> dict[str, Any]:
        """Write RUN/model and RUN/metrics.json, and return the metrics."""
        checkpoints = Checkpoints(self.checkpoints.folder)  # whose bytes are looked at again: they may have lain there for weeks
        best = checkpoints.best() if self.config.keep == "best" else None
        least = math.inf if best is None or best.loss is None else best.loss
        if self.config.keep == "best" and least > self.info.get("best_loss", math.inf) and (damaged := checkpoints.damaged()):
            raise CheckpointError(
                f"the best checkpoint (step {self.info['best_step']}) is not to be had: {', '.join(map(str, damaged))} is damaged; bring "
                f"it back, or finish with the newest: unmask resume {self.folder} --set train.keep=last"
            )
        chosen = best or checkpoints.latest()
        if chosen is None:
            raise CheckpointError(f"there is no sound checkpoint in '{self.checkpoints.folder}', so no model to finish with")
        totals = {"step": chosen.step, "last_step": self.state.step, "tokens": self.state.tokens, "seconds": self.state.seconds}
        metrics: dict[str, Any] = {}

        def fill(folder: Path) -> None:
            chosen.export(folder)
            metrics.update(self.objective.finish(folder, dict(chosen.info["heldout"] or {}), totals, self.info))
            write_manifest(folder)

        write_folder(self.folder / "model", fill)
        write_text(self.folder / "metrics.json", json.dumps(finite(metrics), indent=1, allow_nan=False) + "\n")
        self.log.write({"event": "end", "step": self.state.step, "chosen": chosen.step})
        return metrics


def tell(text: str) -> None:
    """Tell the user something, before there is a log."""
    print(text, file=sys.stderr, flush=True)


def silent(text: str) -> None:
    """Tell the user nothing: the first process does."""


def rank_name(name: str, rank: int) -> str:
    """Return the name of a tensor that each process has its own of; the first one's is the plain name."""
    return f"{name}.{rank}" if rank else name
