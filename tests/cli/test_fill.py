"""`unmask fill` as it is typed."""

from __future__ import annotations

import io
import json
import sys

import pytest

from unmask.cli import main


def run(*args, code=0):
    with pytest.raises(SystemExit) as ended:
        main(["fill", *map(str, args)])
    assert ended.value.code == code


def test_plain_lines(tiny_bert, capsys):
    run(tiny_bert, "The ___ helps the [MASK] today.", "-k", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The ___ helps the [MASK] today." and lines[1] == "mask 1:" and lines[5] == "mask 2:" and lines[9] == "together:"
    assert len(lines) == 13 and all("[MASK]" not in line and "___" not in line for line in lines[10:])
    scores = [float(line.split()[0]) for line in lines[2:5]]
    assert scores == sorted(scores, reverse=True)
    assert all(line.rstrip().endswith("helps the [MASK] today.") for line in lines[2:5])


def test_json_is_what_python_gives(tiny_bert, capsys):
    from unmask import fill

    text = "The [MASK] calls the judge — « <mask> »."
    run(tiny_bert, text, "--json", "--top-k", 4)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "«" in out
    row = json.loads(out)
    assert row == fill(tiny_bert, text, top_k=4).to_dict()
    assert row["text"] == text and row["truncated"] is False and [len(mask) for mask in row["masks"]] == [4, 4]
    keys = {"token", "token_id", "score", "sequence", "start", "joined", "word", "log_prob", "token_ids", "error"}
    assert set(row) == {"text", "truncated", "masks", "joint"} and set(row["masks"][0][0]) == keys
    assert set(row["joint"][0]) == {"tokens", "token_ids", "score", "log_prob", "sequence", "starts"}


def test_table_on_a_terminal(tiny_bert, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run(tiny_bert, "The [MASK] says [bold]no[/bold].")
    out = capsys.readouterr().out
    assert "\x1b[" in out and "score" in out and "[bold]no[/bold]" in out  # the text of a user is no markup
    run(tiny_bert, "The [MASK] says ___.", "--target", "judge", "--target", "☃")
    run(tiny_bert, "The [MASK] says ___.", "--pair", "A [MASK].")
    out = capsys.readouterr().out
    assert "mask 2 of 3" in out and "together" in out and "becomes" in out


def test_bulk_from_files_keeps_ids_and_goes_on_after_an_error(tiny_bert, tmp_path, capsys):
    rows = [{"id": "a", "text": "The [MASK] calls."}, {"id": "b", "text": "no mask here"}, {"id": "c", "text": "___"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    run(tiny_bert, "--data", tmp_path / "texts.jsonl", "--json", "-k", 1)
    out, err = capsys.readouterr()
    given = [json.loads(line) for line in out.splitlines()]
    assert [row["text"] for row in given] == [row["text"] for row in rows]
    assert all("texts.jsonl" in row["id"] for row in given)
    assert ["masks" in row for row in given] == [True, False, True] and "no mask" in given[1]["error"]
    assert "1 of 3 texts could not be filled" in err
    run(tiny_bert, "The [MASK].", "--data", tmp_path / "texts.jsonl", "-k", 1)
    out, err = capsys.readouterr()
    assert out.startswith("The [MASK].\n") and "texts.jsonl:3: ___" in out and "texts.jsonl:2: there is no mask" in err


def test_targets_vocabulary_and_blanks(tiny_bert, tmp_path, capsys):
    run(tiny_bert, "The [MASK] calls.", "--target", "judge", "--target", "nurses", "--target", "☃", "--json", "--renormalize")
    (mask,) = json.loads(capsys.readouterr().out)["masks"]
    assert [one["token"] for one in mask] == ["judge", "nurses", "☃"] and mask[2]["score"] is None and "☃" in mask[2]["error"]
    assert sum(one["score"] for one in mask[:2]) == pytest.approx(1) and len(mask[1]["token_ids"]) > 1
    run(tiny_bert, "The [MASK] calls.", "--target", "judge", "--target", "☃")
    assert "none" in capsys.readouterr().out
    (tmp_path / "words.txt").write_text("judge\nnurse\n\nteacher\n", encoding="utf-8")
    run(tiny_bert, "The [MASK] calls.", "--vocabulary", tmp_path / "words.txt", "-k", 2)
    assert len(capsys.readouterr().out.splitlines()) == 3
    run(tiny_bert, "The ___ calls.", "--max-pieces", 2, "--json", "--pair", "The nurse helps.")
    row = json.loads(capsys.readouterr().out)
    assert row["pair"] == "The nurse helps." and all(one["word"] == one["token"] for one in row["masks"][0])
    (tmp_path / "words.txt").write_text("\n", encoding="utf-8")
    run(tiny_bert, "[MASK]", "--vocabulary", tmp_path / "words.txt", code=2)
    assert "holds no word" in capsys.readouterr().err


def test_standard_input(tiny_bert, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The [MASK] calls.\n\nthe <mask>\n"), encoding="utf-8"))
    run(tiny_bert, "--data", "-", "--json", "-k", 1)
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["The [MASK] calls.", "the <mask>"]


def test_long_text_says_so(tiny_bert, capsys):
    run(tiny_bert, "the doctor " * 300 + "[MASK]", "-k", 1)
    out = capsys.readouterr().out
    assert "saw a window around each mask" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "there is no text to fill"),
        (("no mask",), r"there is no mask in 'no mask'; write [MASK], <mask> or ___"),
        (("[MASK]", "-k", 0), "Invalid value for '--top-k'"),
        (("[MASK] " * 300,), "at most 64 are filled together; fill each on its own (independent=True, --independent)"),
        (("none", "nothing"), "no text could be filled"),
        (("--data", "nowhere.txt"), "nowhere.txt"),
        (("[MASK]", "--precision", "fp8"), "fill: precision = 'fp8'; allowed: auto, fp32, bf16"),
    ],
)
def test_errors_say_what_to_do(tiny_bert, capsys, args, says):
    run(tiny_bert, *args, code=2)
    assert says in capsys.readouterr().err


def test_a_folder_that_is_no_model(tmp_path, capsys):
    run(tmp_path / "nowhere", "[MASK]", code=2)
    assert "there is no folder" in capsys.readouterr().err
    run(tmp_path, "[MASK]", code=2)
    assert "no config.json" in capsys.readouterr().err
