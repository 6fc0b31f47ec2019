"""`unmask doctor`: what is wrong with labelled data, before anything is trained on it."""

import json
from typing import Annotated, Any

import typer


def doctor(
    files: Annotated[list[str], typer.Argument(help="Labelled files to train on.")],
    task: Annotated[str, typer.Option(help="classify, ner or qa.")],
    dev: Annotated[list[str] | None, typer.Option(help="Labelled files to measure on; else a share of the others, by content.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model or tokenizer, in whose tokens lengths are then told; by default in words.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="With --model: tokens of a window (512).")] = None,
    format: Annotated[str | None, typer.Option(help="Format of the files; by default their name and content tell.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text (or context); by default found by its name.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the label (or answer); by default found by its name.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text of a pair, or of the question.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Say what labelled files hold and what is wrong with them; exit 2 where examples cannot be used as they are."""
    from ..tasks.doctor import doctor as look

    values: dict[str, Any] = {"format": format, "text_column": text_column, "label_column": label_column, "pair_column": pair_column}
    given = {name: value for name, value in values.items() if value is not None}
    report = look(task, files, dev or (), model=model, max_length=max_length, **given)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=1) if as_json else "\n".join(report.lines()))
    return 2 if report.is_fatal else 0
