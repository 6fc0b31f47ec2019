"""`unmask plan`: what will a run take, before it is begun?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe (.toml), or the config.toml of a run.")],
    devices: Annotated[
        list[str] | None, typer.Option(help="Such as 8xH100 or 2xcpu; again for a column beside it; by default this machine's CPU.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="1e12 FLOP/s of a device's matrix products; by default published, or measured.")
    ] = None,
    efficiency: Annotated[float | None, typer.Option(min=0.001, max=1, help="The share of that rate that training reaches.")] = None,
    bandwidth: Annotated[float | None, typer.Option(min=0.001, help="1e9 bytes/s of a device's slowest link, one way.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the rate here instead of believing the data sheet.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="Any field of a recipe: section.key=value. May repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> int:
    """Say what a run takes of memory, disk and time on devices that may be elsewhere: counted, measured, stated or assumed."""
    from ..train.figures import table, warnings
    from ..train.plan import plan as make

    plans = [
        make(
            recipe, devices=one, rate=rate, efficiency=efficiency, bandwidth=bandwidth, measure=measure, overrides=settings or (),
        )
        for one in devices or ["1xcpu"]
    ]  # fmt: skip
    if as_json:
        print(json.dumps([one.to_dict() for one in plans], indent=1))
    else:
        print("\n".join(table(plans)))
    for line in warnings(plans):
        print(line, file=sys.stderr)
    return 0
