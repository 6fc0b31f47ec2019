"""Trackers that a run reports to beside its own log.jsonl: none by default, each an optional extra, all used in the same way."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..config import unknown_key
from ..errors import ConfigError, require

IDS = "trackers.json"  # how each tracker knows the run, so that a resumed one goes on with it
PROJECT = "unmask"

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Made with (folder, settings, run id, step to go on from); then `log` any number of times, then `close`."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of a step."""

    def close(self) -> None:
        """Write out what is left."""


class TensorBoard:
    """Event files in RUN/tensorboard; see them with `tensorboard --logdir RUN/tensorboard`."""

    package = "tensorboard"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str, step: int) -> None:
        require("tensorboard", extra="tensorboard", why="train.trackers = tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # what was written beyond the step that a run is resumed at is not shown
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]
        if not step:
            self.writer.add_text("recipe", "\n".join(f"    {name} = {value}" for name, value in settings.items()))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of a step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Write out what is left."""
        self.writer.close()


class Wandb:
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY and its other variables are honoured."""

    package = "wandb"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str, step: int) -> None:
        wandb = require("wandb", extra="wandb", why="train.trackers = wandb")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self.run = wandb.init(project=project, name=folder.name, id=run_id, resume="allow", config=dict(settings), dir=str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of a step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is left."""
        self.run.finish()


class MLflow:
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are honoured, without the first it is files in RUN/mlruns."""

    package = "mlflow"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str, step: int) -> None:
        require("mlflow", extra="mlflow", why="train.trackers = mlflow")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri()  # the small package has no database
        if where.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # recent versions want to be told that files are meant
        self.metric, self.client = Metric, MlflowClient(where)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        found = self.client.search_runs([experiment_id], f"tags.unmask_run = '{run_id}'")
        if found:
            self.run_id = found[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(experiment_id, run_name=folder.name, tags={"unmask_run": run_id}).info.run_id
        params = [Param(name, str(value)[:500]) for name, value in settings.items()]
        for start in range(0, len(params), 100):  # the most that a call takes
            self.client.log_batch(self.run_id, params=params[start : start + 100])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of a step."""
        moment = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[self.metric(name, value, moment, step) for name, value in values.items()])

    def close(self) -> None:
        """Write out what is left."""
        self.client.set_terminated(self.run_id)


class Trackio:
    """Trackio, kept on this machine unless TRACKIO_SPACE_ID names a Space; see it with `trackio show --project unmask`."""

    package = "trackio"

    def __init__(self, folder: Path, settings: Mapping[str, Any], run_id: str, step: int) -> None:
        trackio = require("trackio", extra="trackio", why="train.trackers = trackio")
        name = f"{folder.name}-{run_id}"
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and standard output is for results
            self.run = trackio.init(project=PROJECT, name=name, config=dict(settings), resume="allow", embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take numbers of a step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is left."""
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any], str, int], Tracker]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow, "trackio": Trackio,
}  # fmt: skip


class Trackers:
    """All trackers of a run; one that fails while the run goes on is left out from then on, with a warning: the run is worth more."""

    def __init__(self, names: Iterable[str], folder: str | Path, *, step: int = 0) -> None:
        names, folder = tuple(names), Path(folder)
        check(names)
        self.active: dict[str, Tracker] = {}
        if names:
            settings, run_id = read_settings(folder), find_id(folder)
            for name in names:
                self.active[name] = TRACKERS[name](folder, settings, run_id, step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand numbers of a step to every tracker."""
        self._each("log", values, step)

    def close(self) -> None:
        """Close every tracker."""
        self._each("close")
        self.active = {}

    def _each(self, call: str, *arguments: Any) -> None:
        for name, tracker in list(self.active.items()):
            try:
                getattr(tracker, call)(*arguments)
            except Exception as error:  # a network or a service of someone else: anything may come
                log.warning("the tracker '%s' failed and gets nothing more (log.jsonl has it all): %s", name, error)
                del self.active[name]


def check(names: Iterable[str]) -> None:
    """Check that trackers of these names exist and are installed; worth doing before a run packs its text.

    Raises: ConfigError for a name that is none; MissingExtra for one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(unknown_key(str(name), TRACKERS, "train.trackers"))
        require(TRACKERS[name].package, extra=name, why=f"train.trackers = {name}")  # type: ignore[attr-defined]


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the run's recipe with flat names (`optim.learning_rate`)."""
    path = folder / "config.toml"
    return dict(flat(tomllib.loads(path.read_text(encoding="utf-8")))) if path.is_file() else {}


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (dotted name, value) of a nested table."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def find_id(folder: Path) -> str:
    """Return the name by which trackers know the run in a folder, made when first asked for."""
    path = folder / IDS
    if path.is_file():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"'{path}' does not say by which name the trackers know the run ({error}); remove it: they then take what comes for another"
            ) from None
    run_id = uuid.uuid4().hex[:8]
    path.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
    return run_id
