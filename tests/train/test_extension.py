"""Runs whose model gets words of its text: from the first step to the finished folder, and over an interruption."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from unmask import load_tokenizer, pack
from unmask.data.clean import split_of
from unmask.data.text import read
from unmask.data.vocab_extension import Extension
from unmask.errors import ConfigError, DataError, TokenizerError
from unmask.train.run import adapt, pretrain, resume

SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "log_steps": 1}


@pytest.fixture(scope="module")
def texts(sentences_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("domain") / "texts.txt"
    path.write_text(sentences_file.read_text().replace("nurse", "cardiologist").replace("court", "ventricle"))
    return path


def weights(run):
    return load_file(run.model / "model.safetensors")


def test_a_run_adds_words_and_goes_on_where_it_stood(tiny_bert, texts, tmp_path):
    settings = {**SMALL, "extend_vocab": 2, "max_steps": 8}
    whole = adapt(tiny_bert, texts, output=tmp_path / "whole", save_steps=0, **settings)
    found = Extension.load(whole.folder / "vocabulary.json")
    assert [word.word for word in found.words] == ["cardiologist", "ventricle"]
    held = sum(split_of(document.text, 0.1) == "heldout" for document in read(texts))
    assert 0 < held == 300 - found.num_documents  # words are not found in what is measured on

    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, info = AutoModelForMaskedLM.from_pretrained(whole.model, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(whole.model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(tokenizer) == model.config.vocab_size == len(load_tokenizer(tiny_bert)) + 2
    assert tokenizer.tokenize("The Cardiologist calls") == ["the", "cardiologist", "calls"]
    assert "extend_vocab = 2" in (whole.folder / "config.toml").read_text()

    half = adapt(tiny_bert, texts, output=tmp_path / "half", save_steps=4, keep="last", **settings)
    shutil.rmtree(half.folder / "checkpoints" / "step-00000008")
    shutil.rmtree(half.model)
    rest = resume(half.folder)
    # as after a kill before the first checkpoint: packed, and nothing more
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.toml", "vocabulary.json"):
        shutil.copy(half.folder / name, begun / name)
    shutil.copytree(half.folder / "corpus", begun / "corpus")
    for other in (rest, resume(begun)):
        left, right = weights(whole), weights(other)
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_fewer_words_than_asked_for_are_said(tiny_bert, texts, tmp_path, capsys):
    run = adapt(tiny_bert, texts, output=tmp_path / "run", max_steps=1, extend_vocab=1000, **SMALL)
    number = len(json.loads((run.folder / "vocabulary.json").read_text())["words"])
    assert f"added {number} words (of 1,000: the text holds no more that are frequent enough)" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_anything_is_done(tiny_bert, texts, sentences_file, tmp_path):
    packed = tmp_path / "packed"
    pack(texts, packed, tokenizer=str(tiny_bert), held_out=0.1)
    column = tmp_path / "column.jsonl"
    column.write_text('{"body": "the nurse"}\n')
    for start, error, message in (
        (lambda: adapt(tiny_bert, texts, output=tmp_path / "run", extend_vocab=-1, **SMALL), ConfigError, "data.extend_vocab = -1"),
        (lambda: adapt(tiny_bert, packed, output=tmp_path / "run", extend_vocab=5, **SMALL), ConfigError, "is a packed corpus"),
        (lambda: pretrain(data=texts, output=tmp_path / "run", extend_vocab=5, **SMALL), ConfigError, "adds words to an existing model"),
        (lambda: adapt(tiny_bert, "-", output=tmp_path / "run", extend_vocab=5, **SMALL), ConfigError, "standard input"),
        (
            lambda: adapt(tiny_bert, sentences_file, output=tmp_path / "run", extend_vocab=5, **SMALL),
            TokenizerError,
            "there is no word to add: of",
        ),
        (lambda: adapt(tiny_bert, texts, output=tmp_path / "run", general="nowhere.txt", **SMALL), DataError, "nowhere.txt"),
        (lambda: adapt(tiny_bert, texts, output=tmp_path / "run", general=column, **SMALL), DataError, "text"),
        (lambda: pretrain(data=texts, output=tmp_path / "run", general=texts, **SMALL), ConfigError, "has nothing to forget"),
    ):
        with pytest.raises(error, match=message):
            start()
        assert not (tmp_path / "run").exists()
