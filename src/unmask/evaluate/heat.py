"""Text with its surprisal: each token the stronger coloured, the less a model expected it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..data.words import byte_text

HOTTEST = 12.0  # nats that the strongest colour stands for: the same on every page, so that pages compare
CLOSING, OPENING = frozenset(".,;:!?)]}%\u2019'"), frozenset("([{\u2018")
STRONGEST = 75  # per cent of the colour


def heat_map(
    tokens: Sequence[str], joined: Sequence[bool], log_probs: Sequence[float | None], predicted: Sequence[str | None] | None = None
) -> str:
    """Return tokens as a paragraph in which each that has a log-probability is coloured; what was predicted shows on pointing at it."""
    parts = []
    for place, (token, close, value) in enumerate(zip(tokens, joined, log_probs, strict=True)):
        parts.append("" if close or not place else " ")
        if value is None:
            parts.append(escape(token))
            continue
        surprisal = max(0.0, -float(value))
        share = min(surprisal / HOTTEST, 1.0) * STRONGEST
        said = f"; predicted: {predicted[place]}" if predicted is not None and predicted[place] is not None else ""
        parts.append(f'<span style="--h:{share:.0f}%" title="{surprisal:.2f} nats{escape(said)}">{escape(token)}</span>')
    return f'<p class="heat" dir="auto">{"".join(parts)}</p>'


def legend() -> str:
    """Return what the colours mean."""
    return f'<p class="note">0 nats <span class="legend"></span> {HOTTEST:.0f} nats or more (the negative logarithm of its probability)</p>'


def running_text(tokens: Iterable[str]) -> tuple[list[str], list[bool]]:
    """Return how tokens of a vocabulary look in running text, and which are joined to what stands before them.

    The vocabulary is not at hand: the marks that its tokens bear tell of which kind it is.
    """
    tokens = list(tokens)
    if any("\u0120" in token for token in tokens):  # byte-level: a space is written so
        shown = [byte_text(token) or token for token in tokens]
    elif any("\u2581" in token for token in tokens):
        shown = [token.replace("\u2581", " ") for token in tokens]
    else:
        pieces = [token.startswith("##") and len(token) > 2 for token in tokens]
        shown = [token[2:] if piece else token for token, piece in zip(tokens, pieces, strict=True)]
        return shown, closed(shown, pieces)
    return [text.removeprefix(" ") or text for text in shown], [not text.startswith(" ") for text in shown]


def closed(tokens: Sequence[str], joined: Sequence[bool]) -> list[bool]:
    """Return `joined` with signs set as print sets them, for vocabularies that do not say where spaces were."""
    before = ["", *tokens[:-1]]
    pairs = zip(tokens, before, joined, strict=True)
    return [close or token in CLOSING or last in OPENING for token, last, close in pairs]


def worst_sentences(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the section of the sentences that a model predicts worst, from worst.jsonl."""
    cards = [
        f"<article>{heat_map(row['tokens'], row['joined'], row['log_probs'], row['predicted'])}"
        f'<p class="note">{escape(str(row["document"]))}: {row["masked_loss"]:.2f} nats a token over {row["num_masked_tokens"]:,} hidden '
        "ones</p></article>"
        for row in rows
    ]
    if not cards:
        return ""
    note = (
        "The sentences with the highest mean loss, of those with at least three hidden tokens. Coloured are the tokens that were hidden: "
        "the stronger the colour, the less the model expected them. What it expected shows on pointing at a token."
    )
    return f'<section><h2>Worst sentences</h2><p class="note">{note}</p>{legend()}<div class="cards">{"".join(cards)}</div></section>'


def scored_texts(rows: Iterable[Mapping[str, Any]], count: int, method: str) -> str:
    """Return the section of whole texts with their tokens scored, from what `unmask score` has written, of which there are `count`."""
    cards = []
    for row in rows:
        tokens, joined = running_text(map(str, row["tokens"]))
        known = [value for value in row["log_probs"] if value is not None]
        mean = (
            f"{-sum(known) / len(known):.2f} nats a token over {len(known):,} token{'s'[: len(known) > 1]}"
            if known
            else "no token was scored"
        )
        name = f"{escape(str(row['id']))}: " if row.get("id") is not None else ""
        cards.append(f'<article>{heat_map(tokens, joined, row["log_probs"])}<p class="note">{name}{mean}</p></article>')
    if not cards:
        return ""
    note = f"{len(cards):,} of {count:,} scored texts, those with the lowest mean log-probability. {method}"
    return f'<section><h2>Surprisal</h2><p class="note">{note}</p>{legend()}<div class="cards">{"".join(cards)}</div></section>'
