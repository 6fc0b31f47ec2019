"""Fine-tuned models measured on labelled data, and fine-tuning with what is measured and shown at its end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import MANIFEST
from ..data.over import Place
from ..data.whole import write_text
from ..errors import ConfigError
from ..tasks import finetune as runs
from ..tasks.card import RESULTS
from ..tasks.findings import Findings
from ..tasks.kinds import task, task_of, without_task
from ..tasks.objective import TaskObjective, point
from ..tasks.predictor import Predictor, Scores
from ..tasks.recipe import TaskData
from ..train.card import with_section
from ..train.runlog import finite
from ..train.session import Run
from .evaluation import METRICS, PREDICTIONS, output_folder
from .items import Outcome, names
from .report import REPORT
from .report import write as write_report
from .stats import LEVEL, RESAMPLES, check_resamples, no_interval, units, weights, with_interval


def evaluate_task(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    output: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    max_length: int | None = None,
    batch_tokens: int | None = None,
    on: Place | None = None,
    **reading: Any,
) -> Outcome:
    """Return the numbers of a fine-tuned model on labelled data, each with its count and a 95% interval over items.

    `model` is a model folder, an exported one or a run's folder; `reading` are fields of TaskData (format, text_column, on_bad ...).
    Of a run of several seeds the models of all are measured: the numbers are the kept one's, and "seeds" says how far they differ.
    `output` is a folder for metrics.json, predictions.jsonl and report.html. `on` is a Cluster that predicts.
    Raises: ConfigError for a model that is fine-tuned for no task; DataError, CheckpointError.
    """
    name = task_of(model)
    if name is None:
        raise ConfigError(without_task(model))
    check_resamples(resamples)
    seeds = runs.seed_models(model)
    folder = output_folder(output, "an evaluation", lambda names: names <= {METRICS, PREDICTIONS, MANIFEST, REPORT})
    kind = task(name)
    how: dict[str, Any] = {"precision": precision, "max_length": max_length, "max_tokens": batch_tokens}
    predictor = kind.predictor_type.load(model, device=device, on=on, **how)
    sources = [str(one) for one in ([data] if isinstance(data, (str, Path)) else data)]
    settings = TaskData(sources=tuple(sources), **reading)
    items, findings = kind.read_for(predictor, settings)
    findings.refuse(settings.on_bad)
    results = list(predictor.stream(items))
    kept = predictor.score(items, results)
    found = evaluation(predictor, items, results, kept, findings, resamples=resamples, seed=seed)
    found.metrics["data"] = names(sources)
    if seeds:
        models, compared, best = seeds
        numbers = {}
        for number, one in models.items():
            if number != best:  # which has been measured: it is the kept one
                other = kind.predictor_type.load(one, device=device, on=on, **how)
                scores = other.score(items, list(other.stream(items)))
            numbers[number] = point(kept if number == best else scores, len(items))
            del numbers[number]["num_examples"]
        # what the run compared by may be none of these items' numbers: without an unanswerable question there is no F1 of those
        found.metrics["seeds"] = runs.over_seeds(numbers, compared if compared in numbers[best] else predictor.best[0], best)
    if folder is not None:
        found.save(folder)
        write_report(folder)
    return found


def evaluation(
    predictor: Predictor, items: Sequence[Any], results: Sequence[Any], scores: Scores, findings: Findings, *, resamples: int, seed: int
) -> Outcome:
    """Return the numbers of results with their intervals, and what was predicted of each item."""
    ones = np.ones((1, len(items)))
    point = {name: float(values[0]) for name, values in scores.of(ones).items()}
    unit = units(len(items))
    several = resamples if len(items) > 1 else 0
    drawn = [scores.of(part[:, unit]) for part in weights(int(unit.max(initial=-1)) + 1, several, seed)]
    counts = scores.counts()
    numbers = {}
    for name, value in point.items():
        samples = np.concatenate([part[name] for part in drawn]) if drawn else np.zeros(0)
        numbers[name] = with_interval(value, samples, len(items), counts.get(name, len(items)))
    metrics = {
        "task": predictor.name, "num_examples": len(items), **numbers, "labels": predictor.labels, **scores.details(),
        "findings": findings.to_list(), "settings": {**predictor.settings, "max_length": predictor.max_length},
        "interval": {"level": LEVEL, "method": "bootstrap over items, expanded percentiles", "resamples": resamples, "seed": seed,
                     "why_none": no_interval(len(items), resamples)},
    }  # fmt: skip
    return Outcome(metrics, [predictor.record(item, result) for item, result in zip(items, results, strict=True)])


def after(run: Run, objective: TaskObjective) -> Run:
    """Measure a run that has ended with intervals, write what its folder should hold, and return it with these numbers."""
    name, higher = objective.best
    training: dict[str, Any] = {
        **run.metrics,
        "num_train": len(objective.data.train),
        "num_dev": len(objective.data.dev),
        "rank": objective.rank(run.metrics) if objective.final is not None else None,
    }
    if objective.final is None:
        metrics: dict[str, Any] = {"task": objective.name, "num_examples": 0, "training": training}
        write_text(run.folder / METRICS, json.dumps(finite(metrics), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        final = objective.final
        found = evaluation(final.predictor, final.items, final.results, final.scores, objective.data.findings, resamples=RESAMPLES, seed=0)
        metrics = {**found.metrics, "best": name, "higher_is_better": higher, "training": training}
        replace(found, metrics=metrics).write(run.folder)
        card = run.folder / "model" / "README.md"
        write_text(card, with_section(card.read_text(encoding="utf-8"), RESULTS, results_section(metrics)))
    write_report(run.folder)
    return replace(run, metrics=metrics)


def results_section(metrics: dict[str, Any]) -> str:
    """Return the card's section on the numbers, with their intervals."""
    untrained = metrics["training"].get("untrained", {})
    rows = ["| | value | 95% interval | before training |", "|---|---:|---:|---:|"]
    for name, entry in metrics.items():
        if not isinstance(entry, dict) or entry.get("value") is None:
            continue
        bounds = "none" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
        before = untrained.get(name)
        rows.append(f"| {name} | {entry['value']:.4f} | {bounds} | {'' if before is None else format(before, '.4f')} |")
    note = (
        f"On {metrics['num_examples']:,} held-out examples; intervals: {metrics['interval']['method']}. The checkpoint was chosen by "
        f"{metrics['best']} on the same examples. Temperature and thresholds, where there are any, were found on other examples than those "
        "that they are measured on (cross-fitted)."
    )
    return "\n".join([f"{RESULTS}\n", *rows, "", note, ""])


def finetune(
    task: str,
    model: str | Path | None = None,
    train: str | Path | Sequence[str | Path] | None = None,
    *,
    output: str | Path,
    dev: str | Path | Sequence[str | Path] | None = None,
    recipe: str | Path | None = None,
    overrides: Iterable[str] = (),
    **settings: Any,
) -> Run:
    """Fine-tune a model for a task ("classify", "ner", "qa") on labelled files and return the run.

    `model` is a folder or a Hub id, with any head; without `dev`, a share of the examples is held out by a hash of their content.
    `recipe` is a TOML file; any field of a recipe is a keyword (`num_epochs=5`, `learning_rate=2e-5`, `seeds=5`), the task's own options
    too (`class_weights="balanced"`); `overrides` are `section.key=value` strings.
    Raises: ConfigError, DataError, TokenizerError, CheckpointError for what the user can mend; RunError.
    """
    made = runs.make_recipe(task, model, train, dev, recipe=recipe, overrides=overrides, **settings)
    return shown(runs.start(made, output, after))


def resume(folder: str | Path, *, overrides: Iterable[str] = (), **settings: Any) -> Run:
    """Go on with a fine-tuning run where its newest checkpoint stands, and return the run."""
    return shown(runs.resume(folder, after, overrides=overrides, **settings))


def shown(run: Run) -> Run:
    """Write the report of a run of several seeds (one of one seed has its own already), and return the run."""
    if not run.interrupted and "seeds" in run.metrics:
        write_report(run.folder)
    return run
