"""One data order: whatever the number of processes, the accumulation and the point of a resume, a step has the same windows and masks."""

from collections import Counter, namedtuple

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unmask.data.loader import Loader
from unmask.data.masking import MaskingConfig
from unmask.data.prefetch import prefetch
from unmask.data.store import StoreWriter, TokenStore

Specials = namedtuple("Specials", "mask pad cls sep unk all")
SPECIALS = Specials(mask=4, pad=0, cls=2, sep=3, unk=1, all=(0, 1, 2, 3, 4))
VOCAB, MAX_LENGTH = 500, 16


def make_store(folder, lengths):
    generator = np.random.default_rng(sum(lengths))
    lengths = np.asarray(lengths, dtype=np.int64)
    with StoreWriter(folder, tokenizer_hash="x", vocab_size=VOCAB, batch_tokens=300, shard_bytes=4000) as writer:
        ids = generator.integers(5, VOCAB, lengths.sum())
        writer.add_flat(ids, generator.random(lengths.sum()) < 0.6, lengths, [str(n) for n in range(len(lengths))], lengths)
    return TokenStore.open(folder)


def make_loader(store, rank=0, size=1, *, passes=1, micro_tokens=32, seed=0, shuffle=True):
    loader = Loader(
        store, SPECIALS, MaskingConfig("whole_word", 0.3), vocab_size=VOCAB, seed=seed, max_length=MAX_LENGTH,
        micro_tokens=micro_tokens, batch_tokens=micro_tokens * passes, shuffle=shuffle,
    )  # fmt: skip
    loader.divide(rank, size)
    return loader


def windows(batches):
    """Return the windows of micro-batches, each as (document, what the model sees, what it is asked for), and how often."""
    found = []
    for batch in batches:
        labels = dict(zip(batch.label_positions.tolist(), batch.labels.tolist(), strict=True))
        bounds, ids = batch.cu_seqlens.tolist(), batch.input_ids[0].tolist()
        for document, low, high in zip(batch.documents.tolist(), bounds[:-1], bounds[1:], strict=True):
            if document >= 0:
                asked = tuple((place - low, labels.pop(place)) for place in range(low, high) if place in labels)
                found.append((document, tuple(ids[low:high]), asked))
        assert not labels  # padding is asked for nothing
    return Counter(found)


def originals(found):
    """Return the tokens of windows as they were before they were hidden, by document."""
    tokens = Counter()
    for (document, seen, asked), count in found.items():
        content = {**dict(enumerate(seen)), **dict(asked)}
        for place in range(1, len(seen) - 1):
            tokens[document, content[place]] += count
    return tokens


corpora = st.lists(st.integers(0, 60), min_size=1, max_size=60).filter(any)
slow = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@slow
@given(lengths=corpora, size=st.integers(1, 6), passes=st.integers(1, 5), seed=st.integers(0, 3), shuffle=st.booleans())
@example(lengths=[3], size=6, passes=5, seed=0, shuffle=True)  # fewer windows than processes
def test_every_token_is_read_once_an_epoch_by_one_process(tmp_path_factory, lengths, size, passes, seed, shuffle):
    store = make_store(tmp_path_factory.mktemp("shares") / "s", lengths)
    options = {"passes": passes, "seed": seed, "shuffle": shuffle}
    alone = make_loader(store, **options)
    shares = [make_loader(store, rank, size, **options) for rank in range(size)]
    for epoch in (0, 1):
        read = Counter()
        for step in range(epoch * alone.steps_per_epoch(), (epoch + 1) * alone.steps_per_epoch()):
            parts = [loader.batch(step) for loader in shares]
            together = sum(map(windows, parts), Counter())
            assert together == windows(alone.batch(step))
            assert sum(batch.num_tokens for part in parts for batch in part) == alone.num_tokens_of(step)
            assert len({batch.input_ids.shape[1] for part in parts for batch in part}) == 1  # one shape, for all of them
            read += together
        expected = Counter((number, int(token)) for number in range(len(store)) for token in store.ids(number))
        assert originals(read) == expected


@slow
@given(lengths=corpora, sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)), point=st.integers(0, 40), more=st.integers(1, 3))
def test_a_run_goes_on_with_the_same_windows_on_another_number_of_processes(tmp_path_factory, lengths, sizes, point, more):
    """What is made at a step does not depend on what was made before, nor on how many made it: also ahead, in a thread."""
    store = make_store(tmp_path_factory.mktemp("resumed") / "s", lengths)
    whole = make_loader(store, passes=4)
    shares = [make_loader(TokenStore.open(store.folder), rank, sizes[1], passes=4) for rank in range(sizes[1])]
    make_loader(store, 0, sizes[0], passes=4).batch(max(0, point - 1))
    streams = [iter(prefetch(loader, point, last_step=point + more)) for loader in shares]
    for step in range(point, point + more):
        assert sum((windows(next(stream)) for stream in streams), Counter()) == windows(whole.batch(step))
    assert [next(stream, None) for stream in streams] == [None] * sizes[1]


@slow
@given(lengths=corpora, passes=st.integers(2, 4), seed=st.integers(0, 3))
def test_masks_do_not_depend_on_how_a_step_is_cut(tmp_path_factory, lengths, passes, seed):
    """Over an epoch, small passes and one large one show the same windows with the same masks; only their order differs."""
    store = make_store(tmp_path_factory.mktemp("cut") / "s", lengths)
    small, large = make_loader(store, passes=passes, seed=seed), make_loader(store, micro_tokens=32 * passes, seed=seed)

    def epoch(loader):
        return sum((windows(loader.batch(step)) for step in range(loader.steps_per_epoch())), Counter())

    assert epoch(small) == epoch(large)
