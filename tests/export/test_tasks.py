"""What was fine-tuned for a task, exported: fp32 says what the model says; int8 is measured by its number, and used as the model is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import unmask
from unmask.cli import main
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import ConfigError, GateError
from unmask.export.gate import compared
from unmask.export.onnx import export_model
from unmask.infer.backends import open_export
from unmask.infer.engine import Engine
from unmask.model.load import load_model, save_model

pytest.importorskip("onnxruntime", reason="exports need the extra `onnx`")

WORDS = {"health": ["hospital", "doctor", "nurse"], "law": ["court", "judge", "lawyer"], "sea": ["harbour", "sailor", "tower"]}
METRICS = {"single": "macro_f1", "multi": "macro_average_precision"}
WHERE, EVENT, OTHER = "Where is the help?", "The nurse helps the doctor in the harbour today.", "The judge calls the lawyer. "
TEXTS = [EVENT, OTHER, OTHER * 20 + EVENT + " " + OTHER * 20]


def rows(number, seed, problem):
    """Return texts whose words give their label, or their labels: what is of the sea is of the law, too, and a fifth is of nothing."""
    generator = np.random.default_rng(seed)
    made = []
    for place in range(number):
        label = list(WORDS)[int(generator.integers(3))]
        one, other = (WORDS[label][int(generator.integers(3))] for _ in range(2))
        if problem == "multi" and place % 5 == 0:
            made.append({"text": f"The teacher meets the student in the school number {place} .", "labels": []})
        elif problem == "multi":
            labels = ["law", "sea"] if label == "sea" else [label]
            made.append({"text": f"The {one} meets the student in the {other} number {place} .", "labels": labels})
        else:
            made.append({"text": f"The {one} meets the student in the {other} number {place} .", "label": label})
    return made


@pytest.fixture(scope="module", params=METRICS)
def classifying(request, tiny_bert, tmp_path_factory):
    """A run that has learnt to classify, and the file that it was measured on."""
    folder = tmp_path_factory.mktemp(request.param)
    for name, number in (("train", 240), ("dev", 75)):
        text = "".join(json.dumps(row) + "\n" for row in rows(number, number, request.param))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    run = unmask.finetune(
        "classify", tiny_bert, folder / "train.jsonl", dev=folder / "dev.jsonl", output=folder / "run", max_steps=100, device="cpu",
        precision="fp32", batch_size=16, max_length=32, learning_rate=1e-2, hide_prob=0.0,
    )  # fmt: skip
    metric = METRICS[request.param]
    assert run.metrics["best"] == metric and run.metrics[metric]["value"] > 0.7 and "temperature" in run.metrics["settings"]
    return run, folder / "dev.jsonl", metric


def command(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    return (int(stop.value.code or 0), *capsys.readouterr())


def in_eight_bits(run, head, folder):
    """Write a run's model in int8, however fast it is on this machine."""
    return export_model(load_model(run.model, head=head), load_tokenizer(run.model), folder, int8=True)


def with_one_number_too_large(run, head, folder):
    """Save a run's model with a number in its last layer that leaves eight bits nothing for the others; the head does not look at it."""
    model = load_model(run.model, head=head)
    reads = model.bert.pooler.dense if head == "sequence_classification" else model.qa_outputs
    with torch.no_grad():
        reads.weight[:, 0] = 0.0
        model.bert.encoder.layer[-1].output.LayerNorm.bias[0] = 30_000.0
    save_model(model, load_tokenizer(run.model), folder)
    return folder


def check_refused(run, head, data, metric, folder, capsys):
    """Check what the command does where int8 loses too much of the task's number: exit code 3, the table, no folder."""
    model = with_one_number_too_large(run, head, folder / "model")
    code, _, err = command(capsys, "export", model, "-o", folder / "fp32", "--data", data)
    assert code == 0, err
    code, out, err = command(capsys, "export", model, "--int8", "--max-drop", 0.1, "--data", data, "-o", folder / "int8")
    assert code == 3 and not out and not (folder / "int8").exists() and "Traceback" not in err
    assert "int8 is refused, and nothing was written: it loses 0." in err
    assert f" of the {metric.replace('_', ' ')}, and 0.1 is allowed (--max-drop)" in err
    table = err[err.index("\n\n") :].split("\n")
    assert metric in table[2] and [line.split("  ")[0] for line in table[3:6]] == ["torch fp32", "onnx fp32", "onnx int8"]
    assert sorted(path.name for path in folder.iterdir()) == ["fp32", "model"]


def check_gate(run, metric, folder, value):
    """Check that the gate measures int8 by the number of the run, on what the run has held out; how fast it is, is the machine's to say."""
    told: list[str] = []
    refused = ""
    try:
        found = unmask.export(run.folder, folder, int8=True, max_drop=0.5, log=told.append)
    except GateError as error:
        refused = str(error)
    before, after = (
        next(float(line.split()[3]) for line in told if line.startswith(f"{way}: {metric} ")) for way in ("torch fp32", "onnx int8")
    )
    assert before == pytest.approx(value, abs=1e-4) and after > before - 0.5
    if refused:
        assert "not faster" in refused and "loses" not in refused and not folder.exists()
    else:
        report = json.loads((folder / "export.json").read_text())
        assert report["metric"] == metric and report["num_items"] == run.metrics["num_examples"] and found.report == report
        points = {metric, "micro_f1"} if metric == METRICS["multi"] else {metric}
        assert all(found.keys() == points for found in report["points"].values())
        assert report[f"change_of_{metric}"]["a"] == pytest.approx(before, abs=1e-4)
        assert f"| {metric} |" in (folder / "README.md").read_text()


def test_a_classifier_says_in_onnx_what_it_says(classifying, tmp_path):
    run, dev, metric = classifying
    found = unmask.export(run.folder, tmp_path / "made", data=dev)
    assert found.report["text"] == "75 labelled items" and found.report["parity"]["same_top_1"] == 1.0
    texts = [row["text"] for row in rows(20, 1, "single")] + ["The judge meets the doctor . " * 30]
    one, other = (unmask.Classifier.load(folder) for folder in (run.folder, tmp_path / "made"))
    assert other.temperature == one.temperature != 1.0 and other.thresholds.tolist() == one.thresholds.tolist()
    for a, b in zip(one.predict(texts), other.predict(texts), strict=True):
        assert (a.label, a.labels, a.windows) == (b.label, b.labels, b.windows) and b.scores == pytest.approx(a.scores, abs=1e-4)
    one, other = (unmask.evaluate(folder, dev, resamples=0) for folder in (run.folder, tmp_path / "made"))
    assert other[metric] == pytest.approx(one[metric], abs=5e-3) and other["log_loss"] == pytest.approx(one["log_loss"], abs=1e-3)


def test_a_classifier_in_int8_is_measured_by_its_own_number(classifying, tmp_path):
    run, _, metric = classifying
    check_gate(run, metric, tmp_path / "made", run.metrics[metric]["value"])


def test_a_classifier_that_int8_breaks_is_refused(classifying, tmp_path, capsys):
    run, dev, metric = classifying
    check_refused(run, "sequence_classification", dev, metric, tmp_path, capsys)


@pytest.mark.parametrize("classifying", ["single"], indirect=True)
def test_a_classifier_in_int8_is_used_as_the_model_is(classifying, tmp_path, capsys):
    run, dev, metric = classifying
    made = in_eight_bits(run, "sequence_classification", tmp_path / "made")
    texts = [row["text"] for row in rows(20, 1, "single")]
    code, out, err = command(capsys, "predict", made, *texts, "--json")
    assert code == 0, err
    before = unmask.Classifier.load(run.folder).predict(texts)
    said = [json.loads(line) for line in out.splitlines()]
    assert sum(one["labels"] == list(two.labels) for one, two in zip(said, before, strict=True)) >= 18
    assert all(one["logits"] != pytest.approx(two.logits, abs=1e-6) for one, two in zip(said, before, strict=True))  # it is in eight bits
    code, out, err = command(capsys, "evaluate", made, "--data", dev, "--json", "--resamples", 0)
    assert code == 0 and json.loads(out)[metric]["value"] > run.metrics[metric]["value"] - 0.1, err


def test_the_number_by_which_a_run_chose_is_that_of_the_gate(tiny_bert, tmp_path):
    for name, number in (("train", 40), ("dev", 60)):
        text = "".join(json.dumps(row) + "\n" for row in rows(number, number, "single"))
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    run = unmask.finetune(
        "classify", tiny_bert, tmp_path / "train.jsonl", dev=tmp_path / "dev.jsonl", output=tmp_path / "run", max_steps=2, device="cpu",
        precision="fp32", max_length=32, overrides=["options.best=log_loss"], calibrate=False,
    )  # fmt: skip
    check_gate(run, "log_loss", tmp_path / "made", run.metrics["log_loss"]["value"])
    (run.folder / "metrics.json").write_text(json.dumps({**run.metrics, "best": "root_mean_squared_error"}), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"best checkpoint by root_mean_squared_error, and these items give accuracy, .* only; name others"
    ):
        unmask.export(run.folder, tmp_path / "other", int8=True)


def test_an_answerer_says_in_onnx_what_it_says(answering, tmp_path):
    found = unmask.export(answering.folder, tmp_path / "made")
    assert found.report["head"] == "ForQuestionAnswering"
    parity = found.report["parity"]
    assert parity["same_top_1"] == 1.0 and parity["num_rows"] == 2 * 65  # a start and an end of each sequence
    one, other = (unmask.Answerer.load(folder) for folder in (answering.folder, tmp_path / "made"))
    assert other.threshold == one.threshold and other.max_length == one.max_length == 48
    for a, b in zip(*(answerer.predict((WHERE, text) for text in [*TEXTS, TEXTS]) for answerer in (one, other)), strict=True):
        assert a.text == b.text and a.windows == b.windows and b.margin == pytest.approx(a.margin, abs=1e-3)
        assert [(x.start, x.end, x.context) for x in a.answers[:1]] == [(x.start, x.end, x.context) for x in b.answers[:1]]


def test_an_answerer_in_int8_is_measured_by_f1(answering, tmp_path):
    # with the threshold that is stored, which is the best on these questions
    check_gate(answering, "f1", tmp_path / "made", answering.metrics["best_threshold"]["f1"])


def test_answers_agree_where_start_and_end_do(answering, questions, tmp_path):
    answerer = unmask.Answerer.load(answering.folder)
    requests = list(answerer.requests(answerer.encode([(row["question"], row["context"]) for row in questions(40, seed=5)])))
    rough = Engine(open_export(in_eight_bits(answering, "question_answering", tmp_path / "made"))[0])
    found = compared(answerer.engine, rough, requests, head="ForQuestionAnswering")
    pairs = zip(answerer.engine.logits(requests), rough.logits(requests), strict=True)
    same = [(np.argmax(np.asarray(one), 0) == np.argmax(np.asarray(other), 0)).tolist() for one, other in pairs]
    assert found.num_rows == 2 * len(requests) and found.same_top_1 == pytest.approx(np.mean(same)) and found.max_difference > 1e-3


def test_an_answerer_that_int8_breaks_is_refused(answering, questions_file, tmp_path, capsys):
    check_refused(answering, "question_answering", questions_file, "f1", tmp_path, capsys)


def test_an_answerer_in_int8_is_used_as_the_model_is(answering, questions_file, tmp_path, capsys):
    made = in_eight_bits(answering, "question_answering", tmp_path / "made")
    code, out, err = command(capsys, "predict", made, "--question", WHERE, "--context", EVENT, "--json")
    assert code == 0 and json.loads(out)["text"] == "harbour", err
    assert json.loads(out)["score"] != pytest.approx(unmask.Answerer.load(answering.folder).answer(WHERE, EVENT).score, abs=1e-7)
    code, out, err = command(capsys, "evaluate", made, "--data", questions_file, "--json", "--resamples", 0)
    assert code == 0 and json.loads(out)["f1"]["value"] > answering.metrics["f1"]["value"] - 0.1, err
