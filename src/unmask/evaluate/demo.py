"""From the documentation on this machine to a filled mask: the whole way in a few minutes, without a download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.text import read
from ..errors import CheckpointError, DataError

TEXT = "documentation.jsonl"
MARK = "demo.json"
EXAMPLES = "examples.json"
# what a few minutes on two cores can learn most with: a small vocabulary makes a small head
SETTINGS: dict[str, Any] = {
    "vocab_size": 8192, "max_length": 128, "batch_tokens": 2048,  # twice the steps of 4,096 in the same minutes
    "eval_tokens": 40_000, "held_out": 0.02, "mlm_probability": 0.2,
    "model": {"preset": "mini", "family": "modernbert"},
}  # fmt: skip


def demo(
    output: str | Path = "runs/demo",
    *,
    minutes: float = 5.0,
    sources: str | Sequence[str] = "python-docs",
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Collect documentation, train a tokenizer and a small model on it, measure it, fill a dozen masks; return the metrics.

    Writes OUTPUT/{documentation.jsonl, model/, metrics.json, examples.json, report.html}. What an earlier demo left in OUTPUT is moved
    beside it, never deleted.
    Raises: CheckpointError where OUTPUT holds something that is no demo.
    """
    from ..data.tokenizer import load_tokenizer
    from ..tasks.fill import Filler
    from ..train.run import pretrain
    from .examples import fill_examples, masked_sentences
    from .report import write

    folder = Path(output).expanduser()
    moved = make_room(folder)
    if moved is not None:
        say(f"the demo that was in {folder} is now in {moved}")
    text = text_beside(folder)
    say("collecting the documentation of the installed Python packages" if sources == "python-docs" else f"reading {sources}")
    count, size = collect(sources, text)
    say(f"{count:,} documents, {size / 1e6:.1f} MB of text")
    try:
        run = pretrain(data=text, output=folder, overrides=overrides, max_minutes=minutes, **SETTINGS)
    finally:
        if folder.is_dir():
            text.replace(folder / TEXT)
            (folder / MARK).write_text(json.dumps({"sources": sources, "minutes": minutes}) + "\n", encoding="utf-8")
        else:
            text.unlink(missing_ok=True)
    if run.interrupted:
        return {**run.metrics, "interrupted": True}
    items = masked_sentences(folder / "corpus" / "heldout.jsonl", load_tokenizer(run.model))
    examples = fill_examples(Filler.load(run.model), items)
    (folder / EXAMPLES).write_text(json.dumps(examples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write(folder)
    return {**run.metrics, "examples": examples}


def text_beside(folder: Path) -> Path:
    """Return where the text of a demo lies until its folder is there."""
    return folder.with_name(f"{folder.name}.{TEXT}")


def make_room(folder: Path) -> Path | None:
    """Move an earlier demo out of the way and return where it is now; None where there was none.

    Raises: CheckpointError where the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    # a demo that was killed has not set its mark yet, but its text lies beside the folder
    if not (folder / MARK).is_file() and not text_beside(folder).is_file():
        raise CheckpointError(f"'{folder}' exists and was not made by `unmask demo`; name another folder: unmask demo --output NAME")
    number = 1
    while (moved := folder.with_name(f"{folder.name}-old-{number}")).exists():
        number += 1
    shutil.move(folder, moved)
    return moved


def collect(sources: str | Sequence[str], path: Path) -> tuple[int, int]:
    """Write the documents of `sources` to a JSON-lines file; return how many there are and their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with open(path, "w", encoding="utf-8") as file:
        for document in read(sources):
            file.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")
            count += 1
            size += len(document.text.encode("utf-8"))
    if not count:
        path.unlink()
        raise DataError(f"there is no text in {sources}; name files: unmask demo --data FILES")
    return count, size
