"""How well a model predicts masked tokens of text it was not trained on: every number is named, on masks that never change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..data.batch import PackedBatch
from ..errors import DataError
from ..model.heads import forward_packed
from .distributed import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .precision import Precision

# rows of logits that are turned to fp32 at a time
CHUNK_ELEMENTS = 2**22
MAX_EXPONENT = 700.0  # exp of more is no float


def heldout(
    model: PreTrainedModel, batches: Iterable[PackedBatch], precision: Precision | None = None, world: World | None = None
) -> dict[str, Any]:
    """Return masked_loss, masked_perplexity, masked_accuracy, num_masked_tokens, num_documents, num_tokens of a model on frozen batches.

    `masked_loss` is the mean over masked tokens (not over batches) of the negative log-probability of the original token, summed in
    float64; the perplexity, its exponential, is that of a masked language model and does not compare with a causal one. `precision` names
    the number format of the products that were measured with. Of several processes (`world`) each runs its share of the batches.
    Units: masked_loss in nats. The model is left in the mode (training or evaluation) that it was in.
    Raises: DataError where the batches hold no masked token.
    """
    world = world or World()
    device = next(model.parameters()).device
    loss, correct, labels, tokens = 0.0, 0, 0, 0
    documents: set[int] = set()
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: what a model caches in it could not be trained with
            for number, batch in enumerate(batches):
                documents.update(document for document in batch.documents.tolist() if document >= 0)
                own = number % world.size == world.rank
                if not own and not world.is_sharded:  # of a sharded model every process takes part in every pass
                    continue
                batch = batch.to(device)
                with precision.autocast() if precision is not None else contextlib.nullcontext():
                    logits = forward_packed(model, batch)
                if not own:
                    continue
                batch_loss, batch_correct = sums(logits, batch.labels)
                loss, correct = loss + batch_loss, correct + batch_correct
                labels, tokens = labels + len(batch.labels), tokens + batch.num_tokens
    finally:
        model.train(training)
        if world.is_sharded:
            model.reshard()  # type: ignore[operator]  # what a pass back would have done
    loss, *counts = world.sum(loss, correct, labels, tokens)
    correct, labels, tokens = map(int, counts)
    found = numbers(loss, correct, labels, num_documents=len(documents), num_tokens=tokens)
    return {**found, "precision": precision.name if precision is not None else "fp32"}


def sums(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Return the sum of the negative log-probabilities of the labels, in float64, and how many labels are the most probable token.

    Shapes: logits (N, V), labels (N,).
    """
    rows = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    loss, correct = 0.0, 0
    for start in range(0, len(labels), rows):
        part, target = logits[start : start + rows].float(), labels[start : start + rows, None]
        terms = part.logsumexp(1, keepdim=True) - part.gather(1, target)
        loss += float(terms.sum(dtype=torch.float64))  # a million terms lose three digits in fp32
        correct += int((part.argmax(1, keepdim=True) == target).sum())
    return loss, correct


def numbers(loss: float, correct: int, num_masked_tokens: int, **counts: int) -> dict[str, Any]:
    """Return the named numbers from their sums over masked tokens.

    Raises: DataError where there is no masked token.
    """
    if not num_masked_tokens:
        raise DataError("there is nothing to measure on: no token of the held-out text is masked; hold out more (data.held_out)")
    mean = loss / num_masked_tokens
    return {
        "masked_loss": mean,
        "masked_perplexity": math.inf if mean > MAX_EXPONENT else math.exp(mean),
        "masked_accuracy": correct / num_masked_tokens,
        "num_masked_tokens": num_masked_tokens,
        **counts,
    }
