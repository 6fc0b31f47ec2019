"""Entities written as columns: what is written is read again as the same entities, in every scheme, and what cannot be said is refused."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import ConfigError, DataError
from unmask.tasks.ner_conlleval import conlleval
from unmask.tasks.ner_data import of_words, read_tagged
from unmask.tasks.ner_write import conll
from unmask.tasks.recipe import TaskData


def line(words, spans, gold=None):
    """Return a line of predictions.jsonl; spans are of words."""
    item = of_words(words, spans, id="a:1")
    made = {"id": "a:1", "text": item.text, "tokens": words, "entities": as_dicts(item)}
    return made if gold is None else {**made, "gold": as_dicts(of_words(words, gold))}


def as_dicts(item):
    return [{"start": start, "end": stop, "label": kind} for start, stop, kind in item.entities]


@st.composite
def texts(draw):
    words = draw(st.lists(st.sampled_from(["Rome", ",", "नमस्ते", "שלום", "👩‍🔬", "a b", "#1", "é"]), min_size=1, max_size=8))
    edges = sorted(draw(st.sets(st.integers(0, len(words)), max_size=6)))
    spans = [(a, b, draw(st.sampled_from(["LOC", "PER-x"]))) for a, b in itertools.pairwise(edges) if draw(st.booleans())]
    return words, spans


@given(texts(), st.sampled_from(["bio", "iob1", "bioes", "bilou"]))
def test_what_is_written_is_read_again(tmp_path_factory, text, scheme):
    words, spans = text
    path = tmp_path_factory.mktemp("out") / "a.conll"
    # the second text tells the scheme where the first has no entity of two words, and words begin no comment
    other = line(["x", "y", "z", "q"], [(0, 2, "LOC"), (2, 3, "LOC")])
    path.write_text(conll(line(words, spans), scheme) + conll(other, scheme), encoding="utf-8")
    (first, second), _ = read_tagged(str(path), TaskData())
    assert first.text == " ".join(words) and list(first.entities) == list(of_words(words, spans).entities)
    assert list(second.entities) == [(0, 3, "LOC"), (4, 5, "LOC")]


def test_right_and_predicted_tags_are_what_the_official_scorer_reads():
    text = conll(line(["New", "York", "and", "Rome"], [(0, 2, "LOC")], gold=[(0, 2, "LOC"), (3, 4, "LOC")]))
    assert text == "New\tB-LOC\tB-LOC\nYork\tI-LOC\tI-LOC\nand\tO\tO\nRome\tB-LOC\tO\n\n"
    rows = [row.split("\t") for row in text.splitlines() if row]
    assert conlleval([[row[1] for row in rows]], [[row[2] for row in rows]]).figures() == (1.0, 0.5, pytest.approx(2 / 3))


def test_what_columns_cannot_say_is_refused():
    with pytest.raises(DataError, match=r"a:1: the word 'a\\tb' cannot stand in a column"):
        conll(line(["a\tb"], []))
    two = {"id": "x", "text": "Berliners", "entities": [{"start": 0, "end": 6, "label": "A"}, {"start": 6, "end": 9, "label": "B"}]}
    with pytest.raises(DataError, match="x: two entities are in one word"):
        conll(two)
    with pytest.raises(DataError, match="the text is empty"):
        conll({"id": "x", "text": "", "error": "the text is empty; give a text"})
    with pytest.raises(ConfigError, match="scheme = 'bi'; allowed: bio, iob1"):
        conll(two, "bi")


def test_the_command_writes_columns(tiny_bert, tmp_path, capsys):
    from unmask.cli import main
    from unmask.data.tokenizer import load_tokenizer
    from unmask.model.load import save_model
    from unmask.model.new_head import with_new_head

    model = with_new_head(tiny_bert, "token_classification", labels=["O", "B-x", "I-x"], seed=0)
    save_model(model, load_tokenizer(tiny_bert), tmp_path / "model")
    (tmp_path / "a.jsonl").write_text(json.dumps({"tokens": ["The", "judge"]}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(tmp_path / "model"), "--data", str(tmp_path / "a.jsonl"), "-o", str(tmp_path / "out.conll")])
    assert not caught.value.code, capsys.readouterr().err
    (item,), _ = read_tagged(str(tmp_path / "out.conll"), TaskData())
    assert item.text == "The judge"
