"""The one shape in which tokens meet a model: segments laid end to end, without padding between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RunError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """T tokens of S segments, N of them to be predicted.

    Shapes: input_ids (1, T) int64, corrupted; position_ids (1, T) int64, restarting in every segment;
        cu_seqlens (S+1,) int32, segment boundaries; label_positions (N,) int64, indices into T; labels (N,) int64, original ids;
        documents (S,) int64, the document number that each segment came from (-1 for the padding segment, if there is one);
        token_type_ids (1, T) int64, which sentence of a pair a token belongs to, or None where there are no pairs.
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
    token_type_ids: Tensor | None = None

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
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids.to(device, non_blocking=True),
        )

    def split(self) -> tuple[PackedBatch, PackedBatch]:
        """Return the batch as two of about half the tokens, cut between segments, the padding left out.

        Raises: RunError where there is one segment only: that cannot be made smaller.
        """
        real = int((self.documents >= 0).sum())
        if real < 2:
            raise RunError(
                f"a batch of one segment of {self.num_tokens} tokens cannot be split further; lower max_length, or choose a smaller model"
            )
        bounds = self.cu_seqlens.tolist()
        middle = min(range(1, real), key=lambda number: abs(2 * bounds[number] - bounds[real]))
        return self._part(0, middle), self._part(middle, real)

    def _part(self, first: int, last: int) -> PackedBatch:
        low, high = int(self.cu_seqlens[first]), int(self.cu_seqlens[last])
        inside = (self.label_positions >= low) & (self.label_positions < high)
        bounds = self.cu_seqlens[first : last + 1] - low
        return PackedBatch(
            input_ids=self.input_ids[:, low:high],
            position_ids=self.position_ids[:, low:high],
            cu_seqlens=bounds,
            max_seqlen=int(bounds.diff().max()),
            label_positions=self.label_positions[inside] - low,
            labels=self.labels[inside],
            documents=self.documents[first:last],
            num_tokens=high - low,
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[:, low:high],
        )
