"""The torch backend: a transformers model, packed, with its head at the labels only."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...data.batch import PackedBatch
from ...data.sizes import rounded
from ...model.heads import forward_packed, runs_packed
from ...model.linear import LaidOut
from ...model.load import max_positions, position_offset
from ...model.memory import tune_allocator
from ...train.loop import is_out_of_memory
from ...train.precision import choose
from . import Backend

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..request import Pack

# by model: hooks and modes are set on the model itself, so that one pass at a time may be under way in it, whoever shares it
_LOCKS: weakref.WeakKeyDictionary[PreTrainedModel, threading.RLock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


class TorchBackend(Backend):
    """Runs a transformers model; `precision` is fp32, bf16 or auto (whichever multiplies faster here)."""

    name = "torch"

    def __init__(self, model: PreTrainedModel, precision: str = "fp32") -> None:
        self.model = model
        self.device = model.device
        self.precision = choose(precision, self.device)
        self.max_length = max_positions(model)
        self.position_offset = position_offset(model)
        self.max_tokens = 4096 if self.device.type == "cpu" else 65536
        with self.precision.autocast():
            self.padded = not runs_packed(model, self.device.type)
        with _guard:
            self.lock = _LOCKS.setdefault(model, threading.RLock())
        self.laid_out = None
        if self.device.type == "cpu":
            tune_allocator()
            self.laid_out = LaidOut(model, torch.bfloat16 if self.precision.name == "bf16" else torch.float32)

    def forward(self, batch: Pack) -> Tensor:
        """Return the fp32 logits at the label positions of a pack. Shapes: (N, V)."""
        with self.precision.autocast(), self.laid_out.used() if self.laid_out else contextlib.nullcontext():
            filled = self._batch(batch)
            return forward_packed(self.model, filled.to(self.device))[: len(batch.label_positions)].float()

    def labels(self, batch: Pack) -> Tensor:
        """Return the labels of a pack on the model's device. Shapes: (N,)."""
        return torch.from_numpy(batch.labels).to(self.device)

    def _batch(self, batch: Pack) -> PackedBatch:
        """Return a pack as tensors; on the CPU there is filling after it, and rows of that after its own: sizes are few (data/sizes.py)."""
        tokens, longest = batch.num_tokens, int(batch.lengths.max())
        room = 0 if self.padded or self.device.type != "cpu" else rounded(tokens) - tokens
        # no segment is longer than the others are, and each has a row, as the others have where one is asked of each
        starts = np.arange(tokens, tokens + room, longest)
        filling = np.arange(room)
        # an architecture without sentence types has no such input
        typed = batch.token_type_ids is not None and getattr(self.model.config, "type_vocab_size", 0) > 1
        types = np.concatenate([batch.token_type_ids, np.zeros_like(filling)]) if typed else None
        pad = getattr(self.model.config, "pad_token_id", None) or 0
        return PackedBatch(
            input_ids=torch.from_numpy(np.concatenate([batch.input_ids, np.full_like(filling, pad)]))[None],
            position_ids=torch.from_numpy(np.concatenate([batch.position_ids, filling % longest]) + self.position_offset)[None],
            cu_seqlens=torch.from_numpy(np.concatenate([batch.bounds, starts[1:], [tokens + room] * bool(room)]).astype(np.int32)),
            max_seqlen=longest,
            label_positions=torch.from_numpy(np.concatenate([batch.label_positions, starts])),
            labels=torch.from_numpy(np.concatenate([batch.labels, np.zeros_like(starts)])),
            documents=torch.from_numpy(np.concatenate([np.arange(len(batch)), np.full(len(starts), -1)])),
            num_tokens=tokens,
            token_type_ids=None if types is None else torch.from_numpy(types)[None],
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Hold the model for one pass, in evaluation mode and without gradients, and leave it in the mode it was in."""
        with self.lock, torch.inference_mode():
            training = self.model.training
            if training:
                self.model.eval()
            try:
                yield
            finally:
                if training:
                    self.model.train()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether an error says that memory ran out, on whatever device."""
        return is_out_of_memory(error)

    def forget(self) -> None:
        """Let go of the laid out weights."""
        if self.laid_out is not None:
            self.laid_out.forget()

    def release(self) -> None:
        """Give what the failed pass held back to the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
