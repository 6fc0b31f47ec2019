"""Batches by number: `loader.batch(step)` is a pure function of (seed, step), so that a resumed run needs no state of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import ConfigError, TokenizerError
from .masking import BLOCK, REACH, MaskingConfig, Terms, Vocabulary, mask_tokens, num_blocks
from .plan import Plan
from .prefetch import Prefetch, prefetch
from .store import TokenStore

if TYPE_CHECKING:
    from pathlib import Path

    from .batch import PackedBatch

__all__ = ["Loader", "Packer", "Prefetch", "prefetch"]

Epoch = int | tuple[int | str, ...]


class SpecialIds(Protocol):
    """The ids of a tokenizer's special tokens, as `tokenizer.special_ids` gives them."""

    @property
    def mask(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def cls(self) -> int: ...
    @property
    def sep(self) -> int: ...
    @property
    def all(self) -> tuple[int, ...]: ...


class Packer:
    """Make packed batches of windows of a store's documents: [CLS] content [SEP], masked, padded to `micro_tokens`.

    Masks are drawn by the documents' numbers, or by `keys` (documents,) where they are given.
    """

    def __init__(
        self,
        store: TokenStore,
        specials: SpecialIds,
        masking: MaskingConfig,
        *,
        vocab_size: int,
        seed: int,
        max_length: int,
        micro_tokens: int,
        position_offset: int = 0,
        keys: np.ndarray | None = None,
        terms: Terms | None = None,
    ) -> None:
        if specials.mask is None:
            raise TokenizerError(
                "the tokenizer has no mask token; masked language modelling needs one: train a tokenizer with unmask tokenizer"
            )
        if store.vocab_size > vocab_size:
            raise TokenizerError(
                f"the packed corpus '{store.folder}' has ids of a vocabulary of {store.vocab_size}, "
                f"the model's vocabulary has {vocab_size}; use a model with as many, "
                "or pack the text again with the model's tokenizer"
            )
        self.store, self.specials, self.masking, self.seed, self.keys = store, specials, masking, seed, keys
        self.max_length, self.micro_tokens, self.position_offset = max_length, micro_tokens, position_offset
        # random replacements come from what the tokenizer knows, not from rows that pad the embedding matrix
        special = {number for number in (*specials.all, specials.mask, specials.pad, specials.cls, specials.sep) if number is not None}
        self.vocabulary = Vocabulary(int(specials.mask), tuple(sorted(special)), store.vocab_size, terms)
        self.before = np.array([number for number in (specials.cls,) if number is not None], dtype=np.int64)
        self.after = np.array([number for number in (specials.sep,) if number is not None], dtype=np.int64)

    @property
    def num_special(self) -> int:
        """How many special tokens a window has."""
        return len(self.before) + len(self.after)

    def arrays(
        self, document: np.ndarray, start: np.ndarray, stop: np.ndarray, *, epoch: Epoch, probability: float | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return original ids, corrupted ids and which are selected, of the windows laid end to end, without special tokens.

        A window's masks are made with all of the document around it (of a long one, with the blocks that it touches).
        """
        piece_document, piece_start, piece_stop, first_piece = self._pieces(document, start, stop)
        ids, words = self.store.gather(piece_document, piece_start, piece_stop)
        bounds = np.concatenate([[0], np.cumsum(piece_stop - piece_start)])
        corrupted, selected = mask_tokens(
            ids, words, bounds, piece_document if self.keys is None else self.keys[piece_document], piece_start,
            config=self.masking, vocabulary=self.vocabulary, seed=self.seed, epoch=epoch, probability=probability,
        )  # fmt: skip
        counts = stop - start
        if int(bounds[-1]) == int(counts.sum()):  # every window is the whole of its document
            return ids.astype(np.int64), corrupted, selected
        source = np.repeat(bounds[first_piece] + start - piece_start[first_piece] - (np.cumsum(counts) - counts), counts)
        source += np.arange(len(source))
        return ids[source].astype(np.int64), corrupted[source], selected[source]

    def _pieces(self, document: np.ndarray, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the blocks that windows touch, (document, start, stop), and the first block of each window."""
        length = self.store.lengths[document]
        if int(length.max(initial=0)) < 2 * BLOCK:  # documents of one block each
            return document, np.zeros_like(length), length, np.arange(len(document))
        blocks = num_blocks(length)
        first = np.minimum(np.maximum(start - REACH + 1, 0) // BLOCK, blocks - 1)
        last = np.minimum(-(-stop // BLOCK), blocks)
        counts = last - first
        first_piece = np.cumsum(counts) - counts
        window = np.repeat(np.arange(len(document)), counts)
        block = first[window] + np.arange(len(window)) - first_piece[window]
        return document[window], self._edges(document[window], block), self._edges(document[window], block + 1), first_piece

    def _edges(self, document: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Return where blocks begin: see masking.block_edges, which says it for one document."""
        length = self.store.lengths[document]
        edges = np.where(block == 0, 0, length)
        inner = np.flatnonzero((block > 0) & (block < num_blocks(length)))
        if len(inner):
            marks = block[inner] * BLOCK
            _, words = self.store.gather(document[inner], marks, marks + REACH)
            edges[inner] = marks + words.reshape(-1, REACH).argmax(axis=1)
        return edges

    def batch(
        self,
        document: np.ndarray,
        start: np.ndarray,
        stop: np.ndarray,
        *,
        epoch: Epoch,
        probability: float | None = None,
        room: int | None = None,
    ) -> PackedBatch:
        """Return one packed batch of windows, padded to `room` tokens (unset: `micro_tokens`)."""
        import torch

        from .batch import PackedBatch

        original, corrupted, selected = self.arrays(document, start, stop, epoch=epoch, probability=probability)
        content = stop - start
        sizes = content + self.num_special
        used = int(sizes.sum())
        total = room or self.micro_tokens
        room = total - used
        if room < 0:
            raise ConfigError(f"{used} tokens do not fit into micro_tokens = {total}")
        # the padding is one segment, unless that were longer than a window may be (and than the model has positions)
        padding = np.full(-(-room // self.max_length), self.max_length, dtype=np.int64)
        padding[-1:] = room - self.max_length * (len(padding) - 1)
        bounds = np.concatenate([[0], np.cumsum(np.concatenate([sizes, padding]))])
        begins = bounds[: len(sizes)]
        shift = np.repeat(begins + len(self.before) - (np.cumsum(content) - content), content)
        places = np.arange(len(shift)) + shift
        ids = np.full(total, self.specials.pad, dtype=np.int64)
        ids[begins[:, None] + np.arange(len(self.before))] = self.before
        ids[(begins + sizes)[:, None] - len(self.after) + np.arange(len(self.after))] = self.after
        ids[places] = corrupted
        positions = np.arange(total) - np.repeat(bounds[:-1] - self.position_offset, np.diff(bounds))
        return PackedBatch(
            input_ids=torch.from_numpy(ids)[None],
            position_ids=torch.from_numpy(positions)[None],
            cu_seqlens=torch.from_numpy(bounds.astype(np.int32)),
            max_seqlen=int(np.diff(bounds).max()),
            label_positions=torch.from_numpy(places[selected]),
            labels=torch.from_numpy(original[selected]),
            documents=torch.from_numpy(np.concatenate([document, np.full(len(padding), -1)])),
            num_tokens=used,
        )


class Loader:
    """The batches of a training run: every token of the store once an epoch, in an order and with masks that follow from the seed.

    Units: `batch_tokens` tokens a step over all micro-batches, each a PackedBatch of `micro_tokens` tokens, special tokens among them.
    With `batch_tokens_start`, the first step has so many, and `ramp_steps` steps later it is all of them. Of a large store the order is
    kept in the folder `keep`.
    Raises: ConfigError where the token counts do not fit one another; TokenizerError where the vocabulary does not fit the store.
    """

    def __init__(
        self,
        store: TokenStore,
        specials: SpecialIds,
        masking: MaskingConfig,
        *,
        vocab_size: int,
        seed: int,
        max_length: int,
        micro_tokens: int,
        batch_tokens: int,
        batch_tokens_start: int | None = None,
        ramp_steps: int = 0,
        position_offset: int = 0,
        shuffle: bool = True,
        keys: np.ndarray | None = None,
        terms: Terms | None = None,
        keep: Path | None = None,
    ) -> None:
        self.packer = Packer(
            store, specials, masking, vocab_size=vocab_size, seed=seed, max_length=max_length, micro_tokens=micro_tokens,
            position_offset=position_offset, keys=keys, terms=terms,
        )  # fmt: skip
        self.plan = Plan(
            store.lengths, seed=seed, max_length=max_length, num_special=self.packer.num_special,
            micro_tokens=micro_tokens, batch_tokens=batch_tokens, batch_tokens_start=batch_tokens_start, ramp_steps=ramp_steps,
            shuffle=shuffle, keep=keep,
        )  # fmt: skip
        self.masking = masking
        self.rank, self.size = 0, 1

    def divide(self, rank: int, size: int) -> None:
        """Give, from now on, only the part of every step that is one of `size` processes' own."""
        self.rank, self.size = rank, size
        if self.plan.kept is not None:
            self.plan.kept.writes = rank == 0

    def batch(self, step: int, probability: float | None = None) -> list[PackedBatch]:
        """Return the micro-batches of a step (counted from 0 over the whole run); `probability` is the mask rate of a schedule."""
        epoch, packs, room = self.plan.share(step, self.rank, self.size)
        windows = self.plan.windows
        return [
            self.packer.batch(
                windows.document[pack], windows.start[pack], windows.stop[pack], epoch=epoch, probability=probability, room=room
            )
            for pack in packs
        ]

    def steps_per_epoch(self, epoch: int = 0) -> int:
        """Return how many steps an epoch has: the same for every epoch, but for those of a ramp."""
        return self.plan.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) that a step belongs to."""
        return self.plan.epoch_of(step)

    def num_tokens_of(self, step: int) -> int:
        """Return how many real tokens, special ones among them, a step has, in all processes."""
        return int(sum(self.plan.sizes[pack].sum() for pack in self.plan.packs(step)[1]))

    @property
    def tokens_a_step(self) -> float:
        """How many content tokens a step has, in the mean."""
        return self.packer.store.num_tokens / self.plan.steps_per_epoch

    def document_id(self, document: int) -> str:
        """Return the name that a document was packed with."""
        return self.packer.store.document_id(document)

    def tokens_of(self, document: int) -> np.ndarray:
        """Return the token ids of a document, without special tokens."""
        return self.packer.store.ids(document)
