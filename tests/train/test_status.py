"""How a run stands: while another process is at it, after it was killed, when it is over, and where there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import unmask
from unmask.data.whole import alone, is_held
from unmask.errors import CheckpointError, ConfigError
from unmask.train import status as module
from unmask.train.status import NOTICES, Viewer, status

TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "log_steps": 1}


@pytest.fixture(scope="module")
def finished(text_file, tokenizer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    unmask.pretrain(
        output=folder, data=text_file, tokenizer=tokenizer_folder, model=TINY, max_steps=6, eval_steps=3, save_steps=2, save_total_limit=3,
        **SMALL,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def code_of(args: list[str]) -> int:
    from unmask.cli import main

    with pytest.raises(SystemExit) as caught:
        main(args)
    return int(caught.value.code or 0)


def test_a_finished_run_is_what_its_files_say(finished):
    now, log = status(finished), records(finished)
    last = [record for record in log if "event" not in record][-1]
    assert (now.kind, now.state, now.budget) == ("pretrain", "finished", {"max_steps": 6})
    assert (now.step, now.progress, now.seconds_left) == (6, 1.0, None)
    assert {name: last[name] for name in ("tokens", "seconds", "loss", "tokens_per_second")} == {
        "tokens": now.tokens, "seconds": now.seconds, "loss": now.loss, "tokens_per_second": now.tokens_per_second,
    }  # fmt: skip
    assert now.heldout is not None and now.heldout["step"] == 6
    assert {"event": "heldout", **now.heldout} == [record for record in log if record.get("event") == "heldout"][-1]
    assert (now.checkpoint, now.checkpoint_step) == (str(finished / "checkpoints" / "step-00000006"), 6)
    assert not (now.damaged or now.events or now.notices or now.seeds)


def test_asking_changes_nothing_and_loads_no_torch(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code = "import sys; from unmask.train.status import status; print(status(sys.argv[1]).state, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["finished", "False"]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_checkpoint_that_is_not_whole_is_named_and_passed_over(run):
    older, newest = sorted((run / "checkpoints").iterdir())[-2:]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    now = status(run)
    assert now.checkpoint == str(older) and list(now.damaged) == [newest.name] and "model.safetensors has" in now.damaged[newest.name]
    (older / "COMPLETE").unlink()
    shutil.rmtree(newest)
    now = status(run)
    assert now.checkpoint not in (None, str(older)) and "marker" in now.damaged[older.name]  # the best one is kept, whichever that is
    assert "damaged" in "\n".join(now.lines())


def test_running_killed_and_told_apart(finished, tmp_path):
    """A real run in a process of its own, killed in the middle."""
    run = tmp_path / "run"
    settings = [f"model.{name}={value}" for name, value in TINY.items()] + [
        f"{section}.{name}={SMALL[name]}"
        for section, names in (("data", ("max_length", "batch_tokens")), ("train", ("device", "precision", "log_steps")))
        for name in names
    ]
    args = ["pretrain", "-o", str(run), "-d", str(finished / "corpus"), "--steps", "1000000"]
    args += [word for setting in settings for word in ("-s", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen([sys.executable, "-m", "unmask", *args], env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        seen, now = set(), None
        while now is None or "running" not in seen or now.step < 3:
            assert process.poll() is None, (tmp_path / "out").read_text()
            if (run / "config.toml").is_file():
                now = status(run)
                seen.add(now.state)
            time.sleep(0.05)
        assert seen <= {"not begun", "preparing", "running"}  # "not begun": between the recipe and the lock
        assert now.seconds_left is not None and now.seconds_left > 0 and now.silent_seconds is not None
        follower = [sys.executable, "-m", "unmask", "status", str(run), "--follow", "--seconds", "0.1"]
        with subprocess.Popen(follower, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            line = following.stdout.readline()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            rest = following.stdout.read()
        assert re.match(r"step [\d,]+  loss \d\.\d{3}  [\d,]+ tokens/s", line)
        assert following.returncode == 0 and re.search(r"^state +interrupted$", rest, flags=re.MULTILINE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    now = status(run)
    assert (now.state, now.seconds_left, now.progress > 0) == ("interrupted", None, True)


def test_time_left_counts_the_present_sitting_alone(run):
    lines = [
        {"event": "start", "step": 0},
        {"step": 10, "progress": 0.1, "seconds": 1000.0, "tokens": 10},
        {"event": "resume", "step": 10},
        {"step": 20, "progress": 0.2, "seconds": 1010.0, "tokens": 20},
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with alone(run):
        left = status(run).seconds_left
    assert left is not None and 70 < left <= 80


def test_a_run_of_another_machine_is_not_said_to_be_dead(run, monkeypatch):
    """Its lock is not seen from here: the file system is another, as far as this test can make it so."""
    log = run / "log.jsonl"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if '"end"' not in line))
    assert status(run).state == "interrupted"
    monkeypatch.setattr("unmask.data.whole.file_system", lambda path: "nfs4")
    now = status(run)
    assert now.state == "unknown" and "running on another machine, or interrupted; log.jsonl was written to" in "\n".join(now.lines())


def test_what_happened_on_the_way_is_told(run):
    with open(run / "log.jsonl", "a") as file:
        for step in range(7, 15):
            file.write(
                json.dumps({"event": "skipped", "step": step, "loss": "nan", "documents": [f"a.txt:{n}" for n in range(500)]}) + "\n"
            )
        file.write(json.dumps({"step": 15, "progress": 0.5, "loss": 1.0, "tokens_per_second": 1.0, "rank_wait": [0.5, 0.25]}) + "\n")
        file.write('{"step": 16, "loss": 9')  # being written just now
    now = status(run)
    assert (now.state, now.step, now.loss, now.events) == ("interrupted", 15, 1.0, {"skipped": 8})
    assert now.by_rank == {"rank_wait": [0.5, 0.25]}
    assert [notice["step"] for notice in now.notices] == [10, 11, 12, 13, 14]
    assert max(map(len, now.lines())) < 300
    json.dumps(now.to_dict(), allow_nan=False)


def test_a_log_is_read_on_and_from_its_start_when_a_resume_has_cut_it_back(run):
    from unmask.train.runlog import cut_back

    watch = Viewer(run)
    assert watch.look().step == 6
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 7, "progress": 0.1}\n{"step": 8')
        file.flush()
        assert watch.look().step == 7
        file.write(', "progress": 0.2}\n')
    assert watch.look().step == 8 and [r["step"] for r in watch.log.records if "event" not in r] == list(range(1, 9))
    cut_back(run / "log.jsonl", 3)
    assert (watch.look().step, watch.look().state) == (3, "interrupted")


def test_every_event_that_a_run_writes_is_either_its_course_or_told():
    course = {"start", "resume", "heldout", "end"}
    sources = [path.read_text(encoding="utf-8") for path in Path(module.__file__).parent.glob("*.py")]
    written = {name for source in sources for name in re.findall(r'"event": "(\w+)"', source)}
    assert written - course <= set(NOTICES)
    assert set(NOTICES) <= written


def test_before_anything_happened(tmp_path, finished):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "config.toml", run)
    assert (status(run).state, status(run).step, status(run).checkpoint) == ("not begun", 0, None)
    with alone(run):
        assert is_held(run) and status(run).state == "preparing"
    assert not is_held(run)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_what_is_no_run_is_said_to_be_none(make, tmp_path, capsys):
    make(tmp_path / "it")
    with pytest.raises(CheckpointError, match=r"holds no run \(no config.toml\)"):
        status(tmp_path / "it")
    assert code_of(["status", str(tmp_path / "it")]) == 2
    assert capsys.readouterr().err.startswith("unmask status: '")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "", r"there is no section \[train\], there is no section \[data\]"),
        (lambda text: "hello = 1\n", "there is no section"),
        (lambda text: text[: text.index("[train]")], r"there is no section \[train\]; take another copy"),
        (lambda text: text[: len(text) // 2], "is not valid TOML|there is no section"),
        (lambda text: text.replace("max_steps = 6", "max_steps = 7"), "not as Unmask wrote it"),
        (lambda text: "train = 3\ndata = [1]\n", "there is no section"),
        (lambda text: 'seeds = "two"\n[train]\n[data]\n', "seeds = 'two'"),
        (lambda text: 'task = 3\n[train]\nmax_steps = "many"\n[data]\n', "task = 3, train.max_steps = 'many'"),
        (lambda text: "\0\x7f", "is not valid TOML"),
    ],
)
def test_a_recipe_that_is_damaged_is_no_state_of_a_run(run, capsys, change, says):
    path = run / "config.toml"
    path.write_text(change(path.read_text()))
    with pytest.raises(ConfigError, match=says):
        status(run)
    assert code_of(["status", str(run)]) == code_of(["status", str(run), "--follow"]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.startswith("unmask status: ") and "Traceback" not in captured.err


def test_seeds_of_a_task_are_runs_of_their_own(tiny_bert, tmp_path):
    data = tmp_path / "labels.csv"
    data.write_text("text,label\n" + "".join(f"{'good' if n % 2 else 'bad'} number {n},{n % 2}\n" for n in range(40)))
    run = tmp_path / "run"
    unmask.finetune("classify", tiny_bert, data, output=run, seeds=2, max_steps=2, device="cpu", log_steps=1)
    now = status(run)
    assert (now.kind, now.state, now.step) == ("finetune classify", "finished", 2)
    for file in ("log.jsonl", "metrics.json"):  # as it is before the last seed has ended
        (run / file).unlink()
    (run / "seed-1" / "log.jsonl").unlink()
    now = status(run)
    assert now.seeds == {"seed-0": "finished", "seed-1": "not begun"}


def test_json_is_complete_and_its_keys_are_frozen(finished, capsys):
    assert code_of(["status", str(finished), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [
        "folder", "kind", "state", "budget", "step", "progress", "tokens", "seconds", "tokens_per_second", "loss", "seconds_left",
        "silent_seconds", "heldout", "checkpoint", "checkpoint_step", "damaged", "events", "notices", "by_rank", "line", "seeds",
    ]  # fmt: skip
    assert told["state"] == "finished"


def test_a_question_does_not_keep_a_run_from_its_folder(tmp_path):
    """Somebody asks again and again; a run that begins is not refused."""
    code = (
        "import sys, time; from pathlib import Path; from unmask.data.whole import is_held\n"
        "while True: is_held(Path(sys.argv[1])); time.sleep(0.001)"
    )
    asking = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        for _ in range(200):
            with alone(tmp_path):
                pass
    finally:
        asking.kill()
        asking.wait()
