"""Answers: windows and contexts under one softmax, exact places, "no answer", training, the report; a tiny model that learns."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unmask
from unmask.errors import ConfigError, DataError, TaskError
from unmask.model.new_head import with_new_head
from unmask.tasks.encode import room
from unmask.tasks.finetune import make_recipe
from unmask.tasks.kinds import task
from unmask.tasks.qa import Answerer
from unmask.tasks.qa_data import Gold, QuestionItem
from unmask.tasks.qa_training import too_few
from unmask.tasks.qa_windows import Tokens, best_spans, borders, neighbours, overlapping, read_tokens

SMALL = {"device": "cpu", "precision": "fp32", "batch_size": 16, "max_length": 48, "learning_rate": 1e-2, "hide_prob": 0.0}
WHERE, WHEN = "Where is the help?", "When is the help?"
EVENT = "The nurse helps the doctor in the harbour today."
FILLER = "The judge calls the lawyer. The teacher asks the student. "


@pytest.fixture(scope="module")
def answerer(answering):
    return Answerer.load(answering.folder)


def test_a_run_learns_and_leaves_a_plain_folder(answering, answerer):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    metrics = answering.metrics
    assert metrics["best"] == "f1" and metrics["f1"]["value"] > 0.9 and metrics["training"]["untrained"]["f1"] < 0.5
    assert metrics["rules"] == "SQuAD v2.0" and metrics["no_answer_accuracy"]["count"] > 3
    assert metrics["has_answer_f1"]["count"] + metrics["no_answer_accuracy"]["count"] == metrics["num_examples"]
    model, info = AutoModelForQuestionAnswering.from_pretrained(answering.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and math.isfinite(model.config.unmask["no_answer_threshold"])
    examples = answerer.encode([(WHERE, EVENT)])
    with torch.no_grad():
        output = model.eval()(**AutoTokenizer.from_pretrained(answering.model)(WHERE, EVENT, return_tensors="pt"))
    want = torch.stack([output.start_logits[0], output.end_logits[0]], 1).numpy()
    np.testing.assert_allclose(answerer.outputs(examples), want[examples.label_positions], atol=1e-5)
    lines = [json.loads(line) for line in (answering.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == metrics["num_examples"] and all("".join(line["gold_passage"]) for line in lines if line["gold"])
    page = (answering.folder / "report.html").read_text()
    assert "By question word" in page and "Answers, right and wrong" in page and "Thresholds" in page and "<script" not in page
    card = (answering.model / "README.md").read_text()
    assert "unmask.Answerer.load" in card and "pipeline_tag: question-answering" in card and "| has_answer_f1 |" in card


def test_an_answer_has_its_place(answerer):
    for question, word in ((WHERE, "harbour"), (WHEN, "today")):
        result = answerer.answer(question, EVENT)
        best = result.best
        assert (result.text, best.start, best.context) == (word, EVENT.index(word), 0) and EVENT[best.start : best.end] == word
        assert result.answered and best.score > 0.5 and result.windows == 1
        assert [one.score for one in result.answers] == sorted((one.score for one in result.answers), reverse=True)
        assert sum(one.score for one in result.answers) + result.no_answer <= 1 + 1e-6
    assert len(answerer.answer(WHERE, EVENT, top_k=2).answers) == 2 and len(answerer.answer(WHERE, EVENT, top_k=9).answers) == 9
    nothing = answerer.answer(WHERE, FILLER)
    assert nothing.text is None and nothing.best is None and nothing.score == nothing.no_answer > 0.5 and len(nothing.answers) == 5


def test_of_several_texts_the_one_that_holds_the_answer(answerer):
    texts = [FILLER, "The sailor pays the farmer.", EVENT, FILLER + FILLER]
    for order in itertools.islice(itertools.permutations(range(4)), 0, 24, 5):
        found = answerer.answer(WHERE, [texts[number] for number in order])
        assert found.text == "harbour" and order[found.best.context] == 2
    # alone and beside others, an answer's odds are the same
    alone, beside = answerer.answer(WHERE, EVENT), answerer.answer(WHERE, texts)
    assert beside.margin == pytest.approx(alone.margin, abs=1e-4) and beside.best.score <= alone.best.score
    assert answerer.answer(WHERE, [FILLER, FILLER]).text is None


def test_a_text_of_20000_words_gives_what_its_pieces_give(answering, answerer):
    half = FILLER * 1010
    text = half + EVENT + " " + half
    assert len(text.split()) > 20_000
    whole = answerer.answer(WHERE, text)
    assert whole.text == "harbour" and whole.best.start == text.index("harbour") and whole.windows > 600
    # the same windows, asked for as texts of their own
    pieces = Answerer.load(answering.folder, stride=0)
    (tokens,) = read_tokens(pieces.tokenizer, [text])
    space = room(48, pieces.frame.num_special_pair) - len(pieces.tokenizer(WHERE, add_special_tokens=False)["input_ids"])
    cuts = [(int(tokens.starts[low]), int(tokens.ends[high - 1])) for low, high in overlapping(len(tokens), space, 0)]
    parts = pieces.answer(WHERE, [text[low:high] for low, high in cuts], top_k=20)
    joined = pieces.answer(WHERE, text, top_k=20)
    assert len(cuts) == joined.windows == parts.windows and joined.margin == pytest.approx(parts.margin, abs=1e-4)
    for one, other in zip(joined.answers, parts.answers, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-3)
    best = parts.best
    assert (joined.best.start, joined.text) == (cuts[best.context][0] + best.start, "harbour")


def test_questions_in_many_are_answered_as_alone_and_faults_are_told(answerer):
    items = [(WHERE, EVENT), (" ", EVENT), (WHEN, ["", EVENT]), (WHERE, []), ("Where " * 40, EVENT), (WHEN, "\u200b\u200b"), (WHEN, EVENT)]
    results = answerer.predict(items)
    assert results[0].margin == pytest.approx(answerer.answer(WHERE, EVENT).margin, abs=1e-4) and results[-1].text == "today"
    assert [result.error is None for result in results] == [True, False, False, False, False, True, True]
    assert "the question is empty" in results[1].error and "a context is empty" in results[2].error and "a context" in results[3].error
    assert "raise max_length" in results[4].error and results[5].text is None and not results[5].answers
    for question, context in items[1:5]:
        with pytest.raises(TaskError):
            answerer.answer(question, context)
    with pytest.raises(ConfigError, match="top_k = 0"):
        answerer.answer(WHERE, EVENT, top_k=0)
    for bad in ({"stride": -1}, {"num_best": 0}, {"max_answer_length": -2}):
        with pytest.raises(ConfigError, match="allowed: a whole number from"):
            Answerer(answerer.engine.backend, answerer.tokenizer, config=answerer.config, **bad)


def test_a_damaged_model_says_so(tiny_bert, answerer):
    model = with_new_head(tiny_bert, "question_answering", labels=None, seed=0)
    with torch.no_grad():
        model.qa_outputs.weight[0, 0] = torch.nan
    (result,) = Answerer(model, answerer.tokenizer).predict([(WHERE, EVENT)])
    assert "NaN" in result.error and result.to_dict() == {"error": result.error}


def test_the_threshold_decides_and_can_be_given(answering):
    never = Answerer.load(answering.folder, no_answer_threshold=1e9)
    assert never.answer(WHERE, EVENT).text is None and never.answer(WHERE, EVENT).answers[0].text == "harbour"
    always = Answerer.load(answering.folder, no_answer_threshold=-1e9)
    assert always.answer(WHERE, FILLER).text is not None


# windows and spans


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 40))
def test_windows_hold_everything_and_overlap(length, capacity, overlap):
    overlap = min(overlap, capacity // 2)
    found = overlapping(length, capacity, overlap)
    assert found[0][0] == 0 and found[-1][1] == length and all(high - low <= capacity for low, high in found)
    assert all(before[1] - after[0] == overlap for before, after in itertools.pairwise(found))


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 6), st.integers(1, 6), st.integers(0, 99))
def test_every_span_is_scored_once_and_as_it_is(length, capacity, overlap, longest, seed):
    """Beside trying all: each span that lies in some window, in the window where it has more text around it."""
    generator = np.random.default_rng(seed)
    overlap = min(overlap, capacity // 2)
    windows = overlapping(length, capacity, overlap)
    places = np.arange(length)
    tokens = Tokens(places, places, places + 1, generator.random(length) < 0.7, generator.random(length) < 0.7)
    rows = [generator.normal(size=(1 + high - low, 2)) * 2 for low, high in windows]
    found, total = {}, []
    for part, (window, beside) in zip(rows, neighbours(windows), strict=True):
        spans = best_spans(part, tokens, window, beside, longest=longest, count=10_000)
        total.append(spans.total)
        for score, first, last in zip(spans.scores, spans.first, spans.last, strict=True):
            assert (first, last) not in found
            found[int(first), int(last)] = float(score)
    want, values = {}, [part[1:] - part[0] for part in rows]
    for first in range(length):
        for last in range(first, min(length, first + longest)):
            inside = [number for number, (low, high) in enumerate(windows) if low <= first and last < high]
            if inside and tokens.opens[first] and tokens.closes[last]:
                odds = [values[n][first - windows[n][0], 0] + values[n][last - windows[n][0], 1] for n in inside]
                assert any(found[first, last] == pytest.approx(one) for one in odds)
                want[first, last] = found[first, last]
    assert found == want
    if found:
        assert np.logaddexp.reduce(total) == pytest.approx(np.logaddexp.reduce(list(found.values())))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("don't pay $50m", ["don", "'", "t", " ", "pay", " ", "$", "50m"]),
        ("1990年に東京", ["1990", "年", "に", "東", "京"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("e\u0301te\u0301 👩‍🚀👍🏽", ["e\u0301te\u0301", " ", "👩‍🚀", "👍🏽"]),
        ("לְךָ x", ["לְךָ", " ", "x"]),
        ("", []),
    ],
)
def test_no_word_and_no_character_is_cut(text, parts):
    edges = np.flatnonzero(borders(text)).tolist()
    assert [text[low:high] for low, high in itertools.pairwise(edges)] == parts


@given(st.text(alphabet="aé\u0301 .1年に👩\u200d🚀🏽\u0e35ท\n", max_size=40))
def test_answers_begin_and_end_where_words_do(answerer, text):
    (result,) = answerer.predict([(WHERE, text or " ")])
    for one in result.answers:
        assert one.text == text[one.start : one.end] == one.text.strip() != "" and borders(text)[[one.start, one.end]].all()


# training


def test_targets_are_the_tokens_of_the_answer(answerer, questions_file, tiny_bert, tmp_path):
    long = FILLER * 3 + EVENT + " " + FILLER * 3
    rows = [{"id": "0", "question": WHERE, "context": EVENT, "answers": "harbour"},
            {"id": "1", "question": WHERE, "context": long, "answers": "the harbour today"},
            {"id": "2", "question": WHERE, "context": FILLER, "answers": []},
            {"id": "3", "question": WHERE, "context": long, "answers": long[:300]}]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = make_recipe("qa", tiny_bert, path, dev=str(questions_file), null_weight=0.5, **SMALL)
    objective = task("qa").make(made, tmp_path, say=print)
    examples = objective.loader.examples
    weights = np.zeros((4, 2))
    for number, (low, high) in enumerate(itertools.pairwise(examples.bounds.tolist())):
        mine = (examples.label_positions >= low) & (examples.label_positions < high)
        labels, places, example = examples.labels[mine], examples.label_positions[mine], examples.example[number]
        assert (labels > 0).sum() == 2 and labels.sum(0)[0] == labels.sum(0)[1]
        start, end = (int(places[column.argmax()]) for column in labels.T)
        weights[example] += labels.sum(0)[0] * np.array([start == low, start != low])
        if start != low:
            said = objective.tokenizer.decode(examples.input_ids[start : end + 1])
            assert said == {0: "harbour", 1: "the harbour today"}[int(example)]
    np.testing.assert_allclose(weights, [[0, 1], [0.5, 1], [1, 0], [1, 0]], rtol=1e-6)
    assert objective.data.findings.kinds["cut_answer"].count == 1  # it is longer than a window
    assert objective.count(objective.loader.batch(0)[0]) == pytest.approx(1 + 1.5 + 1 + 1)


def test_the_loss_is_the_cross_entropy_of_stock_logits(tiny_bert, questions_file, tmp_path):
    """Over the tokens of the context and the first one; the stock class padded, and torch's own loss."""
    made = make_recipe("qa", tiny_bert, questions_file, **{**SMALL, "max_length": 96})
    objective = task("qa").make(made, tmp_path, say=print)
    model = objective.model.eval()
    (batch,) = objective.loader.batch(0)
    loss = objective.loss_sum(model, batch)
    want = 0.0
    for item in (objective.data.train[number] for number in objective.loader.order(0)[:16]):
        encoding = objective.tokenizer(item.question, item.contexts[0], return_tensors="pt", return_offsets_mapping=True)
        offsets, second = encoding.pop("offset_mapping")[0].tolist(), encoding.sequence_ids(0)
        output = model(**encoding)
        seen = torch.tensor([place == 0 or which == 1 for place, which in enumerate(second)])
        for logits, edge in ((output.start_logits[0], 0), (output.end_logits[0], 1)):
            gold = (item.answers[0].start, item.answers[0].end)[edge] if item.answers else None
            target = 0 if gold is None else next(n for n, pair in enumerate(offsets) if second[n] == 1 and pair[edge] == gold)
            want += torch.nn.functional.cross_entropy(logits.masked_fill(~seen, -torch.inf), torch.tensor(target)) / 2
    assert loss.item() == pytest.approx(want.item(), rel=1e-5) and objective.count(batch) == 16


def test_how_a_step_is_cut_changes_nothing(tiny_bert, questions, tmp_path, check_cuts):
    """The same gradient in one pack, in several, and in halves of those; of texts in several windows, too."""
    rows = [{**row, "context": (FILLER * (number % 4)) + row["context"]} for number, row in enumerate(questions(40, seed=2))]
    for row in rows:
        row["answers"] = row["answers"]["text"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(micro_tokens, folder):
        objective = task("qa").make(make_recipe("qa", tiny_bert, path, **SMALL, micro_tokens=micro_tokens), folder, say=print)
        examples = objective.loader.examples
        assert examples.example.max() < len(examples.example) - 1  # some are in several windows
        return objective

    check_cuts(make, ((4096, 0), (100, 0), (4096, 2)))


def test_the_threshold_is_cross_fitted(answering, answerer):
    """What is told is measured with thresholds of the other folds; what is stored is that of all."""
    lines = [json.loads(line) for line in (answering.folder / "predictions.jsonl").read_text().splitlines()]
    margins = np.array([line["margin"] for line in lines])
    has = np.array([bool(line["gold"]) for line in lines])
    best = answering.metrics["best_threshold"]
    assert best["f1"] >= answering.metrics["f1"]["value"]  # the one that is tuned on what it is measured on is not the one that is told
    stored = answerer.settings["no_answer_threshold"]
    assert (
        stored == pytest.approx(best["f1_threshold"], abs=1e-4) and (margins >= stored)[has].mean() > 0.8 > (margins >= stored)[~has].mean()
    )


@pytest.mark.parametrize(
    ("has", "why"),
    [
        ([True] * 40 + [False] * 9, "49 held-out questions, and at least 50 are wanted"),
        ([True] * 1196 + [False] * 4, "4 of 1,200 held-out questions have no answer, and at least 5 are wanted"),
        ([True] * 4 + [False] * 56, "4 of 60 held-out questions have one, and at least 5 are wanted"),
        ([True] * 45 + [False] * 5, None),
        ([True] * 5 + [False] * 45, None),
    ],
)
def test_when_a_threshold_can_be_found(has, why):
    assert too_few(has) == why


def test_a_threshold_is_not_found_on_a_handful(tiny_bert, questions, tmp_path):
    train, dev = (tmp_path / f"{name}.jsonl" for name in ("train", "dev"))
    for path, number in ((train, 40), (dev, 49)):
        path.write_text("".join(json.dumps(row) + "\n" for row in questions(number, seed=number)), encoding="utf-8")
    run = unmask.finetune("qa", tiny_bert, train, dev=dev, output=tmp_path / "run", max_steps=2, **SMALL)
    why = "49 held-out questions, and at least 50 are wanted"
    settings = json.loads((run.model / "config.json").read_text())["unmask"]
    assert settings["no_answer_threshold"] == 0.0 and settings["untuned"] == run.metrics["settings"]["untuned"] == why
    (said,) = [one for one in run.metrics["findings"] if one["code"] == "untuned"]
    assert said["level"] == "warning" and why in said["text"] and why in (run.folder / "report.html").read_text()
    found = Answerer.load(run.folder)
    records = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert found.threshold == 0.0 and {bool(record["text"]) for record in records if record["margin"] < 0} == {False}
    assert "untuned" in unmask.doctor("qa", [str(train)], [str(dev)]).findings.kinds
    assert "untuned" not in unmask.doctor("qa", [str(train)], [str(train), str(dev)]).findings.kinds  # 89


def test_a_model_that_was_never_told_of_no_answer_always_answers(tiny_bert, questions, tmp_path):
    rows = [row for row in questions(40, seed=3) if row["answers"]["text"]]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ConfigError, match="options.best = 'has_answer_f1': every held-out question has an answer"):
        unmask.finetune("qa", tiny_bert, path, output=tmp_path / "run", max_steps=2, best="has_answer_f1", **SMALL)
    run = unmask.finetune("qa", tiny_bert, path, output=tmp_path / "run", max_steps=2, best="exact_match", **SMALL)
    assert run.metrics["rules"] == "SQuAD v1.1" and run.metrics["best"] == "exact_match" and "no_answer_accuracy" not in run.metrics
    answerer = Answerer.load(run.folder)
    result = answerer.answer(WHERE, FILLER)
    assert answerer.threshold is None and result.text is not None
    assert sum(one.score for one in answerer.answer(WHERE, "The nurse.", top_k=99).answers) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_answer_length": 0}, "options.max_answer_length = 0"),
        ({"stride": -1}, "options.stride = -1"),
        ({"null_weight": -1.0}, "options.null_weight"),
        ({"null_weight": float("inf")}, "options.null_weight"),
        ({"best": "bleu"}, "options.best = 'bleu'; allowed: f1, exact_match"),
    ],
)
def test_options_that_cannot_be(options, message, tiny_bert, questions_file):
    with pytest.raises(ConfigError, match=message):
        make_recipe("qa", tiny_bert, questions_file, **options)


def test_questions_too_long_for_the_window_are_refused_or_counted(tiny_bert, questions, tmp_path):
    rows = questions(40, seed=4)
    rows[0]["question"] = "Where " * 40
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match="1 x question has more than 33 tokens"):
        unmask.finetune("qa", tiny_bert, path, output=tmp_path / "run", max_steps=1, **SMALL)
    run = unmask.finetune("qa", tiny_bert, path, output=tmp_path / "run", max_steps=1, on_bad="drop", **SMALL)
    assert next(one for one in run.metrics["findings"] if one["code"] == "long_question")["count"] == 1
    assert run.metrics["training"]["num_train"] + run.metrics["training"]["num_dev"] == 39


def test_unlabelled_items_are_answered(answerer):
    item = QuestionItem(WHERE, (FILLER, EVENT), None, "x")
    (result,) = answerer.stream([item])
    line = answerer.record(item, result)
    assert "gold" not in line and line["passage"][1] == line["text"] == "harbour" and line["context"] == 1
    assert answerer.shown(line, 1).splitlines() == [WHERE, f"  {line['score']:.3f}  harbour  (context 1, 34-41)"]
    gold = QuestionItem(WHERE, (FILLER, EVENT), (Gold("harbour", 34, 1),), "x")
    assert answerer.record(gold, result)["gold"] == ["harbour"]
