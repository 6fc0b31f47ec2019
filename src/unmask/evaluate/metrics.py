"""The numbers of a masked language model from its Records, each with its count and an interval; what they mean is in DEFINITIONS.

Everything is a function of sums over documents, taken in float64 in the order of the records, so that a bootstrap is a matrix product and
the figures do not depend on the order or the batches in which documents were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from ..errors import DataError
from .calibration import BINS, bin_sums, expected_calibration_error, reliability
from .records import Records
from .slices import DIMENSIONS, Slices
from .stats import LEVEL, RESAMPLES, finite, no_interval, units, weights, with_interval

DEFINITIONS = {
    "masked_loss": "mean over masked tokens of the negative log-probability of the original token, in nats",
    "masked_perplexity": "exponential of masked_loss; not the perplexity of a model that reads from left to right",
    "masked_accuracy": "share of masked tokens whose most probable prediction is the original token",
    "top_5_accuracy": "share of masked tokens whose original is among the 5 most probable",
    "top_10_accuracy": "share of masked tokens whose original is among the 10 most probable",
    "mean_reciprocal_rank": "mean of 1 / rank of the original token among all",
    "bits_per_byte": "sum of the losses of the masked tokens in bits, over the UTF-8 bytes of their text (spaces not counted)",
    "macro_precision": "precision of each token that was masked at least once, all such tokens of equal weight",
    "macro_recall": "recall of each token that was masked at least once, all such tokens of equal weight",
    "macro_f1": "F1 of each token that was masked at least once, all such tokens of equal weight",
    "weighted_precision": "as macro_precision, tokens weighted by how often they were masked",
    "weighted_recall": "as macro_recall, tokens weighted by how often they were masked; equals masked_accuracy",
    "weighted_f1": "as macro_f1, tokens weighted by how often they were masked",
    "expected_calibration_error": f"mean distance of confidence from accuracy over {BINS} bins of confidence of equal width",
}
SUMS = ("count", "loss", "right", "top_5", "top_10", "reciprocal_rank", "num_bytes")
RATIOS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "masked_loss": lambda sums: sums[..., 1] / sums[..., 0],
    "masked_perplexity": lambda sums: np.exp(sums[..., 1] / sums[..., 0]),
    "masked_accuracy": lambda sums: sums[..., 2] / sums[..., 0],
    "top_5_accuracy": lambda sums: sums[..., 3] / sums[..., 0],
    "top_10_accuracy": lambda sums: sums[..., 4] / sums[..., 0],
    "mean_reciprocal_rank": lambda sums: sums[..., 5] / sums[..., 0],
    "bits_per_byte": lambda sums: sums[..., 1] / math.log(2) / sums[..., 6],
}


@dataclass(frozen=True, slots=True)
class Estimates:
    """Numbers with their resamples: `point` name -> value, `samples` name -> (resamples,), in the same order for all records of one text.

    Those of slices have the names (dimension, value, metric); `counts` and `num_documents` are by "" and by (dimension, value).
    """

    point: dict[Any, float]
    samples: dict[Any, np.ndarray]
    counts: dict[Any, int]
    num_documents: dict[Any, int]
    reliability: list[dict[str, Any]]


def metrics(records: Records, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL, slices: bool = True) -> dict[str, Any]:
    """Return the metrics of records as they are written to metrics.json: each {value, low, high, count}, and `why` without an interval.

    `low` and `high` bound a bootstrap interval over documents; of a text of one document they are null. `slices` breaks the numbers down.
    Raises: DataError where no token is masked.
    """
    found = estimates(records, resamples=resamples, seed=seed, slices=slices)

    def entry(name: Any, group: Any) -> dict[str, Any]:
        return with_interval(found.point[name], found.samples[name], found.num_documents[group], found.counts[group], level)

    result: dict[str, Any] = {name: entry(name, "") for name in DEFINITIONS}
    result["reliability"] = found.reliability
    if slices:
        result["slices"] = {}
        for dimension, value in (group for group in found.counts if group):
            row: dict[str, Any] = {name: entry((dimension, value, name), (dimension, value)) for name in RATIOS}
            counts = {"count": found.counts[dimension, value], "num_documents": found.num_documents[dimension, value]}
            result["slices"].setdefault(dimension, []).append({"name": value, **counts, **row})
    labels = np.unique(records.label)
    return {
        **result,
        "num_documents": records.num_documents,
        "num_documents_without_masked_tokens": records.num_documents - found.num_documents[""],
        "num_tokens": int(records.numbers("num_tokens").sum()),
        "num_words": int(records.numbers("num_words").sum()),
        "num_bytes": int(records.numbers("num_bytes").sum()),
        "num_windows": int(records.numbers("num_windows").sum()),
        "num_documents_in_windows": int((records.numbers("num_windows") > 1).sum()),
        "num_masked_tokens": len(records),
        "num_masked_bytes": int(records.num_bytes.sum(dtype=np.int64)),
        "num_masked_types": len(labels),
        "masks_fingerprint": records.fingerprint,
        "interval": {
            "level": level, "method": "expanded percentile bootstrap over documents, centred on the number",
            "resamples": resamples, "seed": seed,
            "num_units": int(units(records.num_documents).max(initial=-1)) + 1,
            "why_none": no_interval(found.num_documents[""], resamples),
        },
        "definitions": {**DEFINITIONS, "slices": DIMENSIONS},
        "settings": {key: value for key, value in records.info.items() if key not in ("masks_fingerprint", "part")},
    }  # fmt: skip


def estimates(records: Records, *, resamples: int = RESAMPLES, seed: int = 0, slices: bool = True) -> Estimates:
    """Return the metrics of records with their bootstrap resamples, which two models on the same masks have in common (a paired bootstrap).

    Raises: DataError where no token is masked.
    """
    if not len(records):
        raise DataError("no token of the text can be masked: all of it is unknown to the tokenizer; take a text or a model that fits")
    unit = units(records.num_documents)
    cut = Slices(records) if slices else None
    groups: list[Any] = [""] + [(dimension, value) for dimension, values in (cut.names.items() if cut else ()) for value in values]
    table, has = _sums(records, unit, cut)
    bins = bin_sums(records, unit)
    words = _Vocabulary(records, unit)
    num_units = table.shape[0]
    samples: dict[Any, list[np.ndarray]] = {}
    point: dict[Any, float] = {}

    def take(weight: np.ndarray, put: Callable[[Any, np.ndarray], None]) -> None:
        sums = (weight @ table.reshape(num_units, -1)).reshape(len(weight), len(groups), len(SUMS))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for number, group in enumerate(groups):
                for name, ratio in RATIOS.items():
                    put((*group, name) if group else name, ratio(sums[:, number]))
            for name, values in words.scores(weight).items():
                put(name, values)
        calibration = (weight @ bins.reshape(num_units, -1)).reshape(len(weight), BINS, 3)
        put("expected_calibration_error", expected_calibration_error(calibration))

    take(np.ones((1, num_units)), lambda name, values: point.__setitem__(name, float(values[0])))
    if no_interval(int(has[0].sum()), resamples) is None:
        for weight in weights(num_units, resamples, seed):
            take(weight, lambda name, values: samples.setdefault(name, []).append(values))
    count = table[:, :, 0].sum(0).astype(np.int64).tolist()
    kept = [number for number in range(len(groups)) if count[number]]
    return Estimates(
        point,
        {name: np.concatenate(samples[name]) if samples else np.zeros(0) for name in point},
        {groups[number]: count[number] for number in kept},
        {groups[number]: int(has[number].sum()) for number in kept},
        reliability(bins.sum(0)),
    )


def _sums(records: Records, unit: np.ndarray, cut: Slices | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the SUMS of each unit, in all and in each slice, (units, 1 + slices, SUMS), and which documents each group is found in."""
    num_units, num_groups = int(unit.max(initial=-1)) + 1, 1 + (sum(cut.sizes) if cut else 0)
    table = np.zeros((num_units, num_groups, len(SUMS)))
    has = np.zeros((num_groups, records.num_documents), bool)
    for rows in records.blocks():
        document, rank = records.document[rows], records.rank[rows]
        values = (
            None, -records.log_prob[rows].astype(np.float64), records.predicted[rows] == records.label[rows],
            rank <= 5, rank <= 10, 1.0 / rank, records.num_bytes[rows],
        )  # fmt: skip
        first = 0
        for codes, size in [(np.zeros(len(rank), np.int64), 1), *(zip(cut.of(rows), cut.sizes, strict=True) if cut else ())]:
            cell = unit[document] * size + codes
            for number, column in enumerate(values):
                counted = np.bincount(cell, column, minlength=num_units * size).reshape(num_units, size)
                table[:, first : first + size, number] += counted
            has[first + codes, document] = True
            first += size
    return table, has


class _Vocabulary:
    """How often each token was masked, predicted, and both, in each unit of documents; only tokens that were masked are classes."""

    def __init__(self, records: Records, unit: np.ndarray) -> None:
        labels = np.unique(records.label)
        number = np.full(int(max(labels.max(), records.predicted.max())) + 1, -1)
        number[labels] = np.arange(len(labels))
        shape = (len(labels), int(unit.max(initial=-1)) + 1)
        self.tables = [csr_matrix(shape) for _ in range(3)]
        for rows in records.blocks():
            who, true, guess = unit[records.document[rows]], number[records.label[rows]], number[records.predicted[rows]]
            for place, (classes, chosen) in enumerate(((true, true >= 0), (guess, guess >= 0), (true, true == guess))):
                ones = np.ones(int(chosen.sum()))
                self.tables[place] = self.tables[place] + coo_matrix((ones, (classes[chosen], who[chosen])), shape).tocsr()

        self.point = {name: above / np.maximum(below, 1) for name, (above, below) in self._each(np.ones((1, shape[1]))).items()}

    def _each(self, weight: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return numerator and denominator of the scores of each class, (classes, r)."""
        support, guessed, both = (table @ weight.T for table in self.tables)
        return {"precision": (both, guessed), "recall": (both, support), "f1": (2 * both, support + guessed)}

    def scores(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Return macro and weighted precision, recall and F1 for each row of weights (r, units); 0 where there is nothing to divide by.

        What a resample has nothing to divide by for keeps the score that it has in the whole text: most tokens are rare, and if those that
        are not drawn counted 0, or not at all, the resamples would lie to one side of the number.
        """
        support = self.tables[0] @ weight.T
        result = {}
        for name, (above, below) in self._each(weight).items():
            values = np.where(below > 0, above / np.maximum(below, 1), self.point[name])
            result[f"macro_{name}"] = values.mean(0)
            result[f"weighted_{name}"] = (values * support).sum(0) / support.sum(0)
        return result


def flat(found: dict[str, Any]) -> dict[str, float | None]:
    """Return name -> value of metrics without intervals and slices, for tables and logs."""
    return {name: finite(found[name]["value"]) for name in DEFINITIONS if found[name]["value"] is not None}
