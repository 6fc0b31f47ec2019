"""The packed corpus on disk: Arrow stream shards, memory-mapped, read as numpy views without a copy.

A store is a folder of `shard-00000.arrow` ... and `store.json`, which is written last: a folder without it is not finished.
A shard has a row for each document: `id` string, `input_ids` list<uint16 or uint32>, `word_start` list<bool>, `num_bytes` int64.
Only content is stored, without [CLS] or [SEP], so that one store serves every window length. The stream format (not the
file format) is the one that `datasets.Dataset.from_file` opens; polars reads it with `read_ipc_stream`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from ..errors import StoreError

MARKER = "store.json"
FORMAT, VERSION = "unmask-token-store", 1
SHARD_BYTES = 256 * 2**20
BATCH_TOKENS = 2**20  # tokens a record batch: what the writer holds in memory, and what one message of a shard holds
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # how an Arrow stream ends


class _Sink:
    """A file that is hashed while it is written."""

    closed = False

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.hash = path, 0, hashlib.sha256()
        self.file = open(path, "wb")  # noqa: SIM115  (closed by close)

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.hash.update(view)
        self.size += view.nbytes
        return self.file.write(view)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        if not self.closed:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.closed = True


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

    def add(
        self, ids: Sequence[Sequence[int]], word_start: Sequence[Any], document_ids: Sequence[str], num_bytes: Sequence[int]
    ) -> None:
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
                f"documents that do not add up: {len(ids)} tokens, {len(word_start)} word starts, lengths that sum to {int(lengths.sum())}; "
                f"{len(lengths)} lengths, {len(document_ids)} ids, {len(num_bytes)} byte counts"
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
            self._shards[-1] |= {"size": self._sink.size, "sha256": self._sink.hash.hexdigest()}
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
        record["checksum"] = _checksum(record)
        partial = self.folder / f"{MARKER}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / MARKER)

    def abort(self) -> None:
        """Remove what was written."""
        if self._sink is not None:
            self._sink.file.close()
            self._sink.closed = True
            with contextlib.suppress(Exception):
                self._stream.close()  # type: ignore[union-attr]
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


def _checksum(record: dict[str, Any]) -> str:
    plain = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class TokenStore:
    """A packed corpus, memory-mapped: token ids by document, without a copy.

    Shapes: `lengths` (documents,) int64, content tokens of each document, no special tokens among them.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder, self.metadata = folder, metadata
        self.dtype = np.dtype(metadata["dtype"])
        self._ids: list[np.ndarray] = []  # each shard's bytes, seen as token ids
        self._bits: list[np.ndarray] = []  # the same bytes, seen as bytes
        self._batches: list[pa.RecordBatch] = []
        places: list[tuple[int, int, int]] = []  # of a record batch: shard, first token id in its view, first bit in its bytes
        lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        for number, shard in enumerate(metadata["shards"]):
            for batch, place, counts in self._map(number, shard):
                self._batches.append(batch)
                places.append(place)
                lengths.append(counts)
        self.lengths = np.concatenate(lengths)
        self._first = np.concatenate([[0], np.cumsum([len(counts) for counts in lengths[1:]])]).astype(np.int64)
        self._bounds = np.concatenate([[0], np.cumsum(self.lengths)])
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)
        for name, found in (("num_documents", len(self.lengths)), ("num_tokens", int(self._bounds[-1]))):
            if found != metadata[name]:
                raise self._damaged(self.folder, f"its shards hold {found} {name[4:]}, {MARKER} says {metadata[name]}")

    @classmethod
    def open(cls, folder: str | Path, *, tokenizer_hash: str | None = None, verify: bool = False) -> TokenStore:
        """Return the store in `folder`; sizes, ends and counts are checked, and with `verify` every byte and every id.

        Raises: StoreError where it is missing, not finished, damaged, or was built with another tokenizer than `tokenizer_hash`.
        """
        folder = Path(folder)
        marker = folder / MARKER
        if not marker.exists():
            if any(folder.glob("shard-*.arrow")):
                raise StoreError(f"the packed corpus '{folder}' was never finished ({MARKER} is missing); pack the text again")
            inside = [name for name in ("train", "heldout") if (folder / name / MARKER).exists()]
            hint = f"it is in '{folder / inside[0]}'" if inside else "make one with: unmask pack FILES --out FOLDER"
            raise StoreError(f"there is no packed corpus in '{folder}' (no {MARKER}); {hint}")
        try:
            metadata = json.loads(marker.read_text(encoding="utf-8"))
            sound = metadata["checksum"] == _checksum(metadata)
        except (ValueError, KeyError, TypeError) as error:
            raise cls._damaged(marker, f"not the record that was written ({error})") from None
        if not sound:
            raise cls._damaged(marker, "its checksum does not agree with its content")
        if metadata["format"] != FORMAT or metadata["version"] != VERSION:
            raise StoreError(f"'{marker}' has format {metadata['format']} version {metadata['version']}; this Unmask reads {FORMAT} {VERSION}")
        built = metadata["tokenizer_hash"]
        if tokenizer_hash is not None and tokenizer_hash != built:
            raise StoreError(
                f"the packed corpus '{folder}' was built with the tokenizer {built}, not with {tokenizer_hash}; pack the text again "
                f"with this tokenizer, or use the one that the corpus was packed with (saved in '{folder.parent / 'tokenizer'}' by unmask pack)"
            )
        store = cls(folder, metadata)
        if verify:
            store.verify()
        return store

    @staticmethod
    def _damaged(path: Path, how: str) -> StoreError:
        return StoreError(f"'{path}' is damaged: {how}; pack the text again, or copy the folder again from where it is whole")

    def _map(self, number: int, shard: dict[str, Any]) -> list[tuple[pa.RecordBatch, tuple[int, int, int], np.ndarray]]:
        path = self.folder / shard["name"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise self._damaged(path, f"it cannot be read ({error.strerror})") from None
        if size != shard["size"]:
            raise self._damaged(path, f"it has {size} bytes, {MARKER} says {shard['size']}")
        result = []
        try:
            data = pa.memory_map(str(path)).read_buffer()
            if data[-len(_END) :].to_pybytes() != _END:
                raise self._damaged(path, "its end is not the end of an Arrow stream")
            for batch in pa.ipc.open_stream(data):
                ids, words = batch.column("input_ids"), batch.column("word_start")
                if ids.values.type != pa.from_numpy_dtype(self.dtype):
                    raise self._damaged(path, f"its ids are {ids.values.type}, {MARKER} says {self.dtype}")
                offsets = ids.offsets.to_numpy()
                counts = np.diff(offsets).astype(np.int64)
                if offsets[0] != 0 or counts.min() < 0 or not offsets[-1] == len(ids.values) == len(words.values):
                    raise self._damaged(path, "its document offsets do not agree with its tokens")
                place = [(column.values.buffers()[1].address - data.address) if len(column.values) else 0 for column in (ids, words)]
                result.append((batch, (number, place[0] // self.dtype.itemsize, place[1] * 8), counts))
        except (pa.ArrowException, OSError, KeyError, AttributeError) as error:
            raise self._damaged(path, str(error)) from None
        self._ids.append(np.frombuffer(data, self.dtype, count=size // self.dtype.itemsize))
        self._bits.append(np.frombuffer(data, np.uint8))
        return result

    def verify(self) -> None:
        """Read every byte and compare it with the checksums of `store.json`; raise StoreError where they differ."""
        for shard, data in zip(self.metadata["shards"], self._bits, strict=True):
            found = hashlib.sha256(data.data).hexdigest()
            if found != shard["sha256"]:
                raise self._damaged(self.folder / shard["name"], f"its SHA-256 is {found[:16]}..., {MARKER} says {shard['sha256'][:16]}...")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """How many content tokens the store holds."""
        return int(self.metadata["num_tokens"])

    @property
    def tokenizer_hash(self) -> str:
        """The hash of the tokenizer that made the ids."""
        return str(self.metadata["tokenizer_hash"])

    @property
    def vocab_size(self) -> int:
        """The size of that tokenizer's vocabulary."""
        return int(self.metadata["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the tokens, their documents and their tokenizer."""
        parts = [self.tokenizer_hash, *(shard["sha256"] for shard in self.metadata["shards"])]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _locate(self, document: int) -> tuple[int, int]:
        if not 0 <= document < len(self.lengths):
            raise IndexError(f"document {document} of a store of {len(self.lengths)}")
        batch = int(np.searchsorted(self._first, document, side="right")) - 1
        return batch, document - int(self._first[batch])

    def ids(self, document: int) -> np.ndarray:
        """Return the token ids of a document, a view of the file."""
        batch, _ = self._locate(document)
        shard, place, _ = self._places[batch]
        start = place + self._bounds[document] - self._bounds[self._first[batch]]
        return self._ids[shard][start : start + self.lengths[document]]

    def word_start(self, document: int) -> np.ndarray:
        """Return, for each token of a document, whether it begins a word."""
        return self.gather(np.array([document]))[1]

    def gather(
        self, documents: np.ndarray, starts: np.ndarray | None = None, stops: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens [start, stop) of each document, laid end to end: their ids and whether each begins a word.

        Shapes: documents, starts, stops (n,); both results (sum of stops - starts,).
        """
        starts = np.zeros(len(documents), np.int64) if starts is None else starts
        counts = (self.lengths[documents] if stops is None else stops) - starts
        batch = np.searchsorted(self._first, documents, side="right") - 1
        inside = self._bounds[documents] - self._bounds[self._first[batch]] + starts
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        ids, words = np.empty(total, self.dtype), np.empty(total, bool)
        shards = self._places[batch, 0]
        within = np.arange(total) + np.repeat(inside - (ends - counts), counts)
        for shard in np.unique(shards):
            chosen = shards == shard
            where = slice(None) if chosen.all() else np.repeat(chosen, counts)
            place = within[where]
            token = place + np.repeat(self._places[batch[chosen], 1], counts[chosen])
            bit = place + np.repeat(self._places[batch[chosen], 2], counts[chosen])
            ids[where] = self._ids[shard][token]
            words[where] = (self._bits[shard][bit >> 3] >> (bit & 7).astype(np.uint8)) & 1
        return ids, words

    def document_id(self, document: int) -> str:
        """Return the name that a document was packed with."""
        batch, row = self._locate(document)
        return str(self._batches[batch].column("id")[row].as_py())

    def num_bytes(self, document: int) -> int:
        """Return the length of a document's text in UTF-8 bytes."""
        batch, row = self._locate(document)
        return int(self._batches[batch].column("num_bytes")[row].as_py())
