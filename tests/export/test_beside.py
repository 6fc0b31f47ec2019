"""A graph whose weights are those of the safetensors file beside it."""

import json

import numpy as np
import pytest

from unmask import Filler
from unmask.data.plain import PlainTokenizer
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import CheckpointError
from unmask.model.load import load_model, save_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def half(request, tiny_bert, tmp_path_factory):
    """A model stored in fp16, whose config.json says that it is to be computed in fp32."""
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    folder, tokenizer = tmp_path_factory.mktemp("half") / request.param, load_tokenizer(tiny_bert)
    model = load_model(tiny_bert)
    if request.param == "modernbert":
        config = ModernBertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            pad_token_id=tokenizer.pad_token_id, cls_token_id=tokenizer.cls_token_id, sep_token_id=tokenizer.sep_token_id,
            bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, max_position_embeddings=64,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = ModernBertForMaskedLM(config)
    save_model(model.to(torch.float16), tokenizer, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}))
    return folder


def test_the_graph_holds_no_weights_and_answers_as_torch_does(half):
    from unmask.export.beside import write_graph
    from unmask.infer.backends.onnx import OnnxBackend

    before = (half / "model.safetensors").read_bytes()
    path = write_graph(half)
    assert (half / "model.safetensors").read_bytes() == before and path.stat().st_size < 20_000 < len(before)
    fast, slow = Filler(OnnxBackend(half), PlainTokenizer.load(half)), Filler.load(half)
    assert slow.engine.model.dtype.itemsize == 4 and fast.engine.precision == "fp32"
    texts = ["The [MASK] calls the judge.", "A ___.", "The nurse helps the [MASK] in the court today. " * 3]
    for one, other in zip(fast.fill(texts, independent=True), slow.fill(texts, independent=True), strict=True):
        for mine, torchs in zip(one.masks, other.masks, strict=True):
            np.testing.assert_allclose([row.score for row in mine], [row.score for row in torchs], atol=1e-6)


def test_weights_in_another_precision_are_refused(tiny_bert, tmp_path):
    import shutil

    from unmask.export.beside import write_graph

    shutil.copytree(tiny_bert, tmp_path / "full")
    with pytest.raises(CheckpointError, match="are not stored in fp16"):
        write_graph(tmp_path / "full")
    assert not (tmp_path / "full" / "model.onnx").exists()
