"""Masked copies of texts: what is shared in the first layer and left out of the last changes no number."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import pytest
import torch

from unmask.model.attention import Segments
from unmask.model.heads import forward_packed
from unmask.model.sharing import _PROJECTIONS
from unmask.model.tail import layers_of

from .test_parity import documents, pack, pair, plain

MASK = 4
SHARED = ("bert", "roberta", "xlm-roberta", "electra", "modernbert")


def copies(lengths):
    """Return every text with each of its tokens masked in turn, and where."""
    made = [(text, place) for text in documents(lengths) for place in range(len(text))]
    return [np.where(np.arange(len(text)) == place, MASK, text) for text, place in made], [[place] for _, place in made]


def projected(model):
    """Return a list that gets the number of tokens which the projections of the first and the last layer are given."""
    layers, seen = layers_of(model), []
    for number in (0, -1):
        for name in _PROJECTIONS[type(layers[number]).__name__]:
            where = (number, name.rpartition(".")[2])
            attrgetter(name)(layers[number]).register_forward_pre_hook(
                lambda module, args, where=where: seen.append((*where, args[0].reshape(-1, args[0].shape[-1]).shape[0]))
            )
    return seen


def test_masked_copies_equal_the_plain_model(small_model, architecture):
    stock, ours = pair(small_model, architecture)
    texts, places = copies((12, 12, 7, 1, 9))
    with torch.no_grad():
        torch.testing.assert_close(forward_packed(ours, pack(ours, texts, places)), plain(stock, texts, places), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SHARED)
def test_little_is_projected(small_model, name):
    _, ours = pair(small_model, name)
    texts, places = copies((12, 12, 7))
    tokens, kinds = sum(map(len, texts)), 2 * (12 + 12 + 7)
    seen = projected(ours)
    with torch.no_grad():
        forward_packed(ours, pack(ours, texts, places))
    first = [count for layer, _, count in seen if layer == 0]
    # the hook of this test was there first and sees all tokens; the product after it gets the kinds
    assert set(first) == {tokens}
    output = []
    layer = layers_of(ours)[0]
    projection = attrgetter(_PROJECTIONS[type(layer).__name__][0])(layer)
    plain_forward = projection.forward
    projection.forward = lambda x: (output.append(x.shape[1]), plain_forward(x))[1]
    seen.clear()
    with torch.no_grad():
        forward_packed(ours, pack(ours, texts, places))
    assert len(output) == 1 and 12 + 12 + 7 < output[0] <= kinds < tokens / 2
    last = {where: count for number, where, count in seen if number == -1}
    if name != "modernbert":  # whose rotation stands between the projection and the product
        assert last == {"query": len(texts)}


@pytest.mark.parametrize("name", SHARED)
def test_with_gradients_or_other_texts_nothing_is_shared(small_model, name):
    _, ours = pair(small_model, name)
    layer = layers_of(ours)[0]
    projection, output = attrgetter(_PROJECTIONS[type(layer).__name__][0])(layer), []
    plain_forward = projection.forward
    projection.forward = lambda x: (output.append(x.shape[1]), plain_forward(x))[1]
    texts, places = copies((9, 6))
    batch = pack(ours, texts, places)
    forward_packed(ours, batch).sum().backward()
    assert all(parameter.grad is not None for parameter in layers_of(ours).parameters())
    with torch.no_grad():
        forward_packed(ours, pack(ours, documents()))
    assert output == [batch.num_tokens, sum(map(len, documents()))]


def test_lone_rows():
    bounds = torch.tensor([0, 3, 6, 10, 14, 15], dtype=torch.int32)

    def lone(*rows):
        found = Segments(bounds, 4, torch.tensor(rows)).lone_rows()
        return found and [one.tolist() for one in found]

    assert lone(0, 5, 6, 13, 14) == [[0, 5, 6, 13, 14], [0, 1, 2, 3, 4]]
    assert lone(5, 13) == [[0, 5, 6, 13, 14], [1, 3]]
    assert lone(0, 1, 6) is None and lone(6, 0) is None and Segments(bounds, 4).lone_rows() is None
