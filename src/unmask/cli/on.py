"""`--on`: the place where a verb does its work, this process or a cluster."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..cluster.ray import Cluster

On = Annotated[
    str | None, typer.Option("--on", help="Work on a Ray cluster: ray (that of this machine, or a new one), ray://HOST:10001, HOST:6379.")
]
Workers = Annotated[int | None, typer.Option(help="With --on: use no more workers than these. By default all that there is room for.")]


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
