"""What a folder held when it was written: sizes and SHA-256 of its files, so that a byte that has changed since is seen on reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnmaskError

MANIFEST = "manifest.json"
FREE = ("README.md", MANIFEST)  # a card is for people, who may edit it
WEIGHTS = ("*.safetensors", "*.bin", "*.onnx*")  # large: a tokenizer beside them is read without them
TRAINING = ("training_state.*", "trainer_state.json", "COMPLETE")  # of a checkpoint, which is a model without them too


def write_manifest(folder: Path) -> None:
    """Write down the files of a folder that is finished, for `check_manifest`."""
    text = json.dumps({"files": entries(folder, leave_out=FREE)}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_manifest(folder: Path, *, leave_out: Collection[str] = (), error: type[UnmaskError] = CheckpointError) -> None:
    """Check that a folder holds what its manifest says, but for files named like `leave_out`; without a manifest nothing is known.

    Raises: `error` that says which file is missing or has changed.
    """
    if not (folder / MANIFEST).is_file():
        return
    try:
        compare(folder, read_manifest(folder), leave_out=leave_out)
    except (OSError, ValueError) as reason:  # ValueError: every error of ours is one
        raise error(
            f"'{folder}' is damaged: {reason}; take another copy of it, or make it again (if you changed it on purpose, delete "
            f"'{folder / MANIFEST}': then nothing is checked)"
        ) from None


def entries(folder: Path, *, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Return size and SHA-256 of every file in a folder by its name, but for those named like `leave_out`."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in names.items() if not is_like(name, leave_out)}
    return {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in kept.items()}


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of a folder's manifest.

    Raises: CheckpointError where it cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if all(isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in found.values()):
            return dict(found)
    except FileNotFoundError:
        raise CheckpointError(f"its {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise CheckpointError(f"its {MANIFEST} is not readable")


def compare(folder: Path, found: dict[str, dict[str, Any]], *, leave_out: Collection[str] = ()) -> None:
    """Compare the files of a folder with entries.

    Raises: CheckpointError that says what is missing or has changed.
    """
    kept = {name: entry for name, entry in found.items() if not is_like(name, leave_out)}
    for name, entry in kept.items():  # sizes first: they cost nothing
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} is missing" if size is None else f"{name} has {size:,} bytes instead of {entry['bytes']:,}")
    for name, entry in kept.items():
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
