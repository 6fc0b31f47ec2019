"""Files that are damaged: errors of ours alone, and never a traceback from below, whatever bytes a file holds."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import itertools
import json
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask.data.clean import normalise
from unmask.data.rows import read_rows
from unmask.data.store import StoreWriter, TokenStore
from unmask.data.text import read
from unmask.errors import CheckpointError, ConfigError, DataError, StoreError, UnmaskError
from unmask.tasks import recipe as task_recipes
from unmask.tasks.classify_data import read_items
from unmask.tasks.ner_data import read_tagged
from unmask.tasks.qa_data import read_items as read_questions
from unmask.tasks.qa_data import written
from unmask.tasks.recipe import TaskData
from unmask.train import recipe as recipes

quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TEXTS = ["The first document.", "Ein zweites, größer: äöü.", "第三个文档。\nIn two lines.", ""]
# what hurts parsers: endless nesting, numbers beyond all bounds, half characters, NULs, marks of other encodings, odd ends of lines
NASTY = (
    b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"1e999", b"NaN", b'"\\ud800"', b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\x85", b'"',
    b"\xe2\x80\xa8", b"\n\n", b"\t" * 50, b"null", b"-1", b"'''", b"#", b",", b"=", b"1979-05-27T07:32:00Z", b"\x1a", b"\xf0\x9f",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, *wholes: bytes) -> bytes:
    """Draw one of some sound files, and what may become of it: bits turned, parts lost, doubled or exchanged, the rest cut off."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        stop = min(len(data), at + draw(st.integers(1, 40)))
        match draw(st.sampled_from(["turn", "lose", "double", "put", "bytes", "cut", "keep"])):
            case "turn" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "lose":
                del data[at:stop]
            case "double":
                data[at:at] = data[at:stop]
            case "put":
                data[at:at] = draw(st.sampled_from(NASTY))
            case "bytes":
                data[at:stop] = draw(st.binary(max_size=20))
            case "cut":
                del data[at:]
    return bytes(data)


def rows(kind: str) -> bytes:
    table = [{"text": text, "label": "ab"[number % 2], "n": number} for number, text in enumerate(TEXTS)]
    match kind:
        case "jsonl":
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()
        case "json":
            return json.dumps(table, indent=1).encode()
        case "parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(table), sink)
            return sink.getvalue().to_pybytes()
    mark = "," if kind == "csv" else "\t"
    return mark.join(["text", "label", "n"]).encode() + b"".join(
        b"\n" + mark.join(['"{}"'.format(row["text"].replace("\n", " ")), row["label"], str(row["n"])]).encode() for row in table
    )


PLAIN = "\n".join(TEXTS).encode()
FILES = {
    "x.txt": PLAIN,
    "x.md": b"# Title\n\nSome [link](http://x.y).\n\n```\ncode\n```\n\n- one\n- two\n",
    "x.rst": b"Title\n=====\n\n.. note:: x\n\nA text.\n",
    **{f"x.{kind}": rows(kind) for kind in ("jsonl", "json", "csv", "tsv", "parquet")},
    "x.txt.gz": gzip.compress(PLAIN), "x.jsonl.zst": pa.compress(rows("jsonl"), "zstd", asbytes=True),
}  # fmt: skip


@contextlib.contextmanager
def no_hang(seconds: int = 60):
    """End what goes on for ever, with the place where it does."""

    def end(*_):
        raise AssertionError("it does not end")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@quick
@given(data=st.data(), name=st.sampled_from(sorted(FILES)), encoding=st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16", "gb18030"]))
def test_readers_of_text(folder, data, name, encoding):
    path = folder / name
    path.write_bytes(data.draw(damaged(FILES[name])))
    layout = data.draw(st.sampled_from(["auto", "line", "blank", "file"]))
    column = data.draw(st.sampled_from([None, "n"]))
    with no_hang(), contextlib.suppress(DataError):
        for document in itertools.islice(read(path, encoding=encoding, layout=layout, id_column=column), 500):
            normalise(document.text).encode("utf-8")


TAGGED = {
    "x.conll": b"EU B-ORG\nrejects O\nGerman B-MISC\n\nPeter B-PER\nBlackburn I-PER\n",
    "x.jsonl": b'{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}\n{"text": "Peter met EU", "spans": [[0, 5, "PER"]]}\n',
}


@quick
@given(data=st.data(), name=st.sampled_from(["x.csv", "x.tsv", "x.jsonl", "x.txt"]))
def test_readers_of_rows_and_of_labelled_texts(folder, data, name):
    path = folder / name
    whole = rows(name.partition(".")[2] if name != "x.txt" else "tsv")
    path.write_bytes(
        data.draw(damaged(whole, whole, b'{"text": [1, {"a": null}], "label": {"b": 2}}\n{"text": "x", "label": [true, 1.5]}\n'))
    )
    with no_hang(), contextlib.suppress(DataError):
        read_rows(path, known=data.draw(st.sampled_from([None, {"text", "label"}])))
    with no_hang(), contextlib.suppress(DataError):
        read_items(path, TaskData(), labelled=data.draw(st.booleans()))


@quick
@given(data=st.data(), name=st.sampled_from(sorted(TAGGED)))
def test_readers_of_entities(folder, data, name):
    path = folder / name
    path.write_bytes(data.draw(damaged(TAGGED[name])))
    with no_hang(), contextlib.suppress(DataError):
        read_tagged(str(path), TaskData(), labelled=data.draw(st.booleans()))


ASKED = {
    "context": "The court sits in Vienna.",
    "qas": [{"id": "1", "question": "Where?", "answers": [{"text": "Vienna", "answer_start": 18}], "is_impossible": False}],
}
FLAT = {"id": 1, "question": "Where?", "context": "In Vienna.", "answers": {"text": ["Vienna"], "answer_start": [3]}}
QUESTIONS = {
    "x.json": json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": [ASKED, ASKED]}]}).encode(),
    "x.jsonl": json.dumps(FLAT).encode() + b"\n",
    "x.csv": b"id,question,context,answers\n1,Where?,In Vienna.,\"{'text': ['Vienna'], 'answer_start': [3]}\"\n",
}


@quick
@given(data=st.data(), name=st.sampled_from(sorted(QUESTIONS)))
def test_readers_of_questions(folder, data, name):
    path = folder / name
    path.write_bytes(data.draw(damaged(QUESTIONS[name])))
    with no_hang(), contextlib.suppress(DataError):
        read_questions(path, TaskData(), labelled=data.draw(st.booleans()))


def strings(value):
    """Yield every text in what a reader gives."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)
    elif dataclasses.is_dataclass(value):
        yield from strings([getattr(value, field.name) for field in dataclasses.fields(value)])


HALF = "a \ud800 b"  # JSON can name it, and no file can hold it
ROW = {
    "id": HALF,
    "text": HALF,
    "label": HALF,
    "question": HALF,
    "context": HALF,
    "answers": {"text": ["b"], "answer_start": [4]},
    HALF: {"x": [HALF]},
}
WORDS = {"id": HALF, "tokens": ["a", HALF], "tags": ["O", "B-" + HALF]}


@pytest.mark.parametrize(
    "reader",
    [
        lambda path: list(read(path, id_column="id")),
        lambda path: list(read(path.with_suffix(".json"), id_column="id")),
        read_rows,
        lambda path: read_items(path, TaskData())[0],
        lambda path: read_tagged(str(path.with_name("words.jsonl")), TaskData())[0],
        lambda path: read_questions(path, TaskData())[0],
        lambda path: read_questions(path.with_suffix(".json"), TaskData())[0],
        lambda path: written(json.dumps({"text": [HALF]}), None),
        lambda path: written(repr({"text": [HALF]}), None),
    ],
)
def test_half_a_character_becomes_a_whole_one(tmp_path, reader):
    """What is read can be written, and places in it are where they were."""
    (tmp_path / "x.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "x.json").write_text(json.dumps([ROW]))
    (tmp_path / "words.jsonl").write_text(json.dumps(WORDS) + "\n")
    found = list(strings(list(reader(tmp_path / "x.jsonl"))))
    assert "a \ufffd b" in found and not [text for text in found if "\ud800" in text]


RECIPE = b"""base_model = "x"
[model]
preset = "tiny"
hidden_size = 32
[data]
sources = ["a.txt", "b"]
max_length = 32
[masking]
mlm_probability = 0.15
[optim]
learning_rate = 1e-3
[train]
max_steps = 10
max_minutes = 1.5
trackers = []
"""
TASK_RECIPE = b"""task = "classify"
base_model = "x"
seeds = 2
[options]
pooling = "cls"
[data]
sources = ["a.csv"]
dev_share = 0.2
[train]
max_steps = 3
"""
KEYS = ("train.max_steps", "optim.learning_rate", "data.sources", "model.hidden_size", "train", "data.general", "lora.r", "nothing")
VALUES = st.one_of(
    st.text(max_size=20), st.sampled_from([one.decode("latin-1") for one in NASTY]), st.integers().map(str), st.floats().map(str)
)


@quick
@given(text=damaged(RECIPE), of_task=damaged(TASK_RECIPE))
def test_recipes(folder, text, of_task):
    path = folder / "recipe.toml"
    for content, load in ((text, recipes.load), (of_task, task_recipes.load)):
        path.write_bytes(content)
        with no_hang(), contextlib.suppress(UnmaskError):
            load(path).to_toml()


@quick
@given(key=st.sampled_from(KEYS), value=VALUES)
def test_settings(key, value):
    with no_hang(), contextlib.suppress(ConfigError):
        recipes.load(overrides=[f"{key}={value}"]).to_toml()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    generator = np.random.default_rng(0)
    with StoreWriter(folder, tokenizer_hash="0123456789abcdef", vocab_size=500, batch_tokens=60, shard_bytes=3000) as writer:
        for number in range(40):
            ids = generator.integers(0, 500, number % 13)
            writer.add([ids], [ids % 2 == 0], [f"x:{number}"], [number])
    return folder


@quick
@given(data=st.data())
def test_the_token_store(store, data):
    """Whatever becomes of one of its files: what is read is what was written, or an error of ours."""
    files = sorted(path for path in store.iterdir() if path.is_file())
    path = data.draw(st.sampled_from(files))
    whole = path.read_bytes()
    expected = TokenStore.open(store).gather(np.arange(40))
    path.write_bytes(data.draw(damaged(whole)))
    try:
        with no_hang():
            found = TokenStore.open(store)
            assert [array.tolist() for array in found.gather(np.arange(40))] == [array.tolist() for array in expected]
            assert [found.document_id(number) for number in range(40)] == [f"x:{number}" for number in range(40)]
    except StoreError:
        pass
    finally:
        path.write_bytes(whole)


@quick
@given(data=st.data())
def test_checkpoints(folder, data):
    """Whatever becomes of one of its files, a checkpoint is passed over, or is as it was."""
    import torch

    from unmask.train.checkpoint import Checkpoints

    def write(inner):
        (inner / "config.json").write_text('{"model_type": "bert"}')

    checkpoints = Checkpoints(folder / "checkpoints")
    if checkpoints.latest() is None:
        checkpoints.save(1, write, {"a": torch.arange(5.0)}, {"tokens": 5})
    (inner,) = (folder / "checkpoints").iterdir()
    path = data.draw(st.sampled_from(sorted(inner.iterdir())))
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged(whole)))
    try:
        with no_hang(), contextlib.suppress(CheckpointError):
            found = Checkpoints(folder / "checkpoints").latest()
            assert found.info["tokens"] == 5 and found.tensors()["a"].tolist() == [0, 1, 2, 3, 4]
    finally:
        path.write_bytes(whole)
