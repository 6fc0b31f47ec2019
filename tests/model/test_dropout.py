"""Dropout of sixteen bits a number: the share that is dropped, the mean that is kept, gradients, and nothing of it out of training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unmask.model import dropout
from unmask.model.attention import _Attend


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped_and_the_mean(probability, dtype):
    torch.manual_seed(0)
    found, factor = dropout.noise(torch.Size([7, 150_001]), probability, dtype)
    assert found.shape == (7, 150_001) and found.dtype == dtype and len(found.unique()) == 2 and found.min() == 0
    dropped = (found == 0).double()
    reach = 5 * (probability * (1 - probability) / found.numel()) ** 0.5
    assert abs(dropped.mean() - probability) < reach + 1 / dropout.LEVELS
    assert float(found.max()) == 1 and factor == pytest.approx(1 / (1 - probability), rel=1e-2)
    # of four numbers that are drawn together each is as the others, and one says nothing of the next
    assert all(abs(dropped.view(-1)[place::4].mean() - probability) < 3 * reach for place in range(4))
    apart = (dropped.view(-1)[1:] * dropped.view(-1)[:-1]).mean() - probability**2
    assert abs(apart) < reach + 1e-4


@pytest.mark.parametrize("probability", [0.999999, 1.0])
def test_all_is_dropped(probability):
    found, factor = dropout.noise(torch.Size([1000]), probability, torch.float32)
    assert not found.any() and factor == 1.0


def test_it_follows_torchs_seed_and_leaves_evaluation_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Dropout(0.0))
    dropout.install(model)
    dropout.install(model)  # once is enough
    rows = torch.ones(64, 8)
    one, two, other = [torch.manual_seed(seed) and model(rows) for seed in (1, 1, 2)]
    assert torch.equal(one, two) and not torch.equal(one, other) and (one == 0).any()
    plain = model[0](rows)
    kept = one != 0
    torch.testing.assert_close(one[kept], 2 * plain[kept])
    model.eval()
    assert torch.equal(model(rows), plain)
    copied = copy.deepcopy(model).train()
    assert (copied(rows) == 0).any() and torch.equal(model(rows), plain)  # the copy has a mode of its own


@pytest.mark.parametrize("with_mask", [False, True])
def test_gradients_of_attention_with_dropout(with_mask):
    parts = [torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(2, 1, 1, 5, dtype=torch.float64).masked_fill_(torch.tensor([False] * 4 + [True]), -torch.inf) if with_mask else None

    def attend(q, k, v):
        torch.manual_seed(3)
        return _Attend.apply(q, k, v, mask, 0.5, 2, 0.3)

    assert torch.autograd.gradcheck(attend, parts)
    torch.manual_seed(3)
    stays, factor = dropout.noise(torch.Size([4, 5, 5]), 0.3, torch.float64)
    scores = parts[0] @ parts[1].transpose(1, 2) * 0.5
    scores = scores if mask is None else (scores.view(2, 2, 5, 5) + mask).view(4, 5, 5)
    torch.testing.assert_close(attend(*parts), (scores.softmax(-1) * stays * factor) @ parts[2])
