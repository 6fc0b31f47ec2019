"""Write a packed corpus: Arrow stream shards and, last of all, the record that says they are whole."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ..errors import RunError, StoreError
from .manifest import checksum

MARKER = "store.json"
FORMAT, VERSION = "unmask-token-store", 1
SHARD_BYTES = 256 * 2**20
BLOCK_BYTES = 2**14  # of a shard: what has a CRC-32 of its own, so that what is read can be checked without reading everything
BATCH_TOKENS = 2**20  # tokens a record batch: what the writer holds in memory, and what one message of a shard holds


class _Sink:
    """A file that is hashed while it is written, as a whole and block by block."""

    closed = False

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.hash = path, 0, hashlib.sha256()
        self.sums: list[int] = []
        self.running = 0  # the sum of the block that is not full yet
        self.file = open(path, "wb")

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.hash.update(view)
        at = 0
        while at < len(view):
            piece = view[at : at + BLOCK_BYTES - self.size % BLOCK_BYTES]
            self.running = zlib.crc32(piece, self.running)
            self.size, at = self.size + len(piece), at + len(piece)
            if self.size % BLOCK_BYTES == 0:
                self._end_block()
        try:
            return self.file.write(view)
        except OSError as error:
            raise self._full(error) from error

    def _end_block(self) -> None:
        self.sums.append(self.running)
        self.running = 0

    def record(self) -> dict[str, Any]:
        """Return size and sums of a shard that is closed, for `store.json`."""
        if self.size % BLOCK_BYTES:
            self._end_block()
        sums = base64.b64encode(np.array(self.sums, "<u4").tobytes()).decode()
        return {"size": self.size, "sha256": self.hash.hexdigest(), "block_bytes": BLOCK_BYTES, "crc32": sums}

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        if not self.closed:
            try:
                self.file.flush()
                os.fsync(self.file.fileno())
            except OSError as error:
                raise self._full(error) from error
            self.file.close()
            self.closed = True

    def _full(self, error: OSError) -> RunError:
        return RunError(f"'{self.path}' cannot be written ({error.strerror}); free some space, or choose a folder on another disk")


class StoreWriter:
    """Write a TokenStore in constant memory; the store exists once `close` has returned.

    Raises: StoreError where the folder holds a finished store already, or a token id is outside the vocabulary.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tokenizer_hash: str,
        vocab_size: int,
        shard_bytes: int = SHARD_BYTES,
        batch_tokens: int = BATCH_TOKENS,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        if (self.folder / MARKER).exists():
            raise StoreError(f"'{self.folder}' holds a packed corpus already; choose another folder, or remove it")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("shard-*.arrow"):  # of a writer that was killed
            left.unlink()
        self.tokenizer_hash, self.vocab_size = tokenizer_hash, int(vocab_size)
        self.shard_bytes, self.batch_tokens, self.extra = shard_bytes, batch_tokens, dict(metadata or {})
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        header = {"format": FORMAT, "version": str(VERSION), "tokenizer_hash": tokenizer_hash, "vocab_size": str(vocab_size)}
        self.schema = pa.schema(
            [
                ("id", pa.string()),
                ("input_ids", pa.list_(pa.from_numpy_dtype(self.dtype))),
                ("word_start", pa.list_(pa.bool_())),
                ("num_bytes", pa.int64()),
            ],
            metadata=header,
        )
        self._sink: _Sink | None = None
        self._stream: pa.RecordBatchStreamWriter | None = None
        self._shards: list[dict[str, Any]] = []
        self._documents = self._tokens = self._bytes = self._longest = 0
        self._clear()

    def _clear(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[str], np.ndarray]] = []
        self._held = self._rows = 0

    def add(self, ids: Sequence[Sequence[int]], word_start: Sequence[Any], document_ids: Sequence[str], num_bytes: Sequence[int]) -> None:
        """Append documents: for each its token ids, whether each token begins a word, its name, and its text's length in UTF-8 bytes."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        total = int(lengths.sum())
        if len(word_start) and isinstance(word_start[0], np.ndarray):
            starts = np.concatenate(list(word_start))
        else:
            starts = np.fromiter(itertools.chain.from_iterable(word_start), bool)
        if len(ids) and isinstance(ids[0], np.ndarray):
            flat = np.concatenate(list(ids))
        else:
            try:
                flat = np.fromiter(itertools.chain.from_iterable(ids), self.dtype, total)
            except OverflowError:  # an id that the type cannot hold: add_flat says which
                flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64, total)
        self.add_flat(flat, starts, lengths, document_ids, np.asarray(num_bytes, dtype=np.int64))

    def add_flat(
        self, ids: np.ndarray, word_start: np.ndarray, lengths: np.ndarray, document_ids: Sequence[str], num_bytes: np.ndarray
    ) -> None:
        """Append documents laid end to end, cut by `lengths`."""
        if not len(ids) == len(word_start) == int(lengths.sum()) or not len(lengths) == len(document_ids) == len(num_bytes):
            raise StoreError(
                f"documents that do not add up: {len(ids)} tokens, {len(word_start)} word starts, "
                f"lengths that sum to {int(lengths.sum())}; {len(lengths)} lengths, {len(document_ids)} ids, {len(num_bytes)} byte counts"
            )
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            wrong = int(ids.max()) if int(ids.max()) >= self.vocab_size else int(ids.min())
            raise StoreError(f"token id {wrong} is outside the vocabulary of {self.vocab_size}; pack with the tokenizer that made the ids")
        ids, word_start = ids.astype(self.dtype, copy=False), np.asarray(word_start, dtype=bool)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(lengths):  # as many documents as the record batch in hand has room for, one at least
            last = int(np.searchsorted(bounds, bounds[first] + self.batch_tokens - self._held, side="right")) - 1
            last = min(max(last, first + 1), len(lengths), first + 2**16)
            low, high = bounds[first], bounds[last]
            part = (ids[low:high], word_start[low:high], lengths[first:last], document_ids[first:last], num_bytes[first:last])
            self._parts.append(part)
            self._held += int(high - low)
            self._rows += last - first
            if self._held >= self.batch_tokens or self._rows >= 2**16 or last < len(lengths):
                self._flush()
            first = last

    def _flush(self) -> None:
        if not self._parts:
            return
        ids, word_start, lengths, _, num_bytes = (np.concatenate([part[i] for part in self._parts]) if i != 3 else None for i in range(5))
        assert ids is not None and word_start is not None and lengths is not None and num_bytes is not None
        names = list(itertools.chain.from_iterable(part[3] for part in self._parts))
        self._clear()
        if len(ids) >= 2**31:
            raise StoreError(f"document '{names[0]}' has {len(ids)} tokens; a document may have at most {2**31 - 1}: cut it")
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns = [
            pa.array(names, pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(ids)),
            pa.ListArray.from_arrays(offsets, pa.array(word_start)),
            pa.array(num_bytes, pa.int64()),
        ]
        if self._sink is None:
            path = self.folder / f"shard-{len(self._shards):05d}.arrow"
            self._sink = _Sink(path)
            self._stream = pa.ipc.new_stream(self._sink, self.schema)
            self._shards.append({"name": path.name, "documents": 0, "tokens": 0})
        assert self._stream is not None
        self._stream.write_batch(pa.record_batch(columns, schema=self.schema))
        self._shards[-1]["documents"] += len(lengths)
        self._shards[-1]["tokens"] += len(ids)
        self._documents += len(lengths)
        self._tokens += len(ids)
        self._bytes += int(num_bytes.sum())
        self._longest = max(self._longest, int(lengths.max()))
        if self._sink.size >= self.shard_bytes:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._sink is not None and self._stream is not None:
            self._stream.close()
            self._sink.close()
            self._shards[-1] |= self._sink.record()
            self._sink = self._stream = None

    def close(self) -> None:
        """Write what is left, then `store.json`: from then on the store can be opened."""
        if (self.folder / MARKER).exists():
            return
        self._flush()
        self._end_shard()
        record = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer_hash": self.tokenizer_hash,
            "vocab_size": self.vocab_size,
            "dtype": self.dtype.name,
            "num_documents": self._documents,
            "num_tokens": self._tokens,
            "num_bytes": self._bytes,
            "longest_document": self._longest,
            "shards": self._shards,
            **self.extra,
        }
        record["checksum"] = checksum(record)
        partial = self.folder / f"{MARKER}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / MARKER)

    def abort(self) -> None:
        """Remove what was written."""
        if self._sink is not None:
            self._sink.closed = True
            with contextlib.suppress(OSError):  # of a full disk, once more
                self._sink.file.close()
            self._sink = self._stream = None
        for shard in self._shards:
            (self.folder / shard["name"]).unlink(missing_ok=True)
        self._clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
