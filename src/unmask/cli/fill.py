"""`unmask fill`: what does a model expect at the masks of a text?"""

import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TaskError
from .model import ARGUMENTS, RULE, named, no_text, split

if TYPE_CHECKING:
    from ..tasks.filled import Candidate, Combination, Filled
    from ..tasks.masked_text import Text

MASK = r"\[MASK\]|<mask>|_{3,}"  # to be seen at a glance
BAR = 20  # characters of a bar of probability 1
AROUND = 36  # characters of text shown on each side of a filled mask


def fill(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar=ARGUMENTS, help=f"Texts with masks: [MASK], <mask> or ___. {RULE}", show_default=False)
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="A file of texts, one a line or row; '-' is standard input.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Candidates a mask.")] = 5,
    text_column: Annotated[str, typer.Option(help="The column that holds the text, in files that have columns.")] = "text",
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    encoding: Annotated[str, typer.Option(help="The encoding of text files.")] = "utf-8",
    target: Annotated[list[str] | None, typer.Option(help="Score this word instead (again for more); their order is kept.")] = None,
    renormalize: Annotated[bool, typer.Option("--renormalize", help="Scores are shares among the targets.")] = False,
    vocabulary: Annotated[str | None, typer.Option(help="A file of words, one a line: only these may stand at a mask.")] = None,
    whole_words: Annotated[bool, typer.Option("--whole-words", help="Only whole words, no punctuation.")] = False,
    no_subwords: Annotated[bool, typer.Option("--no-subwords", help="Nothing that goes on with the word before it.")] = False,
    max_pieces: Annotated[int, typer.Option(min=1, help="Fill ___ by whole words of one to so many pieces.")] = 1,
    independent: Annotated[
        bool, typer.Option("--independent", help="Several masks: each on its own, not together as well; more than 64 cannot be together.")
    ] = False,
    beam: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Joint fillings followed at a time; by default 8, or twice --top-k where that is more."),
    ] = None,
    pair: Annotated[str | None, typer.Option(help="A second text that follows each of the texts.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens that the model sees; by default all that fit.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: whichever is faster here.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a text.")] = False,
) -> None:
    """Fill the masks in texts: each on its own, and several in one text also together.

    A text without a mask gives an error line, and the others go on. Scores are shares of the whole vocabulary.
    """
    model, text = split(arguments)
    if not text and not data:
        raise TaskError(no_text(model, "The [MASK] is playing.", "fill"))
    from ..tasks.fill import Filler

    options: dict[str, Any] = {
        "top_k": top_k, "independent": independent, "targets": target, "renormalize": renormalize, "whole_words": whole_words,
        "vocabulary": _words(vocabulary) if vocabulary else None, "no_subwords": no_subwords, "max_pieces": max_pieces, "beam": beam,
    }  # fmt: skip
    filler = Filler.load(named(model), device=device, max_length=max_length, precision=precision)
    ids: deque[str | None] = deque()  # of the texts that are on their way

    def texts() -> Iterator["Text"]:
        for one in text:
            ids.append(None)
            yield one if pair is None else (one, pair)
        if data:
            from ..data.text import read

            for document in read(data, format=format, text_column=text_column, layout="line", encoding=encoding):
                ids.append(document.id)
                yield document.text if pair is None else (document.text, pair)

    if len(text) == 1 and not data:
        _show(filler.fill(next(texts()), **options), None, as_json)  # type: ignore[arg-type]
        return
    num_texts = num_failed = 0
    for result in filler.stream(texts(), **options):
        name = ids.popleft()
        num_texts += 1
        num_failed += result.error is not None
        _show(result, name, as_json)
    if num_failed:
        print(f"{num_failed:,} of {num_texts:,} texts could not be filled", file=sys.stderr)
    if num_failed == num_texts:
        raise TaskError("no text could be filled" if num_texts else f"there is no text in {', '.join(data or [])}")


def _words(name: str) -> list[str]:
    """Return the words of a file, one a line."""
    try:
        words = [line.strip() for line in Path(name).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise TaskError(f"--vocabulary {name} is not UTF-8 text (byte {error.start}); give a file of words, one a line") from None
    if not words:
        raise TaskError(f"--vocabulary {name} holds no word; give a file of words, one a line")
    return list(dict.fromkeys(words))


def _show(result: "Filled", name: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(({"id": name} if name is not None else {}) | result.to_dict(), ensure_ascii=False))
    elif result.error is not None:
        print(f"{name or 'error'}: {result.error}", file=sys.stderr)
    else:
        from rich.console import Console

        console = Console(highlight=False)
        if console.is_terminal:
            for table in _tables(result, name):
                console.print(table)
        else:
            print("\n".join(_lines(result, name)))


def _lines(result: "Filled", name: str | None) -> list[str]:
    """Return a result as plain lines: score, token, filled text."""
    lines = [f"{name}: {_flat(result.text)}" if name else _flat(result.text)]
    if result.pair is not None:
        lines.append(_flat(result.pair))
    for number, mask in enumerate(result):
        if len(result) > 1:
            lines.append(f"mask {number + 1}:")
        width = max((len(_shown(candidate)) for candidate in mask), default=0)
        lines += [f"  {_score(one):>7}  {_shown(one):{width}}  {one.error or ''.join(_snippet(one))}" for one in mask]
        if not mask:
            lines.append("  (nothing that is allowed here)")
    if result.joint:
        lines.append("together:")
        shown = [" + ".join(one.tokens) for one in result.joint]
        width = max(map(len, shown))
        lines += [
            f"  {_number(one.score):>7}  {tokens:{width}}  {_flat(one.sequence)}" for one, tokens in zip(result.joint, shown, strict=True)
        ]
    if result.truncated:
        lines.append("  (the text has more tokens than the model has positions: it saw a window around each mask)")
    return lines


def _tables(result: "Filled", name: str | None) -> Iterator[Any]:
    """Yield what a terminal shows: the text with its masks marked, a table for each mask, and one for all of them together."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head = Text(f"{name}: " if name else "", style="dim")
    whole = _flat(" ⏎ ".join(filter(None, (result.text, result.pair))))
    text = Text(whole if len(whole) <= 400 else f"{whole[:399]}…", style="not dim")
    text.highlight_regex(MASK, style="bold black on yellow")
    yield head + text
    for number in range(len(result) + bool(result.joint)):
        joint = number == len(result)
        rows: Sequence[Candidate | Combination] = result.joint if joint else result[number]
        title = "together" if joint else f"mask {number + 1} of {len(result)}" if len(result) > 1 else None
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        table.add_column("words" if joint else "word", no_wrap=True)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("", min_width=BAR, no_wrap=True)
        table.add_column("text")
        for place, row in enumerate(rows):
            style = "bold black on green" if place == 0 else "bold green"
            line, token = _marked(row, style)
            bar = _bar(row.score) if row.score == row.score else ""
            table.add_row(Text(token, style="bold"), _score(row), Text(bar, style="green"), line)
        if not rows:
            table.add_row("", "", "", Text("nothing that is allowed here", style="dim"))
        yield table
    if result.truncated:
        yield Text("the model saw a window around the mask: the text is longer than its positions\n", style="dim")


def _marked(row: "Candidate | Combination", style: str) -> tuple[Any, str]:
    """Return the filled text with what was filled in marked, and what that is."""
    from rich.text import Text

    from ..tasks.filled import Combination

    if isinstance(row, Combination):
        line = Text(_flat(row.sequence))
        for token, start in zip(row.tokens, row.starts, strict=True):
            if "\n" not in row.sequence:  # in a pair the places are those of each part
                line.stylize(style, start, start + len(token))
        return line, " + ".join(row.tokens)
    if row.error:
        return Text(row.error, style="red"), _shown(row)
    before, token, after = _snippet(row)
    return Text(before).append(token, style=style).append(after), _shown(row)


def _bar(score: float) -> str:
    eighths = round(score * BAR * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _score(row: "Candidate | Combination") -> str:
    return _number(row.score) if row.score == row.score else "none"


def _number(score: float) -> str:
    return f"{score:.4f}" if score >= 0.00005 or score == 0 else f"{score:.1e}"


def _shown(candidate: "Candidate") -> str:
    """Return a token as it is listed: the rest of a word after a dash, what cannot be seen escaped."""
    token = candidate.token
    if not token.strip() or not token.isprintable():
        token = repr(token)[1:-1].replace(" ", "␣")
    return f"-{token}" if candidate.joined and token[:1].isalnum() else token


def _snippet(candidate: "Candidate") -> tuple[str, str, str]:
    """Return the filled text near a mask: what stands before, the token, what stands after."""
    start, stop = candidate.start, candidate.start + len(candidate.token)
    before, after = candidate.sequence[:start], candidate.sequence[stop:]
    before = before if len(before) <= AROUND else "…" + before[-AROUND:]
    after = after if len(after) <= AROUND else after[:AROUND] + "…"
    return _flat(before), candidate.token, _flat(after)


def _flat(text: str) -> str:
    return " ".join(text.split("\n"))
