"""Maps over a stream, with results in the stream's order: in this process, or on a cluster, by a function of the same signature."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")

# takes what does the work (an encoder, an engine) and items; yields one result for each, in their order, and reads few ahead
Stage = Callable[[Any, Iterable[Any]], Iterator[Any]]
Over = Callable[[Stage, Iterable[Any]], Iterator[Any]]


class Place(Protocol):
    """Where maps run that do not run here."""

    def hired(self, make: Callable[[], Any]) -> AbstractContextManager[Over]:
        """Return, for as long as it is entered, a map whose workers each hold what `make` returns."""

    def spread(self, tool: Any, name: Any, make: Callable[..., Any], *, device: str = "auto") -> None:
        """Have the maps of `tool` run there from now on, by what `make(folder, device=...)` returns from the model called `name`."""


def here(tool: Any) -> Over:
    """Return the map that runs in this process."""
    return lambda stage, items: stage(tool, items)


def along(over: Over, stage: Stage, items: Iterable[Item], part: Callable[[Item], Any]) -> Iterator[tuple[Item, Any]]:
    """Yield each item with what the stage made of its `part`: the rest of it, which the stage does not need, goes nowhere."""
    waiting: deque[Item] = deque()

    def parts() -> Iterator[Any]:
        for item in items:
            waiting.append(item)
            yield part(item)

    for result in over(stage, parts()):
        yield waiting.popleft(), result
