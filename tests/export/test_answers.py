"""A model that answers questions, exported: the same answers in fp32; int8 by its F1 on the run's held-out questions."""

from __future__ import annotations

import pytest

import unmask
from unmask.errors import GateError

pytest.importorskip("onnxruntime", reason="exports need the extra `onnx`")

WHERE, OTHER = "Where is the help?", "The judge calls the lawyer. "
TEXTS = [
    "The nurse helps the doctor in the harbour today.",
    OTHER,
    OTHER * 20 + "The nurse helps the doctor in the harbour today. " + OTHER * 20,
]


def test_it_answers_as_the_model_does(answering, tmp_path):
    found = unmask.export(answering.folder, tmp_path / "made")
    assert found.report["head"] == "ForQuestionAnswering" and found.report["parity"]["same_top_1"] == 1.0
    one, other = (unmask.Answerer.load(folder) for folder in (answering.folder, tmp_path / "made"))
    assert other.threshold == one.threshold and other.max_length == one.max_length == 48
    for a, b in zip(*(answerer.predict((WHERE, text) for text in [*TEXTS, TEXTS]) for answerer in (one, other)), strict=True):
        assert a.text == b.text and a.windows == b.windows and b.margin == pytest.approx(a.margin, abs=1e-3)
        assert [(x.start, x.end, x.context) for x in a.answers[:1]] == [(x.start, x.end, x.context) for x in b.answers[:1]]


def test_int8_is_measured_by_f1(answering, tmp_path):
    """Whether it is faster is up to the machine; what it loses of the F1 is told either way."""
    told: list[str] = []
    refused = ""
    try:
        found = unmask.export(answering.folder, tmp_path / "made", int8=True, max_drop=0.5, log=told.append)
    except GateError as error:
        refused = str(error)
    if refused:
        assert "not faster" in refused and "loses" not in refused
    else:
        assert unmask.Answerer.load(tmp_path / "made").answer(WHERE, TEXTS[0]).text == "harbour"
        assert found.report["metric"] == "f1" and found.report["change_of_f1"]["difference"] > -0.5
    assert any("onnx int8: f1 " in line for line in told)
