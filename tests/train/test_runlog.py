"""The log of a run: its lines, what a resume leaves of them, and what the terminal shows."""

import io
import json
import math
import resource

import pytest
from rich.console import Console

from unmask.errors import CheckpointError, RunError
from unmask.train.loop import Step, TrainConfig, TrainState
from unmask.train.runlog import Display, RunLog, cut_back, duration, environment


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps(folder):
    return [line for line in lines(folder) if "event" not in line]


def run(folder, first, last, *, log_steps=10, console=None, begin=0.0):
    """Log steps of 0.5 s, 100 tokens and as many labels as their number, with a loss of a thousandth of their number."""
    log = RunLog(folder, step=first, config=TrainConfig(log_steps=log_steps), console=console or Console(file=io.StringIO()))
    for step in range(first + 1, last + 1):
        state = TrainState(None, [], step=step, tokens=100 * step, seconds=begin + 0.5 * step)
        log.step(state, Step(step / 1000, 1.0 + step, 1e-3, 100, step, 0.5, 0.05), step / 40, final=step == last)
    log.close()
    log.close()
    return log


def test_a_line_every_so_many_steps_and_at_the_end(tmp_path):
    run(tmp_path, 0, 25)
    found = steps(tmp_path)
    assert [line["step"] for line in found] == [10, 20, 25]
    first, last = found[0], found[-1]
    assert first["loss"] == pytest.approx(sum(n * n / 1000 for n in range(1, 11)) / 55)  # weighted by masked tokens
    assert last["loss"] == pytest.approx(sum(n * n / 1000 for n in range(21, 26)) / sum(range(21, 26)))
    assert (first["tokens"], first["seconds"], first["num_masked_tokens"], first["grad_norm"]) == (1000, 5.0, 55, 11.0)
    assert (first["tokens_per_second"], first["wait_share"], first["progress"]) == (200.0, 0.1, 0.25)


def test_lines_are_there_at_once(tmp_path):
    log = RunLog(tmp_path, config=TrainConfig(), console=Console(file=io.StringIO()))
    log.write({"event": "heldout", "step": 0, "masked_loss": 0.1 + 0.2})
    assert lines(tmp_path)[-1]["masked_loss"] == 0.1 + 0.2
    log.close()


def test_a_resume_goes_on_where_the_checkpoint_stands(tmp_path):
    run(tmp_path, 0, 38)
    whole = steps(tmp_path)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "end", "step": 20}\n{"event": "heldout", "step": 30, "masked_loss": 1}\n{"step": 40, "lo')
    run(tmp_path, 20, 38)
    assert steps(tmp_path) == whole
    assert [(line["event"], line["step"]) for line in lines(tmp_path) if "event" in line] == [("start", 0), ("resume", 20)]


def test_a_run_that_starts_again_starts_an_empty_log(tmp_path):
    run(tmp_path, 0, 10)
    run(tmp_path, 0, 5)
    assert [line.get("event", line["step"]) for line in lines(tmp_path)] == ["start", 5]


def test_a_log_that_is_damaged_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"log.jsonl:2 is not a line of a log: 'nonsense"):
        cut_back(path, 5)
    assert path.read_text().count("\n") == 3


def test_the_environment_is_recorded(tmp_path):
    run(tmp_path, 0, 1)
    record = json.loads((tmp_path / "environment.json").read_text())
    import torch

    assert record == environment() == lines(tmp_path)[0]["environment"]
    assert record["torch"] == torch.__version__ or torch.__version__.startswith(record["torch"])
    assert record["num_threads"] == torch.get_num_threads() and record["transformers"] and record["cpu"]
    assert not any("git" in name for name in record)


def test_without_a_terminal_plain_lines_now_and_then(tmp_path, monkeypatch):
    clock = iter(range(1000, 10_000, 3))  # three seconds pass between steps
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO())
    log = run(tmp_path, 0, 20, console=console)
    log.notice("held-out loss [bold]3.2[/bold]")
    printed = console.file.getvalue().splitlines()
    assert printed[-1] == "held-out loss [bold]3.2[/bold]"
    assert len(printed) == 1 + 4  # every fourth step: twelve seconds
    assert printed[0].startswith("step 5  loss 0.00") and printed[0].endswith("  200 tokens/s  12%  18 s left")
    assert "\r" not in console.file.getvalue() and "\x1b" not in console.file.getvalue()


def test_on_a_terminal_one_line_that_moves_and_is_gone_at_the_end(tmp_path, monkeypatch):
    clock = iter(range(1000, 10_000, 3))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20)
    run(tmp_path, 0, 20, console=console)
    written = console.file.getvalue()
    assert "step 20" in written and "200 tokens/s" in written and "50%" in written and "10 s left" in written
    assert written.rstrip().endswith("\x1b[2K")  # the line is cleared


def test_time_left_counts_from_where_this_process_began(tmp_path):
    display = Display(Console(file=io.StringIO()))

    def show(step, seconds, progress):
        state = TrainState(None, [], step=step, seconds=seconds)
        display.step(state, Step(1.0, 1.0, 1e-3, 100, 10, 1.0, 0.0), progress)
        return display.seconds_left(state, progress)

    # resumed at step 100 of 200 after 1000 s on a slow machine; here a step takes 1 s
    assert show(101, 1001.0, 101 / 200) == pytest.approx(99, rel=0.01)
    assert show(150, 1050.0, 150 / 200) == pytest.approx(50, rel=0.01)
    assert show(200, 1100.0, 1.0) == 0.0


def test_what_is_shown_first_is_not_drawn_to_zero(tmp_path):
    display = Display(Console(file=io.StringIO()))
    state = TrainState(None, [], step=1, seconds=1.0)
    display.step(state, Step(9.0, 1.0, 1e-3, 100, 10, 1.0, 0.0), 0.1)
    assert display.line(state, 0.1) == "step 1  loss 9.000  100 tokens/s  10%  9 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_numbers_that_are_not_finite_stay_readable(tmp_path):
    log = RunLog(tmp_path, config=TrainConfig(), console=Console(file=io.StringIO()))
    log.write({"event": "heldout", "step": 1, "masked_perplexity": math.inf})
    log.close()
    assert lines(tmp_path)[-1]["masked_perplexity"] is None
    assert "Infinity" not in (tmp_path / "log.jsonl").read_text()


def test_a_log_that_cannot_grow_says_so_and_is_gone_on_with(tmp_path):
    """A real limit of the system on the size of files: the write fails half-way, as on a full disk."""
    log = RunLog(tmp_path, config=TrainConfig(), console=Console(file=io.StringIO()))

    def fill():
        for step in range(1, 100):
            log.write({"step": step, "text": "x" * 50})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(RunError, match=r"log.jsonl' cannot be written \(File too large\); make room, then go on with `unmask resume`"):
            fill()
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole = (tmp_path / "log.jsonl").read_text().count("\n")
    run(tmp_path, 5, 10)
    found = [line["step"] for line in lines(tmp_path) if "event" not in line]
    assert whole > 6 and found == [1, 2, 3, 4, 5, 10]
