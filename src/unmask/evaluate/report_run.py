"""The report of a training run: its curve, its numbers beside baselines, masks it fills, and the settings that made it."""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..config import read_toml
from ..errors import UnmaskError
from ..train.card import NAMES, amount, shown
from ..train.runlog import ENVIRONMENT, LOG, duration
from . import report_adaptation, report_demo
from .figure import Curves, loss_curve
from .page import cells, numbers, percent, read_json, tables

EXAMPLES = "examples.json"
ROWS = ("", "before", "unigram", "untrained")
FAMILIES = {"bert": "BERT", "modernbert": "ModernBERT"}
SIZES = {"wide": (9.6, 3.6), "narrow": (4.6, 3.4)}

log = logging.getLogger(__name__)


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a training run."""
    return (folder / "config.toml").is_file() and (folder / LOG).is_file()


def parts(folder: Path) -> list[str]:
    """Return the sections of the page of a run, from what it has written down.

    A finished run's model fills a dozen masks of held-out sentences for it, unless examples.json beside it has them already.
    """
    settings = read_toml(folder / "config.toml")
    records = read_log(folder / LOG)
    metrics = read_json(folder / "metrics.json")
    demo = read_json(folder / report_demo.MARK)
    found = find_examples(folder, settings)
    return [
        heading(folder, settings, records, metrics),
        figures(folder, records, metrics),
        curve(records, metrics, settings),
        results(metrics),
        report_adaptation.section(read_json(folder / "adaptation.json")),
        report_demo.section(demo),
        report_demo.examples(found) if "words" in demo else examples(found),
        tables("Settings", "config.toml", sections(settings)),
        tables("Text", "the packed corpus", corpus(folder)),
        tables("Environment", ENVIRONMENT, {"": read_json(folder / ENVIRONMENT)}),
    ]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are whole: a run that goes on may be in the middle of one."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def heading(folder: Path, settings: Mapping[str, Any], records: list[dict[str, Any]], metrics: Mapping[str, Any]) -> str:
    """Return the headline: what run this is, and how far it came."""
    sources = settings.get("data", {}).get("sources", [])
    base, model = settings.get("base_model"), settings.get("model", {})
    kind = f"{model.get('preset', '')} {FAMILIES.get(model.get('family'), 'model')}"
    what = f"{shown(base)} adapted to" if base else f"A {kind} trained from scratch on"
    names = ", ".join(Path(source).name for source in sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
    start = next((record["time"] for record in records if record.get("event") == "start" and "time" in record), "")
    state = "" if metrics else '<p class="note">This run has not ended: what stands here is how far it came.</p>'
    return (
        f"<header><h1>{escape(folder.resolve().name)}</h1><p>{escape(what)} <b>{escape(names or 'text')}</b>"
        f"{', started ' + escape(start[:16].replace('T', ' ')) + ' UTC' if start else ''}</p>{state}</header>"
    )


def figures(folder: Path, records: list[dict[str, Any]], metrics: Mapping[str, Any]) -> str:
    """Return the few numbers that say most."""
    steps = [record for record in records if "event" not in record and "loss" in record]
    shown: list[tuple[str, str, str]] = []
    if "masked_accuracy" in metrics:
        base = metrics.get("unigram", {}).get("masked_accuracy")
        beside = f"{metrics['masked_accuracy'] / base:.1f} times word frequencies" if base else "of held-out masked tokens"
        shown.append(("masked accuracy", f"{metrics['masked_accuracy']:.1%}", beside))
        base = metrics.get("unigram", {}).get("masked_perplexity")
        shown.append(("masked perplexity", amount(metrics["masked_perplexity"], ",.1f"), f"word frequencies: {base:,.0f}" if base else ""))
    if steps:
        rates = [record["tokens_per_second"] for record in steps if record.get("tokens_per_second")]
        shown.append(("training speed", f"{statistics.median(rates):,.0f}" if rates else "?", "real tokens a second, median"))
        tokens = steps[-1]["tokens"]
        read = f"{tokens / 1e6:,.1f} M" if tokens >= 1e6 else f"{tokens:,}"
        shown.append(("training time", duration(steps[-1]["seconds"]), f"{steps[-1]['step']:,} steps, {read} tokens"))
    size = num_parameters(folder / "model" / "model.safetensors")
    if size:
        shown.append(("model", f"{size / 1e6:,.1f} M", "parameters"))
    return cells(shown)


def num_parameters(path: Path) -> int:
    """Return how many numbers a safetensors file holds, from its header alone; 0 where there is none."""
    if not path.is_file():
        return 0
    from safetensors import safe_open

    total = 0
    with safe_open(path, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no dict
            size = 1
            for dimension in tensors.get_slice(name).get_shape():
                size *= dimension
            total += size
    return total


def curve(records: list[dict[str, Any]], metrics: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the loss curve, once for wide and once for narrow pages."""
    train = [(record["step"], record["loss"]) for record in records if "event" not in record and "loss" in record]
    measured = [record for record in records if record.get("event") == "heldout" and record["masked_loss"] is not None]
    heldout = [(record["step"], record["masked_loss"]) for record in measured]
    if not train and not heldout:
        return ""
    curves = Curves(train, heldout, metrics.get("unigram", {}).get("masked_loss"))
    drawn = "".join(f'<div class="{name}">{loss_curve(curves, width=size[0], height=size[1])}</div>' for name, size in SIZES.items())
    rate = settings.get("masking", {}).get("mlm_probability")
    share = f"{rate:.0%} of the tokens" if isinstance(rate, float) else "tokens"
    caption = (
        f"The training loss masks {share}, drawn anew in every pass; held-out loss is measured on 15% masks that never change. "
        "So the two compare in their course, not in their height."
    )
    return f"<section><h2>Loss</h2><figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure></section>"


def results(metrics: Mapping[str, Any]) -> str:
    """Return the table of the model beside its baselines, and what the numbers mean."""
    if "masked_loss" not in metrics:
        return ""
    rows = []
    for key in ROWS:
        row = metrics if not key else metrics.get(key)
        if not row:
            continue
        values = [f"{row['masked_accuracy']:.1%}", amount(row["masked_perplexity"], ",.1f"), amount(row["masked_loss"], ".3f")]
        rows.append((NAMES[key], values, not key))
    documents = f" in {metrics['num_documents']:,} documents" if metrics.get("num_documents") else ""
    measured = f", measured with {metrics['precision']} products" if metrics.get("precision") else ""
    note = (
        f"All rows: the same {metrics['num_masked_tokens']:,} masked tokens{documents} that the model was not trained on{measured}. "
        "Accuracy: the share of them whose most probable prediction is the original token. Loss: the mean negative logarithm of the "
        "probability of the original token, in nats. Perplexity: its exponential; it does not compare with that of a model that reads "
        "from left to right, nor of one with another vocabulary."
    )
    return (
        f"<section><h2>On held-out text</h2>{numbers(('', 'accuracy', 'perplexity', 'loss'), rows)}"
        f'<p class="note">{escape(note)} Mask fingerprint: <code>{escape(str(metrics.get("masks_fingerprint")))}</code></p></section>'
    )


def find_examples(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return masked held-out sentences with what the finished model puts there; none where there is no model or no held-out text.

    They are kept in examples.json, and made again where the model is newer.
    """
    kept, weights = folder / EXAMPLES, folder / "model" / "model.safetensors"
    if kept.is_file() and not (weights.is_file() and weights.stat().st_mtime > kept.stat().st_mtime):
        found: list[dict[str, Any]] = read_json(kept)
        return found
    places = [folder / "corpus", *(Path(source) for source in settings.get("data", {}).get("sources", []))]
    heldout = next((place / "heldout.jsonl" for place in places if (place / "heldout.jsonl").is_file()), None)
    if heldout is None or not weights.is_file():
        return []
    from .examples import filled_by

    try:
        others = report_demo.beside(folder) if "words" in read_json(folder / report_demo.MARK) else {}
        made = filled_by(heldout, {**others, "candidates": weights.parent})
    except UnmaskError as error:  # the report is worth having without them
        log.warning("no examples in the report of '%s': %s", folder, error)
        return []
    kept.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return made


def examples(items: Iterable[Mapping[str, Any]]) -> str:
    """Return the filled sentences with a bar for each candidate."""
    cards = []
    for item in items:
        before, _, after = str(item["text"]).partition("[MASK]")
        candidates, answer = item["candidates"], str(item["answer"])
        bars, hit = [], False
        for candidate in candidates:
            score, token = min(max(float(candidate["score"]), 0.0), 1.0), str(candidate["token"])
            right = token.strip().lower() == answer.strip().lower()
            hit = hit or right
            bars.append(
                f'<li{" class=right" if right else ""}><span class="token">{escape(token)}</span>'
                f'<span class="bar"><i style="width:{score * 100:.1f}%"></i></span><span class="score">{percent(score)}</span></li>'
            )
        word = f'<mark class="{"hit" if hit else "miss"}">{escape(answer)}</mark>'
        cards.append(f"<article><p>{escape(before)}{word}{escape(after)}</p><ol>{''.join(bars)}</ol></article>")
    if not cards:
        return ""
    note = (
        "Sentences of held-out documents, chosen by a hash and not by how they came out. The marked word was hidden from the model; "
        "below are the first five whole words that it guesses. Filled: the word is among them."
    )
    return f'<section><h2>Filled masks</h2><p class="note">{note}</p><div class="cards">{"".join(cards)}</div></section>'


def sections(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings table by table, those of no table first."""
    plain = {key: value for key, value in settings.items() if not isinstance(value, Mapping)}
    return {**({"": plain} if plain else {}), **{key: dict(value) for key, value in settings.items() if isinstance(value, Mapping)}}


def corpus(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what packing the text reported, if it was packed into the run's own folder."""
    report = read_json(folder / "corpus" / "report.json")
    kept = ("documents", "train", "heldout", "seconds")
    return {key: value for key, value in report.items() if key in kept and isinstance(value, dict)}
