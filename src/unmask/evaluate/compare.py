"""Two models on the same hidden tokens of a text: is the second better, worse, equivalent, or can it not be told?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.frozen import EVAL_SEED
from ..data.manifest import MANIFEST, write_manifest
from ..data.tokenizer import tokenizer_hash
from ..data.whole import alone
from ..errors import CheckpointError, ConfigError
from .evaluation import METRICS, load
from .evaluation import write as write_lines
from .items import precision_name
from .paired import FLIPS, KIND, KINDS, LOWER_IS_BETTER, MARGINS, Difference, difference, mcnemar, verdict
from .pairs import Pairs, tokens, words
from .report import REPORT
from .report import write as write_report
from .stats import RESAMPLES, check_resamples


def unit_of(metric: str) -> str:
    """Return the unit of a metric, which is that of its margin; perplexities have none, their margin is a share of that of A."""
    if metric.endswith("_loss"):
        return "nats"
    return "" if metric.endswith("perplexity") else "bits" if metric == "bits_per_byte" else "share"


@dataclass
class Comparison:
    """Two models compared: a verdict on B against A with its reason, differences of all metrics, and the flips.

    `metrics` name -> Difference; `slices` dimension -> [(value, {metric: Difference})]; `mcnemar` counts with the exact p-value; `unit` is
    "token", or "word" where the tokenizers differ; `notes` say what to know before the numbers are used.
    """

    a: str
    b: str
    verdict: str
    reason: str
    metric: str
    margin: float
    unit: str
    metrics: dict[str, Difference]
    mcnemar: dict[str, Any]
    slices: dict[str, list[tuple[str, dict[str, Difference]]]]
    num_flips: dict[str, int]
    notes: list[str]
    info: dict[str, Any]
    definitions: dict[str, str]
    _pairs: Pairs = field(repr=False)

    def flips(self, kind: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the tokens that one model gets right and the other wrong, with their sentences.

        In the order of the text; with a `limit` the ones whose log-probability changed most. kind: "right_to_wrong", "wrong_to_right".
        """
        right_a, right_b = self._pairs.correct
        rows = np.flatnonzero(right_a != right_b if kind is None else right_a & ~right_b if kind == KINDS[0] else right_b & ~right_a)
        if limit is not None:
            change = np.abs(self._pairs.log_prob[1][rows].astype(np.float64) - self._pairs.log_prob[0][rows])
            rows = rows[np.argsort(-change, kind="stable")[:limit]]
        for row in rows.tolist():
            yield {"kind": KINDS[0] if right_a[row] else KINDS[1], **self._pairs.sentence(row)}

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds and `unmask compare --json` prints."""
        return {
            "kind": KIND,
            "a": self.a,
            "b": self.b,
            "verdict": self.verdict,
            "reason": self.reason,
            "metric": self.metric,
            "margin": self.margin,
            "margin_unit": unit_of(self.metric) or "",
            "unit": self.unit,
            "metrics": {name: found.to_dict() for name, found in self.metrics.items()},
            "mcnemar": self.mcnemar,
            "num_flips": self.num_flips,
            "slices": {
                dimension: [{"name": value, **{name: one.to_dict() for name, one in found.items()}} for value, found in rows]
                for dimension, rows in self.slices.items()
            },
            "notes": self.notes,
            "settings": self.info,
            "definitions": self.definitions,
        }

    def save(self, folder: str | Path) -> Path:
        """Write metrics.json, flips.jsonl, their manifest and report.html into a folder, and return the path of the report."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / FLIPS, (json.dumps(flip, ensure_ascii=False) + "\n" for flip in self.flips()))
        write_lines(folder / METRICS, [json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"])
        write_manifest(folder, only=(FLIPS, METRICS))
        return write_report(folder)


def compare(
    a: str | Path,
    b: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    metric: str | None = None,
    margin: float | None = None,
    policy: str | None = None,
    views: int = 1,
    seed: int = EVAL_SEED,
    max_length: int | None = None,
    slice_by: str | None = None,
    resamples: int = RESAMPLES,
    device: str = "auto",
    precision: str = "fp32",
    batch_tokens: int | None = None,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **reading: Any,
) -> Comparison:
    """Return how model B does against model A on the same masks of a text: folders or Hub ids, and files or a packed corpus.

    The verdict is on `metric` (masked_loss), with `margin` in its unit: 0.01 nats or bits, 0.005 of a share, 1% of a perplexity. Models
    with different tokenizers are compared on whole words, chosen by a hash of the text: masked_word_loss, bits_per_byte (see `notes`).
    `precision` is one for both, or A's and B's parted by a comma ("fp32,bf16"); an exported model has its own.
    `output` keeps metrics.json, flips.jsonl, the records of both and report.html; `policy` and the others are those of `evaluate`.
    Raises: ConfigError, DataError, CheckpointError, TokenizerError.
    """
    check_resamples(resamples)
    if margin is not None and not 0 <= margin < float("inf"):
        raise ConfigError(f"margin = {margin}; allowed: 0 or more, in the unit of the metric")
    folder = None if output is None else _room(Path(output).expanduser())
    precisions = [name.strip() for name in precision.split(",")]
    if len(precisions) > 2:
        raise ConfigError(f"precision = {precision!r}; allowed: one for both models, or two parted by a comma, such as fp32,bf16")
    options: dict[str, Any] = {"device": device, "batch_tokens": batch_tokens}
    models = (load(a, None, precision=precisions[0], **options)[1:], load(b, None, precision=precisions[-1], **options)[1:])
    same = tokenizer_hash(models[0][1]) == tokenizer_hash(models[1][1])
    _check_metric(metric, same)
    if not same and (policy not in (None, "mask") or views != 1):
        given = f"policy = {policy!r}" if policy not in (None, "mask") else f"views = {views}"
        raise ConfigError(
            f"{given}, and the tokenizers of '{a}' and '{b}' differ: whole words are then compared, hidden once, behind the mask token "
            "alone; leave it out"
        )
    options = {"seed": seed, "max_length": max_length, "slice_by": slice_by, "resamples": resamples, **reading}
    with alone(folder) if folder is not None else contextlib.nullcontext():
        if folder is not None:
            for stale in (MANIFEST, METRICS, FLIPS, REPORT):  # one that ends early must not leave those of another
                (folder / stale).unlink(missing_ok=True)
        if same:
            folders = (None, None) if folder is None else (folder / "a", folder / "b")
            pairs = tokens(models, data, policy=policy or "corrupt", views=views, folders=folders, progress=progress, **options)
        else:
            pairs = words(models, data, **options)
        measured = {"precision": [precision_name(engine) for engine, _ in models]}
        found = _compare(pairs, str(a), str(b), metric, margin, resamples, measured)
        if folder is not None:
            found.save(folder)
        return found


def _room(folder: Path) -> Path:
    """Return a folder to write to, if it is new, empty, or holds an earlier comparison."""
    if folder.is_file():
        raise CheckpointError(f"'{folder}' is a file; name a folder for the comparison")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if FLIPS not in there and there - {"a", "b"}:
        raise CheckpointError(f"'{folder}' holds something that is no comparison; name another folder with -o")
    return folder


def _check_metric(metric: str | None, same: bool) -> None:
    from .pairs import DEFINITIONS, WORD_DEFINITIONS

    allowed = DEFINITIONS if same else WORD_DEFINITIONS
    if metric is not None and metric not in allowed:
        why = "" if same else " (the tokenizers differ, so whole words are compared)"
        raise ConfigError(f"metric = {metric!r}; allowed{why}: {', '.join(allowed)}")


def _compare(pairs: Pairs, a: str, b: str, metric: str | None, margin: float | None, resamples: int, more: dict[str, Any]) -> Comparison:
    metric = metric or ("masked_loss" if pairs.unit == "token" else "masked_word_loss")
    main = "masked_loss" if pairs.unit == "token" else "masked_word_loss"

    def one(name: Any, group: Any) -> Difference:
        return difference(
            pairs.a.point[name], pairs.b.point[name], pairs.a.samples[name], pairs.b.samples[name],
            count=pairs.a.counts[group], num_documents=pairs.a.num_documents[group], resamples=resamples,
        )  # fmt: skip

    metrics = {name: one(name, "") for name in pairs.definitions}
    slices: dict[str, list[tuple[str, dict[str, Difference]]]] = {}
    shown = dict.fromkeys((main, main.replace("loss", "accuracy"), metric))
    for dimension, value in (group for group in pairs.a.counts if group):
        group = (dimension, value)
        found = {name: one((*group, name), group) for name in shown if (*group, name) in pairs.a.point}
        slices.setdefault(dimension, []).append((value, found))
    unit = unit_of(metric)
    chosen = margin if margin is not None else MARGINS[unit] if unit else 0.01 * pairs.a.point[metric]
    word, reason = verdict(metric, metrics[metric], margin=chosen, lower_is_better=metric in LOWER_IS_BETTER, unit=unit)
    test = mcnemar(*pairs.correct)
    flips = {KINDS[0]: test["num_only_a"], KINDS[1]: test["num_only_b"]}
    info = {**pairs.info, **more, "resamples": resamples}
    return Comparison(
        a, b, word, reason, metric, chosen, pairs.unit, metrics, test, slices, flips, pairs.notes, info, dict(pairs.definitions), pairs
    )
