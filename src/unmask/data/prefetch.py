"""Batches made ahead: a thread fills a short queue while the model works, so that no step waits for data."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .batch import PackedBatch


class Prefetch:
    """Iterate over the batches of a loader from `first_step` on, made ahead in a background thread; close it, or use it in `with`.

    An exception in the thread is raised where the batch would have come. Without `last_step` it never ends.
    """

    def __init__(
        self,
        loader: Any,
        first_step: int = 0,
        probability_of: Callable[[int], float | None] | None = None,
        depth: int = 2,
        last_step: int | None = None,
    ) -> None:
        self._ready: queue.Queue[tuple[list[PackedBatch] | None, BaseException | None]] = queue.Queue(maxsize=max(1, depth))
        self._closed = threading.Event()
        arguments = (loader, first_step, probability_of, last_step)
        self._thread = threading.Thread(target=self._work, args=arguments, name="unmask-prefetch", daemon=True)
        self._thread.start()

    def _work(self, loader: Any, step: int, probability_of: Callable[[int], float | None] | None, last_step: int | None) -> None:
        try:
            while not self._closed.is_set() and (last_step is None or step < last_step):
                self._put((loader.batch(step, None if probability_of is None else probability_of(step)), None))
                step += 1
            self._put((None, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, item: tuple[list[PackedBatch] | None, BaseException | None]) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[PackedBatch]:
        while not self._closed.is_set():
            try:
                batch, error = self._ready.get(timeout=0.5)
                break
            except queue.Empty:  # slow, or closed from another thread meanwhile
                continue
        else:
            raise StopIteration
        if batch is None:
            self.close()
            if error is not None:
                raise error
            raise StopIteration
        return batch

    def close(self) -> None:
        """Stop the thread and forget what it made ahead."""
        self._closed.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def prefetch(
    loader: Any,
    first_step: int = 0,
    probability_of: Callable[[int], float | None] | None = None,
    depth: int = 2,
    last_step: int | None = None,
) -> Prefetch:
    """Return an iterator over `loader.batch(step, probability_of(step))` for the steps from `first_step` on, made ahead in a thread."""
    return Prefetch(loader, first_step, probability_of, depth, last_step)
