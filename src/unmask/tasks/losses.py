"""What the losses of all tasks that choose among labels have in common: weights of labels, and the focal form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .classify_data import number


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """How much the labels, and what is right already, count."""

    loss: Literal["cross_entropy", "focal"] = "cross_entropy"  # focal (Lin et al. 2017): what is right already counts less
    focal_gamma: float = 2.0  # how much less
    class_weights: tuple[str, ...] = ()  # "balanced", or "label=weight" for some

    def __post_init__(self) -> None:
        if not 0 <= self.focal_gamma < math.inf:
            raise ConfigError(f"options.focal_gamma = {self.focal_gamma!r}; allowed: a number from 0 (2 is usual)")

    @property
    def gamma(self) -> float:
        """The exponent of the focal form; 0 is plain cross-entropy."""
        return self.focal_gamma if self.loss == "focal" else 0.0


def cross_entropy(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the loss of each row. Shapes: logits (N, L), labels (N,); returns (N,), in nats."""
    log_probs = torch.log_softmax(logits, -1).gather(1, labels[:, None])[:, 0]
    return -log_probs if not gamma else -log_probs * (1 - log_probs.exp()) ** gamma


def label_weights(given: Sequence[str], names: Sequence[str], balanced: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each name: 1, or what `given` says, "balanced" or "name=weight".

    Raises: ConfigError.
    """
    weights = dict.fromkeys(names, 1.0)
    if tuple(given) == ("balanced",):
        return weights | dict(balanced)
    for text in given:
        name, _, value = text.rpartition("=")
        weight = number(value)
        if name not in weights or weight is None or weight < 0:
            raise ConfigError(
                f"options.class_weights = {text!r}; allowed: balanced, or label=weight with a weight from 0 and one of: "
                f"{', '.join(list(weights)[:20])}"
            )
        weights[name] = weight
    return weights
