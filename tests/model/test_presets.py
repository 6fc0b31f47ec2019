"""Models from dials: sizes, names and values checked, the same seed the same weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unmask.config import from_dict, to_dict
from unmask.errors import ConfigError, TokenizerError
from unmask.model.flops import num_parameters
from unmask.model.presets import PRESETS, ModelConfig, build_model, hf_config_for


def build(tokenizer, *, max_length=64, seed=1, preset="tiny", family="modernbert", **fields):
    return build_model(ModelConfig(preset=preset, family=family, fields=fields), tokenizer, max_length=max_length, seed=seed)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_the_tutorial_dials(tokenizer, family):
    model = build(tokenizer, preset="mini", family=family, max_length=512)
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (4, 256, 4)
    assert config.vocab_size == len(tokenizer) and config.max_position_embeddings == 512
    assert config.intermediate_size == {"bert": 1024, "modernbert": 704}[family]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "base"])
def test_families_are_of_like_size(tokenizer, preset):
    sizes = [num_parameters(build(tokenizer, preset=preset, family=family), embeddings=False) for family in ("bert", "modernbert")]
    assert abs(sizes[0] - sizes[1]) / sizes[0] < 0.06


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_special_ids_come_from_the_tokenizer(tokenizer, family):
    config = hf_config_for(ModelConfig(family=family), tokenizer, max_length=64)
    assert config.pad_token_id == tokenizer.pad_token_id
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_no_dropout_from_scratch_unless_asked(tokenizer, family):
    config = hf_config_for(ModelConfig(family=family), tokenizer, max_length=64)
    rates = {name: value for name, value in config.to_dict().items() if "dropout" in name}
    assert rates and not any(rates.values())
    assert (
        hf_config_for(ModelConfig(family="bert", fields={"hidden_dropout_prob": 0.1}), tokenizer, max_length=64).hidden_dropout_prob == 0.1
    )


def test_a_dial_moves_what_follows_from_it(tokenizer):
    config = hf_config_for(ModelConfig(preset="mini", family="bert", fields={"hidden_size": 512}), tokenizer, max_length=64)
    assert (config.num_attention_heads, config.intermediate_size, config.num_hidden_layers) == (8, 2048, 4)


def test_windows_only_where_texts_are_long(tokenizer):
    short = hf_config_for(ModelConfig(preset="small"), tokenizer, max_length=512)
    assert set(short.layer_types) == {"full_attention"}
    assert {rope["rope_theta"] for rope in short.rope_parameters.values()} == {10_000.0}
    long = hf_config_for(ModelConfig(preset="small"), tokenizer, max_length=4096)
    assert long.layer_types == ["full_attention", "sliding_attention", "sliding_attention"] * 2
    assert long.rope_parameters["full_attention"]["rope_theta"] == 160_000.0
    asked = hf_config_for(ModelConfig(preset="tiny", fields={"global_attn_every_n_layers": 2}), tokenizer, max_length=64)
    assert asked.layer_types == ["full_attention", "sliding_attention"]


def test_same_seed_same_weights(tokenizer):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (build(tokenizer, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["model.layers.0.attn.Wqkv.weight"], other["model.layers.0.attn.Wqkv.weight"])


def test_unknown_field_names_the_nearest(tokenizer):
    with pytest.raises(ConfigError, match=r"unknown key 'model.hidden_sise'; did you mean 'model.hidden_size'\?"):
        build(tokenizer, hidden_sise=12)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("bert", {"hidden_size": 100, "num_attention_heads": 3}, "not divisible by model.num_attention_heads = 3"),
        ("bert", {"hidden_size": "wide"}, "model.hidden_size = 'wide'"),
        ("bert", {"num_hidden_layers": 0}, "model.num_hidden_layers = 0"),
        ("bert", {"hidden_act": "gleu"}, "model.hidden_act: unknown key 'gleu'; did you mean 'gelu'"),
        ("bert", {"hidden_dropout_prob": 1.5}, "model.hidden_dropout_prob = 1.5"),
        ("bert", {"layer_norm_eps": "tiny"}, "layer_norm_eps"),
        ("bert", {"is_decoder": True}, "model.is_decoder cannot be set"),
        ("bert", {"max_position_embeddings": 32}, "max_length = 64 is more than the 32 positions"),
        ("bert", {"global_attn_every_n_layers": 2}, "unknown key"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers = 0"),
        ("modernbert", {"hidden_size": 15, "num_attention_heads": 5}, "need an even size"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types"),
        ("modernbert", {"local_attention": "far"}, "local_attention"),
    ],
)
def test_values_that_cannot_be(tokenizer, family, fields, message):
    with pytest.raises(ConfigError, match=message):
        build(tokenizer, family=family, **fields)


def test_unknown_preset_and_family(tokenizer):
    with pytest.raises(ConfigError, match="model.preset = 'huge'; allowed: tiny, mini, small, base"):
        build(tokenizer, preset="huge")
    with pytest.raises(ConfigError, match="model.family = 'gpt'; allowed: bert, modernbert"):
        build(tokenizer, family="gpt")


def test_vocabulary_smaller_than_the_tokenizer(tokenizer):
    with pytest.raises(TokenizerError, match=f"{len(tokenizer)} tokens and the model has embeddings for 20"):
        build(tokenizer, vocab_size=20)


def test_tokenizer_without_a_mask(tokenizer):
    import copy

    maskless = copy.deepcopy(tokenizer)
    maskless.mask_token = None
    with pytest.raises(TokenizerError, match="no mask token"):
        build(maskless)


def test_fields_pass_through_a_recipe():
    config = from_dict(ModelConfig, {"preset": "small", "family": "bert", "hidden_size": 96, "hidden_act": "relu"})
    assert config.fields == {"hidden_size": 96, "hidden_act": "relu"}
    assert from_dict(ModelConfig, to_dict(config)) == config
    assert dataclasses.replace(config, fields={}) == ModelConfig(preset="small", family="bert")
