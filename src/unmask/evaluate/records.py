"""What a model said at every masked token of a text: columns on disk, memory-mapped, from which every metric is computed.

A Records is a folder of two Arrow IPC files, each of one record batch, so that a column is one numpy view of the file: `records.arrow`
has a row for each masked token, in the order of (document, view, position); `documents.arrow` a row for each document, in the order of the
hash of its content. A manifest beside them, written last, says what they held. Nothing here depends on the order in which documents came,
on the batch size or on the number of processes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa

from ..data.frozen import fingerprint
from ..data.manifest import check_manifest, write_manifest
from ..errors import DataError

RECORDS, DOCUMENTS = "records.arrow", "documents.arrow"
AGAIN = "evaluate or compare again"  # what mends a folder of results
ACTIONS = ("mask", "random", "keep")  # what stood in a masked token's place: the numbers of the column `action`

# of a masked token
COLUMNS: dict[str, Any] = {
    "document": np.int32,  # row of the documents' table
    "view": np.int16,  # which of several draws of masks
    "position": np.int32,  # of the token in its document, special tokens not counted
    "label": np.int32,  # the original id
    "predicted": np.int32,  # the most probable id
    "log_prob": np.float32,  # of the label, in nats
    "confidence": np.float32,  # the probability of the predicted id
    "rank": np.int32,  # of the label, 1 is best; of equally probable ids the others come first
    "word_pieces": np.int16,  # tokens of the word that it belongs to
    "word_start": np.bool_,  # whether it begins its word
    "action": np.int8,  # see ACTIONS
    "num_bytes": np.int16,  # UTF-8 bytes of the token's text, without a space before it
    "per_million": np.float32,  # how often the label occurs in a million tokens of the reference text
}
_STORED = {name: np.dtype(np.int8 if kind is np.bool_ else kind) for name, kind in COLUMNS.items()}  # Arrow's bits are no numpy view
# of a document
_DOCUMENT_SCHEMA = [
    ("id", pa.string()),
    ("key", pa.uint64()),  # hash of its tokens
    ("masks", pa.uint64()),  # hash of its tokens and what was done to them, over all views
    ("num_tokens", pa.int64()),
    ("num_words", pa.int64()),
    ("num_bytes", pa.int64()),
    ("num_windows", pa.int64()),
    ("slice", pa.string()),  # its value of the field that was asked for, if one was
]
BLOCK_ROWS = 2**20


class Records:
    """Masked tokens with what a model made of them; a column is an attribute: `records.log_prob`, a read-only numpy view, (N,).

    `info` says how they were made: model, policy, views, seed, max_length, masks_fingerprint, ... `documents` is an Arrow table.
    Raises: DataError for a folder that holds none, or whose files are not as they were written.
    """

    document: np.ndarray
    view: np.ndarray
    position: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    log_prob: np.ndarray
    confidence: np.ndarray
    rank: np.ndarray
    word_pieces: np.ndarray
    word_start: np.ndarray
    action: np.ndarray
    num_bytes: np.ndarray
    per_million: np.ndarray

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        check_manifest(self.folder, only=(RECORDS, DOCUMENTS), error=DataError, mend=AGAIN)
        table, self.documents = _open(self.folder / RECORDS), _open(self.folder / DOCUMENTS)
        self.info: dict[str, Any] = json.loads((self.documents.schema.metadata or {}).get(b"info", b"{}"))
        for name, kind in COLUMNS.items():
            values = table.column(name).chunk(0).to_numpy() if table.num_rows else np.zeros(0, _STORED[name])
            setattr(self, name, values.view(np.bool_) if kind is np.bool_ else values)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def num_documents(self) -> int:
        """How many documents there are, those without a masked token among them."""
        return int(self.documents.num_rows)

    @property
    def correct(self) -> np.ndarray:
        """Whether the label was the most probable token, (N,)."""
        return self.predicted == self.label

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the masks: the same digits, the same tokens hidden behind the same ones."""
        return fingerprint(self.numbers("masks"))

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers of the documents' table, (documents,)."""
        return self.documents.column(name).to_numpy()

    def document_id(self, document: int) -> str:
        """Return the name of a document."""
        return str(self.documents.column("id")[document].as_py())

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[slice]:
        """Yield slices that cover the rows, for work in bounded memory."""
        for start in range(0, len(self), rows):
            yield slice(start, min(start + rows, len(self)))

    def save(self, folder: str | Path) -> Records:
        """Copy the two files into a folder, with a manifest, and return the records there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RECORDS, DOCUMENTS):
            shutil.copyfile(self.folder / name, folder / name)
        write_manifest(folder, only=(RECORDS, DOCUMENTS))
        return Records(folder)

    @classmethod
    def join(cls, parts: Sequence[Records], folder: str | Path | None = None) -> Records:
        """Return the records of a whole text from those of `measure(..., part=(k, n))` for k = 0 ... n - 1, in this order."""
        count = len(parts)
        infos = [{key: value for key, value in part.info.items() if key not in ("part", "masks_fingerprint")} for part in parts]
        if [part.info.get("part") for part in parts] != [[k, count] for k in range(count)] or any(info != infos[0] for info in infos):
            raise DataError(
                f"these {count} records are not the parts of one measurement: they must come from the same model, text and settings, "
                f"with part = (0, {count}) to ({count - 1}, {count}), in this order"
            )
        bounds = [np.searchsorted(part.document, np.arange(part.num_documents + 1)) for part in parts]
        tables = [part.documents.to_pydict() for part in parts]
        with RecordsWriter(folder) as writer:
            whole: dict[str, list[Any]] = {name: [] for name, _ in _DOCUMENT_SCHEMA}
            for document in range(sum(part.num_documents for part in parts)):  # part k has every n-th document from k on
                row, which = divmod(document, count)
                rows = slice(*bounds[which][row : row + 2])
                columns = {name: getattr(parts[which], name)[rows] for name in COLUMNS}
                writer.add(**{**columns, "document": np.full(rows.stop - rows.start, document)})
                for name, values in whole.items():
                    values.append(tables[which][name][row])
            writer.add_documents(whole)
            return writer.finish(infos[0])


def _open(path: Path) -> pa.Table:
    if not path.is_file():
        raise DataError(
            f"there are no records in '{path.parent}' (no {path.name}); make them: unmask evaluate MODEL --data FILES -o FOLDER"
        )
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is damaged ({error}); {AGAIN}") from None


class RecordsWriter:
    """Write Records batch by batch: each column goes to a file of its own first, so that memory stays flat whatever the text.

    Without a folder the records live in a temporary one, which goes when the last of them is forgotten.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="unmask-records-") if folder is None else folder)
        self.temporary = folder is None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, IO[bytes]] = {name: open(self.folder / f"{name}.part", "wb") for name in COLUMNS}
        self._documents: list[pa.RecordBatch] = []
        self._schema = pa.schema(_DOCUMENT_SCHEMA)

    def add(self, **columns: np.ndarray) -> None:
        """Append rows: every column of COLUMNS by its name."""
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(columns[name], dtype=COLUMNS[name]).view(_STORED[name]).data)

    def add_documents(self, columns: Mapping[str, Any]) -> None:
        """Append rows of the documents' table."""
        arrays = [pa.array(columns[name], kind) for name, kind in _DOCUMENT_SCHEMA]
        self._documents.append(pa.record_batch(arrays, schema=self._schema))

    def finish(self, info: Mapping[str, Any]) -> Records:
        """Write the two files, with `info` and the fingerprint in them, and return the records."""
        arrays = []
        for name, file in self._files.items():
            file.close()
            path = Path(file.name)
            empty = path.stat().st_size == 0
            arrays.append(pa.array(np.zeros(0, _STORED[name]) if empty else np.memmap(path, _STORED[name], mode="r")))
        batch = pa.record_batch(arrays, names=list(COLUMNS))
        with pa.OSFile(str(self.folder / RECORDS), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        table = pa.Table.from_batches(self._documents, self._schema).combine_chunks()
        masks = table.column("masks").to_numpy()
        whole = {**info, "masks_fingerprint": fingerprint(masks)}
        table = table.replace_schema_metadata({"info": json.dumps(whole, ensure_ascii=False)})
        with pa.OSFile(str(self.folder / DOCUMENTS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self._clear()
        if not self.temporary:
            write_manifest(self.folder, only=(RECORDS, DOCUMENTS))
        records = Records(self.folder)
        if self.temporary:
            weakref.finalize(records, shutil.rmtree, self.folder, ignore_errors=True)
        return records

    def _clear(self) -> None:
        for file in self._files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._clear()
            if self.temporary:
                shutil.rmtree(self.folder, ignore_errors=True)
