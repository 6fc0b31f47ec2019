"""The exceptions of Unmask.

    UnmaskError (ValueError)       exit 2   anything that the user can mend
    ├── ConfigError                         a recipe, a flag, a field of a configuration
    ├── DataError                           a corpus or a task file
    ├── TokenizerError                      a tokenizer, or a vocabulary that does not fit
    ├── StoreError                          a packed corpus
    ├── CheckpointError                     a model folder, a run folder, a checkpoint
    ├── TaskError                           an input of a task (no mask in the text, say)
    ├── MissingExtra                        an optional dependency that is not installed
    ├── RunError                   exit 1   a failure at run time (the loss is not finite, the disk is full)
    └── GateError                  exit 3   a quality gate that did not pass

A message says what is wrong with the value quoted, where, what is allowed, and what to do next.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class UnmaskError(ValueError):
    """Base of every error that Unmask raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class ConfigError(UnmaskError):
    """A recipe, a flag or a configuration field is wrong."""


class DataError(UnmaskError):
    """A corpus or a task file cannot be used as it is."""


class TokenizerError(UnmaskError):
    """A tokenizer is unusable, or does not fit the model or the data."""


class StoreError(UnmaskError):
    """A packed corpus is missing, damaged or made with another tokenizer."""


class CheckpointError(UnmaskError):
    """A model folder, run folder or checkpoint is missing, damaged or in the way."""


class TaskError(UnmaskError):
    """An input of a task cannot be answered."""


class MissingExtra(UnmaskError):
    """An optional dependency is not installed."""


class RunError(UnmaskError):
    """Something failed while running that no change of the input would have prevented."""

    exit_code = 1


class GateError(UnmaskError):
    """A quality gate did not pass."""

    exit_code = 3


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional module, or raise MissingExtra with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{why} needs the package '{module.split('.')[0]}', which is not installed; install it with: pip install 'unmask[{extra}]'"
        ) from error
