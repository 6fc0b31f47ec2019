"""Models in and out: any Hugging Face folder or Hub id with the head that is asked for, always fp32, never a pickle."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.manifest import TRAINING, check_manifest
from ..data.tokenizer import save_tokenizer
from ..data.whole import unfinished
from ..errors import CheckpointError, ConfigError, RunError, TokenizerError
from ..hub import only_local, why_not
from .presets import PRESETS, ModelConfig, build_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PRESETS", "ModelConfig", "build_model", "check_fit", "load_model", "max_positions", "position_offset", "save_model",
]  # fmt: skip

Attention = Literal["packed", "sdpa", "eager"]
Head = Literal["masked_lm", "sequence_classification", "token_classification", "question_answering"]
# head -> (transformers' Auto class, its table of architectures, the head in words)
HEADS: dict[str, tuple[str, str, str]] = {
    "masked_lm": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING", "masked-language-model"),
    "sequence_classification": (
        "AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "text-classification"
    ),
    "token_classification": ("AutoModelForTokenClassification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING", "token-classification"),
    "question_answering": ("AutoModelForQuestionAnswering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING", "question-answering"),
}  # fmt: skip
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

log = logging.getLogger(__name__)


_loading = threading.Lock()  # transformers sets and resets the state of torch while it loads: two at a time lose weights


def load_model(
    name_or_path: str | Path,
    *,
    head: Head = "masked_lm",
    tokenizer: PreTrainedTokenizerBase | None = None,
    attention: Attention = "packed",
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """Return a *ForMaskedLM (or with another head) from a local folder or a Hub id, in fp32 whatever it was stored in, to evaluate.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured. With a tokenizer, its vocabulary is checked against the model's.
    Raises: CheckpointError where there is no such model, it has no such head, or weights are missing; TokenizerError.
    """
    check_attention(attention)
    name, remote = str(name_or_path), trust_remote_code
    config = read_config(name, head, trust_remote_code=remote, revision=revision)
    model, info = from_pretrained(name, head, config, attention=attention, trust_remote_code=remote, revision=revision)
    _check_loaded(name, head, info)
    if tokenizer is not None:
        check_fit(model, tokenizer)
    set_attention(model, attention)
    return model


def from_pretrained(
    name: str,
    head: Head,
    config: PreTrainedConfig,
    *,
    attention: Attention = "packed",
    trust_remote_code: bool = False,
    revision: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the stock model of a head with a configuration, and what transformers says of its weights.

    Raises: CheckpointError, ConfigError.
    """
    import torch
    import transformers

    local = check_folder(name)
    if local:
        check_manifest(Path(name).expanduser(), leave_out=TRAINING)
    if attention != "packed":
        options["attn_implementation"] = attention
    try:
        with _loading, quiet_transformers(bars=not local):
            model, info = getattr(transformers, HEADS[head][0]).from_pretrained(
                _source(name, local),
                config=config,
                dtype=torch.float32,
                weights_only=True,
                output_loading_info=True,
                **_options(local, trust_remote_code, revision),
                **options,
            )
    except Exception as error:  # torch, safetensors, pickle and the Hub each raise their own kind
        if attention == "sdpa" and isinstance(error, ValueError) and "scaled_dot_product_attention" in str(error):
            raise ConfigError(f"{type(config).__name__} cannot run with attention='sdpa'; use 'packed' or 'eager'") from None
        raise CheckpointError(_cannot_load(name, local, error)) from error
    return model, info


def _source(name: str, local: bool) -> str:
    return str(Path(name).expanduser()) if local else name


def _options(local: bool, trust_remote_code: bool, revision: str | None) -> dict[str, Any]:
    return {"revision": revision, "trust_remote_code": trust_remote_code, "local_files_only": local or only_local()}


def check_folder(name: str) -> bool:
    """Return True for a local folder that holds a model, False for a name that can only be a Hub id.

    Raises: CheckpointError for a path that is not there, or that holds no model.
    """
    path = Path(name).expanduser()
    if path.is_file():
        raise CheckpointError(f"'{name}' is a file; name the folder that holds config.json and model.safetensors")
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
            raise CheckpointError(f"there is no folder '{name}'; name a model folder, or a Hub id such as bert-base-uncased")
        return False
    if not (path / "config.json").is_file():
        inner = [child for child in ("model", "checkpoints") if (path / child).is_dir()]
        hint = f"; a run keeps its finished model in '{path / 'model'}'" if "model" in inner else unfinished(path)
        if inner == ["checkpoints"]:
            hint += f", or name one of the folders in '{path / 'checkpoints'}'"
        raise CheckpointError(f"'{name}' has no config.json, so it is not a model folder{hint}")
    if not any((path / file).is_file() for file in WEIGHT_FILES):
        raise CheckpointError(f"'{name}' has a config.json but no weights; expected one of: {', '.join(WEIGHT_FILES)}")
    return True


def read_config(name: str, head: Head, *, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedConfig:
    """Return the configuration of a model, whose architecture has the head.

    Raises: CheckpointError.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    local = check_folder(name)
    source, options = _source(name, local), _options(local, trust_remote_code, revision)
    auto, table, words = HEADS[head]
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise CheckpointError(_cannot_load(source, local, error)) from error
    remote = trust_remote_code and auto in (getattr(config, "auto_map", None) or {})
    if not remote and type(config) not in getattr(modeling_auto, table):
        raise CheckpointError(
            f"'{source}' is a {config.model_type!r} model, which has no {words} head in transformers; "
            "use an encoder such as BERT, RoBERTa, DistilBERT, ELECTRA, ALBERT, XLM-R, DeBERTa or ModernBERT"
        )
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise CheckpointError(f"'{source}' ({config.model_type}) is not an encoder alone: it decodes from left to right")
    return config


def _cannot_load(name: str, local: bool, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason:
        return f"'{name}' runs code of its own, which is not done unless asked: pass trust_remote_code=True if you trust its author"
    if "ignore_mismatched_sizes" in reason:  # what is wrong stands in a table above it, in the log
        return f"cannot load the model in '{name}': its weights are of another shape than its config.json says; take both from one model"
    if local:
        return f"cannot load the model in '{name}': {reason[:500]}"
    return f"there is no folder '{name}', and it cannot be had from the Hub: {why_not(error)}"


def _check_loaded(name: str, head: Head, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    words = HEADS[head][2]
    if missing:
        parts = (
            ("predictions", "lm_head", "vocab_", "decoder", "generator", "head.")
            if head == "masked_lm"
            else ("classifier", "qa_", "pooler")
        )
        has_none = any(part in key for key in missing for part in parts)
        why = f"; it was saved without its {words} head, or with another head" if has_none else ""
        raise CheckpointError(
            f"'{name}' lacks {len(missing)} of the weights of this architecture, which would be left random: {_some(missing)}{why}"
        )
    if info.get("mismatched_keys"):
        raise CheckpointError(f"'{name}' has weights of another shape than its config.json says: {_some(sorted(info['mismatched_keys']))}")
    if info["unexpected_keys"]:
        what = "masked language model" if head == "masked_lm" else f"{words} model"
        log.warning("%s: %d weights are not used by its %s: %s", name, len(info["unexpected_keys"]), what,
                    _some(sorted(info["unexpected_keys"])))  # fmt: skip


def _some(keys: list[Any], limit: int = 8) -> str:
    shown = ", ".join(map(str, keys[:limit]))
    return shown if len(keys) <= limit else f"{shown}, and {len(keys) - limit} more"


def check_attention(attention: str) -> None:
    """Raise ConfigError for an attention that there is not."""
    if attention not in ("packed", "sdpa", "eager"):
        raise ConfigError(f"attention = {attention!r}; allowed: packed, sdpa, eager")


def set_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Make a model run with Unmask's packed attention, or with one of transformers' own."""
    check_attention(attention)
    if attention == "packed":
        from .attention import enable_packing, supports_packing

        if not enable_packing(model):
            log.info("%s; its batches are padded", supports_packing(model)[1])
    elif model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    *,
    card: str | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Path:
    """Write a Hugging Face folder (config.json, model.safetensors, tokenizer files, README.md from `card`) and return its path.

    `weights`: a state dict of the model to be written in place of the one that it has now.
    Every file is written and closed on return; whoever needs it to be atomic writes to a fresh folder and renames it.
    Raises: RunError when the disk is full or cannot be written.
    """
    from safetensors import SafetensorError

    from .tensors import threads_go_on

    folder = Path(folder)
    plain: PreTrainedModel = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers(), threads_go_on():
            plain.save_pretrained(folder, state_dict=weights)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise RunError(f"the model could not be written to '{folder}': {error}; make room or name another folder") from error
    return folder


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> None:
    """Check that every token id has an embedding and, with a length, that every position has one.

    Raises: TokenizerError, ConfigError.
    """
    table: Any = model.get_input_embeddings()
    rows, words = table.weight.shape[0], len(tokenizer)
    if words > rows:
        raise TokenizerError(
            f"the tokenizer has {words:,} tokens and the model has embeddings for {rows:,}; "
            "use the tokenizer that the model was trained with, or a model made for this one"
        )
    limit, offset = max_positions(model), position_offset(model)
    if max_length is None or limit is None or max_length <= limit:
        return
    trap = ""
    if offset:
        trap = f" (max_position_embeddings = {limit + offset}, but positions of this architecture start at {offset}: padding_idx + 1)"
    raise ConfigError(
        f"max_length = {max_length} is more than the {limit} positions that the model has{trap}; set max_length to {limit} or less"
    )


def max_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens, special ones included, a text may have; None where the architecture sets no limit."""
    table = _position_table(model)
    if table is not None:
        return int(table.weight.shape[0]) - position_offset(model)
    limit = getattr(model.config, "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else None


def position_offset(model: PreTrainedModel) -> int:
    """Return the position id of a text's first token: padding_idx + 1 in RoBERTa's relatives, 0 in all others."""
    table = _position_table(model)
    return 0 if table is None or table.padding_idx is None else int(table.padding_idx) + 1


def _position_table(model: PreTrainedModel) -> Any:
    """Return the learned absolute positions of a model, if it has any (by the name that all of BERT's descendants share)."""
    import torch

    for name, module in model.base_model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, torch.nn.Embedding):
            return module
    return None


@contextlib.contextmanager
def quiet_transformers(*, bars: bool = False) -> Iterator[None]:
    """Keep transformers from writing load reports and (unless `bars`: a download) progress to the terminal; we say what matters."""
    from transformers.utils import logging as hf_logging

    level, had_bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    if not bars:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if had_bars and not bars:
            hf_logging.enable_progress_bar()
