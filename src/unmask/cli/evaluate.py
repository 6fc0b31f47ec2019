"""`unmask evaluate`: how well does a masked language model predict the hidden tokens of a text?"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..tasks.kinds import task_of
from .model import MODEL, named
from .on import On, Workers, place

SHOWN = ("masked_loss", "masked_perplexity", "masked_accuracy", "top_5_accuracy", "top_10_accuracy", "mean_reciprocal_rank",
         "bits_per_byte", "macro_f1", "macro_precision", "macro_recall", "weighted_f1", "weighted_precision", "weighted_recall",
         "expected_calibration_error")  # fmt: skip
# of a slice, with their names on a terminal, where lines may be short
SLICE_COLUMNS = {"masked_loss": "loss", "masked_accuracy": "accuracy", "top_10_accuracy": "top 10", "bits_per_byte": "bits/byte"}
ROWS = 20  # of a slice that are shown
POLICY = {"corrupt": "80% [MASK], 10% a random token, 10% kept, as in training", "mask": "100% [MASK]"}


def evaluate(
    command: typer.Context,
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Files, folders, globs, '-', 'hub:NAME', or one packed corpus (its held-out text). A run has its own."),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="What stands in place of a masked token: corrupt (80/10/10, as in training) or mask.")
    ] = "corrupt",
    views: Annotated[int, typer.Option(min=1, help="Draws of masks to measure on.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the masks; evaluations during training have 0.")] = 0,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a window, special ones included. By default what the model has, at most 512; on a run's own text, the run's.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Measure on documents of so many tokens in all, chosen by hash; 0: all, the default; a run's own text: as the run did.",
        ),
    ] = None,
    slice_by: Annotated[
        str | None, typer.Option(help="A field of the documents' metadata to break the numbers down by, or 'source'.")
    ] = None,
    frequencies: Annotated[
        str | None, typer.Option(help="A packed corpus whose training text says which tokens are frequent. By default the text itself.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples of the intervals; 0: no intervals.")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A folder for metrics.json, report.html and what they were made from.")
    ] = None,
    predictions: Annotated[bool, typer.Option("--predictions", help="Write predictions.jsonl too, a line a masked token.")] = False,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where the model's folder has none.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: whichever is faster here. (A run's own numbers are in its train.precision.)")
    ] = "fp32",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a forward pass; by default what suits the device.")] = None,
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text, in files that have columns.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column that holds the documents' ids.")] = None,
    layout: Annotated[str | None, typer.Option(help="Documents of a text file: line, blank (blank lines between), file, or auto.")] = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding of text files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json.")] = False,
    cloze: Annotated[
        list[str] | None, typer.Option(help="Instead of --data: CSV, TSV or JSONL files of texts with a [MASK] and the right answer(s).")
    ] = None,
    facts: Annotated[list[str] | None, typer.Option(help="Instead of --data: LAMA's facts, JSONL.")] = None,
    pairs: Annotated[
        list[str] | None, typer.Option(help="Instead of --data: minimal pairs, BLiMP's JSONL or two columns; files, folders, .tar.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="How a row of --cloze becomes the text, columns in braces: '{context} [MASK].'")
    ] = None,
    answer_column: Annotated[str | None, typer.Option(help="The column of --cloze with the right answer, several parted by |.")] = None,
    candidates_column: Annotated[
        str | None, typer.Option(help="Columns of --cloze, parted by commas, with alternatives to choose from.")
    ] = None,
    multi_piece: Annotated[bool, typer.Option("--multi-piece", help="Score labels of --facts that are several pieces, too.")] = False,
    pair_columns: Annotated[str | None, typer.Option(help="The two columns of --pairs: GOOD,BAD.")] = None,
    method: Annotated[str | None, typer.Option(help="The pseudo-log-likelihood of --pairs: original or word_l2r.")] = None,
    label_column: Annotated[str | None, typer.Option(help="A fine-tuned model: the column of the label.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="A fine-tuned model: the column of the second text of a pair.")] = None,
    on_bad: Annotated[str | None, typer.Option(help="A fine-tuned model: items that cannot be used: error, or drop and count.")] = None,
    on: On = None,
    workers: Workers = None,
) -> None:
    """Measure a masked language model on the frozen masks of a text: every number with its count and a 95% interval over documents.

    A model that was fine-tuned for a task (`unmask finetune`) is measured on labelled --data, by what its task is measured by.

    The same text has the same masks wherever it is measured: in any order, any batch, with any model of the same tokenizer. Numbers
    compare where the masks' fingerprint is the same. Without --data, a run is measured on its own held-out text.
    """
    model = named(model)
    if task_of(model) is not None:
        from .evaluate_task import run_task

        foreign = {
            "policy": policy != "corrupt", "views": views != 1, "max_tokens": max_tokens, "slice_by": slice_by, "frequencies": frequencies,
            "tokenizer": tokenizer, "id_column": id_column, "layout": layout, "cloze": cloze, "facts": facts, "pairs": pairs,
        }  # fmt: skip
        run_task(
            model, data, foreign, as_json=as_json, output=output, resamples=resamples, seed=seed, max_length=max_length, device=device,
            precision=precision, batch_tokens=batch_tokens, format=format, encoding=encoding, text_column=text_column,
            label_column=label_column, pair_column=pair_column, on_bad=on_bad, on=command.with_resource(place(on, workers)),
        )  # fmt: skip
        return
    if label_column or pair_column or on_bad:
        raise ConfigError(f"--label-column, --pair-column and --on-bad belong to models that are fine-tuned for a task; '{model}' is not")
    if cloze or facts or pairs:
        from .evaluate_tests import run_test

        own: dict[str, dict[str, Any]] = {
            "cloze": {"template": template, "text_column": text_column, "answer_column": answer_column,
                      "candidates_column": candidates_column, "slice_by": slice_by, "format": format},
            "facts": {"multi_piece": multi_piece},
            "pairs": {"pair_columns": pair_columns, "method": method, "slice_by": slice_by, "format": format},
        }  # fmt: skip
        foreign = {
            "data": data, "policy": policy != "corrupt", "views": views != 1, "max_tokens": max_tokens, "frequencies": frequencies,
            "id_column": id_column, "layout": layout,
        }  # fmt: skip
        run_test(
            model, {"cloze": cloze, "facts": facts, "pairs": pairs}, own, foreign, output=output, as_json=as_json, resamples=resamples,
            seed=seed, max_length=max_length, tokenizer=tokenizer, device=device, precision=precision, batch_tokens=batch_tokens,
            encoding=encoding or "utf-8", on=command.with_resource(place(on, workers)),
        )  # fmt: skip
        return
    if template or answer_column or candidates_column or multi_piece or pair_columns or method:
        raise ConfigError("--template, --answer-column, --candidates-column, --multi-piece, --pair-columns and --method belong to tests: "
                          "--cloze, --facts or --pairs")  # fmt: skip
    if predictions and output is None:
        raise ConfigError("--predictions are written into a folder: name one with --output")
    from ..evaluate.evaluation import evaluate as run

    with Progress() as progress:
        found = run(
            model, data[0] if data and len(data) == 1 else data, tokenizer=tokenizer, policy=policy, views=views, seed=seed,
            max_length=max_length, max_tokens=max_tokens, slice_by=slice_by, frequencies=frequencies, resamples=resamples,
            output=output, predictions=predictions, precision=precision, device=device, batch_tokens=batch_tokens, progress=progress,
            format=format, text_column=text_column, id_column=id_column, layout=layout, encoding=encoding,
            on=command.with_resource(place(on, workers)),
        )  # fmt: skip
    print(json.dumps(found.metrics, ensure_ascii=False, indent=1)) if as_json else show(found.metrics)
    if output is not None:
        print(f"written to {output}", file=sys.stderr)


def show(metrics: dict[str, Any]) -> None:
    """Print the metrics: tables on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join(plain(metrics)))
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(about(metrics)[0]), title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in ("value", "95% interval", "count"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in SHOWN:
        row = metrics[name]
        table.add_row(name, Text(number(row["value"]), style="bold"), between(row), f"{row['count']:,}")
    console.print(table)
    for dimension, rows in metrics.get("slices", {}).items():
        table = Table(box=box.SIMPLE_HEAD, title=Text(f"by {dimension}"), title_justify="left")
        table.add_column("", min_width=14, overflow="fold")
        for name in ("count", "documents", *SLICE_COLUMNS.values()):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows[:ROWS]:
            table.add_row(
                Text(row["name"]), f"{row['count']:,}", f"{row['num_documents']:,}", *(number(row[n]["value"], 4) for n in SLICE_COLUMNS)
            )
        console.print(table)
        if len(rows) > ROWS:
            console.print(f"and {len(rows) - ROWS:,} more: --json shows them", markup=False)
    for line in about(metrics)[1:]:
        console.print(line, markup=False)


def plain(metrics: dict[str, Any]) -> list[str]:
    """Return the metrics as lines that a program can cut at its columns."""
    lines = [
        f"{name:27} {number(metrics[name]['value']):>12}  {between(metrics[name]):>24}  {metrics[name]['count']:>10,}" for name in SHOWN
    ]
    for dimension, rows in metrics.get("slices", {}).items():
        lines.append(f"by {dimension}:  count, documents, {', '.join(SLICE_COLUMNS)}")
        for row in rows[:ROWS]:
            numbers = "".join(f"{number(row[name]['value']):>12}" for name in SLICE_COLUMNS)
            lines.append(f"  {row['name']:25} {row['count']:>12,} {row['num_documents']:>10,}{numbers}")
        if len(rows) > ROWS:
            lines.append(f"  and {len(rows) - ROWS:,} more: --json shows them")
    return [*lines, *about(metrics)]


def about(metrics: dict[str, Any]) -> list[str]:
    """Return in words what was measured."""
    settings = metrics["settings"]
    views = "" if settings["views"] == 1 else f", {settings['views']} draws"
    lines = [
        f"{metrics['num_masked_tokens']:,} masked tokens in {metrics['num_documents']:,} documents, policy {settings['policy']}",
        f"masks {metrics['masks_fingerprint']}: {settings['mlm_probability']:.0%} of {metrics['num_tokens']:,} tokens{views}, behind them "
        f"{POLICY[settings['policy']]}; {settings['precision']}",
        f"{metrics['num_windows']:,} windows of at most {settings['max_length']} tokens; "
        f"{metrics['num_documents_in_windows']:,} documents have more than one",
        f"tokens are frequent or rare in {settings['frequencies']}; the perplexity is not that of a model that reads from left to right",
    ]
    if settings.get("max_tokens"):
        lines.append(f"the documents are a part of the text, chosen by hash: no more than {settings['max_tokens']:,} tokens together")
    for count, what in (
        (metrics["num_documents_empty"], "hold no text and were not measured"),
        (metrics["num_documents_without_masked_tokens"], "hold no token that can be masked"),
    ):
        if count:
            lines.append(f"documents that {what}: {count:,}")
    if metrics["interval"]["why_none"]:
        lines.append(f"no intervals: {metrics['interval']['why_none']}")
    return lines


def number(value: float | None, digits: int = 6) -> str:
    """Return a number with six digits, or fewer."""
    return "–" if value is None else f"{value:.{digits}g}"


def between(row: dict[str, Any]) -> str:
    """Return an interval as it is shown."""
    return "–" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"


class Progress:
    """Show how far a measurement is: one live line on a terminal, a plain line every ten seconds elsewhere; on the standard error."""

    def __init__(self, unit: str = "tokens") -> None:
        self.unit = unit
        self.live, self.started, self.shown, self.drawn = sys.stderr.isatty(), time.monotonic(), time.monotonic(), False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.drawn:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown < (0.1 if self.live else 10):
            return
        self.shown, self.drawn = now, self.live
        line = f"measuring: {done:,} of {total:,} {self.unit} ({done / max(now - self.started, 1e-6):,.0f} a second)"
        print(f"\r\x1b[2K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)
