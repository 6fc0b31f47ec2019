"""A model and its tokenizer, ready on a device, or an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.tokenizer import load_tokenizer
from ..errors import TaskError
from .backends import Backend, open_export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.load import Head

DEVICES = "auto, cpu, cuda, cuda:0 ..."


def load(name_or_path: str | Path, *, device: str = "auto", head: Head = "masked_lm") -> tuple[PreTrainedModel | Backend, Any]:
    """Return the model and the tokenizer of a model folder or a Hub id; `device` is auto (a GPU where there is one), cpu, cuda, cuda:1...

    `head` is what it has to have, a key of `model.load.HEADS`. Of an exported model's folder, the backend that runs it on the CPU.
    Raises: CheckpointError, TokenizerError, MissingExtra; TaskError for a device that cannot be used.
    """
    exported = open_export(name_or_path)
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
