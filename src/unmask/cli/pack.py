"""`unmask pack`: text in, a packed corpus out."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from .on import On, Workers, place

STAGES = {"read": "reading and cleaning", "compare": "finding duplicates", "tokenize": "tokenizing"}


def pack(
    sources: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, '-' (standard input), 'python-docs' or 'hub:NAME[:config][@revision]'.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help="A tokenizer's folder, vocab.txt, tokenizer.json or Hub id.")],
    held_out: Annotated[float, typer.Option(min=0, help="The share of documents to hold out for evaluation; 0 for none.")] = 0.01,
    dedup: Annotated[str, typer.Option(help="Drop repeated documents: near (alike), exact, or none.")] = "near",
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    text_column: Annotated[str, typer.Option(help="The column that holds the text; a number for a file without a header.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="The column that holds the documents' ids.")] = None,
    layout: Annotated[str, typer.Option(help="Documents of a text file: line, blank (blank lines between), file, or auto.")] = "auto",
    encoding: Annotated[str, typer.Option(help="The encoding of text files.")] = "utf-8",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on after a file that cannot be read; the report names it.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a packed corpus of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    on: On = None,
    workers: Workers = None,
) -> None:
    """Turn text into a packed corpus: cleaned, de-duplicated, split by content, tokenized.

    The folder holds train/ and heldout/ (token stores), heldout.jsonl, tokenizer/ and report.json.
    """
    from ..data.pack import pack as run

    with place(on, workers) as cluster, Progress() as progress:
        report = run(
            sources, out, tokenizer=tokenizer, held_out=held_out, dedup=dedup, skip_bad=skip_bad, overwrite=overwrite,  # type: ignore[arg-type]
            progress=progress, on=cluster, format=format, text_column=text_column, id_column=id_column, layout=layout, encoding=encoding,
        )  # fmt: skip
    print(json.dumps(report, ensure_ascii=False) if as_json else summary(report, out))


def summary(report: dict[str, Any], out: Path) -> str:
    """Return the report in a few lines."""
    documents, seconds = report["documents"], report["seconds"]
    exact, near, empty = (documents[f"dropped_{why}"] for why in ("exact", "near", "empty"))
    lines = [
        f"read     {documents['read']:>12,} documents  {report['bytes_read'] / 1e6:,.1f} MB",
        f"dropped  {exact + near + empty:>12,} documents  ({exact:,} exact duplicates, {near:,} near-duplicates, {empty:,} empty)",
    ]
    for side in ("train", "heldout"):
        if side in report:
            part = report[side]
            tokens = max(part["tokens"], 1)
            rates = f"{part['bytes'] / tokens:.2f} bytes a token, {part['unknown'] / tokens:.3%} unknown"
            lines.append(f"{side:8} {part['documents']:>12,} documents  {part['tokens']:,} tokens ({rates})")
    lines += [f"skipped  {text}" for text in report["skipped"]]
    lines.append(f"{out} is ready after {seconds['total']:.1f} s; next: unmask pretrain --data {out}")
    return "\n".join(lines)


class Progress:
    """Show how far a pack is: one live line on a terminal, a plain line every ten seconds elsewhere; on the standard error."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.stage, self.started, self.shown, self.line = "", 0.0, 0.0, ""
        self.last = time.monotonic()  # of the call before: a stage begins where the one before ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def __call__(self, stage: str, num_documents: int, num_bytes: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self._end()
            self.stage, self.started, self.shown = stage, self.last, now
        self.last = now
        seconds = max(now - self.started, 1e-6)
        if stage == "compare":
            self.line = f"{STAGES[stage]}: {num_documents}/{num_bytes}"
        else:
            self.line = (
                f"{STAGES[stage]}: {num_documents:,} documents, {num_bytes / 1e6:,.1f} MB  "
                f"({num_documents / seconds:,.0f} documents/s, {num_bytes / 1e6 / seconds:.1f} MB/s)"
            )
        if now - self.shown >= (0.1 if self.live else 10):
            self.shown = now
            print(f"\r\x1b[2K{self.line}" if self.live else self.line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self.line:
            print(f"\r\x1b[2K{self.line}" if self.live else self.line, file=sys.stderr, flush=True)
            self.line = ""
