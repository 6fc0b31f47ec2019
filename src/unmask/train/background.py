"""Work that goes on in a thread while a run trains on: a checkpoint on its way to the disk, a look now and again."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

log = logging.getLogger(__name__)


class Background:
    """One piece of work at a time, in a thread. What goes wrong in it is raised by the next call of any method here.

    The end of `with Background() as background:` waits for it, however it is come to; Ctrl-C breaks off the wait.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], Any]) -> None:
        """Begin with a piece of work, when the one before is done."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="unmask-background", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what has gone wrong so far; wait for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is on its way any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as other:
            if error is None:
                raise
            log.warning("%s", other)  # what ends the run is the first error


@contextlib.contextmanager
def regularly(look: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call a function every so many seconds while the context lasts, in a thread of that name."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
