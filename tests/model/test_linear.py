"""Layers with laid out weights give what the plain ones give, and follow their weights."""

from __future__ import annotations

import torch
from torch import nn

from unmask.model.linear import LaidOut


def test_equals_the_plain_layer_and_follows_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 70), nn.GELU(), nn.Linear(70, 9, bias=False))
    x = torch.randn(3, 17, 24)
    laid_out = LaidOut(model)
    assert len(laid_out.layers) == 2
    with torch.no_grad():
        for rows in (x, x[0], x[:1, ::2]):
            want = model(rows)
            with laid_out.used():
                assert "forward" in model[0].__dict__
                torch.testing.assert_close(model(rows), want)
        assert "forward" not in model[0].__dict__
        model[0].weight.mul_(-2)
        model[0].bias.add_(1)
        want = model(x)
        with laid_out.used():
            torch.testing.assert_close(model(x), want)


def test_in_bf16_the_logits_stay_fp32(small_model):
    model = small_model("bert")
    laid_out = LaidOut(model, torch.bfloat16)
    ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        want = model(input_ids=ids).logits
        with torch.autocast("cpu", dtype=torch.bfloat16), laid_out.used():
            rough = model(input_ids=ids).logits
    if not laid_out.layers:
        return  # a CPU without bf16
    assert rough.dtype == torch.float32 and not torch.equal(rough, want)
    torch.testing.assert_close(rough, want, atol=0.03 * float(want.abs().max()), rtol=0)


def test_with_gradients_the_layers_stay_plain():
    model = nn.Sequential(nn.Linear(4, 4))
    with LaidOut(model).used():
        model(torch.ones(1, 4)).sum().backward()
    assert model[0].weight.grad is not None
    assert LaidOut(model.to(torch.bfloat16)).layers == {}
