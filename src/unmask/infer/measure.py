"""How fast several engines are on the same requests, and how far their answers agree: both sides of a comparison in one go, by turns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..data.tokenizer import frame, special_ids
from ..rng import rng
from .arrays import to_numpy, top_k
from .engine import Engine, Request


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an engine's logits are from those of another, over `num_rows` tokens that both were asked for.

    same_top_1: share of the tokens at which the most probable answer is the same.
    max_difference: largest absolute difference of two logits; `max_logit` is the largest of the other's, to see it against.
    """

    num_rows: int
    same_top_1: float
    max_difference: float
    max_logit: float

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Speed:
    """What an engine does with some requests: `seconds` of each round over all of them."""

    num_sequences: int
    num_tokens: int
    seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of the fastest round: what slows a round down is something else on the machine."""
        return self.num_tokens / min(self.seconds)

    def percentile(self, share: float) -> float:
        """Return how long that share of the rounds took at most, in milliseconds."""
        return float(np.quantile(self.seconds, share)) * 1e3


def drawn(tokenizer: Any, lengths: Iterable[int], *, seed: int = 0, every: int | None = None) -> list[Request]:
    """Return sequences of these lengths, special tokens included, of tokens drawn at random, each with masks that are asked for.

    One mask stands in the middle, or `every` so many tokens.
    """
    before, after = frame(tokenizer)
    specials = special_ids(tokenizer)
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), specials.all)
    made = []
    for number, length in enumerate(lengths):
        size = max(1, length - len(before) - len(after))
        content = rng(seed, "drawn", number).choice(ordinary, size)
        made.append(masked(content, before, after, specials.mask, every))
    return made


def masked(content: np.ndarray, before: Sequence[int], after: Sequence[int], mask: int, every: int | None) -> Request:
    """Return a text's tokens with masks in them, which are asked for: one in the middle, or `every` so many tokens."""
    places = np.array([len(content) // 2]) if every is None else np.arange(min(every, len(content)) // 2, len(content), every)
    ids = np.concatenate([before, content, after]).astype(np.int64)
    ids[places + len(before)] = mask
    return Request(ids, places + len(before), content[places])


def agreement(reference: Engine, other: Engine, requests: Sequence[Request]) -> Agreement:
    """Return how far the answers of an engine are from those of a reference."""
    rows = same = 0
    difference = largest = 0.0
    for number in range(0, len(requests), 32):  # logits of so many at a time are held
        chunk = requests[number : number + 32]
        for one, two in zip(reference.logits(chunk), other.logits(chunk), strict=True):
            expected, found = to_numpy(one), to_numpy(two)
            rows += len(expected)
            same += int((expected.argmax(1) == found.argmax(1)).sum())
            difference = max(difference, float(np.abs(expected - found).max()))
            largest = max(largest, float(np.abs(expected).max()))
    return Agreement(rows, same / rows, difference, largest)


def speeds(
    engines: Mapping[str, Engine], requests: Sequence[Request], *, rounds: int = 5, seconds: float | None = None
) -> dict[str, Speed]:
    """Return how fast each engine answers all of the requests, by turns, round after round, so that a busy moment meets them alike.

    There are `rounds` of them, or with `seconds` as many (at least `rounds`, at most 200) as that time an engine allows.
    """
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():  # what is made once a shape is made before
        _answer(engine, requests)
    while len(first := next(iter(taken.values()))) < rounds or (
        seconds is not None and len(first) < 200 and max(map(sum, taken.values())) < seconds
    ):
        for name, engine in engines.items():
            start = time.perf_counter()
            _answer(engine, requests)
            taken[name].append(time.perf_counter() - start)
    tokens = sum(len(request.input_ids) for request in requests)
    return {name: Speed(len(requests), tokens, tuple(times)) for name, times in taken.items()}


def _answer(engine: Engine, requests: Sequence[Request]) -> None:
    """Do what filling does: the five best at each mask."""
    for _ in engine.run(requests, lambda logits: top_k(logits, min(5, logits.shape[1]))):
        pass
