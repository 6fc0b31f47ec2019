"""Tests with a blank: does the model find the right answer, of any number of pieces? A user's own sentences, and LAMA's facts.

A blank's rank is that of its best answer. A single piece has its rank among the ordinary tokens of the vocabulary; an answer of k pieces
has the worst rank of a piece when k masks are filled left to right with what is right. So the precision at 1 counts the answers that greedy
filling gives. That there are k pieces is given away: numbers are also shown apart for one piece and for several.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.over import Place
from ..data.rows import Row, check_columns, read_rows
from ..errors import ConfigError, DataError
from ..infer.targets import Answered, Question, TargetScore, mask_marker, score_targets
from .evaluation import load
from .items import MAX_ITEMS, Outcome, about_interval, about_items, category, check_output, names, numbers, precision_name, sliced
from .stats import RESAMPLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFINITIONS = {
    "precision_at_1": "share of blanks whose rank is 1: the rank of the best answer, of several pieces that of the worst of its pieces",
    "precision_at_5": "share of blanks whose rank is 5 or better",
    "precision_at_10": "share of blanks whose rank is 10 or better",
    "mean_reciprocal_rank": "mean over blanks of 1 / rank",
    "mean_log_prob": "mean over blanks of the log-probability of the likeliest right answer, in nats, its number of pieces given",
    "mean_log_prob_per_word": "sum of these log-probabilities over the words between spaces of the answers, in nats",
    "mean_log_prob_per_byte": "sum of these log-probabilities over the UTF-8 bytes of the answers, in nats",
    "candidate_accuracy": "share of blanks at which a right answer is more probable, as a whole, than every other candidate; a tie is half",
}
TOP = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class Blank:
    """A text with one mask, the answers that are right, and the alternatives, if any, to choose from."""

    where: str
    text: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...] = ()
    categories: Mapping[str, str] = field(default_factory=dict)


def cloze(
    model: str | Path | PreTrainedModel,
    sources: str | Path | Sequence[str | Path],
    *,
    tokenizer: Any = None,
    template: str = "{text}",
    answer_column: str = "answer",
    candidates_column: str | None = None,
    slice_by: str | None = None,
    output: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    max_length: int | None = None,
    precision: str = "fp32",
    device: str = "auto",
    batch_tokens: int | None = None,
    format: str | None = None,
    encoding: str = "utf-8",
    progress: Callable[[int, int], None] | None = None,
    on: Place | None = None,
) -> Outcome:
    """Return how well a model fills the blanks of CSV, TSV or JSONL files that name the right answers.

    `template` says how a row becomes the text, its columns in braces. Several right answers are a list in JSONL, or parted by "|"; a column
    "answers" is read where there is no "answer". `candidates_column` names one or more columns (parted by commas) of alternatives, in
    lists or parted by "|"; "candidates" is read where it is there. `output` is a folder for metrics.json and predictions.jsonl.
    A test is held in memory: more than MAX_ITEMS (300,000) blanks are refused.
    Raises: DataError, ConfigError, CheckpointError, TokenizerError.
    """
    folder = check_output(output, resamples)
    rows = read_rows(sources, format=format, encoding=encoding, most=MAX_ITEMS)
    columns = {name for row in rows for name in row.values}
    wanted = re.findall(r"\{([^{}]+)\}", template)
    if not wanted:
        raise ConfigError(f"the template {template!r} names no column; write them in braces, such as '{{text}}' or '{{context}} [MASK].'")
    if answer_column == "answer" and "answer" not in columns and "answers" in columns:
        answer_column = "answers"
    if candidates_column is None and "candidates" in columns:
        candidates_column = "candidates"
    alternatives = [name.strip() for name in candidates_column.split(",")] if candidates_column else []
    for needed, flag in ((wanted, "--template"), ([answer_column], "--answer-column"), (alternatives, "--candidates-column")):
        check_columns(rows, needed, flag)
    check_columns(rows, [slice_by] if slice_by else [], "--slice-by")

    def blank(row: Row) -> Blank:
        text = re.sub(r"\{([^{}]+)\}", lambda match: category(row.values, match[1], none="").strip(), template)
        others = tuple(one for name in alternatives for one in _several(row.values.get(name), row.where))
        categories = {slice_by: category(row.values, slice_by)} if slice_by else {}
        return Blank(row.where, text, _several(row.values.get(answer_column), row.where), others, categories)

    name, engine, tokenizer = load(model, tokenizer, precision=precision, device=device, batch_tokens=batch_tokens, on=on)
    predictions = list(_counted(ask(engine, tokenizer, map(blank, rows), max_length=max_length), len(rows), progress))
    found = _metrics(predictions, resamples=resamples, seed=seed)
    found = {"test": "cloze", "model": name, "files": names(sources), **found, "settings": {
        "template": template, "answer_column": answer_column, "candidates_column": candidates_column, "precision": precision_name(engine),
    }}  # fmt: skip
    return _done(found, predictions, folder)


def facts(
    model: str | Path | PreTrainedModel,
    sources: str | Path | Sequence[str | Path],
    *,
    tokenizer: Any = None,
    multi_piece: bool = False,
    output: str | Path | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    max_length: int | None = None,
    precision: str = "fp32",
    device: str = "auto",
    batch_tokens: int | None = None,
    encoding: str = "utf-8",
    progress: Callable[[int, int], None] | None = None,
    on: Place | None = None,
) -> Outcome:
    """Return how many facts of LAMA's files (JSONL with masked_sentences, obj_label and maybe predicate_id) a model knows.

    A fact whose label is not a single piece of the vocabulary is left out and counted, as LAMA does; with `multi_piece` it is scored
    exactly, as in `cloze`. Of several masked sentences the first with one mask is asked. Labels compete with the whole vocabulary, where
    LAMA's authors took what several models had in common. `macro_precision_at_k` is the mean over relations, the number in their paper.
    Source: Petroni et al. 2019.
    Raises: DataError, CheckpointError, TokenizerError.
    """
    folder = check_output(output, resamples)
    rows = read_rows(sources, format=None, encoding=encoding, most=MAX_ITEMS)
    columns = {name for row in rows for name in row.values}
    sentences = next((name for name in ("masked_sentences", "masked_sentence") if name in columns), "masked_sentences")
    for needed in (sentences, "obj_label"):
        if needed not in columns:
            raise DataError(
                f"{', '.join(names(sources))}: there is no '{needed}'; a fact of LAMA's has masked_sentences (or masked_sentence) and "
                f"obj_label, and these have: {', '.join(columns)}; other texts with blanks are a cloze test (--cloze)"
            )
    name, engine, tokenizer = load(model, tokenizer, precision=precision, device=device, batch_tokens=batch_tokens, on=on)
    marker = mask_marker(tokenizer)
    by_file = "predicate_id" not in columns

    def blank(row: Row) -> Blank:
        texts = _several(row.values.get(sentences), row.where, split=False) or ("",)
        text = next((one for one in texts if len(marker.findall(one)) == 1), texts[0])
        relation = row.file if by_file else category(row.values, "predicate_id")
        return Blank(row.where, text, _several(row.values.get("obj_label"), row.where, split=False), (), {"relation": relation})

    answered = ask(engine, tokenizer, map(blank, rows), max_length=max_length, multi_piece=multi_piece)
    predictions = list(_counted(answered, len(rows), progress))
    for row, line in zip(rows, predictions, strict=True):
        line |= {key: row.values[key] for key in ("uuid", "sub_label") if key in row.values}
    found = _metrics(predictions, resamples=resamples, seed=seed)
    relations = found.get("slices", {}).get("relation", [])
    for k in TOP:
        known = [one[f"precision_at_{k}"]["value"] for one in relations]
        found[f"macro_precision_at_{k}"] = {"value": float(np.mean(known)) if known else None, "count": len(known)}
    found = {"test": "facts", "model": name, "files": names(sources), **found, "settings": {
        "multi_piece": multi_piece, "precision": precision_name(engine), "relation": "the file's name" if by_file else "predicate_id",
    }}  # fmt: skip
    return _done(found, predictions, folder)


def ask(
    engine: Any, tokenizer: Any, blanks: Iterable[Blank], *, max_length: int | None = None, multi_piece: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield what predictions.jsonl holds of each blank, in order; one that cannot be asked says why in `error` and `reason`."""
    waiting: deque[Blank] = deque()

    def questions() -> Iterator[Question]:
        for blank in blanks:
            waiting.append(blank)
            others = [one for one in blank.candidates if one not in blank.answers]
            yield Question(blank.text, list(dict.fromkeys([*blank.answers, *others])) if blank.answers else [])

    for answered in score_targets(engine, tokenizer, questions(), max_length=max_length):
        yield _line(waiting.popleft(), answered, tokenizer, multi_piece)


def _line(blank: Blank, answered: Answered, tokenizer: Any, multi_piece: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"id": blank.where, "text": blank.text, "answers": list(blank.answers), "categories": dict(blank.categories)}

    def excluded(reason: str, error: str) -> dict[str, Any]:
        return {**line, "reason": reason, "error": error}

    if answered.error is not None:
        return excluded(answered.reason or "", answered.error)
    if not blank.answers:
        return excluded("no answer", "the blank has no answer; give one")
    scores = {score.target: score for score in answered.targets}
    right = [scores[answer] for answer in dict.fromkeys(blank.answers)]
    known = [score for score in right if score.error is None]
    if known and not multi_piece:
        known = [score for score in known if score.num_pieces == 1]
        if not known:
            pieces = " ".join(right[0].pieces)
            return excluded(
                "not one piece of the vocabulary",
                f"{right[0].target!r} is not one piece of the vocabulary but {right[0].num_pieces} ({pieces}); --multi-piece scores it",
            )
    if not known:
        return excluded(right[0].reason or "", right[0].error or "")
    best = max(known, key=lambda score: score.log_prob)
    line |= {
        "answer": best.target, "pieces": list(best.pieces), "log_prob": best.log_prob, "piece_log_probs": list(best.log_probs),
        "rank": min(score.rank or 0 for score in known), "predicted": _joined(tokenizer, best.predicted),
        "num_unscored_answers": len(right) - len(known), "truncated": answered.truncated,
    }  # fmt: skip
    return line | _choice(blank, known, scores) if blank.candidates else line


def _choice(blank: Blank, known: list[TargetScore], scores: Mapping[str, TargetScore]) -> dict[str, Any]:
    """Return which candidate is chosen. Without the score of every candidate there is no choice: it would be among fewer."""
    others = [scores[one] for one in dict.fromkeys(blank.candidates) if one not in blank.answers]
    failed = next((score.error for score in others if score.error is not None), None)
    if failed is None and not others:
        failed = "there is nothing to choose from: all candidates are right answers"
    if failed is not None:
        return {"choice_error": failed}
    right, wrong = max(score.log_prob for score in known), max(score.log_prob for score in others)
    return {
        "candidates": {score.target: score.log_prob for score in [*known, *others]},
        "chosen": max([*known, *others], key=lambda score: score.log_prob).target,
        "choice": 1.0 if right > wrong else 0.5 if right == wrong else 0.0,
        "chance": len(known) / (len(known) + len(others)),
    }


def _metrics(predictions: list[dict[str, Any]], *, resamples: int, seed: int) -> dict[str, Any]:
    scored = [line for line in predictions if "error" not in line]
    counts = about_items(predictions)
    if not scored:
        reasons = "; ".join(f"{count:,} × {reason}" for reason, count in counts["excluded"].items())
        raise DataError(f"none of {len(predictions):,} items can be scored ({reasons}): the first says: {predictions[0]['error']}")
    one = np.ones(len(scored))
    ranks, log_probs = (np.array([line[name] for line in scored], dtype=np.float64) for name in ("rank", "log_prob"))
    words, sizes = (np.array([size(line["answer"]) for line in scored], dtype=np.float64) for size in (_num_words, _num_bytes))
    ratios = {f"precision_at_{k}": ((ranks <= k) * one, one) for k in TOP}
    ratios |= {
        "mean_reciprocal_rank": (1 / ranks, one), "mean_log_prob": (log_probs, one),
        "mean_log_prob_per_word": (log_probs, words), "mean_log_prob_per_byte": (log_probs, sizes),
    }  # fmt: skip
    found: dict[str, Any] = {}
    chosen = np.array(["choice" in line for line in scored], dtype=np.float64)
    if any("choice" in line or "choice_error" in line for line in scored):
        ratios["candidate_accuracy"] = (np.array([line.get("choice", 0.0) for line in scored]), chosen)
        chances = [line["chance"] for line in scored if "choice" in line]
        found["candidate_chance"] = {"value": float(np.mean(chances)) if chances else None, "count": len(chances)}
        found["num_candidate_ties"] = sum(line.get("choice") == 0.5 for line in scored)
        found["num_without_choice"] = sum("choice_error" in line for line in scored)
    categories = {"pieces": ["one piece" if len(line["pieces"]) == 1 else "several pieces" for line in scored]}
    categories |= {name: [line["categories"][name] for line in scored] for name in scored[0]["categories"]}
    return {
        **numbers(ratios, resamples=resamples, seed=seed), **found, **counts,
        "num_unscored_answers": sum(line["num_unscored_answers"] for line in scored),
        "slices": sliced(ratios, categories, resamples=resamples, seed=seed),
        "interval": about_interval(resamples, seed), "definitions": DEFINITIONS,
    }  # fmt: skip


def _done(metrics: dict[str, Any], predictions: list[dict[str, Any]], folder: Path | None) -> Outcome:
    outcome = Outcome(metrics, predictions)
    if folder is not None:
        outcome.save(folder)
    return outcome


def _several(value: Any, where: str, *, split: bool = True) -> tuple[str, ...]:
    """Return the answers that a cell holds: a list, or text parted by "|"; blank ones are none."""
    if value is None:
        return ()
    parts = value if isinstance(value, list) else value.split("|") if split and isinstance(value, str) else [value]
    wrong = next((part for part in parts if isinstance(part, (dict, list, bool, float))), None)
    if wrong is not None:
        raise DataError(f"{where}: {wrong!r:.60} is no text; an answer is a string, or a list of strings")
    return tuple(text for text in (str(part).strip() for part in parts) if text)


def _joined(tokenizer: Any, tokens: Sequence[str]) -> str:
    decoder = tokenizer.backend_tokenizer.decoder
    return str(decoder.decode(list(tokens))).strip() if decoder is not None else "".join(tokens)


def _num_words(text: str) -> int:
    return len(text.split())


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", errors="replace"))


def _counted(lines: Iterator[dict[str, Any]], total: int, progress: Callable[[int, int], None] | None) -> Iterator[dict[str, Any]]:
    for done, line in enumerate(lines, start=1):
        if progress is not None:
            progress(done, total)
        yield line
