"""`unmask score` as it is typed."""

from __future__ import annotations

import io
import json
import sys

import pytest

from unmask.cli import main

ROW = {
    "text", "pseudo_log_likelihood", "pseudo_perplexity", "pseudo_perplexity_per_word", "pseudo_perplexity_per_byte", "num_tokens",
    "num_words", "num_bytes", "num_unknown", "windows", "truncated", "tokens", "token_ids", "log_probs", "word_index", "word_log_probs",
}  # fmt: skip
METRICS = {
    "settings", "pseudo_log_likelihood", "pseudo_perplexity", "pseudo_perplexity_per_word", "pseudo_perplexity_per_byte",
    "pseudo_bits_per_byte", "num_texts", "num_failed", "num_truncated_texts", "num_windows", "num_tokens", "num_scored_tokens", "num_words",
    "num_bytes", "num_unknown",
}  # fmt: skip


def run(*args, code=0):
    with pytest.raises(SystemExit) as ended:
        main(["score", *map(str, args)])
    assert ended.value.code == code


def test_plain_lines(tiny_bert, capsys):
    run(tiny_bert, "The nurse helps the judge today.", "", "The doctor calls.", "--tokens")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("7 tokens  The nurse helps the judge today.") and lines[2].endswith(" nurse")
    total = sum(float(line.split()[0]) for line in lines[1:8])
    assert float(lines[0].split()[0]) == pytest.approx(total, abs=1e-3)
    shown = dict(line.split(maxsplit=1) for line in lines[13:-1])
    assert shown["num_texts"] == "3" and shown["num_failed"] == "1" and shown["num_tokens"] == "11" and "pseudo_perplexity" in shown
    assert lines[-1] == "original: one token masked at a time; fp32"
    assert "nothing to score in ''" in err and "1 of 3 texts could not be scored" in err


def test_json_is_what_python_gives(tiny_bert, capsys):
    from unmask import score

    text = "The nurse calls the judge — « today »."
    run(tiny_bert, text, "--json", "--method", "word_l2r")
    row, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert row == score(tiny_bert, text, "word_l2r").to_dict() and set(row) == ROW
    assert set(last) == {"metrics"} and set(last["metrics"]) == METRICS
    assert last["metrics"]["pseudo_perplexity"] == pytest.approx(row["pseudo_perplexity"])
    assert last["metrics"]["settings"] == {
        "model": str(tiny_bert), "method": "word_l2r", "max_length": 512, "context": 127, "precision": "fp32",
    }  # fmt: skip


def test_a_folder_of_scores(tiny_bert, sentences_file, tmp_path, capsys):
    rows = [{"id": "a", "body": "The nurse calls."}, {"id": "b", "body": "\u200b"}, {"id": "c", "body": "The judge."}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    common = [tiny_bert, "--data", tmp_path / "texts.jsonl", "--text-column", "body", "--id-column", "id", "-o", tmp_path / "out"]
    run(*common, "--json", "--method", "sampled", "--sample", 3)
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    errors = {"pseudo_log_likelihood_standard_error", "pseudo_perplexity_standard_error"}
    assert set(metrics) == METRICS | errors and metrics["num_failed"] == 1
    given = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert [row["id"] for row in given] == ["a", "b", "c"] and set(given[1]) == {"id", "text", "error"}
    assert set(given[0]) == ROW | {"id", "standard_error", "num_scored_tokens"} and given[0]["log_probs"].count(None) == 1
    run(*common)  # over the old ones
    assert "num_texts" in capsys.readouterr().out and {path.name for path in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "report.html",
        "scores.jsonl",
    }
    assert json.loads((tmp_path / "out" / "scores.jsonl").read_text().splitlines()[0])["log_probs"].count(None) == 0


def test_table_on_a_terminal(tiny_bert, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(tiny_bert, "The [bold]nurse[/bold].", "nurse " * 600)
    out = capsys.readouterr().out
    assert "[bold]nurse[/bold]" in out and "(2 windows)" in out  # the text of a user is no markup
    assert "texts longer than 512 tokens: 1; each token saw a window around it, with at least 127 tokens on both sides" in out


def test_standard_input(tiny_bert, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The nurse calls.\nThe judge.\n"), encoding="utf-8"))
    run(tiny_bert, "--data", "-", "--json")
    assert [json.loads(line).get("text") for line in capsys.readouterr().out.splitlines()] == ["The nurse calls.", "The judge.", None]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "there is no text to score"),
        (("",), "no text could be scored"),
        (("a", "--method", "l2r"), "allowed: original, word_l2r, sampled"),
        (("a", "--method", "sampled", "--sample", 1), "Invalid value for '--sample'"),
        (("a", "--max-length", 20, "--context", 9), "0 to 8"),
        (("a", "--max-length", 513), "512"),
        (("a", "--precision", "fp8"), "allowed: auto, fp32, bf16"),
        (("a", "--device", "abacus"), "allowed: auto, cpu"),
        (("--data", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_errors_say_what_to_do(tiny_bert, capsys, args, says):
    run(tiny_bert, *args, code=2)
    assert says in capsys.readouterr().err


def test_folders_that_are_not_written_into(tiny_bert, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    run(tiny_bert, "a", "-o", tmp_path, code=2)
    assert "holds no scores" in capsys.readouterr().err
    run(tiny_bert, "a", "-o", tmp_path / "mine.txt", code=2)
    assert "is a file" in capsys.readouterr().err


def test_what_is_wrong_is_named_by_its_flag(tiny_bert, capsys):
    run(tiny_bert, "a", "--precision", "fp8", code=2)
    assert "score: precision = 'fp8'; allowed: auto, fp32, bf16" in capsys.readouterr().err
    run(tiny_bert, "a", "--batch-tokens", 0, code=2)
    assert "Invalid value for '--batch-tokens'" in capsys.readouterr().err


def test_of_two_into_one_folder_the_second_is_refused_and_takes_nothing(tiny_bert, tmp_path, capsys):
    from unmask.data.whole import alone

    args = [tiny_bert, "The nurse calls.", "-o", tmp_path / "out"]
    run(*args)
    with alone(tmp_path / "out" / "scores.jsonl.partial", file=True):
        run(*args, code=2)
    assert "another process is at work on" in capsys.readouterr().err and (tmp_path / "out" / "metrics.json").is_file()
