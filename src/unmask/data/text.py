"""Documents from whatever text lies in: files of many formats, folders, globs, the standard input, a Hub dataset."""

from __future__ import annotations

import csv
import glob
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ..errors import DataError, require
from . import files
from .files import COMPRESSIONS, EmptyFile

SUFFIXES = {
    ".txt": "txt", ".text": "txt", ".md": "md", ".markdown": "md", ".rst": "rst", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
# beside data these speak about the data
ABOUT = {"readme", "license", "licence", "copying", "notice", "source", "sources", "changelog", "dataset_info", "dataset_infos"}
LAYOUTS = ("auto", "line", "blank", "file")


@dataclass(frozen=True, slots=True)
class Document:
    """A text with where it came from; `meta` holds the other columns of its row."""

    text: str
    id: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """How files are read; see `read`."""

    format: str | None = None
    text_column: str = "text"
    id_column: str | None = None
    layout: str = "auto"
    encoding: str = "utf-8"


@dataclass(frozen=True, slots=True)
class Source:
    """One file (or "-", "python-docs", "hub:...") to read; `found` where a folder or glob led to it."""

    path: str
    name: str
    found: bool = False


def read(
    sources: str | Path | Sequence[str | Path],
    *,
    format: str | None = None,
    text_column: str = "text",
    id_column: str | None = None,
    layout: str = "auto",
    encoding: str = "utf-8",
    on_skip: Callable[[DataError], None] | None = None,
) -> Iterator[Document]:
    """Return an iterator over the documents of files, folders, globs, "-", "python-docs" or "hub:NAME[:config][@revision]".

    A text file's layout: `line` a document a line, `blank` documents separated by blank lines, `file` one document,
    `auto` blank-separated where its beginning shows blank lines, else a document a line. `on_skip` is told what cannot be read,
    and reading goes on; without it the error is raised (an empty file met in a folder never is).
    Raises: DataError.
    """
    for value, allowed, what in ((format, (None, *FORMATS), "format"), (layout, LAYOUTS, "layout")):
        if value not in allowed:
            raise DataError(f"unknown {what} '{value}'; allowed: {', '.join(filter(None, allowed))}")
    files.check_encoding(encoding)
    options = Options(format, text_column, id_column, layout, encoding)
    return _read(expand(sources, format=format), options, on_skip)


def expand(sources: str | Path | Sequence[str | Path], *, format: str | None = None) -> list[Source]:
    """Return the files that sources name, in order, each once; a folder gives its text files, sorted.

    Raises: DataError for a source that does not exist or holds nothing readable.
    """
    if isinstance(sources, (str, PurePath)):
        sources = [sources]
    found: dict[str, Source] = {}
    for source in sources:
        text, path = str(source), Path(source)
        if not text.strip():
            raise DataError(f"a source is empty: {text!r}; give files, folders, globs, '-', 'python-docs' or 'hub:NAME'")
        if text in ("-", "python-docs") or text.startswith("hub:"):
            items = [Source(text, "stdin" if text == "-" else text)]
        elif path.is_dir():
            items = _walk(path, format)
        elif path.exists():
            items = [Source(text, path.name)]
        elif glob.has_magic(text):
            matches = sorted(glob.glob(text, recursive=True))
            items = [Source(match, Path(match).name, found=True) for match in matches if Path(match).is_file()]
            if not items:
                raise DataError(f"no file matches '{text}'")
        else:
            raise DataError(f"there is no file or folder '{text}'; give files, folders, globs, '-', 'python-docs' or 'hub:NAME'")
        for item in items:
            found.setdefault(item.path, item)
    if not found:
        raise DataError("no sources; give files, folders, globs, '-', 'python-docs' or 'hub:NAME'")
    return list(found.values())


def _walk(folder: Path, format: str | None) -> list[Source]:
    try:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    except OSError as error:
        raise DataError(f"the folder '{folder}' cannot be read: {error.strerror} ('{error.filename}'); name the folders in it") from None
    items = [Source(str(path), path.relative_to(folder).as_posix(), found=True) for path in paths if format or suffix_format(path)]
    items = [item for item in items if Path(item.name).name.split(".")[0].lower() not in ABOUT] or items
    if not items:
        seen = sorted({path.suffix or path.name for path in paths})[:8]
        raise DataError(
            f"the folder '{folder}' holds no text files ({'it has ' + ', '.join(seen) if seen else 'it is empty'}); "
            f"read are {', '.join(SUFFIXES)}, also with {', '.join(COMPRESSIONS)}; --format reads files of any name"
        )
    return items


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def suffix_format(path: str | Path) -> str | None:
    """Return the format that a file's name tells, or None."""
    path = Path(path)
    if path.suffix.lower() in COMPRESSIONS:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix.lower())


def _read(sources: list[Source], options: Options, on_skip: Callable[[DataError], None] | None) -> Iterator[Document]:
    for source in sources:
        try:
            yield from _documents(source, options)
        except EmptyFile as error:
            error.found = source.found
            if on_skip is not None:
                on_skip(error)
            elif not source.found:
                raise
        except DataError as error:
            if on_skip is None:
                raise
            on_skip(error)


def _documents(source: Source, options: Options) -> Iterator[Document]:
    if source.path == "python-docs":
        from .docs import python_docs

        yield from python_docs()
    elif source.path.startswith("hub:"):
        yield from _hub(source, options)
    else:
        yield from READERS[options.format or suffix_format(source.path) or "txt"](source, options)


# text: a document a line, a block or a file


def _txt(source: Source, options: Options) -> Iterator[Document]:
    chunks = files.decode(source.path, options.encoding)
    layout = options.layout
    if layout == "auto":
        head = next(chunks)
        layout, chunks = guess_layout(head), itertools.chain([head], chunks)
    if layout == "file":
        if text := _whole(chunks, source).strip():
            yield Document(text, source.name, source.path)
        return
    block: list[str] = []
    first = size = 0
    for number, line in files.lines(chunks, source.path):
        if layout == "line":
            if line and not line.isspace():
                yield Document(line, f"{source.name}:{number}", source.path)
        elif line and not line.isspace():
            first = first or number
            size += len(line) + 1
            if size > files.MAX_RECORD_CHARS:
                raise files.too_long(source.path, first)
            block.append(line)
        elif block:
            yield Document("\n".join(block), f"{source.name}:{first}", source.path)
            block, first, size = [], 0, 0
    if block:
        yield Document("\n".join(block), f"{source.name}:{first}", source.path)


def guess_layout(head: str) -> str:
    """Return "blank" where the beginning of a file is in blocks of lines with blank lines between, else "line"."""
    blocks = [block for block in re.split(r"\n[ \t\r]*\n\s*", head.strip()) if block]
    num_lines = sum(block.count("\n") + 1 for block in blocks)
    # a stray blank line now and then is no layout; blocks of hundreds of lines are lists of sentences
    return "blank" if len(blocks) > 1 and num_lines / len(blocks) <= 200 else "line"


def _whole(chunks: Iterable[str], source: Source) -> str:
    parts, size = [], 0
    for chunk in chunks:
        parts.append(chunk)
        size += len(chunk)
        if size > files.MAX_RECORD_CHARS:
            raise files.too_long(source.path, 1)
    return "".join(parts)


def _markup(source: Source, options: Options) -> Iterator[Document]:
    from .prose import markdown_prose, rst_prose

    text = _whole(files.decode(source.path, options.encoding), source)
    clean = rst_prose if (options.format or suffix_format(source.path)) == "rst" else markdown_prose
    if text := clean(text):
        yield Document(text, source.name, source.path)


# rows: a document a row, the text in a column


def _row(row: Any, where: str, number: str, source: Source, options: Options) -> Document | None:
    """Return the document of a row, None where its text is missing or blank."""
    if isinstance(row, str):
        return Document(row, number, source.path) if row.strip() else None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is an object with a column '{options.text_column}', or a string; not {type(row).__name__}")
    if options.text_column not in row:
        raise no_column(where, options.text_column, row, "--text-column")
    text = row[options.text_column]
    if text is None or text == "" or (isinstance(text, str) and text.isspace()):
        return None
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the column '{options.text_column}' holds {str(text)[:40]!r} ({type(text).__name__}), not text; "
            "name another: --text-column"
        )
    meta = {key: value for key, value in row.items() if key != options.text_column}
    if options.id_column is None:
        return Document(text, number, source.path, meta)
    if options.id_column not in row:
        raise no_column(where, options.id_column, row, "--id-column")
    return Document(text, str(meta.pop(options.id_column)), source.path, meta)


def no_column(where: str, name: str, columns: Iterable[str], flag: str) -> DataError:
    """Return the error for a column that does not exist; it names those that do."""
    return DataError(f"{where}: there is no column '{name}'; the columns are: {', '.join(map(str, columns))}; choose with {flag}")


def _jsonl(source: Source, options: Options) -> Iterator[Document]:
    for number, row in files.json_lines(files.lines(files.decode(source.path, options.encoding), source.path), source.path):
        where = f"{source.path}:{number}"
        if document := _row(row, where, f"{source.name}:{number}", source, options):
            yield document


def _json(source: Source, options: Options) -> Iterator[Document]:
    """Read a .json file: a list of rows, one row, or JSON lines under another name; elements are decoded one by one."""
    chunks = files.decode(source.path, options.encoding)
    decoder = json.JSONDecoder()
    text, at, start, count, need, done = "", 0, 0, 0, 0, False
    in_list = False
    while True:
        # read on until what lies before us is as long as the last failed attempt asked for
        while not done and len(text) - at < max(need, 1):
            chunk = next(chunks, None)
            done = chunk is None
            text, start, at = text[at:] + (chunk or ""), start + at, 0
            if len(text) > 2 * files.MAX_RECORD_CHARS:
                raise files.too_long(source.path, 1)
        space = re.compile(r"[\s,]*" if count else r"\s*").match(text, at)
        at = space.end() if space else at
        if at == len(text):
            if not done:
                continue
            if in_list:
                raise DataError(f"{source.path}: the JSON list is not closed; the file seems cut short after {count:,} rows")
            return
        if count == 0 and not in_list and text[at] == "[":
            in_list, at = True, at + 1
            continue
        if in_list and text[at] == "]":
            in_list, at, need = False, at + 1, 0
            continue
        try:
            row, end = decoder.raw_decode(text, at)
            row, at = files.mended_json(row, text, at, end), end
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
            if not done:
                need = max(2 * (len(text) - at), files.CHUNK_BYTES)
                continue
            raise DataError(f"{source.path}: not JSON at character {start + at:,} ({error}): {text[at : at + 60]!r}") from None
        count, need = count + 1, 0
        if document := _row(row, f"{source.path}, row {count}", f"{source.name}:{count}", source, options):
            yield document


def _csv(source: Source, options: Options) -> Iterator[Document]:
    """Read CSV (quoted newlines and all) or TSV (no quoting); a text column that is a number means a file without a header."""
    tab = (options.format or suffix_format(source.path)) == "tsv"
    csv.field_size_limit(files.MAX_RECORD_CHARS)
    chunks = files.decode(source.path, options.encoding)
    text = (line + "\n" for _, line in files.lines(chunks, source.path))
    rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(text, strict=True)
    header: list[str] = []
    first = 1
    try:
        for row in rows:
            where, number, first = f"{source.path}:{first}", f"{source.name}:{first}", rows.line_num + 1
            if not row:
                continue
            if not header:
                bare = options.text_column.isdigit() and options.text_column not in row
                header = [str(index) for index in range(len(row))] if bare else row
                for name, flag in ((options.text_column, "--text-column"), (options.id_column, "--id-column")):
                    if name is not None and name not in header:
                        raise no_column(source.path, name, header, flag)
                if not bare:
                    continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} columns where there should be {len(header)} ({', '.join(header)}); "
                    "a separator or quote is missing or too many"
                )
            if document := _row(dict(zip(header, row, strict=True)), where, number, source, options):
                yield document
    except csv.Error as error:
        raise DataError(
            f"{source.path}:{first}: not valid CSV: {error}; is a quote left open there? (--format tsv reads without quoting)"
        ) from None


def _parquet(source: Source, options: Options) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if source.path == "-":
        raise DataError("Parquet cannot be read from the standard input; give the file's name")
    try:
        with pq.ParquetFile(source.path) as file:
            schema = file.schema_arrow
            for name, flag in ((options.text_column, "--text-column"), (options.id_column, "--id-column")):
                if name is not None and name not in schema.names:
                    raise no_column(source.path, name, schema.names, flag)
                if name is not None and (pa.types.is_nested(kind := schema.field(name).type) or pa.types.is_binary(kind)):
                    raise DataError(f"{source.path}: the column '{name}' holds {kind}, not text; name another: {flag}")
            keep = [column.name for column in schema if not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type)]
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=keep, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    if document := _row(row, f"{source.path}, row {number}", f"{source.name}:{number}", source, options):
                        yield document
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: text that is no UTF-8, a date that is none
        if Path(source.path).is_file() and Path(source.path).stat().st_size == 0:
            raise EmptyFile(f"{source.path} is empty; give a file that holds text") from None
        raise DataError(f"{source.path} is not a readable Parquet file: {error}; take another copy of it") from None


def _hub(source: Source, options: Options) -> Iterator[Document]:
    """Stream the `train` split (or the only one) of a Hub dataset, given as hub:NAME[:config][@revision]."""
    datasets = require("datasets", extra="hub", why=f"reading '{source.path}'")
    spec, _, revision = source.path.removeprefix("hub:").partition("@")
    name, _, config = spec.partition(":")
    try:
        splits = datasets.load_dataset(name, config or None, revision=revision or None, streaming=True)
    except Exception as error:  # the library raises errors of many kinds; all of them mean that it is not to be had
        raise DataError(
            f"cannot read the Hub dataset '{name}': {type(error).__name__}: {str(error)[:300]}; check the name, the network and HF_TOKEN"
        ) from error
    split = "train" if "train" in splits else next(iter(splits))
    for number, row in enumerate(splits[split], start=1):
        if document := _row(row, f"{source.path}, {split} row {number}", f"{name}/{split}:{number}", source, options):
            yield document


READERS: dict[str, Callable[[Source, Options], Iterator[Document]]] = {
    "txt": _txt, "md": _markup, "rst": _markup, "jsonl": _jsonl, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet,
}  # fmt: skip
