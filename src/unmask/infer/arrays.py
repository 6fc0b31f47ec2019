"""A handful of operations on logits that are written once, for tensors of torch and for arrays of numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


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
    peak = logits.max(-1, keepdims=True)
    return peak + np.log(np.exp(logits - peak).sum(-1, keepdims=True))


def top_k(logits: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest of each row and where they are, the largest first, as numpy's. Shapes: (N, k) both."""
    if not is_numpy(logits):
        values, ids = logits.topk(k, dim=-1)
        return values.cpu().numpy(), ids.cpu().numpy()
    ids = np.argpartition(-logits, k - 1, axis=-1)[:, :k] if k < logits.shape[1] else np.broadcast_to(np.arange(k), logits.shape)
    values = np.take_along_axis(logits, ids, -1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.take_along_axis(values, order, -1), np.take_along_axis(ids, order, -1)


def log_probs_at(logits: Any, labels: Any) -> np.ndarray:
    """Return the log-probability of a label in each row, as numpy's. Shapes: logits (N, V), labels (N,), returns (N,)."""
    if is_numpy(logits):
        return logits[np.arange(len(labels)), labels] - log_normalizer(logits)[:, 0]
    return to_numpy(logits.gather(1, labels[:, None])[:, 0] - log_normalizer(logits)[:, 0])
