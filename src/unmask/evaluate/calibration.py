"""Is the model as sure as it is right? Expected calibration error, and the reliability curve it is computed from.

Source: Guo et al. 2017: the predicted token's probability, in 15 bins of equal width. Bins of equal width and not of equal mass, because
their edges do not move with the model or the text: two models compare bin by bin.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .records import Records
from .stats import finite

BINS = 15


def bin_sums(records: Records, unit: np.ndarray) -> np.ndarray:
    """Return count, sum of confidence and number right, in each bin, for each unit of documents: (units, BINS, 3) float64."""
    num_units = int(unit.max(initial=-1)) + 1
    total = np.zeros((3, num_units * BINS))
    for rows in records.blocks():
        confidence = records.confidence[rows].astype(np.float64)
        cell = unit[records.document[rows]] * BINS + np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        right = records.predicted[rows] == records.label[rows]
        for number, values in enumerate((None, confidence, right)):
            total[number] += np.bincount(cell, values, minlength=total.shape[1])
    return total.reshape(3, num_units, BINS).transpose(1, 2, 0)


def expected_calibration_error(sums: np.ndarray) -> np.ndarray:
    """Return the mean over tokens of |share right - mean confidence| of their bin, from sums (..., BINS, 3). Shapes: (...)."""
    count = sums[..., 0].sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(sums[..., 1] - sums[..., 2]).sum(-1) / count


def reliability(sums: np.ndarray) -> list[dict[str, Any]]:
    """Return the reliability curve, a point for each bin that holds a token, from sums (BINS, 3)."""
    points = []
    for number, (count, confidence, right) in enumerate(sums.tolist()):
        if count:
            edges = {"from": number / BINS, "to": (number + 1) / BINS}
            points.append({**edges, "count": int(count), "confidence": finite(confidence / count), "accuracy": finite(right / count)})
    return points
