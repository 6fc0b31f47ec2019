"""The text that is measured on: tokenized once into a store on disk, its documents in the order of the hash of their content."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data import files
from ..data.clean import normalise
from ..data.encode import Batch, Encoder
from ..data.frozen import content_keys, frozen_order
from ..data.pack import batches
from ..data.store import TokenStore
from ..data.text import Document, read
from ..data.tokenizer import tokenizer_hash
from ..errors import ConfigError, DataError
from ..train.setup import is_packed

NO_VALUE = "(none)"
MAX_VALUES = 200  # of a field that is sliced by: of more, hardly one is measured on enough


@dataclass(eq=False)
class Text:
    """Documents as a tokenizer sees them. `order` says which of the store's are measured, by the hash of their content, `keys`.

    `slices` holds each document's value of the field `slice_by`, as a number into `slice_values`.
    """

    store: TokenStore
    tokenizer: Any
    keys: np.ndarray
    order: np.ndarray
    num_empty: int = 0  # documents that hold no text, or no token: counted, not measured
    slice_by: str | None = None
    slices: np.ndarray | None = None
    slice_values: list[str] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """How many tokens there are to measure on."""
        return int(self.store.lengths[self.order].sum())

    def slice_of(self, document: int) -> str | None:
        """Return the value of `slice_by` of a document of the store."""
        return None if self.slices is None else self.slice_values[self.slices[document]]

    def token_counts(self) -> np.ndarray:
        """Return how often each token occurs in the documents that are measured, (V,) int64."""
        counts = np.zeros(self.store.vocab_size, np.int64)
        for first in range(0, len(self.order), 4096):
            counts += np.bincount(self.store.gather(self.order[first : first + 4096])[0], minlength=len(counts))
        return counts


def open_text(
    data: str | Path | Sequence[str | Path], tokenizer: Any, *, slice_by: str | None = None, max_tokens: int = 0, **reading: Any
) -> Text:
    """Return the text of files (anything that `read` takes, cleaned as `pack` does it), or of a packed corpus: its held-out documents.

    A packed corpus is the folder that `unmask pack` made, or one of the stores in it. With `max_tokens`, the documents with the smallest
    keys are taken, with no more tokens together, as evaluations during training take them. `slice_by` is a field of the documents'
    metadata, or "source".
    Raises: DataError where there is nothing to measure on; StoreError for a corpus of another tokenizer.
    """
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    if max_tokens < 0:
        raise ConfigError(f"max_tokens = {max_tokens}; allowed: 0 (all), or how many tokens to measure on")
    packed = [Path(source) for source in sources if is_packed(source) or is_packed(Path(source) / "heldout")]
    if packed and len(sources) > 1:
        raise DataError(f"--data names the packed corpus '{packed[0]}' and something else; name one packed corpus alone, or files only")
    if packed:
        text = _of_corpus(packed[0], tokenizer, slice_by, reading)
    else:
        text = _of_files(sources, tokenizer, slice_by, reading)
    text.order = frozen_order(text.store, text.keys, max_tokens)
    text.num_empty += int((text.store.lengths == 0).sum())
    if not len(text.order):
        raise DataError(
            f"there is nothing to measure on in {_named(sources)}: {text.num_empty:,} documents, and none holds a token; name other files"
        )
    return text


def _of_corpus(folder: Path, tokenizer: Any, slice_by: str | None, reading: dict[str, Any]) -> Text:
    given = [name for name, value in reading.items() if value is not None]
    if given:
        raise DataError(f"'{folder}' is a packed corpus, and {', '.join(given)} says how files are read; leave it out, or name files")
    if not (folder / "store.json").is_file():
        if not (folder / "heldout").is_dir():
            raise DataError(
                f"the packed corpus '{folder}' has no held-out text (it was packed with --held-out 0); name other text, or, to measure "
                f"on what a model was trained on, '{folder / 'train'}'"
            )
        folder = folder / "heldout"
    store = TokenStore.open(folder, tokenizer_hash=tokenizer_hash(tokenizer))
    text = Text(store, tokenizer, content_keys(store), np.zeros(0, np.int64), slice_by=slice_by)
    if slice_by is not None:
        beside = folder.with_name("heldout.jsonl")
        if folder.name != "heldout" or not beside.is_file():
            raise DataError(f"'{folder}' holds tokens alone, so there is no field '{slice_by}' to slice by; name the text files themselves")
        rows = [row for _, row in files.json_lines(files.lines(files.decode(beside), beside), beside)]
        if [isinstance(row, dict) and row.get("id") for row in rows] != [store.document_id(document) for document in range(len(store))]:
            raise DataError(f"'{beside}' does not list the documents of '{folder}'; pack the text again")
        values = [_field(Document("", row["id"], str(row.get("source", "")), row), slice_by) for row in rows]
        _set_slices(text, values, sorted({key for row in rows for key in row} - {"id", "text"}))
    return text


def _of_files(sources: Sequence[str | Path], tokenizer: Any, slice_by: str | None, reading: dict[str, Any]) -> Text:
    folder = Path(tempfile.mkdtemp(prefix="unmask-text-"))
    try:
        encoder = Encoder(tokenizer)
        values: list[Any] = []
        fields: set[str] = {"source"}
        num_empty = 0

        def clean() -> Iterator[Batch]:
            nonlocal num_empty
            documents = read(sources, **{name: value for name, value in reading.items() if value is not None})
            for batch in batches(documents):
                texts = [normalise(document.text) for document in batch]
                kept = [place for place, text in enumerate(texts) if text]
                num_empty += len(texts) - len(kept)
                for place in kept if slice_by is not None else ():
                    fields.update(batch[place].meta)
                    values.append(_field(batch[place], str(slice_by)))
                if kept:
                    yield "heldout", [batch[place].id for place in kept], [texts[place] for place in kept]

        with encoder.writer(folder) as writer:
            for _, ids, texts, tokens in encoder.encode_all(clean()):
                writer.add_flat(*tokens, ids, np.array([len(text.encode("utf-8")) for text in texts], dtype=np.int64))
        store = TokenStore.open(folder)
        text = Text(store, tokenizer, content_keys(store), np.zeros(0, np.int64), num_empty, slice_by)
        if slice_by is not None:
            _set_slices(text, values, sorted(fields))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(text, shutil.rmtree, folder, ignore_errors=True)
    return text


def _field(document: Document, name: str) -> Any:
    return Path(document.source).name if name == "source" else document.meta.get(name)


def _set_slices(text: Text, values: Sequence[Any], fields: Sequence[str]) -> None:
    """Set the slices of a text from each document's value; a document without one belongs to NO_VALUE."""
    if values and all(value is None for value in values):
        raise DataError(f"no document has a field '{text.slice_by}' to slice by; the fields are: {', '.join(fields) or 'none'}")
    numbers: dict[str, int] = {}
    shown = [NO_VALUE if value is None else value if isinstance(value, str) else json.dumps(value, default=str) for value in values]
    if len(set(shown)) > MAX_VALUES:
        some = ", ".join(repr(value[:20]) for value in shown[:3])
        raise DataError(
            f"the field '{text.slice_by}' has {len(set(shown)):,} values ({some}, ...), and slices are made of at most {MAX_VALUES}; "
            f"choose another field: {', '.join(name for name in fields if name != text.slice_by)}"
        )
    text.slices = np.array([numbers.setdefault(value, len(numbers)) for value in shown], dtype=np.int32)
    text.slice_values = list(numbers)


def _named(sources: Sequence[str | Path]) -> str:
    names = [f"'{source}'" for source in sources[:3]]
    return ", ".join(names) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
