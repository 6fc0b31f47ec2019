"""What is measured: equal to a plain model, the same in any order, batch or process, on the masks that training sees."""

import copy
import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import unmask
from unmask.data.frozen import POLICIES
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.evaluate.masked import measure, token_bytes, window_length
from unmask.evaluate.metrics import DEFINITIONS, metrics
from unmask.evaluate.records import COLUMNS, Records
from unmask.evaluate.text import open_text
from unmask.infer.engine import Engine
from unmask.model.load import load_model

from ..conftest import sentences

LONG = " ".join(sentences(40, seed=9))


@pytest.fixture(scope="module")
def texts():
    return [*sentences(30, seed=5), LONG, sentences(30, seed=5)[4]]


@pytest.fixture(scope="module")
def tokenizer(tiny_bert):
    return load_tokenizer(tiny_bert)


@pytest.fixture(scope="module")
def model(tiny_bert, tokenizer):
    return load_model(tiny_bert, tokenizer=tokenizer)


def write(path, texts, **fields):
    rows = [{"text": text, "id": f"{path.stem}{n}", **{key: value(n) for key, value in fields.items()}} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def file(texts, tmp_path_factory):
    return write(tmp_path_factory.mktemp("text") / "a.jsonl", texts, area=lambda n: ["law", "war"][n % 2])


@pytest.fixture(scope="module")
def records(model, tokenizer, file):
    return measure(Engine(model), open_text(file, tokenizer), max_length=64)


def printed(records):
    """Return the figures with six digits, as they are printed."""
    return {name: f"{row['value']:.6g}" for name, row in metrics(records, resamples=0).items() if name in DEFINITIONS}


def same_masks(one, other):
    names = ("document", "view", "position", "label", "word_pieces", "word_start", "action", "num_bytes", "per_million")
    return all((getattr(one, name) == getattr(other, name)).all() for name in names) and one.fingerprint == other.fingerprint


@pytest.fixture
def folder(request, tiny_bert, tmp_path):
    """A model of the family that is asked for, with positions for 64 tokens."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM, RobertaConfig, RobertaForMaskedLM

    from unmask.data.tokenizer import train_tokenizer

    if request.param == "bert":
        return tiny_bert
    made = train_tokenizer(sentences(100), kind="bpe", vocab_size=300)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": len(made)}
    pad = made.pad_token_id
    if request.param == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(**shape, pad_token_id=pad, max_position_embeddings=64 + pad + 1, type_vocab_size=1))
    else:
        model = ModernBertForMaskedLM(ModernBertConfig(**shape, pad_token_id=pad, local_attention=16, max_position_embeddings=64))
    model.save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("folder", ["bert", "roberta", "modernbert"], indirect=True)
def test_equal_to_a_plain_model(folder, file, texts):
    """Every row against stock transformers, one window at a time: the window is rebuilt from the records alone."""
    from transformers import AutoModelForMaskedLM

    tokenizer = load_tokenizer(folder)
    records = measure(Engine(load_model(folder)), open_text(file, tokenizer), policy="mask", max_length=64)
    plain = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    checked = 0
    for document in range(records.num_documents):
        line = int(records.document_id(document).rpartition(":")[2])  # ids are file:line
        ids = tokenizer(texts[line - 1], add_special_tokens=False)["input_ids"]
        rows = np.flatnonzero(records.document == document)
        assert (np.array(ids)[records.position[rows]] == records.label[rows]).all()
        count = -(-len(ids) // 62)
        assert records.numbers("num_windows")[document] == count and records.numbers("num_tokens")[document] == len(ids)
        bounds = [number * len(ids) // count for number in range(count + 1)]
        for start, stop in itertools.pairwise(bounds):
            inside = rows[(records.position[rows] >= start) & (records.position[rows] < stop)]
            window = np.array(ids[start:stop])
            window[records.position[inside] - start] = tokenizer.mask_token_id
            given = torch.tensor([[tokenizer.cls_token_id, *window, tokenizer.sep_token_id]])
            with torch.no_grad():
                log_probs = plain(given).logits[0].log_softmax(-1)
            for row in inside:
                here, label = log_probs[records.position[row] - start + 1], int(records.label[row])
                assert records.log_prob[row] == pytest.approx(float(here[label]), abs=1e-4)
                assert records.confidence[row] == pytest.approx(float(here.max().exp()), abs=1e-5)
                assert here[records.predicted[row]] == pytest.approx(float(here.max()), abs=1e-5)
                assert abs(records.rank[row] - int((here >= here[label]).sum())) <= 1
                checked += 1
    assert checked == len(records) > 300


@pytest.mark.parametrize("batch", [1, 16, 200])
def test_the_batch_changes_nothing(model, tokenizer, file, records, batch):
    other = measure(Engine(model, max_tokens=batch), open_text(file, tokenizer), max_length=64)
    assert same_masks(records, other) and printed(records) == printed(other)


def test_the_order_changes_nothing(model, tokenizer, texts, records, tmp_path):
    turn = np.random.default_rng(0).permutation(len(texts))
    other = measure(Engine(model), open_text(write(tmp_path / "b.jsonl", [texts[n] for n in turn]), tokenizer), max_length=64)
    assert same_masks(records, other)
    assert all((getattr(records, name) == getattr(other, name)).all() for name in COLUMNS)  # to the bit
    assert metrics(records, resamples=50)["macro_f1"] == metrics(other, resamples=50)["macro_f1"]


def test_twice(model, tokenizer, file, records):
    other = measure(Engine(model), open_text(file, tokenizer), max_length=64)
    assert all((getattr(records, name) == getattr(other, name)).all() for name in COLUMNS)


PART = """
import sys
from unmask.data.tokenizer import load_tokenizer
from unmask.evaluate.masked import measure
from unmask.evaluate.text import open_text
from unmask.infer.engine import Engine
from unmask.model.load import load_model
folder, file, output = sys.argv[1:]
tokenizer = load_tokenizer(folder)
measure(Engine(load_model(folder)), open_text(file, tokenizer), max_length=64, part=(1, 2), folder=output)
"""


def test_two_processes(tiny_bert, model, tokenizer, file, records, tmp_path):
    with subprocess.Popen([sys.executable, "-c", PART, str(tiny_bert), str(file), str(tmp_path / "1")]) as other:
        measure(Engine(model), open_text(file, tokenizer), max_length=64, part=(0, 2), folder=tmp_path / "0")
        assert other.wait(120) == 0
    parts = [Records(tmp_path / str(n)) for n in range(2)]
    joined = Records.join(parts)
    assert same_masks(records, joined) and printed(records) == printed(joined)
    assert joined.documents.column("id") == records.documents.column("id")
    with pytest.raises(DataError, match="not the parts of one measurement"):
        Records.join(parts[::-1])
    with pytest.raises(DataError, match="not the parts of one measurement"):
        Records.join(parts[:1])


def test_policies_hide_the_same_tokens_and_are_told_apart(model, tokenizer, file, records):
    mask = measure(Engine(model), open_text(file, tokenizer), max_length=64, policy="mask")
    assert (mask.label == records.label).all() and (mask.position == records.position).all()
    assert set(mask.action) == {0} and set(records.action) == {0, 1, 2}
    assert mask.fingerprint != records.fingerprint
    assert (mask.info["policy"], records.info["policy"]) == ("mask", "corrupt") and list(POLICIES) == ["corrupt", "mask"]
    with pytest.raises(ConfigError, match="policy = 'bert'; allowed: corrupt, mask"):
        measure(Engine(model), open_text(file, tokenizer), policy="bert")


def test_views(model, tokenizer, file, records):
    two = measure(Engine(model), open_text(file, tokenizer), max_length=64, views=2)
    first = two.view == 0
    for name in ("document", "position", "label", "action"):
        assert (getattr(two, name)[first] == getattr(records, name)).all(), name
    assert two.log_prob[first] == pytest.approx(records.log_prob, abs=1e-5)
    order = np.lexsort((two.position, two.view, two.document))
    assert (order == np.arange(len(two))).all() and 0.8 < first.mean() * 2 < 1.2
    assert two.fingerprint != records.fingerprint
    assert metrics(two, resamples=0)["num_documents"] == records.num_documents
    with pytest.raises(ConfigError, match="views = 0"):
        measure(Engine(model), open_text(file, tokenizer), views=0)


def test_another_seed_is_another_draw(model, tokenizer, file, records):
    assert measure(Engine(model), open_text(file, tokenizer), max_length=64, seed=1).fingerprint != records.fingerprint


def test_windows_hold_every_token_once_and_masks_do_not_depend_on_them(model, tokenizer, file, records):
    wide = measure(Engine(model), open_text(file, tokenizer), max_length=512)
    assert same_masks(records, wide)
    assert metrics(wide, resamples=0)["num_windows"] < metrics(records, resamples=0)["num_windows"]
    assert metrics(records, resamples=0)["num_documents_in_windows"] >= 1
    assert window_length(None, None) == window_length(8192, None) == 512 and window_length(128, None) == 128
    with pytest.raises(ConfigError, match="max_length = 513 is more than the 512 positions"):
        window_length(512, 513)
    with pytest.raises(ConfigError, match="leaves no room"):
        measure(Engine(model), open_text(file, tokenizer), max_length=2)


def test_columns(records, tokenizer, file):
    counts = open_text(file, tokenizer).token_counts()
    assert records.per_million == pytest.approx(counts[records.label] / counts.sum() * 1e6)
    tokens = tokenizer.convert_ids_to_tokens(records.label.tolist())
    assert [len(token.removeprefix("##")) for token in tokens] == records.num_bytes.tolist()
    assert [not token.startswith("##") for token in tokens] == records.word_start.tolist()
    assert (records.word_pieces[~records.word_start] > 1).all() and (records.word_pieces == 1).any()
    assert records.numbers("num_bytes").max() == len(LONG.encode()) and records.numbers("num_words").max() == LONG.count(
        " "
    ) + 1 + LONG.count(".")
    assert (np.diff(records.numbers("key").astype(object)) >= 0).all()


def test_bytes_of_a_byte_level_vocabulary():
    from unmask.data.tokenizer import train_tokenizer

    made = train_tokenizer(["Größe zählt, größer zählt mehr 日本"] * 20, kind="bpe", vocab_size=300)
    text = " Größe 日本 zählt"
    ids = made(text, add_special_tokens=False)["input_ids"]
    alone = sum(token == "Ġ" for token in made.convert_ids_to_tokens(ids))
    assert token_bytes(made)[ids].sum() - alone == len(text.replace(" ", "").encode())


def test_a_model_that_knows_nothing_does_not_look_as_if_it_did(model, tokenizer, file):
    """Of equally probable tokens, the others come first."""
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (blank.cls.predictions.decoder.weight, blank.cls.predictions.bias):
            parameter.zero_()
    found = metrics(measure(Engine(blank), open_text(file, tokenizer), max_length=64), resamples=0)
    size = len(tokenizer)
    assert found["masked_loss"]["value"] == pytest.approx(math.log(size), abs=1e-5)
    assert found["top_10_accuracy"]["value"] == found["masked_accuracy"]["value"] < 0.05
    assert found["mean_reciprocal_rank"]["value"] < 0.05


def test_weights_that_are_no_numbers(model, tokenizer, file):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.cls.predictions.bias[3] = math.nan
    with pytest.raises(CheckpointError, match="no number .NaN.: its weights are damaged"):
        measure(Engine(broken), open_text(file, tokenizer))


def test_logits_of_numpy_give_the_same(model, tokenizer, file, records):
    """A backend without torch answers in numpy's arrays."""
    engine = Engine(model)
    run = engine.run
    engine.run = lambda requests, reduce, labelled: run(requests, lambda x, y: reduce(x.numpy(), y.numpy()), labelled=labelled)
    other = measure(engine, open_text(file, tokenizer), max_length=64)
    assert all((getattr(records, name) == getattr(other, name)).all() for name in COLUMNS)


def test_documents_that_cannot_be_masked_are_counted(model, tokenizer, tmp_path):
    file = write(tmp_path / "c.jsonl", ["ЖЖЖ", *sentences(3), "\u200b", "ЖЖЖ ЖЖЖ"])
    found = unmask.evaluate(model, file, tokenizer=tokenizer)
    assert found.metrics["num_documents_without_masked_tokens"] == 2 and found.metrics["num_documents"] == 5
    assert found.metrics["num_documents_empty"] == 1
    with pytest.raises(DataError, match="no token of the text can be masked"):
        unmask.evaluate(model, write(tmp_path / "d.jsonl", ["ЖЖЖ"]), tokenizer=tokenizer)


def test_slices_by_a_field(model, tokenizer, file, tmp_path):
    found = unmask.evaluate(model, file, tokenizer=tokenizer, slice_by="area", resamples=0)
    rows = {row["name"]: row["num_documents"] for row in found.metrics["slices"]["area"]}
    assert rows == {"law": 16, "war": 16}
    found = unmask.evaluate(model, [file, write(tmp_path / "e.jsonl", ["The nurse helps."])], tokenizer=tokenizer, slice_by="source")
    assert {row["name"]: row["num_documents"] for row in found["slices"]["source"]} == {"a.jsonl": 32, "e.jsonl": 1}
    with pytest.raises(DataError, match="no document has a field 'aera' to slice by; the fields are: area, id, source"):
        open_text(file, tokenizer, slice_by="aera")
    many = write(tmp_path / "many.jsonl", ["The nurse helps."] * 201)
    with pytest.raises(
        DataError, match="the field 'id' has 201 values .'many0', 'many1', 'many2', ...., and slices are made of at most 200"
    ):
        open_text(many, tokenizer, slice_by="id")


def test_a_part_of_the_text(tokenizer, file):
    part = open_text(file, tokenizer, max_tokens=300)
    assert 0 < part.num_tokens <= 300 and (part.order == open_text(file, tokenizer).order[: len(part.order)]).all()
