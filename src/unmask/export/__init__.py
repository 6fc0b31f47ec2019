"""Models as files that other programs run: ONNX, in fp32 and int8. The package is the function `unmask.export`, too."""

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    # `unmask.export` is this package once anything in it was imported, and must go on being what it was: something to call
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from .exporting import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
