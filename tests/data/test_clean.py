"""Cleaning, hashing, splitting, and finding near-duplicates on disk."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data import near
from unmask.data.clean import content_hash, normalise, split_of, split_point
from unmask.data.near import NUM_BANDS, KeyIndex, band_keys, shingle_hashes

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "nrstl"]


def make(seed: int, num_words: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=num_words)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain text", "plain text"),
        ("  two   spaces\tand a tab ", "two spaces and a tab"),
        ("a \r\n\r\n b\rc\u2028d", "a\nb\nc\nd"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeffzero\u200bwidth\u00ad \x00control", "zerowidth control"),
        ("non\u00a0breaking\u3000wide", "non breaking wide"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("half a pair \ud83d", "half a pair \ufffd"),
        (" \n ", ""),
    ],
)
def test_normalise(text: str, clean: str) -> None:
    assert normalise(text) == clean


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab \n\t\r\u00a0\u2028\u0301e\x00\ufeff\ud800\u200d中"), max_size=30) | st.text(max_size=30))
def test_normalised_text_is_clean_and_stays_as_it_is(text: str) -> None:
    clean = normalise(text)
    assert normalise(clean) == clean == clean.strip()
    assert unicodedata.is_normalized("NFC", clean)
    assert not any(bad in clean for bad in ("  ", " \n", "\n ", "\n\n", "\r", "\x00"))
    clean.encode("utf-8")


def test_the_split_is_a_function_of_the_text() -> None:
    assert content_hash("The split must never move.") == 5774833341339969531
    texts = [f"document number {number}" for number in range(20_000)]
    points = np.array([split_point(content_hash(text)) for text in texts])
    assert abs(np.mean(points < 0.1) - 0.1) < 0.01
    assert points.min() >= 0 and points.max() < 1
    # a larger share holds out a superset
    assert all(split_of(text, 0.2) == "heldout" for text in texts[:500] if split_of(text, 0.1) == "heldout")


def jaccard(one: str, two: str) -> float:
    first, second = (set(shingle_hashes([text])[0].tolist()) for text in (one, two))
    return len(first & second) / len(first | second)


def test_shingles_are_those_of_words() -> None:
    hashes, counts = shingle_hashes(["One two, three four five six.", "one two", "", "--!"])
    assert counts.tolist() == [2, 1, 1, 1]
    assert len(hashes) == 5 and len(set(hashes.tolist())) == 5
    assert shingle_hashes(["one TWO three; four (five) six"])[0].tolist() == hashes[:2].tolist()
    words = make(1, 60)
    exact = {tuple(words[i : i + 5]) for i in range(56)}
    other = [*words[:30], "changed", *words[31:]]
    both = exact & {tuple(other[i : i + 5]) for i in range(56)}
    assert jaccard(" ".join(words), " ".join(other)) == pytest.approx(len(both) / (2 * 56 - len(both)))


def test_characters_are_words_where_there_are_no_spaces() -> None:
    assert shingle_hashes(["这是一个没有空格的句子"])[1].tolist() == [7]
    assert jaccard("我们今天去公园散步然后回家吃饭", "我们今天去公园散步然后回家睡觉") > 0.6


def test_keys_do_not_depend_on_the_batch_nor_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(make(seed, 5 + 37 * seed)) for seed in range(12)] + ["", "中文" * 300]
    together = band_keys(texts)
    assert together.shape == (14, NUM_BANDS)
    assert np.array_equal(together, np.concatenate([band_keys([text]) for text in texts]))
    monkeypatch.setattr(near, "SEGMENT_BYTES", 100)
    near._tables.cache_clear()
    near._inverse_powers.cache_clear()
    try:
        assert np.array_equal(together[:-1], band_keys(texts[:-1]))
    finally:
        near._tables.cache_clear()
        near._inverse_powers.cache_clear()


def test_near_duplicates_share_a_key_and_others_do_not() -> None:
    found = {0.98: 0, 0.9: 0, 0.4: 0}
    for seed in range(100):
        words = make(seed)
        original = " ".join(words)
        for target in found:
            other = list(words)
            generator = random.Random(seed + 1)
            while jaccard(original, " ".join(other)) > target:
                other[generator.randrange(len(other))] = f"new{generator.random()}"
            one, two = band_keys([original, " ".join(other)])
            found[target] += bool((one == two).any())
    assert found[0.98] == 100
    assert found[0.9] >= 97
    assert found[0.4] <= 8
    unrelated = band_keys([" ".join(make(seed)) for seed in range(300)])
    assert all(len(set(column.tolist())) == 300 for column in unrelated.T)


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.integers(0, 12), min_size=1, max_size=60), in_memory=st.integers(1, 70), left_out=st.sets(st.integers(0, 59)))
def test_the_index_finds_what_came_before(
    tmp_path_factory: pytest.TempPathFactory, keys: list[int], in_memory: int, left_out: set[int]
) -> None:
    index = KeyIndex(tmp_path_factory.mktemp("index") / "keys", 2, keys_in_memory=in_memory)
    column = (np.array(keys, np.uint64) * np.uint64(0x9E3779B97F4A7C15))[:, None]
    for first in range(0, len(keys), 7):
        index.add(np.hstack([np.zeros_like(column), column])[first : first + 7])
    index.finish()
    flags = np.array([8 * (row in left_out) for row in range(len(keys))], np.uint8)
    index.mark(1, flags, again=1, shared=2, without=8)
    for row, key in enumerate(keys):
        if row not in left_out:
            others = [other for other in range(len(keys)) if other != row and keys[other] == key and other not in left_out]
            assert bool(flags[row] & 1) == any(other < row for other in others)
            assert bool(flags[row] & 2) == bool(others)
    assert all(flags[row] == 8 for row in left_out if row < len(keys))
    assert not list(Path(index.folder).glob("part-*"))
