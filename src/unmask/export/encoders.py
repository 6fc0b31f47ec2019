"""What the encoders of transformers are made of, and their heads: each architecture as the same few pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .graph import GELU, PLAIN

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Pair = tuple["Tensor", "Tensor | None"]  # the weight and the bias of a product


@dataclass(frozen=True)
class Block:
    """One layer. `before` puts the normalisations before what they belong to, as ModernBERT does; `gate` multiplies the inner values."""

    query: Pair
    key: Pair
    value: Pair
    out: Any
    attention_norm: Any
    up: Pair
    act: Any
    down: Any
    mlp_norm: Any
    before: bool = False
    gate: Pair | None = None
    window: int | None = None  # tokens to each side that are attended to
    inv_freq: Tensor | None = None  # of rotary positions


@dataclass(frozen=True)
class Encoder:
    """The body of a model: rows for words, for positions from a text's first on, for the sentences of a pair; layers.

    `widen` is a layer between embeddings and body that differ in width.
    """

    words: Tensor
    positions: Tensor | None
    types: Tensor | None
    norm: Any
    widen: Any
    blocks: list[Block]
    final_norm: Any
    num_heads: int


def _pair(linear: Any) -> Pair:
    return linear.weight, linear.bias


def _bert_block(layer: Any) -> Block:
    attention, own = layer.attention, layer.attention.self
    return Block(
        _pair(own.query), _pair(own.key), _pair(own.value), attention.output.dense, attention.output.LayerNorm,
        _pair(layer.intermediate.dense), layer.intermediate.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
    )  # fmt: skip


def _albert_block(layer: Any) -> Block:
    own = layer.attention
    return Block(
        _pair(own.query), _pair(own.key), _pair(own.value), own.dense, own.LayerNorm,
        _pair(layer.ffn), layer.activation, layer.ffn_output, layer.full_layer_layer_norm,
    )  # fmt: skip


def _distilbert_block(layer: Any) -> Block:
    own = layer.attention
    return Block(
        _pair(own.q_lin), _pair(own.k_lin), _pair(own.v_lin), own.out_lin, layer.sa_layer_norm,
        _pair(layer.ffn.lin1), layer.ffn.activation, layer.ffn.lin2, layer.output_layer_norm,
    )  # fmt: skip


def _modernbert_block(layer: Any, rotary: Any) -> Block:
    own, mlp = layer.attn, layer.mlp
    query, key, value = _parts(own.Wqkv, 3)
    up, gate = _parts(mlp.Wi, 2)
    return Block(
        query, key, value, own.Wo, layer.attn_norm, up, mlp.act, mlp.Wo, layer.mlp_norm, before=True, gate=gate,
        window=None if own.sliding_window is None else own.sliding_window - 1,
        inv_freq=getattr(rotary, f"{layer.attention_type}_inv_freq"),
    )  # fmt: skip


def _parts(linear: Any, number: int) -> list[Pair]:
    biases = [None] * number if linear.bias is None else linear.bias.chunk(number)
    return list(zip(linear.weight.chunk(number), biases, strict=True))


def _bert_like(model: Any) -> Encoder:
    body, table = model.base_model, model.base_model.embeddings
    start = table.position_embeddings.padding_idx
    positions = table.position_embeddings.weight
    return Encoder(
        table.word_embeddings.weight, positions if start is None else positions[start + 1 :],
        table.token_type_embeddings.weight, table.LayerNorm, getattr(body, "embeddings_project", None),
        [_bert_block(layer) for layer in body.encoder.layer], None, model.config.num_attention_heads,
    )  # fmt: skip


def _albert(model: Any) -> Encoder:
    body, table, config = model.base_model, model.base_model.embeddings, model.config
    groups = [[_albert_block(layer) for layer in group.albert_layers] for group in body.encoder.albert_layer_groups]
    each = config.num_hidden_layers / len(groups)
    blocks = [block for number in range(config.num_hidden_layers) for block in groups[int(number / each)]]
    return Encoder(
        table.word_embeddings.weight, table.position_embeddings.weight, table.token_type_embeddings.weight, table.LayerNorm,
        body.encoder.embedding_hidden_mapping_in, blocks, None, config.num_attention_heads,
    )  # fmt: skip


def _distilbert(model: Any) -> Encoder:
    body, table = model.base_model, model.base_model.embeddings
    return Encoder(
        table.word_embeddings.weight, table.position_embeddings.weight, None, table.LayerNorm, None,
        [_distilbert_block(layer) for layer in body.transformer.layer], None, model.config.num_attention_heads,
    )  # fmt: skip


def _modernbert(model: Any) -> Encoder:
    body = model.base_model
    kinds = set(body.rotary_emb.rope_type.values())
    if kinds != {"default"}:
        raise CheckpointError(f"rotary positions of the kind {sorted(kinds - {'default'})} cannot be exported; allowed: default")
    return Encoder(
        body.embeddings.tok_embeddings.weight, None, None, body.embeddings.norm, None,
        [_modernbert_block(layer, body.rotary_emb) for layer in body.layers], body.final_norm, model.config.num_attention_heads,
    )  # fmt: skip


ENCODERS: dict[str, Callable[[Any], Encoder]] = {
    "bert": _bert_like, "roberta": _bert_like, "xlm-roberta": _bert_like, "camembert": _bert_like, "electra": _bert_like,
    "albert": _albert, "distilbert": _distilbert, "modernbert": _modernbert,
}  # fmt: skip

Step = Any  # a module, or the name of an activation that a model computes without one

# what the head of a class does, in order: the paths of its modules, or an activation; classes by the end of their names
_TRANSFORM, _MODERN = "cls.predictions.transform", ("head.dense", "head.act", "head.norm")
_LM_HEAD = ("lm_head.dense", "GELU", "lm_head.layer_norm", "lm_head.decoder")
_FIRST = ("classifier.dense", "Tanh", "classifier.out_proj")
HEADS: dict[str, dict[str, tuple[str, ...]]] = {
    "ForMaskedLM": {
        "bert": (f"{_TRANSFORM}.dense", f"{_TRANSFORM}.transform_act_fn", f"{_TRANSFORM}.LayerNorm", "cls.predictions.decoder"),
        "roberta": _LM_HEAD, "xlm-roberta": _LM_HEAD, "camembert": _LM_HEAD,
        "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        "electra": (*(f"generator_predictions.{part}" for part in ("dense", "activation", "LayerNorm")), "generator_lm_head"),
        "albert": tuple(f"predictions.{part}" for part in ("dense", "activation", "LayerNorm", "decoder")),
        "modernbert": (*_MODERN, "decoder"),
    },
    "ForSequenceClassification": {
        "bert": ("bert.pooler.dense", "bert.pooler.activation", "classifier"),
        "roberta": _FIRST, "xlm-roberta": _FIRST, "camembert": _FIRST,
        "distilbert": ("pre_classifier", "ReLU", "classifier"),
        "electra": ("classifier.dense", "classifier.activation", "classifier.out_proj"),
        "albert": ("albert.pooler", "albert.pooler_activation", "classifier"),
        "modernbert": (*_MODERN, "classifier"),
    },
    "ForTokenClassification": dict.fromkeys(ENCODERS, ("classifier",)) | {"modernbert": (*_MODERN, "classifier")},
    "ForQuestionAnswering": dict.fromkeys(ENCODERS, ("qa_outputs",)) | {"modernbert": (*_MODERN, "classifier")},
}  # fmt: skip


def read(model: PreTrainedModel) -> tuple[Encoder, list[Step], str]:
    """Return the pieces of a model: its body, its head, and the end of its class's name, which says what the head is for.

    Raises: CheckpointError for an architecture or a head that cannot be exported.
    """
    kind, name = model.config.model_type, type(model).__name__
    if kind not in ENCODERS:
        raise CheckpointError(f"the architecture {kind!r} cannot be exported; allowed: {', '.join(ENCODERS)}")
    head = next((end for end in HEADS if name.endswith(end)), None)
    if head is None:
        raise CheckpointError(f"{name} has a head that cannot be exported; allowed: classes whose names end in {', '.join(HEADS)}")
    activations = {*GELU, *PLAIN}
    return ENCODERS[kind](model), [step if step in activations else model.get_submodule(step) for step in HEADS[head][kind]], head
