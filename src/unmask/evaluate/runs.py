"""Training runs with what is measured and shown at their end: the same from Python as from the command line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec

from ..train import recipe as recipes
from ..train import run as runs
from ..train.session import Run, tell

P = ParamSpec("P")


def finish(run: Run) -> Run:
    """Compare an adapted model with its base where that is asked for, write RUN/report.html, and return the run; no more if interrupted."""
    if not run.interrupted and run.is_first:
        from . import adaptation  # only now: a run begins a second or two earlier without what measures and draws
        from .report import write

        try:
            if adaptation.is_wanted(recipes.load(run.folder / "config.toml")):
                adaptation.write(run.folder, say=tell)
            write(run.folder)
        except KeyboardInterrupt:
            tell(f"the model is trained and saved; what is left, its comparison and report, is made by: unmask resume {run.folder}")
            raise
    return run


def _finished(function: Callable[P, Run]) -> Callable[P, Run]:
    @functools.wraps(function)
    def start(*args: P.args, **kwargs: P.kwargs) -> Run:
        return finish(function(*args, **kwargs))

    return start


pretrain = _finished(runs.pretrain)
adapt = _finished(runs.adapt)


def resume(folder: str | Path, *, overrides: Iterable[str] = (), **settings: Any) -> Run:
    """Go on with a run where its newest checkpoint stands (from the beginning where there is none), and return the run.

    Of its recipe, only what does not change what was computed so far may be overridden: fields of `[train]` but for the seed.
    Raises: CheckpointError for a folder that holds no run.
    """
    from ..tasks.finetune import is_task_run

    if is_task_run(folder):
        from . import tasks

        return tasks.resume(folder, overrides=overrides, **settings)
    return finish(runs.resume(folder, overrides=overrides, **settings))
