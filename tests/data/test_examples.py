"""Batches of labelled examples are a function of (seed, step): every example once an epoch, whatever the size of a pack."""

from __future__ import annotations

import numpy as np
import pytest

from unmask.data.examples import ExampleLoader, Examples
from unmask.data.sizes import rounded
from unmask.errors import DataError


def make(count=23, seed=0, windows=True, pairs=False):
    rng = np.random.default_rng(seed)
    segments = rng.integers(1, 4, size=count) if windows else np.ones(count, int)
    lengths = rng.integers(3, 12, size=segments.sum())
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.flatnonzero(rng.random(bounds[-1]) < 0.3)
    return Examples(
        input_ids=np.arange(bounds[-1], dtype=np.int32) + 10, bounds=bounds, example=np.repeat(np.arange(count), segments),
        label_positions=rows, labels=rows * 2, names=[f"file:{n}" for n in range(count)],
        token_type_ids=(np.arange(bounds[-1]) % 2).astype(np.int8) if pairs else None,
    )  # fmt: skip


@pytest.mark.parametrize("micro_tokens", [20, 64, 10_000])
@pytest.mark.parametrize("pairs", [False, True])
def test_an_epoch_has_every_segment_once_with_its_labels(micro_tokens, pairs):
    examples = make(pairs=pairs)
    loader = ExampleLoader(examples, seed=1, batch_size=5, micro_tokens=micro_tokens, position_offset=2, pad_id=1)
    assert loader.steps_per_epoch() == 5
    seen, labels = [], []
    for step in range(5):
        batches = loader.batch(step)
        assert len({d for batch in batches for d in batch.documents.tolist()} - {-1}) == (3 if step == 4 else 5)
        for batch in batches:
            real = int((batch.documents >= 0).sum())
            ids, cu = batch.input_ids[0].numpy(), batch.cu_seqlens.numpy()
            assert (
                batch.num_tokens == cu[real]
                and len(ids) == cu[-1]
                and len(ids) == rounded(batch.num_tokens)
                and (ids[cu[real] :] == 1).all()
            )
            assert batch.num_tokens <= micro_tokens or real == 1
            assert batch.max_seqlen == np.diff(cu).max()
            positions = batch.position_ids[0].numpy()
            for low, high, document in zip(cu[:real], cu[1 : real + 1], batch.documents.tolist(), strict=False):
                assert positions[low:high].tolist() == list(range(2, 2 + high - low))
                first = np.searchsorted(examples.bounds, ids[low] - 10)
                assert examples.example[first] == document and (np.diff(ids[low:high]) == 1).all()
                seen.append(int(first))
            # a label belongs to its token, wherever that has come to lie
            assert (ids[batch.label_positions.numpy()] - 10).tolist() == (batch.labels.numpy() // 2).tolist()
            labels += batch.labels.tolist()
            if pairs:
                assert (batch.token_type_ids[0, : cu[real]].numpy() == (ids[: cu[real]] - 10) % 2).all()
            else:
                assert batch.token_type_ids is None
    assert sorted(seen) == list(range(len(examples.lengths))) and sorted(labels) == examples.labels.tolist()


def test_a_step_depends_on_seed_and_number_alone():
    def ids(seed, step, **options):
        loader = ExampleLoader(make(), seed=seed, batch_size=4, micro_tokens=100, **options)
        return [batch.input_ids.tolist() for batch in loader.batch(step)]

    loader = ExampleLoader(make(), seed=3, batch_size=4, micro_tokens=100)
    forwards = [[batch.input_ids.tolist() for batch in loader.batch(step)] for step in range(13)]
    assert forwards[7] == ids(3, 7) and forwards[12] == ids(3, 12) and forwards[0] != forwards[6] != ids(4, 6)
    assert set(loader.order(0).tolist()) == set(loader.order(1).tolist()) == set(range(23))
    assert loader.order(0).tolist() != loader.order(1).tolist()


def test_weights_draw_some_more_often():
    examples = make(200, windows=False)
    weights = np.where(np.arange(200) < 20, 9.0, 1.0)
    loader = ExampleLoader(examples, seed=0, batch_size=50, micro_tokens=10_000, weights=weights)
    drawn = np.concatenate([loader.order(epoch) for epoch in range(20)])
    assert len(drawn) == 4000 and 0.45 < (drawn < 20).mean() < 0.55
    assert loader.document_id(7) == "file:7"


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no example to train on"):
        ExampleLoader(make(0), seed=0, batch_size=1, micro_tokens=10)


def test_the_same_tokens_are_hidden_however_a_step_is_cut_and_others_in_each_epoch():
    examples = make(count=200)
    can_hide = np.ones(int(examples.bounds[-1]) + 10, dtype=bool)
    can_hide[10:500] = False
    hiding = {"seed": 3, "batch_size": 20, "hide_prob": 0.3, "mask_id": 4, "can_hide": can_hide}

    def hidden(micro_tokens, epoch):
        loader = ExampleLoader(examples, micro_tokens=micro_tokens, **hiding)
        plain = ExampleLoader(examples, micro_tokens=micro_tokens, seed=3, batch_size=20)
        found = []
        for step in range(10 * epoch, 10 * epoch + 10):
            for masked, batch in zip(loader.batch(step), plain.batch(step), strict=True):
                changed = masked.input_ids[0] != batch.input_ids[0]
                assert (masked.input_ids[0][changed] == 4).all() and (masked.labels == batch.labels).all()
                found += batch.input_ids[0][changed].tolist()
        return sorted(found)

    whole = hidden(10_000, 0)
    assert whole == hidden(30, 0) != hidden(10_000, 1)
    assert min(whole) >= 500 and 0.25 < len(whole) / (~can_hide[10:]).size / (1 - 490 / can_hide[10:].size) < 0.35
