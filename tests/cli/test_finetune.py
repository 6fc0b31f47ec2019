"""`unmask finetune`, `doctor`, `predict`, and `evaluate` of what was fine-tuned: from labelled files to predictions."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from unmask.cli import main

ROWS = [{"text": f"The {word} meets the student number {n} .", "label": label}
        for n in range(40) for word, label in (("doctor", "health"), ("judge", "law"))]  # fmt: skip


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tiny_bert, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "classify", str(tiny_bert), "-t", str(data), "-o", str(folder), "--steps", "30", "--learning-rate", "1e-2",
              "--max-length", "32", "-s", "train.device=cpu", "-s", "data.hide_prob=0"])  # fmt: skip
    assert stop.value.code == 0
    return folder


def test_a_dry_run_says_what_would_be_trained_on(capsys, tiny_bert, data, tmp_path):
    code, out, _ = run(capsys, "finetune", "classify", tiny_bert, "-t", data, "--dry-run", "--json", "--epochs", 2)
    report = json.loads(out)
    assert code == 0 and report["num_train"] + report["num_dev"] == 80 and report["steps"] == 2 * report["steps_per_epoch"]
    assert report["labels"].keys() == {"health", "law"} and report["model"] == "BertForSequenceClassification"
    assert report["hide_prob"] == 0.15
    assert any("text in column 'text', label in column 'label'" in finding["text"] for finding in report["findings"])
    code, out, _ = run(capsys, "finetune", "classify", tiny_bert, "-t", data, "--dry-run")
    assert code == 0 and "steps_per_epoch" in out and "\nhide_prob          0.15\n" in out
    code, out, _ = run(capsys, "finetune", "classify", tiny_bert, "-t", data, "--dry-run", "--json", "-s", "data.hide_prob=0")
    assert json.loads(out)["hide_prob"] == 0
    code, _, err = run(capsys, "finetune", "classify", tiny_bert, "-t", data)
    assert code == 2 and "name the folder of the run" in err


def test_what_was_found_in_the_data_is_told_at_the_end_with_its_count_where_it_has_one(capsys, finished):
    from unmask.cli.finetune import print_numbers

    metrics = json.loads((finished / "metrics.json").read_text())
    print_numbers(metrics)
    err = capsys.readouterr().err
    assert f"warning: no temperature is fitted: {metrics['num_examples']} held-out examples, and at least 50" in err and "0 x" not in err
    print_numbers({"findings": [{"level": "error", "code": "a", "text": "bad", "count": 1200, "places": ["x:1"]}], "num_examples": 1})
    assert capsys.readouterr().err == "error: 1,200 x bad (x:1, ...)\n"


def test_predict_prints_writes_and_reads_the_standard_input(capsys, finished, data, tmp_path, monkeypatch):
    code, out, _ = run(capsys, "predict", finished, "The judge meets the student .", "--json")
    line = json.loads(out)
    assert code == 0 and line["label"] == "law" and set(line["scores"]) == {"health", "law"} and line["windows"] == 1
    code, out, _ = run(capsys, "predict", finished, "The judge meets the student .", "The doctor meets the student .")
    assert [row.split()[0] for row in out.splitlines()] == ["law", "health"]
    code, _, err = run(capsys, "predict", finished, "--data", data, "-o", tmp_path / "out.jsonl", "--top-k", 1)
    lines = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 0 and len(lines) == 80 and all(len(row["scores"]) == 1 for row in lines) and lines[0]["gold"] == ["health"]
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("The judge\n\nThe doctor\n"))
    code, out, _ = run(capsys, "predict", finished, "-", "--json")
    assert [json.loads(row)["text"] for row in out.splitlines()] == ["The judge", "The doctor"]
    code, _, err = run(capsys, "predict", finished, "a text", "--template", "{text} [MASK]")
    assert code == 2 and "is for --label-words" in err
    code, _, err = run(capsys, "predict", finished)
    assert code == 2 and "give texts, or files with --data" in err


def test_evaluate_knows_a_fine_tuned_model(capsys, finished, data, tmp_path):
    code, out, _ = run(capsys, "evaluate", finished, "--data", data, "-o", tmp_path / "found", "--resamples", 50)
    assert code == 0 and out.startswith("accuracy ") and "macro_f1" in out
    metrics = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert metrics["num_examples"] == 80 and (tmp_path / "found" / "report.html").is_file() and metrics["data"] == ["train.jsonl"]
    code, _, err = run(capsys, "evaluate", finished, "--data", data, "--views", 2)
    assert code == 2 and "--views" in err and "fine-tuned for a task" in err
    code, _, err = run(capsys, "evaluate", finished)
    assert code == 2 and "no labelled data is named" in err


def test_a_run_that_was_interrupted_is_gone_on_with_and_has_a_report(capsys, finished, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    (half / "metrics.json").unlink()
    shutil.rmtree(half / "model")
    code, out, _ = run(capsys, "report", half)
    assert code == 0 and "This run has not ended" in (half / "report.html").read_text()
    code, out, _ = run(capsys, "resume", half, "--json")
    assert code == 0 and json.loads(out)["task"] == "classify" and (half / "model" / "config.json").is_file()


def test_what_cannot_be_predicted_is_told_aside_and_counted(capsys, finished, data, tmp_path, monkeypatch):
    code, out, err = run(capsys, "predict", finished, "", "The judge meets the student .")
    assert code == 0 and len(out.splitlines()) == 1 and out.startswith("law") and "1 of 2 could not be predicted" in err
    code, out, err = run(capsys, "predict", finished, "")
    assert code == 2 and not out and "1 of 1 could not be predicted" in err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    code, out, err = run(capsys, "predict", finished, "-")
    assert code == 2 and not out and "there was nothing to predict" in err
    before = data.read_bytes()
    code, _, err = run(capsys, "predict", finished, "--data", data, "-o", data.parent / ".." / data.parent.name / data.name)
    assert code == 2 and "is one of the files of --data" in err and data.read_bytes() == before
    kept = tmp_path / "kept.jsonl"
    kept.write_text("mine", encoding="utf-8")
    code, _, _ = run(capsys, "predict", finished, "--data", tmp_path / "nothing.csv", "-o", kept)
    assert code == 2 and kept.read_text(encoding="utf-8") == "mine"


def test_what_is_not_fine_tuned_is_not_predicted_with(capsys, tiny_bert):
    code, _, err = run(capsys, "predict", tiny_bert, "a text")
    assert code == 2 and "is not fine-tuned for a task; `unmask finetune` does that" in err
    words = ("--label-words", "health=doctor|nurse", "--label-words", "law=judge")
    code, out, _ = run(capsys, "predict", tiny_bert, "The nurse", "The judge", *words, "--json", "--template", "{text} meets the [MASK]")
    assert code == 0 and [set(json.loads(line)["scores"]) for line in out.splitlines()] == [{"health", "law"}] * 2
    code, _, err = run(capsys, "predict", tiny_bert, "a text", *words, "--max-length", 32)
    assert code == 2 and "--max-length 32: with --label-words" in err
    code, _, err = run(capsys, "predict", tiny_bert, "a text", "--label-words", "health")
    assert code == 2 and "not of the form label=word|word" in err


def test_doctor_says_what_is_wrong(capsys, tmp_path, data, tiny_bert):
    code, out, _ = run(capsys, "doctor", data, "--task", "classify", "--model", tiny_bert, "--json")
    report = json.loads(out)
    assert (
        code == 0 and not report["fatal"] and report["balanced_weights"].keys() == {"health", "law"} and report["longer_than_window"] == 0
    )
    bad = tmp_path / "bad.csv"
    bad.write_text("text,label\none,a\n,b\ntwo,\nthree,b\none,b\n", encoding="utf-8")
    code, out, _ = run(capsys, "doctor", bad, "--task", "classify")
    assert code == 2 and "error: 1 x the text is empty" in out and "bad.csv:3" in out and "error: 1 x there is no label" in out
    code, _, err = run(capsys, "finetune", "classify", tiny_bert, "--train", bad, "--dry-run")
    assert code == 2 and "--on-bad drop" in err
    code, out, err = run(capsys, "finetune", "classify", tiny_bert, "--train", bad, "--dev", data, "--dry-run", "--on-bad", "drop")
    assert code == 0 and not err and "dropped: 1 x the text is empty" in out and "dropped: 1 x there is no label" in out
    assert "error" not in out
    code, _, err = run(capsys, "doctor", bad, "--task", "classify", "--max-length", 32)
    assert code == 2 and "max_length = 32 counts tokens: name the model" in err
    code, _, err = run(capsys, "doctor", bad, "--task", "classfy")
    assert code == 2 and "did you mean 'classify'" in err


def test_seeds_of_which_none_has_a_number_are_told(capsys):
    from unmask.cli.finetune import ended
    from unmask.train.session import Run

    nothing = {"value": None, "low": None, "high": None, "count": 9}
    over = {"mean": None, "std": None, "low": None, "high": None, "count": 0}
    seeds = {"best_seed": 3, "metric": "pearson", "values": {"3": None, "4": None}, "numbers": {"pearson": over}}
    metrics = {"num_examples": 9, "best": "pearson", "pearson": nothing, "seeds": seeds}
    assert ended(Run(Path("run"), metrics, 2), False) == 0
    assert "over 2 seeds: pearson –; kept is seed 3" in capsys.readouterr().out
