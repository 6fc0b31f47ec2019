"""Sizes and operation counts against what can be worked out by hand, and against PyTorch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unmask.model.attention import enable_packing
from unmask.model.flops import flops_per_token, num_parameters

V, D, LAYERS, WIDE = 96, 64, 3, 80


def test_tutorial_model_is_the_size_it_says():
    """The from-scratch BERT of the tutorial: vocabulary 30,522, 4 x 256, 512 positions."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4)
    with torch.device("meta"):
        model = BertForMaskedLM(config)
    tables = (30522 + 512 + 2) * 256
    layer = 4 * (256 * 256 + 256) + 2 * 256 * 3072 + 3072 + 256 + 4 * 256
    head = 256 * 256 + 256 + 2 * 256 + 30522
    assert num_parameters(model, embeddings=False) == 4 * layer + 2 * 256 + head
    assert num_parameters(model) == num_parameters(model, embeddings=False) + tables


def test_bert_by_hand(small_model):
    layer = 2 * (4 * D * D + 2 * D * WIDE)
    head = 2 * (D * D + D * V)
    want = LAYERS * (layer + 4 * D * 20) + 0.15 * head
    assert flops_per_token(small_model("bert"), 20, 0.15, training=False) == pytest.approx(want)
    assert flops_per_token(small_model("bert"), 20, 0.15) == pytest.approx(3 * want)


def test_a_window_sees_less(small_model):
    """ModernBERT with a window of 8: every third layer sees all 20 keys, the others themselves and 4 on either side."""
    layer = 2 * (4 * D * D + 3 * D * WIDE)
    want = LAYERS * layer + 4 * D * (20 + 9 + 9) + 2 * (D * D + D * V)
    assert flops_per_token(small_model("modernbert"), 20, 1.0, training=False) == pytest.approx(want)


def test_the_last_layer_counts_where_it_is_computed(small_model):
    stock, ours = small_model("bert"), small_model("bert")
    enable_packing(ours)
    saved = 0.75 * 2 * (D * D + 2 * D * WIDE)
    assert flops_per_token(stock, 20, 0.25, training=False) - flops_per_token(ours, 20, 0.25, training=False) == pytest.approx(saved)
    assert flops_per_token(stock, 20, 1.0) == flops_per_token(ours, 20, 1.0)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "albert", "eurobert", "mpnet"])
def test_as_pytorch_counts_them(name, small_model):
    model = small_model(name)
    model.set_attn_implementation("eager")
    ids = torch.full((1, 24), 7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert 24 * flops_per_token(model, 24, 1.0, training=False) == pytest.approx(counter.get_total_flops(), rel=1e-3)  # rotary angles aside


def test_every_architecture_can_be_counted(architecture, small_model):
    model = small_model(architecture)
    low, high = flops_per_token(model, 20, 0.1), flops_per_token(model, 20, 0.2)
    assert 0 < low < high


def test_the_model_is_left_alone(small_model):
    model = small_model("bert")
    attention, before = model.config._attn_implementation, {key: value.clone() for key, value in model.state_dict().items()}
    flops_per_token(model, 20, 0.15)
    assert model.config._attn_implementation == attention and model.config.pad_token_id == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
