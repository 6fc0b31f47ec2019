"""Folders that say what they held when they were written: whatever has changed since is found, but for what a person may edit."""

import json

import pytest

from unmask.data.manifest import MANIFEST, check_manifest, write_manifest
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import CheckpointError, TokenizerError
from unmask.model.load import load_model


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << place % 8
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("config.json", "model.safetensors", "inner/part", "README.md"):
        (tmp_path / name).write_text(f"the content of {name}")
    write_manifest(tmp_path)
    return tmp_path


def test_every_flipped_bit_of_every_file_is_found(folder):
    check_manifest(folder)
    for name in ("config.json", "model.safetensors", "inner/part"):
        for place in range(len((folder / name).read_bytes())):
            flip(folder / name, place)
            with pytest.raises(CheckpointError, match=f"content of {name} has changed.*delete '.*{MANIFEST}'"):
                check_manifest(folder)
            flip(folder / name, place)
    check_manifest(folder)
    whole = (folder / MANIFEST).read_bytes()
    for place in range(len(whole)):
        flip(folder / MANIFEST, place)
        try:
            check_manifest(folder)
        except CheckpointError:
            pass
        else:  # a space between two words of JSON: it says the same
            assert json.loads((folder / MANIFEST).read_text()) == json.loads(whole)
        flip(folder / MANIFEST, place)


def test_missing_files_and_other_sizes_are_named(folder):
    (folder / "config.json").write_text("longer than what was there before")
    with pytest.raises(TokenizerError, match=r"config.json has 33 bytes instead of 26; take another copy"):
        check_manifest(folder, error=TokenizerError)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        check_manifest(folder)
    check_manifest(folder, leave_out=["config.*"])
    (folder / MANIFEST).unlink()
    check_manifest(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"files": []}', '{"files": {"config.json": 3}}', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_none(folder, text):
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="is not readable"):
        check_manifest(folder)


def test_a_card_may_be_edited_and_files_added(folder):
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    check_manifest(folder)


def test_models_and_tokenizers_are_checked_when_they_are_loaded(tiny_bert, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    write_manifest(folder)
    load_model(folder, tokenizer=load_tokenizer(folder))
    flip(folder / "model.safetensors", 50_000)
    load_tokenizer(folder)  # which reads no weights
    with pytest.raises(CheckpointError, match="content of model.safetensors has changed"):
        load_model(folder)
    flip(folder / "model.safetensors", 50_000)
    flip(folder / "tokenizer.json", 3000)
    with pytest.raises(TokenizerError, match="content of tokenizer.json has changed"):
        load_tokenizer(folder)
