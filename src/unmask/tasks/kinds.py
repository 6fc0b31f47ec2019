"""The tasks, by name: a file beside this one each. Nothing here imports torch."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..box import is_box
from ..config import unknown_key
from ..data.whole import unfinished
from ..errors import ConfigError

if TYPE_CHECKING:
    from .objective import TaskObjective
    from .predictor import Predictor

# name -> how transformers ends the names of its classes. tasks/NAME.py defines PREDICTOR, what a model for the task is used through
# (without torch, for exports); tasks/NAME_training.py defines OBJECTIVE, how one is fine-tuned
TASKS = {"classify": "ForSequenceClassification", "ner": "ForTokenClassification", "qa": "ForQuestionAnswering"}


def task(name: str) -> type[TaskObjective]:
    """Return the objective of a task.

    Raises: ConfigError for a name that is none.
    """
    return _module(name, "_training").OBJECTIVE  # type: ignore[no-any-return]


def predictor(name: str) -> type[Predictor]:
    """Return what models for a task are used through.

    Raises: ConfigError for a name that is none.
    """
    return _module(name, "").PREDICTOR  # type: ignore[no-any-return]


def _module(name: str, part: str) -> Any:
    if name not in TASKS:
        raise ConfigError(unknown_key(name, TASKS, "task"))
    return importlib.import_module(f".{name}{part}", __package__)


def model_folder(name: str | Path) -> Path | str:
    """Return the folder of a run's finished model, for a run; any other name as it is."""
    run = Path(name).expanduser()
    return run / "model" if not (run / "config.json").is_file() and (run / "model" / "config.json").is_file() else name


def task_of(name: str | Path) -> str | None:
    """Return the task that a local model (or the model of a run) was fine-tuned for; None for a masked language model, or a Hub id."""
    path = Path(model_folder(name)).expanduser() / "config.json"
    if not path.is_file():
        return None
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # whoever loads it says what is wrong
    names = settings.get("architectures") if isinstance(settings, dict) else None
    name = str(names[0]) if isinstance(names, list) and names else ""
    return next((task for task, ending in TASKS.items() if name.endswith(ending)), None)


def without_task(name: str | Path) -> str:
    """Return what is to be said of a model for which `task_of` knows no task."""
    found = Path(name).expanduser()
    hint = unfinished(found)
    if hint:
        return f"'{name}' holds no model yet{hint}"
    if is_box(name) or found.exists():
        return f"'{name}' is not fine-tuned for a task; `unmask finetune` does that"
    return f"there is no folder '{name}'; name the run, or the model folder, that `unmask finetune` has made"
