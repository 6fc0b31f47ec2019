"""`unmask demo`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the demo; one that is there is moved beside it.")] = Path(
        "runs/demo"
    ),
    minutes: Annotated[float, typer.Option(min=0.001, help="Minutes of training, of each of the two models.")] = 3.0,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Text to use instead of the documentation.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="Any field of a recipe: section.key=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> int:
    """From the documentation on this machine to a filled mask: a small model from scratch, and the model in the box adapted as long.

    OUTPUT/model is the one from scratch, OUTPUT/adapted/model the adapted one; metrics.json and report.html have both, and the box's own.
    """
    from ..evaluate.demo import demo as run

    sources: Any = data or "python-docs"
    metrics = run(
        output, minutes=minutes, sources=sources, overrides=settings or (), say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    if as_json:
        print(json.dumps(metrics, indent=1, ensure_ascii=False))
    if metrics.get("interrupted"):
        return 130
    if not as_json:
        show(metrics, output)
    return 0


def show(metrics: dict[str, Any], output: Path) -> None:
    """Print the numbers beside their baselines, the filled sentences, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluate.report_demo import KEYS, NAMES, SHOWN, difference

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(
        title=f"From scratch: {metrics['num_masked_tokens']:,} masked tokens of held-out documents, the same for all three",
        title_justify="left",
    )
    for column in ("", "accuracy", "masked perplexity"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"the model from scratch": metrics, "word frequencies": metrics["unigram"], "the untrained model": metrics["untrained"]}
    for name, numbers in rows.items():
        table.add_row(name, f"{numbers['masked_accuracy']:.1%}", f"{numbers['masked_perplexity']:,.1f}")
    console.print(table)
    found = metrics.get("words")
    names = NAMES if found else {"from_scratch": NAMES["from_scratch"]}
    if found:
        title = (
            f"{found['num_words']:,} hidden words of {found['num_documents']:,} of these documents, for models of different vocabularies"
        )
        table = Table(title=title, title_justify="left")
        for column in ("", "accuracy", "bits per byte"):
            table.add_column(column, justify="left" if not column else "right")
        for name in names:
            table.add_row(names[name], f"{found['rows'][name]['masked_word_accuracy']:.1%}", f"{found['rows'][name]['bits_per_byte']:.3f}")
        console.print(table)
        for name, one in found["differences"].items():
            console.print(f"bits per byte, {difference(name, one['bits_per_byte'])}")
    filled = Table(title="Masks in held-out sentences, not chosen by how they came out", title_justify="left", show_lines=False)
    for column in ("sentence", "was", *names.values()):
        filled.add_column(column, overflow="fold")
    for item in metrics["examples"]:
        said = (", ".join(f"{one['token']} {one['score']:.0%}" for one in item[KEYS[name]][:SHOWN]) for name in names)
        filled.add_row(*(cell.replace("[", "\\[") for cell in (item["text"], item["answer"], *said)))
    console.print(filled)
    models = {f"{output / 'adapted' / 'model'}": "the model in the box, adapted", f"{output / 'model'}": "from scratch"}
    for place, what in list(models.items())[0 if found else 1 :]:
        console.print(f"model    {place}  ({what})")
    console.print(f"metrics  {output / 'metrics.json'}\nreport   {output / 'report.html'}  (open it in a browser)")
    console.print(f'next     unmask fill {next(iter(models)) if found else output / "model"} "Return a \\[MASK] of the array."')
    console.print("         unmask adapt --data YOUR_TEXT.txt --minutes 20 -o runs/mine")
    console.print("         unmask pretrain --data YOUR_TEXT.txt --minutes 20 -o runs/new")
