"""Compiled layers compute what the plain ones do."""

import pytest
import torch

from unmask.model.heads import forward_packed
from unmask.train.compiling import compile_layers, encoder_layers
from unmask.train.loss import masked_loss_sum


def gradients(model, batch):
    model.zero_grad()
    loss = masked_loss_sum(forward_packed(model, batch), batch.labels)
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters()]


def test_compiled_layers_give_the_same_gradients(make_model, make_loader):
    model, loader = make_model(num_hidden_layers=3).train(), make_loader()
    batches = [loader.batch(step)[0] for step in range(3)]
    plain = [gradients(model, batch) for batch in batches]
    assert compile_layers("on", model, lambda: gradients(model, batches[0]), print) == "on"
    assert all(p.grad is None for p in model.parameters())
    for batch, (loss, grads) in zip(batches, plain, strict=True):
        compiled_loss, compiled = gradients(model, batch)
        assert compiled_loss == pytest.approx(loss, rel=1e-5)
        # beside the largest gradient: what cancels out in one keeps the rounding of what it is made of
        largest = max(float(grad.abs().max()) for grad in grads)
        for left, right in zip(compiled, grads, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-3, atol=3e-5 * largest)


def test_on_a_cpu_nothing_is_compiled_unless_asked(make_model):
    model = make_model()

    def never():
        raise AssertionError("measured")

    assert compile_layers("auto", model, never, print) == compile_layers("off", model, never, print) == "off"


def test_the_last_layer_is_left_out_where_it_is_not_like_the_others(make_model):
    model = make_model(num_hidden_layers=3)
    assert encoder_layers(model) == list(model.base_model.layers[:-1])
