"""Ctrl-C and SIGTERM end a run after the step in hand, not in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequest:
    """Within `with StopRequest() as stop:`, `stop.requested` turns true on SIGINT or SIGTERM; a second SIGINT interrupts at once."""

    def __init__(self, say: bool = True) -> None:
        self.requested, self._say = False, say
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if not self._say:
            return
        name = signal.Signals(number).name
        # written past sys.stderr, which may be in the middle of a write of its own
        os.write(2, f"\n{name}: finishing this step and saving a checkpoint (Ctrl-C again: stop at once, without one)\n".encode())

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
