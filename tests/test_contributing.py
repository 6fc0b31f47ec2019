"""CONTRIBUTING.md: the examples are put where the page says they go, and work."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from unmask.data import masking, text

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))


def put_into(module: types.ModuleType, name: str) -> None:
    exec(compile(BLOCKS[name], f"CONTRIBUTING.md:{name}", "exec"), vars(module))


def new_module(name: str, monkeypatch) -> types.ModuleType:
    """Make a module of a block as if its file were there."""
    path = f"src/{name.replace('.', '/')}.py"
    assert not (ROOT / path).exists(), f"{path} exists; choose another example"
    module = types.ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, name, module)
    put_into(module, path)
    return module


def test_every_example_is_here_and_every_file_that_is_named_exists():
    assert len(BLOCKS) == PAGE.count("```python") == 5
    named = set(re.findall(r"`((?:src|docs|tests|recipes)/[\w/.]+\w)`", PAGE))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert [name for name in re.findall(r"`(cli/\w+\.py)`", PAGE) if not (ROOT / "src" / "unmask" / name).exists()] == []
    targets = set(re.findall(r"^    make (\w+)", PAGE, flags=re.MULTILINE))
    assert targets == {"setup", "test", "lint"}
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE) for target in targets)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_what_takes_minutes_is_said_before():
    lines = subprocess.run(["make", "-n", "-B", "setup"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (said,) = [number for number, line in enumerate(lines) if line.startswith("echo ") and "minutes" in line]
    assert "-m venv" in lines[said + 1] and " install " in lines[said + 2]


def test_a_strategy(monkeypatch):
    monkeypatch.setattr(masking, "STRATEGIES", dict(masking.STRATEGIES))
    monkeypatch.delattr(masking, "long_words", raising=False)
    put_into(masking, "src/unmask/data/masking.py")
    generator = np.random.default_rng(0)
    starts = generator.random(60_000) < 0.7
    starts[0] = True
    ids, vocabulary = generator.integers(5, 100, len(starts)), masking.Vocabulary(4, (0, 1, 2, 3, 4), 100)
    config = masking.MaskingConfig(strategy="long_words", mlm_probability=0.15)
    _, selected = masking.mask_document(ids, starts, document=3, config=config, vocabulary=vocabulary, seed=1, epoch=0)
    word = np.cumsum(starts) - 1
    pieces = np.bincount(word)
    assert set(np.bincount(word, selected) / pieces) == {0.0, 1.0}  # whole words only
    chosen = np.bincount(word, selected) > 0
    assert chosen[pieces == 1].mean() == pytest.approx(0.15, abs=0.01)
    assert chosen[pieces > 1].mean() == pytest.approx(0.30, abs=0.01)


def test_a_reader(monkeypatch, tmp_path):
    import gzip

    for name in ("SUFFIXES", "READERS"):
        monkeypatch.setattr(text, name, dict(getattr(text, name)))
    put_into(text, "src/unmask/data/text.py")
    subtitles = "1\n00:00:01,000 --> 00:00:02,500\nHello there.\n\n2\n00:00:03,000 --> 00:00:04,000\nWho is\nthere?\n"
    (tmp_path / "film.srt").write_text(subtitles)
    (tmp_path / "other.srt.gz").write_bytes(gzip.compress(b"1\n00:00:01,000 --> 00:00:02,500\nBye.\n"))
    (tmp_path / "silent.srt").write_text("1\n00:00:01,000 --> 00:00:02,500\n")
    found = [(document.id, document.text) for document in text.read(tmp_path)]
    assert found == [("film.srt", "Hello there. Who is there?"), ("other.srt.gz", "Bye.")]
    (tmp_path / "binary.srt").write_bytes(b"\0\1\2")
    with pytest.raises(text.DataError, match=r"binary\.srt is not text"):
        list(text.read(tmp_path / "binary.srt"))


def test_a_task_and_its_command(monkeypatch, tiny_bert, capsys):
    from unmask import cli

    task = new_module("unmask.tasks.proofread", monkeypatch)
    new_module("unmask.cli.proofread", monkeypatch)
    monkeypatch.setattr(cli, "VERBS", dict(cli.VERBS))
    put_into(cli, "src/unmask/cli/__init__.py")
    sentence = "the nurse helps the doctor"
    with pytest.raises(SystemExit) as caught:
        cli.main(["proofread", str(tiny_bert), sentence])
    assert not caught.value.code
    pairs = [tuple(line.split("\t")) for line in capsys.readouterr().out.splitlines()]
    assert pairs == task.proofread(tiny_bert, sentence) == expected(tiny_bert, sentence) != []
    with pytest.raises(task.TaskError, match="no word"):
        task.proofread(tiny_bert, " ")


def expected(folder: Path, sentence: str) -> list[tuple[str, str]]:
    """Do what the example does, by transformers alone."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
    rows = []
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            best = int(model(masked).logits[0, place].argmax())
        if best != int(ids[0, place]):
            rows.append(tuple(tokenizer.convert_ids_to_tokens([int(ids[0, place]), best])))
    return rows
