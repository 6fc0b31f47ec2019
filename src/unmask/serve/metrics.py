"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service; labels are known endpoints and models only, so that no client can make them many."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("unmask_requests", "Requests answered.", ["endpoint", "status"], registry=self.registry)
        self.seconds = Histogram("unmask_request_seconds", "From the first byte to the last of the answer.", ["endpoint"],
                                 buckets=SECONDS, registry=self.registry)  # fmt: skip
        self.in_flight = Gauge("unmask_requests_in_flight", "Requests that wait or run.", registry=self.registry)
        self.connections = Gauge("unmask_connections", "Open connections.", registry=self.registry)
        self.turns = Histogram("unmask_turn_requests", "Requests that were run together.", ["model", "task"], buckets=SIZES,
                               registry=self.registry)  # fmt: skip
        self.tokens = Counter("unmask_tokens", "Tokens that models saw, about.", ["model", "task"], registry=self.registry)
        self.busy = Counter("unmask_busy_seconds", "Time that models worked.", ["model", "task"], registry=self.registry)
        self.waiting = Gauge("unmask_waiting_requests", "Requests that wait for a model.", ["model"], registry=self.registry)
        self.loads = Counter("unmask_model_loads", "Models loaded.", ["model", "outcome"], registry=self.registry)

    def turn(self, model: str, task: str) -> Callable[[int, int, float], None]:
        """Return what counts a turn of a lane."""
        turns = self.turns.labels(model, task)
        tokens, busy = self.tokens.labels(model, task), self.busy.labels(model, task)

        def count(num_requests: int, num_tokens: int, seconds: float) -> None:
            turns.observe(num_requests)
            tokens.inc(num_tokens)
            busy.inc(seconds)

        return count

    def text(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self.registry)
