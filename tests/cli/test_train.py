"""`unmask pretrain`, `adapt` and `resume` as commands: results, signals, kills, messages."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from unmask.cli import main

SETTINGS = [
    "model.preset=tiny", "model.family=bert", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=48",
    "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", "data.vocab_size=200", "data.max_length=32",
    "data.batch_tokens=256", "data.held_out=0.1", "train.device=cpu", "train.precision=fp32", "train.log_steps=1", "train.save_steps=10",
]  # fmt: skip
FLAGS = [part for setting in SETTINGS for part in ("--set", setting)]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    generator = random.Random(0)
    words = ["".join(generator.choices("aeioubdgklmnrst", k=generator.randint(2, 7))) for _ in range(120)]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(generator.choices(words, k=generator.randint(4, 30))) for _ in range(200)) + "\n")
    return path


@pytest.fixture(scope="module")
def quiet(corpus, tmp_path_factory):
    """A run of 60 steps that nothing disturbed: its process and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "quiet"
    return unmask("pretrain", "--data", corpus, "-o", folder, "--steps", 60, *FLAGS, "--json"), folder


def unmask(*args):
    return subprocess.run([sys.executable, "-m", "unmask", *map(str, args)], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


def exit_code(*args):
    """Run the command line in this process, where torch is there already; return its exit code."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, args)])
    return end.value.code


def signalled(run, number, step, *args):
    """Start a command, send it a signal once its log shows a step; return the process, ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    log = run / "log.jsonl"
    while process.poll() is None and not (log.is_file() and f'"step": {step},' in log.read_text()):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    process.output, process.errors = process.communicate(timeout=60)
    return process


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_the_result_is_json_alone_and_the_rest_is_told_on_stderr(quiet):
    process, folder = quiet
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["model"] == str(folder / "model") and result["run"] == str(folder)
    assert {"masked_accuracy", "masked_perplexity", "num_masked_tokens", "unigram", "untrained"} <= result.keys()
    assert "held-out loss" in process.stderr
    assert "\x1b" not in process.stderr  # plain lines where there is no terminal


def test_killed_at_a_step_and_resumed_ends_bit_equal(quiet, corpus, tmp_path):
    run = tmp_path / "killed"
    killed = signalled(run, signal.SIGKILL, 17, "pretrain", "--data", corpus, "-o", run, "--steps", 60, *FLAGS)
    assert killed.returncode == -signal.SIGKILL and not (run / "model").exists()
    resumed = unmask("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert_bit_equal(weights(run), weights(quiet[1]))


@pytest.mark.parametrize(("number", "goes_on"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(quiet, corpus, tmp_path, number, goes_on):
    run = tmp_path / "stopped"
    stopped = signalled(run, number, 13, "pretrain", "--data", corpus, "-o", run, "--steps", 60, *FLAGS)
    assert stopped.returncode == 130
    assert f"unmask resume {run}" in stopped.errors and "Traceback" not in stopped.errors
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert int(newest.removeprefix("step-")) == lines[-1]["step"] >= 13
    if goes_on:
        assert unmask("resume", run).returncode == 0
        assert_bit_equal(weights(run), weights(quiet[1]))


def test_adapting_prints_before_and_after(quiet, corpus, tmp_path, capsys):
    flags = FLAGS[FLAGS.index("data.max_length=32") - 1 :]
    assert exit_code("adapt", quiet[1] / "model", "--data", corpus, "-o", tmp_path / "run", "--steps", 2, *flags) == 0
    printed = capsys.readouterr().out
    for word in ("this model", "unigram", "before", "perplexity", f"unmask fill {tmp_path / 'run' / 'model'}"):
        assert word in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrain", "-o", "{new}"], "no text is named"),
        (["pretrain", "-o", "{quiet}", "--data", "{corpus}"], "already holds a run; go on with it (`unmask resume"),
        (["pretrain", "-o", "{new}", "--data", "{corpus}", "--set", "optim.learning_rat=1"], "did you mean 'optim.learning_rate'?"),
        (["pretrain", "nowhere.toml", "-o", "{new}"], "there is no recipe 'nowhere.toml'"),
        (["adapt", "{new}/model", "--data", "{corpus}", "-o", "{new}"], "there is no folder"),
        (["resume", "{new}"], "holds no run"),
        (["adapt", "{quiet}/model", "--data", "{corpus}", "-o", "{new}", "--replay-ratio", "0.2"], "no text to replay is named"),
        (["adapt", "{quiet}/model", "--data", "{corpus}", "-o", "{new}", "--replay", "{corpus}"], "in data.sources and in data.replay"),
    ],
)
def test_what_the_user_can_mend_is_told_in_a_line(quiet, corpus, tmp_path, capsys, args, message):
    names = {"new": tmp_path / "new", "quiet": quiet[1], "corpus": corpus}
    assert exit_code(*(arg.format(**names) for arg in args)) == 2
    printed = capsys.readouterr()
    assert message in printed.err and not printed.out
    assert not (tmp_path / "new").exists()
