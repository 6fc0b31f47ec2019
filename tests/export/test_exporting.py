"""`unmask export`: nothing is there until it was measured, int8 only where it is good enough and faster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import unmask
from unmask.cli import main
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import CheckpointError, ConfigError, GateError
from unmask.export import exporting, gate
from unmask.export.gate import Row, faults
from unmask.infer.backends import open_export
from unmask.infer.measure import Agreement
from unmask.model.load import load_model, save_model
from unmask.model.new_head import with_new_head


def run(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    return (int(caught.value.code or 0), *capsys.readouterr())


@pytest.fixture(scope="module")
def exported(tiny_bert, sentences_file, tmp_path_factory):
    return unmask.export(tiny_bert, tmp_path_factory.mktemp("out") / "made", data=sentences_file, max_tokens=3000)


def test_an_export_is_whole(exported, tiny_bert):
    names = {file.name for file in exported.folder.iterdir()}
    assert names == {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "export.json", "README.md", "manifest.json"}
    assert [file.name for file in exported.folder.parent.iterdir()] == ["made"]  # nothing half made beside it
    report = json.loads((exported.folder / "export.json").read_text())
    assert report == json.loads(json.dumps(exported.report)) and report["precision"] == "fp32" and report["head"] == "ForMaskedLM"
    parity = report["parity"]
    assert parity["same_top_1"] == 1 and parity["max_difference"] < 1e-4 < parity["max_logit"] and parity["num_rows"] > 200
    assert [row["name"] for row in report["table"]] == ["torch fp32", "onnx fp32"]
    assert str(tiny_bert.parent) not in json.dumps(report) + (exported.folder / "README.md").read_text()


def check_readme(folder, number):
    """Run the Python code of a folder's README, in the folder, without torch."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    assert len(blocks) == number
    for block in blocks:
        code = f"{block}\nimport sys\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_readme_runs(exported):
    check_readme(exported.folder, 2)
    assert "| onnx fp32 |" in (exported.folder / "README.md").read_text()


def test_the_command(tiny_bert, tmp_path, capsys):
    code, out, err = run(["export", tiny_bert, "-o", tmp_path / "made", "--json"], capsys)
    assert code == 0 and json.loads(out)["text"] == "no text: tokens drawn at random" and "written to" in err
    code, out, err = run(["export", tiny_bert, "-o", tmp_path / "made"], capsys)
    assert code == 2 and "exists, and nothing is written over" in err
    code, out, err = run(["export", tmp_path / "made", "-o", tmp_path / "again"], capsys)
    assert code == 2 and "is an exported model already" in err
    code, out, _ = run(["fill", tmp_path / "made", "The [MASK] treats the nurse."], capsys)
    assert code == 0 and len(out.splitlines()) == 6


def test_a_model_for_a_task(tiny_bert, tmp_path, capsys):
    model = with_new_head(tiny_bert, "sequence_classification", labels=["good", "bad"], seed=0)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    save_model(model, load_tokenizer(tiny_bert), tmp_path / "model")
    code, _, err = run(["export", tmp_path / "model", "-o", tmp_path / "made"], capsys)
    assert code == 0, err
    report = json.loads((tmp_path / "made" / "export.json").read_text())
    assert report["head"] == "ForSequenceClassification" and report["parity"]["num_rows"] == 65
    texts = ["The nurse treats the patient.", "A judge is late. " * 60]
    one, other = (unmask.Classifier.load(tmp_path / name).predict(texts) for name in ("model", "made"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-4)
        assert a.label == b.label and a.windows == b.windows
    check_readme(tmp_path / "made", 2)
    with pytest.raises(ConfigError, match="int8 is measured on your labelled data before it may be used: name some"):
        unmask.export(tmp_path / "model", tmp_path / "small", int8=True)
    with pytest.raises(ConfigError, match="layout: a model for a task is measured on labelled files"):
        unmask.export(tmp_path / "model", tmp_path / "small", data="a.csv", layout="line")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "tflite"}, "to = 'tflite'; allowed: onnx"),
        ({"max_drop": -0.1}, "max_drop = -0.1; it is a share"),
        ({"int8": True}, "int8 is measured on your text before it may be used: name some"),
    ],
)
def test_wrong_options_are_refused_at_once(tiny_bert, tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        unmask.export(tiny_bert, tmp_path / "made", **options)
    assert not list(tmp_path.iterdir())


def test_an_export_that_answers_otherwise_is_not_written(tiny_bert, tmp_path, monkeypatch):
    real = exporting.export_model

    def wrong(model, tokenizer, folder, *, int8=False):  # a graph that is not the model's: one layer short
        model.bert.encoder.layer = model.bert.encoder.layer[:1]
        return real(model, tokenizer, folder, int8=int8)

    whole = load_model(tiny_bert)
    layers = whole.bert.encoder.layer

    def then_back(*args, **options):
        made = wrong(*args, **options)
        whole.bert.encoder.layer = layers
        return made

    monkeypatch.setattr(exporting, "export_model", then_back)
    with pytest.raises(GateError, match="does not give the answers of .*nothing was written"):
        unmask.export(whole, tmp_path / "made", tokenizer=load_tokenizer(tiny_bert))
    assert not list(tmp_path.iterdir())


def only_words(model):
    """Make of a model one whose tokens say what they are themselves, and nearly nothing of each other."""
    for name, parameter in model.named_parameters():
        if "encoder" in name and parameter.ndim > 1:
            parameter.mul_(0.01)
    table = model.bert.embeddings.word_embeddings.weight
    table.copy_(torch.nn.functional.normalize(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)), dim=1))


def copier(tiny_bert, *, spread):
    """A model that predicts the token which stands in a place: right where a masked token was kept.

    `spread` makes one number of its last layer so large that eight bits have none left for the others.
    """
    model = load_model(tiny_bert)
    with torch.no_grad():
        only_words(model)
        head = model.cls.predictions.transform.dense
        head.weight.copy_(torch.eye(len(head.weight)))
        if spread:  # of something that the head does not look at
            head.weight[0, 0] = 0.0
            model.bert.encoder.layer[-1].output.LayerNorm.bias[0] = 30_000.0
    return model


def test_int8_that_loses_too_much_is_refused_with_the_table(tiny_bert, sentences_file, tmp_path, capsys):
    model = copier(tiny_bert, spread=True)
    tokenizer = load_tokenizer(tiny_bert)
    with pytest.raises(GateError, match=r"int8 is refused, and nothing was written: it loses 0\.\d+ of the masked accuracy") as caught:
        unmask.export(model, tmp_path / "made", int8=True, data=sentences_file, max_tokens=3000, tokenizer=tokenizer)
    table = str(caught.value).split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == ["torch fp32", "onnx fp32", "onnx int8"]
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    args = ["export", tmp_path / "model", "--int8", "--data", sentences_file, "--max-tokens", 3000, "-o", tmp_path / "made"]
    code, out, err = run(args, capsys)
    assert code == 3 and not out and "onnx int8" in err and not (tmp_path / "made").exists()


def test_int8_that_is_good_enough_is_written_if_it_is_faster(tiny_bert, sentences_file, tmp_path):
    """Whether it is faster is up to the machine; that it is not refused for what it loses is not."""
    model, made = copier(tiny_bert, spread=False), tmp_path / "made"
    refused = ""
    try:
        found = unmask.export(model, made, int8=True, data=sentences_file, max_tokens=3000, tokenizer=load_tokenizer(tiny_bert))
    except GateError as error:
        refused = str(error)
    assert made.exists() is not bool(refused)
    if refused:
        assert "not faster" in refused and "loses" not in refused
        return
    assert open_export(made)[0].precision == "int8" and len(found.table) == 4
    change = found.report["change_of_masked_accuracy"]
    assert change["low"] <= change["difference"] <= change["high"] and found.report["masks_fingerprint"]


@pytest.mark.parametrize("spread", [False, True])
def test_int8_of_a_task_is_measured_by_the_tasks_own_number(tiny_bert, tmp_path, spread):
    model, tokenizer = with_new_head(tiny_bert, "token_classification", labels=["O", "B-x", "B-y"], seed=0), load_tokenizer(tiny_bert)
    with torch.no_grad():
        only_words(model)
        model.classifier.weight.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(1)))
        if spread:  # of something that the head does not look at
            model.classifier.weight[:, 0] = 0.0
            model.bert.encoder.layer[-1].output.LayerNorm.bias[0] = 30_000.0
    tagger = unmask.Tagger(model, tokenizer)
    texts = [tuple(f"The {a} helps the {b} in the market .".split()) for a in ("nurse", "judge", "sailor") for b in ("farmer", "student")]
    data = tmp_path / "right.conll"  # all that the model says is right
    data.write_text("".join(tagger.conll(tagger.record(*pair)) for pair in tagger.pairs(texts)), encoding="utf-8")
    assert "B-x" in data.read_text() or "B-y" in data.read_text()
    refused, report = "", {}
    try:
        report = unmask.export(model, tmp_path / "made", int8=True, data=data, max_drop=0.3, tokenizer=tokenizer).report
    except GateError as error:
        refused = str(error)
    if spread:
        assert "of the f1, and 0.3 is allowed" in refused and not (tmp_path / "made").exists()
        return
    assert "loses" not in refused and ("not faster" in refused or report["metric"] == "f1")  # how fast it is, is the machine's to say
    if report:
        assert report["change_of_f1"]["a"] == 1.0 and report["num_items"] == 6
        assert len(unmask.Tagger.load(tmp_path / "made").predict(texts[0])) > 0


def row(name, accuracy, tokens, latency):
    return Row(name, tokens, latency, latency, 10, Agreement(10, 1.0, 0.0, 1.0), accuracy, 1.0)


@pytest.mark.parametrize(
    ("accuracy", "tokens", "latency", "says"),
    [
        (0.496, 300.0, 1.0, []),
        (0.51, 300.0, 1.0, []),
        (0.49, 300.0, 1.0, ["it loses 0.0100"]),
        (float("nan"), 300.0, 1.0, ["it loses nan"]),
        (0.5, 150.0, 1.0, ["many texts together are not faster than with onnx fp32"]),
        (0.5, 300.0, 2.0, ["one text alone is not faster than with torch fp32"]),
        (0.4, 90.0, 9.0, ["it loses 0.1", "together", "alone", "together", "alone"]),
    ],
)
def test_the_gate(accuracy, tokens, latency, says):
    found = faults([row("torch fp32", 0.5, 100, 2.0), row("onnx fp32", 0.5, 200, 3.0), row("onnx int8", accuracy, tokens, latency)], 0.005)
    assert len(found) == len(says) and all(part in one for part, one in zip(says, found, strict=True))


def test_a_number_that_should_be_low_may_grow_by_a_share():
    numbers = ((0.5, 1, 2.0), (0.52, 2, 1.0), (0.56, 2, 1.0))
    before, near, far = (replace(row("", None, *speed), task_metric=value) for value, *speed in numbers)
    assert faults([before, near], 0.1, "rmse", False) == []
    (lost,) = faults([before, near], 0.1, "rmse", False, {"micro_f1": (0.8, 0.6), "macro_f1": (0.8, 0.75)})
    assert "loses 0.2000 of the micro f1" in lost
    (grown,) = faults([before, far], 0.1, "rmse", False)
    assert "it loses 0.1200 of the rmse" in grown


def test_parity_is_of_numbers_and_of_answers():
    assert gate.holds(Agreement(100, 1.0, 1e-4, 9.0)) and gate.holds(Agreement(100, 0.9995, 5e-3, 9.0))
    assert not gate.holds(Agreement(100, 1.0, 2e-2, 9.0)) and not gate.holds(Agreement(100, 0.99, 1e-4, 9.0))
    assert not gate.holds(Agreement(100, 1.0, float("nan"), 9.0))


def test_a_run_is_measured_on_its_own_held_out_text(tiny_bert, sentences_file, tmp_path):
    unmask.pack(sentences_file, tmp_path / "corpus", tokenizer=str(tiny_bert), held_out=0.2)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "config.toml").write_text(f'[data]\nsources = ["{tmp_path / "corpus"}"]\n')
    model = load_model(tiny_bert)
    model.save_pretrained(run_folder / "model")
    load_tokenizer(tiny_bert).save_pretrained(run_folder / "model")
    found = unmask.export(run_folder, tmp_path / "made")
    assert re.fullmatch(r"\d+ documents of [\d,]+ tokens", found.report["text"])
    with pytest.raises(CheckpointError, match="exists, and nothing is written over"):
        unmask.export(run_folder, tmp_path / "made")
    assert np.isfinite(found.report["table"][1]["tokens_per_second"])
