"""docs/scaling.md: its tables are what its commands print, and its figures are those of the benchmarks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```sh\n(unmask plan .*?)\n```\n\n```\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*\.?\d*")


def numbers(text: str) -> list[float]:
    return [float(one.replace(",", "")) for one in NUMBER.findall(text)]


def test_there_are_commands():
    assert len(COMMANDS) == PAGE.count("```sh") >= 2


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_table_is_what_its_command_prints(command, shown, monkeypatch, capsys):
    """Words are the same, numbers within 2%: what a pass holds differs a little between versions of torch and transformers."""
    from unmask.cli import main

    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(command.replace("\\\n", " "))[1:])
    assert not caught.value.code
    printed = capsys.readouterr().out
    for line, expected in zip(printed.splitlines(), shown.splitlines(), strict=True):
        assert NUMBER.sub("#", line).split() == NUMBER.sub("#", expected).split()
        assert numbers(line) == pytest.approx(numbers(expected), rel=0.02), f"{command}\n{line}"


def test_the_rate_that_training_reaches_is_the_measured_one():
    from unmask.train.devices import EFFICIENCY

    share, _ = EFFICIENCY["cpu"]
    found = {}
    for path in sorted((ROOT / "bench" / "results").glob("*-train-*.json")):
        result = json.loads(path.read_text())
        found |= {(path.name, kind): result[kind]["matmul_share"] for kind in ("paragraphs", "sentences") if kind in result}
    assert len(found) >= 5
    assert all(abs(one - share) < 0.06 for one in found.values()), found
    for (name, kind), one in found.items():
        assert f"| {name} | {kind} | {one:.3f} |" in PAGE


def test_the_runs_on_the_page_are_the_benchmark_s():
    results = json.loads(sorted((ROOT / "bench" / "results").glob("*-plan.json"))[-1].read_text())
    for name, run in results["runs"].items():
        planned, real = (run[kind]["tokens_per_second"] for kind in ("planned", "measured"))
        assert f"| {name} | {planned:,.0f} | {real:,.0f} | {run['efficiency']:.3f} | {run['ratio_checkpoint']:.4f} | " in PAGE
        assert 0.8 < planned / real < 1.25
        assert abs(run["ratio_checkpoint"] - 1) < 0.01
