"""Folders that say what they held when they were written: whatever has changed since is found, but for what a person may edit."""

import contextlib

import pytest

from unmask.data.manifest import MANIFEST, check_manifest, write_manifest
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import CheckpointError, DataError, TokenizerError
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
    for place in range(len((folder / MANIFEST).read_bytes())):
        flip(folder / MANIFEST, place)
        with contextlib.suppress(CheckpointError):  # or it is no longer ours, or says the same: what it speaks of is sound
            check_manifest(folder)
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


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff", "9" * 5000])
def test_a_manifest_that_is_no_json(folder, text):
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="is not readable"):
        check_manifest(folder)


@pytest.mark.parametrize("text", ["[]", "3", '{"files": []}', '{"files": {"config.json": 3}}', '{"files": {"a": {"bytes": 3}}}'])
def test_a_manifest_of_another_tool_says_nothing_to_us(folder, text):
    (folder / MANIFEST).write_text(text)
    (folder / "config.json").write_text("changed")
    check_manifest(folder)


def test_of_a_packed_corpus_the_texts_that_are_held_out_are_checked_when_they_are_read(tmp_path, sentences_file, tiny_bert):
    import unmask

    unmask.pack(sentences_file, tmp_path / "corpus", tokenizer=tiny_bert, held_out=0.1, dedup="none")
    path = tmp_path / "corpus" / "heldout.jsonl"
    number = len(list(unmask.read(path)))
    data = path.read_bytes()
    flip(path, data.index(b"the "))
    with pytest.raises(DataError, match=r"content of heldout.jsonl has changed"):
        next(unmask.read(path))
    path.write_bytes(data)
    assert len(list(unmask.read(path))) == number
    (tmp_path / "corpus" / "other.txt").write_text("not in the manifest")
    assert [document.text for document in unmask.read(tmp_path / "corpus" / "other.txt")] == ["not in the manifest"]


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
