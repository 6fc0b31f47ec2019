"""Honest numbers: held-out evaluation on frozen masks, baselines, reports. The package is the function `unmask.evaluate`, too."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    # `unmask.evaluate` is this package once anything in it was imported, and must go on being what it was: something to call
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .evaluation import evaluate

        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
