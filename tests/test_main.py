"""`python -m unmask`: how the process ends."""

import os
import signal
import subprocess
import sys

import pytest

# aborts where C's own end is come to, as gloo's threads sometimes do; Python's, which is before that, says so
ABORTS = (
    "import atexit, ctypes, runpy, sys; libc = ctypes.CDLL(None); libc.__cxa_atexit(libc.abort, None, None); "
    "sys.argv = ['unmask', *sys.argv[1:]]; "
)
RUNS = "runpy.run_module('unmask', run_name='__main__', alter_sys=True)"
TIDIES = "from unmask import cli; cli.usage = lambda: atexit.register(print, 'tidied') and 'help'; "  # as torch does, once it is there


def end(*args, size, first=""):
    environment = {**os.environ, "WORLD_SIZE": str(size), "RANK": "0"}
    return subprocess.run([sys.executable, "-c", ABORTS + first + RUNS, *args], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("args", "first", "code", "said"),
    [
        (["--version"], "", 0, "unmask "),
        (["--help"], TIDIES, 0, "help\ntidied\n"),
        (["nonsense"], "", 2, ""),
        (["--help"], "from unmask import cli; cli.usage = lambda: 1 / 0; ", 1, ""),
    ],
)
def test_one_of_several_processes_ends_with_its_exit_code_whatever_outlives_it(args, first, code, said):
    done = end(*args, size=2, first=first)
    assert done.returncode == code and done.stdout.startswith(said), done.stderr
    assert bool(done.stderr) == bool(code)
    assert end(*args, size=1, first=first).returncode == -signal.SIGABRT  # alone it ends as Python does
