"""What runs a model: one small interface, with torch and ONNX Runtime behind it. This module imports neither."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..request import Pack


class Backend(ABC):
    """Runs a model over a Pack.

    `max_length` is how many tokens a sequence may have (None: no limit), `max_tokens` what one pass holds by default, `padded` whether a
    pass costs as if every sequence had the length of the longest, `device` where arrays have to lie, `precision` the name of its numbers.
    """

    name: str
    precision: Any = "fp32"
    device: Any = "cpu"
    max_length: int | None = None
    max_tokens: int = 4096
    padded: bool = False

    @abstractmethod
    def forward(self, batch: Pack) -> Any:
        """Return the fp32 logits at the label positions of a pack, a torch tensor or a numpy array. Shapes: (N, V)."""

    def labels(self, batch: Pack) -> Any:
        """Return the labels of a pack as `forward` returns logits: in the same kind of array, on the same device. Shapes: (N,)."""
        return batch.labels

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be entered around each pass and what is made of it; whatever must not be done by two threads at a time is kept apart here."""
        yield

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether an error of `forward` says that memory ran out."""
        return isinstance(error, MemoryError)

    def forget(self) -> None:  # noqa: B027  (most have made nothing)
        """Let go of what was made of the model's weights: they are about to change, and an optimizer's kernels do that unseen."""

    def release(self) -> None:  # noqa: B027  (most have nothing to give)
        """Give back what memory can be given back, after a pass that did not fit."""


def is_export(name_or_path: str | Path) -> bool:
    """Return whether a name is a folder with an exported model in it, and no weights of torch."""
    path = Path(name_or_path).expanduser()
    return path.is_dir() and any(path.glob("*.onnx")) and not any([*path.glob("*.safetensors*"), *path.glob("pytorch_model*.bin*")])


def open_export(name_or_path: str | Path) -> tuple[Backend, Any] | None:
    """Return the backend and the tokenizer of an exported model's folder, neither with torch nor transformers; None for anything else.

    Raises: MissingExtra, CheckpointError, TokenizerError.
    """
    if not is_export(name_or_path):
        return None
    from ...data.manifest import check_manifest
    from ...data.plain import PlainTokenizer
    from .onnx import OnnxBackend

    path = Path(name_or_path).expanduser()
    check_manifest(path)
    return OnnxBackend(path), PlainTokenizer.load(path)


def open_box(folder: str | Path) -> tuple[Backend, Any] | None:
    """Return the backend and the tokenizer of a folder whose graph reads the weights of its safetensors; None where ONNX Runtime is not.

    Raises: CheckpointError, TokenizerError.
    """
    from .onnx import MODEL, OnnxBackend

    path = Path(folder)
    if find_spec("onnxruntime") is None or not (path / MODEL).is_file():
        return None
    from ...data.manifest import check_manifest
    from ...data.plain import PlainTokenizer

    check_manifest(path)
    return OnnxBackend(path), PlainTokenizer.load(path)
