"""Requests that wait are run together: a thread for a kind of work takes what is there, runs it once, and gives each its answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import UnmaskError

# who has just been answered, with others, is likely to come back at once: as many are waited for as were answered, but no longer than
WAIT_SECONDS = 0.005
WAIT_SHARE = 0.05  # or this share of what the last turn took, where that is more: a turn for the few who are early costs the others one

log = logging.getLogger(__name__)


class Gone(Exception):
    """Nobody waits for what is being computed any more."""


class Job(NamedTuple):
    """What is to be done, about how many tokens it is for the model, and where the answer goes."""

    work: Any
    cost: int
    future: asyncio.Future[Any]


class Lane:
    """Runs the work of many requests in turns of about `max_cost` tokens.

    `run` takes a list of works and returns for each its answer, or the error that it is to get. `after` is told the size of each turn.
    """

    def __init__(
        self, name: str, run: Callable[[Sequence[Any]], list[Any]], *, max_cost: int, after: Callable[[int, int, float], None] | None = None
    ) -> None:
        self.run, self.max_cost, self.after = run, max_cost, after
        self.ready = threading.Condition()
        self.waiting: deque[Job] = deque()
        self.wanted = 1  # so many, or as many as fill a turn, wake the thread
        self.cost = 0  # of all that wait
        self.turn: list[Job] = []
        self.closing = False
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def submit(self, work: Any, cost: int) -> asyncio.Future[Any]:
        """Return the answer to come; one that is cancelled is dropped from the queue."""
        future = asyncio.get_running_loop().create_future()
        with self.ready:
            if self.closing:
                raise RuntimeError("the lane is closed")
            self.waiting.append(Job(work, cost, future))
            self.cost += cost
            if self._enough():
                self.ready.notify()
        return future

    def close(self) -> None:
        """Take no more, and end when what waits is answered."""
        with self.ready:
            self.closing = True
            self.ready.notify()

    def check(self) -> None:
        """Raise Gone where nobody waits for the turn that runs: called between the passes of the model."""
        if threading.current_thread() is self.thread and all(job.future.done() for job in self.turn):
            raise Gone

    def __len__(self) -> int:
        return len(self.waiting)

    def _enough(self) -> bool:
        return self.closing or len(self.waiting) >= self.wanted or self.cost >= self.max_cost

    def _serve(self) -> None:
        answered, took = 0, 0.0
        while (jobs := self._take(answered, took)) is not None:
            answered, took = len(jobs), 0.0
            if jobs:
                self.turn = jobs
                started = time.perf_counter()
                self._deliver(jobs, self._outcomes([job.work for job in jobs]))
                took = time.perf_counter() - started
                if self.after is not None:
                    self.after(len(jobs), sum(job.cost for job in jobs), took)
                self.turn = []
        del self.run  # with it goes the model, which points here

    def _take(self, answered: int, took: float) -> list[Job] | None:
        """Return the jobs of the next turn, in the order they came; None when there are no more to come."""
        with self.ready:
            self.wanted = 1
            self.ready.wait_for(self._enough)
            if not self.waiting:
                return None
            if answered > 1:
                self.wanted = answered
                self.ready.wait_for(self._enough, max(WAIT_SECONDS, WAIT_SHARE * took))
            jobs: list[Job] = []
            cost = 0
            while self.waiting and (not jobs or cost + self.waiting[0].cost <= self.max_cost):
                job = self.waiting.popleft()
                self.cost -= job.cost
                if not job.future.done():
                    jobs.append(job)
                    cost += job.cost
            return jobs

    def _outcomes(self, works: list[Any]) -> list[Any]:
        try:
            return self.run(works)
        except Gone:
            return [None] * len(works)  # there is nobody to see it
        except Exception as error:
            if len(works) > 1:  # one of them is at fault: the others are not to suffer
                return [outcome for work in works for outcome in self._outcomes([work])]
            if not isinstance(error, UnmaskError):
                log.exception("a request could not be answered")
            return [error]

    def _deliver(self, jobs: list[Job], outcomes: list[Any]) -> None:
        loop = jobs[0].future.get_loop()
        try:
            loop.call_soon_threadsafe(_settle, jobs, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.warning("%d answers came after the service had ended", len(jobs))


def _settle(jobs: list[Job], outcomes: list[Any]) -> None:
    for job, outcome in zip(jobs, outcomes, strict=True):
        if job.future.done():
            continue
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
