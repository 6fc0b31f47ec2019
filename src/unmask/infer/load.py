"""A model and its tokenizer, ready on a device, or an exported model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..box import is_box, or_box
from ..data.over import Place
from ..data.tokenizer import load_tokenizer
from ..errors import MissingExtra, TaskError
from .backends import Backend, open_box, open_export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.load import Head
    from .engine import Engine

DEVICES = "auto, cpu, cuda, cuda:0 ..."


def load(
    name_or_path: str | Path | None = None, *, device: str = "auto", head: Head = "masked_lm", precision: str = "fp32"
) -> tuple[PreTrainedModel | Backend, Any]:
    """Return the model and the tokenizer of a model folder or a Hub id, by default of the model in the box.

    `device` is auto (a GPU where there is one), cpu, cuda, cuda:1...; `head` is what it has to have, a key of `model.load.HEADS`. Of an
    exported model's folder, and of the box's where ONNX Runtime is there and neither a GPU nor bf16 is asked for, the backend that runs
    it on the CPU: importing torch takes longer than the box takes to answer.
    Raises: CheckpointError, TokenizerError, MissingExtra; TaskError for a device that cannot be used.
    """
    name_or_path = or_box(name_or_path)
    at_once = is_box(name_or_path) and head == "masked_lm" and precision != "bf16" and device in ("auto", "cpu")
    exported = open_box(name_or_path) if at_once else open_export(name_or_path)
    if exported is not None:
        if device not in ("auto", "cpu"):
            raise TaskError(f"device = {device!r}: '{name_or_path}' is an exported model, which runs on the CPU; allowed: auto, cpu")
        return exported
    import torch

    from ..model.load import check_folder, load_model

    check_folder(str(name_or_path))
    tokenizer = load_tokenizer(name_or_path)
    model = load_model(name_or_path, head=head, tokenizer=tokenizer)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if chosen.partition(":")[0] == "meta":
        raise TaskError(f"device = 'meta' holds no numbers; allowed: {DEVICES}")
    try:
        model.to(torch.device(chosen))  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise TaskError(f"device = {device!r} cannot be used: {reason}; allowed: {DEVICES}") from None
    return model, tokenizer


def spread(engine: Engine, on: Place, name_or_path: str | Path, tokenizer: Any, device: str) -> None:
    """Have an engine's passes run on a cluster, each on a worker, with the model of that name: the same passes as here."""
    asked = engine.max_tokens if engine.max_tokens != engine.backend.max_tokens else None  # else what suits the workers' device
    how: dict[str, Any] = {"max_tokens": asked, "lookahead": engine.lookahead, "precision": engine.precision_name}
    on.spread(engine, name_or_path, partial(_engine, tokenizer=None if engine.model is None else tokenizer, **how), device=device)


def _engine(folder: Path, *, device: str, tokenizer: Any, **options: Any) -> Engine:
    """Return an engine of a masked language model that goes with a tokenizer; without one, of a graph that ONNX Runtime runs."""
    from .engine import Engine

    if tokenizer is None:
        exported = open_box(folder) or open_export(folder)
        if exported is None:
            raise MissingExtra("a worker has no ONNX Runtime, which runs the model here; on every node: pip install 'unmask[onnx]'")
        return Engine(exported[0], **options)
    from ..model.load import load_model

    return Engine(load_model(folder, tokenizer=tokenizer).to(device), **options)  # type: ignore[arg-type]
