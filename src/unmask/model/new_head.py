"""A new head on a body that was trained before: the stock class, its missing weights drawn from a seed, everything else loaded strictly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError, ConfigError
from ..rng import rng
from .load import Attention, Head, check_attention, check_fit, from_pretrained, read_config, set_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POOLINGS = {"ModernBertConfig": ("cls", "mean"), "EuroBertConfig": ("bos", "mean", "late")}  # which classes let one choose

log = logging.getLogger(__name__)


def with_new_head(
    name_or_path: str | Path,
    head: Head,
    *,
    labels: Sequence[str] | None = None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    attention: Attention = "packed",
    settings: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Return a model for a task, in fp32, from a checkpoint with another head (or with one of its kind, which is kept where it fits).

    `labels` are written into its configuration as id2label and label2id, `settings` (problem_type, classifier_pooling) beside them.
    Weights of the head that the checkpoint does not have follow from the seed alone.
    Raises: CheckpointError where weights of the body are missing or of another shape; ConfigError for a pooling that its class has not.
    """
    check_attention(attention)
    name = str(name_or_path)
    config = read_config(name, head)
    if labels is not None:
        config.id2label, config.label2id = dict(enumerate(labels)), {label: number for number, label in enumerate(labels)}
    for key, value in (settings or {}).items():
        if key == "classifier_pooling":
            check_pooling(config, value)
            if type(config).__name__ not in POOLINGS:
                continue  # its class knows no other, and asks for nothing
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng(seed, "head").integers(2**63)))
        model, info = from_pretrained(name, head, config, attention=attention, ignore_mismatched_sizes=True)
    body = f"{model.base_model_prefix}."
    for what, keys in (("lacks", info["missing_keys"]), ("has another shape than its config.json says for", info["mismatched_keys"])):
        names = sorted(key if isinstance(key, str) else key[0] for key in keys)
        wrong = [key for key in names if key.startswith(body) and not key.startswith(f"{body}pooler.")]
        if wrong:
            raise CheckpointError(
                f"'{name}' {what} {len(wrong)} of the weights of its body, {wrong[0]} among them; take another copy of it"
            )
        if names:
            log.info("%s: new weights, from the seed: %s", name, ", ".join(names))
    if tokenizer is not None:
        check_fit(model, tokenizer)
    set_attention(model, attention)
    return model


def check_pooling(config: Any, pooling: str) -> None:
    """Raise ConfigError for a pooling that the stock class of an architecture cannot do: no other tool would read the model right."""
    allowed = POOLINGS.get(type(config).__name__, ("cls",))
    if pooling not in allowed:
        raise ConfigError(
            f"pooling = {pooling!r}: the stock class of {config.model_type} cannot do it, and would read the model otherwise than it was "
            f"trained; allowed: {', '.join(allowed)}"
        )
