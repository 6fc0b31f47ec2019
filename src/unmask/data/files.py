"""Bytes of a file, decompressed, decoded and cut into lines in constant memory; what is wrong is said with file and offset."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import DataError
from .clean import mended
from .manifest import check_manifest

CHUNK_BYTES = 1 << 20
# one record (line, paragraph block, whole file) is held in memory whole; above this it is an error, not a full memory
MAX_RECORD_CHARS = 1 << 26
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
MAGIC = (
    (b"%PDF", "a PDF file"), (b"PK\x03\x04", "a ZIP archive (or an office document)"), (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"), (b"\x1f\x8b", "gzip data (name it *.gz)"),
    (b"\x28\xb5\x2f\xfd", "zstandard data (name it *.zst)"), (b"PAR1", "a Parquet file (use --format parquet)"),
    (b"\x7fELF", "a program"), (b"ARROW1", "an Arrow file"), (b"SQLite format 3", "a SQLite database"),
    (b"BZh", "bzip2 data (name it *.bz2)"),
)  # fmt: skip
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, or a whole one


class EmptyFile(DataError):
    """A file holds no bytes; `found` where it was met in a folder, not named."""

    found = False


def check_encoding(encoding: str) -> None:
    """Raise DataError for an encoding that Python does not know, or that does not make text."""
    try:
        " ".encode(encoding)  # unlike codecs.lookup, it refuses hex, base64 and their like
    except (LookupError, ValueError):
        raise DataError(f"unknown encoding '{encoding}'; use a name such as utf-8, utf-16, cp1252, latin-1, shift_jis or gb18030") from None


def open_bytes(path: Path | str) -> IO[bytes] | Any:
    """Return a binary stream of a file's contents, decompressed by its suffix; '-' is the standard input."""
    if str(path) == "-":
        return sys.stdin.buffer
    try:
        match Path(path).suffix.lower():
            case ".gz":
                return gzip.open(path, "rb")
            case ".bz2":
                return bz2.open(path, "rb")
            case ".xz":
                return lzma.open(path, "rb")
            case ".zst":
                import pyarrow as pa

                return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
            case _:
                return open(path, "rb")
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror or error}") from None


def blocks(path: Path | str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in blocks of at most CHUNK_BYTES.

    Raises: DataError where the compressed data is damaged or cut short.
    """
    offset = 0
    with open_bytes(path) as stream:
        while True:
            try:
                block = stream.read(CHUNK_BYTES)
            except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
                raise DataError(
                    f"{path}: the compressed data breaks off or is damaged after {offset:,} decompressed bytes: {error}; "
                    "take another copy of the file"
                ) from None
            if not block:
                return
            offset += len(block)
            yield block


def decode(path: Path | str, encoding: str = "utf-8") -> Iterator[str]:
    """Yield the text of a file in chunks.

    Raises: EmptyFile; DataError for a binary file or a wrong encoding, with the byte offset.
    """
    if str(path) != "-":
        check_manifest(Path(path).parent, only=(Path(path).name,), error=DataError)  # of a packed corpus: what it has held out
    decoder: codecs.IncrementalDecoder | None = None
    offset = 0
    where = "decompressed byte" if Path(path).suffix.lower() in COMPRESSIONS else "byte"
    for block in blocks(path):
        if decoder is None:
            name = _encoding_of(path, block, encoding)
            decoder = codecs.getincrementaldecoder(name)("strict")
            wide = name.replace("_", "-").lower().startswith(("utf-16", "utf-32", "utf16", "utf32"))
            if not wide and (at := block.find(b"\0")) >= 0:
                order = "utf-16-le" if at % 2 else "utf-16-be"  # of a letter or space below 256, one byte is a NUL
                raise DataError(
                    f"{path} is not text: a NUL at {where} {at:,}{_looks_like(block)}; "
                    f"give text files, or --encoding {order} if that is what it is"
                )
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block)
        except UnicodeError as error:
            raise DataError(_not_in(path, encoding, where, offset - pending, error, block)) from None
        offset += len(block)
        if text:
            yield text
    if decoder is None:
        raise EmptyFile(f"{path} is empty; give a file that holds text")
    pending = len(decoder.getstate()[0])
    try:
        if tail := decoder.decode(b"", final=True):
            yield tail
    except UnicodeError as error:
        raise DataError(_not_in(path, encoding, where, offset - pending, error, b"")) from None


def _encoding_of(path: Path | str, head: bytes, encoding: str) -> str:
    known = codecs.lookup(encoding).name
    if known in ("utf-16", "utf-32") and len(head) > 3 and not any(head.startswith(mark) for mark, name in BOMS if name == known):
        raise DataError(
            f"{path} has no byte-order mark at its beginning, and {encoding} does not say which byte comes first; "
            f"say --encoding {known}-le (as Windows writes it) or {known}-be"
        )
    if known != "utf-8":
        return encoding
    for mark, name in BOMS:
        if head.startswith(mark):
            if name == "utf-8-sig":
                return name
            raise DataError(f"{path} is not {encoding}: byte 0 begins a {name} byte-order mark; read it with --encoding {name}")
    return encoding


def _looks_like(head: bytes) -> str:
    return next((f" (it looks like {what})" for magic, what in MAGIC if head.startswith(magic)), "")


def _not_in(path: Path | str, encoding: str, where: str, before: int, error: UnicodeError, block: bytes) -> str:
    if not isinstance(error, UnicodeDecodeError):  # too short to show its byte-order mark
        return f"{path} is not {encoding}: {error}; say which encoding it is, for example --encoding utf-8"
    offset = before + error.start
    bad = error.object[error.start : error.start + 1].hex()
    hint = _looks_like(block) if offset < CHUNK_BYTES else ""
    return (
        f"{path} is not {encoding}: 0x{bad} at {where} {offset:,} ({error.reason}){hint}; "
        "say which encoding it is, for example --encoding cp1252, latin-1 or utf-16"
    )


def lines(chunks: Iterable[str], path: Path | str, *, limit: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end).

    Raises: DataError for a line above the limit of a record.
    """
    limit = limit or MAX_RECORD_CHARS
    held: list[str] = []
    number, size = 1, 0
    for chunk in chunks:
        *whole, rest = chunk.split("\n")
        for piece in whole:
            if held:
                held.append(piece)
                piece, held, size = "".join(held), [], 0
            yield number, piece.removesuffix("\r")
            number += 1
        if rest:
            held.append(rest)
            size += len(rest)
            if size > limit:
                raise too_long(path, number, limit)
    if held:
        yield number, "".join(held).removesuffix("\r")


def too_long(path: Path | str, line: int, limit: int | None = None) -> DataError:
    """Return the error for a record that does not end."""
    return DataError(
        f"{path}:{line}: one document of more than {limit or MAX_RECORD_CHARS:,} characters; "
        "break the file into lines, or choose another --layout (line, blank) or --format"
    )


def json_lines(numbered: Iterable[tuple[int, str]], path: Path | str) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not empty.

    Raises: DataError for a line that is not JSON.
    """
    for number, line in numbered:
        if not line or line.isspace():
            continue
        try:
            yield number, parse_json(line)
        except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
            raise DataError(f"{path}:{number}: not JSON ({error}): {line[:60]!r}; in JSON lines every line is one JSON object") from None


def parse_json(text: str) -> Any:
    """Return the value of JSON text, in which every string is text.

    Raises: ValueError (of numbers of thousands of digits, too), RecursionError.
    """
    return mended_json(json.loads(text), text)


def mended_json(value: Any, text: str, start: int = 0, stop: int = sys.maxsize) -> Any:
    """Return the value of text[start:stop], which is JSON, with no string that is not text."""
    return mended(value) if _HALF.search(text, start, stop) else value
