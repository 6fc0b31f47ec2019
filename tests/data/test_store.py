"""The packed corpus: what is written is read back, and what is damaged is said to be."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask.data.store import StoreWriter, TokenStore
from unmask.errors import StoreError


def write(folder, documents, *, vocab_size=30522, **options):
    """Write documents, each a list of (id, begins a word); options go to the writer."""
    with StoreWriter(folder, tokenizer_hash="0123456789abcdef", vocab_size=vocab_size, **options) as writer:
        ids = [[token for token, _ in document] for document in documents]
        words = [[begins for _, begins in document] for document in documents]
        writer.add(ids, words, [f"file.txt:{number}" for number in range(len(documents))], [7 * len(document) for document in documents])
    return folder


def random_documents(count=200, vocab_size=30522, longest=90):
    generator = np.random.default_rng(0)
    return [
        [(int(token), bool(begins)) for token, begins in zip(generator.integers(0, vocab_size, n), generator.random(n) < 0.6, strict=True)]
        for n in generator.integers(0, longest, count)
    ]


tokens = st.tuples(st.integers(0, 29999), st.booleans())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(tokens, max_size=40), max_size=30), st.sampled_from([30_000, 70_000]), st.integers(1, 60), st.integers(200, 5000))
def test_round_trip(tmp_path_factory, documents, vocab_size, batch_tokens, shard_bytes):
    folder = write(
        tmp_path_factory.mktemp("store") / "s", documents, vocab_size=vocab_size, batch_tokens=batch_tokens, shard_bytes=shard_bytes
    )
    store = TokenStore.open(folder, tokenizer_hash="0123456789abcdef", verify=True)
    assert store.dtype == (np.uint16 if vocab_size == 30_000 else np.uint32)
    assert len(store) == len(documents)
    assert store.lengths.tolist() == [len(document) for document in documents]
    assert store.num_tokens == sum(map(len, documents))
    for number, document in enumerate(documents):
        assert store.ids(number).tolist() == [token for token, _ in document]
        assert store.word_start(number).tolist() == [begins for _, begins in document]
        assert store.document_id(number) == f"file.txt:{number}"
        assert store.num_bytes(number) == 7 * len(document)
    backwards = np.arange(len(documents))[::-1]
    starts = store.lengths[backwards] // 3
    ids, words = store.gather(backwards, starts, store.lengths[backwards])
    expected = [pair for number in backwards for pair in documents[number][len(documents[number]) // 3 :]]
    assert list(zip(ids.tolist(), words.tolist(), strict=True)) == expected


def test_ids_are_views_of_the_file(tmp_path):
    store = TokenStore.open(write(tmp_path / "s", random_documents()))
    view = store.ids(5)
    assert not view.flags.owndata and not view.flags.writeable


def test_ids_above_sixteen_bits(tmp_path):
    folder = write(tmp_path / "s", [[(70_000, True), (1, False)]], vocab_size=100_000)
    assert TokenStore.open(folder).ids(0).tolist() == [70_000, 1]


@pytest.mark.parametrize("token", [30522, 70_000, -1])
def test_an_id_outside_the_vocabulary_is_refused(tmp_path, token):
    with pytest.raises(StoreError, match=f"token id {token} is outside the vocabulary of 30522"):
        write(tmp_path / "s", [[(5, True), (token, True)]])


def test_documents_that_do_not_add_up_are_refused(tmp_path):
    writer = StoreWriter(tmp_path / "s", tokenizer_hash="x", vocab_size=10)
    with pytest.raises(StoreError, match="3 tokens, 2 word starts"):
        writer.add([[1, 2, 3]], [[True, False]], ["a"], [3])


def test_shards_are_plain_arrow_streams(tmp_path):
    documents = random_documents()
    folder = write(tmp_path / "s", documents, shard_bytes=4000, batch_tokens=500)
    shards = sorted(folder.glob("*.arrow"))
    assert len(shards) > 1
    tables = [pa.ipc.open_stream(pa.memory_map(str(shard))).read_all() for shard in shards]  # what datasets.Dataset.from_file does
    table = pa.concat_tables(tables)
    assert table.schema.field("input_ids").type == pa.list_(pa.uint16())
    assert table.schema.field("word_start").type == pa.list_(pa.bool_())
    assert table.schema.metadata[b"tokenizer_hash"] == b"0123456789abcdef"
    assert table.column("input_ids").to_pylist() == [[token for token, _ in document] for document in documents]
    assert table.column("word_start").to_pylist() == [[begins for _, begins in document] for document in documents]
    assert table.column("id")[3].as_py() == "file.txt:3"


def test_batches_of_any_size_make_the_same_store(tmp_path):
    documents = random_documents()
    whole = TokenStore.open(write(tmp_path / "whole", documents))
    with StoreWriter(tmp_path / "parts", tokenizer_hash="0123456789abcdef", vocab_size=30522) as writer:
        for first in range(0, len(documents), 17):
            part = documents[first : first + 17]
            writer.add(
                [np.array([token for token, _ in document], dtype=np.int64) for document in part],
                [np.array([begins for _, begins in document], dtype=bool) for document in part],
                [f"file.txt:{first + number}" for number in range(len(part))],
                [7 * len(document) for document in part],
            )
    parts = TokenStore.open(tmp_path / "parts")
    assert parts.fingerprint == whole.fingerprint


def test_another_tokenizer_is_named(tmp_path):
    folder = write(tmp_path / "s", random_documents(5))
    with pytest.raises(StoreError, match="built with the tokenizer 0123456789abcdef, not with fedcba9876543210; pack the text again"):
        TokenStore.open(folder, tokenizer_hash="fedcba9876543210")


def test_missing_and_unfinished(tmp_path):
    with pytest.raises(StoreError, match=r"there is no packed corpus in .*unmask pack"):
        TokenStore.open(tmp_path / "nothing")
    write(tmp_path / "corpus" / "train", random_documents(5))
    with pytest.raises(StoreError, match=r"it is in .*train"):
        TokenStore.open(tmp_path / "corpus")
    (tmp_path / "corpus" / "train" / "store.json").unlink()
    with pytest.raises(StoreError, match="never finished"):
        TokenStore.open(tmp_path / "corpus" / "train")


def test_a_finished_store_is_not_overwritten_and_an_unfinished_one_is(tmp_path):
    write(tmp_path / "s", random_documents(5))
    with pytest.raises(StoreError, match="holds a packed corpus already"):
        StoreWriter(tmp_path / "s", tokenizer_hash="x", vocab_size=10)
    (tmp_path / "s" / "store.json").unlink()
    write(tmp_path / "s", random_documents(7))
    assert len(TokenStore.open(tmp_path / "s", verify=True)) == 7


def test_an_exception_leaves_nothing_behind(tmp_path):
    def fail_half_way():
        with StoreWriter(tmp_path / "s", tokenizer_hash="x", vocab_size=100, batch_tokens=10) as writer:
            writer.add([[1] * 50], [[True] * 50], ["a"], [50])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list((tmp_path / "s").iterdir()) == []


def test_a_torn_shard(tmp_path):
    folder = write(tmp_path / "s", random_documents())
    shard = folder / "shard-00000.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=f"shard-00000.arrow' is damaged: it has {len(whole) // 2} bytes, store.json says {len(whole)}"):
        TokenStore.open(folder)
    shard.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(StoreError, match="end of an Arrow stream"):
        TokenStore.open(folder)
    shard.unlink()
    with pytest.raises(StoreError, match=r"shard-00000\.arrow' is damaged: it cannot be read"):
        TokenStore.open(folder)


def test_every_flipped_bit_is_found(tmp_path):
    folder = write(tmp_path / "s", random_documents(12, longest=20))
    shard = folder / "shard-00000.arrow"
    whole = shard.read_bytes()
    for place in range(0, len(whole), 7):  # opening may see it or not, but it must not crash; verifying always does
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(StoreError, match="damaged"):
            TokenStore.open(folder, verify=True)
    shard.write_bytes(whole)
    TokenStore.open(folder, verify=True)


def everything(store):
    return [(store.ids(n).tolist(), store.word_start(n).tolist(), store.document_id(n), store.num_bytes(n)) for n in range(len(store))]


def test_every_flipped_bit_is_found_by_whoever_reads_it(tmp_path):
    """Without `verify`, as a resumed run opens it: nobody is given a byte that is not as it was written."""
    folder = write(tmp_path / "s", random_documents(12, longest=20))
    shard = folder / "shard-00000.arrow"
    whole = shard.read_bytes()
    for place in range(0, len(whole), 5):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=r"shard-00000\.arrow' is damaged: .*pack the text again"):
            everything(TokenStore.open(folder))
    shard.write_bytes(whole)
    assert len(everything(TokenStore.open(folder))) == 12


def test_only_what_is_read_is_checked(tmp_path):
    documents = random_documents(4000, longest=90)
    folder = write(tmp_path / "s", documents)
    shard = folder / "shard-00000.arrow"
    record = json.loads((folder / "store.json").read_text())["shards"][0]
    assert record["size"] > 20 * record["block_bytes"]
    at = TokenStore.open(folder)._places[0][1] * 2 + 200_000  # in the middle of the token ids
    with open(shard, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    store, ends = TokenStore.open(folder), np.cumsum(2 * np.array([len(document) for document in documents]))
    hit = int(np.searchsorted(ends, 200_000, side="right"))
    assert store.ids(0).tolist() == [token for token, _ in documents[0]]
    assert store.gather(np.array([0, len(store) - 1]))[0].tolist() == [token for n in (0, -1) for token, _ in documents[n]]
    assert store.document_id(hit) == f"file.txt:{hit}" and len(store.word_start(0)) == len(documents[0])
    for read in (store.ids, lambda n: store.gather(np.array([0, n, n])), lambda n: store.gather(np.array([n - 1, n]))):
        with pytest.raises(StoreError, match=f"its bytes {at // 16384 * 16384:,} to .* are not those that were written"):
            read(hit)


def test_a_store_without_sums_is_checked_as_a_whole(tmp_path):
    from unmask.data.manifest import checksum

    folder = write(tmp_path / "s", random_documents(12, longest=20))
    record = json.loads((folder / "store.json").read_text())
    for name in ("crc32", "block_bytes"):
        del record["shards"][0][name]
    record["checksum"] = checksum(record)
    (folder / "store.json").write_text(json.dumps(record))
    before = everything(TokenStore.open(folder))
    shard = folder / "shard-00000.arrow"
    whole = bytearray(shard.read_bytes())
    place = whole.index(np.array(before[3][0], np.uint16).tobytes())
    whole[place] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(StoreError, match="its bytes are not those that were written"):
        TokenStore.open(folder)


def test_a_changed_record(tmp_path):
    folder = write(tmp_path / "s", random_documents(5))
    marker = folder / "store.json"
    text = marker.read_text()
    marker.write_text(text.replace('"vocab_size": 30522', '"vocab_size": 30523'))
    with pytest.raises(StoreError, match="checksum"):
        TokenStore.open(folder)
    for torn in ("", text[:100], "[]", json.dumps({}), "[" * 100_000):
        marker.write_text(torn)
        with pytest.raises(StoreError, match="damaged"):
            TokenStore.open(folder)


def test_a_full_disk_is_said_and_leaves_no_store(tmp_path):
    code = """
import resource, sys
from unmask.data.store import StoreWriter
from unmask.errors import RunError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with StoreWriter(sys.argv[1], tokenizer_hash="x", vocab_size=100, batch_tokens=1000) as writer:
        for number in range(200):
            writer.add([[1] * 1000], [[True] * 1000], ["a"], [50])
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout and "free some space" in done.stdout
    assert list((tmp_path / "s").iterdir()) == []


def test_reading_a_store_does_not_import_torch(tmp_path):
    code = "import sys, unmask.data.store, unmask.data.masking, unmask.data.plan, unmask.data.loader; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
