"""The one shape in which tokens meet a model: segments laid end to end, without padding between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """T tokens of S segments, N of them to be predicted.

    Shapes: input_ids (1, T) int64, corrupted; position_ids (1, T) int64, restarting in every segment;
        cu_seqlens (S+1,) int32, segment boundaries; label_positions (N,) int64, indices into T; labels (N,) int64, original ids;
        documents (S,) int64, the document number that each segment came from (-1 for the padding segment, if there is one).
    `num_tokens` counts the real tokens: T less the padding segment at the end that keeps T the same in every step.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    label_positions: Tensor
    labels: Tensor
    documents: Tensor
    num_tokens: int

    def to(self, device: str | torch.device) -> PackedBatch:
        """Return the batch on another device (the counts stay)."""
        return PackedBatch(
            input_ids=self.input_ids.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=True),
            max_seqlen=self.max_seqlen,
            label_positions=self.label_positions.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            documents=self.documents,
            num_tokens=self.num_tokens,
        )
