"""The report of an evaluation: every number with its interval, how sure the model is, where it is weak, the sentences it finds hardest."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .figure import reliability_curve
from .heat import scored_texts, worst_sentences
from .page import cells, numbers, read_json, tables
from .worst import COUNT, WORST

METRICS, RECORDS, SCORES = "metrics.json", "records.arrow", "scores.jsonl"
SIZES = {"wide": (9.6, 4.2), "narrow": (4.6, 3.8)}
SLICE_METRICS = {"masked_loss": "loss", "masked_accuracy": "accuracy", "top_10_accuracy": "top 10", "bits_per_byte": "bits per byte"}
METHODS = {
    "original": "Each token was masked by itself, the rest of the text in sight.",
    "word_l2r": "Each token was masked together with the later pieces of its word, the rest of the text in sight.",
    "sampled": "Some tokens of each text were masked, one at a time, the rest in sight; the others have no colour.",
}
SHARES = ("accuracy", "precision", "recall", "f1", "rank", "error")
SHOWN = 24  # values of a slice
BEHIND = {
    "corrupt": "80% of them behind the mask token, 10% behind a random one, 10% as they are: as in training",
    "mask": "all of them behind the mask token",
}


def is_evaluation(folder: Path) -> bool:
    """Return whether a folder is that of an evaluation, or of texts that were scored."""
    return ((folder / METRICS).is_file() and (folder / RECORDS).is_file()) or (folder / SCORES).is_file()


def parts(folder: Path) -> list[str]:
    """Return the sections of the page of an evaluation, from what it has written down."""
    metrics, masked = read_json(folder / METRICS), (folder / RECORDS).is_file()
    if not masked:
        found = [score_figures(metrics)]
    else:
        found = [figures(metrics), table(metrics), reliability(metrics), slices(metrics), worst_sentences(read_lines(folder / WORST))]
    return [
        heading(folder, metrics, "on masked tokens" if masked else "scores texts"),
        *found,
        scored(folder / SCORES, metrics.get("settings", {}).get("method")),
        tables("Definitions", METRICS, definitions(metrics)),
        tables("Settings", METRICS, {"": metrics.get("settings", {})}),
    ]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; none where there is none.

    Raises: CheckpointError for a line that is no JSON object.
    """
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise CheckpointError(f"{path}:{number} is no JSON object; remove the file, and make the report again")
            yield row


def heading(folder: Path, metrics: Mapping[str, Any], what: str) -> str:
    """Return the headline: which model was measured, and on what."""
    model = str(metrics.get("settings", {}).get("model", "A model"))
    return f"<header><h1>{escape(folder.resolve().name)}</h1><p><b>{escape(model)}</b> {what}</p></header>"


def score_figures(metrics: Mapping[str, Any]) -> str:
    """Return the few numbers that say most of texts that were scored."""
    names = ("pseudo_perplexity", "pseudo_perplexity_per_word", "pseudo_bits_per_byte")
    found = [(name.replace("_", " "), shown(name, metrics[name]), "") for name in names if name in metrics]
    counts = ("num_texts", "num_failed", "num_tokens")
    found += [(name.replace("num_", "").replace("failed", "not scored"), f"{metrics[name]:,}", "") for name in counts if name in metrics]
    return cells(found)


def shown(name: str, value: float | None) -> str:
    """Return a number as a reader wants it: a share in per cent."""
    if value is None:
        return "–"
    if "perplexity" in name:
        return f"{value:,.1f}" if value < 1e6 else f"{value:.3g}"
    return f"{value:.1%}" if name.endswith(SHARES) else f"{value:.3f}"


def between(name: str, row: Mapping[str, Any]) -> str:
    """Return an interval as a reader wants it."""
    return "–" if row["low"] is None else f"{shown(name, row['low'])} to {shown(name, row['high'])}"


def figures(metrics: Mapping[str, Any]) -> str:
    """Return the few numbers that say most."""
    names = ("masked_accuracy", "masked_perplexity", "masked_loss", "top_10_accuracy", "bits_per_byte", "expected_calibration_error")
    return cells((name.replace("_", " "), shown(name, metrics[name]["value"]), between(name, metrics[name])) for name in names)


def table(metrics: Mapping[str, Any]) -> str:
    """Return all metrics with their intervals and counts, and what they were measured on."""
    rows = [
        (name.replace("_", " "), [shown(name, metrics[name]["value"]), between(name, metrics[name]), f"{metrics[name]['count']:,}"], False)
        for name, what in metrics["definitions"].items()
        if isinstance(what, str)
    ]
    settings, interval = metrics["settings"], metrics["interval"]
    note = (
        f"{metrics['num_masked_tokens']:,} masked tokens in {metrics['num_documents']:,} documents: {settings['mlm_probability']:.0%} of "
        f"{metrics['num_tokens']:,} tokens, {BEHIND.get(settings['policy'], settings['policy'])}. "
        f"{metrics['num_documents_in_windows']:,} documents were longer than {settings['max_length']} tokens and read in windows"
    )
    empty = metrics.get("num_documents_empty", 0) + metrics["num_documents_without_masked_tokens"]
    note += f"; {empty:,} held nothing that could be masked. " if empty else ". "
    why = interval["why_none"]
    note += f"No intervals: {why}." if why else f"Intervals: {interval['level']:.0%}, {interval['method']}."
    return (
        f"<section><h2>Numbers</h2>{numbers(('', 'value', 'interval', 'count'), rows)}"
        f'<p class="note">{escape(note)} Mask fingerprint: <code>{escape(str(metrics["masks_fingerprint"]))}</code></p></section>'
    )


def reliability(metrics: Mapping[str, Any]) -> str:
    """Return how often the model is right against how sure it is, once for wide and once for narrow pages."""
    points = metrics["reliability"]
    if not points:
        return ""
    drawn = "".join(f'<div class="{name}">{reliability_curve(points, width=w, height=h)}</div>' for name, (w, h) in SIZES.items())
    error = shown("error", metrics["expected_calibration_error"]["value"])
    caption = (
        "Predictions in bins by the probability that the model gave them; the larger a dot, the more tokens. On the dashed line the model "
        f"is as sure as it is right, below it too sure, above it too modest. Expected calibration error, the mean distance: {error}."
    )
    return f"<section><h2>How sure, how right</h2><figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure></section>"


def slices(metrics: Mapping[str, Any]) -> str:
    """Return a table for each way in which the masked tokens were sorted."""
    found = []
    for dimension, rows in metrics.get("slices", {}).items():
        what = metrics["definitions"].get("slices", {}).get(dimension, "")
        head = ("", "tokens", "documents", *SLICE_METRICS.values())
        body = [
            (
                str(row["name"]),
                [f"{row['count']:,}", f"{row['num_documents']:,}", *(shown(name, row[name]["value"]) for name in SLICE_METRICS)],
                False,
            )
            for row in rows[:SHOWN]
        ]
        more = f'<p class="note">{len(rows) - SHOWN:,} more are in {METRICS}.</p>' if len(rows) > SHOWN else ""
        title = escape(dimension.replace("_", " ") + (f": {what}" if what else ""))
        found.append(f"<h3>{title}</h3>{numbers(head, body)}{more}")
    return f'<section class="slices"><h2>Slices</h2>{"".join(found)}</section>' if found else ""


def scored(path: Path, method: str | None) -> str:
    """Return the texts that score lowest, every token coloured; those that could not be scored have none."""
    count = 0

    def good() -> Iterator[tuple[float, int, dict[str, Any]]]:
        nonlocal count
        for number, row in enumerate(read_lines(path)):
            known = [value for value in row.get("log_probs", ()) if value is not None]
            if known:
                count += 1
                yield sum(known) / len(known), number, row

    lowest: Sequence[tuple[float, int, dict[str, Any]]] = heapq.nsmallest(COUNT, good(), key=lambda item: item[:2])
    return scored_texts([row for *_, row in lowest], count, METHODS.get(method or "", ""))


def definitions(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the numbers mean, for the end of the page."""
    found = {name: what for name, what in metrics.get("definitions", {}).items() if isinstance(what, str)}
    return {"": found} if found else {}
