"""Which model a verb is to use: the one that is named, or the one in the box, which is then said."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

ARGUMENTS = "[MODEL] [TEXT]..."
RULE = (
    "The first argument is the MODEL if it is a folder, or if it holds no mask and either no space or the beginning of a path "
    "(/, ./, ../, ~/); all others are texts. Without a MODEL, the one in the box is used."
)
MODEL = "A model folder, a run's folder, or a Hub id; by default the model in the box."
_MASK = re.compile(r"\[MASK\]|<mask>|_{3,}")
_NAME = re.compile(r"(/|\./|\.\./|~/).*|\S*", re.DOTALL)


def named(model: str | None) -> str:
    """Return what to load: the folder of the model in the box where none is named, and say so on the standard error.

    Raises: CheckpointError where none is named, and the package holds none.
    """
    from ..box import or_box

    return str(or_box(model, say=lambda text: print(text, file=sys.stderr)))


def split(arguments: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Return the model, None where none is named, and the texts among the arguments, by RULE."""
    if not arguments:
        return None, []
    first, *rest = arguments
    is_model = os.path.isdir(os.path.expanduser(first)) or (not _MASK.search(first) and _NAME.fullmatch(first))
    return (first, rest) if is_model else (None, [first, *rest])


def no_text(model: str | None, example: str, verb: str) -> str:
    """Return what to say where there is nothing to work on."""
    read = f" ({model!r} is read as the MODEL: see `unmask {verb} --help`)" if model is not None else ""
    return f"there is no text to {verb}{read}; give one, such as {example!r}, or --data FILE ('-' is standard input)"
