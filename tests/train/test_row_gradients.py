"""Gradients of embeddings by rows train a model as whole gradients do."""

import copy

import pytest
import torch
from torch import nn

from unmask.train import row_gradients
from unmask.train.row_gradients import RowGradients


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(50, 8, padding_idx=0), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.words

    def forward(self, ids):
        return self.out(self.words(ids)).tanh()


class Tied(Small):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(8, 50)
        self.decoder.weight = self.words.weight


def steps(model, *, by_rows, max_norm, passes=2):
    """Train a while on seldom repeated words, and return the norms of the gradients."""
    if by_rows:
        row_gradients.enable(model)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True)
    gradients, norms, random = RowGradients(parameters), [], torch.Generator().manual_seed(0)
    for _ in range(6):
        for _ in range(passes):
            model(torch.randint(0, 50, (7,), generator=random)).sum().backward()
        assert model.words.weight.grad.is_sparse == by_rows
        norms.append(float(torch.nn.utils.get_total_norm(gradients.tensors())))
        if max_norm:
            gradients.clip(norms[-1], max_norm)
        gradients.spread()
        optimizer.step()
        gradients.clear()
        assert all(parameter.grad is None for parameter in parameters)
    return norms


@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_weights_are_the_same(max_norm, passes):
    torch.manual_seed(0)
    one = Small()
    other = copy.deepcopy(one)
    norms = [steps(model, by_rows=rows, max_norm=max_norm, passes=passes) for model, rows in ((one, True), (other, False))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-6)


def test_weights_that_something_else_uses_have_whole_gradients():
    model = Tied()
    row_gradients.enable(model)
    assert not model.words.sparse


def test_a_step_that_is_left_out_leaves_nothing_behind():
    torch.manual_seed(0)
    model = Small()
    row_gradients.enable(model)
    gradients = RowGradients(list(model.parameters()))
    for ids, spread in (([1, 2], True), ([3, 4], False), ([5], True)):
        model(torch.tensor(ids)).sum().backward()
        gradients.tensors()
        if spread:
            gradients.spread()
            assert torch.unique(model.words.weight.grad.nonzero()[:, 0]).tolist() == ids
        gradients.clear()


def test_clipping_is_as_torch_has_it():
    torch.manual_seed(0)
    model = Small()
    model(torch.arange(9)).sum().backward()
    parameters = list(model.parameters())
    wanted = copy.deepcopy(model)
    for mine, other in zip(parameters, wanted.parameters(), strict=True):
        other.grad = mine.grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(wanted.parameters(), 0.5)
    RowGradients(parameters).clip(float(norm), 0.5)
    for mine, other in zip(parameters, wanted.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
