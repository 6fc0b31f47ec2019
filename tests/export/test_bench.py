"""`unmask bench`: every backend that there is, timed by turns, compared, and one of them recommended."""

from __future__ import annotations

import json

import pytest

import unmask
from unmask.cli import main
from unmask.errors import ConfigError
from unmask.export import bench as package
from unmask.export.bench import _recommend, _speedups, bench
from unmask.export.onnx import export_model
from unmask.model.load import load_model


def run(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(arg) for arg in args])
    return (int(caught.value.code or 0), *capsys.readouterr())


def test_every_backend_by_turns(tiny_bert, sentences_file, monkeypatch, capsys):
    monkeypatch.setattr(package, "bf16_speedup", lambda device: 2.0)
    args = ["bench", tiny_bert, "--length", 8, "--length", 20, "--batch", 2, "--seconds", 0.01, "--data", sentences_file, "--json"]
    code, out, err = run(args, capsys)
    report = json.loads(out)
    names = ["torch fp32", "torch bf16", "onnx fp32", "onnx int8"]
    assert code == 0 and [cell["backend"] for cell in report["cells"]] == names * 2 and report["not_run"] == {}
    assert {(cell["length"], cell["batch"]) for cell in report["cells"]} == {(8, 2), (20, 2)}
    for cell in report["cells"]:
        assert cell["num_rounds"] >= 5 and 0 < cell["p50_milliseconds"] <= cell["p95_milliseconds"]
        assert cell["tokens_per_second"] >= 0.999 * cell["length"] * 2 / cell["p50_milliseconds"] * 1e3
    assert report["agreement"]["onnx fp32"]["same_top_1"] == 1 and report["agreement_on"] == "text"
    assert 0 < report["agreement"]["onnx int8"]["max_difference"] < 1 and set(report["agreement"]) == set(names[1:])
    assert report["recommendation"].startswith("recommended: ") and "20 tokens x 2" in err


def test_emulated_bf16_is_not_run_and_said(tiny_bert, monkeypatch, capsys):
    monkeypatch.setattr(package, "bf16_speedup", lambda device: 0.01)
    code, out, _ = run(["bench", tiny_bert, "--length", 8, "--batch", 1, "--seconds", 0.01], capsys)
    assert code == 0 and "torch bf16: not run: a product in bf16 is 0.01 times as fast as one in fp32 here: it is emulated" in out
    assert out.splitlines()[-1].startswith("recommended: ") and out.splitlines()[0].split()[:3] == ["backend", "tokens", "batch"]


def test_what_cannot_be_exported_is_benched_with_torch_alone(tmp_path, tiny_bert, monkeypatch):
    from transformers import DebertaV2Config, DebertaV2ForMaskedLM

    from unmask.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_bert)
    dials = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=len(tokenizer), **dials)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(package, "bf16_speedup", lambda device: 0.01)
    found = bench(tmp_path, lengths=[8], batches=[1], seconds=0.01)
    assert [cell["backend"] for cell in found.report["cells"]] == ["torch fp32"]
    assert "the architecture 'deberta-v2' cannot be exported" in found.report["not_run"]["onnx"]
    assert found.recommendation == "recommended: torch fp32: nothing else was run"


def test_an_export_is_benched_as_it_is(tiny_bert, tmp_path):
    from unmask.data.tokenizer import load_tokenizer

    export_model(load_model(tiny_bert), load_tokenizer(tiny_bert), tmp_path / "made", int8=True)
    found = unmask.bench(tmp_path / "made", lengths=[8], batches=[1], seconds=0.01)
    assert [cell["backend"] for cell in found.report["cells"]] == ["onnx int8"] and "an export" in found.report["not_run"]["torch"]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"lengths": [0]}, r"lengths = \[0\]"), ({"batches": []}, r"batches = \[\]"), ({"seconds": 0.0}, "seconds = 0; give a time above 0")],
)
def test_wrong_numbers_are_refused(tiny_bert, options, says):
    with pytest.raises(ConfigError, match=says):
        bench(tiny_bert, **options)


def cells(speeds):
    return [{"backend": name, "length": length, "batch": 1, "tokens_per_second": one * (1 + 0.1 * (name != "torch fp32") * length)}
            for length in (1, 2) for name, one in speeds.items()]  # fmt: skip


ALL = {"torch fp32": 10, "torch bf16": 20, "onnx int8": 40}


@pytest.mark.parametrize(
    ("speeds", "same", "says"),
    [
        (
            {"torch fp32": 10, "torch bf16": 20, "onnx int8": 40},
            {"torch bf16": 0.99, "onnx int8": 0.98},
            "recommended: onnx int8, 4.6 times",
        ),
        (
            {"torch fp32": 10, "torch bf16": 20, "onnx int8": 40},
            {"torch bf16": 0.99, "onnx int8": 0.6},
            "recommended: torch bf16, 2.3 times",
        ),
        (ALL, {"torch bf16": 0.99, "onnx int8": 0.6}, "onnx int8 is 4.6 times as fast"),
        ({"torch fp32": 10, "onnx fp32": 5}, {"onnx fp32": 1.0}, "recommended: torch fp32: nothing that was run is faster"),
    ],
)
def test_the_fastest_of_those_that_agree_is_recommended(speeds, same, says):
    found = cells(speeds)
    apart = {name: {"same_top_1": share, "num_rows": 100} for name, share in same.items()}
    report = {"speedup": _speedups(found, "torch fp32"), "agreement": apart, "agreement_on": "text"}
    assert says in _recommend(report, "torch fp32")
