"""The part of a run's page that says what adapting gave and what it cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from .page import numbers

TITLES = {"domain": "Held-out text of the domain", "general": "General text"}
NAMES = {
    "bits_per_byte": "bits per byte", "masked_word_loss": "loss (nats a word)", "masked_word_accuracy": "accuracy (words)",
    "masked_loss": "loss (nats a token)", "masked_perplexity": "perplexity (tokens)", "masked_accuracy": "accuracy (tokens)",
}  # fmt: skip
WIDE = "grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr))"
HEAD = '<h3 style="margin-top: 1.5rem">'
WORDS, ADDED = 10, 30


def section(results: Mapping[str, Any]) -> str:
    """Return the section of the page from adaptation.json; nothing where there is none."""
    if not results:
        return ""
    parts = [text_part(name, text) for name, text in results["texts"].items()]
    return f"<section><h2>Before and after</h2>{''.join(parts)}{added(results['vocabulary'])}</section>"


def text_part(name: str, text: Mapping[str, Any]) -> str:
    """Return the table of one text, and the words that changed most in it."""
    rows: list[tuple[str, list[str], bool]] = []
    for unit in ("words", "tokens"):
        found = text[unit] or {}
        # the bits per byte of tokens are those of other masks: one of the two in a table is enough
        rows += [
            (NAMES[key], values(found[key]), key == "bits_per_byte")
            for key in NAMES
            if key in found and (unit, key) != ("tokens", "bits_per_byte")
        ]
    before, after = (text["tokenizer"][side]["fertility"] for side in ("before", "after"))
    rows.append(("tokens per word", [f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}", ""], False))
    bits = text["bits_per_byte"]
    kinds = [f"{(text[unit] or {}).get('num_hidden', 0):,} {unit}" for unit in ("words", "tokens") if text[unit]]
    prints = ", ".join(f"<code>{escape(str(text[unit]['masks_fingerprint']))}</code>" for unit in ("words", "tokens") if text[unit])
    note = (
        f"{escape(', '.join(text['sources']))}: {' and '.join(kinds)} were hidden in {bits['num_documents']:,} documents, the same from "
        f"both models (masks: {prints}). Words are hidden whole, their pieces guessed from left to right. Intervals: 95%, paired bootstrap "
        f"over documents. Adapted against base, by bits per byte: <b>{escape(text['verdict'])}</b>."
    )
    table = numbers(("", "before", "after", "difference", "95% interval"), rows)
    changes = text["changes"]
    counted = (
        f"of {changes['num_frequent']:,} words hidden at least {changes['min_count']} times, {changes['num_rose']:,} rose and "
        f"{changes['num_fell']:,} fell"
    )
    moved = "".join(words(f"{kind.capitalize()} most ({counted})", changes[kind]) for kind in ("rose", "fell") if changes[kind])
    return f'{HEAD}{escape(TITLES.get(name, name))}</h3>{table}<p class="note">{note}</p><div class="cards" style="{WIDE}">{moved}</div>'


def values(found: Mapping[str, Any]) -> list[str]:
    """Return before, after, difference and interval of a number, as they are shown."""
    bounds = str(found.get("why", "none")) if found["low"] is None else f"{found['low']:+.3f} to {found['high']:+.3f}"
    return [f"{found['before']:,.3f}", f"{found['after']:,.3f}", f"{found['difference']:+,.3f}", bounds]


def words(title: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of words with their mean log-probabilities."""
    body = [
        (row["word"], [f"{row['difference']:+.2f}", f"{row['before']:.1f} → {row['after']:.1f}", f"{row['count']:,}"], False)
        for row in list(rows)[:WORDS]
    ]
    table = numbers(("", "change", "log-probability", "times"), body)
    return f"<div><p class=note>{escape(title)}</p>{table}</div>"


def added(vocabulary: Mapping[str, Any] | None) -> str:
    """Return the table of the words that were added to the vocabulary."""
    if not vocabulary:
        return ""
    rows = [
        (row["word"], [" ".join(row["pieces"]), str(len(row["pieces"])), f"{row['count']:,}", f"{row['saved']:,}"], False)
        for row in vocabulary["words"][:ADDED]
    ]
    saved = vocabulary["training_tokens_saved"] / max(1, vocabulary["training_tokens"])
    note = (
        f"{vocabulary['num_words']:,} words of {vocabulary['num_eligible']:,} that occur {vocabulary['min_count']} times in "
        f"{vocabulary['min_documents']} documents and were cut into pieces; they take {saved:.1%} of the tokens out of the training text. "
        "Each is one token now, and began as the mean of its pieces."
    )
    table = numbers(("word", "its pieces before", "pieces", "times", "tokens saved"), rows)
    return f'{HEAD}Words added to the vocabulary</h3>{table}<p class="note">{note}</p>'
