"""`--on`: the place where a verb does its work, this process or a cluster."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..cluster.ray import Cluster
    from ..train.session import Run

On = Annotated[
    str | None, typer.Option("--on", help="Work on a Ray cluster: ray (that of this machine, or a new one), ray://HOST:10001, HOST:6379.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="With --on: use no more workers than these. By default all that there is room for.")
]


@contextlib.contextmanager
def place(on: str | None, workers: int | None) -> "Iterator[Cluster | None]":
    """Yield the cluster that is asked for, None where the work is done here."""
    if on is None:
        if workers is not None:
            raise ConfigError(f"--workers {workers} says how much of a cluster to use: name one with --on")
        yield None
        return
    from ..cluster.ray import Cluster

    with Cluster(on, workers=workers) as cluster:
        print(f"on {cluster}", file=sys.stderr)
        yield cluster


def starter(verb: str, folder: Path, on: str | None, workers: int | None, processes: int | None, restarts: int) -> "Callable[..., Run]":
    """Return what starts a run (or goes on with one) by the arguments of pretrain, adapt or resume: here, or on a cluster."""
    if on is None:
        with place(on, workers):
            from ..evaluate import runs

            return getattr(runs, verb)  # type: ignore[no-any-return]
    if processes is not None:
        raise ConfigError(f"--processes {processes} are processes of this machine; on a cluster --workers says how many train together")

    def start(*args: Any, **kwargs: Any) -> "Run":
        from ..cluster.training import RESTARTS, train

        with place(on, workers) as cluster:
            assert cluster is not None
            return train(cluster, verb, folder, args, kwargs, restarts=restarts or RESTARTS, say=lambda text: print(text, file=sys.stderr))

    return start
