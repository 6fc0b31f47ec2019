"""`unmask report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, finished or not, an evaluation, a comparison, scores.")],
) -> int:
    """Make the report page of a run, an evaluation or a comparison again from its files, and print its path."""
    from ..evaluate.report import write

    print(write(folder))
    return 0
