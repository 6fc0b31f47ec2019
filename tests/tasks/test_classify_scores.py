"""The numbers of a classifier are scikit-learn's, weighted and not; temperature and thresholds are the best there are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from unmask.tasks import tuning
from unmask.tasks.classify_scores import MultiLabel, Regression, SingleLabel, abstain, calibration_error

warnings.filterwarnings("ignore", module="sklearn")


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def single(labels, count=120, seed=0):
    rng = np.random.default_rng(seed)
    gold = rng.integers(labels - 1 if labels > 2 else 2, size=count)  # of several labels, the last stands in no item
    probs = softmax(rng.normal(size=(count, labels)) + 2 * np.eye(labels)[gold] * rng.integers(2, size=(count, 1)))
    return gold, probs.round(3) / probs.round(3).sum(1, keepdims=True)  # with ties


@pytest.mark.parametrize("labels", [2, 5])
def test_single_label_numbers_are_those_of_scikit_learn(labels):
    gold, probs = single(labels)
    scores = SingleLabel(gold, probs, [str(n) for n in range(labels)])
    rng = np.random.default_rng(1)
    weights = np.concatenate([np.ones((1, len(gold))), rng.integers(0, 4, size=(3, len(gold)))]).astype(float)
    found = scores.of(weights)
    said = probs.argmax(1)
    for row, weight in enumerate(weights):
        kept = weight > 0
        common = {"sample_weight": weight[kept]}
        g, s, p = gold[kept], said[kept], probs[kept]
        want = {
            "accuracy": sk.accuracy_score(g, s, **common),
            "macro_f1": sk.f1_score(g, s, average="macro", **common),
            "weighted_f1": sk.f1_score(g, s, average="weighted", **common),
            "macro_precision": sk.precision_score(g, s, average="macro", zero_division=0, **common),
            "macro_recall": sk.recall_score(g, s, average="macro", zero_division=0, **common),
            "matthews_correlation": sk.matthews_corrcoef(g, s, **common),
            "log_loss": sk.log_loss(g, p, labels=range(labels), **common),
        }
        if labels == 2:
            want["auroc"] = sk.roc_auc_score(g, p[:, 1], **common)
        else:
            want["macro_auroc"] = np.mean([sk.roc_auc_score(g == n, p[:, n], **common) for n in np.unique(g)])
        for name, value in want.items():
            assert found[name][row] == pytest.approx(value, abs=1e-9), name
    assert np.array(scores.details()["confusion"]).tolist() == sk.confusion_matrix(gold, said, labels=range(labels)).tolist()


def test_multi_label_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    gold = rng.random((150, 4)) < [0.5, 0.2, 0.1, 0.3]
    gold[:3] = False  # some have no label
    probs = np.clip(gold * 0.3 + rng.random(gold.shape) * 0.6, 0.01, 0.99).round(2)
    said = probs > [0.5, 0.4, 0.6, 0.5]
    scores = MultiLabel(gold, probs, said, list("abcd"))
    weights = np.concatenate([np.ones((1, 150)), rng.integers(1, 4, size=(2, 150))]).astype(float)
    found = scores.of(weights)
    for row, weight in enumerate(weights):
        common = {"sample_weight": weight}
        want = {
            "micro_f1": sk.f1_score(gold, said, average="micro", **common),
            "micro_precision": sk.precision_score(gold, said, average="micro", **common),
            "micro_recall": sk.recall_score(gold, said, average="micro", **common),
            "macro_f1": sk.f1_score(gold, said, average="macro", **common),
            "weighted_f1": sk.f1_score(gold, said, average="weighted", **common),
            "exact_match": sk.accuracy_score(gold, said, **common),
            "hamming_loss": sk.hamming_loss(gold, said, **common),
            "macro_auroc": sk.roc_auc_score(gold, probs, average="macro", **common),
            "macro_average_precision": sk.average_precision_score(gold, probs, average="macro", **common),
        }
        for name, value in want.items():
            assert found[name][row] == pytest.approx(value, abs=1e-9), name


def test_regression_numbers_are_those_of_scikit_learn_and_scipy():
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(3)
    gold = rng.normal(size=80).round(1)
    said = gold + rng.normal(size=80)
    found = {name: value[0] for name, value in Regression(gold, said).of(np.ones((1, 80))).items()}
    want = {
        "mean_squared_error": sk.mean_squared_error(gold, said), "mean_absolute_error": sk.mean_absolute_error(gold, said),
        "r2": sk.r2_score(gold, said), "pearson": pearsonr(gold, said)[0], "spearman": spearmanr(gold, said)[0],
        "root_mean_squared_error": sk.mean_squared_error(gold, said) ** 0.5,
    }  # fmt: skip
    assert found == pytest.approx(want)


def test_calibration_error_of_a_model_that_is_too_sure():
    confidence, right = np.array([0.95] * 10), np.array([True] * 6 + [False] * 4)
    assert calibration_error(confidence, right, np.ones((1, 10)))[0] == pytest.approx(0.35)
    points = abstain(np.linspace(1, 0.5, 10), np.array([True] * 5 + [False] * 5))
    assert [point["accuracy"] for point in points] == pytest.approx([1, 1, 1, 1, 1, 5 / 6, 5 / 7, 5 / 8, 5 / 9, 0.5])


@pytest.mark.parametrize("multi", [False, True])
def test_the_temperature_undoes_a_wrong_one(multi):
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(4000, 3)) * 2
    if multi:
        gold = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    else:
        gold = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    assert tuning.temperature(logits * 5, gold, multi=multi) == pytest.approx(5, rel=0.1)
    assert tuning.temperature(logits[:0], gold[:0], multi=multi) == 1.0


def test_the_best_cut_is_the_best_of_all():
    rng = np.random.default_rng(5)
    for _ in range(20):
        probs, gold = rng.random(30).round(1), rng.random(30) < 0.3
        cut = tuning.best_cut(probs, gold)
        if gold.any():
            best = max(sk.f1_score(gold, probs >= one) for one in np.unique(probs))
            assert sk.f1_score(gold, probs >= cut) == pytest.approx(best)
    assert tuning.best_cut(np.ones(3), np.zeros(3, bool)) == 0.5


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a"] * 30 + ["b"] * 19, "49 held-out examples, and at least 50 are wanted"),
        (["a"] * 60, "all but 0 of 60 held-out examples are labelled alike, and at least 5 others are wanted"),
        (["a"] * 60 + ["b"] * 2 + ["c"] * 2, "all but 4 of 64"),
        (["a"] * 45 + ["b"] * 3 + ["c"] * 2, None),
        (range(77), None),  # many labels of which each is rare
        ([frozenset("ab")] * 50 + [frozenset("a")] * 4, "all but 4 of 54"),
        ([frozenset("ab"), frozenset()] * 25, None),
    ],
)
def test_nothing_is_found_on_few_items_or_on_those_of_one_label(labels, says):
    found = tuning.too_few(labels)
    assert found is None if says is None else says in found


def test_rare_labels_share_a_threshold():
    rng = np.random.default_rng(6)
    gold = np.stack([rng.random(200) < 0.4, np.arange(200) < 2], 1)
    probs = np.clip(gold * 0.4 + rng.random(gold.shape) * 0.5, 0, 1)
    found = tuning.thresholds(probs, gold)
    assert found[1] == tuning.best_cut(probs.ravel(), gold.ravel()) and found[0] == tuning.best_cut(probs[:, 0], gold[:, 0])


def test_no_item_has_a_part_in_what_it_is_measured_with():
    fold = tuning.folds([f"text {number}" for number in range(50)])
    assert set(fold.tolist()) == set(range(tuning.FOLDS))
    seen = tuning.cross_fitted(lambda rows: rows.astype(float), fold)  # which items each was fitted on
    for item in range(50):
        assert seen[item, item] == 0 and (seen[item] == (fold != fold[item])).all()
    assert tuning.cross_fitted(lambda rows: np.array(rows.sum()), np.zeros(3, int)).tolist() == [3, 3, 3]
