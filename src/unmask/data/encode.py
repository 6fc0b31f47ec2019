"""Texts to token ids and word starts in bulk: batches encoded in Rust on all cores while the batch before is laid out and stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from .store import StoreWriter

PART_CHARS = 1 << 16  # longer texts are encoded in parts, cut before spaces: an Encoding takes a hundred times its text's memory
PARTS_AT_ONCE = 32

Batch = tuple[str, list[str], list[str]]  # side, ids of the documents, texts
Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids and word starts of documents end to end, lengths


class Encoder:
    """A tokenizer at work on a corpus; it keeps the totals."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        from .tokenizer import special_ids, tokenizer_hash, word_table

        self.tokenizer, self.hash, self.vocab_size = tokenizer, tokenizer_hash(tokenizer), len(tokenizer)
        self.unk = special_ids(tokenizer).unk
        self.words = word_table(tokenizer)
        # a copy: no truncation, no padding, and a "[MASK]" that stands in a text is text
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.totals = {side: {"documents": 0, "bytes": 0, "tokens": 0, "unknown": 0} for side in ("train", "heldout")}

    @classmethod
    def of(cls, tokenizer: Any) -> Encoder:
        """Return the encoder of a tokenizer, or of the one with this name or in this folder."""
        from .tokenizer import load_tokenizer

        return cls(load_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else tokenizer)

    def writer(self, folder: Path) -> StoreWriter:
        """Return a writer of a store for this tokenizer."""
        from .store import StoreWriter

        return StoreWriter(folder, tokenizer_hash=self.hash, vocab_size=self.vocab_size)

    def save(self, folder: Path) -> None:
        """Save the tokenizer beside the corpus."""
        from .manifest import write_manifest
        from .tokenizer import save_tokenizer

        save_tokenizer(self.tokenizer, folder)
        write_manifest(folder)

    def encode_all(self, batches: Iterable[Batch]) -> Iterator[tuple[str, list[str], list[str], Tokens]]:
        """Yield each batch with its tokens; the next one is being encoded meanwhile."""
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
            waiting: tuple[_Group, Future[list[Any]]] | None = None
            done: list[Tokens] = []
            for group in chain(_groups(batches), [None]):
                ahead = group and (group, pool.submit(self.backend.encode_batch_fast, group.parts, add_special_tokens=False))
                if waiting is not None:
                    before, future = waiting
                    done.append(self._lay_out(future.result()))
                    del future
                    waiting = None  # the encodings are large: let go of them before the next ones are here
                    if before.last:
                        yield *before.batch, self._join(done, before.counts)
                        done = []
                waiting = ahead

    def _lay_out(self, encodings: list[Any]) -> Tokens:
        """Return the tokens of encodings; the word starts only where the vocabulary does not tell them."""
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum()))
        if self.words is not None:
            return flat, np.zeros(0, bool), lengths
        from .tokenizer import word_starts

        return flat, np.concatenate([np.zeros(0, bool), *word_starts(self.tokenizer, encodings)]), lengths

    def _join(self, groups: list[Tokens], counts: list[int]) -> Tokens:
        """Return the tokens of a batch from those of its groups of parts; `counts` says how many parts each document has."""
        flat, starts, lengths = groups[0] if len(groups) == 1 else (np.concatenate([group[i] for group in groups]) for i in range(3))
        if len(counts) != len(lengths):
            lengths = np.add.reduceat(lengths, np.cumsum([0, *counts[:-1]]))
        if self.words is not None:
            starts = self.words.starts(flat, np.cumsum(lengths) - lengths)
        return flat, starts, lengths

    def count(self, side: str, tokens: Tokens, sizes: np.ndarray) -> None:
        """Add a batch to the totals."""
        totals = self.totals[side]
        totals["documents"] += len(sizes)
        totals["bytes"] += int(sizes.sum())
        totals["tokens"] += len(tokens[0])
        totals["unknown"] += int((tokens[0] == self.unk).sum()) if self.unk is not None else 0


class _Group(NamedTuple):
    """What is encoded in one call: a batch, or a stretch of the parts of one that holds very long documents."""

    batch: Batch
    counts: list[int]
    parts: list[str]
    last: bool


def _groups(batches: Iterable[Batch]) -> Iterator[_Group]:
    for batch in batches:
        parts, counts = _cut(batch[2])
        if parts is batch[2]:
            yield _Group(batch, counts, parts, True)
            continue
        for first in range(0, len(parts), PARTS_AT_ONCE):
            yield _Group(batch, counts, parts[first : first + PARTS_AT_ONCE], first + PARTS_AT_ONCE >= len(parts))


def _cut(texts: list[str]) -> tuple[list[str], list[int]]:
    """Return texts with the long ones in parts, and how many parts each has."""
    if all(len(text) <= PART_CHARS for text in texts):
        return texts, [1] * len(texts)
    parts: list[str] = []
    counts = []
    for text in texts:
        before = len(parts)
        start = 0
        while len(text) - start > PART_CHARS:
            low, high = start + PART_CHARS // 2, start + PART_CHARS
            end = max(text.rfind(" ", low, high), text.rfind("\n", low, high))
            end = end if end > 0 else high
            parts.append(text[start:end])
            start = end
        parts.append(text[start:])
        counts.append(len(parts) - before)
    return parts, counts
