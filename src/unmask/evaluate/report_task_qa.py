"""What only the report of a model that answers questions has: by question word and length, kinds of errors, the worst answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..tasks.qa_scores import squad
from .page import numbers

WORST = 24


def qa(metrics: Mapping[str, Any], lines: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the sections that only answers have."""
    for title, name in (("By question word", "by_question_word"), ("By length of the right answer", "by_answer_length")):
        rows = [(one["group"], [f"{one['f1']:.3f}", f"{one['exact_match']:.3f}", f"{one['count']:,}"], False) for one in metrics[name]]
        yield f"<section><h2>{title}</h2>{numbers(('', 'F1', 'exact match', 'questions'), rows)}</section>"
    total = max(1, sum(metrics["errors"].values()))
    found = [(name, [f"{count:,}", f"{count / total:.1%}"], name == "right") for name, count in metrics["errors"].items()]
    table = numbers(("", "questions", "of all"), found)
    note = f'<p class="note">Scored by the rules of {escape(metrics["rules"])}; here as shares, where its script prints percent.</p>'
    yield f"<section><h2>Answers, right and wrong</h2>{table}{note}</section>"
    if "best_threshold" in metrics:
        best = metrics["best_threshold"]
        rows = [
            (name.replace("_", " "), [f"{best[name]:.4f}", f"{best[f'{name}_threshold']:.4g}"], False) for name in ("f1", "exact_match")
        ]
        note = "The highest that any threshold gives on these very questions: what a better one could bring, not what the model does."
        table = numbers(("", "highest", "from these log odds on"), rows)
        yield f'<details><summary><h2>Thresholds of "no answer"</h2></summary>{table}<p class="note">{note}</p></details>'
    yield worst(lines, "1.1" if metrics["rules"].endswith("1.1") else "2.0")


def worst(lines: Sequence[dict[str, Any]], version: str) -> str:
    """Return the questions that the model is most wrong about: no word right, and surest of it."""
    scored = [
        (squad(line["text"], line["gold"], version=version)[1], -line["score"], line) for line in lines if "gold" in line and "text" in line
    ]
    shown = []
    for _, _, line in sorted((one for one in scored if one[0] < 1), key=lambda one: one[:2])[:WORST]:
        said = f"{escape(line['text'])} ({line['score']:.0%})" if line["text"] else f"no answer ({line['score']:.0%})"
        right = " · ".join(map(escape, line["gold"])) or "no answer"
        rows = [
            f'<p dir="auto"><b>{escape(line["question"])}</b></p>',
            f'<p dir="auto"><span class="note">right</span> {right}</p>',
            around(line.get("gold_passage"), " class=hit"),
            f'<p dir="auto"><span class="note">predicted</span> {said}</p>',
            around(line.get("passage"), "") if line["text"] else "",
        ]
        shown.append(f"<article><div>{''.join(rows)}</div></article>")
    if not shown:
        return ""
    note = "Where the model is surest and wrong, with the text around the right answer (green) and around what was predicted."
    return f'<section><h2>Worst examples</h2><p class="note">{note}</p><div class="cards">{"".join(shown)}</div></section>'


def around(passage: Sequence[str] | None, kind: str) -> str:
    """Return an answer with the text on either side of it, as HTML."""
    if passage is None:
        return ""
    before, text, after = map(escape, passage)
    return f'<p class="note" dir="auto">… {before}<mark{kind}>{text}</mark>{after} …</p>'
