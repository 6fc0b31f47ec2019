"""The C allocator, set for training: large blocks are kept for the next step instead of going back to the system."""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4


def tune_allocator() -> bool:
    """Keep freed memory in the process (glibc on Linux only); return whether it was done.

    Every training step frees and asks again for the same large blocks; by default each costs a system call and its page faults,
    which took a third of the time of a step. The settings of the process win where GLIBC_TUNABLES or MALLOC_* are set.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 64 * 2**20)
    return bool(done)
