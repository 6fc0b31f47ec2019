"""Activation checkpointing: the same gradients to the bit, from less that is kept."""

import pytest
import torch

from unmask.model.heads import forward_packed
from unmask.train.loss import masked_loss_sum
from unmask.train.recompute import recompute_layers


def gradients(model, batch):
    """Return the gradients of a batch, with dropout, and how many bytes of activations were kept for them."""
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train().zero_grad()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = masked_loss_sum(forward_packed(model, batch), batch.labels)
    size = sum(kept.values())
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, size


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_gradients_stay_and_memory_goes(make_model, make_loader, family):
    dropout = {"hidden_dropout_prob": 0.2} if family == "bert" else {"mlp_dropout": 0.2}
    (batch,) = make_loader(1024, 1024).batch(0)
    plain, size = gradients(make_model(family, num_hidden_layers=5, **dropout), batch)
    model = make_model(family, num_hidden_layers=5, **dropout)
    recompute_layers(model)
    again, less = gradients(model, batch)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
    assert less < 0.6 * size
