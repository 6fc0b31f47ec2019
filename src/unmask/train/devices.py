"""Devices that a run may be planned for, and what is assumed of all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device as its maker's data sheet describes it; rates in units of 1e12 FLOP/s and 1e9 bytes/s.

    tflops: of bf16 products, dense. link: of the wires between the devices of one machine, in one direction.
    """

    tflops: float
    memory: float
    memory_rate: float
    link: float


# Source: NVIDIA's data sheets of each (SXM versions of H200, H100 and A100; where a rate is given "with sparsity", half of it)
DEVICES = {
    "H200": Device(989, 141, 4800, 450),
    "H100": Device(989, 80, 3350, 450),
    "A100": Device(312, 80, 2039, 300),
    "L40S": Device(362, 48, 864, 32),
    "L4": Device(121, 24, 300, 32),
    "A10": Device(125, 24, 600, 32),
}
A_MACHINE = 8  # devices in one, where there are more
NETWORK = 50.0  # 1e9 bytes/s a device, between machines: one 400 Gb/s adapter for each GPU, as in the makers' own
REACHED = 0.75  # of a link's rate, by an all-reduce
GLOO = 0.87  # 1e9 bytes/s between two processes of one machine over gloo, measured (bench/plan.py)
LOADER = 2e6  # tokens a second that one CPU thread packs and masks; 2.7e6 to 5.7e6 measured (bench/plan.py)
EFFICIENCY = {
    "cpu": (0.55, "0.50 to 0.68 in bench/results, the optimizer included"),
    "gpu": (0.30, "no GPU was measured; see docs/scaling.md"),
}  # fmt: skip


def parse(devices: str) -> tuple[int, str]:
    """Return how many devices of what kind "8xH100" names.

    Raises: ConfigError.
    """
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?([A-Za-z]\w*)", devices.strip())
    known = {name.lower(): name for name in (*DEVICES, "cpu", "cuda")}
    if match is None or not int(match[1] or 1) or match[2].lower() not in known:
        raise ConfigError(
            f"--devices {devices!r}; allowed: a number, x, and one of {', '.join(DEVICES)}, cpu and cuda (this machine's own); "
            "for another device name the nearest, and state its --rate"
        )
    return int(match[1] or 1), known[match[2].lower()]
