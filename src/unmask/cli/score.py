"""`unmask score`: how probable does a masked language model find texts?"""

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CheckpointError, TaskError
from .model import ARGUMENTS, RULE, named, no_text, split
from .on import On, Workers, place

if TYPE_CHECKING:
    from ..evaluate.pll import Scored, Totals

SCORES, METRICS = "scores.jsonl", "metrics.json"
AROUND = 60  # characters of a text that are shown
METHODS = {
    "original": "one token masked at a time",
    "word_l2r": "a token masked together with the later pieces of its word",
    "sampled": "one token masked at a time, of a sample of each text's tokens",
}


def score(
    command: typer.Context,
    arguments: Annotated[list[str] | None, typer.Argument(metavar=ARGUMENTS, help=f"Texts. {RULE}", show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help="Files, folders, globs, 'hub:NAME', or '-', standard input; may repeat.")] = None,
    method: Annotated[
        str, typer.Option(help="original (Salazar 2020), word_l2r (Kauf & Ivanova 2023), or sampled, an estimate of original.")
    ] = "original",
    sample: Annotated[int, typer.Option(min=2, help="Tokens a text that the sampled method masks.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a window, special ones included. By default what the model has, at most 512.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=0, help="Tokens that a scored token of a long text has on both sides at least. By default a quarter window."),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show each token's log-probability.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder for scores.jsonl, metrics.json and report.html.")] = None,
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    text_column: Annotated[str, typer.Option(help="The column that holds the text, in files that have columns.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="The column that holds the texts' ids.")] = None,
    layout: Annotated[str, typer.Option(help="Texts of a text file: line, blank (blank lines between), file, or auto.")] = "auto",
    encoding: Annotated[str, typer.Option(help="The encoding of text files.")] = "utf-8",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: whichever is faster here.")] = "fp32",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a forward pass; by default what suits the device.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a line a text, then the metrics; with --output the metrics alone.")
    ] = False,
    on: On = None,
    workers: Workers = None,
) -> None:
    """Score texts: the pseudo-log-likelihood of each token, word and text, and the pseudo-perplexity per token, word and byte.

    A pseudo-perplexity is neither the masked perplexity of `unmask evaluate` nor that of a model that reads from left to right. Across
    vocabularies only the one per word (between spaces) and per byte compare. A text that cannot be scored gives an error line, and the
    others go on.
    """
    model, text = split(arguments)
    if not text and not data:
        raise TaskError(no_text(model, "The nurse is here.", "score"))
    from ..evaluate.pll import Scorer, Totals

    _check(output)
    model = named(model)
    scorer = Scorer.load(
        model, device=device, on=command.with_resource(place(on, workers)), max_length=max_length, context=context, precision=precision,
        max_tokens=batch_tokens,
    )  # fmt: skip
    names: deque[str | None] = deque()  # of the texts that are on their way

    def texts() -> Iterator[str]:
        for one in text:
            names.append(None)
            yield one
        if data:
            from ..data.text import read

            reading = {"format": format, "text_column": text_column, "id_column": id_column, "layout": layout, "encoding": encoding}
            for document in read(data, **reading):  # type: ignore[arg-type]
                names.append(document.id)
                yield document.text

    totals = Totals()
    results = scorer.score(texts(), method, sample=sample, seed=seed)  # type: ignore[arg-type]
    scored = ((names.popleft(), result) for result in _watched(results, totals))
    settings = {
        "model": model, "method": method, "max_length": scorer.max_length, "context": scorer.context,
        "precision": scorer.engine.precision if isinstance(scorer.engine.precision, str) else scorer.engine.precision.name,
        **({"sample": sample, "seed": seed} if method == "sampled" else {}),
    }  # fmt: skip
    if output is None:
        for name, result in scored:
            print(_line(name, result)) if as_json else _show(name, result, tokens)
    else:
        from ..data.whole import whole_file
        from ..evaluate.report import write as write_report

        output.mkdir(parents=True, exist_ok=True)
        with whole_file(output / SCORES) as file:
            (output / METRICS).unlink(missing_ok=True)  # one that ends early must not leave those of another
            file.writelines(_line(name, result) + "\n" for name, result in scored)
    if not totals.num_tokens:
        raise TaskError("no text could be scored" if totals.num_texts else f"there is no text in {', '.join(data or [])}")
    metrics = {"settings": settings, **totals.metrics()}
    if output is not None:
        with whole_file(output / METRICS) as file:
            file.write(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n")
        write_report(output)
        print(f"written to {output}", file=sys.stderr)
    if as_json:
        print(json.dumps(metrics if output is not None else {"metrics": metrics}, ensure_ascii=False))
    else:
        _summary(metrics)
    if totals.num_failed:
        print(f"{totals.num_failed:,} of {totals.num_texts:,} texts could not be scored", file=sys.stderr)


def _check(output: Path | None) -> None:
    if output is None:
        return
    if output.is_file():
        raise CheckpointError(f"'{output}' is a file; name a folder for the scores")
    if output.is_dir() and any(output.iterdir()) and not any((output / name).is_file() for name in (SCORES, SCORES + ".partial")):
        raise CheckpointError(f"'{output}' exists and holds no scores, so nothing is written into it; choose another name")


def _watched(results: "Iterable[Scored]", totals: "Totals") -> "Iterator[Scored]":
    """Yield results, adding them up and saying on the standard error how many there are: a live line on a terminal, else now and then."""
    live, started = sys.stderr.isatty() and not sys.stdout.isatty(), time.monotonic()
    shown, drawn = started, False
    for result in results:
        totals.add(result)
        now = time.monotonic()
        if now - shown > (0.2 if live else 10):
            line = f"scored: {totals.num_texts:,} texts, {totals.num_tokens:,} tokens ({totals.num_tokens / (now - started):,.0f} a second)"
            print(f"\r\x1b[2K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
            shown, drawn = now, live
        yield result
    if drawn:
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _line(name: str | None, result: "Scored") -> str:
    return json.dumps(({"id": name} if name is not None else {}) | result.to_dict(), ensure_ascii=False)


def _show(name: str | None, result: "Scored", tokens: bool) -> None:
    """Print a text as a line: pseudo-log-likelihood, pseudo-perplexity, tokens, text."""
    if result.error is not None:
        print(f"{name or 'error'}: {result.error}", file=sys.stderr)
        return
    text = " ".join(result.text.split())
    text = text if len(text) <= AROUND else text[: AROUND - 1] + "…"
    error = "" if result.standard_error is None else f" ±{_number(result.standard_error)}"
    windows = f" ({result.windows:,} windows)" if result.truncated else ""
    print(
        f"{result.total:12.4f}{error}  {_number(result.pseudo_perplexity):>10}  {result.num_tokens:>6,} tokens{windows}  "
        f"{f'{name}: ' if name else ''}{text}"
    )
    if tokens:
        for token, value in zip(result.tokens, result.log_probs.tolist(), strict=True):
            print(f"{'–' if value != value else f'{value:.4f}':>12}  {token if token.isprintable() else repr(token)}")


def _summary(metrics: dict[str, Any]) -> None:
    """Print the metrics of all texts: a table on a terminal, plain lines elsewhere."""
    from rich.console import Console

    rows = [(name, _number(metrics[name])) for name in metrics if name.startswith("pseudo_")]
    rows += [(name, f"{metrics[name]:,}") for name in metrics if name.startswith("num_")]
    settings = metrics["settings"]
    about = [f"{settings['method']}: {METHODS[settings['method']]}; {settings['precision']}"]
    if metrics["num_truncated_texts"]:
        about.append(
            f"texts longer than {settings['max_length']} tokens: {metrics['num_truncated_texts']:,}; each token saw a window around it, "
            f"with at least {settings['context']} tokens on both sides"
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join([f"{name:38} {value:>14}" for name, value in rows] + about))
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in about:
        console.print(line, markup=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
