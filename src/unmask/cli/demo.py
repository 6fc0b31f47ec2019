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
    minutes: Annotated[float, typer.Option(help="Minutes of pre-training.")] = 5.0,
    data: Annotated[list[str] | None, typer.Option("--data", "-d", help="Text to use instead of the documentation.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="Any field of a recipe: section.key=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
) -> int:
    """From the documentation on this machine to a filled mask, in a few minutes."""
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

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(
        title=f"{metrics['num_masked_tokens']:,} masked tokens of held-out documents, the same for all three", title_justify="left"
    )
    for column in ("", "accuracy", "masked perplexity"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"the model": metrics, "word frequencies": metrics["unigram"], "the untrained model": metrics["untrained"]}
    for name, numbers in rows.items():
        table.add_row(name, f"{numbers['masked_accuracy']:.1%}", f"{numbers['masked_perplexity']:,.1f}")
    console.print(table)
    filled = Table(title="Masks in held-out sentences, not chosen by how they came out", title_justify="left", show_lines=False)
    for column in ("sentence", "was", "the model's first five"):
        filled.add_column(column, overflow="fold")
    for item in metrics["examples"]:
        tokens = ", ".join(f"{candidate['token']} {candidate['score']:.0%}" for candidate in item["candidates"])
        filled.add_row(item["text"].replace("[", "\\["), item["answer"], tokens.replace("[", "\\["))
    console.print(filled)
    console.print(
        f"model    {output / 'model'}\nmetrics  {output / 'metrics.json'}\nreport   {output / 'report.html'}  (open it in a browser)"
    )
    console.print(f'next     unmask fill {output / "model"} "Return a \\[MASK] of the array."')
    console.print("         unmask pretrain --data YOUR_TEXT.txt --minutes 20 -o runs/mine")
