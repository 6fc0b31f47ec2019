"""The model card of real runs: its front matter is YAML, its numbers are those of metrics.json, and it names no folder of the machine."""

import dataclasses
import json

import pytest

from unmask.train.card import definitions, escape, front_matter, is_local, results, shown
from unmask.train.recipe import Recipe

SMALL = {"held_out": 0.1, "max_length": 32, "batch_tokens": 256, "precision": "fp32"}
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def run(text_file, tokenizer_folder, tmp_path_factory):
    from unmask.train.run import pretrain

    return pretrain(
        data=text_file, tokenizer=tokenizer_folder, output=tmp_path_factory.mktemp("runs") / "first", max_steps=4,
        model={"preset": "tiny", **TINY}, **SMALL,
    )  # fmt: skip


def split(card):
    _, front, body = card.split("---\n", 2)
    return front, body


def test_the_card_of_a_run_from_scratch(run, text_file):
    yaml = pytest.importorskip("yaml")
    front, body = split((run.model / "README.md").read_text())
    tags = ["masked-lm", "fill-mask", "unmask"]
    assert yaml.safe_load(front) == {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": tags}
    metrics = json.loads((run.folder / "metrics.json").read_text())
    for key, name in (("", "this model"), ("untrained", "untrained model"), ("unigram", "word frequencies alone")):
        row = metrics[key] if key else metrics
        assert row["precision"] == "fp32" if key != "unigram" else "precision" not in row
        assert f"| {name} | {row['masked_accuracy']:.1%} | {row['masked_perplexity']:,.1f} | {row['masked_loss']:.3f} |" in body
    facts = [metrics["masks_fingerprint"], f"{metrics['num_masked_tokens']:,} masked tokens", "`ModernBertForMaskedLM`", "**Layers:** 2"]
    facts += ["**Seed:** 0", "`corpus.txt`", "[MASK]", "Muon (0.01)", "30% of the tokens", "at most 32 tokens"]
    for fact in facts:
        assert fact in body, fact
    assert str(text_file.parent) not in body and str(run.folder.parent) not in body


def test_the_card_of_an_adapted_model(run, text_file, tmp_path):
    from unmask.train.run import adapt

    adapted = adapt(run.model, text_file, output=tmp_path / "second", max_steps=2, **SMALL)
    body = split((adapted.model / "README.md").read_text())[1]
    assert "# first, adapted to corpus.txt" in body
    assert "| before adapting |" in body and "untrained model" not in body and "AdamW (0.0001)" in body
    assert "base_model" not in body and str(tmp_path) not in body


def test_the_base_model_of_the_hub_is_named():
    front = front_matter(dataclasses.replace(Recipe(), base_model="google-bert/bert-base-uncased"))
    assert 'base_model: "google-bert/bert-base-uncased"\n' in front


def test_nothing_held_out():
    assert "nothing was measured" in results({"step": 5})


def test_the_fingerprint_stands_beside_the_number():
    text = definitions({"num_masked_tokens": 12345, "num_documents": 77, "masks_fingerprint": "abcd"})
    assert "12,345 masked tokens in 77 held-out documents" in text and "`abcd`" in text


@pytest.mark.parametrize(
    ("name", "local", "text"),
    [
        ("/home/jane/secret/notes.txt", True, "notes.txt"), ("~/notes/*.txt", True, "*.txt"), ("./a/b", True, "b"),
        ("python-docs", False, "python-docs"), ("hub:allenai/c4", False, "hub:allenai/c4"), ("org/model", False, "org/model"),
    ],
)  # fmt: skip
def test_paths_of_the_machine_are_not_shown(name, local, text):
    assert is_local(name) == local and shown(name) == text


def test_markdown_in_names_is_shown_as_it_is():
    assert escape("a_b*<script>.txt") == r"a\_b\*\<script\>.txt"
