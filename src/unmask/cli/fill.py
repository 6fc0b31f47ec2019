"""`unmask fill`: what does a model expect at the masks of a text?"""

import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TaskError

if TYPE_CHECKING:
    from ..tasks.fill import Filled

BAR = 20  # characters of a bar of probability 1
AROUND = 36  # characters of text shown on each side of a filled mask


def fill(
    model: Annotated[str, typer.Argument(help="A model folder or a Hub id.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts with masks: [MASK], <mask> or ___.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="A file of texts, one a line; '-' is standard input.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Candidates a mask.")] = 5,
    text_column: Annotated[str, typer.Option(help="The column that holds the text, in files that have columns.")] = "text",
    format: Annotated[str | None, typer.Option(help="txt, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    encoding: Annotated[str, typer.Option(help="The encoding of text files.")] = "utf-8",
    max_length: Annotated[int | None, typer.Option(help="Tokens that the model sees; by default all that fit.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or auto: whichever is faster here.")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a text.")] = False,
) -> None:
    """Fill the masks in texts. Each mask of a text is filled on its own.

    A text without a mask gives an error line, and the others go on. Scores are shares of the whole vocabulary.
    """
    if not text and not data:
        raise TaskError("there is no text to fill; give one, such as 'The [MASK] is playing.', or --data FILE ('-' is standard input)")
    if top_k < 1:
        raise TaskError(f"--top-k {top_k}; at least 1")
    from ..tasks.fill import Filler

    filler = Filler.load(model, device=device, max_length=max_length, precision=precision)
    ids: deque[str | None] = deque()  # of the texts that are on their way

    def texts() -> Iterator[str]:
        for one in text or []:
            ids.append(None)
            yield one
        if data:
            from ..data.text import read

            for document in read(data, format=format, text_column=text_column, layout="line", encoding=encoding):
                ids.append(document.id)
                yield document.text

    if text and len(text) == 1 and not data:
        _show(filler.fill(text[0], top_k=top_k), None, as_json)
        return
    num_texts = num_failed = 0
    for result in filler.stream(texts(), top_k=top_k):
        name = ids.popleft()
        num_texts += 1
        num_failed += result.error is not None
        _show(result, name, as_json)
    if num_failed:
        print(f"{num_failed:,} of {num_texts:,} texts could not be filled", file=sys.stderr)
    if num_failed == num_texts:
        raise TaskError("no text could be filled" if num_texts else f"there is no text in {', '.join(data or [])}")


def _show(result: "Filled", name: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(({"id": name} if name is not None else {}) | result.to_dict(), ensure_ascii=False))
    elif result.error is not None:
        print(f"{name or 'error'}: {result.error}", file=sys.stderr)
    else:
        from rich.console import Console

        console = Console(highlight=False)
        if console.is_terminal:
            for number in range(len(result)):
                console.print(_table(result, number))
            console.print()
        else:
            print("\n".join(_lines(result, name)))


def _lines(result: "Filled", name: str | None) -> list[str]:
    """Return a result as plain lines: score, token, filled text."""
    lines = [f"{name}: {_flat(result.text)}" if name else _flat(result.text)]
    for number, mask in enumerate(result):
        if len(result) > 1:
            lines.append(f"mask {number + 1}:")
        width = max((len(_shown(candidate)) for candidate in mask), default=0)
        for place, candidate in enumerate(mask):
            lines.append(f"  {candidate.score:7.4f}  {_shown(candidate):{width}}  {''.join(_snippet(result, number, place))}")
    if result.truncated:
        lines.append("  (the text has more tokens than the model has positions: it saw a window around each mask)")
    return lines


def _table(result: "Filled", number: int) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"mask {number + 1} of {len(result)}" if len(result) > 1 else None
    caption = "the model saw a window around the mask: the text is longer than its positions" if result.truncated else None
    table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("token", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("", min_width=BAR, no_wrap=True)
    table.add_column("text")
    for place, candidate in enumerate(result[number]):
        before, token, after = _snippet(result, number, place)
        text = Text(before)
        text.append(token, style="bold reverse" if place == 0 else "bold")
        text.append(after)
        table.add_row(Text(_shown(candidate), style="bold"), f"{candidate.score:.4f}", Text(_bar(candidate.score), style="green"), text)
    return table


def _bar(score: float) -> str:
    eighths = round(score * BAR * 8)
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def _shown(candidate: Any) -> str:
    """Return a token as it is listed: the rest of a word after a dash, what cannot be seen escaped."""
    token = candidate.token
    if not token.strip() or not token.isprintable():
        token = repr(token)[1:-1].replace(" ", "␣")
    return f"-{token}" if candidate.joined and token[:1].isalnum() else token


def _snippet(result: "Filled", number: int, place: int) -> tuple[str, str, str]:
    """Return the filled text near a mask: what stands before, the token, what stands after."""
    candidate = result[number][place]
    start, stop = candidate.start, candidate.start + len(candidate.token)
    before, after = candidate.sequence[:start], candidate.sequence[stop:]
    before = before if len(before) <= AROUND else "…" + before[-AROUND:]
    after = after if len(after) <= AROUND else after[:AROUND] + "…"
    return _flat(before), candidate.token, _flat(after)


def _flat(text: str) -> str:
    return " ".join(text.split("\n"))
