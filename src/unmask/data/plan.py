"""The order of an epoch: documents cut into windows, windows packed into packs of a fixed number of tokens; from lengths alone.

Every token is in exactly one window, every window in exactly one pack. All of it is vectorised: a million windows take a third of a
second, so that nothing about the order has to be saved, only the seed; where there are more, it may be kept (order.py).
"""

from __future__ import annotations

import hashlib
import heapq
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from ..rng import rng
from .order import KeptOrder

ROUND = 64  # a pack is filled up to a multiple of so many tokens: kernels are made once a shape
POOL = 1024  # windows that are packed together, about; a larger pool wastes less and takes longer
FEW = 20  # windows: packs that hold fewer are filled by best fit
MANY = 1_000_000  # windows: of so many the packs are kept, if somebody says where
VERSION = 1  # of the order: another one is another key
TRIES = 3  # orders that an epoch tries before it falls back on the first epoch's packs


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a corpus: window w is tokens [start[w], stop[w]) of document[w]; all (windows,) int64."""

    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.document)


def cut(lengths: np.ndarray, capacity: int) -> Windows:
    """Return the windows of documents: as few as hold at most `capacity` tokens each, of equal length but for one token."""
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    start = (np.arange(len(document)) - first[document]) * lengths[document] // counts[document]
    stop = np.append(start[1:], 0)
    ends = first + counts - 1
    stop[ends[counts > 0]] = lengths[counts > 0]
    return Windows(document, start, stop)


@dataclass(frozen=True, slots=True)
class Packs:
    """Which windows lie together: pack p holds windows order[bounds[p]:bounds[p + 1]]."""

    order: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, pack: int) -> np.ndarray:
        return self.order[self.bounds[pack] : self.bounds[pack + 1]]


def pack(sizes: np.ndarray, order: np.ndarray, room: int) -> Packs:
    """Return packs of at most `room` tokens that hold each window of `order` once.

    Windows are taken in order, in pools that fill a number of packs; in a pool the longest comes first and goes into the emptiest pack,
    so that every pack gets long and short ones (where a pack holds few, into the fullest that has room: that wastes less).
    What no pack of its pool has room for goes into a later pool, with the rest at the end.
    """
    packed: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    total = 0
    rest = order
    while len(rest):
        mean = max(1.0, float(sizes[rest].mean()))
        each = max(1, min(64, round(POOL * mean / room)))  # packs of a pool
        before = np.cumsum(sizes[rest]) - sizes[rest]
        pool = before // (each * room)
        whole = int(pool[-1])  # the last pool is not full
        if whole == 0:
            each = -(-int(sizes[rest].sum()) // room)
            fill, left = rest, rest[:0]
        else:
            last = int(np.searchsorted(pool, whole))
            fill, left = rest[:last], rest[last:]
        where = _fill(sizes[fill], pool[: len(fill)], max(whole, 1), each, room, few=mean * FEW > room)
        placed = where >= 0
        packed.append(fill[placed])
        numbers.append(where[placed] + total)
        total += max(whole, 1) * each
        rest = np.concatenate([fill[~placed], left])
    if not packed:
        return Packs(order, np.zeros(1, np.int64))
    number = np.concatenate(numbers)
    by_pack = np.argsort(number, kind="stable")
    counts = np.bincount(number, minlength=total)
    return Packs(np.concatenate(packed)[by_pack], np.concatenate([[0], np.cumsum(counts[counts > 0])]))


def _fill(sizes: np.ndarray, pool: np.ndarray, pools: int, each: int, room: int, few: bool) -> np.ndarray:
    """Return for each window the pack it goes into, -1 where none has room; all pools take a step together, the longest window first."""
    by_size = np.argsort(pool * (room + 1) + (room - sizes), kind="stable")
    first = np.searchsorted(pool[by_size], np.arange(pools + 1))
    free = np.full((pools, each), room, dtype=np.int32)
    where = np.full(len(sizes), -1, dtype=np.int64)
    counts = np.diff(first)
    flat = free.ravel()
    longest_first = np.argsort(-counts, kind="stable")  # the pools that still have windows are then a prefix
    sorted_counts = -counts[longest_first]
    base = np.arange(pools) * each
    for step in range(int(counts.max(initial=0))):
        active = int(np.searchsorted(sorted_counts, -step))
        window = by_size[first[:-1][longest_first[:active]] + step]
        size = sizes[window]
        if few:
            now = free[:active]
            slot = base[:active] + np.where(now >= size[:, None], now, room + 1).argmin(axis=1)
        else:
            slot = base[:active] + free[:active].argmax(axis=1)
        fits = flat[slot] >= size
        slot, window = slot[fits], window[fits]
        flat[slot] -= size[fits].astype(np.int32)
        where[window] = longest_first[slot // each] * each + slot % each
    return where


class Plan:
    """The packs of every epoch, and which of them a step takes; a pure function of (lengths, seed).

    Every epoch has the same number of packs, so that the epoch of a step is a division. In the folder `keep`, the packs of the last epochs
    are kept where there are `many` windows.
    Raises: ConfigError where the token counts do not fit one another.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        seed: int,
        max_length: int,
        num_special: int,
        micro_tokens: int,
        batch_tokens: int,
        batch_tokens_start: int | None = None,
        ramp_steps: int = 0,
        shuffle: bool = True,
        keep: Path | None = None,
        many: int = MANY,
    ) -> None:
        if max_length <= num_special:
            raise ConfigError(
                f"max_length = {max_length} leaves no room beside {num_special} special tokens; allowed: {num_special + 1} or more"
            )
        if micro_tokens < max_length:
            raise ConfigError(
                f"micro_tokens = {micro_tokens} is less than max_length = {max_length}; a window must fit into a pack: raise it"
            )
        if batch_tokens < micro_tokens or batch_tokens % micro_tokens:
            near = max(1, round(batch_tokens / micro_tokens)) * micro_tokens
            raise ConfigError(f"batch_tokens = {batch_tokens} is not a multiple of micro_tokens = {micro_tokens}; the nearest is {near}")
        first = batch_tokens if batch_tokens_start is None else batch_tokens_start
        if not micro_tokens <= first <= batch_tokens or first % micro_tokens:
            raise ConfigError(
                f"batch_tokens_start = {first}; allowed: a multiple of micro_tokens = {micro_tokens}, up to batch_tokens = {batch_tokens}"
            )
        self.seed, self.shuffle, self.room = seed, shuffle, micro_tokens
        self.windows = cut(lengths, max_length - num_special)
        if not len(self.windows):
            raise ConfigError("the packed corpus holds no token; pack files that hold text")
        self.sizes = self.windows.stop - self.windows.start + num_special
        self.packs_a_step = batch_tokens // micro_tokens
        self._cache: dict[int, Packs] = {}
        self._lock = threading.Lock()  # a prefetching thread asks too
        self.kept: KeptOrder | None = None
        if keep is not None and len(self.windows) >= many:
            about = [VERSION, seed, max_length, num_special, micro_tokens, shuffle]
            key = hashlib.sha256(np.ascontiguousarray(lengths, dtype=np.int64).tobytes() + repr(about).encode()).hexdigest()
            self.kept = KeptOrder(keep, key)
        self.num_packs = (self.kept.num_packs() if self.kept else None) or self._count()
        self.steps_per_epoch = -(-self.num_packs // self.packs_a_step)
        self._ramp = ramp(self.num_packs, first // micro_tokens, self.packs_a_step, ramp_steps if first < batch_tokens else 0)

    @cached_property
    def _reference(self) -> Packs:
        return self._attempt(0, 0)

    def _count(self) -> int:
        """Return how many packs an epoch has: a little more than the first one needs, where there are many; another order may need more."""
        return min(len(self._reference) + len(self._reference) // 1000, len(self.windows))

    def _attempt(self, epoch: int, attempt: int) -> Packs:
        order = np.arange(len(self.windows))
        if self.shuffle:
            order = rng(self.seed, "order", epoch, attempt).permutation(len(order))
        return pack(self.sizes, order, self.room)

    def epoch(self, epoch: int) -> Packs:
        """Return the packs of an epoch, in the order in which steps take them."""
        if not self.shuffle:
            epoch = 0
        with self._lock:
            if epoch not in self._cache:
                packs = self._kept_or_made(epoch)
                while len(self._cache) >= 2:  # the one in use, and the next, where a thread works ahead
                    del self._cache[next(iter(self._cache))]
                self._cache[epoch] = packs
            return self._cache[epoch]

    def _kept_or_made(self, epoch: int) -> Packs:
        if self.kept is None:
            return self._make(epoch)
        found = self.kept.read(epoch)
        if found is not None:
            return Packs(*found)
        packs = self._make(epoch)
        self.kept.write(epoch, self.num_packs, packs.order, packs.bounds)
        return packs

    def _make(self, epoch: int) -> Packs:
        for attempt in range(TRIES):
            packs = self._reference if epoch == attempt == 0 else self._attempt(epoch, attempt)
            if len(packs) <= self.num_packs:
                break
        else:
            packs = self._swap(rng(self.seed, "swap", epoch))
        packs = _split(packs, self.num_packs)
        if not self.shuffle:
            return packs
        turn = rng(self.seed, "packs", epoch).permutation(len(packs))
        counts = np.diff(packs.bounds)[turn]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], counts)
        return Packs(packs.order[np.repeat(packs.bounds[:-1][turn], counts) + within], bounds)

    def _swap(self, generator: np.random.Generator) -> Packs:
        """Return the first epoch's packs with windows of the same length exchanged at random: they fit as those did."""
        order = self._reference.order
        slots = np.argsort(self.sizes[order], kind="stable")
        shuffled = generator.permutation(len(order))
        result = np.empty_like(order)
        result[slots] = shuffled[np.argsort(self.sizes[shuffled], kind="stable")]
        return Packs(result, self._reference.bounds)

    def packs(self, step: int) -> tuple[int, list[np.ndarray]]:
        """Return the epoch of a step, and for each pack of the step the windows in it."""
        if step < 0:
            raise ConfigError(f"step = {step}; allowed: 0 or more")
        epoch, first, last = self._span(step)
        packs = self.epoch(epoch)
        return epoch, [packs[number] for number in range(first, min(last, len(packs)))]

    def _span(self, step: int) -> tuple[int, int, int]:
        """Return the epoch of a step, and the packs of the epoch, from and to, that it takes."""
        if step < len(self._ramp) - 1:
            epoch, first = divmod(int(self._ramp[step]), self.num_packs)
            return epoch, first, first + int(self._ramp[step + 1] - self._ramp[step])
        # what the ramp leaves of its last epoch is cut into whole steps, and so is every epoch after it
        epoch, first = divmod(int(self._ramp[-1]), self.num_packs)
        step -= len(self._ramp) - 1
        left = -(-(self.num_packs - first) // self.packs_a_step)
        if step >= left:
            more, step = divmod(step - left, self.steps_per_epoch)
            epoch, first = epoch + 1 + more, 0
        first += step * self.packs_a_step
        return epoch, first, min(first + self.packs_a_step, self.num_packs)

    def epoch_of(self, step: int) -> int:
        """Return the epoch (from 0) that a step belongs to."""
        return self._span(step)[0]

    def share(self, step: int, rank: int, size: int) -> tuple[int, list[np.ndarray], int]:
        """Return the epoch of a step, the packs of it that are one of `size` processes' part, and how many tokens each is filled up to.

        Which windows a step has does not depend on the processes. Packs go round where there are as many for each; otherwise the step's
        windows are dealt again, to packs that are smaller and as many for each.
        """
        epoch, packs = self.packs(step)
        if len(packs) % size == 0:
            return epoch, packs[rank::size], self.room
        windows = np.concatenate(packs)
        number = -(-len(packs) // size) * size
        where = deal(self.sizes[windows], number)
        fullest = int(np.bincount(where, weights=self.sizes[windows]).max())
        room = -(-max(fullest, len(packs) * self.room // number) // ROUND) * ROUND
        dealt = (windows[where == pack] for pack in range(rank, number, size))
        return epoch, [pack for pack in dealt if len(pack)], room


def ramp(num_packs: int, first: int, last: int, steps: int) -> np.ndarray:
    """Return where the steps of a ramp begin, and where it ends, in packs over all epochs: from `first` packs a step evenly up to `last`.

    A step ends with its epoch, as every other does. Shapes: (steps + 1,).
    """
    sizes = np.rint(first + (last - first) * np.arange(steps) / max(1, steps)).astype(np.int64)
    begins = [0]
    for size in sizes.tolist():
        begins.append(begins[-1] + min(size, num_packs - begins[-1] % num_packs))
    return np.array(begins)


def deal(sizes: np.ndarray, number: int) -> np.ndarray:
    """Return which of `number` heaps each item goes to, so that all are about as large: the largest first, to the smallest heap."""
    heaps = [(0, heap) for heap in range(number)]
    where = np.zeros(len(sizes), dtype=np.int64)
    for item in np.argsort(-sizes, kind="stable"):
        size, heap = heaps[0]
        where[item] = heap
        heapq.heapreplace(heaps, (size + int(sizes[item]), heap))
    return where


def _split(packs: Packs, wanted: int) -> Packs:
    """Return `wanted` packs: the ones with the most windows are halved."""
    missing = wanted - len(packs)
    if missing <= 0:
        return packs
    bounds = packs.bounds
    while missing > 0:
        counts = np.diff(bounds)
        most = np.argsort(-counts, kind="stable")[:missing]
        most = most[counts[most] > 1]
        bounds = np.sort(np.concatenate([bounds, bounds[most] + counts[most] // 2]))
        missing = wanted - (len(bounds) - 1)
    return Packs(packs.order, bounds)
