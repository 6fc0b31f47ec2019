"""Fine-tune a model for a task: one run, or one for each of several seeds, the best of which is kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.whole import write_text
from ..errors import CheckpointError, ConfigError, UnmaskError
from ..train import run as runs
from ..train.checkpoint import write_folder
from ..train.distributed import launched
from ..train.runlog import finite
from ..train.session import Run, run_session, tell
from ..train.setup import claim
from . import recipe as recipes
from .kinds import task
from .objective import TaskObjective
from .recipe import TaskRecipe

METRICS, CONFIG = "metrics.json", "config.toml"
NOT_COMPARED = "several seeds are compared on held-out examples, and there are none; give dev files, or seeds = 1"
After = Callable[[Run, TaskObjective], Run]  # what is done with a run that has ended, and its objective


def make_recipe(
    name: str,
    model: str | Path | None = None,
    train: str | Path | Sequence[str | Path] | None = None,
    dev: str | Path | Sequence[str | Path] | None = None,
    *,
    recipe: str | Path | None = None,
    overrides: Iterable[str] = (),
    **settings: Any,
) -> TaskRecipe:
    """Return the recipe of a task: a TOML file, keyword settings on top of it, `section.key=value` overrides on top of those."""
    nested = recipes.nested(name, settings)
    nested["task"] = name
    if model is not None:
        nested["base_model"] = str(model)
    for key, value in (("sources", train), ("dev", dev)):
        if value is not None:
            nested.setdefault("data", {})[key] = [str(one) for one in ([value] if isinstance(value, (str, Path)) else value)]
    return recipes.absolute(recipes.load(recipe, settings=nested, overrides=overrides))


def start(recipe: TaskRecipe, output: str | Path, after: After) -> Run:
    """Run a recipe in a new folder and return the run; of several seeds, what the best came to."""
    if recipe.seeds > 1:
        if launched()[1] > 1:
            raise ConfigError(f"seeds = {recipe.seeds} in {launched()[1]} processes: seeds are run one after another, by one process")
        fresh = not Path(output).expanduser().exists()
        folder = claim(output)
        write_text(folder / CONFIG, recipe.to_toml())
        try:
            return _seeds(recipe, folder, after)
        except (UnmaskError, KeyboardInterrupt):
            if folder.is_dir() and {path.name for path in folder.iterdir()} == {CONFIG}:  # no seed has begun: the name may be taken again
                (folder / CONFIG).unlink()
                if fresh:
                    folder.rmdir()
            raise
    return _one(recipe, after, lambda made, make: runs.start(made, output, make))


def resume(folder: str | Path, after: After, *, overrides: Iterable[str] = (), **settings: Any) -> Run:
    """Go on with a run where its newest checkpoint stands, and return the run. Only settings of [train] can change, but for the seed.

    Raises: CheckpointError for a folder that holds no run.
    """
    folder = Path(folder).expanduser()
    known = recipes.load(folder / CONFIG)
    changes, overrides = recipes.nested(known.task, settings), list(overrides)
    runs.check_changes(changes, overrides)
    recipe = recipes.load(folder / CONFIG, settings=changes, overrides=overrides)
    if recipe.seeds > 1:
        return _seeds(recipe, folder, after)
    return _one(recipe, after, lambda made, make: run_session(folder, made, make))


def _one(recipe: TaskRecipe, after: After, go: Callable[[TaskRecipe, Any], Run], compared: bool = False) -> Run:
    kept: list[TaskObjective] = []

    def make(*args: Any, **options: Any) -> TaskObjective:
        kept.append(task(recipe.task).make(*args, **options))
        if compared and not kept[-1].is_measured:
            raise ConfigError(NOT_COMPARED)
        return kept[-1]

    run = go(recipe, make)
    return run if run.interrupted or not run.is_first else after(run, kept[-1])


def _begin(recipe: TaskRecipe, inner: Path, after: After) -> Run:
    return _one(recipe, after, lambda made, make: runs.start(made, inner, make), compared=True)


def _seeds(recipe: TaskRecipe, folder: Path, after: After) -> Run:
    """Run every seed in a folder of its own, keep the best model, and say how far the seeds differ."""
    found: list[tuple[int, Path, dict[str, Any]]] = []
    for number in range(recipe.seeds):
        seed = recipe.train.seed + number
        inner = folder / f"seed-{seed}"
        if not (inner / METRICS).is_file():
            one = dataclasses.replace(recipe, seeds=1, train=dataclasses.replace(recipe.train, seed=seed))
            run = resume(inner, after) if (inner / CONFIG).is_file() else _begin(one, inner, after)
            if run.interrupted:
                tell(f"of {recipe.seeds} seeds this was number {number + 1}; to go on with all of them: unmask resume {folder}")
                return dataclasses.replace(run, folder=folder)
        found.append((seed, inner, _metrics(inner / METRICS)))
    name = found[0][2].get("best")
    if name is None:
        raise ConfigError(NOT_COMPARED)
    rank = {seed: metrics["training"]["rank"] for seed, _, metrics in found}  # null: its number could not be had
    best, inner, metrics = min(found, key=lambda one: (rank[one[0]] is None, rank[one[0]] or 0.0, one[0]))
    names = [key for key in metrics if isinstance(metrics[key], dict) and "value" in metrics[key]]
    numbers = {seed: {key: value_of(one, key) for key in names} for seed, _, one in found}
    write_folder(folder / "model", lambda partial: shutil.copytree(inner / "model", partial, dirs_exist_ok=True))
    for file in ("predictions.jsonl", "log.jsonl", "environment.json"):
        shutil.copyfile(inner / file, folder / file)
    metrics = {**metrics, "seeds": over_seeds(numbers, name, best)}
    write_text(folder / METRICS, json.dumps(finite(metrics), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return Run(folder, metrics, metrics["training"]["step"])


def _metrics(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        several = found.get("seeds", {"values": {}, "best_seed": 0})
        if any(str(int(number)) != number for number in several["values"]) or not isinstance(several["best_seed"], int):
            raise ValueError("its seeds are no numbers")
        if {"rank", "step"} <= found["training"].keys() and (found.get("best") is None or "value" in found[found["best"]]):
            return found
        raise ValueError("numbers are missing")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not what the run wrote ({error}); remove it, and resume: its model is measured again") from None


def value_of(metrics: dict[str, Any], name: str) -> float:
    """Return a number of a run's metrics; not a number where there is none."""
    value = metrics[name]["value"]
    return float("nan") if value is None else float(value)


def over_seeds(numbers: Mapping[int, Mapping[str, float]], name: str, best: int) -> dict[str, Any]:
    """Return how far the runs of several seeds differ; `name` is the number that they are compared by, `best` the seed that is kept."""
    keys = dict.fromkeys(key for found in numbers.values() for key in found)
    by = {key: [found.get(key, float("nan")) for found in numbers.values()] for key in keys}
    values = {str(seed): value if np.isfinite(value) else None for seed, value in zip(numbers, by[name], strict=True)}
    spreads = {key: spread(values) for key, values in by.items()}
    return {"best_seed": best, "metric": name, "values": values, "numbers": spreads}


def seed_models(folder: str | Path) -> tuple[dict[int, Path], str, int] | None:
    """Return the model folder of every seed of a run, what they are compared by and the one that is kept; None for anything else."""
    path = Path(folder).expanduser()
    if not (path / CONFIG).is_file() or not any(path.glob("seed-*")):
        return None
    if not (path / METRICS).is_file():
        raise CheckpointError(f"'{folder}' is a run of several seeds that has not ended; go on with it: `unmask resume {folder}`")
    metrics = _metrics(path / METRICS)
    if "seeds" not in metrics:
        return None
    found = {int(number): path / f"seed-{number}" / "model" for number in metrics["seeds"]["values"]}
    gone = [str(one) for one in found.values() if not one.is_dir()]
    if gone:
        raise CheckpointError(f"'{folder}' is a run of {len(found)} seeds, and {', '.join(gone)} is not there; name '{path / 'model'}'")
    return found, metrics["best"], metrics["seeds"]["best_seed"]


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Return mean, standard deviation and the 95% interval of the mean (Student's t) of a number over seeds."""
    from scipy.stats import t

    array = np.array([value for value in values if np.isfinite(value)])
    count = len(array)
    if not count:
        return {"mean": None, "std": None, "low": None, "high": None, "count": 0}
    mean, std = float(array.mean()), float(array.std(ddof=1)) if count > 1 else None
    reach = float(t.ppf(0.975, count - 1) * std / np.sqrt(count)) if std is not None else None
    low, high = (None, None) if reach is None else (mean - reach, mean + reach)
    return {"mean": mean, "std": std, "low": low, "high": high, "count": count}


def is_task_run(folder: str | Path) -> bool:
    """Return whether a folder is that of a run that fine-tunes for a task."""
    path = Path(folder).expanduser() / CONFIG
    if not path.is_file():
        raise CheckpointError(f"'{folder}' holds no run (no config.toml); name the folder that a run was made in")
    return any(line.startswith("task = ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
