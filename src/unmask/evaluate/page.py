"""The frame of a page: style sheet and skeleton, for light and dark, narrow and wide, without scripts or addresses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #fff; --ink: #23262b; --quiet: #7d838c; --grid: #e6e4df;
  --line: #e2e0da; --accent: #2459c4; --accent-soft: #2459c41c; --warm: #c2610c; --good: #1c7c4a; --good-soft: #1c7c4a22; --heat: #dd7a1f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --card: #1e2126; --ink: #e4e6ea; --quiet: #9097a1; --grid: #2d3138;
    --line: #2f343b; --accent: #82adff; --accent-soft: #82adff22; --warm: #f0a259; --good: #62c993; --good-soft: #62c99326;
    --heat: #a8530f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.15; margin: 0 0 .25rem; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; letter-spacing: -.01em; }
h3 { font-size: .8rem; margin: 0 0 .25rem; color: var(--quiet); font-weight: 600; }
header p { margin: 0; color: var(--quiet); overflow-wrap: anywhere; } header b { color: var(--ink); font-weight: 600; }
section, details { margin-top: 2.25rem; }
.note, figcaption { color: var(--quiet); font-size: .875rem; margin: .5rem 0 .75rem; max-width: 52rem; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .75rem .9rem; }
dt { color: var(--quiet); font-size: .8rem; }
dd { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; font-weight: 650; letter-spacing: -.02em; line-height: 1.3; }
dd small { display: block; font-size: .75rem; font-weight: 400; color: var(--quiet); letter-spacing: 0; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; }
figure svg { width: 100%; height: auto; display: block; } figure text { font-family: inherit; } figcaption { margin: .5rem 0 0; }
.narrow { display: none; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.numbers th, .numbers td { padding: .55rem .9rem; text-align: right; white-space: nowrap; font-weight: 400; }
.numbers tr > :first-child { text-align: left; } .numbers thead th { color: var(--quiet); font-size: .8rem; white-space: normal; }
.numbers tbody tr { border-top: 1px solid var(--line); } .numbers .own > * { font-weight: 650; background: var(--accent-soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(19.5rem, 1fr)); gap: .75rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem .95rem; display: flex;
  flex-direction: column; justify-content: space-between; gap: .6rem; }
article p { margin: 0; overflow-wrap: anywhere; }
mark { color: inherit; background: none; border-bottom: 2px dashed var(--warm); padding: 0 .1em; font-weight: 600; }
mark.hit { border-bottom: 2px solid var(--good); background: var(--good-soft); border-radius: .2em .2em 0 0; }
ol { list-style: none; margin: 0; padding: 0; font-size: .875rem; font-variant-numeric: tabular-nums; }
li { display: grid; grid-template-columns: 6.5rem 1fr 2.6rem; align-items: center; gap: .5rem; line-height: 1.55; }
.token { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; } .score { text-align: right; color: var(--quiet); }
.bar { height: .55rem; border-radius: .3rem; background: var(--grid); overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); border-radius: .3rem; min-width: 2px; }
.right .token { font-weight: 650; color: var(--good); } .right .bar i { background: var(--good); }
summary { cursor: pointer; display: flex; align-items: baseline; gap: .6rem; border-bottom: 1px solid var(--line); }
summary::before { content: "▸"; color: var(--quiet); } details[open] summary::before { content: "▾"; }
summary::-webkit-details-marker { display: none; } summary h2 { margin-bottom: .4rem; } summary small { color: var(--quiet); }
details + details { margin-top: 1.25rem; }
.groups { columns: 21rem 2; column-gap: 2.5rem; margin-top: .9rem; } .groups > div { break-inside: avoid; margin-bottom: 1.1rem; }
.pairs { font-size: .875rem; } .pairs th, .pairs td { text-align: left; vertical-align: top; padding: .15rem 0; font-weight: 400; }
.pairs th { color: var(--quiet); padding-right: 1rem; width: 45%; } .pairs td { overflow-wrap: anywhere; }
.verdict { background: var(--card); border: 1px solid var(--line); border-left: .35rem solid var(--quiet); border-radius: .6rem;
  padding: .9rem 1.1rem; margin-top: 1.5rem; } .verdict b { font-size: 1.5rem; letter-spacing: -.02em; }
.verdict p { margin: .1rem 0 0; } .verdict.good { border-left-color: var(--good); } .verdict.good b { color: var(--good); }
.verdict.bad { border-left-color: var(--warm); } .verdict.bad b { color: var(--warm); }
.numbers .bars { width: 30%; min-width: 6rem; } .range { position: relative; display: block; height: .55rem; border-radius: .3rem;
  background: var(--grid); } .range i { position: absolute; top: 0; height: 100%; border-radius: .3rem; background: var(--quiet);
  min-width: 3px; } .range.good i { background: var(--good); } .range.bad i { background: var(--warm); }
.range::after { content: ""; position: absolute; left: 50%; top: -.2rem; bottom: -.2rem; width: 1px; background: var(--ink); }
.heat { line-height: 1.9; overflow-wrap: anywhere; } .heat span { border-radius: .25em .25em 0 0; padding: .12em 0;
  border-bottom: 2px solid var(--heat); background: color-mix(in srgb, var(--heat) var(--h), transparent); }
.legend { display: inline-block; vertical-align: middle; width: 8rem; height: .7rem; border-radius: .3rem; margin: 0 .4rem;
  background: linear-gradient(to right, transparent, color-mix(in srgb, var(--heat) 75%, transparent)); }
.slices h3 { margin-top: 1.25rem; }
.who { grid-template-columns: 1.2rem 6.5rem 1fr 2.6rem; } .who b { color: var(--quiet); font-weight: 600; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .8rem; }
@media (max-width: 40rem) {
  main { padding: 1.5rem .9rem 3rem; } h1 { font-size: 1.6rem; } .wide { display: none; } .narrow { display: block; }
  figure { padding: .6rem; } .numbers tr > :first-child { white-space: normal; min-width: 6.5rem; } .numbers .side { display: none; }
  .figures { grid-template-columns: 1fr 1fr; } .numbers th, .numbers td { padding: .5rem .5rem; font-size: .9rem; }
  .cards { grid-template-columns: 1fr; } }
@media print { details > * { display: block; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return an HTML page of parts that are HTML already; the title is escaped here. Nothing in it is fetched, and no script runs."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n"
        "<footer>Made by Unmask from the files beside it.</footer>\n</main></body></html>\n"
    )


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; an empty dict where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}; remove it, and make the report again") from None


def cells(shown: Iterable[tuple[str, str, str]]) -> str:
    """Return the few numbers that say most, large: (name, value, note) each."""
    found = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>" for name, value, note in shown]
    return f'<dl class="figures">{"".join(found)}</dl>' if found else ""


def numbers(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]]) -> str:
    """Return a table of numbers: the heads of its columns, then (name, values, whether the row stands out) each."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = ""
    for name, values, own in rows:
        shown = "".join(f"<td>{escape(value)}</td>" for value in values)
        body += f'<tr{" class=own" if own else ""}><th scope="row">{escape(name)}</th>{shown}</tr>'
    return f'<div class="scroll"><table class="numbers"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def percent(score: float) -> str:
    """Return a probability as a reader wants it."""
    return "&lt;1%" if 0 < score < 0.005 else f"{score:.0%}"


def tables(title: str, source: str, groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a part of the page that opens on a click: names and values, group by group."""
    parts = []
    for name, values in groups.items():
        rows = "".join(f"<tr><th scope=row>{escape(str(key))}</th><td>{escape(shown(value))}</td></tr>" for key, value in values.items())
        if rows:
            parts.append(f"<div>{f'<h3>{escape(name)}</h3>' if name else ''}<table class=pairs>{rows}</table></div>")
    if not parts:
        return ""
    summary = f"<summary><h2>{escape(title)}</h2><small>{escape(source)}</small></summary>"
    return f'<details>{summary}<div class="groups">{"".join(parts)}</div></details>'


def shown(value: Any) -> str:
    """Return a value as a reader wants it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value)) or "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
