"""What a folder held when it was written: sizes and SHA-256 of its files, so that a byte that has changed since is seen on reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnmaskError

Error = type[UnmaskError]

MANIFEST = "manifest.json"
FREE = ("README.md", MANIFEST)  # a card is for people, who may edit it
WEIGHTS = ("*.safetensors", "*.bin", "*.onnx*")  # large: a tokenizer beside them is read without them
TRAINING = ("training_state.*", "trainer_state.json", "COMPLETE")  # of a checkpoint, which is a model without them too


def write_manifest(folder: Path, *, only: Collection[str] = ("*",)) -> None:
    """Write down the files of a folder that is finished (those named like `only`), for whoever reads them to check."""
    text = json.dumps({"files": entries(folder, only=only, leave_out=FREE)}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_manifest(
    folder: Path,
    *,
    only: Collection[str] = ("*",),
    leave_out: Collection[str] = (),
    error: Error = CheckpointError,
    mend: str = "take another copy of it, or make it again",
) -> None:
    """Check that the files that a folder's manifest names are as they were, those like `only` but not like `leave_out`.

    Without a manifest, or with somebody else's of that name, nothing is known. `mend` is what the error says to do.
    Raises: `error` that says which file is missing or has changed.
    """
    if not (folder / MANIFEST).is_file():
        return
    try:
        found = read_manifest(folder) or {}
        compare(folder, {name: entry for name, entry in found.items() if is_like(name, only) and not is_like(name, leave_out)})
    except (OSError, ValueError) as reason:  # ValueError: every error of ours is one
        raise error(
            f"'{folder}' is damaged: {reason}; {mend} (if you changed it on purpose, delete '{folder / MANIFEST}': then nothing is checked)"
        ) from None


def entries(folder: Path, *, only: Collection[str] = ("*",), leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return size and SHA-256 of the files in a folder by name, of those like `only` but not like `leave_out`."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in names.items() if is_like(name, only) and not is_like(name, leave_out)}
    return {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in kept.items()}


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the entries of a folder's manifest, None where it is one of another kind.

    Raises: CheckpointError where it is missing, or no JSON.
    """
    try:
        whole = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"its {MANIFEST} is missing") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"its {MANIFEST} is not readable") from None
    found = whole.get("files") if isinstance(whole, dict) else None
    if not isinstance(found, dict) or not all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in found.values()):
        return None
    return found


def compare(folder: Path, found: dict[str, dict[str, Any]], *, content: bool = True) -> None:
    """Compare the files of a folder with entries; without `content`, their sizes alone.

    Raises: CheckpointError that says what is missing or has changed.
    """
    for name, entry in found.items():  # sizes first: they cost nothing
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size is None:
            raise CheckpointError(f"{name} is missing")
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} has {size:,} bytes instead of {entry['bytes']}")
    for name, entry in found.items() if content else ():
        if sha256(folder / name) != entry["sha256"]:
            raise CheckpointError(f"the content of {name} has changed since it was written (SHA-256 differs)")


def is_like(name: str, patterns: Collection[str]) -> bool:
    """Return whether a file's name is like one of the patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def checksum(record: dict[str, Any]) -> str:
    """Return the checksum of a record, a dict of JSON, over everything else in it."""
    plain = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def check_sum(record: dict[str, Any]) -> None:
    """Raise ValueError for a record that has a checksum, and another one than it must have."""
    if "checksum" in record and record["checksum"] != checksum(record):
        raise ValueError("its checksum does not agree with its content")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
