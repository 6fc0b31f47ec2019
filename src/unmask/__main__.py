"""`python -m unmask` is the command `unmask`."""

import atexit
import os
import sys

from .cli import main


def _end() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


code = 1  # of what nobody foresaw
# threads of gloo may outlive its groups, and end a process that Python clears away by SIGABRT
if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
    atexit.register(_end)  # before torch registers anything: what was registered last is done first
try:
    main()
except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
    raise
