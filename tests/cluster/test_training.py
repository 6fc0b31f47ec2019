"""A run over a cluster is the run of as many processes on one machine, also where one of them is lost."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="work on a cluster needs the extra `cluster`")
import ray
import torch

import unmask
from unmask.cli import main
from unmask.cluster import training
from unmask.cluster.ray import Cluster
from unmask.errors import CheckpointError, ConfigError

from ..conftest import sentences

pytestmark = pytest.mark.slow

MODEL = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
SMALL = {"max_length": 32, "batch_tokens": 256, "device": "cpu", "precision": "fp32", "log_steps": 1, "eval_steps": 0, "model": MODEL}


@pytest.fixture(scope="module")
def machine():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        "local", num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "corpus"
    tokenizer = unmask.train_tokenizer(sentences(100), kind="wordpiece", vocab_size=200)
    texts = folder.parent / "texts.txt"
    texts.write_text("\n".join(sentences(300)))
    unmask.pack(texts, folder, tokenizer=tokenizer, held_out=0.1, dedup="none")
    return folder


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line and "event" not in line]


def test_a_run_is_that_of_one_process_and_survives_a_lost_worker(machine, corpus, tmp_path, monkeypatch):
    here = unmask.pretrain(output=tmp_path / "here", data=corpus, max_steps=60, save_steps=5, **SMALL)
    killed: list[int] = []

    def kill() -> None:
        folder = tmp_path / "there" / "checkpoints"
        while not list(folder.glob("step-*/COMPLETE")):
            time.sleep(0.02)
        killed.extend(running(b"TrainWorker")[:1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    monkeypatch.setattr(training, "LOOK_SECONDS", 0.5)
    said: list[str] = []
    kwargs = {"output": tmp_path / "there", "data": corpus, "max_steps": 60, "save_steps": 5, **SMALL}
    with Cluster("ray") as cluster:
        run = training.train(cluster, "pretrain", tmp_path / "there", (), kwargs, say=said.append)
    thread.join()
    assert killed and said[0].startswith("2 processes on ray: 1 node") and any("step " in text for text in said)
    assert (run.step, run.interrupted, run.folder) == (60, False, tmp_path / "there")
    assert run.metrics == json.loads((tmp_path / "there" / "metrics.json").read_text())
    assert torch.allclose(torch.tensor(losses(tmp_path / "there")), torch.tensor(losses(tmp_path / "here")), atol=1e-3)
    assert abs(run.metrics["masked_loss"] - here.metrics["masked_loss"]) < 1e-2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def running(name: bytes) -> list[int]:
    """Return the processes of our own Ray that are called so; others may run on this machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            title = (entry / "cmdline").read_bytes()
            if title.startswith(b"ray::") and name in title and parent(parent(int(entry.name))) == os.getpid():
                found.append(int(entry.name))
    return found


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_what_the_user_can_mend_is_said_and_not_tried_again(machine, corpus, tmp_path, capsys):
    kwargs = {"output": tmp_path / "run", "data": corpus, **SMALL, "batch_tokens": -1}
    with Cluster("ray") as cluster, pytest.raises(ConfigError, match="batch_tokens"):
        training.train(cluster, "pretrain", tmp_path / "run", (), kwargs)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as caught:
        main(["pretrain", "-o", str(tmp_path / "run"), "--data", str(corpus), "--on", "ray", "--processes", "2"])
    assert caught.value.code == 2 and "--workers" in capsys.readouterr().err
    (tmp_path / "run.ray").mkdir()
    with Cluster("ray") as cluster, pytest.raises(CheckpointError, match="in the way"):
        training.train(cluster, "pretrain", tmp_path / "run", (), {})


def test_ctrl_c_stops_the_workers_after_the_step_in_hand_with_a_checkpoint(machine, corpus, tmp_path):
    before, there = signal.getsignal(signal.SIGINT), {}

    def interrupt() -> None:
        while signal.getsignal(signal.SIGINT) is before or not losses(tmp_path / "run"):
            time.sleep(0.05)
        there.update({name: len(running(name)) for name in (b"TrainWorker", b"PlacementGroupCleaner")})
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    said: list[str] = []
    kwargs = {"output": tmp_path / "run", "data": corpus, "max_steps": 10**6, "save_steps": 10**6, **SMALL}
    with Cluster("ray") as cluster:
        run = training.train(cluster, "pretrain", tmp_path / "run", (), kwargs, say=said.append)
    thread.join()
    assert there == {b"TrainWorker": 2, b"PlacementGroupCleaner": 0}  # the latter would outlive a command that is killed
    assert run.interrupted and said[-1].startswith(f"interrupted at step {run.step}, with a checkpoint")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{run.step:08d}"]
    assert signal.getsignal(signal.SIGINT) is before and [path.name for path in tmp_path.iterdir()] == ["run"]
