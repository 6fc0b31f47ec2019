"""The numbers of a classifier, for any number of weightings of the items at once, so that a bootstrap is a matrix product.

With weights of one they are scikit-learn's (accuracy_score, f1_score, matthews_corrcoef, roc_auc_score, average_precision_score ...);
tests/tasks/test_classify_scores.py says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

BINS = 15  # of the expected calibration error; of equal width
CURVE = tuple(number / 10 for number in range(1, 11))  # of the abstain curve: shares of items that are answered


class SingleLabel:
    """Each item has one label of several. Shapes: gold (n,) numbers of labels, probs (n, L).

    `order` (n, L) is what items are ordered by, where temperatures of their own have moved their probabilities apart.
    """

    def __init__(self, gold: np.ndarray, probs: np.ndarray, labels: list[str], *, order: np.ndarray | None = None) -> None:
        self.gold, self.probs, self.labels = gold, probs, labels
        self.order = probs if order is None else order
        self.predicted, self.confidence = probs.argmax(1), probs.max(1)
        self.right = self.predicted == gold

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each number for each row of weights, (R,)."""
        total = weights.sum(1)
        tables = self.confusions(weights)
        hits = tables.diagonal(axis1=1, axis2=2)
        gold, said = tables.sum(2), tables.sum(1)
        kept: np.ndarray = np.greater(gold + said, 0)  # a label that is neither there nor predicted has no F1
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(kept, 2 * hits / (gold + said), 0.0)
            precision = np.where(said > 0, hits / said, 0.0)
            recall = np.where(gold > 0, hits / gold, 0.0)
            count = kept.sum(1)
            spread = np.sqrt((total**2 - (said**2).sum(1)) * (total**2 - (gold**2).sum(1)))
            mcc = np.where(spread > 0, (hits.sum(1) * total - (gold * said).sum(1)) / spread, 0.0)
            true = np.take_along_axis(self.probs, self.gold[:, None], 1)[:, 0]
            found = {
                "accuracy": hits.sum(1) / total,
                "macro_f1": f1.sum(1) / count,
                "weighted_f1": (f1 * gold).sum(1) / total,
                "macro_precision": precision.sum(1) / count,
                "macro_recall": recall.sum(1) / count,
                "matthews_correlation": mcc,
                "log_loss": weights @ -np.log(np.maximum(true, 1e-15)) / total,
                "expected_calibration_error": calibration_error(self.confidence, self.right, weights),
            }
        if len(self.labels) == 2:
            found["auroc"] = auroc(self.gold == 1, self.order[:, 1], weights)
        else:
            each = [auroc(self.gold == label, self.order[:, label], weights) for label in range(len(self.labels))]
            found["macro_auroc"] = nanmean(np.stack(each, 1))
        return found

    def confusions(self, weights: np.ndarray) -> np.ndarray:
        """Return how often each label was taken for each, (R, L, L): rows are what is right, columns what was predicted."""
        size = len(self.labels)
        cells = self.gold * size + self.predicted
        return np.stack([np.bincount(cells, row, minlength=size * size) for row in weights]).reshape(-1, size, size)

    def counts(self) -> dict[str, int]:
        """Return over how many items the numbers are taken."""
        return {}

    def details(self) -> dict[str, Any]:
        """Return the confusions, the numbers of each label, the reliability and the abstain curve."""
        ones = np.ones((1, len(self.gold)))
        table = self.confusions(ones)[0].astype(int)
        return {
            "per_label": per_label(self.labels, table.diagonal(), table.sum(1), table.sum(0)),
            "confusion": table.tolist(),
            "reliability": reliability(self.confidence, self.right),
            "abstain": abstain(self.confidence, self.right),
        }


class MultiLabel:
    """Each item has any number of labels. Shapes: gold (n, L) bool, probs (n, L), said (n, L) bool, what is predicted; `order` as above."""

    def __init__(
        self, gold: np.ndarray, probs: np.ndarray, said: np.ndarray, labels: list[str], *, order: np.ndarray | None = None
    ) -> None:
        self.gold, self.probs, self.said, self.labels = gold.astype(bool), probs, said.astype(bool), labels
        self.order = probs if order is None else order
        self.hit = self.gold & self.said

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each number for each row of weights, (R,)."""
        total = weights.sum(1)
        hits, gold, said = (weights @ part.astype(float) for part in (self.hit, self.gold, self.said))
        with np.errstate(invalid="ignore", divide="ignore"):
            # a label that stands in no item of the data and in no prediction is left out of the means; a resample keeps the others
            kept = np.logical_or(self.gold.any(0), self.said.any(0))[None]
            f1 = np.where(gold + said > 0, 2 * hits / (gold + said), 0.0)
            found = {
                "micro_f1": ratio(2 * hits.sum(1), gold.sum(1) + said.sum(1)),
                "micro_precision": ratio(hits.sum(1), said.sum(1)),
                "micro_recall": ratio(hits.sum(1), gold.sum(1)),
                "macro_f1": (f1 * kept).sum(1) / max(1, int(kept.sum())),
                "weighted_f1": ratio((f1 * gold).sum(1), gold.sum(1)),
                "exact_match": weights @ (self.gold == self.said).all(1).astype(float) / total,
                "hamming_loss": weights @ (self.gold != self.said).mean(1) / total,
            }
        columns = range(len(self.labels))
        found["macro_auroc"] = nanmean(np.stack([auroc(self.gold[:, label], self.order[:, label], weights) for label in columns], 1))
        each = [average_precision(self.gold[:, label], self.order[:, label], weights) for label in columns]
        found["macro_average_precision"] = nanmean(np.stack(each, 1))
        clear = np.clip(self.probs, 1e-15, 1 - 1e-15)
        found["log_loss"] = weights @ -np.where(self.gold, np.log(clear), np.log1p(-clear)).mean(1) / total
        flat = np.repeat(weights, len(self.labels), axis=1)
        found["expected_calibration_error"] = calibration_error(self.probs.ravel(), self.gold.ravel(), flat)
        return found

    def counts(self) -> dict[str, int]:
        """Return over how many items the numbers are taken."""
        return {}

    def details(self) -> dict[str, Any]:
        """Return the numbers of each label, the reliability and the abstain curve."""
        sure = np.abs(self.probs - 0.5).min(1) + 0.5
        return {
            "per_label": per_label(self.labels, self.hit.sum(0), self.gold.sum(0), self.said.sum(0)),
            "reliability": reliability(self.probs.ravel(), self.gold.ravel()),
            "abstain": abstain(sure, (self.gold == self.said).all(1)),
        }


class Regression:
    """Each item has a number. Shapes: gold and said (n,)."""

    def __init__(self, gold: np.ndarray, said: np.ndarray) -> None:
        self.gold, self.said = gold.astype(float), said.astype(float)

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each number for each row of weights, (R,); the ranks of Spearman's correlation are those among all items."""
        total = weights.sum(1)
        error = self.said - self.gold
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = weights @ self.gold / total
            spread = weights @ self.gold**2 / total - mean**2
            squares = weights @ error**2 / total
            return {
                "mean_squared_error": squares,
                "root_mean_squared_error": np.sqrt(squares),
                "mean_absolute_error": weights @ np.abs(error) / total,
                "r2": np.where(spread > 0, 1 - squares / spread, np.nan),
                "pearson": correlation(self.gold, self.said, weights),
                "spearman": correlation(rankdata(self.gold), rankdata(self.said), weights),
            }

    def counts(self) -> dict[str, int]:
        """Return over how many items the numbers are taken."""
        return {}

    def details(self) -> dict[str, Any]:
        """Return nothing: the numbers say it all."""
        return {}


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return top / bottom, 0 where there is nothing to divide by."""
    return np.divide(top, bottom, out=np.zeros_like(top, float), where=bottom > 0)


def nanmean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row's numbers, none where there is none. Shapes: (R, L) to (R,)."""
    there = np.isfinite(values)
    count = there.sum(1)
    return np.divide(np.where(there, values, 0.0).sum(1), count, out=np.full(len(values), np.nan), where=count > 0)


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted linear correlation of two series, (R,)."""
    total = weights.sum(1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    both = weights @ (x * y) / total - mean_x * mean_y
    spread = (weights @ x**2 / total - mean_x**2) * (weights @ y**2 / total - mean_y**2)
    return np.divide(both, np.sqrt(np.maximum(spread, 0)), out=np.full(len(total), np.nan), where=spread > 1e-18)


def _sums_by_score(gold: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of the true and of the false items at each distinct score, the highest first, (R, distinct) both."""
    order = np.argsort(-score, kind="stable")
    first = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    sorted_weights = weights[:, order]
    is_true = gold[order].astype(float)
    return np.add.reduceat(sorted_weights * is_true, first, axis=1), np.add.reduceat(sorted_weights * (1 - is_true), first, axis=1)


def auroc(gold: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the chance that a true item scores above a false one (a tie counts half), (R,); no number where one kind is missing."""
    true, false = _sums_by_score(gold, score, weights)
    above = np.cumsum(true, 1) - true / 2
    pairs = true.sum(1) * false.sum(1)
    return np.divide((above * false).sum(1), pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def average_precision(gold: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean precision over the true items, (R,); no number where there is none."""
    true, false = _sums_by_score(gold, score, weights)
    hits = np.cumsum(true, 1)
    precision = ratio(hits, hits + np.cumsum(false, 1))
    positives = true.sum(1)
    return np.divide((precision * true).sum(1), positives, out=np.full(len(weights), np.nan), where=positives > 0)


def calibration_error(confidence: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean distance of confidence from accuracy over bins of confidence of equal width, (R,)."""
    cell = np.minimum((confidence * BINS).astype(int), BINS - 1)
    inside = cell[:, None] == np.arange(BINS)
    gap = weights @ (inside * (confidence - right)[:, None])
    return np.abs(gap).sum(1) / weights.sum(1)


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Return a point for each bin of confidence that holds an item, as evaluate/figure.py draws them."""
    cell = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "from": number / BINS, "to": (number + 1) / BINS, "count": int((cell == number).sum()),
            "confidence": float(confidence[cell == number].mean()), "accuracy": float(right[cell == number].mean()),
        }
        for number in np.unique(cell).tolist()
    ]  # fmt: skip


def abstain(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return how often the surest so many items are right: what a model that may say "I do not know" is worth."""
    order = np.argsort(-confidence, kind="stable")
    points = []
    for share in CURVE:
        kept = order[: max(1, round(share * len(order)))]
        points.append({"coverage": share, "accuracy": float(right[kept].mean()), "confidence": float(confidence[kept[-1]])})
    return points


def per_label(labels: list[str], hits: np.ndarray, gold: np.ndarray, said: np.ndarray) -> list[dict[str, Any]]:
    """Return precision, recall, F1 and count of each label."""
    precision, recall, f1 = ratio(hits, said), ratio(hits, gold), ratio(2 * hits, gold + said)
    return [
        {"label": label, "count": int(gold[row]), "predicted": int(said[row]), "precision": float(precision[row]),
         "recall": float(recall[row]), "f1": float(f1[row])}
        for row, label in enumerate(labels)
    ]  # fmt: skip
