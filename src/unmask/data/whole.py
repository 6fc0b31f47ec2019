"""Files and folders that appear whole or not at all, each made by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from ..errors import CheckpointError, UnmaskError

Error = type[UnmaskError]
# file systems of several machines, one of which does not see the locks of another
SHARED = ("nfs", "lustre", "cifs", "smb", "ceph", "gpfs", "beegfs", "gluster", "afs", "9p", "fuse")


@contextlib.contextmanager
def alone(path: Path, *, error: Error = CheckpointError, file: bool = False) -> Iterator[int]:
    """Hold a folder (or a `file`) for this process, made where it is not there; yield its descriptor.

    The system lets go of it however the process ends.
    Raises: `error` where another process holds it.
    """
    descriptor = _locked(path, error, file)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool | None:
    """Return whether another process is `alone` with a folder or a file; None where that cannot be seen: from another machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # shared, so that two who ask do not see each other, and for no longer than the question
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None if file_system(path).startswith(SHARED) else False


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return what kind of file system a path lies on, as the system calls it; nothing where it does not say."""
    device = path.stat().st_dev
    with contextlib.suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            about, _, kind = line.partition(" - ")
            if about.split()[2:3] == [f"{os.major(device)}:{os.minor(device)}"]:
                return kind.split()[0]
    return ""


def _locked(path: Path, error: Error, file: bool) -> int:
    refusals = 0
    while True:
        if not file:
            path.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT if file else os.O_RDONLY, 0o666)
        except FileNotFoundError:  # another process has just removed it
            if not path.parent.is_dir():
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            refusals += 1
            if refusals < 3:  # somebody may only have asked: is_held
                time.sleep(0.02)
                continue
            name = path.name.removesuffix(".partial")
            raise error(f"another process is at work on '{path.with_name(name)}'; wait for it, stop it, or choose another name") from None
        except OSError:  # some network file systems have no locks
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # it was moved to its place, or removed, between the opening and the locking


@contextlib.contextmanager
def whole_folder(target: Path, *, made_of: Collection[str], error: Error = CheckpointError) -> Iterator[Path]:
    """Yield a folder to fill, which takes the place of `target` at the end, or goes if there is an error.

    `made_of` names what lies in such a folder: what a killed process has left is known by it, and cleared away.
    Raises: `error` where another process makes the same folder, or something else is in the way.
    """
    partial, replaced = (target.with_name(f"{target.name}.{end}") for end in ("partial", "replaced"))
    if partial.exists() and not partial.is_dir():
        raise error(f"'{partial}' is in the way and was not made by unmask; move it away")
    with alone(partial, error=error):
        left = list(partial.iterdir())
        if left and not any(path.name in made_of for path in left):
            raise error(f"'{partial}' is in the way and was not made by unmask; move it away")
        for path in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield partial
            if target.exists():
                shutil.rmtree(replaced, ignore_errors=True)
                target.rename(replaced)
            partial.rename(target)
        except BaseException:  # an interruption as well
            shutil.rmtree(partial, ignore_errors=True)
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            raise
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path, *, error: Error = CheckpointError) -> Iterator[IO[str]]:
    """Yield a text file to write, which takes the place of `path` at the end, or goes if there is an error.

    Raises: `error` where another process writes the same file.
    """
    partial = path.with_name(f"{path.name}.partial")
    with alone(partial, error=error, file=True) as descriptor:
        try:
            os.truncate(descriptor, 0)
            with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from any other that may come to stand in its place, as where a disk is unmounted; None for none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    with whole_file(path) as file:
        file.write(text)


def unfinished(folder: Path) -> str:
    """Return what is to be said of a folder where a run has begun and left no model yet, to follow after what is missing; else nothing."""
    if any((folder / name).exists() for name in ("config.toml", "checkpoints")) and not (folder / "model").is_dir():
        return f"; it is an unfinished run: `unmask resume {folder}`"
    return ""
