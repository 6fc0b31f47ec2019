"""Documents set down on disk between the two passes of a pack: an Arrow stream, lightly compressed, read back in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from .text import Document

SCHEMA = pa.schema([("text", pa.large_string()), ("id", pa.string()), ("source", pa.string()), ("meta", pa.string())])


class Spill:
    """A file of documents: `add` batches, `finish`, then iterate over the batches, as often as needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "wb")
        self._stream = pa.ipc.new_stream(self._file, SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False))

    def add(self, texts: Sequence[str], documents: Sequence[Document]) -> None:
        """Append documents, with `texts` in place of their own."""
        columns = [
            pa.array(texts, pa.large_string()),
            pa.array([document.id for document in documents], pa.string()),
            pa.array([document.source for document in documents], pa.string()),
            pa.array([_meta(document.meta) for document in documents], pa.string()),
        ]
        self._stream.write_batch(pa.record_batch(columns, schema=SCHEMA))

    def finish(self) -> None:
        """End the writing."""
        self._stream.close()
        self._file.close()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        # read as a file, not mapped: mapped pages would count as memory of the process
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream


def _meta(meta: dict[str, Any]) -> str | None:
    return json.dumps(meta, ensure_ascii=True, default=str) if meta else None
