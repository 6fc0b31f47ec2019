"""The report of a comparison: the verdict, the differences with their intervals, and the tokens on which the two models part."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from .page import cells, percent, read_json, tables
from .paired import FLIPS, KIND, KINDS, LOWER_IS_BETTER
from .report_evaluation import METRICS, SHOWN, definitions, read_lines
from .report_evaluation import shown as number

COUNT = 12  # flips of a kind
COLOURS = {"better": "good", "worse": "bad"}
TITLES = {"right_to_wrong": "A right, B wrong", "wrong_to_right": "A wrong, B right"}


def is_comparison(folder: Path) -> bool:
    """Return whether a folder is that of a comparison."""
    return (folder / METRICS).is_file() and (folder / FLIPS).is_file() and read_json(folder / METRICS).get("kind") == KIND


def parts(folder: Path) -> list[str]:
    """Return the sections of the page of a comparison, from what it has written down."""
    found = read_json(folder / METRICS)
    colour, word = COLOURS.get(found["verdict"], ""), said(found["verdict"])
    precisions = found["settings"].get("precision", ["", ""])
    names = "".join(
        f"<p><b>{side.upper()}</b> {escape(', '.join(filter(None, (found[side], precision))))}</p>"
        for side, precision in zip("ab", precisions, strict=True)
    )
    return [
        f"<header><h1>{escape(folder.resolve().name)}</h1>{names}</header>",
        f'<div class="verdict {colour}"><b>B is {word}</b><p>{escape(found["reason"])}</p></div>',
        "".join(f'<p class="note">{escape(note)}</p>' for note in found["notes"]),
        figures(found),
        metrics(found),
        slices(found),
        *(flips(folder, found, kind) for kind in KINDS),
        tables("Definitions", METRICS, definitions(found)),
        tables("Settings", METRICS, {"": found["settings"]}),
    ]


def said(verdict: str) -> str:
    """Return a verdict as the end of a sentence that begins with B is."""
    return {"better": "better", "worse": "worse", "equivalent": "equivalent to A"}.get(verdict, "better or worse: cannot tell")


def figures(found: Mapping[str, Any]) -> str:
    """Return the few numbers that say most."""
    metric, test = found["metric"], found["mcnemar"]
    one = found["metrics"][metric]
    return cells(
        [
            (metric.replace("_", " "), signed(metric, one["difference"]), f"from {number(metric, one['a'])} to {number(metric, one['b'])}"),
            (f"masked {found['unit']}s", f"{one['count']:,}", f"in {one['num_documents']:,} documents"),
            ("right in both", f"{test['num_both']:,}", f"in neither: {test['num_neither']:,}"),
            ("only A right", f"{test['num_only_a']:,}", "right to wrong"),
            ("only B right", f"{test['num_only_b']:,}", f"wrong to right; McNemar p = {test['p_value']:.2g}"),
        ]
    )


def signed(name: str, value: float | None) -> str:
    """Return a difference with its sign; of shares in percentage points."""
    if value is None:
        return "–"
    text = number(name, abs(value)).replace("%", " pp")
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{text}"


def bar(name: str, one: Mapping[str, Any], reach: float) -> str:
    """Return an interval as a bar about the line of no difference, `reach` to either side."""
    if one["low"] is None:
        return f"<small>{escape(one.get('why', ''))}</small>"
    low, high = one["low"], one["high"]
    colour = "" if low <= 0 <= high else "good" if (high < 0) == (name in LOWER_IS_BETTER) else "bad"
    left, right = (50 + 48 * max(-1.0, min(1.0, edge / reach if reach else 0.0)) for edge in (low, high))
    return f'<span class="range {colour}"><i style="left:{left:.1f}%;width:{right - left:.1f}%"></i></span>'


def row(name: str, metric: str, one: Mapping[str, Any], reach: float, *, own: bool = False) -> str:
    """Return a row of a table of differences."""
    bounds = "–" if one["low"] is None else f"{signed(metric, one['low'])} to {signed(metric, one['high'])}"
    sides = "".join(f'<td class="side">{escape(number(metric, one[side]))}</td>' for side in ("a", "b"))
    found = f'<td>{escape(signed(metric, one["difference"]))}</td><td class="bars">{bar(metric, one, reach)}</td><td>{escape(bounds)}</td>'
    start = f'<tr{" class=own" if own else ""}><th scope="row">{escape(name)}</th>'
    return f"{start}{sides}{found}<td>{one['count']:,}</td></tr>"


def table(head: str, rows: Iterable[str]) -> str:
    """Return a table of differences."""
    names = "".join(f"<th>{name}</th>" for name in ("B − A", "", "95% interval", "count"))
    top = f'<thead><tr><th>{escape(head)}</th><th class="side">A</th><th class="side">B</th>{names}</tr></thead>'
    return f'<div class="scroll"><table class="numbers">{top}<tbody>{"".join(rows)}</tbody></table></div>'


def furthest(rows: Iterable[Mapping[str, Any]]) -> float:
    """Return how far from zero the intervals of some rows reach."""
    return max((abs(edge) for one in rows for edge in (one["low"], one["high"]) if edge is not None), default=0.0)


def metrics(found: Mapping[str, Any]) -> str:
    """Return the differences of all metrics."""
    rows = [row(name.replace("_", " "), name, one, furthest([one]), own=name == found["metric"]) for name, one in found["metrics"].items()]
    settings = found["settings"]
    note = (
        f"Both models saw the same {found['unit']}s hidden. Intervals: 95%, paired bootstrap over documents. A bar is green where B is "
        "surely better, orange where it is surely worse, grey where its interval holds the middle line, which is no difference; each bar "
        "has its own scale. "
        f"Margin: {found['margin']:g} {found['margin_unit']}. pp: percentage points."
    )
    code = f"<code>{escape(str(settings.get('masks_fingerprint')))}</code>"
    return f'<section><h2>Differences</h2>{table("", rows)}<p class="note">{escape(note)} Mask fingerprint: {code}</p></section>'


def slices(found: Mapping[str, Any]) -> str:
    """Return the differences of the loss in each slice, all bars of a table on one scale."""
    parts = []
    for dimension, values in found["slices"].items():
        metric = next(name for name in values[0] if name != "name")
        reach = furthest(value[metric] for value in values)
        rows = [row(str(value["name"]), metric, value[metric], reach) for value in values[:SHOWN]]
        more = f'<p class="note">{len(values) - SHOWN:,} more are in {METRICS}.</p>' if len(values) > SHOWN else ""
        parts.append(f"<h3>{escape(dimension.replace('_', ' '))}</h3>{table(metric.replace('_', ' '), rows)}{more}")
    return f'<section class="slices"><h2>Slices</h2>{"".join(parts)}</section>' if parts else ""


def flips(folder: Path, found: Mapping[str, Any], kind: str) -> str:
    """Return the tokens that one model gets right and the other wrong whose probability changed most."""

    def change(flip: Mapping[str, Any]) -> float:
        return abs(math.log(max(flip["b"]["probability"], 1e-300)) - math.log(max(flip["a"]["probability"], 1e-300)))

    def wanted() -> Iterator[dict[str, Any]]:
        return (flip for flip in read_lines(folder / FLIPS) if flip["kind"] == kind)

    cards = [card(flip) for flip in heapq.nlargest(COUNT, wanted(), key=change)]
    count = found["num_flips"][kind]
    if not cards:
        return ""
    note = f"{count:,} {found['unit']}s. " + (f"Shown are the {len(cards)} whose probability changed most; " if count > len(cards) else "")
    note += f"{FLIPS} has them all. Other {found['unit']}s of a sentence may have been hidden too. Below: what each model put there first."
    return f'<section><h2>{TITLES[kind]}</h2><p class="note">{escape(note)}</p><div class="cards">{"".join(cards)}</div></section>'


def card(flip: Mapping[str, Any]) -> str:
    """Return a flipped token in its sentence, with what each model put there."""
    right = "a" if flip["kind"] == KINDS[0] else "b"
    bars = []
    for name in ("a", "b"):
        score = min(max(float(flip[name]["confidence"]), 0.0), 1.0)
        bars.append(
            f'<li class="who{" right" if name == right else ""}"><b>{name.upper()}</b><span class="token" dir="auto">'
            f'{escape(str(flip[name]["predicted"]))}</span><span class="bar"><i style="width:{score * 100:.1f}%"></i></span>'
            f'<span class="score">{percent(score)}</span></li>'
        )
    word = f'<mark class="hit">{escape(str(flip["token"]))}</mark>'
    text = f'<p dir="auto">{escape(flip["before"])}{word}{escape(flip["after"])}</p>'
    return f"<article>{text}<ol>{''.join(bars)}</ol></article>"
