"""`unmask bench`: how fast does a model run here, and with what?"""

import json
import sys
from typing import Annotated

import typer

from .model import MODEL, named


def bench(
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=1, max=1_000_000, help="Tokens of a sequence (again for more); by default 16, 64 and 256.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=100_000, help="Sequences at a time (again for more); by default 1, 8 and 32.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.001, help="For each backend, length and batch.")] = 1.0,
    data: Annotated[list[str] | None, typer.Option(help="Text to measure agreement on; by default tokens are drawn at random.")] = None,
    device: Annotated[str, typer.Option(help="Of torch: auto, cpu, cuda, cuda:1 ...")] = "auto",
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text, in files that have columns.")] = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding of text files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Time every backend and precision that there is here by turns: tokens per second, latency, agreement with fp32, and what to take."""
    from ..export.bench import BATCHES, table
    from ..export.bench import bench as run
    from ..export.exporting import lines

    found = run(
        named(model), lengths=length or None, batches=batch or BATCHES, seconds=seconds, data=data or None, device=device,
        log=lambda line: print(line, file=sys.stderr, flush=True), format=format, text_column=text_column, encoding=encoding,
    )  # fmt: skip
    report = found.report
    if as_json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
        return
    print("\n".join(lines(table(report))))
    for name, one in report["agreement"].items():
        print(
            f"{name}: the same most probable token as {report['agreement_with']} at {one['same_top_1']:.2%} of {one['num_rows']:,} masks "
            f"on {report['agreement_on']}; logits up to {one['max_difference']:.1e} apart"
        )
    for name, why in report["not_run"].items():
        print(f"{name}: not run: {why}")
    print(found.recommendation)
