"""`unmask tokenizer` as it is typed."""

from __future__ import annotations

import json

import pytest

from unmask.cli import main
from unmask.data.tokenizer import load_tokenizer

WORDS = (
    ["The judge", "A patient", "Our court", "An array", "This list", "No value"],
    ["returns", "holds", "reads", "isn't", "denied", "has 12"],
)


def run(*args, code=0):
    with pytest.raises(SystemExit) as ended:
        main(["tokenizer", *map(str, args)])
    assert ended.value.code == code


@pytest.fixture
def corpus(tmp_path):
    lines = [f"{a} {b} {c.lower()} number {n}." for a in WORDS[0] for b in WORDS[1] for n, c in enumerate(WORDS[0])]
    (tmp_path / "corpus.txt").write_text("\n".join([*lines, "", ""]), encoding="utf-8")
    return tmp_path / "corpus.txt"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_train_and_compare(corpus, tmp_path, capsys, kind):
    options = ["--vocab-size", 290, "--held-out", 0.2, "--special-token", "[DOC]", "--layout", "line", "--json"]
    run(corpus, "-o", tmp_path / "tok", "--kind", kind, *options)
    first = json.loads(capsys.readouterr().out)
    assert first["train_documents"] + first["heldout_documents"] == 216 and 20 < first["heldout_documents"] < 70
    (row,) = first["tokenizers"]
    assert row["name"] == str(tmp_path / "tok") and row["documents"] == first["heldout_documents"]
    assert row["fertility"] > 1 and row["unknown_rate"] == 0 and row["round_trip"] == 1
    tokenizer = load_tokenizer(tmp_path / "tok")
    assert tokenizer.convert_tokens_to_ids("[DOC]") == 5
    # described again from its folder, on the same kind of split, beside itself
    run(corpus, "--compare", tmp_path / "tok", "--layout", "line")
    text = capsys.readouterr().out
    assert "216 held-out documents" in text and str(tmp_path / "tok") in text and "pieces/word" in text


def test_the_held_out_documents_are_not_trained_on(corpus, tmp_path, capsys):
    from unmask.data.clean import split_of

    lines = [f"{'x' * 30}{word} zq{number}" for number, word in enumerate("abcdefghijklmnopqrst" * 10)]
    corpus.write_text("\n".join(lines), encoding="utf-8")
    run(corpus, "-o", tmp_path / "tok", "--vocab-size", 2000, "--held-out", 0.5, "--min-frequency", 1, "--layout", "line")
    tokenizer = load_tokenizer(tmp_path / "tok")
    sides = {side: [line for line in lines if split_of(line, 0.5) == side] for side in ("train", "heldout")}
    assert all(len(sides[side]) > 60 for side in sides)
    pieces = {side: sum(len(tokenizer.tokenize(line.split()[1])) for line in sides[side]) / len(sides[side]) for side in sides}
    assert pieces["train"] == 1 and pieces["heldout"] > 1.3


def test_plain_report_and_next_step(corpus, tmp_path, capsys):
    run(corpus, "-o", tmp_path / "tok", "--vocab-size", 200, "--layout", "line", "--held-out", 0.2)
    text = capsys.readouterr().out
    assert "unmask pack" in text and "round trip" in text
    run(corpus, "-o", tmp_path / "tok", code=2)
    assert "exists; name another folder" in capsys.readouterr().err
    run(corpus, "-o", tmp_path / "tok", "--vocab-size", 110, "--layout", "line", "--overwrite")
    assert len(load_tokenizer(tmp_path / "tok")) == 110
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "tok"]


def test_errors_and_a_corpus_too_small_to_split(corpus, tmp_path, capsys):
    run(corpus, code=2)
    assert "nothing to do" in capsys.readouterr().err
    run(corpus, "-o", tmp_path / "tok", "--kind", "wordpeace", code=2)
    assert "allowed: wordpiece, bpe, unigram" in capsys.readouterr().err
    run(corpus, "-o", tmp_path / "tok", "--held-out", "1.5", code=2)
    run(corpus, "-o", tmp_path / "tok", "--compare", tmp_path / "nowhere", code=2)
    assert "no file or folder" in capsys.readouterr().err and not (tmp_path / "tok").exists()
    corpus.write_text("one document of a few words, a few words\n", encoding="utf-8")
    run(corpus, "-o", tmp_path / "tok", "--vocab-size", 60, "--held-out", 0)
    assert "nothing was held out of 1 documents" in capsys.readouterr().err and (tmp_path / "tok").is_dir()


def test_overwriting_takes_nothing_but_tokenizers(corpus, tmp_path, capsys):
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    run(corpus, "-o", other, "--overwrite", code=2)
    assert "is not a tokenizer's folder" in capsys.readouterr().err
    (other / "tokenizer.json").touch()
    (other / "config.json").touch()
    run(corpus, "-o", other, "--overwrite", code=2)
    assert "holds a model too" in capsys.readouterr().err
    assert (other / "thesis.tex").read_text() == "years of work"


def test_of_two_into_one_folder_the_second_is_refused(corpus, tmp_path, capsys):
    from unmask.data.whole import alone

    with alone(tmp_path / "tok.partial"):
        run(corpus, "-o", tmp_path / "tok", "--vocab-size", 200, "--layout", "line", code=2)
    assert f"another process is at work on '{tmp_path / 'tok'}'" in capsys.readouterr().err
