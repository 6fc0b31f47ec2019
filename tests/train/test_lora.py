"""LoRA: what is trained, what is written, how a run goes on, and what is said where it cannot be."""

import builtins
import shutil

import pytest
import torch
from safetensors.torch import load_file

from unmask.errors import ConfigError, MissingExtra
from unmask.train import lora, optim
from unmask.train.lora import LoraConfig
from unmask.train.recipe import load
from unmask.train.run import adapt, pretrain, resume

pytest.importorskip("peft")

SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "log_steps": 1}
TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def base(text_file, tokenizer_folder, tmp_path_factory):
    run = pretrain(
        output=tmp_path_factory.mktemp("b") / "run", data=text_file, tokenizer=tokenizer_folder, model=TINY, max_steps=3, **SMALL
    )
    return run.model


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_merging_changes_nothing_that_the_model_says(make_model, make_loader, family):
    from unmask.model.heads import forward_packed

    model, (batch,) = make_model(family), make_loader().batch(0)
    names = set(model.state_dict())
    lora.inject(model, LoraConfig(r=4), seed=0)
    plain = forward_packed(model.eval(), batch)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    learnt = forward_packed(model, batch)
    twin = lora.merged(model)
    assert set(twin.state_dict()) == names  # nothing of LoRA is left
    torch.testing.assert_close(forward_packed(twin, batch), learnt, rtol=1e-4, atol=1e-4)
    assert (learnt - plain).abs().max() > 0.1
    torch.testing.assert_close(forward_packed(model, batch), learnt, rtol=0, atol=0)  # the one that trains is as it was


def test_the_matrices_alone_are_trained_and_by_adamw(make_model):
    model = make_model()
    lora.inject(model, LoraConfig(r=4), seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all(lora.is_matrix(name) for name in trained)
    groups = optim.group_parameters(model, muon=True)
    assert not groups["muon"] and len(groups["decay"]) == len(trained)
    model = make_model()
    lora.inject(model, LoraConfig(r=2, target_modules=("Wqkv",)), seed=0)
    assert all("Wqkv" in name for name in lora.tensors(model))
    with pytest.raises(ConfigError, match="lora.target_modules = nothing_like_it"):
        lora.inject(make_model(), LoraConfig(r=2, target_modules=("nothing_like_it",)), seed=0)


def test_half_a_run_and_the_other_half_are_the_whole(base, text_file, tmp_path):
    from transformers import AutoModelForMaskedLM

    settings = {"lora": {"r": 4, "lora_dropout": 0.1}, "max_steps": 10, "keep": "last", "eval_steps": 5, **SMALL}
    whole = adapt(base, text_file, output=tmp_path / "whole", save_steps=0, **settings)
    mine = shutil.copytree(base, tmp_path / "mine")
    half = adapt(mine, text_file, output=tmp_path / "half", save_steps=5, **settings)
    shutil.rmtree(half.folder / "checkpoints" / "step-00000010")
    shutil.rmtree(half.model)
    shutil.rmtree(mine)  # a run needs nothing that it started from
    rest = resume(half.folder)
    assert_bit_equal(weights(whole.model), weights(rest.model))
    # every checkpoint is a plain model; what LoRA did not touch is the base's
    _, info = AutoModelForMaskedLM.from_pretrained(half.folder / "checkpoints" / "step-00000005", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before, after = weights(base), weights(whole.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("norm" in name or "embeddings" in name for name in changed)
    assert "**LoRA:** rank 4, alpha 8, merged into the weights" in (whole.model / "README.md").read_text()


def test_words_that_are_added_are_learnt(tiny_bert, sentences_file, tmp_path):
    lines = sentences_file.read_text().splitlines()[:100]
    (tmp_path / "text.txt").write_text("\n".join(f"The osteopath smiles. {line}" for line in lines) + "\n")
    run = adapt(tiny_bert, tmp_path / "text.txt", output=tmp_path / "run", extend_vocab=1, lora={"r": 2}, max_steps=3, **SMALL)
    before, after = weights(run.folder / "base"), weights(run.model)
    (table,) = (name for name in before if name.endswith("word_embeddings.weight"))
    assert len(after[table]) == len(weights(tiny_bert)[table]) + 1
    assert not torch.equal(before[table][-1], after[table][-1])


def test_its_rate_is_its_own_where_none_is_given():
    assert load(base_model="some/model", overrides=["lora.r=8"]).optim.learning_rate == 1e-3
    assert load(base_model="some/model").optim.learning_rate == 1e-4
    assert load(base_model="some/model", overrides=["lora.r=8", "optim.learning_rate=2e-4"]).optim.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [("lora.r=-1", "lora.r = -1"), ("lora.r=1000000000000", "allowed: 0 .no LoRA. or a rank up to 10,000"),
     ("lora.lora_alpha=0", "lora.lora_alpha = 0"), ("lora.lora_dropout=1", "lora.lora_dropout = 1"),
     ("lora.target_modules=[]", "lora.target_modules is empty")],
)  # fmt: skip
def test_values_that_cannot_be_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load(overrides=[override])


def test_without_peft_it_is_said_how_to_get_it(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr("importlib.import_module", lambda name: real("nothing.of.that.name") if name == "peft" else real(name))
    with pytest.raises(MissingExtra, match=r"pip install 'unmask\[lora\]'"):
        lora.check(LoraConfig(r=8), "some/model")
    with pytest.raises(ConfigError, match="LoRA adapts an existing model"):
        lora.check(LoraConfig(r=8), None)
