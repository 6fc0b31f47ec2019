"""The commands with a model that answers questions: doctor, finetune --dry-run, predict, evaluate."""

from __future__ import annotations

import io
import json

import pytest

from unmask.cli import main

WHERE, EVENT, OTHER = "Where is the help?", "The nurse helps the doctor in the harbour today.", "The judge calls the lawyer."


def run(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, args)))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_a_question_about_texts(capsys, answering, tmp_path, monkeypatch):
    folder = answering.folder
    code, out, _ = run(capsys, "predict", folder, "--question", WHERE, "--context", OTHER, "--context", EVENT, "--top-k", 2)
    shown, best, _ = out.splitlines()
    assert code == 0 and shown == WHERE and "harbour  (context 1, 34-41)" in best
    code, out, _ = run(capsys, "predict", folder, "--question", WHERE, "--context", OTHER)
    assert code == 0 and out.splitlines()[1].endswith("no answer")
    code, out, _ = run(capsys, "predict", folder, "--question", WHERE, "--context", EVENT, "--json", "--top-k", 7)
    line = json.loads(out)
    assert (line["text"], line["start"], line["end"], line["context"]) == ("harbour", 34, 41, 0) and len(line["answers"]) == 7
    (tmp_path / "texts.txt").write_text(f"{OTHER}\n{EVENT}\n", encoding="utf-8")
    code, out, _ = run(capsys, "predict", folder, "--question", WHERE, "--data", tmp_path / "texts.txt", "--json")
    assert code == 0 and (json.loads(out)["text"], json.loads(out)["context"]) == ("harbour", 1)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{EVENT}\n"))
    code, out, _ = run(capsys, "predict", folder, "--question", WHERE, "--context", "-", "--json")
    assert json.loads(out)["text"] == "harbour"


def test_files_of_questions(capsys, answering, questions_file, tmp_path):
    code, _, err = run(capsys, "predict", answering.folder, "--data", questions_file, "-o", tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert code == 0 and "320 results written" in err and [line["id"] for line in lines] == [f"q{n}" for n in range(320)]
    assert sum(line["text"] in (line["gold"] or [""]) for line in lines) > 280
    code, out, _ = run(capsys, "evaluate", answering.folder, "--data", questions_file, "-o", tmp_path / "found", "--resamples", 50)
    assert code == 0 and all(name in out for name in ("f1 ", "exact_match", "has_answer_f1", "no_answer_accuracy", "any_script_f1"))
    metrics = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert metrics["num_examples"] == 320 and metrics["data"] == ["questions.jsonl"] and metrics["errors"]["right"] > 280
    assert "Answers, right and wrong" in (tmp_path / "found" / "report.html").read_text()


def test_what_is_asked_wrongly(capsys, answering, tiny_bert, questions_file, tmp_path):
    for args, says in (
        (("some text",), "is asked with --question Q --context TEXT"),
        (("--context", EVENT), "is asked with --question"),
        (("--question", WHERE), "give a --context, or files with --data"),
        (("--question", WHERE, "--context", EVENT, "--data", questions_file), "not both"),
    ):
        code, _, err = run(capsys, "predict", answering.folder, *args)
        assert code == 2 and says in err
    asked = [{"question": WHERE, "id": "1", "answers": [{"text": "nurse", "answer_start": 4}]}]
    squad = {"version": "1.1", "data": [{"title": "a", "paragraphs": [{"context": EVENT, "qas": asked}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad), encoding="utf-8")
    for path in (tmp_path / "squad.json", questions_file):
        code, _, err = run(capsys, "predict", answering.folder, "--question", WHERE, "--data", path)
        assert code == 2 and f"{path} is no text but questions with their contexts; have these answered by leaving --question out" in err
    code, _, err = run(capsys, "predict", answering.folder, "--question", WHERE, "--data", tmp_path / "nothing.json")
    assert code == 2 and "there is no file" in err and "leaving" not in err
    code, _, err = run(capsys, "predict", tiny_bert, "--question", WHERE, "--context", EVENT, "--label-words", "a=nurse")
    assert code == 2 and "answers no questions" in err


def test_before_training(capsys, tiny_bert, questions_file, tmp_path):
    code, out, _ = run(capsys, "doctor", questions_file, "--task", "qa", "--json")
    report = json.loads(out)
    assert code == 0 and not report["fatal"] and report["question_words"].keys() == {"where", "when"} and report["without_answer"] > 40
    code, out, _ = run(capsys, "doctor", questions_file, "--task", "qa")
    facts = [line for line in out.splitlines() if not line.startswith(("note: ", "warning: "))]
    assert len({len(line) - len(line.partition(" ")[2].lstrip()) for line in facts}) == 1 < len(facts)  # all values begin in one column
    rows = [{"question": "Who?", "context": EVENT, "answer": "the sailor"}] * 2
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, err = run(capsys, "doctor", tmp_path / "a.jsonl", "--task", "qa")
    assert code == 2 and "2 x answer does not stand in its context" in out + err
    code, out, _ = run(capsys, "finetune", "qa", tiny_bert, "-t", questions_file, "--dry-run", "--json", "--max-length", 48)
    report = json.loads(out)
    assert code == 0 and report["model"] == "BertForQuestionAnswering" and report["best_by"] == "f1"
    assert report["num_train"] + report["num_dev"] == 320 and report["windows"] > report["num_train"] and report["in_several_windows"] > 0
