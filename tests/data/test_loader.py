"""Batches: every token once an epoch, each document for itself, the same at every call."""

import threading
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask.data.frozen import content_keys, frozen_batches, frozen_order, masks_fingerprint
from unmask.data.loader import Loader, Packer, Prefetch, prefetch
from unmask.data.masking import STRATEGIES, MaskingConfig, Vocabulary, mask_document
from unmask.data.store import StoreWriter, TokenStore
from unmask.errors import RunError, TokenizerError

Specials = namedtuple("Specials", "mask pad cls sep unk all")
SPECIALS = Specials(mask=4, pad=0, cls=2, sep=3, unk=1, all=(0, 1, 2, 3, 4))
PLAIN = Specials(mask=4, pad=0, cls=None, sep=None, unk=1, all=(0, 1, 4))
VOCAB = 500


def make_store(folder, lengths, *, seed=0, unknown=0.05, **options):
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths, dtype=np.int64)
    ids = np.where(generator.random(lengths.sum()) < unknown, 1, generator.integers(5, VOCAB, lengths.sum()))
    with StoreWriter(folder, tokenizer_hash="x", vocab_size=VOCAB, **options) as writer:
        names = [f"doc{number}" for number in range(len(lengths))]
        writer.add_flat(ids, generator.random(lengths.sum()) < 0.6, lengths, names, lengths * 4)
    return TokenStore.open(folder)


def loader(store, *, specials=SPECIALS, strategy="token", seed=1, max_length=32, micro_tokens=64, batch_tokens=None, **options):
    return Loader(
        store, specials, MaskingConfig(strategy, 0.3), vocab_size=VOCAB, seed=seed, max_length=max_length,
        micro_tokens=micro_tokens, batch_tokens=batch_tokens or micro_tokens, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two hundred documents: empty ones, short ones, some that are cut into windows, and one of several blocks."""
    lengths = np.random.default_rng(5).integers(0, 90, 200)
    lengths[[3, 50]] = 0, 6000
    return make_store(tmp_path_factory.mktemp("store") / "s", lengths, shard_bytes=8000, batch_tokens=2500)


def same(first, second):
    return all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("input_ids", "position_ids", "cu_seqlens", "label_positions", "labels", "documents")
    ) and (first.num_tokens, first.max_seqlen) == (second.num_tokens, second.max_seqlen)


def restored(batch):
    """Return the ids as they were before masking."""
    ids = batch.input_ids[0].clone()
    ids[batch.label_positions] = batch.labels
    return ids.numpy()


def segments(batch):
    """Return (document, original ids, corrupted ids, is label) of each segment, special tokens included."""
    bounds, ids = batch.cu_seqlens.tolist(), restored(batch)
    label = np.zeros(len(ids), bool)
    label[batch.label_positions.numpy()] = True
    return [
        (document, ids[low:high], batch.input_ids[0].numpy()[low:high], label[low:high])
        for document, low, high in zip(batch.documents.tolist(), bounds[:-1], bounds[1:], strict=True)
    ]


def check_shapes(batch, micro_tokens, max_length, specials=SPECIALS, position_offset=0):
    assert batch.input_ids.shape == batch.position_ids.shape == (1, micro_tokens)
    assert batch.input_ids.dtype == batch.position_ids.dtype == batch.labels.dtype == batch.label_positions.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32 and batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == micro_tokens
    sizes = batch.cu_seqlens.diff()
    assert sizes.min() >= 1 and sizes.max() == batch.max_seqlen <= max_length
    assert len(batch.documents) == len(sizes) and len(batch.labels) == len(batch.label_positions)
    expected = torch.cat([torch.arange(size) for size in sizes.tolist()]) + position_offset
    assert torch.equal(batch.position_ids[0], expected)
    real = batch.documents >= 0
    assert batch.num_tokens == sizes[real].sum() and not real[int(real.sum()) :].any()
    assert (batch.input_ids[0, batch.num_tokens :] == specials.pad).all()
    if len(batch.label_positions):
        assert batch.label_positions.max() < batch.num_tokens and (batch.label_positions.diff() > 0).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=30).filter(any), st.integers(3, 70), st.integers(1, 3), st.integers(1, 4),
    st.sampled_from([1, 2, 3, 4, 7]),
)  # fmt: skip
def test_processes_share_a_step_and_change_nothing_of_it(tmp_path_factory, lengths, max_length, times, packs, size):
    """Whatever their number, the windows of a step and their masks are the same, and nobody has much more of it than another."""
    store = make_store(tmp_path_factory.mktemp("s") / "s", lengths, batch_tokens=100, shard_bytes=500)
    micro_tokens = max_length * times
    options = {"max_length": max_length, "micro_tokens": micro_tokens, "batch_tokens": micro_tokens * packs}
    whole, shares = loader(store, **options), [loader(store, **options) for _ in range(size)]
    for rank, share in enumerate(shares):
        share.divide(rank, size)

    def windows(batches):
        return sorted(
            (document, original.tolist(), corrupted.tolist(), label.tolist())
            for batch in batches
            for document, original, corrupted, label in segments(batch)
            if document >= 0
        )

    for step in range(whole.steps_per_epoch() + 1):
        parts = [share.batch(step) for share in shares]
        assert windows(whole.batch(step)) == windows([batch for part in parts for batch in part])
        assert len({batch.input_ids.shape for part in parts for batch in part}) == 1
        tokens = [sum(batch.num_tokens for batch in part) for part in parts]
        assert sum(tokens) == whole.num_tokens_of(step) == shares[0].num_tokens_of(step)
        if len(whole.plan.packs(step)[1]) % size:  # dealt again: whole packs go round as they are, all of one shape
            assert max(tokens) - min(tokens) <= max_length * -(-len(whole.plan.packs(step)[1]) // size)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=30).filter(any), st.integers(3, 70), st.integers(1, 3), st.integers(1, 3),
    st.sampled_from(sorted(STRATEGIES)), st.sampled_from([SPECIALS, PLAIN]), st.sampled_from([0, 2]),
)  # fmt: skip
def test_every_token_once_an_epoch(tmp_path_factory, lengths, max_length, times, packs, strategy, specials, offset):
    store = make_store(tmp_path_factory.mktemp("s") / "s", lengths, batch_tokens=100, shard_bytes=500)
    micro_tokens = max_length * times
    made = loader(
        store, specials=specials, strategy=strategy, max_length=max_length, micro_tokens=micro_tokens,
        batch_tokens=micro_tokens * packs, position_offset=offset,
    )  # fmt: skip
    for epoch in (0, 2):
        found: dict[int, list[list[int]]] = {}
        for step in range(epoch * made.steps_per_epoch(), (epoch + 1) * made.steps_per_epoch()):
            batches = made.batch(step)
            assert made.epoch_of(step) == epoch and made.num_tokens_of(step) == sum(batch.num_tokens for batch in batches)
            for batch in batches:
                check_shapes(batch, micro_tokens, max_length, specials, offset)
                for document, original, _, label in segments(batch):
                    if document >= 0:
                        if specials is SPECIALS:
                            assert original[0] == 2 and original[-1] == 3 and not label[[0, -1]].any()
                            original = original[1:-1]
                        found.setdefault(document, []).append(original.tolist())
        for document, length in enumerate(lengths):
            windows = found.pop(document, [])
            assert len(windows) == -(-length // (max_length - made.packer.num_special))
            whole = store.ids(document).tolist()
            size = len(windows)
            assert sorted(windows) == sorted(whole[length * i // size : length * (i + 1) // size] for i in range(size))
        assert not found


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_masks_are_those_of_the_whole_document(store, strategy):
    """Whatever the window, the batch or the documents beside it: the same as masking the document alone."""
    config, vocabulary = MaskingConfig(strategy, 0.3), Vocabulary(mask=4, special=(0, 1, 2, 3, 4), size=VOCAB)
    epoch = 1
    for max_length, micro_tokens, packs in ((32, 64, 1), (12, 600, 2), (512, 1024, 3)):
        made = loader(store, strategy=strategy, max_length=max_length, micro_tokens=micro_tokens, batch_tokens=micro_tokens * packs)
        found: dict[int, dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]] = {}
        for step in range(epoch * made.steps_per_epoch(), (epoch + 1) * made.steps_per_epoch()):
            for batch in made.batch(step):
                for document, original, corrupted, label in segments(batch):
                    found.setdefault(document, {})[tuple(original[1:-1].tolist())] = (corrupted[1:-1], label[1:-1])
        for document in np.flatnonzero(store.lengths).tolist():
            ids = store.ids(document)
            corrupted, selected = mask_document(
                ids, store.word_start(document), document=document, config=config, vocabulary=vocabulary, seed=1, epoch=epoch
            )
            count = -(-len(ids) // (max_length - 2))
            for i in range(count):
                here = slice(len(ids) * i // count, len(ids) * (i + 1) // count)
                if count < 20 or here.stop - here.start > 20:  # the ids of a short window may come twice in a long document
                    got = found[document][tuple(ids[here].tolist())]
                    assert (got[0] == corrupted[here]).all() and (got[1] == selected[here]).all()


def test_the_same_batch_whatever_was_asked_before(store):
    first, second = loader(store, batch_tokens=128), loader(store, batch_tokens=128)
    steps = [0, 1, 2 * first.steps_per_epoch() + 1, 5 * first.steps_per_epoch() - 1]
    forward = {step: first.batch(step) for step in steps}
    for step in reversed(steps):
        for one, other in zip(forward[step], second.batch(step), strict=True):
            assert same(one, other)
    assert not same(forward[0][0], forward[1][0])
    assert not same(first.batch(0)[0], loader(store, seed=2, batch_tokens=128).batch(0)[0])


def test_epochs_have_other_masks_and_another_order(store):
    made = loader(store, shuffle=False)
    one, two = made.batch(0)[0], made.batch(made.steps_per_epoch())[0]
    assert (restored(one) == restored(two)).all() and not torch.equal(one.label_positions, two.label_positions)
    made = loader(store)
    assert not (restored(made.batch(0)[0]) == restored(made.batch(made.steps_per_epoch())[0])).all()


def test_a_schedule_changes_the_share_and_nothing_else(store):
    made = loader(store, max_length=128, micro_tokens=2048)
    few, many = made.batch(1, 0.1)[0], made.batch(1, 0.6)[0]
    assert (restored(few) == restored(many)).all()
    assert set(few.label_positions.tolist()) < set(many.label_positions.tolist())
    assert len(few.labels) / few.num_tokens == pytest.approx(0.1, abs=0.04)
    assert len(many.labels) / many.num_tokens == pytest.approx(0.6, abs=0.06)
    assert same(made.batch(1, 0.3)[0], made.batch(1)[0])


def test_every_document_that_can_have_a_label_has_one(store):
    made = loader(store, strategy="whole_word")
    labelled: set[int] = set()
    for step in range(made.steps_per_epoch()):
        for batch in made.batch(step, 0.01):
            labelled |= {document for document, _, _, label in segments(batch) if label.any()}
    assert labelled == {number for number in range(len(store)) if (store.ids(number) != 1).any()}


def test_padding_is_never_longer_than_a_window(tmp_path):
    made = loader(make_store(tmp_path / "s", [10]), max_length=16, micro_tokens=100)
    [batch] = made.batch(0)
    check_shapes(batch, 100, 16)
    assert batch.num_tokens == 12 and batch.documents.tolist() == [0] + [-1] * 6


def test_a_larger_vocabulary_is_not_drawn_from(tmp_path):
    """Rows that only pad the model's embedding are no random replacements."""
    store = make_store(tmp_path / "s", [3000])
    config = MaskingConfig("token", 1.0, mask_replace_prob=0.0, random_replace_prob=1.0)
    made = Loader(store, SPECIALS, config, vocab_size=100_000, seed=0, max_length=512, micro_tokens=4096, batch_tokens=4096)
    assert made.batch(0)[0].input_ids.max() < VOCAB


def test_a_vocabulary_that_does_not_fit(store):
    with pytest.raises(TokenizerError, match="a vocabulary of 500, the model's vocabulary has 400"):
        Loader(store, SPECIALS, MaskingConfig(), vocab_size=400, seed=0, max_length=32, micro_tokens=64, batch_tokens=64)
    with pytest.raises(TokenizerError, match="no mask token"):
        loader(store, specials=SPECIALS._replace(mask=None))


def frozen(store, **options):
    settings = {"vocab_size": VOCAB, "seed": 1, "max_length": 32, "micro_tokens": 256} | options
    return list(frozen_batches(store, SPECIALS, MaskingConfig("token", 0.15), **settings))


def test_frozen_batches_are_frozen(store):
    first, second = frozen(store), frozen(store)
    assert len(first) == len(second) and all(map(same, first, second))
    other = frozen(store, view=1)
    assert all((restored(one) == restored(two)).all() for one, two in zip(first, other, strict=True))
    assert not any(torch.equal(one.label_positions, two.label_positions) for one, two in zip(first, other, strict=True))
    tokens = sum(len(original) - 2 for batch in first for document, original, _, _ in segments(batch) if document >= 0)
    assert tokens == store.num_tokens
    chosen = frozen_order(store, content_keys(store), 500)
    few = frozen(store, documents=chosen)
    assert {document for batch in few for document in batch.documents.tolist()} - {-1} == set(chosen.tolist())
    assert 400 < sum(store.lengths[chosen]) <= 500


def test_frozen_masks_do_not_depend_on_windows(store):
    def labels(batches):
        pairs = [
            (document, token) for batch in batches for document, original, _, label in segments(batch) for token in original[label].tolist()
        ]
        return sorted(pairs)

    assert labels(frozen(store)) == labels(frozen(store, max_length=512, micro_tokens=1024))


def test_fingerprint(tmp_path, store):
    def fingerprint(store, config=MaskingConfig("token", 0.15), **options):
        return masks_fingerprint(store, SPECIALS, config, **{"vocab_size": VOCAB, "seed": 1} | options)

    base = fingerprint(store)
    assert len(base) == 16 and int(base, 16) >= 0
    assert fingerprint(store) == base
    others = [
        fingerprint(store, seed=2),
        fingerprint(store, view=1),
        fingerprint(store, MaskingConfig("token", 0.16)),
        fingerprint(store, MaskingConfig("token", 0.15, mask_replace_prob=0.7)),
        fingerprint(store, documents=np.arange(100)),
        fingerprint(make_store(tmp_path / "other", store.lengths, seed=9)),
    ]
    assert len({base, *others}) == 7


def test_split_keeps_segments_and_labels(store):
    made = loader(store, micro_tokens=512)
    batch = next(batch for step in range(made.steps_per_epoch()) for batch in made.batch(step) if batch.num_tokens < 512)
    left, right = batch.split()
    both = segments(left) + segments(right)
    whole = [segment for segment in segments(batch) if segment[0] >= 0]
    assert len(both) == len(whole)
    for one, other in zip(both, whole, strict=True):
        assert one[0] == other[0] and all((a == b).all() for a, b in zip(one[1:], other[1:], strict=True))
    assert left.num_tokens + right.num_tokens == batch.num_tokens
    assert abs(left.num_tokens - right.num_tokens) <= 32
    for half in (left, right):
        check_shapes(half, half.num_tokens, 32)


def test_one_segment_cannot_be_split(tmp_path):
    [batch] = loader(make_store(tmp_path / "s", [10])).batch(0)
    with pytest.raises(RunError, match="one segment of 12 tokens cannot be split"):
        batch.split()


def test_prefetch_gives_what_the_loader_gives(store):
    made = loader(store)
    with prefetch(made, 3, lambda step: 0.1 + 0.01 * step, depth=2, last_step=9) as ahead:
        got = list(ahead)
    assert len(got) == 6
    for step, batches in enumerate(got, start=3):
        assert all(map(same, batches, made.batch(step, 0.1 + 0.01 * step)))


def test_prefetch_carries_an_exception_over():
    class Broken:
        def batch(self, step, probability):
            if step == 2:
                raise RunError(f"step {step} is broken")
            return [step]

    ahead = prefetch(Broken())
    assert next(ahead) == [0] and next(ahead) == [1]
    with pytest.raises(RunError, match="step 2 is broken"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    assert not ahead._thread.is_alive()


def test_prefetch_closes_in_the_middle(store):
    before = threading.active_count()
    ahead = Prefetch(loader(store), depth=2)
    next(ahead)
    ahead.close()
    ahead.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(ahead)


def test_prefetch_works_ahead_and_no_further_than_its_depth():
    class Counting:
        made = 0

        def batch(self, step, probability):
            self.made += 1
            return [step]

    counting = Counting()
    with Prefetch(counting, depth=3) as ahead:
        for _ in range(200):
            if counting.made >= 4:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert counting.made == 4  # three wait, and the fourth is in hand
        assert next(ahead) == [0]


def test_masks_of_a_document_are_the_same_in_every_place_of_a_batch(store):
    packer = Packer(store, SPECIALS, MaskingConfig("span", 0.3), vocab_size=VOCAB, seed=1, max_length=600, micro_tokens=8192)
    one = np.array([50, 50, 7]), np.array([2000, 0, 0]), np.array([2500, 500, int(store.lengths[7])])
    alone = packer.arrays(np.array([50]), np.array([0]), np.array([6000]), epoch=0, probability=None)
    together = packer.arrays(*one, epoch=0, probability=None)
    for whole, part in zip(alone, together, strict=True):
        assert (whole[2000:2500] == part[:500]).all() and (whole[:500] == part[500:1000]).all()


@pytest.mark.parametrize("words", [0.0, 0.05])
def test_windows_that_begin_or_end_beside_the_edge_of_a_block(tmp_path, words):
    """An edge lies at the next word after its mark: a window between the two belongs to the block before."""
    length, generator = 5000, np.random.default_rng(2)
    with StoreWriter(tmp_path / "s", tokenizer_hash="x", vocab_size=VOCAB) as writer:
        ids = generator.integers(5, VOCAB, length)
        writer.add_flat(ids, generator.random(length) < words, np.array([length]), ["a"], np.array([1]))
    store = TokenStore.open(tmp_path / "s")
    packer = Packer(store, SPECIALS, MaskingConfig("whole_word", 0.3), vocab_size=VOCAB, seed=1, max_length=600, micro_tokens=600)
    whole = packer.arrays(np.array([0]), np.array([0]), np.array([length]), epoch=0, probability=None)
    for mark in (0, 1024, 2048, 4096, 5000):
        for place in range(max(0, mark - 3), min(mark + 70, length)):
            for start, stop in ((place, min(place + 5, length)), (max(place - 40, 0), place)):
                if start < stop:
                    part = packer.arrays(np.array([0]), np.array([start]), np.array([stop]), epoch=0, probability=None)
                    assert all((one[start:stop] == other).all() for one, other in zip(whole, part, strict=True))
