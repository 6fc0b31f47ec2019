"""`unmask finetune`: a model for a task, from labelled examples."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..tasks.findings import Finding
from .launch import Processes, Restarts, launch
from .model import MODEL

if TYPE_CHECKING:
    from ..train.session import Run

Train = Annotated[
    list[str] | None,
    typer.Option("--train", "-t", help="Labelled files to train on: csv, tsv, jsonl, conll (ner), json (qa: SQuAD's); may repeat."),
]


def finetune(
    task: Annotated[str, typer.Argument(help="classify, ner or qa.")],
    model: Annotated[str | None, typer.Argument(help=f"The model to fine-tune: a {MODEL[2:]}", show_default=False)] = None,
    train: Train = None,
    dev: Annotated[list[str] | None, typer.Option(help="Labelled files to measure on; else a share of --train, by content.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run; must not hold anything yet.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe (.toml).")] = None,
    format: Annotated[str | None, typer.Option(help="Format of the files; by default their name and content tell.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text (or context); by default found by its name.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label (or answer); by default found by its name.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text of a pair, or of the question.")] = None,
    on_bad: Annotated[str | None, typer.Option(help="Examples that cannot be used: error (the default), or drop and count them.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget: passes over the examples (3 where no budget is given).")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget: steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Budget: minutes of wall-clock.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step (32).")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a window, in several of which longer texts are read; by default what the model has, at most 512."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest; by default by the model's width.")] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="A layer's rate as a share of that of the layer above it, such as 0.9; by default all learn alike.")
    ] = None,
    freeze: Annotated[int | None, typer.Option(help="First layers that keep their weights, and the embeddings with them.")] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of LoRA's matrices; without it all weights are trained.")] = None,
    patience: Annotated[int | None, typer.Option(help="Evaluations in a row without a better one, after which to stop.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs with other seeds: mean and interval are told, the best model kept.")] = None,
    class_weights: Annotated[list[str] | None, typer.Option(help="Classification: balanced, or label=weight; may be repeated.")] = None,
    problem: Annotated[str | None, typer.Option(help="Classification: single, multi, regression; by default as the data looks.")] = None,
    pooling: Annotated[str | None, typer.Option(help="Classification: cls or mean.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Any field of a recipe: section.key=value (options.loss=focal).")
    ] = None,
    processes: Processes = None,
    restarts: Restarts = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be trained on, and how; train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Fine-tune a model for a task on labelled examples: packed without padding, the best checkpoint kept, measured with intervals."""
    values: dict[str, Any] = {
        "format": format, "text_column": text_column, "label_column": label_column, "pair_column": pair_column, "on_bad": on_bad,
        "num_epochs": epochs, "max_steps": steps, "max_minutes": minutes, "batch_size": batch_size, "max_length": max_length,
        "learning_rate": learning_rate, "layer_decay": layer_decay, "freeze": freeze, "r": lora, "patience": patience, "seeds": seeds,
        "class_weights": class_weights, "problem": problem, "pooling": pooling,
    }  # fmt: skip
    given = {name: value for name, value in values.items() if value is not None and value != []}
    from ..tasks.kinds import model_folder

    name = None if model is None else str(model_folder(model))
    if dry_run:
        from ..tasks.doctor import dry_run as look
        from ..tasks.finetune import make_recipe

        report = look(make_recipe(task, name, train or None, dev or None, recipe=recipe, overrides=settings or (), **given))
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=1) if as_json else "\n".join(report.lines()))
        return 0
    if output is None:
        raise ConfigError("name the folder of the run: --output RUN (or look first, with --dry-run)")
    code = launch(processes, restarts)
    if code is not None:
        return code
    from ..evaluate.tasks import finetune as run

    return ended(run(task, name, train or None, output=output, dev=dev or None, recipe=recipe, overrides=settings or (), **given), as_json)


def ended(run: Run, as_json: bool) -> int:
    """Print what a fine-tuning run came to; return the exit code."""
    if run.interrupted:
        return 130
    if not run.is_first:  # another process tells
        return 0
    from ..train.runlog import finite

    report = run.folder / "report.html"
    if as_json:
        print(json.dumps(finite({"run": str(run.folder), "model": str(run.model), "report": str(report), **run.metrics}), allow_nan=False))
        return 0
    print_numbers(run.metrics)
    print_seeds(run.metrics)
    print(f"model   {run.model}\nreport  {report}")
    return 0


def print_seeds(metrics: dict[str, Any]) -> None:
    """Print what the runs of several seeds come to, where there are several."""
    seeds = metrics.get("seeds")
    if seeds:
        entry = seeds["numbers"][seeds["metric"]]
        low = "" if entry["low"] is None else f" (95% {entry['low']:.4f} to {entry['high']:.4f})"
        mean = "–" if entry["mean"] is None else f"{entry['mean']:.4f}"
        print(f"over {len(seeds['values'])} seeds: {seeds['metric']} {mean}{low}; kept is seed {seeds['best_seed']}")


def print_numbers(metrics: dict[str, Any]) -> None:
    """Print the numbers of a task with their intervals, a line each."""
    for name, entry in metrics.items():
        if not isinstance(entry, dict) or "value" not in entry:
            continue
        value = "–" if entry["value"] is None else f"{entry['value']:.4f}"
        bounds = "–" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
        print(f"{name:27} {value:>10}  {bounds:>20}  {entry['count']:>9,}")
    for finding in metrics.get("findings", []):
        if finding["level"] != "note":
            print(Finding(**finding), file=sys.stderr)
    if not metrics.get("num_examples"):
        print("nothing was held out, so nothing was measured", file=sys.stderr)
