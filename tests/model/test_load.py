"""Models in and out of folders: nothing missing, nothing silent, nothing of ours left behind."""

from __future__ import annotations

import json
import logging
import pickle
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from unmask.errors import CheckpointError, ConfigError, RunError, TokenizerError
from unmask.model.load import check_fit, load_model, max_positions, position_offset, save_model
from unmask.model.presets import ModelConfig, build_model


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A saved tiny BERT."""
    model = build_model(ModelConfig(preset="tiny", family="bert"), tokenizer, max_length=64, seed=1)
    return save_model(model, tokenizer, tmp_path / "bert", card="# A card")


def logits(model):
    ids = torch.tensor([[2, 5, 4, 6, 3]])
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_saved_folder_loads_in_plain_transformers(tmp_path, tokenizer, family):
    model = build_model(ModelConfig(preset="tiny", family=family), tokenizer, max_length=64, seed=1)
    save_model(model, tokenizer, tmp_path / "out")
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the array").input_ids == tokenizer("the array").input_ids


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_config_says_nothing_of_our_attention(tmp_path, tokenizer, family):
    model = build_model(ModelConfig(preset="tiny", family=family), tokenizer, max_length=64, seed=1, attention="packed")
    assert "unmask" in model.config._attn_implementation  # so that the next lines can fail
    text = (save_model(model, tokenizer, tmp_path / "out") / "config.json").read_text()
    assert "unmask" not in text and "attn_implementation" not in text and str(tmp_path) not in text
    loaded = load_model(tmp_path / "out")
    again = (save_model(loaded, tokenizer, tmp_path / "again") / "config.json").read_text()
    assert json.loads(again) == json.loads(text)


def test_files_of_a_folder(folder):
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"
    }  # fmt: skip
    assert (folder / "README.md").read_text() == "# A card"


def test_a_compiled_model_is_saved_as_itself(tmp_path, tokenizer, folder):
    model = torch.compile(load_model(folder))
    save_model(model, tokenizer, tmp_path / "compiled")
    assert load_file(tmp_path / "compiled" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_every_architecture_comes_in_and_goes_out(tmp_path, architecture, small_model):
    model = small_model(architecture)
    model.save_pretrained(tmp_path / "stock")
    loaded = load_model(tmp_path / "stock")
    assert not loaded.training
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)
    save_model(loaded, None, tmp_path / "ours")
    assert "unmask" not in (tmp_path / "ours" / "config.json").read_text()
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-5)


def test_half_precision_comes_in_as_fp32(tmp_path, small_model):
    small_model("bert").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert AutoConfig.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    model = load_model(tmp_path / "half")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save_model(model, None, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_stock_attention_on_request(folder, attention):
    model = load_model(folder, attention=attention)
    assert model.config._attn_implementation == attention
    torch.testing.assert_close(logits(model), logits(load_model(folder)), rtol=0, atol=1e-5)


def test_attention_that_is_not_there(folder, tmp_path, small_model):
    small_model("deberta-v2").save_pretrained(tmp_path / "deberta")
    with pytest.raises(ConfigError, match="cannot run with attention='sdpa'"):
        load_model(tmp_path / "deberta", attention="sdpa")
    with pytest.raises(ConfigError, match="attention = 'flash'; allowed: packed, sdpa, eager"):
        load_model(folder, attention="flash")


def test_padded_architectures_say_why(tmp_path, small_model, caplog):
    small_model("deberta-v2").save_pretrained(tmp_path / "deberta")
    with caplog.at_level(logging.INFO, logger="unmask"):
        load_model(tmp_path / "deberta")
    assert "does not route its attention" in caplog.text


def drop(folder, key):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(key)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_weights_are_an_error(folder):
    key = "bert.encoder.layer.1.output.dense.weight"
    drop(folder, key)
    with pytest.raises(CheckpointError, match=f"lacks 1 of the weights.*{key}"):
        load_model(folder)


def test_a_body_without_a_head_is_an_error(tmp_path, configurations):
    AutoModel.from_config(configurations["bert"]).save_pretrained(tmp_path / "body")
    with pytest.raises(CheckpointError, match="without its masked-language-model head"):
        load_model(tmp_path / "body")
    AutoModelForSequenceClassification.from_config(configurations["bert"]).save_pretrained(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="without its masked-language-model head"):
        load_model(tmp_path / "classifier")


def test_unused_weights_are_a_warning(folder, caplog):
    tensors = load_file(folder / "model.safetensors")
    tensors["cls.seq_relationship.weight"] = torch.zeros(2, 128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, logger="unmask"):
        load_model(folder)
    assert "1 weights are not used" in caplog.text and "cls.seq_relationship.weight" in caplog.text


def test_weights_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 300}))
    with pytest.raises(CheckpointError, match="of another shape than its config.json says"):
        load_model(folder)


def test_damaged_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot load the model in"):
        load_model(folder)


def as_bin(folder, payload):
    (folder / "model.safetensors").unlink()
    torch.save(payload, folder / "pytorch_model.bin")


def test_an_old_bin_file_is_read(folder):
    want = logits(load_model(folder))
    as_bin(folder, dict(load_file(folder / "model.safetensors")))
    torch.testing.assert_close(logits(load_model(folder)), want, rtol=0, atol=1e-6)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_does_not_run(folder, tmp_path):
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Bomb(str(mark)))).close()
    assert mark.exists()  # it would, if unpickled
    mark.unlink()
    as_bin(folder, {"bert.embeddings.word_embeddings.weight": Bomb(str(mark))})
    with pytest.raises(CheckpointError, match="cannot load the model in"):
        load_model(folder)
    assert not mark.exists()


def test_code_of_a_checkpoint_does_not_run(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModelForMaskedLM": "mine.MyModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="trust_remote_code=True"):
        load_model(folder)
    assert not mark.exists()


def test_folders_that_hold_no_model(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="has no config.json"):
        load_model(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is a file; name the folder"):
        load_model(folder / "config.json")
    with pytest.raises(CheckpointError, match="there is no folder"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a config.json but no weights; expected one of: model.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text("{not json")
    (folder / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="cannot load the model in"):
        load_model(folder)


def test_a_run_folder_points_to_its_model(tmp_path, folder):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"unmask resume {run}"):
        load_model(run)
    shutil.copytree(folder, run / "model")
    with pytest.raises(CheckpointError, match=f"a run keeps its finished model in '{run / 'model'}'"):
        load_model(run)


@pytest.mark.parametrize("model_type", ["gpt2", "t5", "bart"])
def test_models_that_are_no_masked_encoders(tmp_path, model_type):
    from transformers import CONFIG_MAPPING

    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="has no masked-language-model head|not an encoder alone"):
        load_model(tmp_path / "other")


def test_an_unreachable_hub_says_so(tmp_path):
    code = "from unmask.model.load import load_model; load_model('nobody/nothing')"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "unmask.errors.CheckpointError: there is no folder 'nobody/nothing', and it cannot be had from the Hub" in done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.endswith(
        ": HF_HUB_OFFLINE is set, and this machine's cache has no such model; unset it, check the name, or name a local folder"
    )


def test_why_a_model_cannot_be_had_is_said_in_a_line():
    import huggingface_hub.errors

    from unmask.hub import REASONS, why_not

    assert all(issubclass(getattr(huggingface_hub.errors, kind), Exception) for kind in REASONS)
    with pytest.raises(
        CheckpointError, match=r"'bad name!!', and it cannot be had from the Hub: no model there can have that name; name a"
    ):
        load_model("bad name!!")
    said = why_not(OSError("The file is damaged. See https://example.org for what that means."))
    assert said == "The file is damaged; check the name, the network and (for a private model) HF_TOKEN, or name a local folder"


def test_a_server_that_does_not_answer_is_asked_once(tmp_path):
    code = "import unmask, time; from unmask.hub import only_local; t = time.time(); print(only_local(), time.time() - t < 8)"
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "True True\n", done.stderr


def test_loading_and_saving_are_quiet(folder, tokenizer, tmp_path, capfd):
    save_model(load_model(folder), tokenizer, tmp_path / "out")
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_a_full_disk_is_a_run_error(tmp_path, tokenizer, folder):
    model = load_model(folder)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match="could not be written"):
            save_model(model, tokenizer, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_vocabulary_has_to_fit(folder, tokenizer):
    import copy

    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["numpy", "pandas"])
    with pytest.raises(TokenizerError, match=f"{len(tokenizer) + 2} tokens and the model has embeddings for {len(tokenizer)}"):
        load_model(folder, tokenizer=larger)


def test_positions_by_architecture(architecture, small_model, tokenizer):
    model, offset = small_model(architecture), 2 if architecture in ("roberta", "xlm-roberta", "mpnet") else 0
    assert (position_offset(model), max_positions(model)) == (offset, 70 - offset)
    check_fit(model, tokenizer, 70 - offset)
    with pytest.raises(ConfigError, match=f"max_length = 71 is more than the {70 - offset} positions"):
        check_fit(model, tokenizer, 71)


def test_the_roberta_trap_is_explained(small_model, tokenizer):
    with pytest.raises(ConfigError, match=r"max_position_embeddings = 70, but positions of this architecture start at 2: padding_idx \+ 1"):
        check_fit(small_model("roberta"), tokenizer, 70)
