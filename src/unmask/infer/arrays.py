"""A handful of operations on logits that are written once, for tensors of torch and for arrays of numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

ROWS = 8  # of logits, at a time


def is_numpy(array: Any) -> bool:
    """Return whether an array is numpy's; otherwise it is torch's."""
    return isinstance(array, np.ndarray)


def concatenate(arrays: Sequence[Any]) -> Any:
    """Return arrays of rows as one."""
    if is_numpy(arrays[0]):
        return np.concatenate(arrays)
    import torch

    return torch.cat(list(arrays))


def to_numpy(array: Any) -> np.ndarray:
    """Return an array as numpy's."""
    return array if is_numpy(array) else array.cpu().numpy()


def log_normalizer(logits: Any) -> Any:
    """Return what is to be taken from logits to make them log-probabilities, (N, 1)."""
    if not is_numpy(logits):
        return logits.logsumexp(-1, keepdim=True)
    found = np.empty((len(logits), 1), logits.dtype)
    for start in range(0, len(logits), ROWS):  # few enough that what is made of them stays in the cache
        rows = logits[start : start + ROWS]
        peak = rows.max(-1, keepdims=True)
        raised = rows - peak
        found[start : start + ROWS] = peak + np.log(np.exp(raised, out=raised).sum(-1, keepdims=True))
    return found


def top_k(logits: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest of each row and where they are, the largest first, as numpy's. Shapes: (N, k) both."""
    if not is_numpy(logits):
        values, ids = logits.topk(k, dim=-1)
        return values.cpu().numpy(), ids.cpu().numpy()
    ids = _largest(logits, k)
    values = np.take_along_axis(logits, ids, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1)


def _largest(logits: np.ndarray, k: int) -> np.ndarray:
    """Return where the k largest of each row are, in any order. Shapes: (N, k).

    Partitioning a row of a whole vocabulary takes longer than a small model; a maximum does not. So columns are dealt out to groups, and
    only the k groups with the largest maxima, which hold the k largest numbers, are partitioned.
    """
    count, width = logits.shape
    if k >= width:
        return np.broadcast_to(np.arange(k), logits.shape)
    size = math.isqrt(width // k)
    groups = width // max(1, size)
    if size < 4 or groups <= k:
        return np.argpartition(-logits, k - 1, axis=-1)[:, :k]
    peaks = logits[:, : size * groups].reshape(count, size, groups).max(1)
    best = np.argpartition(-peaks, k - 1, axis=-1)[:, None, :k]
    members = (best + np.arange(0, size * groups, groups)[:, None]).reshape(count, size * k)
    rest = np.broadcast_to(np.arange(size * groups, width), (count, width - size * groups))
    columns = np.concatenate([members, rest], 1)
    near = np.take_along_axis(logits, columns, -1)
    return np.take_along_axis(columns, np.argpartition(-near, k - 1, axis=-1)[:, :k], -1)


def log_probs_at(logits: Any, labels: Any) -> np.ndarray:
    """Return the log-probability of a label in each row, as numpy's. Shapes: logits (N, V), labels (N,), returns (N,)."""
    if is_numpy(logits):
        return logits[np.arange(len(labels)), labels] - log_normalizer(logits)[:, 0]
    return to_numpy(logits.gather(1, labels[:, None])[:, 0] - log_normalizer(logits)[:, 0])
