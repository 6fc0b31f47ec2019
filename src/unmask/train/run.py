"""Start a run, go on with one, finish one: what `unmask pretrain`, `adapt` and `resume` do, and the same from Python."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..box import or_box
from ..data.whole import identity, whole_file
from ..errors import CheckpointError, ConfigError, UnmaskError
from . import recipe as recipes
from .distributed import is_restarted, launched
from .masking_objective import MaskedLanguageModel
from .objective import Make, RunRecipe
from .recipe import Recipe
from .replay import GENERAL, REPLAY
from .session import Run, run_session, tell
from .setup import claim, is_packed


def pretrain(
    recipe: Recipe | str | Path | None = None,
    *,
    output: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    overrides: Iterable[str] = (),
    **settings: Any,
) -> Run:
    """Pre-train a masked language model from scratch and return the run.

    `recipe` is a Recipe or a TOML file; `data` is a packed corpus, or files that are packed into the run's folder first (and a tokenizer
    trained on them where none is named). Any field of a recipe is a keyword (`max_minutes=5`, `model={"preset": "tiny"}`); `overrides`
    are `section.key=value` strings.
    Raises: ConfigError, DataError, TokenizerError, StoreError, CheckpointError for what the user can mend; RunError.
    """
    made = _recipe(recipe, None, data, tokenizer, overrides, settings)
    if made.base_model is not None:
        raise ConfigError(f"base_model = {made.base_model!r}: to continue an existing model, use adapt; pretrain starts from scratch")
    return start(made, output)


def adapt(
    model: str | Path | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    *,
    output: str | Path,
    recipe: Recipe | str | Path | None = None,
    tokenizer: str | Path | None = None,
    overrides: Iterable[str] = (),
    **settings: Any,
) -> Run:
    """Continue the pre-training of a model (a folder, a Hub id, or none: the one in the box) on the text of a domain, and return the run.

    The model's own tokenizer is used; `data` is files, or a corpus that was packed with that tokenizer. The rest is as in `pretrain`.
    """
    overrides = list(overrides)
    made = _recipe(recipe, None if model is None else or_box(model), data, tokenizer, overrides, settings)
    if made.base_model is None:
        made = _recipe(recipe, or_box(None, say=tell), data, tokenizer, overrides, settings)
    return start(made, output)


def resume(folder: str | Path, *, overrides: Iterable[str] = (), **settings: Any) -> Run:
    """Go on with a run where its newest checkpoint stands (from the beginning where there is none), and return the run.

    Of the recipe, only what does not change what was computed so far may be overridden: fields of `[train]` but for the seed.
    Raises: CheckpointError for a folder that holds no run.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.toml").is_file():
        raise CheckpointError(f"'{folder}' holds no run (no config.toml); name the folder that `unmask pretrain` or `unmask adapt` made")
    changes, overrides = recipes.nested(settings), list(overrides)
    check_changes(changes, overrides)
    recipe = recipes.load(folder / "config.toml", settings=changes, overrides=overrides)
    return run_session(folder, recipe, MaskedLanguageModel.make)


def check_changes(changes: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """Raise ConfigError for a setting that would change what a run has computed so far."""
    changed = [f"{section}.{name}" for section, table in changes.items() for name in table]
    for key in [*changed, *(item.partition("=")[0] for item in overrides)]:
        if not key.strip().startswith("train.") or key.strip() == "train.seed":
            raise ConfigError(f"'{key}' cannot change in the middle of a run; only train.* can, but for train.seed. Start a new run for it")


def start(recipe: RunRecipe, output: str | Path, make: Make = MaskedLanguageModel.make) -> Run:
    """Run a recipe in a new folder and return the run; `make` makes what it trains for.

    Of several processes that were launched together, the first makes the folder. When they are launched again, because one of them died,
    they go on with the run that they have begun.
    """
    folder = Path(output).expanduser()
    if launched()[0] or (is_restarted() and (folder / "config.toml").is_file()):
        return run_session(folder, recipe, make)
    fresh = not Path(output).expanduser().exists()
    folder = claim(output)
    with whole_file(folder / "config.toml") as file:
        if (folder / "config.toml").exists():
            raise CheckpointError(f"another process has just begun a run in '{folder}'; choose another name")
        file.write(recipe.to_toml())
    place = identity(folder)
    try:
        return run_session(folder, recipe, make)
    except KeyboardInterrupt:
        if identity(folder) != place:  # it was moved: what stands there now is somebody else's
            raise
        if {path.name for path in folder.iterdir()} > {"config.toml"}:
            tell(f"'{folder}' keeps what was done so far; go on with: unmask resume {folder}")
        else:  # nothing was: the same command may be given again
            _clear(folder, fresh)
        raise
    except UnmaskError as error:
        if identity(folder) == place:
            _discard(folder, error, fresh)
        raise


def _discard(folder: Path, error: UnmaskError, fresh: bool) -> None:
    """Take a run that never began out of the way, so that it can be started again by its name; a packed corpus is kept."""
    if (folder / "log.jsonl").exists():  # it began: its log says how it ended
        return
    packed = [folder / name for name in ("corpus", REPLAY, GENERAL) if is_packed(folder / name)]
    if packed:
        names = " and ".join(f"'{one}'" for one in packed)
        option = {"corpus": "--data", REPLAY: "--replay", GENERAL: "--general"}[packed[0].name]
        error.args = (f"{error}\n(the packed corpus is kept in {names}: name it as {option}, with another output folder)",)
        return
    _clear(folder, fresh)


def _clear(folder: Path, fresh: bool) -> None:
    for child in folder.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    if fresh:
        folder.rmdir()


def _recipe(
    recipe: Recipe | str | Path | None,
    base_model: str | Path | None,
    data: str | Path | Sequence[str | Path] | None,
    tokenizer: str | Path | None,
    overrides: Iterable[str],
    settings: dict[str, Any],
) -> Recipe:
    nested = recipes.nested(settings)
    if data is not None:
        nested.setdefault("data", {})["sources"] = [str(one) for one in ([data] if isinstance(data, (str, Path)) else data)]
    if tokenizer is not None:
        nested.setdefault("data", {})["tokenizer"] = str(tokenizer)
    if isinstance(recipe, Recipe):
        if nested or base_model is not None or list(overrides):
            raise ConfigError("a Recipe is complete: set its fields (dataclasses.replace), or name a TOML file and settings on top of it")
        made = recipe
    else:
        made = recipes.load(recipe, base_model=None if base_model is None else str(base_model), settings=nested, overrides=overrides)
    return recipes.absolute(made)
