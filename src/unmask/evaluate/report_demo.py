"""The parts of a demo's page that set the model in the box, as it comes and adapted, beside the model from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..box import box_model
from .page import numbers, percent

MARK, ADAPTED = "demo.json", "adapted"
# in the order in which they are shown
NAMES = {"box": "the model in the box", "adapted": "the same, adapted", "from_scratch": "from scratch"}
KEYS = {"box": "box", "adapted": "adapted", "from_scratch": "candidates"}  # of what each puts at a mask, in examples.json
METRICS = {"masked_word_accuracy": ".1%", "bits_per_byte": ".3f", "masked_word_perplexity": ",.1f"}
SHOWN = 3


def beside(folder: Path) -> dict[str, Path]:
    """Return the models that a demo sets beside the one from scratch, by name.

    Raises: CheckpointError where the package holds no model any more.
    """
    return {"box": box_model(), ADAPTED: folder / ADAPTED / "model"}


def section(demo: Mapping[str, Any]) -> str:
    """Return the section on the three models from demo.json; nothing where it holds no comparison."""
    if "words" not in demo:
        return ""
    found = demo["words"]
    rows = [
        (NAMES[name], [format(found["rows"][name][metric], form) for metric, form in METRICS.items()], name == "adapted") for name in NAMES
    ]
    said = "; ".join(difference(name, one["bits_per_byte"]) for name, one in found["differences"].items())
    note = (
        f"All rows: the same {found['num_words']:,} whole words of {found['num_documents']:,} held-out documents, hidden from each model, "
        "their pieces guessed from left to right, for the vocabularies differ: the loss of a token would not compare. Adapted and from "
        f"scratch were trained {demo['minutes']:g} minutes each, on the same documents. Bits per byte: {said}."
    )
    more = " ".join(found["notes"][1:])  # the first says what is said above
    table = numbers(("", "accuracy (words)", "bits per byte", "perplexity (words)"), rows)
    return (
        f'<section><h2>Beside the model in the box</h2>{table}<p class="note">{escape(note)} {escape(more)} Mask fingerprint: '
        f"<code>{escape(str(found['masks_fingerprint']))}</code></p></section>"
    )


def difference(name: str, one: Mapping[str, Any]) -> str:
    """Return a difference in words, with its interval."""
    bounds = "no interval" if one["low"] is None else f"95% {one['low']:+.3f} to {one['high']:+.3f}"
    return f"{name.replace('_', ' ')} {one['difference']:+.3f} ({bounds})"


def examples(items: Iterable[Mapping[str, Any]]) -> str:
    """Return the filled sentences with the first guesses of each model."""
    cards = []
    for item in items:
        before, _, after = str(item["text"]).partition("[MASK]")
        answer = str(item["answer"])
        rows = "".join(guesses(NAMES[name], item.get(KEYS[name], []), answer) for name in NAMES)
        cards.append(
            f"<article><p>{escape(before)}<mark>{escape(answer)}</mark>{escape(after)}</p><table class=pairs>{rows}</table></article>"
        )
    if not cards:
        return ""
    note = (
        "Sentences of held-out documents, chosen by a hash and not by how they came out; the marked word, one token of both vocabularies, "
        f"was hidden. Below, the first {SHOWN} whole words that each model guesses."
    )
    return f'<section><h2>Filled masks</h2><p class="note">{note}</p><div class="cards">{"".join(cards)}</div></section>'


def guesses(name: str, candidates: Iterable[Mapping[str, Any]], answer: str) -> str:
    """Return a row: what a model guesses, the right word in bold."""
    words = []
    for one in list(candidates)[:SHOWN]:
        token = escape(str(one["token"]))
        is_right = str(one["token"]).strip().lower() == answer.strip().lower()
        words.append(f"{f'<b>{token}</b>' if is_right else token} {percent(min(max(float(one['score']), 0.0), 1.0))}")
    return f"<tr><th scope=row>{escape(name)}</th><td>{', '.join(words)}</td></tr>"
