"""A lane runs what waits together, gives each its own, and drops what nobody waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
from unmask.errors import TaskError
from unmask.serve import batcher
from unmask.serve.batcher import Lane


class Gate:
    """A `run` that doubles numbers, once it is let; it keeps what it was given in each turn."""

    def __init__(self) -> None:
        self.open, self.begun, self.turns = threading.Event(), threading.Event(), []

    def __call__(self, works):
        self.turns.append(list(works))
        self.begun.set()
        assert self.open.wait(10)
        return [2 * work if isinstance(work, int) else TaskError(str(work)) for work in works]


async def settled(lane: Lane, gate: Gate, works, cost: int = 1):
    """Submit a work that begins to run, then others that have to wait; return all futures."""
    first = lane.submit(0, 1)
    await asyncio.to_thread(gate.begun.wait, 10)
    return first, [lane.submit(work, cost) for work in works]


def test_what_waits_runs_together_and_each_gets_its_own():
    async def run():
        gate = Gate()
        lane = Lane("test", gate, max_cost=100)
        first, rest = await settled(lane, gate, range(1, 40))
        gate.open.set()
        assert await first == 0 and await asyncio.gather(*rest) == [2 * number for number in range(1, 40)]
        assert gate.turns == [[0], list(range(1, 40))]
        lane.close()

    asyncio.run(run())


def test_a_turn_is_no_larger_than_its_budget():
    async def run():
        gate = Gate()
        lane = Lane("test", gate, max_cost=100)
        first, rest = await settled(lane, gate, range(1, 8), cost=40)
        large = lane.submit(9, 1000)  # alone, but not never
        gate.open.set()
        await asyncio.gather(first, large, *rest)
        assert gate.turns == [[0], [1, 2], [3, 4], [5, 6], [7], [9]]
        lane.close()

    asyncio.run(run())


def test_what_nobody_waits_for_is_dropped():
    async def run():
        gate = Gate()
        lane = Lane("test", gate, max_cost=100)
        first, rest = await settled(lane, gate, range(1, 5))
        rest[0].cancel()
        rest[2].cancel()
        gate.open.set()
        assert await first == 0 and [await rest[1], await rest[3]] == [4, 8]
        assert gate.turns == [[0], [2, 4]]
        lane.close()

    asyncio.run(run())


def test_who_was_answered_is_waited_for(monkeypatch):
    """Three that were answered together come back one after another, and still run together; a fourth is not waited for."""
    monkeypatch.setattr(batcher, "WAIT_SECONDS", 30.0)

    async def run():
        gate = Gate()
        lane = Lane("test", gate, max_cost=100)
        first, rest = await settled(lane, gate, range(1, 4))
        gate.open.set()
        await asyncio.gather(first, *rest)
        later = []
        for number in range(4, 7):
            later.append(lane.submit(number, 1))
            await asyncio.sleep(0.05)
        assert await asyncio.gather(*later) == [8, 10, 12]
        assert gate.turns == [[0], [1, 2, 3], [4, 5, 6]]
        assert await lane.submit(7, 100) == 14  # as much as a turn holds: there is nothing to wait for
        lane.close()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_an_error_goes_to_whose_it_is():
    def run_all(works):
        if "bad" in works:
            raise ValueError("out of the blue")
        return works

    async def run():
        lane = Lane("test", run_all, max_cost=100)
        futures = [lane.submit(work, 1) for work in ["a", "bad", "b"]]
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert found[::2] == ["a", "b"] and str(found[1]) == "out of the blue"
        gate = Gate()
        gate.open.set()
        other = Lane("other", gate, max_cost=100)
        found = await asyncio.gather(other.submit(1, 1), other.submit("no", 1), return_exceptions=True)
        assert found[0] == 2 and isinstance(found[1], TaskError)
        lane.close()
        other.close()

    asyncio.run(run())


def test_a_closed_lane_answers_what_it_took():
    async def run():
        gate = Gate()
        lane = Lane("test", gate, max_cost=100)
        first, rest = await settled(lane, gate, range(1, 4))
        lane.close()
        with pytest.raises(RuntimeError, match="closed"):
            lane.submit(5, 1)
        gate.open.set()
        assert await asyncio.gather(first, *rest) == [0, 2, 4, 6]
        await asyncio.to_thread(lane.thread.join, 10)
        assert not lane.thread.is_alive()

    asyncio.run(run())


def test_a_turn_that_nobody_waits_for_ends_at_its_next_pass():
    async def run():
        begun, seen = threading.Event(), []

        def passes(works):
            begun.set()
            for number in range(1000):
                lane.check()
                seen.append(number)
                threading.Event().wait(0.01)
            return works

        lane = Lane("test", passes, max_cost=100)
        future = lane.submit("long", 1)
        await asyncio.to_thread(begun.wait, 10)
        future.cancel()
        lane.close()
        await asyncio.to_thread(lane.thread.join, 10)
        assert not lane.thread.is_alive() and len(seen) < 1000

    asyncio.run(run())
