"""Labelled texts from files as users have them; what is wrong with them is counted and said."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.errors import DataError
from unmask.tasks.classify_data import TextItem, balanced_weights, check, in_order, label_text, named, parted, problem_of, read_items
from unmask.tasks.findings import Findings
from unmask.tasks.recipe import TaskData


def read(path, **settings):
    return read_items([path], TaskData(**settings))


def codes(findings, level="error"):
    return {finding.code: finding.count for finding in findings.of(level)}


def test_a_csv_with_quoted_newlines_emoji_and_right_to_left(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,category\n"two\nlines, 👩‍⚕️",x\nمرحبا بالعالم,y\n"é and e\u0301",x\n', encoding="utf-8")
    items, findings = read(path)
    assert [item.text for item in items] == ["two\nlines, 👩‍⚕️", "مرحبا بالعالم", "é and e\u0301"]
    assert [item.label for item in items] == [("x",), ("y",), ("x",)] and items[1].where.endswith("a.csv:4") and not findings.of("error")


def test_text_tab_label_without_a_header(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('one " long string\t0\nanother\t1\n', encoding="utf-8")
    items, findings = read(path)
    assert [(item.text, item.label) for item in items] == [('one " long string', ("0",)), ("another", ("1",))]
    assert any("text in column '0'" in finding.text for finding in findings)
    assert read(path, text_column="0", label_column="1")[0] == items
    path = tmp_path / "b.csv"
    path.write_text('"one, two",0\nthree,1\n', encoding="utf-8")
    assert [item.text for item in read(path, text_column="0", label_column="1")[0]] == ["one, two", "three"]


def test_several_labels_in_one_field(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\t4,27\tid1\nb\t27\tid2\nc\t4\tid3\n", encoding="utf-8")
    items, _ = read(path)
    assert problem_of(item.label for item in items) == ("multi", ",") and items[0].id == "id1"
    assert problem_of([("Paris, France",), ("Rome, Italy",)]) == ("single", None)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([("a",), ("b",)], "single"), ([("0",), ("1",)], "single"), ([("0.5",), ("1.25",)], "regression"), ([("a", "b"), ("a",)], "multi"),
        ([("a",), ("",)], "multi"), ([("1e3",), ("2",)], "regression"), ([("1.x",), ("2",)], "single"),
    ],
)  # fmt: skip
def test_what_labels_look_like(labels, problem):
    assert problem_of(labels)[0] == problem


def test_labels_as_numbers_and_as_text_are_one_and_said(tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": "0"}, {"text": "c", "label": True}])
    items, findings = read(path)
    assert [item.label for item in items] == [("0",), ("0",), ("true",)] and codes(findings, "warning") == {"mixed_labels": 1}
    assert (label_text(1.0), label_text(1.5), label_text(float("nan")), label_text(" a "), label_text("none")) == (
        "1",
        "1.5",
        None,
        "a",
        "none",
    )


def test_what_cannot_be_used_is_counted_with_its_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "", "label": "a"}\n{"text": "b", "label": null}\n{"text": "c", "label": NaN}\n{"text": 7, "label": "a"}\n'
                    '{"text": ["x"], "label": "a"}\n{"text": "d", "label": []}\n', encoding="utf-8")  # fmt: skip
    items, findings = read(path)
    assert codes(findings) == {"empty_text": 1, "no_label": 2, "not_text": 1} and codes(findings, "warning") == {"number_text": 1}
    assert [item.text for item in items] == ["7", "d"]
    with pytest.raises(DataError, match=r"(?s)2 x there is no label \(empty, null or NaN\) \(.*a.jsonl:2, .*a.jsonl:3\).*--on-bad drop"):
        findings.refuse("error")
    findings.refuse("drop")


def test_columns_are_found_named_or_asked_for(tmp_path, write_csv):
    path = write_csv(tmp_path / "a.csv", [{"premise": "a", "hypothesis": "b", "gold_label": "yes"}])
    items, _ = read(path)
    assert (items[0].text, items[0].pair, items[0].label) == ("a", "b", ("yes",))
    path = write_csv(tmp_path / "b.csv", [{"body": "a", "kind": "x"}])
    with pytest.raises(DataError, match="which column holds the text. The columns are: body, kind; choose with --text-column"):
        read(path)
    items, _ = read(path, text_column="body", label_column="kind")
    assert items[0].text == "a"
    with pytest.raises(DataError, match="no column 'boddy'.*body, kind.*--text-column"):
        read(path, text_column="boddy")


def test_names_of_numbered_labels(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("a\t1\nb\t2\nc\t1,0\n", encoding="utf-8")
    items, findings = read(path)
    items = named(parted(items, ","), ["no", "yes"], findings)
    assert [item.label for item in items] == [("yes",), ("yes", "no")] and codes(findings) == {"no_such_number": 1}


def test_duplicates_conflicts_and_leaks():
    train = [TextItem("a b", label=("x",), where="1"), TextItem("a  b", label=("x",), where="2"), TextItem("a b", label=("y",), where="3")]
    findings = Findings()
    check(train, [TextItem("a b", label=("z",), where="4")], findings, given_dev=False)
    found = {finding.code: finding.count for finding in findings}
    assert found == {"duplicate": 1, "conflict": 1, "leak": 1, "rare_label": 2, "absent_label": 2, "untrained_label": 1}


def test_order_and_weights_of_labels():
    assert in_order(["10", "9", "0"]) == ["0", "9", "10"] and in_order(["b", "10", "a"]) == ["10", "a", "b"]
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    want = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert list(balanced_weights({"a": 6, "b": 3, "c": 1}).values()) == pytest.approx(list(want))


def test_of_much_data_no_more_is_held_out_than_can_be_measured_ten_times():
    assert TaskData().share_of(300) == TaskData().share_of(20_000) == 0.1
    assert TaskData().share_of(87_599) * 87_599 == pytest.approx(2000)
    assert TaskData(dev_share=0.3).share_of(1_000_000) == 0.3
