"""Replay: the domain's steps as they were, general text beside them, masks and numbers of documents that never meet."""

from collections import namedtuple

import numpy as np
import pytest
import torch

from unmask.data.loader import Loader
from unmask.data.masking import MaskingConfig
from unmask.data.replay import FIRST_KEY, ReplayLoader
from unmask.data.store import StoreWriter, TokenStore

SPECIALS = namedtuple("Specials", "mask pad cls sep unk all")(4, 0, 2, 3, 1, (0, 1, 2, 3, 4))


def make_store(folder, number, seed, name):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 60, number)
    ids = generator.integers(5, 500, lengths.sum())
    with StoreWriter(folder, tokenizer_hash="x", vocab_size=500) as writer:
        writer.add_flat(ids, generator.random(lengths.sum()) < 0.6, lengths, [f"{name}{n}" for n in range(number)], lengths * 4)
    return TokenStore.open(folder)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return make_store(folder / "domain", 60, 0, "domain"), make_store(folder / "general", 80, 1, "general")


def make(stores, micro=(192, 64), **options):
    loaders = [
        Loader(
            store, SPECIALS, MaskingConfig("token", 0.3), vocab_size=500, seed=1, max_length=32, micro_tokens=tokens, batch_tokens=tokens,
            keys=keys, **options,
        )
        for store, tokens, keys in zip(stores, micro, (None, FIRST_KEY + np.arange(len(stores[1]))), strict=True)
    ]  # fmt: skip
    return ReplayLoader(*loaders)


def same(first, second):
    names = ("input_ids", "position_ids", "cu_seqlens", "label_positions", "labels", "documents")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_the_domain_s_batches_are_those_without_replay_and_each_token_comes_once_an_epoch(stores):
    loader = make(stores)
    plain = loader.domain
    assert loader.steps_per_epoch() == plain.steps_per_epoch()
    tokens = np.zeros(len(stores[0]), int)
    for step in range(loader.steps_per_epoch()):
        batches = loader.batch(step)
        assert same(batches[0], plain.batch(step)[0]) and len(batches) == 2
        assert loader.num_tokens_of(step) == sum(batch.num_tokens for batch in batches)
        sizes = batches[0].cu_seqlens.diff().numpy()
        for document, size in zip(batches[0].documents.tolist(), sizes, strict=True):
            if document >= 0:
                tokens[document] += size - 2
        assert min(batches[1].documents[batches[1].documents >= 0]) >= len(stores[0])
    assert tokens.tolist() == stores[0].lengths.tolist()


def test_a_step_depends_on_its_number_alone(stores):
    first, second = make(stores), make(stores)
    last = 4 * first.steps_per_epoch() + 1
    late = second.batch(last)
    for step in range(last):
        first.batch(step)
    assert all(map(same, first.batch(last), late))


def test_the_share_is_the_one_that_comes(stores):
    loader = make(stores)
    replayed = total = 0
    steps = loader.replay.steps_per_epoch() * loader.domain.steps_per_epoch()
    for step in range(steps):
        counts = [batch.num_tokens - 2 * int((batch.documents >= 0).sum()) for batch in loader.batch(step)]
        replayed, total = replayed + counts[-1], total + sum(counts)
    assert replayed / total == pytest.approx(loader.share, rel=1e-9)
    assert total / steps == pytest.approx(loader.tokens_a_step, rel=1e-9)
    assert 0.2 < loader.share < 0.3


def test_documents_of_the_two_texts_do_not_share_their_masks(stores):
    """The same store on both sides: the same documents, in other numbers, behind other masks."""
    loader = make((stores[0], stores[0]), micro=(4096, 4096), shuffle=False)
    mine, replayed = loader.batch(0)
    assert torch.equal(replayed.documents[replayed.documents >= 0], mine.documents[mine.documents >= 0] + len(stores[0]))
    ids = [batch.input_ids[0].index_put((batch.label_positions,), batch.labels) for batch in (mine, replayed)]
    assert torch.equal(*ids) and not torch.equal(mine.label_positions, replayed.label_positions)


def test_documents_are_named_on_both_sides(stores):
    loader = make(stores)
    assert [loader.document_id(number) for number in (0, 59, 60, 139)] == ["domain0", "domain59", "general0", "general79"]
