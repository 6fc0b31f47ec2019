"""Several processes (gloo, forks of one): the data, losses, gradients and checkpoints of one; nobody waits for ever."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unmask.train.distributed import World

PLACES = ["hospital", "court", "school", "harbour", "market", "station", "garden", "library", "kitchen", "office", "village", "tower"]
WORLDS = Path(__file__).with_name("worlds.py")
TINY = {"preset": "tiny", "family": "bert", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
# AdamW with a large eps: where the gradient is next to nothing, Muon and a small eps would magnify the rounding
SETTINGS = {
    "model": TINY, "max_length": 32, "batch_tokens": 512, "micro_tokens": 128, "held_out": 0.1, "device": "cpu", "precision": "fp32",
    "log_steps": 1, "max_steps": 8, "save_steps": 4, "save_total_limit": 9, "eval_steps": 4, "keep": "last",
    "optimizer": "adamw", "eps": 1e-3, "schedule": "constant", "warmup_ratio": 0.0,
}  # fmt: skip
DROPOUT = {**SETTINGS, "model": {**TINY, "hidden_dropout_prob": 0.2}, "max_steps": 40, "save_steps": 8, "eval_steps": 20}
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def together(*jobs):
    """Run (size, function, options) one after another in that many processes each; return what the processes printed, and the exit code."""
    named = [{"size": size, "call": call, "options": options} for size, call, options in jobs]
    text = json.dumps(named, default=str)
    done = subprocess.run([sys.executable, WORLDS, text], capture_output=True, text=True, env=ENVIRONMENT, timeout=900)
    return done.stderr, done.returncode


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """The folder of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    train, resume, forget = "unmask.train.run:pretrain", "unmask.train.run:resume", ":forget"
    jobs = [(size, train, {**SETTINGS, "data": corpus, "output": folder / str(size)}) for size in (1, 2, 4)]
    jobs += [(2, train, {**DROPOUT, "data": corpus, "output": folder / name}) for name in ("whole", "halves")]
    jobs += [(1, forget, {"run": folder / "halves", "step": 16}), (2, resume, {"folder": folder / "halves"})]
    sharded = {"parallel": "fsdp"}
    jobs += [(2, train, {**SETTINGS, **sharded, "data": corpus, "output": folder / "sharded"})]
    for name, first, then, before, after in (
        ("1-2", 1, 2, {}, {}),
        ("2-1", 2, 1, {}, {}),
        ("1-s", 1, 2, {}, sharded),
        ("s-1", 2, 1, sharded, {}),
    ):
        run = folder / name
        jobs += [(first, train, {**SETTINGS, **before, "data": corpus, "output": run}), (1, forget, {"run": run, "step": 4})]
        jobs += [(then, resume, {"folder": run, **after})]
    said, code = together(*jobs)
    assert not code, said
    return folder


def records(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def steps(run):
    return [record for record in records(run) if "event" not in record]


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_close(left, right, tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("other", ["2", "4", "1-2", "2-1", "sharded", "1-s", "s-1"])
def test_the_number_of_processes_changes_nothing(runs, other):
    """One process with 4 micro-batches a step is 4 with one each; so are 2 with half of the model each, and a change half-way."""
    one, many = steps(runs / "1"), steps(runs / other)
    assert [line["step"] for line in many] == list(range(1, 9))
    for name in ("tokens", "num_masked_tokens", "learning_rate"):
        assert [line[name] for line in one] == [line[name] for line in many], name
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in many] == pytest.approx([line[name] for line in one], rel=1e-5), name
    assert_close(weights(runs / "1"), weights(runs / other), 2e-6)
    metrics = [json.loads((runs / name / "metrics.json").read_text()) for name in ("1", other)]
    assert metrics[0]["num_masked_tokens"] == metrics[1]["num_masked_tokens"] and metrics[0]["num_documents"] == metrics[1]["num_documents"]
    assert metrics[1]["masked_loss"] == pytest.approx(metrics[0]["masked_loss"], rel=1e-5)


def test_the_same_number_resumes_to_the_bit(runs):
    """Dropout is on: every process goes on with its own random numbers."""
    assert_close(weights(runs / "whole"), weights(runs / "halves"), 0.0)
    assert [line["loss"] for line in steps(runs / "whole")] == [line["loss"] for line in steps(runs / "halves")]


def test_one_log_for_all(runs):
    line = steps(runs / "2")[-1]
    assert line["num_processes"] == 2 and line["tokens_per_second_per_process"] == pytest.approx(line["tokens_per_second"] / 2, abs=0.1)
    assert 0 <= line["communication_share"] <= 1 and 0 <= line["wait_share"] <= 1 and line["peak_memory_bytes"] > 10**7
    assert [r["event"] for r in records(runs / "2") if "event" in r].count("start") == 1
    assert "num_processes" not in steps(runs / "1")[-1]


@pytest.fixture(scope="module")
def gradients(store, tokenizer_folder, tmp_path_factory):
    """Gradients of two steps, by case and number of processes."""
    folder = tmp_path_factory.mktemp("gradients")
    cases = ("plain", "empty", "unused", "forward", "backward")
    options = {"store": store.folder, "tokenizer": tokenizer_folder}
    jobs = [(2, ":gradients", {**options, "case": case, "output": folder / case}) for case in cases]
    jobs += [(1, ":gradients", {**options, "case": "plain", "output": folder / "alone"})]
    jobs += [(2, ":gradients", {**options, "case": "plain", "output": folder / "bf16", "compression": "bf16"})]
    said, code = together(*jobs)
    assert not code, said
    return {path.name: load_file(path) for path in folder.iterdir()}


@pytest.mark.parametrize("case", ["plain.0", "plain.1", "empty.0", "unused.0", "forward.0", "backward.0"])
def test_gradients_are_those_of_the_whole_step(gradients, case):
    """Also where one process has no part in a step, a weight has none, or memory runs out in one (before, or amid the pass back)."""
    found = dict(gradients[case])
    assert int(found.pop("halvings")) == (1 if case in ("forward.0", "backward.0") else 0)
    unused = {name: found.pop(name) for name in list(found) if name.startswith("unused")}
    assert len(unused) == (2 if case == "unused.0" else 0) and not any(grad.any() for grad in unused.values())
    alone = dict(gradients["alone.0"])
    alone.pop("halvings")
    assert_close(alone, found, 1e-6)


def test_every_process_ends_with_the_same_gradients(gradients):
    assert_close(gradients["plain.0"], gradients["plain.1"], 0.0)
    assert_close(gradients["bf16.0"], gradients["bf16.1"], 0.0)


def test_gradients_sent_as_bf16_are_about_the_same(gradients):
    apart = max(
        float((gradients["bf16.0"][name] - one).abs().max() / one.abs().max().clamp(min=1e-9)) for name, one in gradients["alone.0"].items()
    )
    assert 1e-5 < apart < 0.02


def test_muon_shared_out_is_muon(tokenizer_folder):
    said, code = together((3, ":muon", {"tokenizer": tokenizer_folder}))
    assert not code, said


def test_fine_tuning_in_two_processes_is_as_in_one(tiny_bert, tmp_path):
    """The last step of an epoch has one example: one process has no part in it."""
    rows = [{"text": f"The nurse {verb} the doctor in the {place}.", "label": verb} for verb in ("helps", "warns") for place in PLACES]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:17]))
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    # of dropout each process has random numbers of its own
    (model / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    options = {
        "task": "classify", "model": model, "train": data, "dev": data, "device": "cpu", "precision": "fp32", "batch_size": 8,
        "num_epochs": 2, "log_steps": 1, "eps": 1e-3, "learning_rate": 1e-2,
    }  # fmt: skip
    said, code = together(*[(size, "unmask:finetune", {**options, "output": tmp_path / str(size)}) for size in (1, 2)])
    assert not code, said
    one, two = (steps(tmp_path / name) for name in ("1", "2"))
    assert [line["num_examples"] for line in one] == [line["num_examples"] for line in two] == [8, 8, 1, 8, 8, 1]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("1", "2")]
    assert metrics[0]["macro_f1"] == metrics[1]["macro_f1"] and (tmp_path / "2" / "report.html").is_file()


def test_a_process_that_hangs_is_named():
    said, code = together((2, ":hang", {"seconds": 1.0}))
    assert code == 1 and "process 1 did not get on with its work" in said and "waited 1 s" in said


def test_an_error_of_the_first_is_told_once_and_nobody_is_left_waiting(corpus, tmp_path):
    options = {**SETTINGS, "data": corpus, "output": tmp_path / "run", "max_length": 600, "batch_tokens": 1200, "micro_tokens": 600}
    options["model"] = {**TINY, "max_position_embeddings": 16}
    said, code = together((2, "unmask.train.run:pretrain", options))
    assert code and said.count("max_length = 600 is more than the 16 positions") == 1, said
    assert "process 1: the first process has failed; its message says why" in said


def worker(launcher, rank):
    """Return the process of a rank that a launcher has started."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"process {rank} is not there")


def flags(settings):
    nested = {name: value for name, value in settings.items() if name != "model"}
    sections = {
        "data": ("max_length", "batch_tokens", "micro_tokens", "held_out"),
        "optim": ("optimizer", "eps", "schedule", "warmup_ratio"),
    }
    home = {name: section for section, names in sections.items() for name in names}
    pairs = [f"{home.get(name, 'train')}.{name}={value}" for name, value in nested.items()]
    pairs += [f"model.{name}={value}" for name, value in settings["model"].items()]
    return [part for pair in pairs for part in ("--set", pair)]


def test_a_worker_that_is_killed_is_started_again_and_the_run_ends_as_undisturbed(runs, corpus, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "unmask", "pretrain", "--data", corpus, "-o", run, "--processes", 2, "--restarts", 1, *flags(DROPOUT)]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while process.poll() is None and not (run / "checkpoints" / "step-00000008").is_dir():
        time.sleep(0.005)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert output.count("this model") == 1
    assert [record["event"] for record in records(run) if record.get("event") in ("start", "resume")] == ["start", "resume"]
    assert_close(weights(runs / "whole"), weights(run), 0.0)


def test_a_process_that_waits_for_others_to_come_ends_when_its_launcher_does():
    joins = "import torch; from unmask.train.distributed import join; print('joins', flush=True); join(torch.device('cpu')).__enter__()"
    starts = "import os, subprocess, sys; os.environ['UNMASK_LAUNCHED'] = str(os.getpid()); subprocess.run(sys.argv[1:])"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # where nobody listens then
    others = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-c", starts, sys.executable, "-c", joins],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **others},
    )
    assert process.stdout.readline() == "joins\n"
    process.kill()
    _, errors = process.communicate(timeout=120)  # ends when nobody holds the pipe any more
    assert "the launcher has gone" in errors


def test_alone_there_is_nobody_to_wait_for():
    world = World()
    assert world.is_first and not world.is_orphan and world.sum(1, 2.5) == [1, 2.5] and world.any(True) and not world.any(False)
    assert (
        world.agree({"a": 1}) == {"a": 1} and world.gather(b"x") == [b"x"] and world.first_does(lambda: 3) == 3 and world.take_waited() == 0
    )
