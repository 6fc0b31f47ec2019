"""Look at labelled data before anything is trained on it: counts, lengths, balance, and all that is wrong with it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from . import recipe as recipes
from .findings import Findings
from .kinds import task
from .objective import Data, TaskObjective
from .recipe import TaskData, TaskRecipe

QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Report:
    """What was seen: counts and values by name, and the findings."""

    facts: dict[str, Any]
    findings: Findings

    @property
    def is_fatal(self) -> bool:
        """Whether something keeps examples from being used."""
        return bool(self.findings.of("error"))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it."""
        return {**self.facts, "fatal": self.is_fatal, "findings": self.findings.to_list()}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        shown = []
        width = max(map(len, self.facts), default=0)
        for name, value in self.facts.items():
            if isinstance(value, Mapping):
                pairs = [f"{key}: {_short(one)}" for key, one in value.items()]
                shown.append(f"{name:{width}} " + ", ".join(pairs[:40]) + (f" ... and {len(pairs) - 40} more" if len(pairs) > 40 else ""))
            elif value is not None:
                shown.append(f"{name:{width}} {_short(value)}")
        return [*shown, *map(str, self.findings)]


def doctor(
    name: str,
    sources: Sequence[str],
    dev: Sequence[str] = (),
    *,
    model: str | None = None,
    max_length: int | None = None,
    **settings: Any,
) -> Report:
    """Return what there is to say of labelled files for a task; nothing is raised for what a finding can tell.

    With a `model` (or a tokenizer), lengths are in its tokens, and the share of texts that need several windows is told.
    Raises: DataError for files that cannot be read at all; ConfigError.
    """
    if model is None and max_length is not None:
        raise ConfigError(
            f"max_length = {max_length} counts tokens: name the model or tokenizer whose tokens are meant, too (model, --model)"
        )
    nested = recipes.nested(name, settings)
    nested |= {"task": name, "base_model": model or "none"}
    nested.setdefault("data", {}).update(sources=[str(one) for one in sources], dev=[str(one) for one in dev])
    recipe = recipes.load(settings=nested)
    kind = task(name)
    data = kind.load_data(recipe)
    facts = {**_counts(recipe.data, data), **kind.describe(data)}
    if model is not None:
        facts |= _lengths(kind, model, data, max_length)
    else:
        facts["words"] = _quantiles([len(kind.split_key(item).split()) for item in data.train])
    return Report(facts, data.findings)


def dry_run(recipe: TaskRecipe) -> Report:
    """Return what a run of a recipe would train on, and how: everything is made ready as for training, and let go of.

    Raises: what training would raise.
    """
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        quiet = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, trackers=()))
        objective: Any = task(recipe.task).make(quiet, Path(folder), say=lines.append)
        loader, data, made = objective.loader, objective.data, objective.recipe
        steps = loader.steps_per_epoch()
        facts = {
            **_counts(made.data, data),
            **objective.describe(data),
            **_windows(loader.examples.lengths, loader.examples.example, objective.predictor.max_length),
            "hide_prob": loader.hide_prob,
            "model": type(objective.model).__name__,
            "trained_parameters": sum(p.numel() for p in objective.model.parameters() if p.requires_grad),
            "steps_per_epoch": steps,
            "steps": _steps(made, steps),
            "learning_rate": made.optim.learning_rate,
            "best_by": objective.best[0],
            "precision": made.train.precision,
            "device": objective.device.type,
        }
    return Report(facts, data.findings)


def _counts(data: TaskData, found: Data) -> dict[str, Any]:
    how = (
        ", ".join(data.dev)
        if data.dev
        else f"{data.share_of(len(found.train) + len(found.dev)):.1%} of the training files, by a hash of the content"
    )
    return {"num_train": len(found.train), "num_dev": len(found.dev), "dev": how}


def _lengths(kind: type[TaskObjective], model: str, data: Data, max_length: int | None) -> dict[str, Any]:
    from ..data.tokenizer import load_tokenizer
    from .encode import tokenize
    from .predictor import USUAL

    lengths = [len(ids) for ids in tokenize(load_tokenizer(model), (kind.split_key(item) for item in data.train))]
    window = max_length or USUAL
    return {"tokens": _quantiles(lengths), "window": window, "longer_than_window": float(np.mean(np.array(lengths) > window))}


def _windows(lengths: np.ndarray, example: np.ndarray, max_length: int) -> dict[str, Any]:
    count = np.bincount(example)
    return {
        "tokens": _quantiles(lengths), "num_tokens": int(lengths.sum()), "window": max_length, "windows": len(lengths),
        "in_several_windows": int((count > 1).sum()),
    }  # fmt: skip


def _quantiles(lengths: Any) -> dict[str, int]:
    values = np.asarray(lengths if len(lengths) else [0])
    return {("most" if share == 1 else f"{share:.0%}"): int(np.quantile(values, share)) for share in QUANTILES}


def _steps(recipe: TaskRecipe, steps_per_epoch: int) -> int | str:
    train = recipe.train
    if train.max_minutes is not None or train.max_tokens is not None:
        return "as many as the budget allows"
    epochs = train.num_epochs if train.num_epochs is not None or train.max_steps is not None else 3.0
    both = [train.max_steps, None if epochs is None else round(epochs * steps_per_epoch)]
    return min(value for value in both if value is not None)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
