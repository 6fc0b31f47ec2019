"""A model and its tokenizer, ready on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.tokenizer import load_tokenizer
from ..errors import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ..model.load import Head

DEVICES = "auto, cpu, cuda, cuda:0 ..."


def load(name_or_path: str | Path, *, device: str = "auto", head: Head = "masked_lm") -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return the model and the tokenizer of a model folder or a Hub id; `device` is auto (a GPU where there is one), cpu, cuda, cuda:1...

    Raises: CheckpointError, TokenizerError; TaskError for a device that cannot be used.
    """
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
