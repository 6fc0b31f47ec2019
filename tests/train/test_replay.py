"""Runs with general text beside the domain: replayed, measured on, compared with; how they go on, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from unmask import pack
from unmask.errors import ConfigError, DataError, StoreError
from unmask.train.recipe import DataConfig
from unmask.train.replay import parts
from unmask.train.run import adapt, pretrain, resume

from .conftest import WORDS, make_texts

SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "log_steps": 1}
TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def base(text_file, tokenizer_folder, tmp_path_factory):
    run = pretrain(
        output=tmp_path_factory.mktemp("b") / "run", data=text_file, tokenizer=tokenizer_folder, model=TINY, max_steps=3, **SMALL
    )
    return run.model


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A domain that is full of four words, and general text."""
    folder = tmp_path_factory.mktemp("texts")
    domain = [f"{text} {' '.join([WORDS[n % 4]] * 9)} {WORDS[n % 91]}" for n, text in enumerate(make_texts(80, seed=5))]
    (folder / "domain.txt").write_text("\n".join(domain) + "\n")
    (folder / "general.txt").write_text("\n".join(make_texts(160, seed=6)) + "\n")
    return folder / "domain.txt", folder / "general.txt"


def weights(run):
    return load_file(run.folder / "model" / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def cut_off(run, step):
    """Leave a run as a kill after the checkpoint of `step` leaves it."""
    for folder in (run.folder / "checkpoints").iterdir():
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)
    shutil.rmtree(run.model)
    (run.folder / "metrics.json").unlink()


def test_half_a_run_with_replay_and_terms_and_the_other_half_are_the_whole(base, texts, tmp_path):
    settings = {
        "replay": [str(texts[1])], "replay_ratio": 0.25, "strategy": "terms", "max_steps": 12, "micro_tokens": 128, "eval_steps": 6,
        **SMALL,
    }  # fmt: skip
    whole = adapt(base, texts[0], output=tmp_path / "whole", save_steps=0, keep="last", **settings)
    half = adapt(base, texts[0], output=tmp_path / "half", save_steps=6, keep="last", **settings)
    cut_off(half, 6)
    rest = resume(half.folder)
    assert_bit_equal(weights(whole), weights(rest))
    assert (whole.folder / "terms.json").read_bytes() == (half.folder / "terms.json").read_bytes()
    for run in (whole, rest):
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        general = {line["step"]: line["masked_loss"] for line in lines if line.get("event") == "general"}
        assert sorted(general) == [0, 6, 12] and run.metrics["general"]["masked_loss"] == general[12]
        assert run.metrics["before"]["general"]["masked_loss"] == general[0]
        assert run.metrics["general"]["num_masked_tokens"] == run.metrics["before"]["general"]["num_masked_tokens"] > 10
    terms = {term["word"] for term in json.loads((whole.folder / "terms.json").read_text())["terms"]}
    assert terms and terms <= set(WORDS[:4])
    assert "**Replay:** 25% of the tokens of every step came from `general.txt`" in (whole.model / "README.md").read_text()


def test_a_packed_corpus_is_replayed_as_it_is(base, texts, tmp_path, capsys):
    pack(texts[1], tmp_path / "packed", tokenizer=base, held_out=0.1, dedup="none")
    run = adapt(base, texts[0], output=tmp_path / "run", replay=[str(tmp_path / "packed")], replay_ratio=0.5, max_steps=2, **SMALL)
    assert not (run.folder / "replay").exists() and "general" in run.metrics
    said = capsys.readouterr().err
    assert "replay: " in said and "% of the tokens of a step" in said
    pack(texts[1], tmp_path / "other", tokenizer=other_tokenizer(texts), held_out=0.1, dedup="none")
    with pytest.raises(StoreError, match="built with the tokenizer"):
        adapt(base, texts[0], output=tmp_path / "second", replay=[str(tmp_path / "other")], replay_ratio=0.5, **SMALL)


def other_tokenizer(texts):
    from unmask import train_tokenizer

    return train_tokenizer(texts[1].read_text().splitlines(), kind="wordpiece", vocab_size=120)


def test_terms_against_text_that_is_only_measured_on(base, texts, tmp_path):
    run = adapt(base, texts[0], output=tmp_path / "run", general=[str(texts[1])], strategy="terms", max_steps=1, **SMALL)
    assert json.loads((run.folder / "terms.json").read_text())["num_terms"] >= 1
    assert "general" not in run.metrics  # nothing is replayed, so nothing more is measured in the loop


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"replay_ratio": 0.2}, ConfigError, "no text to replay is named; give it with --replay"),
        ({"replay": ["{general}"], "replay_ratio": 1.0}, ConfigError, "data.replay_ratio = 1.0; allowed: a share of the tokens"),
        ({"replay": ["{general}"], "replay_ratio": 0.05}, ConfigError, "raise batch_tokens to 640 or more, or the ratio"),
        ({"replay": ["{general}"], "replay_ratio": 0.95}, ConfigError, "leaves no room for a window of the domain's own text"),
        ({"replay": ["{domain}"], "replay_ratio": 0.3}, ConfigError, "is named in data.sources and in data.replay"),
        ({"replay": ["{general}"], "general": ["{general}"], "replay_ratio": 0.3}, ConfigError, "to be replayed and to be measured on"),
        ({"replay": ["-"], "replay_ratio": 0.3}, ConfigError, "standard input is kept for --data"),
        ({"strategy": "terms"}, ConfigError, "and none is named; give it with --general or --replay"),
        ({"replay": ["{few}"], "replay_ratio": 0.3, "held_out": 0.0}, DataError, "the text to replay holds 3 tokens, which do not fill"),
        ({"replay": ["nowhere.txt"], "replay_ratio": 0.3}, DataError, "nowhere.txt"),
        ({"term_factor": 0.5}, ConfigError, "masking.term_factor = 0.5; allowed: 1"),
    ],
)
def test_what_cannot_be_is_named(base, texts, tmp_path, settings, error, message):
    (tmp_path / "few.txt").write_text("ban der fist\n")
    names = {"domain": texts[0], "general": texts[1], "few": tmp_path / "few.txt"}
    settings = {key: [one.format(**names) for one in value] if isinstance(value, list) else value for key, value in settings.items()}
    with pytest.raises(error, match=message):
        adapt(base, texts[0], output=tmp_path / "run", max_steps=1, **{**SMALL, **settings})


def test_the_parts_of_a_step():
    assert parts(DataConfig(batch_tokens=4096, max_length=128, replay_ratio=0.25), 8192) == ((3072, 3072), (1024, 1024))
    assert parts(DataConfig(batch_tokens=65536, max_length=512, replay_ratio=0.25), 8192) == ((49152, 8192), (16384, 8192))
    assert parts(DataConfig(batch_tokens=1000, max_length=512, replay_ratio=None), 512)[0] == (900, 900)


def test_a_share_to_hold_out_of_a_packed_corpus_is_said_to_change_nothing(base, texts, tmp_path, capsys):
    pack(texts[0], tmp_path / "packed", tokenizer=base, held_out=0.2, dedup="none")
    adapt(base, tmp_path / "packed", output=tmp_path / "run", max_steps=1, **SMALL)
    assert "held_out = 0.1 changes nothing" in capsys.readouterr().err
    unsaid = {name: value for name, value in SMALL.items() if name != "held_out"}
    adapt(base, tmp_path / "packed", output=tmp_path / "again", max_steps=1, **unsaid)
    assert "changes nothing" not in capsys.readouterr().err
