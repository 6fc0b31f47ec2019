"""The numbers of a plan, each with where it comes from, and plans beside each other as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from .runlog import duration

Basis = Literal["counted", "measured", "stated", "assumed", "follows"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of a plan; `how` says what it was counted or measured on, who states it, or what it follows from."""

    value: float | None
    unit: str
    basis: Basis
    how: str

    def __str__(self) -> str:
        value = self.value
        if value is None:
            return "unknown"
        if self.unit in ("bytes", "B/s"):
            power = min(4, int(math.log(max(1.0, value), 1000)))
            return f"{value / 1000**power:.{2 if power else 0}f} {('', 'k', 'M', 'G', 'T')[power]}{'B' if self.unit == 'bytes' else 'B/s'}"
        if self.unit in ("FLOPs", "FLOP/s"):
            power = 3 * min(4, int(math.log(max(1.0, value), 1000)))
            return f"{value / 10**power:.4g}e{power} {self.unit}"
        if self.unit == "seconds":
            return duration(value) if value >= 60 else f"{value * 1e3:,.1f} ms"
        return f"{value:.3f}" if self.unit == "share" else f"{value:,.0f} {self.unit}".strip()


@dataclass(frozen=True)
class Plan:
    """A recipe on a number of devices, its figures by name."""

    recipe: str
    devices: str
    figures: dict[str, Figure]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dataclasses.asdict(self)

    def __getitem__(self, name: str) -> float:
        """Return the value of a figure.

        Raises: ConfigError for one that is not known, with the reason.
        """
        figure = self.figures[name]
        if figure.value is None:
            raise ConfigError(f"{name} is not known of '{self.recipe}': {figure.how}")
        return figure.value


def table(plans: Sequence[Plan]) -> list[str]:
    """Return plans of one recipe beside each other, in words."""
    first = plans[0].figures
    rows = [["", *(one.devices for one in plans), "", ""]]
    rows += [
        [name, *(str(one.figures[name]) for one in plans), figure.basis, plans[-1].figures[name].how] for name, figure in first.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 2
    return [
        "  ".join(
            cell.ljust(width) if place in (0, last, last + 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def warnings(plans: Sequence[Plan]) -> list[str]:
    """Return what is wrong with a plan."""
    found = []
    for one in plans:
        room = one.figures["device_memory_bytes"].value
        # a CPU's memory is the host's, where a save has its copy
        names = ["memory_bytes", "host_copy_bytes"] if one.devices.endswith("xcpu") else ["memory_bytes"]
        sharded = [f"sharded_{name}" for name in names]
        if room is not None and sum(one[name] for name in names) > room:
            way = "lower data.micro_tokens (the loop would halve it by itself), or set train.activation_checkpointing"
            if sum(one[name] for name in sharded) <= room:
                way = f'sharded it is {together(one, sharded)}: set train.parallel = "fsdp"'
            found.append(f"{one.devices}: {together(one, names)} do not fit into {one.figures['device_memory_bytes']}; {way}")
        if one["data_seconds"] >= one["step_seconds"]:
            found.append(f"{one.devices}: making batches takes longer than training on them")
        if one["exposed_seconds"] > 0.2 * one["step_seconds"]:
            found.append(
                f"{one.devices}: {one['exposed_seconds'] / one['step_seconds']:.0%} of a step is spent on sending gradients; "
                "raise data.batch_tokens, or take fewer devices"
            )
    return found


def together(one: Plan, names: Sequence[str]) -> str:
    """Return figures of memory, of which the second is that of a save, in words."""
    return " and, while a checkpoint is written, ".join(str(one.figures[name]) for name in names)
