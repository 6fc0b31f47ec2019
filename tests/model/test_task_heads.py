"""Heads of tasks on packed batches give what the stock classes give padded; new heads follow from a seed, and nothing else is random."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from unmask.data.examples import ExampleLoader, Examples
from unmask.errors import CheckpointError, ConfigError
from unmask.model.attention import enable_packing
from unmask.model.heads import forward_packed, pooling, runs_packed
from unmask.model.load import HEADS, load_model, position_offset, save_model
from unmask.model.new_head import with_new_head

LENGTHS = (31, 5, 64, 17, 33, 5, 2, 48)
PACKED = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert")
ARCHITECTURES = (*PACKED, "eurobert", "deberta-v2", "mpnet")
CASES = [
    *((architecture, "sequence_classification", "cls") for architecture in ARCHITECTURES),
    # the stock classes of the others read the first token, whatever is asked
    *((architecture, "sequence_classification", "mean") for architecture in ("modernbert", "eurobert")),
    *((architecture, "token_classification", "") for architecture in ARCHITECTURES),
    # transformers has no such class of eurobert
    *((architecture, "question_answering", "") for architecture in ARCHITECTURES if architecture != "eurobert"),
]


def make(config, head, pool):
    if pool == "mean":
        config.classifier_pooling = "mean"
    config.num_labels = 2 if head == "question_answering" else 5
    torch.manual_seed(0)
    model = getattr(transformers, HEADS[head][0]).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(6, 96, size=length) for length in LENGTHS]


def packed_batch(model, head):
    made = texts()
    bounds = np.cumsum([0, *LENGTHS])
    places = bounds[:-1] if head == "sequence_classification" else np.arange(bounds[-1])
    examples = Examples(
        input_ids=np.concatenate(made).astype(np.int32), bounds=bounds, example=np.arange(len(made)), label_positions=places,
        labels=np.zeros(len(places), np.int64), names=[str(n) for n in range(len(made))],
    )  # fmt: skip
    loader = ExampleLoader(examples, seed=0, batch_size=8, micro_tokens=9999, position_offset=position_offset(model))
    return loader.pack(np.arange(len(made)))


def plain(model, head):
    """Return what the stock model says of padded rows, as packed rows are."""
    ids = torch.full((len(LENGTHS), max(LENGTHS)), model.config.pad_token_id or 0)
    for row, text in enumerate(texts()):
        ids[row, : len(text)] = torch.from_numpy(text)
    mask = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    output = model(input_ids=ids, attention_mask=mask)
    if head == "sequence_classification":
        return output.logits
    rows = torch.stack((output.start_logits, output.end_logits), -1) if head == "question_answering" else output.logits
    return rows[mask.bool()]


@pytest.mark.parametrize(("architecture", "head", "pool"), CASES)
def test_packed_equals_padded(architecture, configurations, head, pool):
    config = configurations[architecture]
    stock, ours = make(config, head, pool), make(config, head, pool)
    stock.set_attn_implementation("eager")
    enable_packing(ours)
    batch = packed_batch(ours, head)
    assert runs_packed(ours, "cpu") == (architecture in PACKED or (architecture == "eurobert" and head != "sequence_classification"))
    want, got = plain(stock, head), forward_packed(ours, batch)
    scale = max(1.0, float(want.detach().abs().max()))
    assert want.std() > 0.05, "a model that says nothing would prove nothing"
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * scale)
    with torch.no_grad():
        torch.testing.assert_close(forward_packed(ours, batch), want, rtol=0, atol=1e-5 * scale)
    weight = torch.linspace(-1, 1, want.numel()).view_as(want)
    (want * weight).sum().backward()
    (got * weight).sum().backward()
    theirs = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    assert len(theirs) > 10
    for name, grad in theirs.items():
        mine = ours.get_parameter(name).grad
        mine = torch.zeros_like(grad) if mine is None else mine
        torch.testing.assert_close(
            mine, grad, rtol=1e-4, atol=1e-5 * max(1.0, float(grad.abs().max())), msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_pooling_is_left_as_it_was(configurations):
    model = make(configurations["modernbert"], "sequence_classification", "mean")
    enable_packing(model)
    forward_packed(model, packed_batch(model, "sequence_classification"))
    assert model.config.classifier_pooling == "mean" and pooling(model) == "mean"


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("head", ["sequence_classification", "token_classification", "question_answering"])
def test_a_new_head_is_a_function_of_the_seed(architecture, head, configurations, small_model, tmp_path):
    save_model(small_model(architecture), None, tmp_path / "mlm")
    labels = None if head == "question_answering" else ["no", "yes", "maybe"]
    first, again, other = (with_new_head(tmp_path / "mlm", head, labels=labels, seed=seed) for seed in (1, 1, 2))
    body = load_model(tmp_path / "mlm").base_model.state_dict()
    different = set()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        if not torch.equal(tensor, other.state_dict()[name]):
            different.add(name)
    assert different and not any(name.startswith(f"{first.base_model_prefix}.") and ".pooler." not in name for name in different)
    for name, tensor in body.items():
        assert torch.equal(tensor, first.base_model.state_dict()[name])
    save_model(first, None, tmp_path / "task")
    loaded, info = getattr(transformers, HEADS[head][0]).from_pretrained(tmp_path / "task", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    if labels:
        assert loaded.config.id2label == {0: "no", 1: "yes", 2: "maybe"} and loaded.config.label2id["maybe"] == 2
    kept = with_new_head(tmp_path / "task", head, labels=labels, seed=9)  # a head that fits is kept
    assert all(torch.equal(tensor, kept.state_dict()[name]) for name, tensor in first.state_dict().items())
    load_model(tmp_path / "task", head=head)
    with pytest.raises(CheckpointError, match="would be left random"):
        load_model(tmp_path / "mlm", head=head)


def test_a_body_that_lacks_weights_is_refused(small_model, tmp_path):
    from safetensors.torch import load_file, save_file

    save_model(small_model("bert"), None, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of the weights of its body, bert.encoder.layer.1.output.dense.weight"):
        with_new_head(tmp_path, "sequence_classification", labels=["a", "b"], seed=0)


def test_a_pooling_that_the_stock_class_cannot_do_is_refused(small_model, tmp_path):
    save_model(small_model("bert"), None, tmp_path)
    with pytest.raises(ConfigError, match="pooling = 'mean': the stock class of bert cannot do it.*allowed: cls"):
        with_new_head(tmp_path, "sequence_classification", labels=["a", "b"], seed=0, settings={"classifier_pooling": "mean"})
    model = with_new_head(tmp_path, "sequence_classification", labels=["a", "b"], seed=0, settings={"classifier_pooling": "cls"})
    save_model(model, None, tmp_path / "out")
    assert "classifier_pooling" not in json.loads((tmp_path / "out" / "config.json").read_text())
