"""The sentences that a report shows: plain prose, one whole word hidden, the same ones every time."""

from __future__ import annotations

import json

import pytest

from unmask.data.tokenizer import train_tokenizer
from unmask.evaluate.examples import masked_sentences, sentences

TEXTS = [
    ("a", "Return the mean of the values. See `foo(x)` for more. Too short."),
    ("b", "The array is copied before it is changed.\nThis sentence has no end"),
    ("c", "Return the mean of the rows. Every file is closed when the block ends."),
]


@pytest.fixture
def heldout(tmp_path):
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in TEXTS))
    return path


def test_only_plain_prose_is_taken():
    found = [sentence for _, sentence in sentences(TEXTS)]
    assert found == [
        "Return the mean of the values.",
        "The array is copied before it is changed.",
        "Return the mean of the rows.",
        "Every file is closed when the block ends.",
    ]


def test_one_word_is_hidden_and_known(heldout):
    tokenizer = train_tokenizer([text for _, text in TEXTS] * 20, kind="wordpiece", vocab_size=200, lowercase=True)
    items = masked_sentences(heldout, tokenizer, count=10)
    assert items == masked_sentences(heldout, tokenizer, count=10)
    originals = {sentence for _, sentence in sentences(TEXTS)}
    for item in items:
        assert item["text"].count("[MASK]") == 1
        assert item["text"].replace("[MASK]", item["answer"]) in originals
        assert len(tokenizer.tokenize(item["answer"])) == 1
    beginnings = [" ".join(item["text"].split()[:2]) for item in items]
    assert len(set(beginnings)) == len(beginnings)  # "Return the" comes once, though two sentences begin so
    assert len(items) == 3
