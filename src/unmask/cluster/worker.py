"""What runs on the workers of a cluster: a process that holds a tool, and a model's files on their way to it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..box import box_model
from ..errors import CheckpointError

SAME = ("torch", "transformers", "tokenizers", "numpy")  # packages on which numbers depend to the bit
# of a checkpoint beside the model; none of these is a part of it
NOT_SENT = (".*", "*.pt", "*.pth", "training_args.bin", "training_state.*", "trainer_state.json", "COMPLETE", "README.md")


def versions() -> dict[str, str]:
    """Return what has to be the same on every machine."""
    from .. import __version__

    return {"python": platform.python_version(), "unmask": __version__, **{name: version(name) for name in SAME}}


class Worker:
    """An actor of Ray, or a driver's idea of one: does stages of a stream, an item at a time, with a tool that it makes once."""

    def __init__(self) -> None:
        self.tool: Any = None
        self.stage: tuple[Any, Any] = (None, None)

    def start(self, make: list[Any]) -> dict[str, Any]:
        """Make the tool, and return who this is; `make` is a reference in a list, or else Ray would fetch it before we are asked."""
        import ray

        self.tool = ray.get(make[0])()
        context = ray.get_runtime_context()
        return {
            "node": context.get_node_id(), "pid": os.getpid(), "versions": versions(), "max_tokens": getattr(self.tool, "max_tokens", None),
        }  # fmt: skip

    def do(self, stage: list[Any], item: Any) -> Any:
        """Return what a stage makes of an item."""
        import ray

        if self.stage[0] != stage[0]:
            self.stage = (stage[0], ray.get(stage[0]))
        (result,) = self.stage[1](self.tool, iter([item]))
        return result


def boxed(make: Callable[..., Any], device: str) -> Any:
    """Return what `make(folder, device=...)` makes of the model in the box, which every node has."""
    return make(box_model(), device=device)


@dataclass(frozen=True)
class Sent:
    """The files of a model's folder in the cluster's object store, so that no worker needs to see the folder."""

    files: Any  # a reference to {name: bytes as an array}

    @classmethod
    def of(cls, folder: Path) -> Sent:
        """Return the files of a folder, those in folders below it left out.

        Raises: CheckpointError for one that cannot be read.
        """
        import numpy as np
        import ray

        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not any(fnmatch(path.name, kind) for kind in NOT_SENT)]
        try:
            return cls(ray.put({path.name: np.fromfile(path, np.uint8) for path in paths}))
        except OSError as error:
            raise CheckpointError(f"'{folder}' cannot be sent to the workers: {error}") from None

    def unpacked(self, make: Callable[..., Any], device: str) -> Any:
        """Return what `make(folder, device=...)` makes of the files, which lie on this machine's disk meanwhile."""
        import ray

        with tempfile.TemporaryDirectory(prefix="unmask-model-") as folder:
            for name, content in ray.get(self.files).items():
                content.tofile(Path(folder) / name)
            return make(folder, device=device)
