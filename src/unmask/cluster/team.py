"""A map over a stream by workers of a cluster: in order, in bounded memory, each item's result once, whatever workers are lost."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ..data.over import Stage
from ..errors import ConfigError, RunError, TaskError
from .worker import Worker, versions

WITH_A_WORKER = 2  # items: one in work, one waiting, so that no worker waits for us
UNDELIVERED = 4  # items a worker that are taken from the stream and not yet given back: one that is slow holds up no more than these
TRIES = 3  # of an item, before it is taken to be what ends its workers
PATIENCE_SECONDS = 60.0  # without a worker, before we say so

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Member:
    handle: Any
    facts: dict[str, Any] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)  # of the items with it, the one in work first


@dataclass(eq=False)
class _Job:
    """A stream on its way: `due` is the number of the item whose result comes next."""

    stage: list[Any]
    items: Iterator[tuple[int, Any]]
    taken: int = 0
    due: int = 0
    at_end: bool = False
    sent: dict[int, Any] = field(default_factory=dict)
    found: dict[int, Any] = field(default_factory=dict)
    again: deque[int] = field(default_factory=deque)
    tries: dict[int, int] = field(default_factory=dict)
    running: dict[Any, tuple[_Member, int]] = field(default_factory=dict)


class Team:
    """`size` workers, each of which holds what `make` returns; `resources` are what each takes of its machine (as Ray's `options`)."""

    def __init__(self, make: Callable[[], Any], size: int, resources: dict[str, Any]) -> None:
        self.size, self.make = size, [ray.put(make)]
        self.actor = ray.remote(Worker).options(max_restarts=0, max_task_retries=0, **resources)
        self.members: list[_Member] = []
        self.starting: dict[Any, _Member] = {}
        self.failed = 0  # starts, since one went well

    def over(self, stage: Stage, items: Iterable[Any]) -> Iterator[Any]:
        """Yield what a stage makes of each item, in order; items are taken from the stream a few ahead of the one that is due.

        Raises: what the stage raises; RunError where an item ends its workers; TaskError for a team that was dismissed.
        """
        if not self.size:
            raise TaskError("the workers of this tool were let go of, for another one that was spread over the cluster; load it once more")
        job = _Job([ray.put(stage)], enumerate(items))
        for member in self.members:
            member.numbers.clear()  # of a stream that was left before its end
        while True:
            self._give(job)
            if job.at_end and job.due == job.taken:
                return
            self._collect(job)
            while job.due in job.found:
                yield job.found.pop(job.due)
                job.due += 1

    def first(self) -> dict[str, Any]:
        """Return the facts of a worker, once there is one."""
        while not self.members:
            self._hire()  # again, where one was lost as it started
            self._collect(None)
        return self.members[0].facts

    def dismiss(self) -> None:
        """End the workers, for good."""
        self.size = 0
        for member in [*self.members, *self.starting.values()]:
            ray.kill(member.handle)
        self.members.clear()
        self.starting.clear()

    def _hire(self) -> None:
        while len(self.members) + len(self.starting) < self.size:
            member = _Member(self.actor.remote())
            self.starting[member.handle.start.remote(self.make)] = member

    def _give(self, job: _Job) -> None:
        """Give items to workers: those again whose worker was lost, then the stream's next, as far as it may be read ahead."""
        self._hire()
        while self.members:
            member = min(self.members, key=lambda one: len(one.numbers))
            if len(member.numbers) >= WITH_A_WORKER:
                return
            if job.again:
                number = job.again.popleft()
            elif job.at_end or job.taken - job.due >= UNDELIVERED * self.size:
                return
            else:
                try:
                    number, job.sent[job.taken] = next(job.items)
                except StopIteration:
                    job.at_end = True
                    return
                job.taken += 1
            member.numbers.append(number)
            job.running[member.handle.do.remote(job.stage, job.sent[number])] = (member, number)

    def _collect(self, job: _Job | None) -> None:
        """Wait for a worker to start or to be done with an item."""
        ready, _ = ray.wait([*(job.running if job is not None else ()), *self.starting], timeout=PATIENCE_SECONDS)
        if not ready and not self.members:
            free, there = ray.available_resources(), ray.cluster_resources()
            amounts = ", ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
            log.warning("no worker has started for a while; free on the cluster: %s", amounts)
        for reference in ready:
            if reference in self.starting:
                self._started(reference)
            elif job is not None and reference in job.running:  # else of a worker that was found lost just now
                self._done(reference, job)

    def _started(self, reference: Any) -> None:
        member = self.starting.pop(reference)
        try:
            member.facts = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self.failed += 1
            if self.failed >= TRIES:
                raise _cannot_start(error) from error
            return
        ours, theirs = versions(), member.facts["versions"]
        wrong = [f"{name} {theirs[name]} (here {ours[name]})" for name in ours if ours[name] != theirs[name]]
        if wrong:
            raise ConfigError(
                f"a worker of the cluster has {', '.join(wrong)}: results would not be those of one machine; install the same on every node"
            )
        self.failed = 0
        self.members.append(member)

    def _done(self, reference: Any, job: _Job) -> None:
        member, number = job.running.pop(reference)
        try:
            job.found[number] = ray.get(reference)
        except RayTaskError as error:  # what the work itself raised, as it would have here
            raise error.cause from error
        except RayError as error:
            self._lost(member, job, number, error)
            return
        member.numbers.remove(number)
        job.sent.pop(number)

    def _lost(self, member: _Member, job: _Job, number: int, error: RayError) -> None:
        """Let go of a worker that has died, or whose machine has; what was with it is done again by another."""
        ray.kill(member.handle)  # it may be cut off and not dead: its results are not wanted any more
        if member in self.members:
            self.members.remove(member)
        culprit = member.numbers[0]
        job.tries[culprit] = job.tries.get(culprit, 0) + 1
        if job.tries[culprit] >= TRIES:
            raise RunError(
                f"{TRIES} workers, one after the other, were lost with the same part of the data (number {culprit}): "
                f"{_reason(error)}; does it need more memory than a node has?"
            ) from error
        log.warning("a worker on node %s is lost (%s); what it had is done again", member.facts["node"][:8], _reason(error))
        job.running = {ref: pair for ref, pair in job.running.items() if pair[0] is not member}
        job.again.extendleft(reversed(member.numbers))
        member.numbers.clear()


def _cannot_start(error: RayError) -> ConfigError | RunError:
    text = " ".join(str(error).split())
    if "No module named" in text or "failed to import" in text:
        missing = text[text.find("No module named") :][:80] if "No module named" in text else text[:300]
        return ConfigError(f"the workers cannot run unmask: {missing}; install unmask[cluster] on every node, in the Python that runs Ray")
    return RunError(f"the cluster's workers end as they start: {_reason(error)}; Ray's logs (/tmp/ray/session_latest/logs) say more")


def _reason(error: RayError) -> str:
    """Return the last of what Ray says, which is the most particular, in a line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:200] if lines else 'no reason given'}"
