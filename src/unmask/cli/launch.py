"""`--processes N`: the same command, in N processes that train together."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from typing import Annotated

import typer

from ..errors import ConfigError

A_CORE = 8  # processes: more of them would only wait for one another
GRACE_SECONDS = 600  # for a checkpoint, after a signal; whoever sent it has patience of his own

Processes = Annotated[int | None, typer.Option(min=1, help="Train in so many processes on this machine, its cores or GPUs shared out.")]
Restarts = Annotated[int, typer.Option(min=0, help="With --processes: how often they are started again when one of them dies.")]


def launch(processes: int | None, restarts: int) -> int | None:
    """Run this command in so many processes and return its exit code; None where this process is to do the work itself.

    Raises: ConfigError where torchrun has started another number of processes.
    """
    if processes is None:
        if restarts:
            raise ConfigError(f"--restarts {restarts}: name how many processes to start, too (--processes)")
        return None
    if "RANK" in os.environ:  # one of those that were started
        size = int(os.environ["WORLD_SIZE"])
        if size != processes and "UNMASK_LAUNCHED" not in os.environ:
            raise ConfigError(f"--processes {processes}, but torchrun has started {size}; leave --processes out")
        return None
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if processes > A_CORE * cores:
        raise ConfigError(f"--processes {processes}, and this machine has {cores} cores; allowed: 1 to {A_CORE * cores}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    os.environ["UNMASK_LAUNCHED"] = str(os.getpid())
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # otherwise processes that are started again may read addresses of the dead
    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say what is wrong
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=restarts, monitor_interval=0.1, shutdown_timeout=GRACE_SECONDS,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "unmask", *sys.argv[1:])
    except SignalException:
        return 130
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        codes = [int(one.exitcode) for one in error.failures.values()]
        if 2 in codes:  # one of them says what is wrong with the input; the others only that one of them failed
            return 2
        if failure.exitcode > 0:
            return int(failure.exitcode)
        print(f"unmask: process {rank} of {processes} was killed by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
        return 1
    return 0
