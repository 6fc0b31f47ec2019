"""Held-out numbers: equal to a reference, token-weighted, the same however the text is cut into batches."""

import math

import numpy as np
import pytest
import torch

from unmask.data.frozen import frozen_batches, masks_fingerprint
from unmask.data.masking import MaskingConfig
from unmask.data.tokenizer import special_ids
from unmask.errors import DataError
from unmask.model.load import set_attention
from unmask.train import heldout as module
from unmask.train.heldout import heldout, numbers, sums
from unmask.train.precision import Precision


@pytest.fixture
def batches(store, tokenizer):
    """Return a function: micro_tokens -> frozen batches of the same thirty documents."""

    def make(micro_tokens):
        return frozen_batches(
            store, special_ids(tokenizer), MaskingConfig(mlm_probability=0.15), vocab_size=len(tokenizer), seed=0, max_length=32,
            micro_tokens=micro_tokens, documents=np.arange(30),
        )  # fmt: skip

    return make


def plain(model):
    set_attention(model, "eager")
    return model


def reference(model, batches):
    """Return loss and accuracy from the plain model, one segment at a time, in float64."""
    terms, right, documents = [], [], set()
    model = model.eval().double()
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        for number, document in enumerate(batch.documents.tolist()):
            inside = (batch.label_positions >= bounds[number]) & (batch.label_positions < bounds[number + 1])
            documents |= {document} - {-1}
            if not inside.any():
                continue
            ids = batch.input_ids[:, bounds[number] : bounds[number + 1]]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, batch.label_positions[inside] - bounds[number]]
            terms += (-logits.log_softmax(-1).gather(1, batch.labels[inside, None])).flatten().tolist()
            right += (logits.argmax(-1) == batch.labels[inside]).tolist()
    return math.fsum(terms) / len(terms), sum(right) / len(right), len(terms), len(documents)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_equal_to_the_plain_model(make_model, batches, family):
    model = make_model(family)
    found = heldout(model, batches(128))
    loss, accuracy, terms, documents = reference(plain(make_model(family)), batches(128))
    assert found["masked_loss"] == pytest.approx(loss, abs=1e-5)
    assert found["masked_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert (found["num_masked_tokens"], found["num_documents"]) == (terms, documents) == (terms, 30)
    assert found["masked_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_the_cut_into_batches_changes_nothing(make_model, batches):
    model = make_model()
    found = [heldout(model, batches(size)) for size in (64, 512, 4096)]
    for other in found[1:]:
        assert other["masked_loss"] == pytest.approx(found[0]["masked_loss"], abs=1e-6)
        for name in ("num_masked_tokens", "num_documents", "num_tokens", "masked_accuracy"):
            assert other[name] == found[0][name]


def test_the_mode_of_the_model_and_its_dropout(make_model, batches):
    model = make_model("bert", hidden_dropout_prob=0.5).train()
    assert heldout(model, batches(256)) == heldout(model, batches(256))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bf16_is_near(make_model, batches):
    model = make_model()
    exact, rough = heldout(model, batches(256)), heldout(model, batches(256), Precision("bf16", "cpu"))
    assert rough["masked_loss"] == pytest.approx(exact["masked_loss"], abs=0.02) and rough["masked_loss"] != exact["masked_loss"]
    assert (exact["precision"], rough["precision"]) == ("fp32", "bf16")


def test_sums_in_chunks(monkeypatch):
    logits, labels = torch.randn(50, 7) * 3, torch.randint(7, (50,))
    whole = sums(logits, labels)
    assert whole[0] == pytest.approx(float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")), rel=1e-6)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 20)
    assert sums(logits, labels) == (pytest.approx(whole[0], rel=1e-12), whole[1])


def test_numbers_at_their_ends():
    assert numbers(0.0, 5, 5)["masked_perplexity"] == 1.0
    assert numbers(5000.0, 0, 5)["masked_perplexity"] == math.inf
    assert math.isnan(numbers(math.nan, 0, 5)["masked_perplexity"])
    with pytest.raises(DataError, match=r"no token .* is masked"):
        numbers(0.0, 0, 0)


def test_the_fingerprint_names_the_masks(store, tokenizer):
    def fingerprint(seed=0, view=0):
        options = {"vocab_size": len(tokenizer), "seed": seed, "view": view, "documents": np.arange(9)}
        return masks_fingerprint(store, special_ids(tokenizer), MaskingConfig(), **options)

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(view=1)}) == 3
