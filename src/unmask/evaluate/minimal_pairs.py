"""Minimal pairs: does the model find the good sentence of a pair more probable than the bad one? BLiMP's files, or any two columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.over import Place
from ..data.rows import Row, check_columns, read_rows
from ..errors import ConfigError, DataError
from .evaluation import load
from .items import MAX_ITEMS, Outcome, about_interval, about_items, category, check_output, names, numbers, precision_name, sliced
from .pll import Scored, Scorer
from .stats import RESAMPLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = ("original", "word_l2r")
COLUMNS = ("sentence_good", "sentence_bad")
PHENOMENA = ("field", "linguistics_term", "UID")  # BLiMP's, from coarse to fine
DEFINITIONS = {
    "accuracy": "share of pairs whose good sentence has the higher pseudo-log-likelihood, summed over its tokens; a tie counts half",
    "mean_difference": "mean over pairs of the pseudo-log-likelihood of the good sentence less that of the bad one, in nats",
}


def minimal_pairs(
    model: str | Path | PreTrainedModel,
    sources: str | Path | Sequence[str | Path],
    *,
    tokenizer: Any = None,
    method: str = "original",
    columns: Sequence[str] = COLUMNS,
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
    """Return how often a model prefers the good sentence of a pair, overall and for each phenomenon, with 95% intervals over pairs.

    `sources` are JSONL, CSV or TSV files, folders of them, or a tar archive (also .gz, .zst) of them; `columns` names the good and the bad
    sentence. Broken down by BLiMP's field, linguistics_term and UID where they are there, by file where there are several, and by the
    column `slice_by`. `method` is that of the pseudo-log-likelihood, "original" or "word_l2r". `output` is a folder for metrics.json and
    predictions.jsonl. Sentences that the tokenizer cannot tell apart are a tie.
    Source: Warstadt et al. 2020; scored as in Salazar et al. 2020.
    Raises: DataError, ConfigError, CheckpointError, TokenizerError.
    """
    if method not in METHODS:
        raise ConfigError(f"method = {method!r} of minimal pairs; allowed: {', '.join(METHODS)}")
    if len(columns) != 2:
        raise ConfigError(f"columns = {','.join(columns)!r}; name two: that of the good sentence, and that of the bad one")
    folder = check_output(output, resamples)
    rows = read_rows(sources, format=format, encoding=encoding, most=MAX_ITEMS)
    check_columns(rows, columns, "--pair-columns GOOD,BAD")
    check_columns(rows, [slice_by] if slice_by else [], "--slice-by")
    name, engine, tokenizer = load(model, tokenizer, precision=precision, device=device, batch_tokens=batch_tokens, on=on)
    runs = engine.backend if engine.model is None else engine.model
    scorer = Scorer(runs, tokenizer, max_length=max_length, max_tokens=batch_tokens, precision=precision)
    scorer.engine.over = engine.over
    scores = scorer.score((_sentence(row, column) for row in rows for column in columns), method=method)  # type: ignore[arg-type]
    present = {column for row in rows for column in row.values}
    dimensions = [column for column in (slice_by, *PHENOMENA) if column is not None and column in present]

    by_file = "UID" not in present and len({row.file for row in rows}) > 1

    def lines() -> Iterator[dict[str, Any]]:
        for done, row in enumerate(rows, start=1):
            line = _line(row, columns, next(scores), next(scores))
            line["categories"] = {column: category(row.values, column) for column in dimensions}
            if by_file:
                line["categories"]["file"] = row.file
            yield line
            if progress is not None:
                progress(done, len(rows))

    predictions = list(lines())
    scored = [line for line in predictions if "error" not in line]
    counts = about_items(predictions)
    if not scored:
        raise DataError(f"none of {len(predictions):,} pairs can be scored; the first says: {predictions[0]['error']}")
    one = np.ones(len(scored))
    ratios = {
        "accuracy": (np.array([line["right"] for line in scored]), one),
        "mean_difference": (np.array([line["good_log_likelihood"] - line["bad_log_likelihood"] for line in scored]), one),
    }
    categories = {dimension: [line["categories"][dimension] for line in scored] for dimension in scored[0]["categories"]}
    metrics = {
        "test": "pairs", "model": name, "files": names(sources),
        **numbers(ratios, resamples=resamples, seed=seed), **counts,
        "num_ties": sum(line["right"] == 0.5 for line in scored),
        "slices": sliced(ratios, categories, resamples=resamples, seed=seed),
        "interval": about_interval(resamples, seed), "definitions": DEFINITIONS,
        "settings": {"method": method, "columns": list(columns), "max_length": scorer.max_length, "precision": precision_name(engine)},
    }  # fmt: skip
    outcome = Outcome(metrics, predictions)
    if folder is not None:
        outcome.save(folder)
    return outcome


def _sentence(row: Row, column: str) -> str:
    value = row.values.get(column)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{row.where}: the column '{column}' holds {value!r:.60}, not a sentence; name another: --pair-columns GOOD,BAD")
    return value or ""


def _line(row: Row, columns: Sequence[str], good: Scored, bad: Scored) -> dict[str, Any]:
    line: dict[str, Any] = {"id": row.where, "good": good.text, "bad": bad.text}
    for column, scored in zip(columns, (good, bad), strict=True):
        if not scored.text.strip():
            return {**line, "reason": "no sentence", "error": f"the column '{column}' is empty; a pair is two sentences"}
        if scored.error is not None:
            return {**line, "reason": "cannot be scored", "error": scored.error}
    # the same tokens have the same probability, whatever the last digit says
    tie = np.array_equal(good.token_ids, bad.token_ids) or good.total == bad.total
    return line | {
        "good_log_likelihood": good.total, "bad_log_likelihood": bad.total, "right": 0.5 if tie else float(good.total > bad.total),
        "good_tokens": good.num_tokens, "bad_tokens": bad.num_tokens, "truncated": good.truncated or bad.truncated,
    }  # fmt: skip
