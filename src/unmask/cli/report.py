"""`unmask report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(help="Folder of the run, finished or not.")]) -> int:
    """Make the report page of a run again, and print its path."""
    from ..evaluate.report import write

    print(write(run))
    return 0
