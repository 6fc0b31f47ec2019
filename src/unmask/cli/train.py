"""`unmask pretrain`, `unmask adapt`, `unmask resume`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .launch import Processes, Restarts, launch
from .on import On, Workers, starter

if TYPE_CHECKING:
    from ..train.session import Run

Data = Annotated[list[str] | None, typer.Option("--data", "-d", help="Files, folders, globs, python-docs, a packed corpus; may repeat.")]
Tokenizer = Annotated[str | None, typer.Option(help="A folder, a file, a Hub id; unset: the corpus's or the model's, or trained.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; must not hold anything yet.")]
Minutes = Annotated[float | None, typer.Option(help="Budget: minutes of wall-clock.")]
Steps = Annotated[int | None, typer.Option(help="Budget: steps.")]
Epochs = Annotated[float | None, typer.Option(help="Budget: passes over the text (3 where no budget is given).")]
Tokens = Annotated[int | None, typer.Option(help="Budget: tokens.")]
HeldOut = Annotated[float | None, typer.Option(help="Share of the documents that is held out to measure on; 0: none.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", help="Any field of a recipe: section.key=value. May be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def pretrain(
    output: Output,
    recipe: Annotated[Path | None, typer.Argument(help="Recipe (.toml); every field has a default.")] = None,
    data: Data = None,
    tokenizer: Tokenizer = None,
    minutes: Minutes = None,
    steps: Steps = None,
    epochs: Epochs = None,
    tokens: Tokens = None,
    held_out: HeldOut = None,
    settings: Settings = None,
    processes: Processes = None,
    restarts: Restarts = 0,
    on: On = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> int:
    """Pre-train a masked language model from scratch."""
    code = launch(processes, restarts) if on is None else None
    if code is not None:
        return code
    start = starter("pretrain", output, on, workers, processes, restarts)
    budget = _given(max_minutes=minutes, max_steps=steps, num_epochs=epochs, max_tokens=tokens, held_out=held_out)
    run = start(recipe, output=output, data=data, tokenizer=tokenizer, overrides=settings or (), **budget)
    return _end(run, as_json)


def adapt(
    output: Output,
    model: Annotated[str | None, typer.Argument(help="Model to continue: a folder, a Hub id, a recipe; unset: the box.")] = None,
    data: Data = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe (.toml).")] = None,
    tokenizer: Tokenizer = None,
    minutes: Minutes = None,
    steps: Steps = None,
    epochs: Epochs = None,
    tokens: Tokens = None,
    held_out: HeldOut = None,
    general: Annotated[
        list[str] | None,
        typer.Option(help="General text: how much of it was forgotten is measured, before against after. May be repeated."),
    ] = None,
    replay: Annotated[
        list[str] | None,
        typer.Option(help="General text to mix in, against forgetting; without --general, what is held out of it is measured. May repeat."),
    ] = None,
    replay_ratio: Annotated[float | None, typer.Option(help="Its share of the tokens (0.1 where it is not given).")] = None,
    extend_vocab: Annotated[int | None, typer.Option(min=1, help="Add so many words of the domain to the vocabulary.")] = None,
    settings: Settings = None,
    processes: Processes = None,
    restarts: Restarts = 0,
    on: On = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> int:
    """Continue the pre-training of an existing model on the text of a domain."""
    code = launch(processes, restarts) if on is None else None
    if code is not None:
        return code
    start = starter("adapt", output, on, workers, processes, restarts)
    if recipe is None and model is not None and model.endswith(".toml"):
        recipe, model = Path(model), None
    budget = _given(max_minutes=minutes, max_steps=steps, num_epochs=epochs, max_tokens=tokens, held_out=held_out)
    budget |= _given(general=general or None, replay=replay or None, replay_ratio=replay_ratio, extend_vocab=extend_vocab)
    run = start(model, data, output=output, recipe=recipe, tokenizer=tokenizer, overrides=settings or (), **budget)
    return _end(run, as_json)


def resume(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    minutes: Minutes = None,
    steps: Steps = None,
    epochs: Epochs = None,
    tokens: Tokens = None,
    settings: Settings = None,
    processes: Processes = None,
    restarts: Restarts = 0,
    on: On = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> int:
    """Go on with an interrupted run, exactly where it stood; a new budget prolongs a finished one."""
    code = launch(processes, restarts) if on is None else None
    if code is not None:
        return code
    go_on = starter("resume", run, on, workers, processes, restarts)
    budget = _given(max_minutes=minutes, max_steps=steps, num_epochs=epochs, max_tokens=tokens)
    return _end(go_on(run, overrides=settings or (), **budget), as_json)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _end(run: Run, as_json: bool) -> int:
    """Print what a run came to; return the exit code."""
    if run.interrupted:
        return 130
    if not run.is_first:  # another process tells
        return 0
    if "task" in run.metrics:
        from .finetune import ended

        return ended(run, as_json)
    from ..evaluate import adaptation
    from ..evaluate.page import read_json
    from ..train.card import amount
    from ..train.runlog import finite

    report, changes = run.folder / "report.html", read_json(run.folder / adaptation.ADAPTATION)
    if as_json:
        more = {"adaptation": changes} if changes else {}
        result = {"run": str(run.folder), "model": str(run.model), "report": str(report), **run.metrics, **more}
        print(json.dumps(finite(result), allow_nan=False))
        return 0
    metrics = run.metrics
    if "masked_loss" in metrics:
        rows = [("", metrics), *((name, metrics[name]) for name in ("unigram", "untrained", "before") if name in metrics)]
        for name, row in rows:
            shown = amount(row["masked_perplexity"], ",.1f")
            print(f"{name or 'this model':12} accuracy {row['masked_accuracy']:6.1%}   perplexity {shown:>10}")
    else:
        print("nothing was measured: nothing is held out, or the run ended before its first evaluation", file=sys.stderr)
    for line in adaptation.lines(changes) if changes else ():
        print(line)
    print(f'model   {run.model}\nreport  {report}\nnext    unmask fill {run.model} "A sentence with a [MASK] in it."')
    return 0
