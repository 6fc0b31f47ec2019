"""An exported model answers as the stock model does: every architecture, every head, whatever is asked for."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from unmask.data.tokenizer import train_tokenizer
from unmask.errors import CheckpointError
from unmask.export import onnx as module
from unmask.export.graph import Graph
from unmask.export.onnx import export_model
from unmask.infer.backends import open_export
from unmask.infer.engine import Engine, Request

V, LIMIT = 90, 56
HEADS = {
    "mlm": "AutoModelForMaskedLM",
    "texts": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "answers": "AutoModelForQuestionAnswering",
}


def configuration(family, **more):
    import transformers as hf

    dials = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, **more}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    return {
        "bert": lambda: hf.BertConfig(**dials, max_position_embeddings=LIMIT),
        "roberta": lambda: hf.RobertaConfig(**dials, max_position_embeddings=LIMIT + 2, pad_token_id=1),
        "xlm-roberta": lambda: hf.XLMRobertaConfig(**dials, max_position_embeddings=LIMIT + 2, pad_token_id=1, hidden_act="gelu_new"),
        "camembert": lambda: hf.CamembertConfig(**dials, max_position_embeddings=LIMIT + 2, pad_token_id=1),
        "distilbert": lambda: hf.DistilBertConfig(
            vocab_size=V, dim=32, n_layers=3, n_heads=2, hidden_dim=48, max_position_embeddings=LIMIT
        ),
        "electra": lambda: hf.ElectraConfig(**dials, embedding_size=24, max_position_embeddings=LIMIT),
        "albert": lambda: hf.AlbertConfig(
            **{**dials, "num_hidden_layers": 4}, embedding_size=16, num_hidden_groups=2, max_position_embeddings=LIMIT
        ),
        "modernbert": lambda: hf.ModernBertConfig(**dials, **ends, max_position_embeddings=LIMIT, local_attention=8),
        # its last layer sees a window, its head the mean of a text
        "modernbert-mean": lambda: hf.ModernBertConfig(
            **dials, **ends, max_position_embeddings=LIMIT, local_attention=8, classifier_pooling="mean",
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        ),
        "deberta-v2": lambda: hf.DebertaV2Config(**dials, max_position_embeddings=LIMIT),
    }[family]()  # fmt: skip


def make_model(family, head="mlm", **more):
    """A stock model whose weights are large enough to tell tokens and places apart."""
    import torch
    import transformers

    config = configuration(family, **more)
    config.num_labels = 2 if head == "answers" else 5
    torch.manual_seed(0)
    model = getattr(transformers, HEADS[head]).from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) / 9)
    return model


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat again, and again"], kind="wordpiece", vocab_size=60)


@pytest.fixture(scope="session")
def texts():
    """Token ids of texts of several lengths."""
    generator = np.random.default_rng(0)
    return [generator.integers(5, V, length) for length in (17, 3, 49, 24, 8, 17)]


def padded(texts, pad, *, left=False):
    """Return ids, mask and the types of two sentences, (B, L), and where each text begins."""
    width = max(map(len, texts))
    ids = np.full((len(texts), width), pad)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    starts = [width - len(text) if left else 0 for text in texts]
    for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
        ids[row, start : start + len(text)], mask[row, start : start + len(text)] = text, 1
        types[row, start + len(text) // 2 : start + len(text)] = 1
    return ids, mask, types, starts


FAMILIES = ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "albert", "modernbert", "modernbert-mean"]


def stock(model, texts):
    """Return for each text what the stock model says, padded: (L, C), or (1, C) of a whole text."""
    ids, mask, types, _ = padded(texts, model.config.pad_token_id or 0)
    typed = {"token_type_ids": torch.from_numpy(types)} if has_types(model) else {}
    with torch.no_grad():
        output = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **typed)
    if "start_logits" in output:
        return torch.stack((output["start_logits"], output["end_logits"]), -1).numpy()
    return (output["logits"] if output["logits"].ndim == 3 else output["logits"][:, None]).numpy()


def has_types(model):
    return getattr(model.config, "type_vocab_size", 1) > 1


def ask(model, texts, head, places):
    types = padded(texts, 0)[2]
    return [
        Request(text, [0] if head == "texts" else place, token_type_ids=types[row, : len(text)] if has_types(model) else None)
        for row, (text, place) in enumerate(zip(texts, places, strict=True))
    ]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_stock_model(family, head, tokenizer, texts, tmp_path):
    model = make_model(family, head)
    export_model(model, tokenizer, tmp_path)
    backend, _ = open_export(tmp_path)
    expected, generator = stock(model, texts), np.random.default_rng(1)
    assert expected.std() > 0.05, "a model that says nothing would prove nothing"
    for count in (1, 4, None):  # one label a text, a few in no order, all
        places = [generator.permutation(len(text))[:count] for text in texts]
        for max_tokens in (60, 10_000):
            found = Engine(backend, max_tokens=max_tokens).logits(ask(model, texts, head, places))
            for row, (place, logits) in enumerate(zip(places, found, strict=True)):
                want = expected[row][[0] if head == "texts" else place]
                np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_runs_as_a_plain_file(family, tokenizer, texts, tmp_path):
    """With ONNX Runtime alone: padded on either side, labels in any order, twice, and not of every text."""
    import onnxruntime

    model = make_model(family)
    export_model(model, tokenizer, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    expected = stock(model, texts)
    for left in (False, True):
        ids, mask, types, starts = padded(texts, 0, left=left)
        asked = [(4, 1), (0, 9), (2, 48), (0, 0), (2, 3), (0, 9)]
        labels = np.array([row * ids.shape[1] + starts[row] + place for row, place in asked])
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "label_positions": labels}
        (logits,) = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
        want = np.stack([expected[row, place] for row, place in asked])
        np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_the_file_says_what_it_is_and_holds_shared_weights_once(tokenizer, tmp_path):
    export_model(make_model("bert"), tokenizer, tmp_path)
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} == {file.name for file in tmp_path.iterdir()}
    model = onnx.load(tmp_path / "model.onnx")
    assert [tuple(one.dims) for one in model.graph.initializer].count((V, 32)) == 1
    dims = [[dim.dim_param for dim in one.type.tensor_type.shape.dim] for one in model.graph.input]
    assert dims == [*[["batch", "length"]] * 3, ["labels"]]
    info = json.loads({one.key: one.value for one in model.metadata_props}["unmask"])
    assert info["head"] == "ForMaskedLM" and info["max_length"] == LIMIT and info["precision"] == "fp32"


def test_layers_that_are_shared_are_written_once(tokenizer, tmp_path):
    size = {}
    for layers in (2, 8):
        export_model(make_model("albert", num_hidden_layers=layers), tokenizer, tmp_path / str(layers))
        size[layers] = (tmp_path / str(layers) / "model.onnx").stat().st_size
        assert json.loads((tmp_path / str(layers) / "config.json").read_text())["num_hidden_layers"] == 4
    assert size[2] == size[8]


def test_many_weights_lie_beside_the_file(tokenizer, texts, tmp_path, monkeypatch):
    model = make_model("bert")
    export_model(model, tokenizer, tmp_path / "whole")
    monkeypatch.setattr(module, "LARGEST_BYTES", 1000)
    export_model(model, tokenizer, tmp_path / "apart")
    assert (tmp_path / "apart" / "model.onnx.data").stat().st_size > 4 * (tmp_path / "apart" / "model.onnx").stat().st_size / 4
    requests = [Request(text, [1]) for text in texts]
    one, other = (list(Engine(open_export(tmp_path / name)[0]).logits(requests)) for name in ("whole", "apart"))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert"])
def test_int8_is_near_and_small(family, tokenizer, texts, tmp_path):
    model = make_model(family, hidden_size=64, intermediate_size=128, vocab_size=500)
    made = {int8: export_model(model, tokenizer, tmp_path / str(int8), int8=int8) for int8 in (False, True)}
    requests = [Request(text, range(len(text))) for text in texts]
    exact, rough = (np.concatenate(list(Engine(open_export(made[int8])[0]).logits(requests))) for int8 in (False, True))
    assert 0 < np.abs(exact - rough).max() < 0.25 * np.abs(exact).max()
    assert np.corrcoef(exact.ravel(), rough.ravel())[0, 1] > 0.98
    small, large = ((made[int8] / "model.onnx").stat().st_size for int8 in (True, False))
    assert small < 0.5 * large
    assert open_export(made[True])[0].precision == "int8"


def test_eight_bits_are_off_by_half_a_step_at_most():
    graph = Graph(int8=True)
    weight = torch.randn(7, 30) * torch.arange(7)[:, None]  # the first row is nothing at all
    name, scale = graph.quantized(weight)
    assert (name, scale) == graph.quantized(weight) and graph.weights[name].dtype == np.int8
    off = np.abs(graph.weights[name] * graph.weights[scale][:, None] - weight.numpy())
    assert (off <= graph.weights[scale][:, None] * 0.50001).all()


def test_what_cannot_be_exported_is_said(tokenizer, tmp_path):
    from transformers import BertForNextSentencePrediction

    with pytest.raises(CheckpointError, match=r"the architecture 'deberta-v2' cannot be exported; allowed: bert, roberta"):
        export_model(make_model("deberta-v2"), tokenizer, tmp_path)
    with pytest.raises(CheckpointError, match=r"BertForNextSentencePrediction has a head that cannot be exported.*ForMaskedLM"):
        export_model(BertForNextSentencePrediction(configuration("bert")), tokenizer, tmp_path)
    with pytest.raises(CheckpointError, match=r"kind Mish.* cannot be exported; allowed: Linear.*ReLU"):
        export_model(make_model("bert", hidden_act="mish"), tokenizer, tmp_path)
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    scaled = make_model("modernbert", rope_parameters={"full_attention": rope, "sliding_attention": rope})
    with pytest.raises(CheckpointError, match=r"rotary positions of the kind \['linear'\] cannot be exported; allowed: default"):
        export_model(scaled, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
