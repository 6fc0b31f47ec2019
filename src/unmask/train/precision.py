"""The number format of a run's matrix products; the weights are always fp32."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import ConfigError

Name = Literal["auto", "fp32", "bf16"]
WORTH_IT = 1.3  # bf16 costs casts and digits: it must multiply at least this much faster


@dataclass(frozen=True)
class Precision:
    """A number format on a device: `with precision.autocast(): ...` runs the products in it."""

    name: Literal["fp32", "bf16"]
    device_type: str

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which a forward pass runs."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=torch.bfloat16)


def choose(name: str, device: str | torch.device, *, setting: str = "precision") -> Precision:
    """Return the precision of that name; "auto" is whichever multiplies matrices faster on this very machine.

    Raises: ConfigError for another name, which was given as `setting`.
    """
    device_type = torch.device(device).type
    if name not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"{setting} = {name!r}; allowed: auto, fp32, bf16")
    if name == "auto":
        name = "bf16" if bf16_speedup(device_type) > WORTH_IT else "fp32"
    return Precision("bf16" if name == "bf16" else "fp32", device_type)


@functools.cache
def bf16_speedup(device_type: str) -> float:
    """Return how many times faster a bf16 matrix product is than an fp32 one here, measured once a process (a few milliseconds)."""
    if device_type == "cuda" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return 0.0
    size = 512 if device_type == "cpu" else 2048
    seconds = {dtype: _product_seconds(device_type, dtype, size) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


def matmul_rate(device_type: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return how many floating-point operations a second matrix products reach here, on the shape of a small model's feed-forward product.

    The median over so many seconds: what a run that takes turns with others may hope for.
    """
    rows, width = (4096, 1024) if device_type == "cpu" else (16_384, 4096)
    random = torch.Generator(device_type).manual_seed(0)  # a GPU multiplies ones faster than numbers
    left, right = (torch.randn(size, width, device=device_type, dtype=dtype, generator=random) for size in (rows, width))
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 3:
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device_type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * rows * width * width / (time.perf_counter() - start))
    return statistics.median(rates)


def _product_seconds(device_type: str, dtype: torch.dtype, size: int) -> float:
    # seeded by hand: a run's random numbers must not depend on whether its precision was measured
    left = torch.linspace(-1, 1, size * size, device=device_type).view(size, size).to(dtype)
    best, begin = float("inf"), time.perf_counter()
    for attempt in range(50):  # the first one makes the kernel
        start = time.perf_counter()
        left @ left
        if device_type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if attempt:
            best = min(best, seconds)
        # the fastest of many, because the machine may be busy; emulated, a hundred times slower, one says enough
        if attempt and (best > 0.2 or time.perf_counter() - begin > 0.15):
            break
    return best
