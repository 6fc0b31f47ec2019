"""Sizes of models by a few dials, and stock transformers models made from them with every field checked by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..config import unknown_key
from ..errors import ConfigError, TokenizerError
from ..rng import rng

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Family = Literal["modernbert", "bert"]
Preset = Literal["tiny", "mini", "small", "base"]

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128},
    "mini": {"num_hidden_layers": 4, "hidden_size": 256},
    "small": {"num_hidden_layers": 6, "hidden_size": 384},
    "base": {"num_hidden_layers": 12, "hidden_size": 768},
}
HEAD_SIZE = 64  # of every BERT since 2018; hidden sizes that follow from a dial use it

# up to this length a ModernBERT layer attends to everything and all layers share the local rotary base
SHORT_CONTEXT = 1024

# fields that exist on the config class but would make something else than an encoder with an MLM head, or that we set
NOT_SETTABLE = frozenset({
    "architectures", "transformers_version", "dtype", "is_encoder_decoder", "is_decoder", "add_cross_attention", "use_cache",
    "return_dict", "output_hidden_states", "sparse_prediction", "sparse_pred_ignore_index", "tie_encoder_decoder",
})  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """A model to be trained from scratch."""

    preset: Preset = "mini"  # tiny 2 x 128, mini 4 x 256, small 6 x 384, base 12 x 768 (layers x hidden size)
    family: Family = "modernbert"  # modernbert (pre-norm, rotary positions, GeGLU) or bert (post-norm, learned positions)
    fields: dict[str, Any] = field(default_factory=dict)  # any other field of the family's transformers configuration, by its name

    __extra__: ClassVar[str] = "fields"


def build_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    seed: int,
    attention: Literal["packed", "sdpa", "eager"] = "packed",
) -> PreTrainedModel:
    """Return a stock *ForMaskedLM with fresh fp32 weights, a function of (config, tokenizer, max_length, seed) and nothing else.

    Raises: ConfigError for a field that does not exist or a value that cannot be; TokenizerError where the vocabulary does not fit.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    from .load import check_fit, quiet_transformers, set_attention

    hf_config = hf_config_for(config, tokenizer, max_length=max_length)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(int(rng(seed, "weights").integers(2**63)))
        try:
            model = AutoModelForMaskedLM.from_config(hf_config, dtype=torch.float32)
        except (ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
            raise ConfigError(f"no {config.family} model can be made of model.* as set: {error}") from None
    check_fit(model, tokenizer, max_length)
    set_attention(model, attention)
    return model


def hf_config_for(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> PreTrainedConfig:
    """Return the transformers configuration of a ModelConfig, checked by name and value.

    Dials that are not set follow from the hidden size: heads of 64, an intermediate size of 4 times the hidden size for BERT, and
    for ModernBERT, whose gate makes a third matrix, the width with as many parameters.
    Raises: ConfigError, TokenizerError.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import BertConfig, ModernBertConfig

    classes: dict[str, type[PreTrainedConfig]] = {"bert": BertConfig, "modernbert": ModernBertConfig}
    if config.preset not in PRESETS:
        raise ConfigError(f"model.preset = {config.preset!r}; allowed: {', '.join(PRESETS)}")
    if config.family not in classes:
        raise ConfigError(f"model.family = {config.family!r}; allowed: {', '.join(classes)}")
    cls = classes[config.family]
    check_fields(cls, config.fields)
    values: dict[str, Any] = {**PRESETS[config.preset], **config.fields}
    if isinstance(values["hidden_size"], int) and values["hidden_size"] > 0:
        _derive(values, config.family)
    values.setdefault("vocab_size", len(tokenizer))
    values.setdefault("max_position_embeddings", max_length)
    if config.family == "bert":
        # nothing is seen often enough in pre-training for dropout to help, and its random numbers cost a tenth of the step
        values.setdefault("hidden_dropout_prob", 0.0)
        values.setdefault("attention_probs_dropout_prob", 0.0)
    else:
        _modernbert(values, max_length)
    for name, value in _special_ids(tokenizer, config.family).items():
        values.setdefault(name, value)
    _check_values(values)
    try:
        return cls(**values)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"model.*: {' '.join(str(error).split())}") from None


def check_fields(cls: type[PreTrainedConfig], fields: dict[str, Any]) -> None:
    """Raise ConfigError for a name that is not a field of a transformers configuration class (which itself accepts any)."""
    names = {item.name for item in dataclasses.fields(cls)} | set(cls.attribute_map)  # type: ignore[arg-type]
    if "layer_types" in names:
        names.add("global_attn_every_n_layers")  # the older and shorter way to say layer_types, which ModernBERT still takes
    for name in fields:
        if name in NOT_SETTABLE:
            raise ConfigError(f"model.{name} cannot be set: it would not be an encoder with a masked-language-model head any more")
        if name not in names:
            allowed = sorted(f"model.{known}" for known in (names - NOT_SETTABLE) | {"preset", "family"})
            raise ConfigError(unknown_key(f"model.{name}", allowed, f"the fields of {cls.__name__}"))


def _derive(values: dict[str, Any], family: str) -> None:
    hidden = values["hidden_size"]
    values.setdefault("num_attention_heads", max(1, hidden // HEAD_SIZE))
    # 2 matrices of D x 4D hold as much as 3 of D x 8D/3; a multiple of 64 keeps the matrix products even
    gated = max(64, round(8 * hidden / 3 / 64) * 64)
    values.setdefault("intermediate_size", 4 * hidden if family == "bert" else gated)


def _modernbert(values: dict[str, Any], max_length: int) -> None:
    layers = values["num_hidden_layers"]
    every = values.pop("global_attn_every_n_layers", None)
    if every is not None and (not isinstance(every, int) or every < 1):
        raise ConfigError(f"model.global_attn_every_n_layers = {every!r}; allowed: a whole number from 1 (every layer global)")
    if every is None and max_length <= SHORT_CONTEXT and "local_attention" not in values:
        # a window saves under a tenth of the products at these lengths, costs a mask, and hides words from each other
        every = 1
    if "layer_types" not in values and isinstance(layers, int):
        values["layer_types"] = ["sliding_attention" if index % (every or 3) else "full_attention" for index in range(layers)]
    if max_length <= SHORT_CONTEXT:
        # ModernBERT was itself trained at 1,024 tokens with base 10,000 everywhere; 160,000 came with its 8,192 tokens
        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        values.setdefault("rope_parameters", {"full_attention": dict(rope), "sliding_attention": dict(rope)})


def _special_ids(tokenizer: PreTrainedTokenizerBase, family: str) -> dict[str, int | None]:
    if tokenizer.pad_token_id is None or tokenizer.mask_token_id is None:
        lacking = "pad" if tokenizer.pad_token_id is None else "mask"
        raise TokenizerError(
            f"the tokenizer has no {lacking} token, which a masked language model needs; train one with `unmask tokenizer`"
        )
    ids: dict[str, int | None] = {"pad_token_id": tokenizer.pad_token_id}
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids["bos_token_id"] = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else first
    ids["eos_token_id"] = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else last
    if family == "modernbert":
        ids |= {"cls_token_id": first, "sep_token_id": last}
    return ids


def _check_values(values: dict[str, Any]) -> None:
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings", "vocab_size"):
        if name in values and (not isinstance(values[name], int) or isinstance(values[name], bool) or values[name] < 1):
            raise ConfigError(f"model.{name} = {values[name]!r}; allowed: a whole number from 1")
    for name, value in values.items():
        if "dropout" in name and value is not None and not (isinstance(value, (int, float)) and 0 <= value < 1):
            raise ConfigError(f"model.{name} = {value!r}; allowed: a number from 0 up to, not including, 1")
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if hidden % heads:
        fit = [number for number in range(1, hidden + 1) if hidden % number == 0 and hidden // number >= 16]
        raise ConfigError(
            f"model.hidden_size = {hidden} is not divisible by model.num_attention_heads = {heads}; heads that divide it: {fit or [1]}"
        )
    if "layer_types" in values and (hidden // heads) % 2:
        raise ConfigError(
            f"model.hidden_size = {hidden} over {heads} heads makes heads of {hidden // heads}; rotary positions need an even size"
        )
    from transformers.activations import ACT2FN

    for name in ("hidden_act", "hidden_activation"):
        if name in values and values[name] not in ACT2FN:
            raise ConfigError(unknown_key(str(values[name]), list(ACT2FN), f"model.{name}"))
