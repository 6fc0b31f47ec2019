"""The summed loss: equal to torch's own, its gradient too, however it is cut up."""

import pytest
import torch
from torch.nn import functional as F

from unmask.train import loss
from unmask.train.loss import masked_loss_sum


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(37, 101, generator=generator) * 5, torch.randint(101, (37,), generator=generator)


@pytest.mark.parametrize("chunk", [101, 1_000, 10**9])
def test_loss_and_gradient_are_those_of_cross_entropy(pair, chunk, monkeypatch):
    logits, labels = pair
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", chunk)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = masked_loss_sum(ours, labels)
    (value / 37).backward()
    expected = F.cross_entropy(theirs, labels, reduction="sum")
    (expected / 37).backward()
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_bf16_logits_are_summed_in_fp32(pair):
    logits, labels = pair[0].bfloat16(), pair[1]
    value = masked_loss_sum(logits.requires_grad_(), labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.cross_entropy(logits.float(), labels, reduction="sum"), rtol=1e-6, atol=0)
    value.backward()
    assert logits.grad.dtype == torch.bfloat16


def test_no_labels_give_nothing_and_a_gradient():
    logits = torch.zeros(0, 7, requires_grad=True)
    value = masked_loss_sum(logits, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0 and logits.grad.shape == (0, 7)


def test_a_second_backward_pass_is_refused(pair):
    value = masked_loss_sum(pair[0].clone().requires_grad_(), pair[1])
    value.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        value.backward()


def test_rows_after_the_labelled_ones_count_for_nothing(pair):
    logits, labels = pair[0].clone().requires_grad_(), pair[1]
    more = torch.cat([pair[0], torch.full((3, logits.shape[1]), 7.0, dtype=logits.dtype)]).requires_grad_()
    one, other = masked_loss_sum(logits, labels), masked_loss_sum(more, labels)
    one.backward()
    other.backward()
    assert torch.equal(one, other) and torch.equal(more.grad[: len(labels)], logits.grad) and not more.grad[len(labels) :].any()
