"""Every metric against a case computed by hand, scikit-learn where it has it, and intervals against what scipy makes of the same."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from unmask.errors import DataError
from unmask.evaluate import stats
from unmask.evaluate.calibration import bin_sums, expected_calibration_error, reliability
from unmask.evaluate.metrics import DEFINITIONS, RATIOS, estimates, metrics
from unmask.evaluate.records import COLUMNS, Records, RecordsWriter


def make(folder=None, *, num_documents=None, info=None, slices=None, **columns):
    """Return records of the columns that are given; the rest are what makes no difference."""
    size = len(columns["label"])
    usual = {"word_start": 1, "word_pieces": 1, "rank": 1, "num_bytes": 1, "per_million": 50.0, "confidence": 0.5, "log_prob": -1.0}
    whole = {name: np.broadcast_to(np.asarray(columns.get(name, usual.get(name, 0))), size) for name in COLUMNS}
    count = num_documents or int(whole["document"].max(initial=-1)) + 1
    with RecordsWriter(folder) as writer:
        writer.add(**whole)
        numbers = {name: np.arange(1, count + 1) for name in ("key", "masks", "num_tokens", "num_words", "num_bytes", "num_windows")}
        writer.add_documents({"id": [f"d{n}" for n in range(count)], "slice": slices or [None] * count, **numbers})
        return writer.finish(info or {})


@pytest.fixture
def five(tmp_path):
    """Three documents of 2, 2 and 1 masked tokens."""
    return make(
        tmp_path / "r", document=[0, 0, 1, 1, 2], label=[7, 8, 7, 9, 7], predicted=[7, 7, 7, 8, 5], rank=[1, 6, 1, 11, 4],
        log_prob=np.log([0.5, 0.25, 0.125, 0.5, 0.0625]), confidence=[0.5, 0.3, 0.9, 0.9, 0.31], num_bytes=[4, 1, 4, 3, 4],
        word_pieces=[1, 2, 2, 5, 1], word_start=[1, 1, 0, 0, 1], position=[0, 31, 32, 600, 127], action=[0, 1, 2, 0, 0],
        per_million=[5, 10, 99, 1e5, 1000],
    )  # fmt: skip


def test_by_hand(five):
    found = metrics(five, resamples=10)
    bits = 1 + 2 + 3 + 1 + 4
    by_hand = {
        "masked_loss": bits * math.log(2) / 5, "masked_perplexity": 2 ** (bits / 5), "masked_accuracy": 2 / 5, "top_5_accuracy": 3 / 5,
        "top_10_accuracy": 4 / 5, "mean_reciprocal_rank": (1 + 1 / 6 + 1 + 1 / 11 + 1 / 4) / 5, "bits_per_byte": bits / 16,
        # 7: predicted 3 times, twice rightly, 3 times there; 8: predicted once, wrongly, once there; 9: never predicted, once there
        "macro_precision": (2 / 3) / 3, "macro_recall": (2 / 3) / 3, "macro_f1": (2 / 3) / 3,
        "weighted_precision": 2 / 3 * 3 / 5, "weighted_recall": 2 / 5, "weighted_f1": 2 / 3 * 3 / 5,
        # bins of a fifteenth: 0.3 and 0.31 in one (0 of 2 right), 0.5 alone (right), 0.9 twice (1 of 2 right)
        "expected_calibration_error": (0.61 + 0.5 + 0.8) / 5,
    }  # fmt: skip
    assert by_hand.keys() == DEFINITIONS.keys()
    for name, value in by_hand.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-6), name
        assert found[name]["count"] == 5 and found[name]["low"] <= found[name]["high"]
    assert (found["num_masked_types"], found["num_masked_bytes"], found["num_documents"]) == (3, 16, 3)
    assert [(p["count"], p["accuracy"]) for p in found["reliability"]] == [(2, 0.0), (1, 1.0), (2, 0.5)]


def test_slices_by_hand(five):
    found = metrics(five, resamples=0)["slices"]

    def counts(dimension):
        return {row["name"]: (row["count"], row["num_documents"]) for row in found[dimension]}

    assert counts("word_pieces") == {"1": (2, 2), "2": (2, 2), "4 and more": (1, 1)}
    assert counts("word") == {"whole word": (2, 2), "first piece": (1, 1), "later piece": (2, 1)}
    assert counts("position") == {"0 to 31": (2, 1), "32 to 127": (2, 2), "512 and more": (1, 1)}
    assert counts("action") == {"mask": (3, 3), "random": (1, 1), "keep": (1, 1)}
    assert counts("frequency") == {
        "below 10": (1, 1), "10 to 100": (2, 2), "1,000 to 10,000": (1, 1), "10,000 and more": (1, 1),
    }  # fmt: skip
    whole = found["word"][0]
    assert whole["masked_accuracy"]["value"] == 0.5 and whole["masked_loss"]["value"] == pytest.approx(2.5 * math.log(2))
    for rows in found.values():
        assert sum(row["count"] for row in rows) == 5
        assert all(row["masked_loss"]["why"] for row in rows)


def test_slices_by_a_field(tmp_path):
    columns = {"document": [0, 0, 1, 2], "label": [1, 2, 3, 4], "predicted": [1, 0, 3, 0]}
    found = metrics(make(**columns, info={"slice_by": "area"}, slices=["law", None, "law"]), resamples=0)
    rows = {row["name"]: (row["count"], row["num_documents"], row["masked_accuracy"]["value"]) for row in found["slices"]["area"]}
    assert rows == {"law": (3, 2, pytest.approx(1 / 3)), "(none)": (1, 1, 1.0)}


@pytest.fixture(scope="module")
def many():
    generator = np.random.default_rng(0)
    size = 6000
    label = generator.zipf(1.4, size) % 300
    predicted = np.where(generator.random(size) < 0.4, label, generator.integers(0, 400, size))
    return make(
        document=np.sort(generator.integers(0, 80, size)), label=label, predicted=predicted, confidence=generator.random(size),
        log_prob=-generator.exponential(2, size), rank=generator.integers(1, 50, size), num_bytes=generator.integers(1, 9, size),
    )  # fmt: skip


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_equal_to_scikit_learn(many, average):
    found = estimates(many, resamples=0, slices=False).point
    truth = precision_recall_fscore_support(many.label, many.predicted, labels=np.unique(many.label), average=average, zero_division=0)
    for name, value in zip(("precision", "recall", "f1"), truth, strict=False):
        assert found[f"{average}_{name}"] == pytest.approx(value, abs=1e-12)
    assert found["masked_accuracy"] == accuracy_score(many.label, many.predicted)


def test_blocks_change_nothing(many, monkeypatch):
    whole = estimates(many, resamples=60)
    monkeypatch.setattr(Records.blocks, "__defaults__", (997,))
    for name, value in estimates(many, resamples=60).point.items():
        assert value == pytest.approx(whole.point[name], abs=1e-12, nan_ok=True), name


def test_the_interval_is_that_of_scipy(many):
    """A bootstrap of the ratio of two sums over documents."""
    loss, count = (np.bincount(many.document, values) for values in (-many.log_prob.astype(float), np.ones(len(many))))
    theirs = bootstrap(
        (loss, count), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(1),
    )  # fmt: skip
    ours = metrics(many, resamples=4000, slices=False)["masked_loss"]
    spread = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours["low"] == pytest.approx(theirs.confidence_interval.low, abs=0.08 * spread)
    assert ours["high"] == pytest.approx(theirs.confidence_interval.high, abs=0.08 * spread)


def test_intervals_are_centred_on_their_numbers(many):
    """Also those of averages over the vocabulary, whose resamples hold fewer tokens and so lie beside it."""
    found = metrics(many, resamples=200)
    rows = [found, *(row for rows in found["slices"].values() for row in rows)]
    entries = [entry for row in rows for entry in row.values() if isinstance(entry, dict) and entry.get("low") is not None]
    assert len(entries) > 14
    assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in entries)


def test_resamples_by_hand(many):
    """The numbers of a resample are those of records in which each document stands as often as it was drawn."""
    drawn = next(stats.weights(80, 3, 0))[2].astype(int)
    times = drawn[many.document]
    columns = {name: np.repeat(getattr(many, name), times) for name in COLUMNS}
    found, again = estimates(many, resamples=3), estimates(make(**columns, num_documents=80), resamples=0)
    for name in [*RATIOS, "expected_calibration_error"]:
        assert found.samples[name][2] == pytest.approx(again.point[name], rel=1e-12), name
    there = np.isin(np.unique(many.label), columns["label"])
    for name in ("recall", "f1", "precision"):
        # a token that was not drawn keeps the score of the whole text
        assert there.mean() * again.point[f"macro_{name}"] <= found.samples[f"macro_{name}"][2] + 1e-9
    assert found.samples["weighted_recall"][2] == pytest.approx(again.point["weighted_recall"])


def test_every_interval_holds_its_number(many):
    found = metrics(many)
    for name in DEFINITIONS:
        if name != "expected_calibration_error":  # a sum of distances: resamples of it lie above
            assert found[name]["low"] < found[name]["value"] < found[name]["high"], name


def test_the_same_twice_and_another_seed(many):
    one, two, other = (metrics(many, seed=seed, resamples=200) for seed in (0, 0, 1))
    assert one == two
    assert one["masked_loss"]["value"] == other["masked_loss"]["value"] and one["masked_loss"]["low"] != other["masked_loss"]["low"]


def test_one_document_has_no_interval():
    found = metrics(make(document=[0, 0], label=[1, 2]))
    for name in DEFINITIONS:
        assert found[name]["low"] is None and found[name]["high"] is None and "one document only" in found[name]["why"]
    assert "one document only" in found["interval"]["why_none"]
    # of two documents with one masked token between them there is none either
    assert "one document only" in metrics(make(document=[0], label=[1], num_documents=2))["masked_loss"]["why"]


def test_a_slice_in_one_document_has_no_interval():
    found = metrics(make(document=[0, 1, 2, 3], label=[1, 2, 3, 4], action=[0, 0, 1, 0]), resamples=100)["slices"]["action"]
    assert {row["name"]: row["masked_loss"]["low"] is None for row in found} == {"mask": False, "random": True}


def test_nothing_masked():
    with pytest.raises(DataError, match="no token of the text can be masked"):
        metrics(make(label=[], num_documents=2))


def test_many_documents_are_drawn_in_groups():
    unit = stats.units(10 * stats.UNITS + 3)
    assert set(np.bincount(unit)) == {10, 11} and (np.diff(unit) >= 0).all() and len(np.unique(unit)) == stats.UNITS
    assert stats.units(5).tolist() == [0, 1, 2, 3, 4]
    assert len(stats.units(0)) == 0


def test_weights():
    made = np.concatenate(list(stats.weights(40, 120, 7)))
    assert made.shape == (120, 40) and (made.sum(1) == 40).all()
    assert made.var() == pytest.approx(1 - 1 / 40, abs=0.06)
    assert (np.concatenate(list(stats.weights(40, 70, 7))) == made[:70]).all()  # more resamples only add to them


def test_a_perplexity_that_no_float_holds():
    found = metrics(make(document=[0, 1], label=[1, 2], log_prob=[-800.0, -900.0]), resamples=0)
    assert found["masked_perplexity"]["value"] is None and found["masked_loss"]["value"] == 850.0


def test_calibration_of_a_model_that_is_sure_and_right():
    records = make(document=[0, 0, 1], label=[1, 2, 3], predicted=[1, 2, 3], confidence=[1.0, 1.0, 1.0])
    sums = bin_sums(records, np.array([0, 1])).sum(0)
    assert float(expected_calibration_error(sums)) == 0.0
    assert reliability(sums) == [{"from": 14 / 15, "to": 1.0, "count": 3, "confidence": 1.0, "accuracy": 1.0}]


def test_records_are_views_of_a_file(tmp_path):
    records = make(tmp_path / "r", document=[0, 1], label=[3, 4], info={"policy": "mask"})
    assert not records.label.flags.owndata and not records.label.flags.writeable
    kept = records.save(tmp_path / "kept")
    assert kept.info == records.info and kept.label.tolist() == [3, 4] and kept.document_id(1) == "d1"
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["documents.arrow", "manifest.json", "records.arrow"]
    with pytest.raises(DataError, match="there are no records"):
        Records(tmp_path)
    (tmp_path / "kept" / "records.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(DataError, match=r"is damaged: records.arrow has 18 bytes instead of \d+; evaluate or compare again \(if"):
        Records(tmp_path / "kept")
    (tmp_path / "kept" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"records.arrow' is damaged \(.*\); evaluate or compare again"):
        Records(tmp_path / "kept")


@pytest.mark.parametrize("name", ["records.arrow", "documents.arrow"])
def test_a_bit_that_has_turned_in_records_is_found(tmp_path, name):
    make(tmp_path, document=[0, 1], label=[3, 4], log_prob=[-0.5, -1.5])
    data = (tmp_path / name).read_bytes()
    for place in range(0, len(data), 97):
        (tmp_path / name).write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(DataError, match=f"the content of {name} has changed since it was written"):
            Records(tmp_path)
    (tmp_path / name).write_bytes(data)
    assert Records(tmp_path).log_prob.tolist() == [-0.5, -1.5]
    make(tmp_path, document=[0], label=[7])  # written over, the manifest too
    assert Records(tmp_path).label.tolist() == [7]
    (tmp_path / "manifest.json").unlink()  # of records from before there was one, nothing is known
    assert Records(tmp_path).label.tolist() == [7]


def test_records_without_a_folder_go_when_they_are_forgotten():
    records = make(document=[0], label=[3])
    folder = records.folder
    assert folder.is_dir()
    del records
    assert not folder.exists()
