"""Answers scored: SQuAD's official scripts to the digit, words of any script, thresholds beside trying all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import DataError
from unmask.tasks.qa import Answer, Answered, Answerer
from unmask.tasks.qa_data import Gold, QuestionItem
from unmask.tasks.qa_scores import AnswerScores, any_script, best_threshold, error_kind, in_any_script, question_word, squad

# what evaluate-v1.1.py and evaluate-v2.0.py said of these answers (make_squad.py asked them)
OFFICIAL = json.loads(Path(__file__).with_name("squad.json").read_text(encoding="utf-8"))


def answered(text, score=1.0, *, start=0, context=0, margin=None):
    found = (Answer(text, start, start + len(text), score, context),) if text else ()
    return Answered(found, 1 - score, margin if margin is not None else score, bool(text), 1)


def asked(*gold, question="Who?", contexts=("c",), start=0):
    return QuestionItem(question, contexts, tuple(Gold(text, start) for text in gold), "1", "f:1")


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_each_answer_scores_what_the_official_script_says(version):
    cases = [case for case in OFFICIAL["cases"] if version in case]
    assert len(cases) > 150
    for case in cases:
        assert squad(case["said"], case["gold"], version=version) == pytest.approx(tuple(case[version]), abs=1e-12), case


def test_the_whole_of_v2_is_what_the_official_script_says():
    cases, want = OFFICIAL["cases"], OFFICIAL["whole"]
    scores = AnswerScores([asked(*case["gold"]) for case in cases], [answered(case["said"]) for case in cases])
    found = {name: float(values[0]) for name, values in scores.of(np.ones((1, len(cases)))).items()}
    for name, theirs in (
        ("exact_match", "exact"), ("f1", "f1"), ("has_answer_exact_match", "HasAns_exact"), ("has_answer_f1", "HasAns_f1"),
        ("no_answer_accuracy", "NoAns_exact"),
    ):  # fmt: skip
        assert 100 * found[name] == pytest.approx(want[theirs], abs=1e-9), name
    assert scores.counts()["no_answer_accuracy"] == want["NoAns_total"] and scores.details()["rules"] == "SQuAD v2.0"
    # a number of how often each is drawn
    weights = np.random.default_rng(0).integers(0, 3, size=(4, len(cases)))
    for row, drawn in zip(weights, scores.of(weights)["f1"], strict=True):
        assert drawn == pytest.approx(np.average(scores.f1, weights=row))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The U.S. Army's", ["us", "armys"]),
        ("东京塔是333米", ["东", "京", "塔", "是", "333", "米"]),
        ("東京タワー", list("東京タワー")),
        ("ที่นี่", ["ที่", "นี่"]),
        ("서울 타워", ["서울", "타워"]),
        ("ｆｕｌｌ　ｗｉｄｔｈ、「引用」", ["full", "width", "引", "用"]),
        ("naïve “cafe\u0301”", ["naïve", "café"]),
        ("किताब", ["किताब"]),
        ("an\u00a0apple – 1990–95", ["apple", "199095"]),
        ("«the»", []),
        ("", []),
    ],
)
def test_words_of_any_script(text, words):
    assert any_script(text) == words


def test_part_of_an_answer_without_spaces_is_worth_something():
    assert squad("東京", ["東京タワー"], version="1.1") == (0.0, 0.0)
    assert in_any_script("東京", ["東京タワー"]) == (0.0, pytest.approx(2 * 2 / 7))
    assert in_any_script("東京 タワー。", ["東京タワー"]) == (1.0, 1.0)
    assert in_any_script("", []) == (1.0, 1.0) and in_any_script("x", ["y", "x", ""]) == (1.0, 1.0)


@given(
    st.lists(st.tuples(st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 0.5, 3.0]), st.sampled_from([0.0, 0.4, 1.0]), st.booleans()), min_size=1)
)
def test_no_threshold_is_better_than_the_best(rows):
    margins, worth, has = (np.array(column) for column in zip(*rows, strict=True))
    worth = np.where(np.isfinite(margins) & has, worth, 0.0)  # nothing said of a question that has an answer is worth nothing

    def value(threshold):
        return float(np.where(margins >= threshold, np.where(has, worth, 0.0), ~has).mean())

    threshold, best = best_threshold(margins, worth, has)
    assert np.isfinite(threshold) and value(threshold) == pytest.approx(best)
    assert best == pytest.approx(max(value(cut) for cut in [*margins[np.isfinite(margins)], 10.0]))


def test_what_is_wrong_is_told_apart():
    context = "The old nurse and the judge met."
    item = asked("old nurse", contexts=(context, "Another."), start=4)
    kinds = {
        "right": answered("old nurse", start=4),
        "too long: the answer and more": answered("The old nurse and", start=0),
        "too short: a part of the answer": answered("nurse", start=8),
        "overlaps the answer": answered("nurse and", start=8),
        "elsewhere": answered("judge", start=22),
        "in another context": answered("Another", context=1),
        "not answered, though there is an answer": answered(""),
        "failed": Answered((), 0.0, -np.inf, False, 0, "why"),
    }
    for kind, result in kinds.items():
        assert error_kind(item, result, float(kind == "right")) == kind
    assert error_kind(asked(), answered("nurse"), 0.0) == "answered, though there is no answer"
    details = AnswerScores([item] * len(kinds), list(kinds.values())).details()
    assert details["errors"] == dict.fromkeys(kinds, 1) and details["rules"] == "SQuAD v1.1"
    assert [group["group"] for group in details["by_answer_length"]] == ["2 to 3 words"]


def test_question_words():
    for question, word in (("How many are there?", "how many"), ("In which year?", "which"), ("Name it.", "other"), ("To whom?", "whom")):
        assert question_word(question) == word


def test_unknown_answers_are_not_scored():
    with pytest.raises(DataError, match="f:1: which answer is right is not known"):
        Answerer.score(None, [QuestionItem("Who?", ("c",), None, "1", "f:1")], [answered("c")])
