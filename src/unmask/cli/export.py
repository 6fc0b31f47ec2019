"""`unmask export`: a model as a folder that runs without torch."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .model import MODEL, named

TRY = {"ForMaskedLM": "fill {} 'This is [MASK].'", "ForQuestionAnswering": "predict {} --question 'Who?' --context 'It was Ann.'"}


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    to: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    int8: Annotated[
        bool, typer.Option("--int8", help="In eight bits: a quarter of the size, faster on most CPUs, a little less right.")
    ] = False,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0, help="What int8 may lose of the masked accuracy, or of a task's own number; it is refused where it loses more."
        ),
    ] = 0.005,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to measure on (files, folders, a packed corpus), or a task's labelled files. A run has its own."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Measure on documents of so many tokens in all, chosen by hash; 0: on all.")
    ] = 50_000,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer, where the model's folder has none.")] = None,
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text, in files that have columns.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Of labelled files: the column of the label.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Of labelled files: the column of the second text of a pair.")] = None,
    layout: Annotated[str | None, typer.Option(help="Documents of a text file: line, blank (blank lines between), file, or auto.")] = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding of text files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print export.json.")] = False,
) -> None:
    """Write a model as an ONNX file, with its tokenizer and a README that says how to load it.

    It is compared with the model it was made from before the folder is there. --int8 is measured on your text and on this machine, and
    refused (exit code 3) where it loses more than --max-drop or is not faster.
    """
    from ..export.exporting import export as run
    from ..export.exporting import lines

    found = run(
        named(model), output, to=to, int8=int8, max_drop=max_drop, data=data[0] if data and len(data) == 1 else data, max_tokens=max_tokens,
        tokenizer=tokenizer, log=lambda line: print(line, file=sys.stderr, flush=True),
        format=format, text_column=text_column, layout=layout, encoding=encoding,
        **{name: value for name, value in (("label_column", label_column), ("pair_column", pair_column)) if value is not None},
    )  # fmt: skip
    if as_json:
        print(json.dumps(found.report, indent=1, ensure_ascii=False))
    else:
        print("\n".join(lines(found.table)))
    example = TRY.get(found.report["head"], "predict {} 'This is a text.'").format(shlex.quote(str(found.folder)))
    print(f"written to {found.folder}; try: unmask {example}", file=sys.stderr)
