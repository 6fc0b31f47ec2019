"""Find the process that keeps all others waiting, and say which it is."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Self

import torch.distributed as dist

from .background import regularly

if TYPE_CHECKING:
    from .distributed import Processes

GRACE_SECONDS = 5.0  # for the others to notice, too, that nothing moves
TICK_SECONDS = 0.5


class Watch:
    """While `with Watch(...)` lasts, a process that waits for others for `seconds` ends with exit code 1, and says for whom it waited.

    A thread looks; nothing is exchanged until somebody has waited that long. Then each process that still can says in the launcher's
    store whether it waits or is at work; whoever is at work, or says nothing, is the one.
    """

    def __init__(self, world: Processes, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="unmask-watch", daemon=True)

    def __enter__(self) -> Self:
        self.world.moved = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(min(TICK_SECONDS, self.seconds / 4)):
            if time.monotonic() - self.world.moved < self.seconds:
                continue
            moved = self.world.moved
            states = self._ask()
            if self.world.moved != moved or self._over.is_set() or not self.world.is_waiting:
                continue  # it has gone on meanwhile, or is itself the one
            waiting = [rank for rank, state in enumerate(states) if state == "waiting"]
            if self.world.rank == min(waiting, default=self.world.rank):
                os.write(2, f"unmask: {self._verdict(states)}\n".encode())
            os._exit(1)  # the main thread is inside a call that does not return

    def _ask(self) -> list[str | None]:
        """Say what this process does, and return what each one says."""
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        keys = [f"unmask/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}" for rank in range(self.world.size)]
        store.set(keys[self.world.rank], "waiting" if self.world.is_waiting else "at work")
        time.sleep(GRACE_SECONDS)
        return [store.get(key).decode() if store.check([key]) else None for key in keys]

    def _verdict(self, states: list[str | None]) -> str:
        silent = [rank for rank, state in enumerate(states) if state is None]
        working = [rank for rank, state in enumerate(states) if state == "at work"]
        parts = [f"{_named(silent)} neither came nor answered (stopped, or its machine is gone)"] if silent else []
        parts += [f"{_named(working)} did not get on with its work"] if working else []
        found = "; ".join(parts) or "all wait for one another, so that the network between them is at fault"
        return (
            f"of {self.world.size} processes, those that wait have waited {self.seconds:,.0f} s: {found}. "
            "The run goes on from its last checkpoint (unmask resume); train.timeout_minutes is how long they wait"
        )


def ending_with(launcher: int) -> contextlib.AbstractContextManager[None]:
    """End this process with exit code 1 when its launcher has gone: one that waits for others to come is told by nobody else."""

    def look() -> None:
        if os.getppid() != launcher:
            os.write(2, b"unmask: the launcher has gone, and not all of its processes have come; start it again\n")
            os._exit(1)  # the main thread is inside a call that does not return

    return regularly(look, TICK_SECONDS, "unmask-launcher")


def _named(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
