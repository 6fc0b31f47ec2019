"""What only the report of a tagger has: types, kinds of errors, and the texts that it gets most wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..tasks.ner_scores import pair
from .page import numbers

WORST, AROUND = 24, 200  # texts, and characters around the first error of a long one


def ner(metrics: Mapping[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the sections that only entities have."""
    rows = [
        (
            one["label"],
            [f"{one[name]:.3f}" for name in ("f1", "precision", "recall")] + [f"{one['count']:,}", f"{one['predicted']:,}"],
            False,
        )
        for one in sorted(metrics["per_type"], key=lambda one: -one["count"])
    ]
    table = numbers(("", "F1", "precision", "recall", "in the data", "predicted"), rows)
    yield f"<section><h2>Type by type</h2>{table}</section>"
    found = [(name, [f"{count:,}"], name == "right") for name, count in metrics["errors"].items()]
    yield f"<section><h2>Entities, right and wrong</h2>{numbers(('', 'entities'), found)}</section>"
    if metrics["confused"]:
        mixed = [(f"{one['right']} taken for {one['predicted']}", [f"{one['count']:,}"], False) for one in metrics["confused"]]
        yield f"<details><summary><h2>Types taken for others</h2></summary>{numbers(('', 'times'), mixed)}</details>"
    yield worst(lines)


def worst(lines: Sequence[dict[str, Any]]) -> str:
    """Return the texts with the most errors, and of as many the ones where the model is surest."""
    cards = []
    for line in lines:
        if "gold" not in line or "entities" not in line:
            continue
        spans = [[(one["start"], one["end"], one["label"]) for one in line[key]] for key in ("gold", "entities")]
        wrong = [(gold, said) for what, gold, said in pair(*spans) if what != "right"]
        if wrong:
            sure = max((one["score"] for one in line["entities"]), default=0.0)
            cards.append((-len(wrong), -sure, line, spans, min(span[0] for both in wrong for span in both if span is not None)))
    shown = []
    for _, _, line, (gold, said), first in sorted(cards, key=lambda card: card[:2])[:WORST]:
        right, kept = set(gold) & set(said), slice(0, None)
        if len(line["text"]) > 2 * AROUND:
            kept = slice(max(0, first - AROUND // 2), first + 2 * AROUND)
        rows = "".join(
            f'<p class="note">{name}</p><p dir="auto">{marked(line["text"], spans, right, kept)}</p>'
            for name, spans in (("right", gold), ("predicted", said))
        )
        shown.append(f"<article><div>{rows}</div></article>")
    if not shown:
        return ""
    note = "The most errors first. Green: found as it is in the data. Some of the others may be mistakes of the data."
    return f'<section><h2>Worst examples</h2><p class="note">{note}</p><div class="cards">{"".join(shown)}</div></section>'


def marked(text: str, spans: Sequence[tuple[int, int, str]], right: set[tuple[int, int, str]], kept: slice) -> str:
    """Return a part of a text as HTML with entities marked."""
    low, high, _ = kept.indices(len(text))
    parts, at = ["… " if low else ""], low
    for start, stop, kind in sorted(spans):
        if start >= at and stop <= high:
            hit = " class=hit" if (start, stop, kind) in right else ""
            parts += [escape(text[at:start]), f"<mark{hit}>{escape(text[start:stop])}</mark> <small>{escape(kind)}</small>"]
            at = stop
    return "".join([*parts, escape(text[at:high]), " …" if high < len(text) else ""])
