"""The packed corpus on disk: Arrow stream shards, memory-mapped, read as numpy views without a copy.

A store is a folder of `shard-00000.arrow` ... and `store.json`, which is written last: a folder without it is not finished.
A shard has a row for each document: `id` string, `input_ids` list<uint16 or uint32>, `word_start` list<bool>, `num_bytes` int64.
Only content is stored, without [CLS] or [SEP], so that one store serves every window length. The stream format (not the
file format) is the one that `datasets.Dataset.from_file` opens; polars reads it with `read_ipc_stream`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import StoreError
from .blocks import Blocks
from .manifest import checksum
from .store_writer import FORMAT, MARKER, VERSION, StoreWriter

__all__ = ["StoreWriter", "TokenStore"]

_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # how an Arrow stream ends


class TokenStore:
    """A packed corpus, memory-mapped: token ids by document, without a copy.

    Shapes: `lengths` (documents,) int64, content tokens of each document, no special tokens among them.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any], *, verify: bool = False) -> None:
        self.folder, self.metadata = folder, metadata
        self.dtype = np.dtype(metadata["dtype"])
        self._ids: list[np.ndarray] = []  # each shard's bytes, seen as token ids
        self._bits: list[np.ndarray] = []  # the same bytes, seen as bytes
        self._blocks: list[Blocks | None] = []  # of each shard, None where all of it was checked
        self._batches: list[pa.RecordBatch] = []
        places: list[tuple[int, int, int]] = []  # of a record batch: shard, first token id in its view, first bit in its bytes
        lengths: list[np.ndarray] = [np.zeros(0, np.int64)]
        for number, shard in enumerate(metadata["shards"]):
            for batch, place, counts in self._map(number, shard, verify):
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
        """Return the store in `folder`; what is read of it is checked when it is read first, and with `verify` every byte now.

        Raises: StoreError where it is missing, not finished, damaged, or was built with another tokenizer than `tokenizer_hash`; damage
        to a document is found when that is read.
        """
        folder = Path(folder)
        marker = folder / MARKER
        if not marker.exists():
            if any(folder.glob("shard-*.arrow")):
                raise StoreError(f"the packed corpus '{folder}' was never finished ({MARKER} is missing); pack the text again")
            inside = [name for name in ("train", "heldout") if (folder / name / MARKER).exists()]
            hint = f"it is in '{folder / inside[0]}'" if inside else "make one with: unmask pack FILES -o FOLDER"
            raise StoreError(f"there is no packed corpus in '{folder}' (no {MARKER}); {hint}")
        try:
            metadata = json.loads(marker.read_text(encoding="utf-8"))
            sound = metadata["checksum"] == checksum(metadata)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise cls._damaged(marker, f"not the record that was written ({error})") from None
        if not sound:
            raise cls._damaged(marker, "its checksum does not agree with its content")
        if metadata["format"] != FORMAT or metadata["version"] != VERSION:
            raise StoreError(
                f"'{marker}' has format {metadata['format']} version {metadata['version']}; this Unmask reads {FORMAT} {VERSION}"
            )
        built = metadata["tokenizer_hash"]
        if tokenizer_hash is not None and tokenizer_hash != built:
            raise StoreError(
                f"the packed corpus '{folder}' was built with the tokenizer {built}, not with {tokenizer_hash}; pack the text again "
                f"with this tokenizer, or use the one that it was packed with (unmask pack saves it in '{folder.parent / 'tokenizer'}')"
            )
        return cls(folder, metadata, verify=verify)

    @staticmethod
    def _damaged(path: Path, how: str) -> StoreError:
        return StoreError(f"'{path}' is damaged: {how}; pack the text again, or copy the folder again from where it is whole")

    def _map(self, number: int, shard: dict[str, Any], verify: bool) -> list[tuple[pa.RecordBatch, tuple[int, int, int], np.ndarray]]:
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
            whole = verify or "crc32" not in shard  # a store of an earlier Unmask has no sums of its blocks
            if whole and hashlib.sha256(data).hexdigest() != shard["sha256"]:
                raise self._damaged(path, f"its bytes are not those that were written (SHA-256 {shard['sha256'][:16]}... in {MARKER})")
            lazy: list[tuple[int, int]] = []  # where the columns lie that are checked when they are read
            for batch in pa.ipc.open_stream(data):
                batch.validate()  # the shape only, not the content
                ids, words = batch.column("input_ids"), batch.column("word_start")
                if ids.values.type != pa.from_numpy_dtype(self.dtype):
                    raise self._damaged(path, f"its ids are {ids.values.type}, {MARKER} says {self.dtype}")
                offsets = ids.offsets.to_numpy()
                counts = np.diff(offsets).astype(np.int64)
                if offsets[0] != 0 or counts.min() < 0 or not offsets[-1] == len(ids.values) == len(words.values):
                    raise self._damaged(path, "its document offsets do not agree with its tokens")
                place = [(column.values.buffers()[1].address - data.address) if len(column.values) else 0 for column in (ids, words)]
                if not all(0 <= offset < size for offset in place) or place[0] % self.dtype.itemsize:
                    raise self._damaged(path, "its tokens do not lie in it as they are (a store must not be compressed)")
                result.append((batch, (number, place[0] // self.dtype.itemsize, place[1] * 8), counts))
                known = {(ids.buffers()[1].address, ids.buffers()[1].size)}  # the offsets, read just now
                lazy += [(low - data.address, low - data.address + size) for low, size in self._extents(batch) - known]
            blocks = None if whole else Blocks(np.frombuffer(data, np.uint8), shard)
            if blocks is not None:
                blocks.check_but(*np.array(lazy, np.int64).reshape(-1, 2).T)
        except StoreError:
            raise
        # pyarrow raises all of these, and so do the sums of blocks
        except (pa.ArrowException, OSError, KeyError, AttributeError, SystemError, TypeError, ValueError, OverflowError) as error:
            raise self._damaged(path, str(error)) from None
        self._ids.append(np.frombuffer(data, self.dtype, count=size // self.dtype.itemsize))
        self._bits.append(np.frombuffer(data, np.uint8))
        self._blocks.append(blocks)
        return result

    @staticmethod
    def _extents(batch: pa.RecordBatch, *names: str) -> set[tuple[int, int]]:
        """Return address and size of the buffers of a record batch's columns, of all where none are named."""
        columns = [batch.column(name) for name in names or batch.schema.names]
        return {(buffer.address, buffer.size) for column in columns for buffer in column.buffers() if buffer is not None}

    def _check(self, shard: int, start: np.ndarray, stop: np.ndarray) -> None:
        """Check bytes [start, stop) of a shard before they are read.

        Raises: StoreError.
        """
        blocks = self._blocks[shard]
        if blocks is None:
            return
        try:
            blocks.check(start, stop)
        except ValueError as error:
            raise self._damaged(self.folder / self.metadata["shards"][shard]["name"], str(error)) from None

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
        stop = start + self.lengths[document]
        self._check(shard, *(np.array([self.dtype.itemsize * one]) for one in (start, stop)))
        return self._ids[shard][start:stop]

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
            for column, unit in ((1, 8 * self.dtype.itemsize), (2, 1)):  # both in bits
                low = (inside[chosen] + self._places[batch[chosen], column]) * unit
                self._check(shard, low >> 3, (low + counts[chosen] * unit + 7) >> 3)
            place = within[where]
            token = place + np.repeat(self._places[batch[chosen], 1], counts[chosen])
            bit = place + np.repeat(self._places[batch[chosen], 2], counts[chosen])
            ids[where] = self._ids[shard][token]
            words[where] = (self._bits[shard][bit >> 3] >> (bit & 7).astype(np.uint8)) & 1
        return ids, words

    def document_id(self, document: int) -> str:
        """Return the name that a document was packed with."""
        return str(self._cell(document, "id"))

    def num_bytes(self, document: int) -> int:
        """Return the length of a document's text in UTF-8 bytes."""
        return int(self._cell(document, "num_bytes"))

    def _cell(self, document: int, name: str) -> Any:
        batch, row = self._locate(document)
        shard = int(self._places[batch][0])
        low, size = np.array(sorted(self._extents(self._batches[batch], name)), np.int64).T
        low -= self._bits[shard].ctypes.data
        self._check(shard, low, low + size)
        return self._batches[batch].column(name)[row].as_py()
