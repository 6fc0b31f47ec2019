"""Steps that go wrong in whole runs: the batch is left out and named; weights that are wrong are taken from the last good checkpoint."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.errors import CheckpointError, RunError
from unmask.train import recipe as recipes
from unmask.train import run as runs
from unmask.train.guard import ENOUGH, PATIENCE, Diverged
from unmask.train.masking_objective import MaskedLanguageModel

TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}
SETTINGS = {
    "model": TINY, "max_length": 32, "batch_tokens": 256, "device": "cpu", "precision": "fp32", "log_steps": 1, "schedule": "constant",
    "warmup_ratio": 0.0, "learning_rate": 3e-3, "keep": "last",
}  # fmt: skip


@pytest.fixture(scope="module")
def words(tokenizer):
    return tokenizer.convert_ids_to_tokens(list(range(5, 96)))


@pytest.fixture(scope="module")
def corpus(tokenizer, words, tmp_path_factory):
    """A hundred documents of two words, which are soon known by heart, and one of all the others."""
    folder = tmp_path_factory.mktemp("even")
    lengths = np.random.default_rng(0).integers(10, 30, 100)
    lines = [" ".join([words[3], words[8]] * (length // 2)) for length in lengths]
    lines[40] = " ".join(words[20:50])
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    unmask.pack(folder / "corpus.txt", folder / "packed", tokenizer=tokenizer, held_out=0.0, dedup="none")
    return folder / "packed"


def records(folder, event):
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == event]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def guarded(corpus, tmp_path_factory):
    return unmask.pretrain(output=tmp_path_factory.mktemp("runs") / "guarded", data=corpus, max_steps=70, save_steps=0, **SETTINGS).folder


def test_a_batch_whose_loss_leaps_is_left_out_with_its_documents_and_texts(guarded, words):
    skipped = records(guarded, "skipped")
    assert skipped and all(ENOUGH < record["step"] <= 70 for record in skipped)
    for record in skipped:
        assert "times their spread above the last" in record["reason"] and float(record["loss"]) > 0
        text = dict(zip(record["documents"], record["texts"], strict=True))["corpus.txt:41"]
        assert text.startswith(" ".join(words[20:25])) and len(record["documents"]) > 3
    steps = [line["step"] for line in map(json.loads, (guarded / "log.jsonl").read_text().splitlines()) if "event" not in line]
    assert sorted(steps + [record["step"] for record in skipped]) == list(range(1, 71))


def test_a_run_that_is_resumed_judges_as_if_it_had_never_ended(guarded, corpus, tmp_path):
    run = unmask.pretrain(output=tmp_path / "run", data=corpus, max_steps=41, save_steps=0, **SETTINGS)
    unmask.resume(run.folder, max_steps=70)
    assert_bit_equal(weights(run.folder), weights(guarded))
    assert [record["step"] for record in records(run.folder, "skipped")] == [record["step"] for record in records(guarded, "skipped")]


def test_nothing_is_judged_where_it_is_turned_off(guarded, corpus, tmp_path):
    run = unmask.pretrain(output=tmp_path / "run", data=corpus, max_steps=70, save_steps=0, spike_score=0, **SETTINGS)
    assert not records(run.folder, "skipped")
    assert any(not torch.equal(one, weights(guarded)[name]) for name, one in weights(run.folder).items())


class Spoilt(MaskedLanguageModel):
    """Its weights go wrong in memory at some steps, as a bit of a chip may turn: those of the head, while a batch is on its way."""

    at: tuple[int, ...] = ()
    spoilt = 0

    def loss_sum(self, model, batch):
        type(self).calls += 1
        if type(self).calls in self.at:
            type(self).spoilt += 1
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.full_like(parameter, 3.0).mul_(torch.arange(parameter.numel()).reshape(parameter.shape) % 7 - 3))
        return super().loss_sum(model, batch)


def spoilt(at, corpus, folder, **settings):
    """Run with weights that go wrong in the passes `at`, a pass a step."""
    kind = type("Kind", (Spoilt,), {"at": at, "calls": 0})
    nested = recipes.nested({**SETTINGS, "spike_score": 10.0, "save_steps": 10, **settings})
    nested["data"]["sources"] = [str(corpus)]
    return kind, lambda: runs.start(recipes.load(settings=nested), folder, kind.make)


@pytest.fixture(scope="module")
def went_back(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "back"
    kind, run = spoilt((45,), corpus, folder, max_steps=60)
    run()
    assert kind.spoilt == 1
    return folder


def test_weights_that_went_wrong_are_those_of_the_last_good_checkpoint(went_back, guarded):
    (record,) = records(went_back, "rollback")
    first = record["left_out"][1]  # the first bad step; the one before changed the weights last
    assert record["step"] == 40 < first <= 45 and len(record["left_out"]) == PATIENCE + 1 and "3 steps in a row" in record["reason"]
    known = [one for one in records(went_back, "skipped") if one["step"] in record["left_out"]]
    assert [one["step"] for one in known] == record["left_out"] and all("does without its batch" in one["reason"] for one in known)
    assert all(one["documents"] and one["texts"] for one in known)
    losses = [line["loss"] for line in map(json.loads, (went_back / "log.jsonl").read_text().splitlines()) if "event" not in line]
    assert max(losses[-10:]) < 2 and json.loads((went_back / "metrics.json").read_text())["step"] == 60
    assert any(not torch.equal(one, weights(guarded)[name]) for name, one in weights(went_back).items())


def test_a_run_that_went_back_is_resumed_to_the_bit(went_back, corpus, tmp_path):
    """Ended at step 52, after it had gone back, and gone on with by a process that nothing goes wrong in."""
    folder = tmp_path / "run"
    spoilt((45,), corpus, folder, max_steps=52)[1]()
    unmask.resume(folder, max_steps=60)
    assert_bit_equal(weights(folder), weights(went_back))


@pytest.fixture(scope="module")
def in_two(together, corpus, tmp_path_factory):
    """Runs of two processes in one of which weights go wrong: copies of the model, and parts of it."""
    folder = tmp_path_factory.mktemp("two")
    settings = {**SETTINGS, "optimizer": "adamw", "save_steps": 10, "max_steps": 60, "corpus": corpus, "at": 45}
    said, code = together(*[(2, ":spoilt", {**settings, "parallel": name, "output": folder / name}) for name in ("ddp", "fsdp")])
    assert not code, said
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_processes_go_back_together(in_two, words, parallel):
    run = in_two / parallel
    (record,) = records(run, "rollback")
    assert record["step"] == 40 and len(record["left_out"]) == PATIENCE + 1 and 45 in record["left_out"]
    skipped = records(run, "skipped")
    assert [one["step"] for one in skipped if "does without its batch" in one["reason"]] == record["left_out"]
    assert all(len(set(one["documents"])) == len(one["texts"]) > 5 for one in skipped)  # those of both processes
    losses = [line["loss"] for line in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "event" not in line]
    assert max(losses[-10:]) < 2 and json.loads((run / "metrics.json").read_text())["step"] == 60


def test_a_run_ends_where_it_comes_again(corpus, tmp_path):
    _, run = spoilt((45, 52), corpus, tmp_path / "run", max_steps=80)
    again = r"3 steps in a row.*\n.*had gone back before, and left out steps \d+ to \d+, and here it is again"
    with pytest.raises(Diverged, match=again):
        run()
    (record,) = records(tmp_path / "run", "rollback")
    assert unmask.resume(tmp_path / "run").step == 80 and record["step"] == 40  # the last good state was kept


def test_a_run_without_a_checkpoint_from_before_ends(corpus, tmp_path):
    _, run = spoilt((40,), corpus, tmp_path / "run", max_steps=80, save_steps=0)
    with pytest.raises(RunError, match="3 steps in a row"):
        run()
    assert not records(tmp_path / "run", "rollback")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_checkpoints_that_are_all_damaged_are_no_beginning(corpus, tmp_path):
    run = unmask.pretrain(output=tmp_path / "run", data=corpus, max_steps=4, save_steps=2, **SETTINGS)
    for folder in (run.folder / "checkpoints").iterdir():
        flip(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* is whole; bring back one of them, or remove the folder"):
        unmask.resume(run.folder, max_steps=6)
    shutil.rmtree(run.folder / "checkpoints")
    assert unmask.resume(run.folder, max_steps=6).step == 6


def test_a_folder_that_has_vanished_is_not_made_again(corpus, tmp_path):
    """What an unmounted disk looks like: another folder, or none, where the run's was."""
    folder, elsewhere = tmp_path / "disk" / "run", tmp_path / "elsewhere"

    def vanish():
        while not list(folder.glob("checkpoints/step-????????")):
            time.sleep(0.01)
        (tmp_path / "disk").rename(elsewhere)
        (tmp_path / "disk").mkdir()

    thread = threading.Thread(target=vanish)
    thread.start()
    # the second where it vanishes in the middle of a save
    gone = r"(run' is no longer the folder that the run goes on in|could not be written to '.*checkpoints').*unmask resume"
    with pytest.raises(RunError, match=gone):
        unmask.pretrain(output=folder, data=corpus, max_steps=100_000, save_steps=1, **SETTINGS)
    thread.join()
    assert not list((tmp_path / "disk").iterdir())
    step = max(int(path.name[5:]) for path in (elsewhere / "run" / "checkpoints").glob("step-????????"))
    assert unmask.resume(elsewhere / "run", max_steps=step + 2).step == step + 2


def test_a_run_that_was_killed_as_it_began_can_be_begun_again(corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml.partial").write_text("base_mod")  # in the middle of its first write
    assert unmask.pretrain(output=tmp_path / "run", data=corpus, max_steps=1, **SETTINGS).step == 1
    assert not (tmp_path / "run" / "config.toml.partial").exists()
