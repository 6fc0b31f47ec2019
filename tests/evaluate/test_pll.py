"""Pseudo-log-likelihoods equal a plain loop over a stock model and minicons, whatever the order, the budget and the length of the text."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from unmask.errors import TaskError
from unmask.evaluate.pll import Scored, Scorer, Totals, perplexity, score

from .make_minicons import FAMILIES, FILE, LIMIT, TEXTS, save

RECORD = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save(family, RECORD["vocabularies"], tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def scorers(folders):
    return {family: Scorer.load(folder) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def bert(scorers):
    return scorers["bert"]


def plain_loop(folder, text, method, ids=None):
    """One masked copy at a time through a stock model, words as the tokenizer's own pre-tokenizer cuts them."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoded = tokenizer(text, return_tensors="pt")
    ids, words = encoded["input_ids"], encoded.word_ids()
    values = []
    for place, word in enumerate(words):
        if word is None:
            continue
        masked = ids.clone()
        for other in range(place, len(words)):
            if other == place or (method == "word_l2r" and words[other] == word):
                masked[0, other] = tokenizer.mask_token_id
        # beside a longer neighbour, so that it is padded
        rows = torch.cat([torch.cat([masked, torch.full((1, 3), tokenizer.pad_token_id)], 1), torch.full((1, masked.shape[1] + 3), 5)])
        with torch.no_grad():
            logits = model(input_ids=rows, attention_mask=(rows != tokenizer.pad_token_id).long()).logits
        values.append(float(logits[0, place].log_softmax(-1)[ids[0, place]]))
    return values


@pytest.mark.parametrize("method", ["original", "word_l2r"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_loop_and_minicons(folders, scorers, family, method):
    recorded = RECORD["scores"][family][method]
    assert RECORD["texts"] == TEXTS
    for text, one, theirs in zip(TEXTS, score(scorers[family], TEXTS, method), recorded, strict=True):
        assert one.text == text and one.error is None and one.windows == 1 and not one.truncated
        np.testing.assert_allclose(one.log_probs, plain_loop(folders[family], text, method), atol=1e-4)
        np.testing.assert_allclose(one.log_probs, theirs, atol=1e-4)
        assert one.total == pytest.approx(sum(theirs), abs=1e-3)
        assert one.num_tokens == len(one.tokens) == len(one.token_ids) == len(one.word_index) == len(theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_methods_differ_in_words_of_several_pieces_only(scorers, family):
    for plain, l2r in zip(score(scorers[family], TEXTS), score(scorers[family], TEXTS, "word_l2r"), strict=True):
        size = np.bincount(plain.word_index)[plain.word_index]
        last = np.append(np.diff(plain.word_index) > 0, True)
        np.testing.assert_allclose(plain.log_probs[last], l2r.log_probs[last], atol=1e-5)
        assert np.all(np.abs(plain.log_probs - l2r.log_probs)[~last] > 1e-5) and (size > 1).any() >= (~last).any()


@pytest.mark.parametrize("method", ["original", "word_l2r", "sampled"])
def test_order_and_budget_change_nothing(folders, scorers, method):
    texts = [*TEXTS, " ".join(TEXTS)]  # the last one in windows
    order = np.random.default_rng(3).permutation(len(texts)).tolist()
    want = score(scorers["bert"], texts, method, sample=4)
    for max_tokens in (1, 70, 100_000):
        other = Scorer(scorers["bert"].engine.model, scorers["bert"].encoder.tokenizer, max_tokens=max_tokens, lookahead=2)
        given = score(other, [texts[place] for place in order], method, sample=4)
        for place, one in zip(order, given, strict=True):
            np.testing.assert_allclose(one.log_probs, want[place].log_probs, atol=1e-5)
            assert f"{one.total:.5g}" == f"{want[place].total:.5g}" and one.text == texts[place]
    again = score(scorers["bert"], texts, method, sample=4)
    assert all(np.array_equal(one.log_probs, other.log_probs, equal_nan=True) for one, other in zip(want, again, strict=True))


def test_a_long_text_is_scored_in_windows(folders, bert):
    from transformers import AutoModelForMaskedLM

    text = " ".join(TEXTS * 60)
    scorer = Scorer(bert.engine.model, bert.encoder.tokenizer, max_length=34, context=7)
    for method in ("original", "word_l2r"):
        one = score(scorer, text, method)
        assert one.num_tokens > 20 * 34 and not np.isnan(one.log_probs).any()
        assert one.truncated and one.windows == 1 + math.ceil((one.num_tokens - 32) / 18)
        # each token as a plain model sees it in its window: seven tokens at least on both sides, unless the text ends
        model = AutoModelForMaskedLM.from_pretrained(folders["bert"]).eval()
        prefix, suffix = bert.prefix.tolist(), bert.suffix.tolist()
        ends = np.searchsorted(one.word_index, one.word_index, side="right")
        for place in [0, 6, 7, 24, 25, 26, 100, one.num_tokens - 8, one.num_tokens - 1]:
            window = min(max(place - 7, 0) // 18, one.windows - 1)
            start = min(window * 18, one.num_tokens - 32)
            assert place - start >= min(7, place) and start + 32 - 1 - place >= min(7, one.num_tokens - 1 - place)
            ids = one.token_ids[start : start + 32].copy()
            ids[place - start : (place + 1 if method == "original" else ends[place]) - start] = bert.specials.mask
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prefix, *ids, *suffix]])).logits[0, place - start + len(prefix)]
            assert one.log_probs[place] == pytest.approx(float(logits.log_softmax(-1)[one.token_ids[place]]), abs=1e-4)


def test_by_default_a_window_is_what_the_model_has(bert):
    one = score(bert, " ".join(TEXTS))
    assert bert.max_length == LIMIT and bert.context == (LIMIT - 2) // 4
    assert one.truncated and one.windows > 1
    exactly = " ".join(["nurse"] * (LIMIT - 2))
    assert score(bert, exactly).windows == 1 and score(bert, exactly + " nurse").windows == 2


def test_memory_does_not_grow_with_the_text(bert):
    """What waits for the engine is its look-ahead, however long the text is."""
    scorer = Scorer(bert.engine.model, bert.encoder.tokenizer, max_length=16, max_tokens=64, lookahead=2)
    made, most, run = 0, 0, scorer.engine._run_sorted

    def watched(requests, reduce):
        nonlocal made, most
        made, most = made + len(requests), max(most, sum(len(request.input_ids) for request in requests))
        return run(requests, reduce)

    scorer.engine._run_sorted = watched
    one = score(scorer, " ".join(TEXTS * 20))
    assert made == one.num_tokens > 1000 and most <= 64 * 2 + 16


def test_the_sample_is_unbiased_and_knows_its_error(bert):
    texts = [" ".join(TEXTS[:3]), TEXTS[5]]
    whole = score(bert, texts)
    for text, truth in zip(texts, whole, strict=True):
        draws = [score(bert, text, "sampled", sample=6, seed=seed) for seed in range(120)]
        totals, errors = (np.array([getattr(one, name) for one in draws]) for name in ("total", "standard_error"))
        spread = totals.std(ddof=1)
        assert abs(totals.mean() - truth.total) < 4 * spread / math.sqrt(len(draws))
        assert np.sqrt((errors**2).mean()) == pytest.approx(spread, rel=0.25)
        one = draws[0]
        kept = ~np.isnan(one.log_probs)
        assert kept.sum() == one.num_scored_tokens == 6 and len({one.total for one in draws}) > 100
        np.testing.assert_allclose(one.log_probs[kept], truth.log_probs[kept], atol=1e-5)
        assert one.total == pytest.approx(one.log_probs[kept].mean() * one.num_tokens)
    exact = score(bert, texts[1], "sampled", sample=100)
    assert exact.total == pytest.approx(whole[1].total) and exact.standard_error == 0.0


def test_numbers_of_a_text_and_of_a_corpus(bert):
    texts = [TEXTS[0], "Ein § test", "", TEXTS[3]]
    totals = Totals()
    results = score(bert, texts)
    for one in results:
        totals.add(one)
    first, unknown, *_ = results
    assert (first.num_words, first.num_bytes, first.num_unknown) == (9, len(TEXTS[0]), 0)
    assert unknown.num_unknown == 1 and unknown.num_bytes == len("Ein § test") + 1
    assert first.pseudo_perplexity == pytest.approx(math.exp(-first.log_probs.mean()))
    assert first.word_log_probs.sum() == pytest.approx(first.total) and len(first.word_log_probs) == first.word_index[-1] + 1
    numbers, good = totals.metrics(), [one for one in results if one.error is None]
    values = np.concatenate([one.log_probs for one in good])
    assert numbers["num_texts"] == 4 and numbers["num_failed"] == 1 and numbers["num_unknown"] == 1
    assert numbers["num_tokens"] == numbers["num_scored_tokens"] == len(values)
    assert numbers["pseudo_perplexity"] == pytest.approx(math.exp(-values.mean()))  # a token weighs a token, a text does not weigh a text
    assert numbers["pseudo_perplexity"] != pytest.approx(np.mean([one.pseudo_perplexity for one in good]))
    words, size = sum(len(one.text.split()) for one in good), sum(len(one.text.encode()) for one in good)
    assert numbers["pseudo_perplexity_per_word"] == pytest.approx(math.exp(-values.sum() / words))
    assert numbers["pseudo_perplexity_per_byte"] == pytest.approx(math.exp(-values.sum() / size))
    assert numbers["pseudo_bits_per_byte"] == pytest.approx(-values.sum() / size / math.log(2))
    assert "pseudo_log_likelihood_standard_error" not in numbers


def test_standard_errors_of_a_corpus_add_up_in_squares(bert):
    totals, results = Totals(), score(bert, TEXTS, "sampled", sample=3)
    for one in results:
        totals.add(one)
    error = math.sqrt(sum(one.standard_error**2 for one in results))
    numbers = totals.metrics()
    assert numbers["pseudo_log_likelihood_standard_error"] == pytest.approx(error)
    assert numbers["pseudo_perplexity_standard_error"] == pytest.approx(numbers["pseudo_perplexity"] * error / numbers["num_tokens"])
    assert numbers["num_scored_tokens"] == sum(min(3, one.num_tokens) for one in results) < numbers["num_tokens"]


def test_nothing_to_divide_by_is_no_number():
    assert perplexity(-1.0, 0) is None and perplexity(-1e6, 1) is None and perplexity(math.nan, 3) is None
    numbers = Totals().metrics()
    assert numbers["pseudo_perplexity"] is None and numbers["pseudo_log_likelihood"] is None and numbers["num_texts"] == 0
    assert json.loads(json.dumps(Scored("x", error="why").to_dict())) == {"text": "x", "error": "why"}


def test_texts_that_cannot_be_scored_do_not_stop_the_others(bert):
    texts = ["", TEXTS[0], " \n\t", None, "\u200b\x07", TEXTS[3], "half \ud83d of a pair"]
    given = score(bert, texts)
    assert [one.error is None for one in given] == [False, True, False, False, False, True, True]
    assert "nothing to score in ''" in given[0].error and "a text is a string, not None" in given[3].error
    assert "the tokenizer makes no token" in given[4].error
    assert given[1].total == pytest.approx(score(bert, TEXTS[0]).total, abs=1e-5) and given[6].num_bytes == len("half ? of a pair")
    assert score(bert, ["", " "])[1].error is not None and score(bert, []) == []
    with pytest.raises(TaskError, match="nothing to score"):
        score(bert, "")


def test_a_mask_token_in_a_text_is_text(bert):
    one = score(bert, "The [MASK] asks.")
    assert bert.specials.mask not in one.token_ids and one.error is None and one.num_tokens > 5


def test_damaged_weights_are_an_error(folders):
    scorer = Scorer.load(folders["bert"])
    with torch.no_grad():
        next(scorer.engine.model.parameters())[7] = torch.nan
    given = [one.error for one in score(scorer, TEXTS)]
    assert any(error and "no number (NaN)" in error for error in given)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_length": 2}, "leaves no room"),
        ({"max_length": 20, "context": 9}, r"context = 9 .* 0 to 8"),
        ({"context": -1}, "context = -1"),
    ],
)
def test_windows_that_cannot_be(bert, options, says):
    with pytest.raises(TaskError, match=says):
        Scorer(bert.engine.model, bert.encoder.tokenizer, **options)


def test_arguments_that_cannot_be(bert):
    with pytest.raises(TaskError, match="allowed: original, word_l2r, sampled"):
        bert.score(TEXTS, "l2r")
    with pytest.raises(TaskError, match="at least 2"):
        bert.score(TEXTS, "sampled", sample=1)


def test_bf16_is_near(folders, bert):
    rough = score(Scorer.load(folders["bert"], precision="bf16"), TEXTS)
    for one, other in zip(rough, score(bert, TEXTS), strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=0.1)
        assert not np.array_equal(one.log_probs, other.log_probs)
