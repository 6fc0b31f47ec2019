"""What users' files get wrong, end to end: a clear error, or a repair that is counted; nothing is dropped in silence."""

from __future__ import annotations

import json

import pytest

import unmask
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.evaluate.report import write as write_report
from unmask.tasks.classify_data import read_items
from unmask.tasks.recipe import TaskData

SMALL = {"device": "cpu", "precision": "fp32", "max_length": 32, "max_steps": 2}


@pytest.fixture(scope="module")
def classifier(tiny_bert, labelled_file, tmp_path_factory):
    return unmask.finetune("classify", tiny_bert, labelled_file, output=tmp_path_factory.mktemp("bad") / "run", **SMALL)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty; give a file that holds text"),
        ("text,label\n", "holds no rows; name a file that has an item a row"),
        ("text,label\na,b,c\n", "3 columns where there should be 2"),
        ("text,label\n,a\n,b\n", r"(?s)no example is left to train on.*2 x the text is empty \(.*a.csv:2, .*a.csv:3\)"),
        ("text,label\na,\nb,NaN\n", r"(?s)no example is left to train on.*2 x there is no label \(empty, null or NaN\)"),
        ("text,label\none,x\ntwo,x\nthree,x\n", "every training example has the same label, 'x'"),
    ],
)
def test_files_that_teach_nothing(tiny_bert, tmp_path, text, says):
    with pytest.raises(DataError, match=says):
        unmask.finetune("classify", tiny_bert, write(tmp_path / "a.csv", text), output=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_share_that_leaves_nothing_to_train_on_is_named(tiny_bert, tmp_path):
    path = write(tmp_path / "a.csv", "text,label\none,x\ntwo,y\n")
    with pytest.raises(DataError, match=r"left to train on: all that can be used \(2\) are held out; give more, or --dev FILES"):
        unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", dev_share=0.9999, **SMALL)


def test_one_class_alone_is_measured_as_far_as_it_can_be(classifier, tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nThe judge meets,law\nThe lawyer meets,law\n")
    found = unmask.evaluate(classifier.folder, path, output=tmp_path / "out")
    assert found["macro_auroc"] is None and 0 <= found["accuracy"] <= 1 and found["log_loss"] > 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["macro_auroc"]["value"] is None
    path = write(tmp_path / "b.csv", "text,label\nThe judge meets,law\n")
    assert unmask.evaluate(classifier.folder, path).metrics["accuracy"]["low"] is None
    with pytest.raises(ConfigError, match="resamples = 1000001; allowed: 0"):
        unmask.evaluate_task(classifier.folder, path, resamples=1_000_001)


def test_results_that_have_changed_since_are_found_and_made_again(classifier, tmp_path):
    path = write(tmp_path / "a.csv", "text,label\nThe judge meets,law\nThe lawyer meets,law\n")
    for name in ("metrics.json", "predictions.jsonl"):
        unmask.evaluate(classifier.folder, path, output=tmp_path / "out")  # over what was damaged, too
        write_report(tmp_path / "out")
        data = (tmp_path / "out" / name).read_bytes()
        place = data.index(b"0.") + 2
        (tmp_path / "out" / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=f"the content of {name} has changed.*; evaluate or compare again"):
            write_report(tmp_path / "out")
    assert "manifest.json" not in {path.name for path in classifier.folder.iterdir()}  # of a run, whose files go on changing


def test_nothing_held_out_is_said(tiny_bert, tmp_path):
    path = write(tmp_path / "a.conll", "judge\tB-who\nmeets\tO\n\n" * 12)  # one text twelve times: on one side, all of it
    run = unmask.finetune("ner", tiny_bert, path, output=tmp_path / "run", **SMALL)
    assert run.metrics["num_examples"] == 0 and "no_dev" in (tmp_path / "run" / "data.json").read_text()
    assert "Type by type" not in (tmp_path / "run" / "report.html").read_text()


def test_numbers_that_are_none(tiny_bert, tmp_path):
    rows = "".join(f"text {number},{number / 3}\n" for number in range(40))
    path = write(tmp_path / "a.csv", f"text,score\n{rows}bad,inf\nworse,nan\n")
    with pytest.raises(DataError, match=r"(?s)1 x there is no label.*a.csv:43.*1 x label is not a number.*a.csv:42"):
        unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", **SMALL)
    run = unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", on_bad="drop", **SMALL)
    found = {finding["code"]: finding["count"] for finding in run.metrics["findings"] if finding["level"] != "note"}
    assert found == {"no_label": 1, "not_a_number": 1}  # that every number is rare is no finding
    page = (run.folder / "report.html").read_text()
    assert "1 x there is no label" in page and "1 x label is not a number" in page  # as many of each


def test_names_of_labels_are_kept_as_they_are(tiny_bert, tmp_path):
    names = ["x\ny", "<b>", "é" * 200, "0", "#", "שלום"]
    rows = [{"text": f"text {number}", "label": names[number % 6]} for number in range(90)]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    run = unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", **SMALL)
    assert set(run.metrics["labels"]) == set(names)
    assert unmask.Classifier.load(run.folder).predict("text").label in names


@pytest.mark.parametrize("text", ["שלום עולם", "ไทยภาษา", "👩‍🔬e\u0301", "\u200b", "a\x00b", "\ud83d", "x" * 5000, " \n judge \t"])
def test_any_text_is_classified_and_tagged(classifier, text):
    assert unmask.Classifier.load(classifier.folder).predict(text).label in ("health", "law", "sea")


def test_a_text_that_stands_in_quotes_over_lines(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\r\n"one\r\n\r\ntwo, ""three""",a\r\nfour,b\r\n')
    (first, second), findings = read_items([path], TaskData())
    assert first.text.split() == ["one", "two,", '"three"'] and second.label == ("b",) and not findings.of("error")
