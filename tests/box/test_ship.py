"""recipes/box.py makes a run's model the one in the box; bench/box.py keeps its numbers, and the page and the card say what is kept."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import unmask
from unmask import box

ROOT = Path(__file__).parents[2]


def script(folder, name="box"):
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", ROOT / folder / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(sentences_file, tmp_path_factory):
    return unmask.pretrain(
        ROOT / "recipes" / "box.toml", output=tmp_path_factory.mktemp("runs") / "run", data=sentences_file, max_steps=3, held_out=0.1,
        overrides=["model.hidden_size=64", "model.num_hidden_layers=2", "data.vocab_size=300", "data.batch_tokens=1024"], device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    place = tmp_path_factory.mktemp("box")
    args = [run.folder, "--data", run.folder / "corpus" / "heldout.jsonl", "--output", place / "model", "--results", place / "box.json"]
    assert script("recipes").main([*map(str, args)]) == 0
    return place


def test_a_run_becomes_the_model_in_the_box(run, shipped, monkeypatch):
    import torch
    from transformers import AutoModelForMaskedLM

    from unmask.data.manifest import check_manifest

    folder = shipped / "model"
    model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    original = unmask.load_model(run.model)
    for (name, mine), (_, before) in zip(model.named_parameters(), original.named_parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, before.half().float()), name
    check_manifest(folder)
    assert (folder / "model.safetensors").stat().st_size < 0.6 * (run.model / "model.safetensors").stat().st_size
    monkeypatch.setattr(box, "FOLDER", folder)
    filler = unmask.Filler.load()
    assert filler.engine.backend.name == "onnx"
    one, other = (each.fill("The [MASK] helps.")[0] for each in (filler, unmask.Filler(unmask.load_model(folder), filler.tokenizer)))
    assert [row.score for row in one] == pytest.approx([row.score for row in other], abs=1e-5)


def test_what_was_measured_is_kept(run, shipped):
    kept = json.loads((shipped / "box.json").read_text())
    assert kept["storage"]["chosen"] == "fp16" and kept["storage"]["numbers"].keys() == {"fp32", "fp16", "bf16"}
    assert kept["storage"]["agreement"]["fp16"]["max_difference"] < kept["storage"]["agreement"]["bf16"]["max_difference"]
    assert kept["run"]["tokens"] == run.metrics["tokens"] and kept["run"]["steps"] == 3
    bench = script("bench")
    said = "\n".join(bench.about(kept))
    assert "stored in fp16, computed in fp32" in said and "thread" in said


def test_what_loses_too_much_is_refused(run, tmp_path, monkeypatch, capsys):
    recipe = script("recipes")
    monkeypatch.setattr(recipe, "MAX_DROP", -1.0)
    args = [
        run.folder,
        "--data",
        run.folder / "corpus" / "heldout.jsonl",
        "--output",
        tmp_path / "model",
        "--results",
        tmp_path / "box.json",
    ]
    assert recipe.main([*map(str, args)]) == 3
    assert "of the masked accuracy" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_untrained_model_has_the_same_shape(run, tmp_path):
    assert script("recipes").main([str(run.folder), "--untrained", str(tmp_path / "new")]) == 0
    new, trained = unmask.load_model(tmp_path / "new"), unmask.load_model(run.model)
    assert new.config.to_diff_dict() == trained.config.to_diff_dict()
    weights = zip(new.parameters(), trained.parameters(), strict=True)
    assert any(bool((one != other).any()) for one, other in weights)


def test_numbers_are_gathered_from_what_the_commands_leave(run, tmp_path, capsys):
    bench = script("bench")
    unmask.evaluate(run.folder, output=tmp_path / "wiki")
    kept: dict = {}
    bench.collect(tmp_path, "box", kept)
    table = list(bench.numbers(kept))
    (row,) = [line for line in table if line.startswith("| held-out Wikipedia, masked perplexity")]
    found = json.loads((tmp_path / "wiki" / "metrics.json").read_text())["masked_perplexity"]
    assert f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})" in row and f"{found['count']:,}" in row
    assert len(table) == 2 + len(bench.TESTS) and "not there" in capsys.readouterr().err


def test_the_page_says_what_is_kept():
    bench = script("bench")
    page, kept = bench.PAGE.read_text(encoding="utf-8"), json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert bench.filled(page, kept) == page, "make it anew: python bench/box.py write"
    assert {found[2] for found in bench.PLACE.finditer(page)} == {"about", "numbers", "adaptation"}


@pytest.mark.skipif(not (box.FOLDER / "config.json").is_file(), reason="the package holds no box model")
def test_the_card_says_what_is_kept():
    bench = script("bench")
    kept = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    card = (box.FOLDER / bench.CARD).read_text(encoding="utf-8")
    assert card == bench.card(kept, bench.PAGE.read_text(encoding="utf-8")), "make it anew: python bench/box.py write"
    for part in ("CC BY-SA", "public domain", "## Limits and biases", "BERT-Mini"):
        assert part in card


def test_every_command_of_the_page_is_one():
    import typer
    from typer.main import get_command

    from unmask.cli import VERBS

    page = (ROOT / "docs" / "box.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in page.splitlines() if line.startswith("    unmask ")]
    assert len(lines) > 20
    for line in lines:
        for command in line.split("      unmask "):
            words = command.removeprefix("unmask ").split("  #")[0].split()
            verb = words[0]
            module = importlib.import_module(f"unmask.cli.{VERBS[verb][0]}")
            app = typer.Typer(add_completion=False)
            app.command(verb)(getattr(module, verb))
            known = {name for one in get_command(app).params for name in one.opts}
            assert {word for word in words[1:] if word.startswith("-")} <= known, command
