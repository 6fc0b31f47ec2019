"""Checkpoints that are there whole or not at all: a Hugging Face folder each, plus what it takes to go on training from it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.manifest import MANIFEST, compare, entries, read_manifest, sha256
from ..data.whole import identity
from ..errors import CheckpointError, RunError

if TYPE_CHECKING:
    from torch import Tensor

TENSORS = "training_state.safetensors"  # optimizers, random numbers: whatever is a tensor
INFO = "trainer_state.json"  # step, tokens, seconds: whatever is not
COMPLETE = "COMPLETE"  # written last: the SHA-256 of the manifest
NAME = re.compile(r"step-(\d{8,})(\.replaced)?")
LEFTOVER = re.compile(r"step-\d{8,}\.(partial|deleted)")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there, unchanged: `folder` is one that any `from_pretrained` loads."""

    folder: Path
    step: int
    loss: float | None  # on held-out text, where it was measured
    info: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that were saved, as they were, on the CPU."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.folder / TENSORS)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read '{self.folder / TENSORS}': {error}") from error

    def export(self, folder: Path) -> None:
        """Copy the model, without what only training needs, into a folder."""
        for path in self.folder.iterdir():
            if path.name not in (TENSORS, INFO, MANIFEST, COMPLETE):
                shutil.copyfile(path, folder / path.name)


class Checkpoints:
    """The checkpoints of a run, in folders `step-00000100`; those beyond `save_total_limit` are deleted, oldest first, never the best."""

    def __init__(self, folder: str | Path, save_total_limit: int = 2) -> None:
        self.folder, self.save_total_limit = Path(folder), max(1, save_total_limit)
        self._known: dict[Path, Checkpoint | None] = {}  # what was read and checked before; None: damaged

    def save(
        self,
        step: int,
        model_saver: Callable[[Path], Any],
        tensors: Mapping[str, Tensor],
        info: Mapping[str, Any],
        *,
        loss: float | None = None,
    ) -> Checkpoint:
        """Write a checkpoint of a step and return it; `model_saver` writes the model into the folder that it is given.

        `loss` is the held-out loss of these weights, by which the best is known.
        Raises: RunError when it cannot be written (the disk is full, say); the checkpoints from before are as they were.
        """
        from ..model.tensors import write_tensors

        target = self.folder / f"step-{step:08d}"
        written = {**info, "step": step, "heldout_loss": loss}

        def fill(partial: Path) -> None:
            model_saver(partial)
            write_tensors(tensors, partial / TENSORS)
            (partial / INFO).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
            seal(partial)

        try:
            self.folder.mkdir(exist_ok=True)  # not its parents: where the run's folder is gone, nothing is written in its place
            self._sweep()
            _write_folder(target, fill)
        except (OSError, RunError) as error:
            last = max((c for c in self._complete() if c is not None), key=lambda c: c.step, default=None)
            rest = f"the last good one, '{last.folder}', is untouched" if last else "there is none from before"
            raise RunError(
                f"the checkpoint of step {step} could not be written to '{self.folder}': {reason(error)}; {rest}. "
                "Make room (or mend the folder), then go on with `unmask resume`"
            ) from error
        # read back as JSON gives it, so that it is the same now as after a resume
        self._known[target] = checkpoint = Checkpoint(target, step, loss, json.loads(json.dumps(written)))
        self.prune()
        return checkpoint

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole; for each newer one that is not, log a warning that says why.

        Raises: CheckpointError where there are some, and none is whole.
        """
        for folder in self._folders():
            checkpoint = self._read(folder)
            if checkpoint is not None:
                return checkpoint
        if damaged := self._folders():
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in '{self.folder}' is whole; bring back one of them, or remove the folder to "
                "begin again with the first step"
            )
        return None

    def damaged(self) -> list[Path]:
        """Return the folders of checkpoints that are not whole, newest first."""
        return [folder for folder in self._folders() if self._read(folder) is None]

    def named(self, name: str | None) -> Checkpoint | None:
        """Return the checkpoint of a folder's name, which another process has found to be whole."""
        if name is None:
            return None
        folder = self.folder / name
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))  # now: a run that went back has written the step again
        return Checkpoint(folder, int(info["step"]), info["heldout_loss"], info)

    def go_back(self, step: int) -> bool:
        """Delete the checkpoints of later steps, and return True; where none is of that step or before, do nothing, and return False."""
        whole = [checkpoint for checkpoint in self._complete() if checkpoint is not None]
        if not any(checkpoint.step <= step for checkpoint in whole):
            return False
        for checkpoint in whole:
            if checkpoint.step > step:
                self._known.pop(checkpoint.folder, None)
                remove(checkpoint.folder)
        return True

    def best(self) -> Checkpoint | None:
        """Return the whole checkpoint with the lowest held-out loss (the newer of equals), None where none was measured."""
        measured = [c for c in self._complete() if c is not None and c.loss is not None and c.loss == c.loss]
        return min(measured, key=lambda c: (c.loss, -c.step), default=None)

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond the limit; the newest and the best are always kept, damaged ones never counted."""
        whole = [checkpoint for checkpoint in self._complete() if checkpoint is not None]
        best = self.best()
        kept = {checkpoint.folder for checkpoint in (*whole[:1], *([best] if best else []))}
        for checkpoint in whole:
            if len(kept) < self.save_total_limit:
                kept.add(checkpoint.folder)
        for checkpoint in whole:
            if checkpoint.folder not in kept:
                self._known.pop(checkpoint.folder, None)
                remove(checkpoint.folder)

    def _folders(self) -> list[Path]:
        """Return the folders that are named like checkpoints, newest first; one that was about to be replaced comes after its like."""
        found = []
        for child in self.folder.iterdir() if self.folder.is_dir() else ():
            match = NAME.fullmatch(child.name)
            if match and child.is_dir():
                found.append((int(match[1]), match[2] is None, child))
        return [child for _, _, child in sorted(found, reverse=True)]

    def _complete(self) -> Iterator[Checkpoint | None]:
        return (self._read(folder) for folder in self._folders())

    def _read(self, folder: Path) -> Checkpoint | None:
        if folder not in self._known:
            try:
                check(folder)
                info = json.loads((folder / INFO).read_text(encoding="utf-8"))
                self._known[folder] = Checkpoint(folder, int(info["step"]), info["heldout_loss"], info)
            except (CheckpointError, OSError, ValueError, KeyError) as error:
                log.warning("the checkpoint '%s' is damaged and is not used: %s", folder, error)
                self._known[folder] = None
        return self._known[folder]

    def _sweep(self) -> None:
        """Remove what a process that was killed has left: folders half written or half deleted."""
        for child in self.folder.iterdir():
            if LEFTOVER.fullmatch(child.name):
                shutil.rmtree(child)
            elif child.name.endswith(".replaced") and self._read(child.with_name(child.name.removesuffix(".replaced"))) is not None:
                shutil.rmtree(child)
                self._known.pop(child, None)


def seal(folder: Path) -> None:
    """Write the manifest of a folder and then its COMPLETE marker, everything flushed to the disk before the marker is."""
    for path in folder.rglob("*"):
        if path.is_file():
            flush(path)
    text = json.dumps({"files": entries(folder)}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)
    (folder / COMPLETE).write_text(hashlib.sha256(text.encode()).hexdigest() + "\n", encoding="utf-8")


def check(folder: Path, *, content: bool = True) -> None:
    """Check that a folder holds what its manifest says, to the bit; without `content`, by the marker and the sizes alone.

    Raises: CheckpointError that says what is missing or has changed.
    """
    if not (folder / COMPLETE).is_file():
        raise CheckpointError(f"it has no {COMPLETE} marker: writing it was interrupted")
    found = read_manifest(folder)
    if (folder / COMPLETE).read_text(encoding="utf-8", errors="replace").strip() != sha256(folder / MANIFEST):
        raise CheckpointError(f"its {MANIFEST} is not the one that was written")
    compare(folder, found or {}, content=content)


def write_folder(target: Path, fill: Callable[[Path], Any]) -> None:
    """Make the folder `target` appear with all that `fill` writes into it, or not at all; what had its name before is replaced.

    Raises: RunError when it cannot be written; what was there before is then as it was.
    """
    try:
        _write_folder(target, fill)
    except (OSError, shutil.Error) as error:
        raise RunError(f"'{target}' could not be written: {reason(error)}; make room (or mend the folder), and try again") from error


def _write_folder(target: Path, fill: Callable[[Path], Any]) -> None:
    with held(target.parent) as parent:
        partial, replaced = (parent / f"{target.name}.{end}" for end in ("partial", "replaced"))
        if partial.exists():
            shutil.rmtree(partial)
        try:
            partial.mkdir()
            fill(partial)
            if identity(target.parent) != identity(parent):
                raise FileNotFoundError(errno.ENOENT, "it was moved while it was written to", str(target.parent))
            for path in partial.rglob("*"):
                flush(path)
            flush(partial)
            target = parent / target.name
            if target.exists():
                if replaced.exists():
                    shutil.rmtree(replaced)
                target.rename(replaced)
            partial.rename(target)
            flush(parent)
        except BaseException:  # an interruption as well: nothing half written stays
            shutil.rmtree(partial, ignore_errors=True)
            if replaced.exists() and not (parent / target.name).exists():
                replaced.rename(parent / target.name)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """Yield a path that leads to a folder even where it is moved meanwhile, so that nothing is made in what takes its place."""
    descriptor = os.open(folder, os.O_RDONLY)
    path = Path(f"/proc/self/fd/{descriptor}")
    try:
        yield path if path.exists() else folder
    except OSError as error:
        if error.filename:
            error.filename = str(error.filename).replace(str(path), str(folder), 1)
        raise
    finally:
        os.close(descriptor)


def remove(folder: Path) -> None:
    """Delete a folder so that it is never seen half deleted under its own name; one that cannot be deleted is logged and stays."""
    trash = folder.with_name(f"{folder.name}.deleted")
    try:
        folder.rename(trash)
        shutil.rmtree(trash)
    except OSError as error:
        log.warning("'%s' could not be deleted: %s", folder, error)


def flush(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # some network file systems refuse it for folders, and then nothing better can be done
        with contextlib.nullcontext() if path.is_file() else contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: BaseException) -> str:
    """Return what the system said, without Python's way of putting it."""
    return f"{error.strerror} ('{error.filename}')" if isinstance(error, OSError) and error.strerror and error.filename else str(error)
