"""`unmask compare`: is model B better than model A on this text?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .evaluate import Progress
from .model import named

if TYPE_CHECKING:
    from ..evaluate.compare import Comparison
    from ..evaluate.paired import Difference

AROUND = 44  # characters of text shown on each side of a flipped word


def compare(
    a: Annotated[str, typer.Argument(help="Model A: a folder, a Hub id, or 'box', the model in the box.")],
    b: Annotated[str, typer.Argument(help="Model B, the one that the verdict is on.")],
    data: Annotated[list[str], typer.Option("--data", "-d", help="Files, folders, globs, or a packed corpus; may repeat.")],
    metric: Annotated[
        str | None, typer.Option(help="What the verdict is on; by default masked_loss (masked_word_loss where the tokenizers differ).")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="What is too little to matter, in the metric's unit; by default 0.01 nats or bits, 0.005 of a share, 1% of a perplexity.",
        ),
    ] = None,
    policy: Annotated[str | None, typer.Option(help="corrupt (80/10/10, as in training) or mask (the mask token alone).")] = None,
    views: Annotated[int, typer.Option(min=1, help="How many draws of masks.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the masks and the resamples.")] = 0,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens that the models see at once; by default 512, or what both have.")
    ] = None,
    slice_by: Annotated[str | None, typer.Option(help="A field of the documents, or 'source': differences by its values.")] = None,
    text_column: Annotated[str | None, typer.Option(help="The column that holds the text, in files that have columns.")] = None,
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    id_column: Annotated[str | None, typer.Option(help="The column that holds the documents' ids.")] = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding of text files.")] = None,
    layout: Annotated[str | None, typer.Option(help="Of text files: line, blank, file or auto.")] = None,
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0: no intervals.")] = 1000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16, or auto: whichever is faster here; A's and B's parted by a comma, or one for both.")
    ] = "fp32",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a forward pass; by default what suits the device.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for metrics.json, flips.jsonl and report.html.")] = None,
    show: Annotated[int, typer.Option(min=0, help="Flips of each kind to print; flips.jsonl has them all.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare two models on the same masks of a text: better, worse, equivalent, or cannot tell.

    The difference of every metric has a 95% interval (a paired bootstrap over documents). Models with different tokenizers are compared on
    the same whole words.
    """
    from ..evaluate.compare import compare as run

    reading = {"text_column": text_column, "format": format, "encoding": encoding, "layout": layout, "id_column": id_column}
    with Progress() as progress:
        found = run(
            named(a), named(b), data, metric=metric, margin=margin, policy=policy, views=views, seed=seed, max_length=max_length,
            slice_by=slice_by, resamples=resamples, device=device, precision=precision, batch_tokens=batch_tokens, output=output,
            progress=progress, **reading,
        )  # fmt: skip
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False))
        return
    _show(found, show)
    if output is not None:
        print(f"report  {output / 'report.html'}")


def _show(found: Comparison, show: int) -> None:
    for side, name, precision in zip("AB", (found.a, found.b), found.info["precision"], strict=True):
        print(f"{side}  {name}, {precision}")
    main = next(iter(found.metrics.values()))
    masks = "as in training" if found.info["policy"] == "corrupt" else "behind the mask token alone"
    where = f"{main.num_documents:,} documents, {masks}, masks {found.info['masks_fingerprint']}"
    print(f"on the same {main.count:,} masked {found.unit}s of {where}\n")
    rows = [(name, *_numbers(one)) for name, one in found.metrics.items()]
    _table(("", "A", "B", "B - A", "95% interval"), rows)
    for why in dict.fromkeys(one.why for one in found.metrics.values() if one.why):
        print(f"no interval: {why}")
    test = found.mcnemar
    print(
        f"\nright: both {test['num_both']:,}, only A {test['num_only_a']:,}, only B {test['num_only_b']:,}, neither "
        f"{test['num_neither']:,} (McNemar, exact: p = {test['p_value']:.2g})"
    )
    for dimension, values in found.slices.items():
        print(f"\n{next(iter(values[0][1]))} by {dimension}")
        _table(("", "A", "B", "B - A", "95% interval", "count"), [_slice(value, each) for value, each in values])
    for kind, title in (("right_to_wrong", "right to wrong"), ("wrong_to_right", "wrong to right")):
        number = found.num_flips[kind]
        if number and show:
            print(f"\n{title}: {number:,}" + (f", of which the {show} that changed most" if number > show else ""))
            for flip in found.flips(kind, show):
                print(f"  {_flip(flip)}")
    for note in found.notes:
        print(f"\nnote: {note}", file=sys.stderr)
    print(f"\n{found.verdict}: {found.reason}")


def _numbers(one: Difference) -> tuple[str, ...]:
    from ..evaluate.paired import signed

    interval = "-" if one.interval is None else f"{signed(one.interval[0])} to {signed(one.interval[1])}"
    return f"{one.a:,.4f}", f"{one.b:,.4f}", signed(one.difference), interval


def _slice(value: str, each: dict[str, Difference]) -> tuple[str, ...]:
    one = next(iter(each.values()))
    return (value, *_numbers(one), f"{one.count:,}")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [f"{cell:>{width}}" if column else f"{cell:{width}}" for column, (cell, width) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def _flip(flip: dict[str, Any]) -> str:
    before, after = (" ".join(part.split("\n")) for part in (flip["before"], flip["after"]))
    before = before if len(before) <= AROUND else "…" + before[-AROUND:]
    after = after if len(after) <= AROUND else after[:AROUND] + "…"
    said = ", ".join(f"{name.upper()} {flip[name]['predicted']!r} ({_share(flip[name]['probability'])})" for name in "ab")
    return f"{before}[{flip['token']}]{after}  {said}"


def _share(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "below 0.001"
