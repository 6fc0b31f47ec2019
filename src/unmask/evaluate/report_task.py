"""The report of a fine-tuned model: its numbers with intervals, confusions, how sure it is, and the items that it gets most wrong."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..tasks.findings import Finding
from ..train.runlog import LOG, duration
from .figure import ACCENT, INK, QUIET, draw, reliability_curve, thin
from .page import cells, numbers, read_json, tables
from .report_run import read_log
from .report_task_ner import ner
from .report_task_qa import qa

MOST_LABELS = 30  # of a confusion table; of more, the pairs that are most often confused are listed
PAIRS, WORST = 20, 24
SHARES = ("accuracy", "f1", "precision", "recall", "match", "auroc", "error", "loss", "correlation")

# by task: the sections that only it has, from (metrics, predictions); a task adds its own
SECTIONS: dict[str, Callable[[Mapping[str, Any], list[dict[str, Any]]], Iterator[str]]] = {}


def is_task(folder: Path) -> bool:
    """Return whether a folder is that of a fine-tuned model's run or evaluation."""
    return "task" in read_json(folder / "metrics.json") or task_of_run(folder) is not None


def task_of_run(folder: Path) -> str | None:
    """Return the task that a run fine-tunes for; None for another run, or for what is none."""
    path = folder / "config.toml"
    task = tomllib.loads(path.read_text(encoding="utf-8")).get("task") if path.is_file() else None
    return task if isinstance(task, str) else None


def parts(folder: Path) -> list[str]:
    """Return the sections of the page."""
    metrics = read_json(folder / "metrics.json")
    if not metrics:
        title = f"<h1>{escape(folder.resolve().name)}</h1><p>{escape(str(task_of_run(folder)))}</p>"
        return [f'<header>{title}<p class="note">This run has not ended: it has no numbers yet.</p></header>', losses(folder)]
    lines = read_predictions(folder / "predictions.jsonl")
    own = SECTIONS.get(metrics["task"]) if metrics["num_examples"] else None  # nothing was measured
    return [
        heading(folder, metrics),
        figures(metrics),
        seeds(metrics),
        course(folder, metrics),
        results(metrics),
        *(own(metrics, lines) if own is not None else ()),
        findings(metrics),
        tables("Settings", "metrics.json", {"": metrics.get("settings", {})}),
    ]


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl; none where there is no such file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def heading(folder: Path, metrics: Mapping[str, Any]) -> str:
    """Return the headline: what was measured on what."""
    training = metrics.get("training")
    what = f"{metrics['num_examples']:,} examples"
    if training:
        what = f"trained on <b>{training['num_train']:,}</b> examples, measured on <b>{training['num_dev']:,}</b> held-out ones"
    return f"<header><h1>{escape(folder.resolve().name)}</h1><p>{escape(metrics['task'])}: {what}</p></header>"


def figures(metrics: Mapping[str, Any]) -> str:
    """Return the few numbers that say most: the one that the checkpoint was chosen by first."""
    names = [name for name, entry in metrics.items() if isinstance(entry, Mapping) and entry.get("value") is not None]
    best = metrics.get("best")
    chosen = [*([best] if best in names else []), *(name for name in names if name != best)][:4]
    shown = [(name.replace("_", " "), f"{metrics[name]['value']:.3f}", between(metrics[name])) for name in chosen]
    training = metrics.get("training", {})
    if training.get("seconds"):
        shown.append(("training time", duration(training["seconds"]), f"{training['last_step']:,} steps, kept: {training['step']:,}"))
    return cells(shown)


def between(entry: Mapping[str, Any]) -> str:
    """Return an interval as it is shown."""
    return "no interval" if entry["low"] is None else f"{entry['low']:.3f} to {entry['high']:.3f}"


def seeds(metrics: Mapping[str, Any]) -> str:
    """Return how far the runs of several seeds differ."""
    found = metrics.get("seeds")
    if not found:
        return ""
    rows = []
    for name, entry in found["numbers"].items():
        if entry["mean"] is not None:
            low = "–" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
            std = "–" if entry["std"] is None else f"{entry['std']:.4f}"
            rows.append((name, [f"{entry['mean']:.4f}", std, low], name == found.get("metric", metrics.get("best"))))
    kept = "its numbers below are those of the best of several, and a little too good for that reason"
    note = (
        f"{len(found['values'])} runs that differ in their seed (the new head, the order of examples, dropout). The interval is that of "
        f"their mean. The model that is kept is that of seed {found['best_seed']}; "
        f"{kept if 'training' in metrics else 'it was chosen on other examples, and the numbers below are its own'}."
    )
    table = numbers(("", "mean", "std", "95% interval"), rows)
    return f'<section><h2>Over seeds</h2>{table}<p class="note">{escape(note)}</p></section>'


def course(folder: Path, metrics: Mapping[str, Any]) -> str:
    """Return how the number that the checkpoint was chosen by went in training."""
    name = metrics.get("best")
    if name is None:
        return ""
    records = read_log(folder / LOG) if (folder / LOG).is_file() else []
    points = [(record["step"], record[name]) for record in records if record.get("event") == "heldout" and record.get(name) is not None]
    steps = steps_of(records)
    if len(points) < 2 or not steps:
        return ""

    def plot(figure: Any, axes: Any) -> None:
        plot_losses(axes, steps)
        axes.plot([], [], color=ACCENT, marker="o", markersize=4.5, label=name.replace("_", " "))
        other = axes.twinx()
        other.plot(*zip(*points, strict=True), color=ACCENT, linewidth=2.2, marker="o", markersize=4.5)
        other.set_ylabel(name.replace("_", " "), color=ACCENT)
        other.tick_params(colors=ACCENT)
        for side in other.spines.values():
            side.set_visible(False)

    return drawn(plot, f"{name} over the steps of the run")


def losses(folder: Path) -> str:
    """Return how the loss of a run that has not ended went."""
    steps = steps_of(read_log(folder / LOG)) if (folder / LOG).is_file() else []
    return drawn(lambda figure, axes: plot_losses(axes, steps), "loss over the steps of the run") if steps else ""


def steps_of(records: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Return (step, training loss) of a log."""
    return [(record["step"], record["loss"]) for record in records if "event" not in record and record.get("loss") is not None]


def plot_losses(axes: Any, steps: list[tuple[int, float]]) -> None:
    """Draw the training loss."""
    axes.plot(*zip(*thin(steps), strict=True), color=QUIET, linewidth=1.4, label="training loss")
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("training loss", color=INK)


def drawn(plot: Callable[[Any, Any], None], label: str) -> str:
    """Return the section with a figure, once for wide and once for narrow pages."""
    both = "".join(
        f'<div class="{kind}">{draw(plot, label, width=width, height=height)}</div>'
        for kind, width, height in (("wide", 9.6, 3.6), ("narrow", 4.6, 3.4))
    )
    return f"<section><h2>Training</h2><figure>{both}</figure></section>"


def results(metrics: Mapping[str, Any]) -> str:
    """Return the table of all numbers."""
    untrained = metrics.get("training", {}).get("untrained", {})
    rows = []
    for name, entry in metrics.items():
        if isinstance(entry, Mapping) and "value" in entry:
            value = "–" if entry["value"] is None else f"{entry['value']:.4f}"
            before = untrained.get(name)
            rows.append((
                name.replace("_", " "), [value, between(entry), f"{entry['count']:,}", "–" if before is None else f"{before:.4f}"],
                name == metrics.get("best"),
            ))  # fmt: skip
    if not rows:
        return ""
    how = metrics["interval"]
    note = f"Intervals of {how['level']:.0%}: {how['method']}, {how['resamples']:,} resamples." if not how["why_none"] else how["why_none"]
    table = numbers(("", "value", "95% interval", "count", "before training"), rows)
    return f'<section><h2>On held-out examples</h2>{table}<p class="note">{escape(note)}</p></section>'


def findings(metrics: Mapping[str, Any]) -> str:
    """Return what was found in the data."""
    found = enumerate((Finding(**entry) for entry in metrics.get("findings", [])), start=1)
    rows = {f"{one.level} {number}": str(one).removeprefix(f"{one.level}: ") for number, one in found}
    return tables("Found in the data", "unmask doctor", {"": rows})


# classification


def classify(metrics: Mapping[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the sections that only classification has."""
    if "confusion" in metrics:
        yield confusion(metrics["labels"], metrics["confusion"])
    if "per_label" in metrics:
        rows = [
            (entry["label"], [f"{entry[name]:.3f}" for name in ("f1", "precision", "recall")] + [f"{entry['count']:,}"], False)
            for entry in sorted(metrics["per_label"], key=lambda entry: entry["f1"])
        ]
        table = numbers(("", "F1", "precision", "recall", "examples"), rows)
        yield f"<details><summary><h2>Label by label</h2><small>the hardest first</small></summary>{table}</details>"
    if metrics.get("reliability"):
        drawn = reliability_curve(metrics["reliability"], width=4.6, height=3.4)
        rows = [
            (
                f"{entry['coverage']:.0%}",
                ["–" if entry[name] is None else f"{entry[name]:.3f}" for name in ("accuracy", "confidence")],
                False,
            )
            for entry in metrics["abstain"]
        ]
        table = numbers(("answered", "of them right", "from this confidence on"), rows)
        note = "If the model answers only where it is surest, and abstains from the rest."
        yield (
            f'<section><h2>As sure as right</h2><div class="cards"><figure>{drawn}</figure><div>{table}'
            f'<p class="note">{escape(note)}</p></div></div></section>'
        )
    yield worst(lines)


def confusion(labels: list[str], table: list[list[int]]) -> str:
    """Return what was taken for what: a table, or of many labels a list of the pairs that are confused most."""
    if len(labels) > MOST_LABELS:
        pairs = sorted(
            (
                (count, labels[row], labels[column])
                for row, counts in enumerate(table)
                for column, count in enumerate(counts)
                if row != column
            ),
            reverse=True,
        )[:PAIRS]
        rows = [(f"{gold} taken for {said}", [f"{count:,}"], False) for count, gold, said in pairs if count]
        return f"<section><h2>Most confused</h2>{numbers(('', 'times'), rows)}</section>"
    body = ""
    for row, (label, counts) in enumerate(zip(labels, table, strict=True)):
        total = max(1, sum(counts))
        shown = "".join(
            f'<td style="background:color-mix(in srgb, var(--{"good" if row == column else "warm"}) {60 * count / total:.0f}%, '
            f'transparent)">{count:,}</td>'
            for column, count in enumerate(counts)
        )
        body += f'<tr><th scope="row">{escape(label)}</th>{shown}</tr>'
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    return (
        '<section><h2>Confusions</h2><div class="scroll"><table class="numbers"><thead><tr><th>right \\ predicted</th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def worst(lines: list[dict[str, Any]]) -> str:
    """Return the items that the model is most wrong about: those whose right label it finds least likely beside the predicted one."""

    def wrongness(line: dict[str, Any]) -> float:
        if "value" in line:
            return abs(line["value"] - line["gold"])
        gold, said, scores = set(line["gold"]), set(line["labels"]), line["scores"]
        if gold == said:
            return -1.0
        return max([scores[label] for label in said - gold] + [1 - scores[label] for label in gold - said])

    found = sorted((line for line in lines if "gold" in line), key=wrongness, reverse=True)[:WORST]
    found = [line for line in found if wrongness(line) > 0]
    cards = []
    for line in found:
        text = line["text"] + (f" ‖ {line['pair']}" if "pair" in line else "")
        text = text if len(text) <= 400 else f"{text[:400]} …"
        if "value" in line:
            bars = f"<p>right: {line['gold']:g} · predicted: {line['value']:.4g}</p>"
        else:
            top = dict(sorted(line["scores"].items(), key=lambda pair: -pair[1])[:3])
            top.update({label: line["scores"][label] for label in line["gold"]})
            bars = (
                "<ol>"
                + "".join(
                    f'<li{" class=right" if label in line["gold"] else ""}><span class="token">{escape(label)}</span><span class="bar">'
                    f'<i style="width:{score * 100:.1f}%"></i></span><span class="score">{score:.0%}</span></li>'
                    for label, score in top.items()
                )
                + "</ol>"
            )
        cards.append(f'<article><p dir="auto">{escape(text)}</p>{bars}</article>')
    if not cards:
        return ""
    note = "Where the model is surest and wrong. The right labels are green. Some of these may be mistakes of the data."
    return f'<section><h2>Worst examples</h2><p class="note">{note}</p><div class="cards">{"".join(cards)}</div></section>'


SECTIONS["classify"] = classify
SECTIONS["ner"] = ner
SECTIONS["qa"] = qa
