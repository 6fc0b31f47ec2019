"""Masks to measure on: a function of what a document says, wherever it stands and whatever it is called."""

import numpy as np
import pytest

from unmask.data.frozen import POLICIES, content_keys, frozen_documents, frozen_order, masks_fingerprint
from unmask.data.loader import Packer
from unmask.data.store import StoreWriter, TokenStore
from unmask.data.tokenizer import Specials

VOCAB = 400
SPECIALS = Specials(4, 0, 2, 3, 1, (0, 1, 2, 3, 4))


def make(folder, texts, names=None):
    ids = [np.asarray(text) for text in texts]
    with StoreWriter(folder, tokenizer_hash="x", vocab_size=VOCAB, shard_bytes=4000, batch_tokens=300) as writer:
        writer.add(ids, [np.ones(len(row), bool) for row in ids], names or [f"d{n}" for n in range(len(ids))], [9] * len(ids))
    return TokenStore.open(folder)


@pytest.fixture(scope="module")
def texts():
    generator = np.random.default_rng(0)
    return [generator.integers(5, VOCAB, int(length)) for length in [*generator.integers(1, 80, 40), 0, 3000]]


def masked(store, policy="corrupt", view=0, documents=None):
    """Return {the document's ids: what it was turned into} and the masks' hashes in order."""
    keys = content_keys(store)
    packer = Packer(store, SPECIALS, POLICIES[policy], keys=keys, vocab_size=VOCAB, seed=0, max_length=2**31, micro_tokens=2**31)
    found, hashes = {}, []
    for group in frozen_documents(packer, frozen_order(store, keys) if documents is None else documents, view=view, group_tokens=500):
        ends = np.cumsum(store.lengths[group.documents])[:-1]
        parts = (np.split(part, ends) for part in (group.original, group.corrupted, group.selected))
        for original, corrupted, selected in zip(*parts, strict=True):
            found[tuple(original.tolist())] = (corrupted.tolist(), selected.tolist())
        hashes += group.masks.tolist()
    return found, hashes


def test_order_and_names_change_nothing(tmp_path, texts):
    turn = np.random.default_rng(1).permutation(len(texts))
    one, other = make(tmp_path / "a", texts), make(tmp_path / "b", [texts[n] for n in turn], [f"other{n}" for n in turn])
    assert masked(one) == masked(other)
    for view in (0, 1):
        prints = {masks_fingerprint(s, SPECIALS, POLICIES["corrupt"], vocab_size=VOCAB, seed=0, view=view) for s in (one, other)}
        assert len(prints) == 1
    alone = make(tmp_path / "c", [texts[7]])
    assert masked(alone)[0].items() <= masked(one)[0].items()


def test_every_document_that_holds_a_token_has_a_label(tmp_path, texts):
    found, hashes = masked(make(tmp_path / "a", texts))
    assert len(found) == len(hashes) == len(texts) - 1
    assert all(any(selected) for _, selected in found.values())


def test_the_policies_hide_the_same_tokens_behind_other_things(tmp_path, texts):
    store = make(tmp_path / "a", texts)
    (corrupt, one), (mask, two) = masked(store), masked(store, "mask")
    for original in corrupt:
        assert corrupt[original][1] == mask[original][1]
        assert all(new == (SPECIALS.mask if hidden else old) for old, new, hidden in zip(original, *mask[original], strict=True))
    kinds = [
        new == old if new != SPECIALS.mask else None
        for original, (news, hidden) in corrupt.items()
        for old, new, is_hidden in zip(original, news, hidden, strict=True)
        if is_hidden
    ]
    assert {True, False, None} == set(kinds) and 0.7 < kinds.count(None) / len(kinds) < 0.9
    assert one != two
    prints = {masks_fingerprint(store, SPECIALS, policy, vocab_size=VOCAB, seed=0) for policy in POLICIES.values()}
    assert len(prints) == 2


def test_a_part_of_the_text_is_chosen_by_content(tmp_path, texts):
    turn = np.random.default_rng(2).permutation(len(texts))
    stores = make(tmp_path / "a", texts), make(tmp_path / "b", [texts[n] for n in turn])
    chosen = [[tuple(s.ids(n).tolist()) for n in frozen_order(s, content_keys(s), 400)] for s in stores]
    assert chosen[0] == chosen[1] and 0 < sum(map(len, chosen[0])) <= 400
    assert len(frozen_order(stores[0], content_keys(stores[0]), 1)) == 1
    empty = make(tmp_path / "e", [[], []])
    assert len(frozen_order(empty, content_keys(empty))) == 0
