"""Tags, files, and the official scorer: its outputs are recorded below, and its rules written out a second time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import DataError
from unmask.tasks.classify_data import read_names
from unmask.tasks.doctor import doctor
from unmask.tasks.ner_conlleval import conlleval
from unmask.tasks.ner_data import read_tagged, words_of
from unmask.tasks.ner_tags import convert, scheme_of, spans_of, tags_of
from unmask.tasks.recipe import TaskData

# what conlleval (version of 2004-01-26) printed for these tags
OFFICIAL = json.loads(Path(__file__).with_name("conlleval.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case["name"])
def test_conlleval_prints_what_the_official_script_printed(case):
    gold, said = ([tags.split() for tags in case[key]] for key in ("gold", "said"))
    assert conlleval(gold, said).report() == case["official"]


def second(gold, said):
    """Count as the official script does: token by token, with a flag for whether the open entity is right so far."""
    counts = [Counter(), Counter(), Counter()]
    for right, guess in zip(gold, said, strict=True):
        last, right_so_far = [("O", ""), ("O", "")], False
        for tags in [*zip(right, guess, strict=True), ("O", "O")]:
            now = [(tag.partition("-")[0], tag.partition("-")[2]) for tag in tags]
            over = [
                b[0] + a[0] in ("BB", "BO", "IB", "IO", "EE", "EI", "EO") or (b[0] != "O" and b[1] != a[1])
                for b, a in zip(last, now, strict=True)
            ]
            new = [
                b[0] + a[0] in ("BB", "IB", "OB", "OI", "EE", "EI", "OE") or (a[0] != "O" and b[1] != a[1])
                for b, a in zip(last, now, strict=True)
            ]
            if right_so_far and all(over) and last[0][1] == last[1][1]:
                counts[2][last[0][1]] += 1
                right_so_far = False
            elif right_so_far and (over[0] != over[1] or now[0][1] != now[1][1]):
                right_so_far = False
            if all(new) and now[0][1] == now[1][1]:
                right_so_far = True
            for counter, begins, (_, kind) in zip(counts, new, now, strict=False):
                if begins:
                    counter[kind] += 1
            last = now
    return counts


TAG = st.one_of(st.just("O"), st.builds("{}-{}".format, st.sampled_from("BIEX"), st.sampled_from(["a", "b", "c-d"])))


@given(st.lists(st.lists(st.tuples(TAG, TAG, st.booleans()), min_size=1, max_size=10), min_size=1, max_size=4))
def test_conlleval_counts_what_a_second_computation_counts(sentences):
    gold = [[a for a, _, _ in sentence] for sentence in sentences]
    said = [[a if same else b for a, b, same in sentence] for sentence in sentences]
    found = conlleval(gold, said)
    assert [found.gold, found.found, found.right] == second(gold, said)


SPANS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("xy")), max_size=5)


@given(SPANS, st.sampled_from(["bio", "iob1", "bioes", "bilou"]), st.sampled_from(["bio", "iob1", "bioes", "bilou"]))
def test_tags_say_the_spans_that_they_were_made_of(parts, scheme, other):
    spans, at = [], 0
    for gap, length, kind in parts:
        spans.append((at + gap, at + gap + length, kind))
        at += gap + length
    tags = tags_of(spans, at + 1, scheme)
    assert spans_of(tags) == spans and spans_of(convert(tags, other)) == spans and convert(tags, scheme) == tags


def test_schemes_are_seen():
    assert scheme_of([["O", "I-a", "B-a"]]) == "iob1" and scheme_of([["O", "B-a", "I-a"]]) == "bio"
    assert scheme_of([["S-a", "O"]]) == "bioes" and scheme_of([["U-a"]]) == "bilou" and scheme_of([["O", "per", "per"]]) == "io"
    assert tags_of([(0, 2, "a"), (2, 3, "a"), (4, 5, "a")], 5, "iob1") == ["I-a", "I-a", "B-a", "O", "I-a"]
    assert spans_of(["per", "per", "O", "loc"], bare=True) == [(0, 2, "per"), (3, 4, "loc")]
    with pytest.raises(DataError, match="overlaps"):
        tags_of([(0, 2, "a"), (1, 3, "a")], 3)
    with pytest.raises(DataError, match="'X-a' is no tag"):
        spans_of(["X-a"])


def test_words_of_scripts_with_and_without_spaces():
    def shown(text):
        return [text[a:b] for a, b in words_of(text)]

    assert shown("O'Brien, 10mg 😀!") == ["O", "'", "Brien", ",", "10mg", "😀", "!"]
    assert shown("東京へ行くTokyo") == ["東", "京", "へ", "行", "く", "Tokyo"]
    assert shown("cafe\u0301 \u05e9\u05dc\u05d5\u05dd") == ["cafe\u0301", "\u05e9\u05dc\u05d5\u05dd"]


@pytest.mark.parametrize("mark", ["\t", " ", "  ", ",", ";", "|"])
def test_columns_of_any_separator_documents_and_comments(tmp_path, mark):
    lines = ["-DOCSTART-", "", "# a comment", f"#tag{mark}O", f"EU{mark}B-ORG", "", "", f"Paris{mark}I-LOC"]
    path = tmp_path / "a.conll"
    path.write_bytes("\r\n".join(lines).encode())
    items, findings = read_tagged(str(path), TaskData())
    assert [item.text for item in items] == ["#tag EU", "Paris"] and [item.entities for item in items] == [
        ((5, 7, "ORG"),),
        ((0, 5, "LOC"),),
    ]
    assert {finding.code for finding in findings} >= {"docstart", "comment"}


def test_columns_can_be_named(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("0 EU NNP B-ORG x\n1 says VB O x\n", encoding="utf-8")
    (item,), _ = read_tagged(str(path), TaskData(text_column="1", label_column="3"))
    assert item.text == "EU says" and item.entities == ((0, 2, "ORG"),)
    with pytest.raises(DataError, match="numbers from 0 to 4"):
        read_tagged(str(path), TaskData(text_column="word"))


def test_json_lines_of_both_kinds_and_what_is_wrong_with_them(tmp_path):
    rows = [
        {"text": "Mr. Wu😀 left", "spans": [{"start": 4, "end": 6, "label": "PER"}]},
        {"text": "in Rome ", "entities": [[3, 8, "LOC"]]},
        {"text": "Berliners", "label": [[0, 6, "LOC"]]},
        {"tokens": ["A", "b"], "tags": ["B-PER", "O"]},
        {"tokens": ["A", "b"], "tags": ["B-PER"]},
        {"tokens": ["A"], "tags": ["nonsense"]},
        {"text": "Rome", "spans": [[0, 9, "LOC"]]},
        {"text": "New York", "spans": [[0, 8, "LOC"], [4, 8, "LOC"]]},
        {"text": " ", "spans": []},
        {"tokens": ["b", "A"], "tags": ["O", "I-PER"]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    items, findings = read_tagged(str(path), TaskData())
    assert [item.text for item in items] == ["Mr. Wu😀 left", "in Rome ", "Berliners", "A b", "b A"]
    assert [item.entities for item in items] == [((4, 6, "PER"),), ((3, 7, "LOC"),), ((0, 6, "LOC"),), ((0, 1, "PER"),), ((2, 3, "PER"),)]
    counted = {finding.code: (finding.level, finding.count) for finding in findings if finding.level != "note"}
    assert counted == {
        "span_space": ("warning", 1), "misaligned": ("warning", 1), "tag_count": ("error", 1), "unknown_tag": ("error", 1),
        "span_outside": ("error", 1), "overlap": ("error", 1), "empty_text": ("error", 1), "illegal": ("warning", 1),
    }  # fmt: skip
    with pytest.raises(DataError, match="tokens and tags differ"):
        findings.refuse("error")


@pytest.mark.parametrize("wrong", ["X-PER", "b-PER", "M_PER"])
def test_a_letter_that_no_scheme_has_is_no_part_of_a_type(tmp_path, wrong):
    """In a file where no other tag says what the scheme is, too."""
    path = tmp_path / "a.conll"
    for others in (["O", "O"], ["B-PER", "I-PER"]):
        path.write_text("".join(f"word {tag}\n" for tag in (wrong, *others)) + "\nRome O\n", encoding="utf-8")
        items, findings = read_tagged(str(path), TaskData())
        assert [item.text for item in items] == ["Rome"]
        with pytest.raises(DataError, match=rf"1 x tag is none of O, B-TYPE.*a.conll:1: '{wrong}'"):
            findings.refuse("error")
    path.write_text("A work-of-art\nb GPE_NOM\nc O\n", encoding="utf-8")  # types of their own
    (item,), findings = read_tagged(str(path), TaskData())
    assert [kind for *_, kind in item.entities] == ["work-of-art", "GPE_NOM"] and not findings.of("error")


def test_tags_as_numbers_need_names(tmp_path):
    path, names = tmp_path / "a.jsonl", tmp_path / "names.txt"
    path.write_text(json.dumps({"tokens": ["A", "b"], "ner_tags": [1, 0]}) + "\n", encoding="utf-8")
    names.write_text("O\nB-PER\n", encoding="utf-8")
    (item,), _ = read_tagged(str(path), TaskData(), names=read_names(names))
    assert item.entities == ((0, 1, "PER"),)
    with pytest.raises(DataError, match="label_names=FILE"):
        read_tagged(str(path), TaskData())


def test_doctor_tells_what_training_would_meet(tmp_path):
    train, dev = tmp_path / "train.conll", tmp_path / "dev.conll"
    train.write_text("A B-x\nb O\n\nA B-x\nb O\n\nA O\nb O\n\nc B-x\nd O\n", encoding="utf-8")
    dev.write_text("c B-x\nd O\n\nq B-new\n", encoding="utf-8")
    report = doctor("ner", [str(train)], [str(dev)])
    found = {finding.code: finding.count for finding in report.findings if finding.level != "note"}
    assert found == {"unknown_type:new": 1, "duplicate": 1, "conflict": 1, "leak": 1, "rare_type": 1}
    assert report.is_fatal and report.facts["types"] == {"x": 3} and report.facts["num_words"] == 8
    dev.write_text("c O\nd O\n", encoding="utf-8")
    said = [str(one) for one in doctor("ner", [str(train)], [str(dev)]).findings if one.code == "absent_label"]
    assert said and said[0].startswith("warning: 1 x type of the training data stands in no held-out text") and "'x' (3 to" in said[0]
    train.write_text("A O\n", encoding="utf-8")
    with pytest.raises(DataError, match="no entity in the training data"):
        doctor("ner", [str(train)], [str(dev)])
