"""Which batches run packed: CUDA's kernel takes 16-bit numbers without dropout only, and the rest must be padded, not fail or lose it."""

from __future__ import annotations

import torch
from transformers import AutoModelForMaskedLM

from unmask.model.attention import enable_packing
from unmask.model.heads import runs_packed


def made(config, dtype=torch.float32):
    model = AutoModelForMaskedLM.from_config(config, dtype=dtype)
    enable_packing(model)
    return model


def test_fp32_is_packed_on_cpu_and_padded_on_cuda(configurations):
    model = made(configurations["bert"])
    assert runs_packed(model, "cpu")
    assert not runs_packed(model, "cuda")


def test_half_precision_is_packed_on_cuda_until_dropout_is_wanted(configurations):
    config = configurations["bert"]
    config.attention_probs_dropout_prob = 0.1
    model = made(config, torch.bfloat16)
    assert runs_packed(model.eval(), "cuda")
    assert not runs_packed(model.train(), "cuda")
    assert runs_packed(model, "cpu")


def test_an_architecture_without_the_interface_is_padded(configurations):
    assert not runs_packed(made(configurations["mpnet"]), "cpu")
