"""Questions read from SQuAD's files, rows and cells; what is wrong with them is counted, never passed over."""

from __future__ import annotations

import csv
import json

import pytest

import unmask
from unmask.errors import DataError
from unmask.tasks.doctor import doctor
from unmask.tasks.qa_data import Gold, QuestionItem, check, read_items, trained_answer
from unmask.tasks.recipe import TaskData

CONTEXT = "The nurse helps the student. The judge helps the nurse."


def rows_of(*rows):
    return [{"id": str(number), "context": CONTEXT, **row} for number, row in enumerate(rows)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def nested(questions, version="v2.0"):
    return {"version": version, "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}


def codes(findings, *levels):
    return {kind.code: kind.count for kind in findings if kind.level in (levels or ("error", "warning"))}


JUDGE = [{"text": "judge", "answer_start": 33}, {"text": "The judge", "answer_start": 29}]
NURSE = [{"text": "nurse", "answer_start": 4}]
QUESTIONS = [
    {"id": "a", "question": "Who helps the nurse?", "answers": JUDGE},
    {"id": "b", "question": "Who sails?", "answers": [], "is_impossible": True, "plausible_answers": NURSE},
]
WANT = [
    QuestionItem(QUESTIONS[0]["question"], (CONTEXT,), (Gold("judge", 33), Gold("The judge", 29)), "a"),
    QuestionItem(QUESTIONS[1]["question"], (CONTEXT,), (), "b"),
]


def same(items, want):
    assert [(one.question, one.contexts, one.answers, one.id) for one in items] == [
        (one.question, one.contexts, one.answers, one.id) for one in want
    ]


def as_columns(question):
    answers = question["answers"]
    return {"id": question["id"], "question": question["question"], "context": CONTEXT,
            "answers": {"text": [one["text"] for one in answers], "answer_start": [one["answer_start"] for one in answers]}}  # fmt: skip


def test_one_set_of_questions_in_all_shapes_is_read_alike(tmp_path):
    flat = [as_columns(question) for question in QUESTIONS]
    paths = [tmp_path / name for name in ("nested.json", "flat.json", "rows.json", "flat.jsonl", "flat.csv", "python.csv", "flat.tsv")]
    paths[0].write_text(json.dumps(nested(QUESTIONS)), encoding="utf-8")
    paths[1].write_text(json.dumps({"data": flat}), encoding="utf-8")
    paths[2].write_text(json.dumps(flat), encoding="utf-8")
    written(paths[3], flat)
    for path, shown in ((paths[4], json.dumps), (paths[5], repr)):  # as pandas writes dicts
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows({**row, "answers": shown(row["answers"])} for row in flat)
    paths[6].write_text(
        "question_id\tquery\tpassage\tanswer\tanswer_start\n"
        + f"a\t{QUESTIONS[0]['question']}\t{CONTEXT}\t{json.dumps(['judge', 'The judge'])}\t[33, 29]\nb\tWho sails?\t{CONTEXT}\t[]\t[]\n",
        encoding="utf-8",
    )
    for path in paths:
        items, findings = read_items(path, TaskData())
        same(items, WANT)
        assert not codes(findings), path
        assert all(item.where.startswith(str(path)) for item in items) and len({item.where for item in items}) == 2
    items, _ = read_items(paths[0], TaskData(), labelled=False)
    same(items, WANT)


def test_cells_of_csv_and_what_an_empty_one_says(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "context", "answer", "is_impossible"])
        writer.writerows([["Who helps\nthe nurse?", CONTEXT, "judge", "False"], ["Who sails?", CONTEXT, "", "False"],
                          ["Who flies?", CONTEXT, "", "True"], ["Whom?", CONTEXT + ' "None" it said.', "None", ""]])  # fmt: skip
    items, findings = read_items(path, TaskData())
    assert [item.answers for item in items] == [(Gold("judge", 33),), (), (), (Gold("None", len(CONTEXT) + 2),)]
    assert codes(findings) == {"empty_answer": 1}  # told, since it may be a cell that somebody forgot
    assert codes(findings, "note")["found_answer"] == 2
    (tmp_path / "b.csv").write_text("q,text\nWho?,x\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"which column holds the question\? The columns are: q, text; choose with --pair-column"):
        read_items(tmp_path / "b.csv", TaskData())
    with pytest.raises(DataError, match="which column holds the answers"):
        read_items(tmp_path / "b.csv", TaskData(pair_column="q"))
    items, _ = read_items(tmp_path / "b.csv", TaskData(pair_column="q"), labelled=False)
    assert items[0].answers is None and items[0].question == "Who?"


BAD = {
    "no_question": ("error", {"question": " ", "answers": []}),
    "no_context": ("error", {"question": "Who?", "context": "", "answers": []}),
    "no_answers": ("error", {"question": "Who?", "answers": None}),
    "not_text": ("error", {"question": "Who?", "answers": [{"text": 3, "answer_start": 0}]}),
    "lost_answer": ("error", {"question": "Who?", "answers": {"text": ["sailor"], "answer_start": [0]}}),
    "ambiguous_answer": ("error", {"question": "Who?", "answers": {"text": ["nurse"], "answer_start": [5]}}),
    "bad_offset": ("error", {"question": "Who?", "answers": {"text": ["judge"], "answer_start": ["x"]}}),
    "other_offsets": ("error", {"question": "Who?", "answers": {"text": ["judge", "judge"], "answer_start": [33]}}),
    "moved_answer": ("warning", {"question": "Who?", "answers": {"text": ["judge"], "answer_start": [0]}}),
    "first_answer": ("warning", {"question": "Who?", "answers": "nurse"}),
    "found_answer": ("note", {"question": "Who?", "answers": "judge"}),
    "empty_answer": ("warning", {"question": "Who?", "answers": {"text": [" "], "answer_start": [0]}}),
    "inside_word": ("warning", {"question": "Who?", "answers": {"text": ["urse"], "answer_start": [5]}}),
}  # fmt: skip


@pytest.mark.parametrize("code", BAD)
def test_what_is_wrong_is_counted_and_told(tmp_path, code):
    level, row = BAD[code]
    path = written(
        tmp_path / "a.jsonl", rows_of(row, {"question": "Who helps the nurse?", "answers": {"text": ["judge"], "answer_start": [33]}})
    )
    items, findings = read_items(path, TaskData())
    assert codes(findings, level)[code] == 1 and findings.kinds[code].places == [f"{path}:1"]
    assert len(items) == (1 if level == "error" else 2)
    if code not in ("no_question", "no_context"):  # what is only asked needs no answer
        assert len(read_items(path, TaskData(), labelled=False)[0]) == 2
    if level == "error":
        with pytest.raises(DataError, match=f"1 x {findings.kinds[code].text}"):
            findings.refuse("error")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "neither SQuAD's"),
        ('{"data": []}', "holds no questions"),
        ('{"data": [{"paragraphs": 3}]}', "there is no list of the name 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"context": "x"}]}]}', r"data\[0\].paragraphs\[0\]: there is no list of the name 'qas'"),
        ('{"data": [{"paragraphs": [{"qas": [3]}]}]}', "a question is an object"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_items(path, TaskData())


def test_several_contexts_hold_an_answer_in_one(tmp_path):
    row = {
        "question": "Who?",
        "contexts": ["The nurse.", "The judge helps the judge."],
        "answers": {"text": ["judge"], "answer_start": [20]},
    }
    (item,), findings = read_items(written(tmp_path / "a.jsonl", [row]), TaskData())
    assert item.answers == (Gold("judge", 20, 1),) and not codes(findings)


def test_answers_with_and_without_an_offset_are_all_read(tmp_path):
    (item,), findings = read_items(written(tmp_path / "a.jsonl", rows_of({"question": "Who?", "answers": [*NURSE, "judge"]})), TaskData())
    assert item.answers == (Gold("nurse", 4), Gold("judge", 33)) and not codes(findings)


def item(question, *answers, context=CONTEXT, where=""):
    return QuestionItem(question, (context,), tuple(Gold(text, CONTEXT.find(text)) for text in answers), question, where)


def test_the_answer_that_most_gave_is_trained_on():
    gold = (Gold("nurse", 4), Gold("judge", 33), Gold("judge", 33))
    assert trained_answer(QuestionItem("Who?", (CONTEXT,), gold)) == Gold("judge", 33)
    assert trained_answer(QuestionItem("Who?", (CONTEXT,), ())) is None


def test_what_is_wrong_between_questions_is_told(tmp_path):
    from unmask.tasks.findings import Findings

    findings = Findings()
    train = [item("Who?", "nurse"), item("Who ?", "nurse", context="Other nurse."), item(" Who? ", "nurse"), item("Who?", "judge"),
             item("Whom?", "nurse", "student")]  # fmt: skip
    check(train, [item("Why?"), item("When?", context="New.")], findings)
    assert codes(findings) == {"duplicate": 1, "conflict": 1, "leak": 1, "untrained_none": 2}
    assert codes(findings, "note") == {"several": 1}
    findings = Findings()
    check([*train, item("Why?")], [item("When?", "nurse", context="New.")], findings)
    assert codes(findings)["unmeasured_none"] == 1 and "untrained_none" not in codes(findings)
    with pytest.raises(DataError, match="no training question has an answer"):
        check([item("Who?")], [], Findings())


def test_doctor_tells_all_of_it_before_training(tmp_path, tiny_bert):
    rows = rows_of(*({"question": f"Who is number {n}?", "answers": {"text": ["judge"], "answer_start": [33]}, "context": f"{CONTEXT} {n}"}
                     for n in range(40)), {"question": "Who?", "answers": {"text": ["sailor"], "answer_start": [0]}})  # fmt: skip
    path = written(tmp_path / "a.jsonl", rows)
    report = doctor("qa", [str(path)], model=str(tiny_bert), max_length=64)
    assert report.is_fatal and "error: 1 x answer does not stand in its context" in "\n".join(report.lines())
    facts = report.to_dict()
    assert facts["num_train"] + facts["num_dev"] == 40 and facts["question_words"] == {"who": facts["num_train"]}
    assert facts["longer_than_window"] == 0.0 and facts["without_answer"] == 0 and facts["words_of_answers"]["50%"] == 1
    assert doctor("qa", [str(path)], model=str(tiny_bert), max_length=8).to_dict()["longer_than_window"] == 1.0
    with pytest.raises(DataError, match="the data cannot be used as it is"):
        unmask.finetune("qa", tiny_bert, path, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
