"""From the documentation on this machine to a filled mask: a model from scratch beside the box's, as it comes and adapted, in minutes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..box import box_model
from ..data.text import read
from ..data.whole import is_held, whole_file
from ..errors import CheckpointError, DataError
from .page import read_json
from .report_demo import ADAPTED, MARK, beside
from .report_run import EXAMPLES

TEXT = "documentation.jsonl"
# what a few minutes on two cores can learn most with: a small vocabulary makes a small head
SETTINGS: dict[str, Any] = {
    "vocab_size": 8192, "max_length": 128, "batch_tokens": 2048,  # twice the steps of 4,096 in the same minutes
    "eval_tokens": 40_000, "held_out": 0.02, "mlm_probability": 0.2,
    "model": {"preset": "mini", "family": "modernbert"},
}  # fmt: skip
# the same text, held out alike; small models want larger steps than the base size of which `unmask adapt` thinks
ADAPT: dict[str, Any] = {
    **{name: SETTINGS[name] for name in ("max_length", "batch_tokens", "eval_tokens", "held_out", "mlm_probability")},
    "learning_rate": 5e-4,
}  # fmt: skip
COMPARED = 600  # documents, about, whose words are hidden from all three models
SHARED = ("data.", "train.")  # settings given by hand that are for both models


def demo(
    output: str | Path = "runs/demo",
    *,
    minutes: float = 3.0,
    sources: str | Sequence[str] = "python-docs",
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train a small model on documentation, adapt the model in the box to it as long, measure both, fill a dozen masks; return the metrics.

    Writes OUTPUT/{documentation.jsonl, model/, adapted/model/, metrics.json, examples.json, demo.json, report.html}: OUTPUT is the run from
    scratch, OUTPUT/adapted that of the adapted model. Top-level metrics are those of OUTPUT/model, "box" and "adapted" hold the same of
    the model in the box before and after, on tokens of its own vocabulary, and "words" compares the three. What an earlier demo left in
    OUTPUT is moved beside it, never deleted. `overrides` of data and train are for both models, the rest for the one from scratch.
    Raises: CheckpointError where OUTPUT holds something that is no demo.
    """
    from ..train.run import pretrain
    from ..train.runlog import finite
    from .report import write

    folder = Path(output).expanduser()
    if folder.name in ("", ".."):  # "." has no name that others could stand beside
        folder = folder.resolve()
    moved = make_room(folder)
    if moved is not None:
        say(f"the demo that was in {folder} is now in {moved}")
    text = text_beside(folder)
    docs = sources == "python-docs"
    say("collecting the documentation of the installed Python packages" if docs else f"reading {named(sources)}")
    count, size = collect(sources, text)
    say(f"{count:,} documents, {size / 1e6:.1f} MB of text")
    mark: dict[str, Any] = {"sources": sources, "minutes": minutes}
    try:
        run = pretrain(data=text, output=folder, overrides=overrides, max_minutes=minutes, **SETTINGS)
    finally:
        if folder.is_dir():
            (folder / MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")  # before the text goes, by which it is known so far
            text.replace(folder / TEXT)
        else:
            text.unlink(missing_ok=True)
    metrics = run.metrics
    if run.interrupted:
        return {**metrics, "interrupted": True}
    try:
        box_model()
    except CheckpointError as error:
        say(f"no more than the model from scratch is shown: {error}")
    else:
        say(f"adapting the model in the box to the same text, for {minutes:g} minutes")
        more = adapted(folder, minutes, overrides)
        if more.get("interrupted"):
            return {**metrics, "interrupted": True}
        say("comparing the three on the same words")
        more["words"] = together(folder / "corpus" / "heldout.jsonl", {**beside(folder), "from_scratch": run.model})
        metrics, mark = {**metrics, **more}, {**mark, **more}
        for name, found in ((MARK, mark), ("metrics.json", metrics)):
            text_of = json.dumps(finite(found), indent=1, ensure_ascii=False, allow_nan=False)
            (folder / name).write_text(text_of + "\n", encoding="utf-8")
    write(folder)
    return {**metrics, "examples": read_json(folder / EXAMPLES) or []}


def adapted(folder: Path, minutes: float, overrides: Sequence[str]) -> dict[str, Any]:
    """Adapt the model in the box in FOLDER/adapted and return its numbers before ("box") and after ("adapted")."""
    from .runs import adapt

    shared = [one for one in overrides if one.strip().startswith(SHARED)]
    run = adapt(box_model(), folder / TEXT, output=folder / ADAPTED, overrides=shared, max_minutes=minutes, **ADAPT)
    if run.interrupted:
        return {"interrupted": True}
    after = {name: value for name, value in run.metrics.items() if name not in ("before", "unigram")}
    return {"box": run.metrics["before"], ADAPTED: after}


def together(heldout: Path, models: dict[str, Path]) -> dict[str, Any]:
    """Return what three models say of the same hidden words of held-out text: `rows`, a model each, and `differences` with intervals.

    "from_scratch" has a vocabulary of its own, so that whole words are hidden and compared, as `unmask compare` does it.
    """
    from ..data.frozen import EVAL_SEED
    from ..data.tokenizer import load_tokenizer
    from ..infer.engine import Engine
    from ..model.load import load_model
    from .paired import difference
    from .pairs import WORD_DEFINITIONS, Pairs, words
    from .stats import RESAMPLES

    tokenizers = {name: load_tokenizer(path) for name, path in models.items()}
    sides = {name: (Engine(load_model(path, tokenizer=tokenizers[name])), tokenizers[name]) for name, path in models.items()}
    options: dict[str, Any] = {"seed": EVAL_SEED, "max_length": SETTINGS["max_length"], "slice_by": None, "resamples": RESAMPLES}
    lines = heldout.read_text(encoding="utf-8").splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as place:
        some = Path(place) / heldout.name  # every second document, or third ..., so that this takes half a minute on two cores
        some.write_text("".join(lines[:: max(1, len(lines) // COMPARED)]), encoding="utf-8")
        # each beside the one from scratch: its words are those that both of two vocabularies cut alike, the same in either pass
        found: dict[str, Pairs] = {name: words((sides["from_scratch"], sides[name]), some, **options) for name in ("box", ADAPTED)}
    numbers = {"box": found["box"].b, ADAPTED: found[ADAPTED].b, "from_scratch": found[ADAPTED].a}
    differences = {}
    for before, after in (("box", ADAPTED), ("from_scratch", ADAPTED)):
        a, b = numbers[before], numbers[after]
        differences[f"{ADAPTED} - {before}"] = {
            name: difference(
                a.point[name], b.point[name], a.samples[name], b.samples[name], count=a.counts[""], num_documents=a.num_documents[""],
                resamples=RESAMPLES,
            ).to_dict()
            for name in WORD_DEFINITIONS
        }  # fmt: skip
    return {
        "num_words": len(found["box"].document), "num_documents": numbers["box"].num_documents[""],
        "masks_fingerprint": found["box"].info["masks_fingerprint"], "definitions": dict(WORD_DEFINITIONS),
        "rows": {name: {metric: one.point[metric] for metric in WORD_DEFINITIONS} for name, one in numbers.items()},
        "differences": differences, "notes": found["box"].notes,
    }  # fmt: skip


def named(sources: str | Sequence[str]) -> str:
    """Return the names of sources as they are told."""
    return sources if isinstance(sources, str) else ", ".join(map(str, sources))


def text_beside(folder: Path) -> Path:
    """Return where the text of a demo lies until its folder is there."""
    return folder.with_name(f"{folder.name}.{TEXT}")


def make_room(folder: Path) -> Path | None:
    """Move an earlier demo out of the way and return where it is now; None where there was none.

    Raises: CheckpointError where the folder holds something else, or another process is at it.
    """
    if not folder.name:
        raise CheckpointError(f"'{folder}' cannot be the folder of a demo, which one that is there is moved beside; name another")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    # a demo that was killed has not set its mark yet, but its text lies beside the folder
    if not (folder / MARK).is_file() and not text_beside(folder).is_file():
        raise CheckpointError(f"'{folder}' exists and was not made by `unmask demo`; name another folder: unmask demo --output NAME")
    if any(is_held(one) for one in (folder, folder / ADAPTED) if one.is_dir()):
        raise CheckpointError(f"another process is at work on '{folder}'; wait for it, stop it, or name another folder")
    number = 1
    while (moved := folder.with_name(f"{folder.name}-old-{number}")).exists():
        number += 1
    shutil.move(folder, moved)
    return moved


def collect(sources: str | Sequence[str], path: Path) -> tuple[int, int]:
    """Write the documents of `sources` to a JSON-lines file; return how many there are and their bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with whole_file(path) as file:  # not in its place before all is read: it may be among the sources
        for document in read(sources):
            file.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")
            count += 1
            size += len(document.text.encode("utf-8"))
        if not count:
            raise DataError(f"there is no text in {named(sources)}; name files: unmask demo --data FILES")
    return count, size
