"""The words that stand out: found by their frequencies, kept with their counts, hidden more often at the same share of all tokens."""

import json

import numpy as np
import pytest

from unmask.data.masking import MaskingConfig, Terms, Vocabulary, mask_document, word_hashes
from unmask.data.store import StoreWriter, TokenStore
from unmask.data.terms import SMOOTHING, count_words, find_terms, load_terms, log_odds
from unmask.errors import DataError

VOCABULARY = Vocabulary(mask=4, special=(0, 1, 2, 3, 4), size=100)


class Letters:
    """Decode id n as the n-th letter of a long alphabet, or as a digit."""

    def decode(self, ids):
        return "".join("7" if number == 99 else chr(ord("a") + number % 26) for number in ids)


def make_store(folder, documents):
    """Return a store of documents, each a list of words, each a list of ids."""
    ids = [[number for word in document for number in word] for document in documents]
    starts = [[place == 0 for word in document for place in range(len(word))] for document in documents]
    with StoreWriter(folder, tokenizer_hash="x", vocab_size=100) as writer:
        writer.add(ids, starts, [f"d{n}" for n in range(len(ids))], [len(row) for row in ids])
    return TokenStore.open(folder)


def test_words_are_counted_whole(tmp_path):
    store = make_store(tmp_path / "s", [[[5, 6], [7], [5, 6]], [[6, 5], [7], [1]], [[5, 6], [5]]])
    counts = count_words(store, VOCABULARY)
    found = {
        tuple(store.ids(int(document))[start:stop].tolist()): int(count)
        for document, start, stop, count in zip(counts.document, counts.start, counts.stop, counts.counts, strict=True)
    }
    assert found == {(5, 6): 3, (6, 5): 1, (7,): 2, (5,): 1}  # [1] is special, and is no word
    assert (np.diff(counts.hashes.astype(object)) > 0).all()


def test_a_hash_tells_words_apart():
    words = [[a] for a in range(60)] + [[a, b] for a in range(60) for b in range(60)] + [[a, 5, b] for a in range(60) for b in range(60)]
    sizes = np.array([len(word) for word in words])
    hashes = word_hashes(np.concatenate(words), np.cumsum(sizes) - sizes)
    assert len(np.unique(hashes)) == len(words)
    assert hashes[3] == word_hashes(np.array([3], np.uint16), np.array([0]))[0]  # whatever the integers' size


def test_log_odds_by_hand():
    score, z = log_odds(np.array([9]), 100, np.array([1]), 200)
    expected = np.log(9.5 / 91.5) - np.log(1.5 / 199.5)
    assert score[0] == pytest.approx(expected) and z[0] == pytest.approx(expected / np.sqrt(1 / 9.5 + 1 / 1.5)) and SMOOTHING == 0.5


@pytest.fixture
def texts(tmp_path):
    """A domain in which [30, 31] stands out, and the number 99; [5] and [6] are everywhere."""
    domain = make_store(tmp_path / "domain", [[[5], [6], [30, 31], [99]] * 20] * 3)
    general = make_store(tmp_path / "general", [[[5], [6], [7], [8]] * 50] * 3)
    return domain, general


def test_what_stands_out_and_what_is_written_down(texts, tmp_path):
    found = find_terms(*texts, VOCABULARY, Letters())
    (term,) = found["terms"]
    assert (term["ids"], term["count"], term["general_count"], found["num_terms"]) == ([30, 31], 60, 0, 1)
    assert term["word"] == Letters().decode([30, 31]) and term["score"] > np.log(4)
    assert found["share_of_tokens"] == pytest.approx(2 / 5) and (found["num_words"], found["num_general_words"]) == (240, 600)
    (tmp_path / "terms.json").write_text(json.dumps(found))
    terms = load_terms(tmp_path / "terms.json")
    assert terms.share == pytest.approx(2 / 5) and terms.hashes.tolist() == word_hashes(np.array([30, 31]), np.array([0])).tolist()
    for damaged in ("{}", json.dumps(found).replace("[30, 31]", "[30, 32]"), "["):
        (tmp_path / "terms.json").write_text(damaged)
        with pytest.raises(DataError, match="is not the list of terms that the run began with"):
            load_terms(tmp_path / "terms.json")


def test_no_more_words_stand_out_than_a_fifth_of_the_tokens(tmp_path):
    """Words 30 to 39 are in the domain alone, [30] twice as often as the rest: with another one it would have more than a fifth."""
    words = [[number] for number in range(30, 40)]
    domain = make_store(tmp_path / "domain", [[*words, [30], [5], [6]] * 30])
    general = make_store(tmp_path / "general", [[[5], [6], [7], [8]] * 200])
    found = find_terms(domain, general, VOCABULARY, Letters())
    assert [term["ids"] for term in found["terms"]] == [[30]]
    assert found["share_of_tokens"] == pytest.approx(2 / 13)


def test_text_against_itself_has_no_terms(texts):
    with pytest.raises(DataError, match=r"no word of the domain \(240 words\) stands out"):
        find_terms(texts[0], texts[0], VOCABULARY, Letters())


@pytest.mark.parametrize(("probability", "factor"), [(0.15, 3.0), (0.3, 2.0), (0.15, 1.0), (0.4, 20.0)])
def test_terms_are_hidden_more_often_and_no_more_tokens(probability, factor):
    generator = np.random.default_rng(0)
    is_term = generator.random(60_000) < 0.1
    words = [[30, 31] if term else [int(number)] for term, number in zip(is_term, generator.integers(40, 99, len(is_term)), strict=True)]
    ids, starts = np.concatenate(words), np.concatenate([[True] + [False] * (len(word) - 1) for word in words])
    share = 2 * is_term.sum() / len(ids)
    vocabulary = Vocabulary(4, (0, 1, 2, 3, 4), 100, Terms(word_hashes(np.array([30, 31]), np.array([0])), share))
    config = MaskingConfig("terms", probability, term_factor=factor)
    _, selected = mask_document(ids, starts, document=3, config=config, vocabulary=vocabulary, seed=1, epoch=0)
    chosen = selected[starts]
    assert set((np.bincount(np.cumsum(starts) - 1, selected) / np.bincount(np.cumsum(starts) - 1)).tolist()) == {0.0, 1.0}
    assert selected.mean() == pytest.approx(probability, abs=0.012)
    often = min(1.0, factor * probability / (1 - share + share * factor))
    assert chosen[is_term].mean() == pytest.approx(often, abs=0.02)
    if often < 1:
        assert chosen[is_term].mean() / chosen[~is_term].mean() == pytest.approx(factor, rel=0.08)
