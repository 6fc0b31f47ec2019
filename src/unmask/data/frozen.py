"""Masks that never change, to measure on: a function of (seed, view, what a document says), and of nothing around it.

The key of a document is a hash of its token ids, so that neither its name, nor its place among others, nor the batch or the process that
it is in changes its masks; the same document has them in a packed corpus and in a file of raw text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .loader import Packer, SpecialIds
from .masking import MaskingConfig
from .plan import cut, pack
from .store import TokenStore

if TYPE_CHECKING:
    from .batch import PackedBatch

EVAL_MASKING = MaskingConfig(mlm_probability=0.15)  # whatever a run trains with, it is measured on the same masks
# what stands in the place of the masked tokens: as in training (80/10/10, which includes tokens that can be copied), or [MASK] alone
POLICIES = {"corrupt": EVAL_MASKING, "mask": MaskingConfig(mlm_probability=0.15, mask_replace_prob=1.0, random_replace_prob=0.0)}
EVAL_SEED = 0
GROUP_TOKENS = 2**20


def content_keys(store: TokenStore) -> np.ndarray:
    """Return for each document of a store the hash of its token ids, (documents,) uint64."""
    keys = np.zeros(len(store), np.uint64)
    for group in _groups(np.arange(len(store)), store.lengths):
        ids, _ = store.gather(group)
        keys[group] = _hashes(np.split(ids.astype("<u4"), np.cumsum(store.lengths[group])[:-1]))
    return keys


def frozen_order(store: TokenStore, keys: np.ndarray, max_tokens: int = 0) -> np.ndarray:
    """Return the documents that hold a token, in the order of their keys; of them, with `max_tokens`, the first that have no more together.

    One document at least is among them, where there is one.
    """
    filled = np.flatnonzero(store.lengths)
    order = filled[np.argsort(keys[filled], kind="stable")]
    if not max_tokens:
        return order
    return order[: max(1, int((store.lengths[order].cumsum() <= max_tokens).sum()))]


@dataclass(frozen=True, slots=True)
class Frozen:
    """Some documents laid end to end, masked: `masks` is a hash of each of them and of what was done to it, (documents,) uint64."""

    documents: np.ndarray
    original: np.ndarray
    corrupted: np.ndarray
    selected: np.ndarray
    masks: np.ndarray


def frozen_documents(packer: Packer, documents: np.ndarray, *, view: int = 0, group_tokens: int = GROUP_TOKENS) -> Iterator[Frozen]:
    """Yield documents, which hold a token each, in groups of about `group_tokens` tokens, with their frozen masks.

    `packer` draws by content: its `keys` are those of `content_keys`.
    """
    for group in _groups(documents, packer.store.lengths, group_tokens):
        lengths = packer.store.lengths[group]
        arrays = packer.arrays(group, np.zeros_like(lengths), lengths, epoch=("eval", view), probability=None)
        ends = np.cumsum(lengths)[:-1]
        both = np.stack([arrays[0], np.where(arrays[2], arrays[1], -1)], axis=1).astype("<i4")
        yield Frozen(group, *arrays, _hashes(np.split(both, ends)))


def frozen_batches(
    store: TokenStore,
    specials: SpecialIds,
    masking: MaskingConfig,
    *,
    vocab_size: int,
    seed: int,
    max_length: int,
    micro_tokens: int,
    position_offset: int = 0,
    view: int = 0,
    documents: np.ndarray | None = None,
) -> Iterator[PackedBatch]:
    """Return batches of the whole store (or of some documents) with masks that are the same at every call; `view` names another draw."""
    packer = Packer(
        store, specials, masking, keys=content_keys(store),
        vocab_size=vocab_size, seed=seed, max_length=max_length, micro_tokens=micro_tokens, position_offset=position_offset,
    )  # fmt: skip
    documents = np.arange(len(store)) if documents is None else documents
    windows = cut(store.lengths[documents], max_length - packer.num_special)
    packs = pack(windows.stop - windows.start + packer.num_special, np.arange(len(windows)), micro_tokens)
    for number in range(len(packs)):
        chosen = packs[number]
        yield packer.batch(documents[windows.document[chosen]], windows.start[chosen], windows.stop[chosen], epoch=("eval", view))


def masks_fingerprint(
    store: TokenStore,
    specials: SpecialIds,
    masking: MaskingConfig,
    *,
    vocab_size: int,
    seed: int,
    view: int = 0,
    documents: np.ndarray | None = None,
) -> str:
    """Return 16 hex digits that stand for the frozen masks: the documents' tokens, which are hidden, and behind what.

    It does not depend on the window length or the batch size, nor on the names or the order of the documents, none of which change the
    masks.
    """
    keys = content_keys(store)
    packer = Packer(store, specials, masking, keys=keys, vocab_size=vocab_size, seed=seed, max_length=2**31, micro_tokens=2**31)
    chosen = frozen_order(store, keys)
    if documents is not None:
        chosen = chosen[np.isin(chosen, documents)]
    return fingerprint(np.concatenate([np.zeros(0, np.uint64), *(group.masks for group in frozen_documents(packer, chosen, view=view))]))


def fingerprint(masks: np.ndarray) -> str:
    """Return 16 hex digits over the hashes of documents' masks, which stand in the order of the documents' keys."""
    return hashlib.sha256(np.ascontiguousarray(masks, dtype="<u8").tobytes()).hexdigest()[:16]


def _groups(documents: np.ndarray, lengths: np.ndarray, group_tokens: int = GROUP_TOKENS) -> Iterator[np.ndarray]:
    ends = np.cumsum(lengths[documents])
    for group in np.split(documents, np.flatnonzero(np.diff(ends // group_tokens)) + 1):
        if len(group):
            yield group


def _hashes(parts: list[np.ndarray]) -> np.ndarray:
    return np.array([int.from_bytes(hashlib.blake2b(part.tobytes(), digest_size=8).digest(), "little") for part in parts], np.uint64)
