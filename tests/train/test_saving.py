"""Checkpoints that are written while training goes on: of the step they are named after, one at a time, whole or not at all."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

import unmask
from unmask.errors import RunError
from unmask.train import recipe as recipes
from unmask.train import run as runs
from unmask.train import session
from unmask.train.checkpoint import Checkpoints
from unmask.train.masking_objective import MaskedLanguageModel

TINY = {"preset": "tiny", "family": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 48}
SETTINGS = {
    "model": {**TINY, "hidden_dropout_prob": 0.2}, "max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu",
    "precision": "fp32", "log_steps": 1, "eval_steps": 0, "keep": "last", "schedule": "constant", "warmup_ratio": 0.0, "max_steps": 12,
    "save_steps": 4,
}  # fmt: skip


class Counted(MaskedLanguageModel):
    """Calls `before(n)` as its n-th pass begins: here, a pass a step."""

    passes = 0
    before = staticmethod(lambda number: None)

    def loss_sum(self, model, batch):
        type(self).passes += 1
        self.before(type(self).passes)
        return super().loss_sum(model, batch)


def train(corpus, folder, before=lambda number: None, **settings):
    kind = type("Kind", (Counted,), {"before": staticmethod(before), "passes": 0})
    nested = recipes.nested({**SETTINGS, **settings})
    nested["data"]["sources"] = [str(corpus)]
    return runs.start(recipes.load(settings=nested), folder, kind.make)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """A run of 12 steps, and what it was after the 4th."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(corpus, folder / "12").folder, train(corpus, folder / "4", max_steps=4).folder


@pytest.fixture
def held(monkeypatch):
    """An event that every write of a model waits for, and whether it has come each time."""
    gate, came, save = threading.Event(), [], session.save_model

    def slow(*args, **options):
        came.append(gate.wait(60))
        return save(*args, **options)

    monkeypatch.setattr(session, "save_model", slow)
    return gate, came


def test_training_goes_on_and_what_is_written_is_what_was(undisturbed, held, corpus, tmp_path):
    gate, came = held
    run = train(corpus, tmp_path / "run", lambda number: number == 8 and gate.set(), save_total_limit=9)
    assert came == [True] * 3  # the first came when three more steps were made
    assert names(run.folder) == ["step-00000004", "step-00000008", "step-00000012"]
    first = tmp_path / "run" / "checkpoints" / "step-00000004"
    assert_bit_equal(weights(first), weights(undisturbed[1] / "model"))
    left, right = (load_file(one / "training_state.safetensors") for one in (first, undisturbed[1] / "checkpoints" / "step-00000004"))
    assert_bit_equal(left, right)
    infos = [json.loads((one / "trainer_state.json").read_text()) for one in (first, undisturbed[1] / "checkpoints" / "step-00000004")]
    assert infos[0]["tokens"] == infos[1]["tokens"] and infos[0]["guard"] == infos[1]["guard"] and len(infos[0]["guard"]["losses"]) == 4
    assert_bit_equal(weights(run.model), weights(undisturbed[0] / "model"))


def test_of_saves_in_quick_succession_one_is_on_its_way_at_a_time(undisturbed, corpus, tmp_path, monkeypatch):
    steps, seen, save = [], [], session.save_model

    def slow(model, tokenizer, folder, **options):
        steps.append(folder.name)
        time.sleep(0.03)
        seen.append([name for name in names(tmp_path / "run") if not name.endswith(".partial")])
        assert steps[-1] == folder.name
        return save(model, tokenizer, folder, **options)

    monkeypatch.setattr(session, "save_model", slow)
    run = train(corpus, tmp_path / "run", save_steps=1)
    assert steps == [f"step-{step:08d}.partial" for step in range(1, 13)]
    # those from before are there until the new one is whole
    assert seen == [[f"step-{step:08d}" for step in range(max(1, last - 2), last)] for last in range(1, 13)]
    assert names(run.folder) == ["step-00000011", "step-00000012"]
    assert_bit_equal(weights(run.model), weights(undisturbed[0] / "model"))


def test_sigterm_while_one_is_written(undisturbed, corpus, tmp_path, monkeypatch):
    """It is finished, and so is one of the step in hand."""
    save = session.save_model

    def terminated(*args, **options):
        if threading.current_thread() is not threading.main_thread() and not (tmp_path / "terminated").exists():
            (tmp_path / "terminated").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        return save(*args, **options)

    monkeypatch.setattr(session, "save_model", terminated)
    run = train(corpus, tmp_path / "run", lambda number: time.sleep(0.03 * (number > 4)), save_total_limit=9)
    assert run.interrupted and 4 < run.step < 12
    assert names(run.folder) == ["step-00000004", f"step-{run.step:08d}"]
    assert_bit_equal(weights(unmask.resume(run.folder).model), weights(undisturbed[0] / "model"))


@pytest.mark.parametrize("last", [8, 100_000])
def test_a_disk_that_fills_up_while_one_is_written(undisturbed, corpus, tmp_path, last):
    """At the end of the run, or soon after on its way, it is the error that it always was; files really cannot grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(number):
        if number == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))

    try:
        with pytest.raises(RunError, match=r"step 8 could not be written .*step-00000004', is untouched.*unmask resume") as caught:
            train(corpus, tmp_path / "run", fill, max_steps=last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 1 and names(tmp_path / "run") == ["step-00000004"]
    assert_bit_equal(weights(unmask.resume(tmp_path / "run", max_steps=12).model), weights(undisturbed[0] / "model"))


@pytest.mark.parametrize("error", [RunError, KeyboardInterrupt])
def test_a_folder_that_takes_the_place_of_one_that_was_moved_is_not_touched(corpus, tmp_path, error):
    def move(number):
        if number == 6:
            (tmp_path / "run").rename(tmp_path / "moved")
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "thesis.tex").write_text("years of work")
            if error is KeyboardInterrupt:
                raise error

    with pytest.raises(error):
        train(corpus, tmp_path / "run", move)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    assert unmask.resume(tmp_path / "moved").step == 12


def test_where_the_budget_is_time_measuring_takes_a_part_of_what_there_is_now(corpus, tmp_path):
    """How long an evaluation takes is known from the one before the first step, and of a longer budget it is less."""

    class Slow(MaskedLanguageModel):
        def evaluate(self):
            time.sleep(0.6)
            return super().evaluate()

    def measured():
        events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        return [event["step"] for event in events if event.get("event") == "heldout"]

    kept = {name: value for name, value in SETTINGS.items() if name not in ("eval_steps", "max_steps", "save_steps")}
    made = recipes.load(settings=recipes.nested({**kept, "data.sources": [str(corpus)], "max_minutes": 0.02}))
    run = runs.start(made, tmp_path / "run", Slow.make)
    assert measured() == [0, run.step]
    assert unmask.resume(run.folder, max_minutes=30, max_steps=2 * run.step + 200).step == 2 * run.step + 200
    assert len(measured()) >= 4


KILLED = """
    import sys, time, torch
    from unmask.train.background import Background
    from unmask.train.checkpoint import Checkpoints
    def write(folder):
        (folder / "model.safetensors").write_bytes(bytes(200_000))
    def for_ever(folder):
        write(folder)
        print("half", flush=True)
        time.sleep(600)
    checkpoints, saving = Checkpoints(sys.argv[1], 1), Background()
    saving.start(lambda: checkpoints.save(1, write, {"a": torch.ones(9)}, {}))
    saving.start(lambda: checkpoints.save(2, for_ever, {"a": torch.ones(9)}, {}))
    saving.wait()
"""


def test_a_kill_while_one_is_written_leaves_the_one_before(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.kill()
    process.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.partial"]
    again = Checkpoints(tmp_path, 1)
    assert again.latest().step == 1
    again.save(2, lambda folder: (folder / "config.json").write_text("{}"), {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.fixture(scope="module")
def sharded(together, corpus, tmp_path_factory):
    """A run of 12 steps in two processes, another to its 4th, one that was killed after that, and one resumed in one process."""
    folder, start = tmp_path_factory.mktemp("sharded"), "unmask.train.run:pretrain"
    options = {**SETTINGS, "optimizer": "adamw", "parallel": "fsdp", "data": corpus, "save_total_limit": 9}
    jobs = [(2, start, {**options, "output": folder / name}) for name in ("12", "halves")]
    jobs += [(2, start, {**options, "output": folder / "4", "max_steps": 4})]
    jobs += [(1, ":forget", {"run": folder / "halves", "step": 4}), (2, "unmask.train.run:resume", {"folder": folder / "halves"})]
    jobs += [(3, ":shards", {})]
    said, code = together(*jobs)
    assert not code, said
    return folder


def test_a_checkpoint_of_shards_is_a_folder_that_anybody_loads(sharded):
    model, info = AutoModelForMaskedLM.from_pretrained(sharded / "12" / "checkpoints" / "step-00000004", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.architectures == ["BertForMaskedLM"]
    then = AutoModelForMaskedLM.from_pretrained(sharded / "4" / "model").state_dict()
    assert_bit_equal(model.state_dict(), then)


def test_shards_resume_to_the_bit(sharded):
    assert_bit_equal(weights(sharded / "halves" / "model"), weights(sharded / "12" / "model"))
    last = [load_file(sharded / name / "checkpoints" / "step-00000012" / "training_state.safetensors") for name in ("halves", "12")]
    assert_bit_equal(*last)
