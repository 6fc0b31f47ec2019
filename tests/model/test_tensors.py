"""Our writer of safetensors files: the library's bytes, without keeping other threads from going on."""

import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, modeling_utils

from unmask.model.load import save_model
from unmask.model.tensors import NAMES, write_tensors


@pytest.mark.parametrize("metadata", [None, {"ü": "ø"}])
def test_the_bytes_are_those_of_the_library(tmp_path, metadata):
    tensors = {f"of.{name}": torch.arange(-3, 9).reshape(3, 4).to(dtype) for dtype, name in NAMES.items()}
    tensors |= {
        "turned": torch.randn(4, 6).T,
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "äö": torch.ones(1, requires_grad=True),
    }
    write_tensors(tensors, tmp_path / "ours", metadata)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_tensors({}, tmp_path / "nothing")
    assert load_file(tmp_path / "nothing") == {}


def test_a_model_is_written_as_transformers_writes_it(tmp_path):
    model = BertForMaskedLM(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    save_model(model, None, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (tmp_path / "theirs" / "model.safetensors").read_bytes()
    assert modeling_utils.safe_save_file is save_file  # as it was


def test_other_weights_can_be_written_than_those_it_has(tmp_path):
    model = BertForMaskedLM(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    copies = {id(one): one.detach().clone() for one in model.parameters()}
    before = {name: copies.get(id(one), one) for name, one in model.state_dict(keep_vars=True).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    save_model(model, None, tmp_path, weights=dict(before))
    for name, tensor in BertForMaskedLM.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_other_threads_go_on_while_it_is_written(tmp_path):
    """A pipe takes some thousand bytes, and then waits for this thread to read them."""
    os.mkfifo(tmp_path / "pipe")
    tensors = {"a": torch.randn(1_000_000)}
    thread = threading.Thread(target=write_tensors, args=(tensors, tmp_path / "pipe"), daemon=True)
    thread.start()
    content = (tmp_path / "pipe").read_bytes()
    thread.join()
    (tmp_path / "file").write_bytes(content)
    assert torch.equal(load_file(tmp_path / "file")["a"], tensors["a"])
