"""`unmask predict`: what a fine-tuned model says of texts."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .on import On, Workers, place


def predict(
    command: typer.Context,
    model: Annotated[str, typer.Argument(help="A fine-tuned model: a run's folder, a model folder, an exported one, a Hub id.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; '-' reads lines of the standard input.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Files whose items are predicted: csv, tsv, jsonl, txt, conll (entities), json (questions: SQuAD's); may repeat."
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="A question for a model that answers: from the texts of --context, or those of --data.")
    ] = None,
    context: Annotated[list[str] | None, typer.Option(help="A text that may hold the answer to --question; may repeat.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the results: JSON lines, or .conll (entities).")] = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Labels (or answers) shown with their scores; by default all in JSON, else 3.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Format of the files; by default their name and content tell.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column of the text; by default found by its name.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text of a pair, or of the question.")] = None,
    on_bad: Annotated[str, typer.Option(help="Items that cannot be used: error, or drop and count them.")] = "error",
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of a window; by default that of training.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: whichever is faster here.")] = "fp32",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a forward pass; by default what suits the device.")] = None,
    label_words: Annotated[
        list[str] | None, typer.Option(help="With a masked language model: label=word|word, one for each label; nothing is trained.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="For --label-words: where {text} and the [MASK] stand; by default '{text} This is about [MASK].'")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    on: On = None,
    workers: Workers = None,
) -> int:
    """Predict what a fine-tuned model says of texts, in order; long texts are read whole, in windows.

    A masked language model classifies by label words: `unmask predict MODEL --label-words good=great --label-words bad=awful TEXT`.
    """
    from ..tasks.kinds import predictor, task_of, without_task

    name = task_of(model)
    if name is None and not label_words:
        raise ConfigError(f"{without_task(model)}. To classify without any training, give --label-words")
    if name is not None and label_words:
        raise ConfigError(f"--label-words: '{model}' is fine-tuned for {name}; label words are for masked language models")
    if name is None and max_length is not None:
        raise ConfigError(f"--max-length {max_length}: with --label-words a window is what the model has; leave it out")
    if template is not None and not label_words:
        raise ConfigError(f"--template {template!r} is for --label-words; give some, or leave it out")
    check_asked(model, name == "qa", text, data, question, context)
    if output is not None and any(Path(one).resolve() == output.resolve() for one in data or ()):
        raise ConfigError(f"--output {output} is one of the files of --data; name another file")
    from ..data.whole import whole_file
    from ..tasks.recipe import TaskData

    kind = predictor(name or "classify")
    reading = TaskData(format=format, text_column=text_column, pair_column=pair_column, on_bad=on_bad)  # type: ignore[arg-type]
    items: Iterable[Any]
    if question is not None:
        items = [(question, list(texts(context)) if context else documents(data or [], kind, reading))]
    else:
        items = kind.items_of(data, reading) if data else texts(text or [])
    how: dict[str, Any] = {"device": device, "precision": precision, "max_tokens": batch_tokens}
    how["on"] = command.with_resource(place(on, workers))
    if name == "qa" and top_k is not None:
        how["num_best"] = top_k
    if label_words:
        from ..tasks.classify import shown
        from ..tasks.label_words import TEMPLATE, LabelWords, parse

        words = LabelWords.load(model, parse(label_words), template=template or TEMPLATE, **how)
        lines = ({"id": item.id, "text": item.text, **result.to_dict()} for item, result in words.stream(items))
    else:
        made: Any = kind.load(model, max_length=max_length, **how)
        lines, shown = (made.record(item, result) for item, result in made.pairs(items)), made.shown
    counted = Counted(lines)
    if output is not None:
        columns = name == "ner" and output.suffix == ".conll"
        with whole_file(output, error=DataError) as file:
            for line in counted:
                file.write(made.conll(line) if columns else json.dumps(_top(line, top_k), ensure_ascii=False) + "\n")
        print(f"{counted.total:,} results written to {output}", file=sys.stderr)
    else:
        for line in counted:
            aside = sys.stderr if "error" in line and not as_json else None
            print(json.dumps(_top(line, top_k), ensure_ascii=False) if as_json else shown(line, top_k or 3), file=aside)
    if not counted.total:
        print("there was nothing to predict: no text was given (lines that are empty are passed over)", file=sys.stderr)
    elif counted.failed:
        print(f"{counted.failed:,} of {counted.total:,} could not be predicted; each says why", file=sys.stderr)
    return 2 if counted.failed == counted.total else 0


class Counted:
    """Lines of results as they come, and how many of them are errors."""

    def __init__(self, lines: Iterable[dict[str, Any]]) -> None:
        self.lines, self.total, self.failed = lines, 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self.lines:
            self.total += 1
            self.failed += "error" in line
            yield line


def check_asked(
    model: str, answers: bool, text: list[str] | None, data: list[str] | None, question: str | None, context: list[str] | None
) -> None:
    """Raise ConfigError where what is given is not what a model takes: texts or files, or a question with contexts, or files of those."""
    if not answers and (question is not None or context):
        raise ConfigError(f"--question, --context: '{model}' answers no questions; they are for models that were fine-tuned for qa")
    if answers and (text or (context and question is None)):
        raise ConfigError("a model that answers questions is asked with --question Q --context TEXT (or --data TEXTS), or --data QUESTIONS")
    if answers and question is None and not data:
        raise ConfigError(
            "give a --question with a --context or --data, or --data with questions and their contexts (SQuAD, CSV, JSON lines)"
        )
    given, what = (context, "a --context") if answers else (text, "texts")
    if bool(given) == bool(data):
        raise ConfigError(f"give {what} or --data, not both" if given else f"give {what}, or files with --data")


def texts(given: list[str]) -> Iterator[str]:
    """Yield the texts of the command line; for '-' the lines of the standard input."""
    for text in given:
        if text == "-":
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield text


def documents(files: list[str], kind: Any, reading: Any) -> list[str]:
    """Return the documents of files, all of which may hold the answer to a question.

    Raises: DataError for files that hold questions instead.
    """
    from ..data.text import read

    try:
        return [one.text for one in read(files, format=reading.format, text_column=reading.text_column or "text")]
    except DataError:
        if not _are_questions(files, kind, reading):
            raise
        raise DataError(
            f"--question is put to the texts of --data, and {', '.join(files)} is no text but questions with their contexts; have these "
            "answered by leaving --question out, or name texts (of a file with columns: --text-column)"
        ) from None


def _are_questions(files: list[str], kind: Any, reading: Any) -> bool:
    try:
        return bool(kind.read(files, reading)[0])
    except DataError:
        return False


def _top(line: dict[str, Any], top_k: int | None) -> dict[str, Any]:
    if top_k is not None and isinstance(line.get("scores"), dict):
        best = sorted(line["scores"].items(), key=lambda pair: -pair[1])[:top_k]
        line = {**line, "scores": dict(best)}
    return line
