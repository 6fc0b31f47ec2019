"""A bit that has turned in any file of a run's folder: it is found when the run goes on or its model is loaded, or it changes nothing."""

import json
import shutil

import numpy as np
import pytest
import torch

import unmask
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import CheckpointError, ConfigError, UnmaskError
from unmask.model.load import load_model
from unmask.train.checkpoint import seal

TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}
SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "log_steps": 1}
MADE = ("model", "metrics.json", "report.html")  # at the end of a run, from all the rest
TIMED = ("seconds",)


@pytest.fixture(scope="module")
def whole(text_file, tokenizer_folder, tmp_path_factory):
    """A run from raw text, so that its folder holds the corpus too."""
    folder = tmp_path_factory.mktemp("bits") / "whole"
    unmask.pretrain(output=folder, data=text_file, tokenizer=tokenizer_folder, model=TINY, max_steps=8, eval_steps=4, save_steps=4, **SMALL)
    return folder


@pytest.fixture(scope="module")
def half(whole):
    """The same run, killed after its first checkpoint."""
    folder = whole.with_name("half")
    shutil.copytree(whole, folder)
    for name in MADE:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    return folder


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def spots(folder, number):
    """Return so many places in every file, the same in every run of the tests: (file, byte, bit)."""
    for name in files(folder):
        generator = np.random.default_rng(sum(map(ord, str(name.name))))
        size = (folder / name).stat().st_size
        yield from ((name, int(generator.integers(size)), int(generator.integers(8))) for _ in range(number))


def turned(folder, copy, name, place, bit):
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    data = bytearray((copy / name).read_bytes())
    data[place] ^= 1 << bit
    (copy / name).write_bytes(data)
    return copy


def came_to(run):
    metrics = json.loads((run / "metrics.json").read_text())
    return (run / "model" / "model.safetensors").read_bytes(), {name: value for name, value in metrics.items() if name not in TIMED}


def test_a_run_goes_on_as_if_nothing_were_or_says_what_is_damaged(whole, half, tmp_path):
    expected, said, same = came_to(whole), [], 0
    for name, place, bit in spots(half, 1):
        copy = turned(half, tmp_path / "copy", name, place, bit)
        try:
            unmask.resume(copy)
        except UnmaskError as error:
            said.append(str(error))
        else:
            assert came_to(copy) == expected, f"bit {bit} of byte {place} of {name} was not seen"
            same += 1
    assert same > 3 and len(said) > 3 and all(said)


def test_a_model_says_the_same_or_is_not_loaded(whole, tmp_path):
    def answer(folder):
        tokenizer = load_tokenizer(folder)
        batch = tokenizer("ban der [MASK] fin", return_tensors="pt")
        with torch.no_grad():
            return batch["input_ids"].tolist(), load_model(folder, tokenizer=tokenizer)(**batch).logits.tolist()

    expected, said = answer(whole / "model"), []
    for name, place, bit in spots(whole / "model", 5):
        try:
            assert answer(turned(whole / "model", tmp_path / "copy", name, place, bit)) == expected, (name, place, bit)
        except UnmaskError as error:
            said.append(str(error))
    assert len(said) >= 15 and all("take another copy" in text for text in said)


def test_a_best_checkpoint_that_is_damaged_is_not_passed_over_for_another(whole, tmp_path):
    """The model of a run that has ended stays as it is."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    first, last = (run / "checkpoints" / f"step-0000000{step}" for step in (4, 8))
    info = json.loads((last / "trainer_state.json").read_text())
    best = json.loads((first / "trainer_state.json").read_text())["heldout_loss"]
    info |= {"heldout_loss": best + 1, "session": info["session"] | {"best_loss": best, "best_step": 4}}
    (last / "trainer_state.json").write_text(json.dumps(info))  # as if the last had been worse
    for name in ("manifest.json", "COMPLETE"):
        (last / name).unlink()
    seal(last)
    unmask.resume(run)
    before = (run / "model" / "model.safetensors").read_bytes()
    assert before == (first / "model.safetensors").read_bytes() != (last / "model.safetensors").read_bytes()
    data = bytearray(before)
    data[-9] ^= 1
    (first / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the best checkpoint \(step 4\) is not to be had: .*step-00000004 is damaged"):
        unmask.resume(run)
    assert (run / "model" / "model.safetensors").read_bytes() == before
    unmask.resume(run, keep="last")
    assert (run / "model" / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()


def test_settings_that_are_no_text_any_more_are_damaged_settings(half, tmp_path):
    with pytest.raises(ConfigError, match="is not valid TOML"):
        unmask.resume(turned(half, tmp_path / "copy", "config.toml", 20, 7))
