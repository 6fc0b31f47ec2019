"""The model in the box: a small English one that comes with the package, and is used where no model is named. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError

NAME = "box"  # what it is called where a name is needed
FOLDER = Path(__file__).parent / "model"
SAID = "using the model in the box (small, English); name a folder or a Hub id for another"


def box_model() -> Path:
    """Return the folder of the model in the box.

    Raises: CheckpointError where this copy of the package has none.
    """
    if not (FOLDER / "config.json").is_file():
        raise CheckpointError(f"this copy of the package holds no box model ('{FOLDER}'); name a model: a folder or a Hub id")
    return FOLDER


def is_box(name: str | Path | None) -> bool:
    """Return whether a name, or none, means the model in the box; a folder of that name here goes first."""
    return name is None or Path(name) == FOLDER or (str(name) == NAME and not Path(NAME).exists())


def or_box(name: str | Path | None, say: Callable[[str], None] = lambda text: None) -> str | Path:
    """Return the model that is named, and where none is the folder of the one in the box, which `say` is then told.

    Raises: CheckpointError.
    """
    if name is not None and not is_box(name):
        return name
    folder = box_model()
    if name is None:
        say(SAID)
    return folder
