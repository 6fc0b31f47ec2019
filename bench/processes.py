"""Commands as processes that can be killed, and those that they have started. Part of faults.py."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def start(args: list[str], errors: Path, modules: Path | None = None) -> int:
    """Fork a process that runs the command `unmask` with arguments, and return its number; `modules`: where it writes what it imported."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(errors, "ab", buffering=0) as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        from unmask.cli import main

        sys.argv = ["unmask", *args]
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        if modules is not None:
            modules.write_text("\n".join(sys.modules), encoding="utf-8")
        sys.stderr.flush()
        os._exit(code)


def used_seconds(process: int) -> float:
    """Return how long a process has kept the processor: by it the moment of a kill is chosen, so that a busy machine changes little."""
    return time.clock_gettime((~process << 3) | 2)  # what clock_getcpuclockid(3) says


def wait_for(process: int, reached: Callable[[], bool], pause: float) -> int | None:
    """Wait until something is reached, and return None, or the exit code of a process that has ended before."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if reached():
            return None
        time.sleep(pause)


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def named(processes: list[int], mark: str) -> list[int]:
    """Return those of some processes that have a word in their command line."""
    found = []
    for one in processes:
        try:
            if mark in Path(f"/proc/{one}/cmdline").read_text(errors="replace"):
                found.append(one)
        except OSError:
            continue
    return found


def left_of(processes: list[int], seconds: float = 120) -> list[str]:
    """Wait until processes have ended, and return the command lines of those that nothing ends: a fault of their own."""
    end = time.monotonic() + seconds
    while True:
        lines = []
        for one in processes:
            with contextlib.suppress(OSError):
                lines.append(Path(f"/proc/{one}/cmdline").read_text(errors="replace").replace("\0", " "))
        if not any(lines) or time.monotonic() > end:
            return [line for line in lines if line]
        time.sleep(0.05)


@contextlib.contextmanager
def cluster(port: int, said: Path) -> Iterator[int]:
    """Start a Ray cluster with room for two workers whatever cores there are, yield its process, and end it; it speaks into a file."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}"]
    with open(said, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        while "Ray runtime started" not in said.read_text(errors="replace"):
            if process.poll() is not None:  # it waits for half a minute for its own parts
                raise SystemExit(f"the cluster did not start (is the machine busy?); {said} says more; go on with the same --work")
            time.sleep(0.5)
        time.sleep(5)  # its first workers
        yield process.pid
    finally:
        family = descendants(process.pid)
        process.terminate()
        process.wait()
        for one in named(family, "ray"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)


def at_work(host: int) -> list[int]:
    """Return the processes of a cluster that are there only while somebody works on it."""
    found = named(descendants(host), "ray::")
    return [one for one in found if not any(named([one], word) for word in ("ray::IDLE", "Agent", "ray::_AutoscalingCoordinator"))]


def undisturbed(args: list[str], errors: Path) -> tuple[float, float]:
    """Run a command to its end (unless that was done before), import here what it imported there, and return how long it took.

    The times are that of the processor, and that by the clock.
    """
    modules, record = errors.with_suffix(".modules"), errors.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(args[-1], ignore_errors=True)  # of one that was stopped: the folder is named last
        before, begin = os.times().children_user, time.monotonic()
        if os.waitstatus_to_exitcode(os.waitpid(start(args, errors, modules), 0)[1]):
            raise SystemExit(f"the undisturbed command failed: unmask {' '.join(args)}\n{errors.read_text(errors='replace')}")
        record.write_text(json.dumps([os.times().children_user - before, time.monotonic() - begin]))
    for name in modules.read_text().splitlines():  # the next ones find it in memory
        if name.partition(".")[0] not in ("__main__", "__mp_main__"):
            try:
                importlib.import_module(name)
            except Exception:  # some are not there to be imported by name
                continue
    used, elapsed = json.loads(record.read_text())
    return used, elapsed
