"""Masks: what may be chosen, how much is, and that nothing but (seed, epoch, document) decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unmask.data.masking import BLOCK, STRATEGIES, MaskingConfig, Vocabulary, block_edges, mask_document, mask_tokens
from unmask.errors import ConfigError
from unmask.rng import uniforms

VOCABULARY = Vocabulary(mask=4, special=(0, 1, 2, 3, 4), size=1000)
ALL = sorted(STRATEGIES)


def text(length, *, seed=0, specials=0.0, words=0.6):
    """Return ids and word starts of a made-up document, some of its tokens special ones."""
    generator = np.random.default_rng(seed)
    ids = np.where(generator.random(length) < specials, generator.integers(0, 5, length), generator.integers(5, 1000, length))
    return ids, generator.random(length) < words


def mask(ids, words, *, document=0, config=None, seed=1, epoch=0, probability=None):
    options = {"config": config or MaskingConfig(), "vocabulary": VOCABULARY, "seed": seed, "epoch": epoch, "probability": probability}
    return mask_document(ids, words, document=document, **options)


documents = st.builds(
    text, st.integers(1, 80), seed=st.integers(0, 999), specials=st.sampled_from([0.0, 0.3, 1.0]), words=st.sampled_from([0.0, 0.5, 1.0])
)


@settings(max_examples=150, deadline=None)
@given(documents, st.sampled_from(ALL), st.floats(0.01, 1.0), st.integers(0, 2**40), st.integers(0, 10**9))
def test_what_holds_for_every_mask(document, strategy, probability, seed, number):
    ids, words = document
    config = MaskingConfig(strategy, mlm_probability=probability)
    before = ids.copy()
    corrupted, selected = mask(ids, words, document=number, config=config, seed=seed)
    assert (ids == before).all()
    assert not selected[ids < 5].any(), "a special token was chosen"
    assert selected.any() == (ids >= 5).any(), "a document that can have a label has one"
    assert (corrupted[~selected] == ids[~selected]).all()
    assert ((corrupted[selected] == VOCABULARY.mask) | (corrupted[selected] >= 5)).all(), "a special token was drawn"
    again = mask(ids, words, document=number, config=config, seed=seed)
    assert (again[0] == corrupted).all() and (again[1] == selected).all()
    if probability == 1.0:
        assert (selected == (ids >= 5)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(documents, min_size=1, max_size=8), st.sampled_from(ALL), st.randoms(use_true_random=False))
def test_a_document_is_masked_the_same_among_any_others(several, strategy, random):
    config = MaskingConfig(strategy, 0.3)
    numbers = random.sample(range(1000), len(several))
    alone = [mask(ids, words, document=number, config=config) for number, (ids, words) in zip(numbers, several, strict=True)]
    order = random.sample(range(len(several)), len(several))
    bounds = np.concatenate([[0], np.cumsum([len(several[i][0]) for i in order])])
    corrupted, selected = mask_tokens(
        np.concatenate([several[i][0] for i in order]), np.concatenate([several[i][1] for i in order]), bounds,
        np.array([numbers[i] for i in order]), np.zeros(len(order), np.int64), config=config, vocabulary=VOCABULARY, seed=1, epoch=0,
    )  # fmt: skip
    for place, i in enumerate(order):
        here = slice(bounds[place], bounds[place + 1])
        assert (corrupted[here] == alone[i][0]).all() and (selected[here] == alone[i][1]).all()


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_the_share_of_chosen_tokens(strategy, probability):
    ids, words = text(200_000, words=1.0)
    _, selected = mask(ids, words, config=MaskingConfig(strategy, probability, span_length=3.0))
    # tokens of a span are chosen together: n tokens carry no more than n / sum(length**2)/sum(length) independent choices
    together = {"token": 1.0, "whole_word": 1.0, "terms": 1.0, "span": 2 * 3.0 - 1}[strategy]
    width = 4 * np.sqrt(probability * (1 - probability) * together / len(ids))
    assert abs(selected.mean() - probability) < width


@pytest.mark.parametrize("strategy", ALL)
def test_the_share_over_many_short_documents(strategy):
    config = MaskingConfig(strategy, 0.3)
    masks = [mask(*text(64, seed=n, words=1.0), document=n, config=config)[1] for n in range(400)]
    total = sum(selected.sum() for selected in masks)
    together = 5.0 if strategy == "span" else 1.0
    assert abs(total / (64 * 400) - 0.3) < 4 * np.sqrt(0.3 * 0.7 * together / (64 * 400))


@pytest.mark.parametrize("strategy", ALL)
@pytest.mark.parametrize(("masked", "random"), [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_how_chosen_tokens_are_replaced(strategy, masked, random):
    ids, words = text(60_000)
    config = MaskingConfig(strategy, 0.3, mask_replace_prob=masked, random_replace_prob=random)
    corrupted, selected = mask(ids, words, config=config)
    was, now = ids[selected], corrupted[selected]
    changed = (now != 4) & (now != was)
    by_chance = random * (1 - 1 / len(VOCABULARY.ordinary))  # a random token may be the one that was there
    for share, expected in (((now == 4).mean(), masked), (changed.mean(), by_chance)):
        low, high = stats.binom.interval(1 - 1e-6, len(was), expected)
        assert low / len(was) <= share <= high / len(was)


def test_random_replacements_come_from_the_whole_ordinary_vocabulary():
    ids, words = text(100_000)
    corrupted, selected = mask(ids, words, config=MaskingConfig("token", 1.0, mask_replace_prob=0.0, random_replace_prob=1.0))
    counts = np.bincount(corrupted[selected], minlength=1000)
    assert (counts[:5] == 0).all()
    assert stats.chisquare(counts[5:]).pvalue > 1e-4


def test_whole_words_are_chosen_whole():
    ids, words = text(30_000, words=0.4)
    _, selected = mask(ids, words, config=MaskingConfig("whole_word", 0.3))
    word = np.cumsum(words) - words[0]
    share = np.bincount(word, weights=selected) / np.bincount(word)
    assert set(share) == {0.0, 1.0}
    low, high = stats.binom.interval(1 - 1e-6, len(share), 0.3)
    assert low <= share.sum() <= high


@pytest.mark.parametrize("length", [2.0, 5.0])
def test_spans_are_of_whole_words_and_of_the_length_asked_for(length):
    ids, words = text(120_000, words=0.5)
    _, selected = mask(ids, words, config=MaskingConfig("span", 0.1, span_length=length))
    word = np.cumsum(words) - words[0]
    chosen = np.bincount(word, weights=selected) / np.bincount(word)
    assert set(chosen) == {0.0, 1.0}
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]]))))[::2]
    # two chosen spans may touch, with the probability of a choice: runs are longer than spans by 1 / (1 - 0.1)
    assert runs.mean() == pytest.approx(length / 0.9, rel=0.06)


@pytest.mark.parametrize("strategy", ALL)
def test_a_higher_rate_selects_the_same_and_more(strategy):
    ids, words = text(3000)
    previous, kept = np.zeros(3000, bool), None
    for probability in (0.05, 0.15, 0.3, 0.8):
        corrupted, selected = mask(ids, words, config=MaskingConfig(strategy, 0.5), probability=probability)
        assert (selected >= previous).all() and selected.sum() > previous.sum()
        if kept is not None:
            assert (corrupted[previous] == kept[previous]).all()
        previous, kept = selected, corrupted


@pytest.mark.parametrize("strategy", ALL)
def test_the_key_matters(strategy):
    ids, words = text(400)
    config = MaskingConfig(strategy, 0.3)
    base = mask(ids, words, config=config)[1]
    for other in ({"seed": 2}, {"epoch": 1}, {"document": 1}, {"epoch": ("eval", 0)}):
        different = mask(ids, words, config=config, **other)[1]
        # two independent masks agree on 0.09 + 0.49 of the tokens
        assert 0.35 < (different == base).mean() < 0.8


def test_blocks_of_a_long_document_begin_at_words():
    _, words = text(10 * BLOCK + 700, words=0.2)
    edges = block_edges(words)
    assert edges[0] == 0 and edges[-1] == len(words) and len(edges) == 11
    assert words[edges[1:-1]].all()
    assert (np.abs(edges[1:-1] - np.arange(1, 10) * BLOCK) < 64).all()
    assert block_edges(np.zeros(5 * BLOCK, bool)).tolist() == [0, 1024, 2048, 3072, 4096, 5120]  # no word in reach
    assert block_edges(np.zeros(2 * BLOCK - 1, bool)).tolist() == [0, 2 * BLOCK - 1]


def test_the_schedule_is_a_straight_line():
    config = MaskingConfig(mlm_probability=0.3, mlm_probability_end=0.15)
    assert [config.probability_at(progress) for progress in (-1, 0, 0.5, 1, 2)] == pytest.approx([0.3, 0.3, 0.225, 0.15, 0.15])
    assert MaskingConfig(mlm_probability=0.2).probability_at(0.7) == 0.2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "words"}, "masking.strategy = 'words'; allowed: token, whole_word, span"),
        ({"mlm_probability": 0.0}, "masking.mlm_probability = 0.0 is not a share"),
        ({"mlm_probability": 15}, "masking.mlm_probability = 15 is not a share"),
        ({"mlm_probability_end": -0.1}, "masking.mlm_probability_end = -0.1 is not a share"),
        ({"mask_replace_prob": 1.1}, "masking.mask_replace_prob = 1.1 is not a probability"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "add up to more than 1"),
        ({"span_length": 0.5}, "masking.span_length = 0.5 words"),
        ({"mlm_probability": float("nan")}, "is not a share"),
        ({"span_length": float("nan")}, "span_length = nan"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError) as error:
        MaskingConfig(**fields)
    assert message in str(error.value)


def test_uniforms_are_uniform_and_independent():
    rows, columns = np.arange(500)[:, None], np.arange(400)[None, :]
    drawn = uniforms(3, "x", rows=rows, columns=columns)
    assert drawn.shape == (500, 400) and drawn.min() >= 0.0 and drawn.max() < 1.0
    assert stats.kstest(drawn.ravel(), "uniform").pvalue > 1e-4
    for low_bits in (drawn * 2**20 % 1, drawn * 2**40 % 1):  # not the high bits only
        assert stats.chisquare(np.histogram(low_bits, 64, (0, 1))[0]).pvalue > 1e-4
    others = [
        uniforms(4, "x", rows=rows, columns=columns),
        uniforms(3, "y", rows=rows, columns=columns),
        drawn[:, ::-1],
        drawn[::-1],
        drawn,
    ]
    for other, shift in zip(others, ((0, 0), (0, 0), (0, 0), (0, 0), (0, 1)), strict=True):
        moved = np.roll(other, shift, axis=(0, 1))
        assert abs(np.corrcoef(drawn.ravel(), moved.ravel())[0, 1]) < 5 / np.sqrt(drawn.size)
    pairs = np.histogram2d(drawn[:, :-1].ravel(), drawn[:, 1:].ravel(), 16, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
    rows_pairs = np.histogram2d(drawn[:-1].ravel(), drawn[1:].ravel(), 16, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(rows_pairs.ravel()).pvalue > 1e-4
    assert len(np.unique(drawn)) == drawn.size


def test_uniforms_stay_what_they_are():
    """The numbers are part of the promise that a seed means the same masks on every machine and in every version."""
    drawn = uniforms(7, "mask", 0, "select", rows=np.array([0, 1, 2**40]), columns=np.array([0, 5, 7]))
    assert drawn.tolist() == [0.09052803826549516, 0.4230856379547494, 0.637125143393517]
