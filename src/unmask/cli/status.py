"""`unmask status`: how does a run stand, from another terminal?"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    follow: Annotated[bool, typer.Option(help="Look again and again, a line for every change, until the run stands still.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=86_400, help="Between two looks.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, a line for every look.")] = False,
) -> int:
    """Say how a run stands, while another process is at it or after: progress, speed, loss, time left, checkpoint, notices."""
    from ..train.status import Viewer

    watch, shown = Viewer(run), ""
    while True:
        now = watch.look()
        over = not follow or now.state not in ("running", "preparing", "unknown")
        said = now.state if now.state == "preparing" else f"step {now.step:,}"
        if as_json:
            print(json.dumps(now.to_dict()), flush=True)
        elif over:
            print("\n".join(now.lines()))
        elif said != shown:  # what is left is another number each time; a step is news
            print(said if now.state == "preparing" else now.short(), flush=True)
        shown = said
        if over:
            return 0
        time.sleep(seconds)
