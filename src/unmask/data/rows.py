"""Rows of files with columns: CSV, TSV, JSON lines, alone, in folders or in a tar archive. Every row is given on, incomplete ones too."""

from __future__ import annotations

import csv
import itertools
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError
from . import files
from .text import expand, no_column, suffix_format

FORMATS = ("csv", "tsv", "jsonl")


@dataclass(frozen=True, slots=True)
class Row:
    """A row with where it stands, as file:line, and the name of its file without its endings."""

    where: str
    file: str
    values: dict[str, Any]


def read_rows(
    sources: str | Path | Sequence[str | Path],
    *,
    format: str | None = None,
    encoding: str = "utf-8",
    known: Collection[str] | None = None,
    most: int | None = None,
) -> list[Row]:
    """Return the rows of files; labelled data is small enough to be held in memory.

    A file has its columns' names in its first row. Where `known` names are given, a TSV file (or a .txt file with tabs) whose first row
    has none of them is taken for one without such a row, and so is any CSV or TSV file where one of them is a number: its columns are
    called 0, 1, 2 ...
    Raises: DataError for a file of another format, a broken one, one without rows, or more rows than `most`.
    """
    if format not in (None, *FORMATS):
        raise DataError(f"unknown format '{format}' of rows; allowed: {', '.join(FORMATS)}")
    files.check_encoding(encoding)
    found: list[Row] = []
    for source in expand(sources, format=format):
        before = len(found)
        if ".tar" in Path(source.path).suffixes or source.path.endswith(".tgz"):
            rows = _archive(source.path, format, encoding)
        else:
            kind = format or suffix_format(source.path)
            kind = "tsv" if kind == "txt" and known is not None else kind
            rows = _rows(source.path, Path(source.name).name, kind, files.decode(source.path, encoding), known)
        found.extend(rows if most is None else itertools.islice(rows, most + 1 - before))
        if most is not None and len(found) > most:
            raise DataError(f"{found[-1].where}: more than {most:,} rows, and all of them are held in memory; cut the file, or take fewer")
        if len(found) == before:
            raise DataError(f"{source.path} holds no rows; name a file that has an item a row")
    return found


def _archive(path: str, format: str | None, encoding: str) -> Iterator[Row]:
    try:
        with files.open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|gz" if path.endswith(".tgz") else "r|") as archive:
            for member in archive:
                kind = format or suffix_format(member.name)
                if member.isfile() and kind in FORMATS and not PurePosixPath(member.name).name.startswith("."):
                    data = archive.extractfile(member)
                    text = data.read().decode(encoding) if data is not None else ""
                    yield from _rows(f"{path}({member.name})", PurePosixPath(member.name).name, kind, [text])
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable tar archive of {encoding} text: {error}") from None


def _rows(path: str, name: str, kind: str | None, chunks: Iterable[str], known: Collection[str] | None = None) -> Iterator[Row]:
    if kind not in FORMATS:
        raise DataError(f"{path}: what is wanted is a file of rows: {', '.join(FORMATS)}; say which it is with --format")
    stem = name.split(".")[0]
    numbered = files.lines(chunks, path)
    pairs = _jsonl(path, numbered) if kind == "jsonl" else _csv(path, numbered, kind == "tsv", known)
    return (Row(where, stem, values) for where, values in pairs)


def _jsonl(path: str, numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in files.json_lines(numbered, path):
        where = f"{path}:{number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row is a JSON object, not {json.dumps(row)[:60]!r}")
        yield where, row


def _csv(path: str, numbered: Iterator[tuple[int, str]], tab: bool, known: Collection[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(files.MAX_RECORD_CHARS)
    text = (line + "\n" for _, line in numbered)
    rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tab else csv.reader(text, strict=True)
    header: list[str] = []
    numbered_columns = known is not None and any(name.isdigit() for name in known)
    first = 1
    try:
        for row in rows:
            where, first = f"{path}:{first}", rows.line_num + 1
            if not row:
                continue
            if not header:
                bare = numbered_columns or (tab and known is not None and not any(name in known for name in row))
                header = [str(number) for number in range(len(row))] if bare else row
                if len(set(header)) < len(header):
                    raise DataError(f"{where}: two columns have the same name: {', '.join(header)}")
                if not bare:
                    continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} columns where there should be {len(header)} ({', '.join(header)}); "
                    "a separator or quote is missing or too many"
                )
            yield where, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}:{first}: not valid CSV: {error}; is a quote left open there? (--format tsv reads without quoting)"
        ) from None


def check_columns(rows: Sequence[Row], names: Iterable[str], flag: str) -> None:
    """Raise DataError for a column that no row of a file has; a row that lacks it where others have it is for the test to count."""
    columns: dict[str, dict[str, None]] = {}
    for row in rows:
        columns.setdefault(row.where.rpartition(":")[0], {}).update(dict.fromkeys(row.values))
    for path, known in columns.items():
        for name in names:
            if name not in known:
                raise no_column(path, name, known, flag)
