"""Blanks and facts: precision by hand, exact candidates, and every item that cannot be asked is counted with its reason."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from unmask.cli import main
from unmask.data.manifest import check_manifest
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.evaluate.cloze import cloze, facts
from unmask.evaluate.items import numbers, sliced
from unmask.tasks.fill import Filler

TEXT = "The [MASK] watches the surgeon in the garden today."


@pytest.fixture(scope="module")
def filled(tiny_bert):
    """The tokens that stand at the blank in order, best first: those that are words of their own."""
    return [
        candidate
        for candidate in Filler.load(tiny_bert, device="cpu").fill(TEXT, top_k=10_000)[0]
        if candidate.token.isalpha() and not candidate.joined
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ranks(tiny_bert):
    """The rank of every token at the blank."""
    return {
        candidate.token: rank
        for rank, candidate in enumerate(Filler.load(tiny_bert, device="cpu").fill(TEXT, top_k=10_000)[0], start=1)
        if not candidate.joined
    }


def test_precision_by_hand(tiny_bert, tmp_path, filled):
    rank = ranks(tiny_bert)
    words = [candidate.token for candidate in filled[:12]]
    file = write(tmp_path / "a.jsonl", [{"text": TEXT, "answer": word, "kind": word[0]} for word in words])
    found = cloze(tiny_bert, file, slice_by="kind", resamples=200, output=tmp_path / "out", device="cpu")
    expected = np.array([rank[word] for word in words])
    for k in (1, 5, 10):
        assert found[f"precision_at_{k}"] == pytest.approx(np.mean(expected <= k))
    assert found["mean_reciprocal_rank"] == pytest.approx(np.mean(1 / expected))
    logs = np.log([candidate.score for candidate in filled[:12]])
    assert found["mean_log_prob"] == pytest.approx(logs.mean(), abs=1e-5)
    assert found["mean_log_prob_per_word"] == pytest.approx(logs.mean(), abs=1e-5)
    assert found["mean_log_prob_per_byte"] == pytest.approx(logs.sum() / sum(map(len, words)), abs=1e-5)
    entry = found.metrics["mean_reciprocal_rank"]
    assert entry["low"] <= entry["value"] <= entry["high"] and entry["count"] == 12
    assert {row["name"]: row["count"] for row in found.metrics["slices"]["kind"]} == {
        kind: sum(word[0] == kind for word in words) for kind in dict.fromkeys(word[0] for word in words)
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["rank"] for line in lines] == expected.tolist() and lines == json.loads(json.dumps(found.predictions))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(json.dumps(found.metrics))
    (tmp_path / "out" / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"predictions.jsonl has 3 bytes instead of \d+"):
        check_manifest(tmp_path / "out")
    cloze(tiny_bert, file, resamples=0, output=tmp_path / "out", device="cpu")  # the results of a test are written over
    check_manifest(tmp_path / "out")
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == len(lines)


def test_several_answers_and_candidates(tiny_bert, tmp_path, filled):
    best, good, bad, worst = (filled[place].token for place in (0, 3, 6, -1))
    rank = ranks(tiny_bert)
    file = write(
        tmp_path / "a.jsonl",
        [
            {"text": TEXT, "answers": [bad, good], "candidates": [best, worst]},
            {"text": TEXT, "answers": f"{good}|{worst}", "candidates": f"{bad}|{worst}"},
            {"text": TEXT, "answers": [good], "candidates": [f"{good} {good}", good]},
            {"text": TEXT, "answers": [good], "candidates": ["☃", bad]},
            {"text": TEXT, "answers": [good.capitalize(), "☃"]},
        ],
    )
    found = cloze(tiny_bert, file, device="cpu", resamples=0)
    first, second, third, fourth, last = found.predictions
    assert first["rank"] == rank[good] and first["answer"] == good and first["chosen"] == best and first["choice"] == 0.0
    assert second["choice"] == 1.0 and second["chance"] == pytest.approx(2 / 3)
    assert len(third["candidates"]) == 2 and fourth["choice_error"].startswith("'☃'")
    assert last["num_unscored_answers"] == 1 and found["num_unscored_answers"] == 1
    metrics = found.metrics
    assert metrics["num_without_choice"] == 1 and metrics["candidate_accuracy"]["count"] == 3
    assert found["candidate_accuracy"] == pytest.approx(np.mean([first["choice"], second["choice"], third["choice"]]))
    assert metrics["precision_at_1"]["low"] is None and "no resamples" in metrics["precision_at_1"]["why"]
    assert {row["name"] for row in metrics["slices"]["pieces"]} <= {"one piece", "several pieces"}


def test_answers_of_several_pieces_have_the_worst_rank_of_their_pieces(tiny_bert, tmp_path, filled):
    answer = f"{filled[0].token} {filled[1].token}"
    found = cloze(tiny_bert, write(tmp_path / "a.jsonl", [{"text": TEXT, "answer": answer}]), device="cpu")
    (line,) = found.predictions
    assert len(line["pieces"]) == 2 and line["log_prob"] == pytest.approx(math.fsum(line["piece_log_probs"]))
    assert found["mean_log_prob_per_word"] == pytest.approx(line["log_prob"] / 2)
    assert (line["predicted"] == answer) == (line["rank"] == 1)
    assert "one item only" in found.metrics["precision_at_1"]["why"]


def test_what_cannot_be_asked_is_counted(tiny_bert, tmp_path):
    rows = [
        {"text": TEXT, "answer": "doctor"},
        {"text": TEXT, "answer": "  "},
        {"text": TEXT},
        {"text": TEXT, "answer": None},
        {"text": TEXT, "answer": "☃"},
        {"text": "no blank", "answer": "doctor"},
        {"text": "", "answer": "doctor"},
        {"text": "[MASK] and ___", "answer": "doctor"},
        {"text": TEXT, "answer": "[SEP]"},
    ]
    found = cloze(tiny_bert, write(tmp_path / "a.jsonl", rows), device="cpu")
    assert found.metrics["num_items"] == 9 and found.metrics["num_scored"] == 1 and found.metrics["num_excluded"] == 8
    assert found.metrics["excluded"] == {
        "no answer": 3, "unknown to the tokenizer": 1, "no mask": 2, "several masks": 1, "a special token": 1,
    }  # fmt: skip
    assert [("error" in line) for line in found.predictions] == [False] + [True] * 8
    assert found.predictions[1]["id"].endswith("a.jsonl:2")
    with pytest.raises(DataError, match=r"none of 1 items can be scored \(1 × unknown to the tokenizer\)"):
        cloze(tiny_bert, write(tmp_path / "b.jsonl", rows[4:5]), device="cpu")


def test_files_that_are_wrong(tiny_bert, tmp_path):
    def raises(match, content, name="a.csv", error=DataError, **options):
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(error, match=match):
            cloze(tiny_bert, tmp_path / name, device="cpu", **options)

    raises("is empty", "")
    raises("holds no rows", "text,answer\n")
    raises("no column 'text'; the columns are: sentence, answer; choose with --template", "sentence,answer\na,b\n")
    raises("no column 'answer'", "text,label\na [MASK],b\n")
    raises("no column 'kind'", "text,answer\na [MASK],b\n", slice_by="kind")
    raises("a.csv:3: 3 columns where there should be 2", "text,answer\na [MASK],b\na [MASK],b,c\n")
    raises("not valid CSV", 'text,answer\n"a [MASK],b\n')
    raises("same name", "text,text\na,b\n")
    raises("a.jsonl:1: not JSON", "{", "a.jsonl")
    raises("a row is a JSON object", "[1]", "a.jsonl")
    raises("is no text", '{"text": "[MASK]", "answer": {"a": 1}}', "a.jsonl")
    raises("what is wanted is a file of rows", "a [MASK]", "a.txt")
    raises("names no column", "text,answer\n[MASK],a\n", error=ConfigError, template="[MASK]")
    for wrong in (-1, 1_000_001):
        raises("allowed: 0", "text,answer\n[MASK],a\n", error=ConfigError, resamples=wrong)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("x")
    raises("holds something else than the results of a test", "text,answer\n[MASK],a\n", error=CheckpointError, output=tmp_path / "kept")


def test_quoted_newlines_templates_and_columns(tiny_bert, tmp_path):
    (tmp_path / "a.csv").write_text('id,context,right,wrong\n1,"The judge\nwatches the",doctor,nurse\n', encoding="utf-8")
    found = cloze(
        tiny_bert, tmp_path / "a.csv", template="{context} [MASK] today.", answer_column="right", candidates_column="wrong", device="cpu"
    )
    assert found.predictions[0]["text"] == "The judge\nwatches the [MASK] today."
    assert set(found.predictions[0]["candidates"]) == {"doctor", "nurse"}


def test_facts(tiny_bert, tmp_path, filled):
    rank = ranks(tiny_bert)
    label = [candidate.token for candidate in filled]
    rows = [
        {"masked_sentences": [TEXT], "obj_label": label[0], "sub_label": "s", "predicate_id": "P1", "uuid": "u"},
        {"masked_sentences": ["[MASK] and [MASK]", TEXT], "obj_label": label[5], "sub_label": "s", "predicate_id": "P1"},
        {"masked_sentences": [TEXT], "obj_label": label[-1], "sub_label": "s", "predicate_id": "P2"},
        {"masked_sentences": [TEXT], "obj_label": f"{label[0]} {label[1]}", "sub_label": "s", "predicate_id": "P2"},
        {"masked_sentences": [], "obj_label": label[0], "sub_label": "s", "predicate_id": "P2"},
        {"masked_sentences": [TEXT], "obj_label": "☃", "sub_label": "s", "predicate_id": "P3"},
    ]
    file = write(tmp_path / "facts.jsonl", rows)
    found = facts(tiny_bert, file, device="cpu")
    expected = [rank[label[0]], rank[label[5]], rank[label[-1]]]
    assert [line["rank"] for line in found.predictions if "error" not in line] == expected
    assert found.metrics["excluded"] == {"no mask": 1, "not one piece of the vocabulary": 1, "unknown to the tokenizer": 1}
    assert "--multi-piece" in found.predictions[3]["error"] and found.predictions[0]["uuid"] == "u"
    hits = [value <= 10 for value in expected]
    assert found["precision_at_10"] == pytest.approx(np.mean(hits))
    assert found["macro_precision_at_10"] == pytest.approx((np.mean(hits[:2]) + hits[2]) / 2)
    assert [row["name"] for row in found.metrics["slices"]["relation"]] == ["P1", "P2"]
    both = facts(tiny_bert, file, multi_piece=True, device="cpu")
    assert both.metrics["num_scored"] == 4 and "not one piece of the vocabulary" not in both.metrics["excluded"]


def test_more_items_than_memory_is_meant_to_hold_are_refused(tiny_bert, tmp_path, monkeypatch):
    from unmask.evaluate import cloze as module

    files = [write(tmp_path / name, [{"text": TEXT, "answer": "nurse"}] * 2) for name in ("a.jsonl", "b.jsonl")]
    monkeypatch.setattr(module, "MAX_ITEMS", 3)
    with pytest.raises(DataError, match=r"b\.jsonl:2: more than 3 rows, and all of them are held in memory"):
        cloze(tiny_bert, files)


def test_a_test_that_is_all_right_or_all_wrong_is_not_certain():
    one, z = np.ones(10), 1.959964
    found = numbers({"accuracy": (one, one), "precision_at_1": (0 * one, one)}, resamples=100, seed=0)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (pytest.approx(10 / (10 + z**2)), 1)
    assert (found["precision_at_1"]["low"], found["precision_at_1"]["high"]) == (0, pytest.approx(z**2 / (10 + z**2)))
    # Wilson's formula, by hand, where some are right; those with a divisor of zero do not count
    some = numbers({"candidate_accuracy": (np.repeat([1.0, 0.0, 0.0], [7, 3, 5]), np.repeat([1.0, 0.0], [10, 5]))}, resamples=2, seed=0)
    middle, reach = (7 + z**2 / 2) / (10 + z**2), z / (10 + z**2) * math.sqrt(2.1 + z**2 / 4)
    assert (some["candidate_accuracy"]["low"], some["candidate_accuracy"]["high"]) == pytest.approx((middle - reach, middle + reach))
    # ties are no share of right ones, and all alike say nothing of others
    for name, values in (("accuracy", 0.5 * one), ("mean_log_prob", 0 * one)):
        entry = numbers({name: (values, one)}, resamples=100, seed=0)[name]
        assert entry["low"] is None and "the same in all items" in entry["why"]
    mixed = numbers({"accuracy": (np.array([1, 0.5, 1, 1.0]), np.ones(4))}, resamples=100, seed=0)["accuracy"]
    assert mixed["low"] < mixed["value"] < 1 == mixed["high"]


def test_intervals_are_those_of_a_bootstrap():
    values = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    one = np.ones(8)
    entry = numbers({"share": (values, one), "none": (values * 0, one * 0)}, resamples=4000, seed=1)
    drawn = np.random.default_rng(0).choice(values, size=(20_000, 8)).mean(1)
    assert (entry["share"]["low"], entry["share"]["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.01)
    assert entry["none"] == {"value": None, "low": None, "high": None, "count": 0, "why": entry["none"]["why"]}
    rows = sliced({"share": (values, one)}, {"side": list("aaabbbbb")}, resamples=50, seed=0)["side"]
    assert [(row["name"], row["count"], row["share"]["value"]) for row in rows] == [("a", 3, 2 / 3), ("b", 5, 3 / 5)]


def test_command(tiny_bert, tmp_path, capsys):
    file = str(write(tmp_path / "a.jsonl", [{"text": TEXT, "answer": "doctor"}, {"text": TEXT, "answer": ""}]))

    def run(*args):
        with pytest.raises(SystemExit) as done:
            main(["evaluate", str(tiny_bert), "--device", "cpu", *args])
        return done.value.code, capsys.readouterr()

    code, said = run("--cloze", file)
    assert code == 0 and "left out, no answer: 1 blanks" in said.out and "precision_at_1" in said.out
    code, said = run("--cloze", file, "--json", "-o", str(tmp_path / "out"))
    assert code == 0 and json.loads(said.out)["num_excluded"] == 1 and (tmp_path / "out" / "predictions.jsonl").is_file()
    for args, words in (
        (("--cloze", file, "--facts", file), "different tests"),
        (("--cloze", file, "--views", "2"), "--views has no meaning with --cloze"),
        (("--facts", file, "--template", "{text}"), "--template has no meaning with --facts"),
        (("--cloze", file, "--template", "{text}", "--text-column", "text"), "give one"),
        (("--data", file, "--method", "original"), "belong to tests"),
        (("--facts", file), "there is no 'masked_sentences'"),
    ):
        code, said = run(*args)
        assert code == 2 and words in said.err
