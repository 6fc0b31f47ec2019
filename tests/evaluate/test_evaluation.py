"""`unmask.evaluate` and `unmask evaluate`: equal to what a run says of itself, files left behind, and what is refused."""

import json
import shutil

import pytest

import unmask
from unmask.cli import dispatch
from unmask.errors import CheckpointError, ConfigError, DataError, StoreError, UnmaskError
from unmask.evaluate.metrics import DEFINITIONS
from unmask.evaluate.records import Records

from ..conftest import sentences

TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("packed")
    (folder / "texts.txt").write_text("\n".join([*sentences(150, seed=3), " ".join(sentences(30, seed=4))]) + "\n", encoding="utf-8")
    unmask.pack(folder / "texts.txt", folder / "corpus", tokenizer=tiny_bert, held_out=0.4, dedup="exact")
    return folder / "corpus"


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run that is measured, while it goes, on a part of its held-out text."""
    return unmask.pretrain(
        output=tmp_path_factory.mktemp("runs") / "run", data=corpus, model=TINY, max_steps=6, max_length=32, batch_tokens=256,
        eval_tokens=900, device="cpu", precision="fp32",
    )  # fmt: skip


def test_the_numbers_of_a_run_are_found_again(run, corpus):
    for found in (unmask.evaluate(run.folder), unmask.evaluate(run.model, corpus), unmask.evaluate(run.model, corpus / "heldout")):
        assert found["masked_loss"] == pytest.approx(run.metrics["masked_loss"], abs=1e-5)
        assert found["masked_accuracy"] == run.metrics["masked_accuracy"]
        assert found["masked_perplexity"] == pytest.approx(run.metrics["masked_perplexity"], rel=1e-5)
        for name in ("masks_fingerprint", "num_masked_tokens", "num_documents"):
            assert found[name] == run.metrics[name], name
        assert found["settings"]["max_length"] == 32 and found["num_windows"] > found["num_documents"]


def test_the_text_of_a_corpus_is_measured_as_the_corpus_is(run, corpus):
    with pytest.raises(ConfigError, match="max_tokens = -5"):
        unmask.evaluate(run.model, corpus, max_tokens=-5)
    packed = unmask.evaluate(run.model, corpus, max_tokens=0)
    raw = unmask.evaluate(run.model, corpus.parent / "corpus" / "heldout.jsonl", max_length=32)
    assert raw["masks_fingerprint"] == packed["masks_fingerprint"] != run.metrics["masks_fingerprint"]
    assert {name: raw.metrics[name] for name in DEFINITIONS} == {name: packed.metrics[name] for name in DEFINITIONS}
    assert raw["num_documents"] == len(unmask.TokenStore.open(corpus / "heldout"))


def test_slices_of_a_corpus(run, corpus):
    found = unmask.evaluate(run.folder, slice_by="source", resamples=0)
    assert [(row["name"], row["count"]) for row in found["slices"]["source"]] == [("texts.txt", found["num_masked_tokens"])]


def test_frequencies_of_the_training_text(run, corpus):
    own, trained = unmask.evaluate(run.folder, resamples=0), unmask.evaluate(run.folder, frequencies=corpus, resamples=0)
    assert own["masked_loss"] == trained["masked_loss"]
    assert (own.records.per_million != trained.records.per_million).any()
    assert (own["settings"]["frequencies"], trained["settings"]["frequencies"]) == ("this text", "another text")


def test_of_two_into_one_folder_the_second_is_refused_and_takes_nothing(run, tmp_path):
    from unmask.data.whole import alone

    out = tmp_path / "out"
    unmask.evaluate(run.folder, output=out, resamples=0)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with alone(out), pytest.raises(CheckpointError, match="another process is at work on"):
        unmask.evaluate(run.folder, output=out, policy="mask", resamples=0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "label.part").touch()  # of one that was killed
    assert unmask.evaluate(run.folder, output=killed, resamples=0)["masked_loss"]


def test_what_is_left_behind(run, corpus, tmp_path):
    out = tmp_path / "out"
    found = unmask.evaluate(run.folder, output=out, predictions=True)
    assert {"documents.arrow", "metrics.json", "predictions.jsonl", "records.arrow"} <= {path.name for path in out.iterdir()}
    assert not [path for path in out.iterdir() if path.suffix in (".part", ".partial")]
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(found.metrics))
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == found["num_masked_tokens"] == len(Records(out))
    assert list(lines[0]) == [
        "document", "view", "position", "label", "predicted", "log_prob", "confidence", "rank", "action", "word_start", "word_pieces",
        "label_token", "predicted_token",
    ]  # fmt: skip
    assert -sum(line["log_prob"] for line in lines) / len(lines) == pytest.approx(found["masked_loss"])
    assert {line["document"] for line in lines} <= set(found.records.documents.column("id").to_pylist())
    unmask.evaluate(run.folder, output=out)  # over itself: what the second did not make is gone
    assert not (out / "predictions.jsonl").exists()
    with pytest.raises(CheckpointError, match="holds something else than an evaluation"):
        unmask.evaluate(run.folder, output=tmp_path)


def test_a_model_as_an_object_and_as_a_package_that_is_called(tiny_bert, sentences_file):
    import unmask.evaluate.records  # from here on `unmask.evaluate` is the package

    tokenizer = unmask.load_tokenizer(tiny_bert)
    model = unmask.load_model(tiny_bert)
    one = unmask.evaluate(model, sentences_file, tokenizer=tokenizer, resamples=0)
    assert one["masked_loss"] == unmask.evaluate(tiny_bert, [sentences_file], resamples=0)["masked_loss"]
    with pytest.raises(ConfigError, match="needs its tokenizer beside it"):
        unmask.evaluate(model, sentences_file)


def test_one_document(tiny_bert, tmp_path):
    (tmp_path / "one.txt").write_text("The nurse helps the doctor in the court.\n")
    found = unmask.evaluate(tiny_bert, tmp_path / "one.txt")
    row = found.metrics["masked_accuracy"]
    assert row["low"] is row["high"] is None and "one document only" in row["why"] and row["count"] >= 1


def test_no_head(tiny_bert, sentences_file, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config

    config = BertConfig.from_pretrained(tiny_bert)
    shutil.copytree(tiny_bert, tmp_path / "task")
    BertForSequenceClassification(config).save_pretrained(tmp_path / "task")
    with pytest.raises(DataError, match="which column holds the label"):  # it is measured by its task
        unmask.evaluate(tmp_path / "task", sentences_file)
    GPT2Config().save_pretrained(tmp_path / "task")
    with pytest.raises(CheckpointError, match="no masked-language-model head"):
        unmask.evaluate(tmp_path / "task", sentences_file)


def refusals(tmp_path, corpus):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n")
    other = tmp_path / "whole"
    unmask.pack(corpus.parent / "texts.txt", other, tokenizer=corpus / "tokenizer", held_out=0)
    yield DataError, "is empty; give a file that holds text", {"data": tmp_path / "empty.txt"}
    yield DataError, "nothing to measure on", {"data": tmp_path / "blank.txt"}
    yield DataError, "there is no file", {"data": "nowhere.txt"}
    yield DataError, "no text is named", {}
    yield DataError, "has no held-out text", {"data": other}
    yield DataError, "names the packed corpus", {"data": [corpus, tmp_path / "blank.txt"]}
    yield DataError, "says how files are read", {"data": corpus, "text_column": "body"}
    yield DataError, "tokens alone", {"data": corpus / "train", "slice_by": "area"}
    yield DataError, "no document has a field 'area' to slice by; the fields are: source", {"data": corpus, "slice_by": "area"}
    yield ConfigError, "allowed: corrupt, mask", {"data": corpus, "policy": "bert"}
    yield ConfigError, "resamples = -1; allowed: 0", {"data": corpus, "resamples": -1}
    yield ConfigError, "resamples = 1000001; .* to 1,000,000; 1000 are usual", {"data": corpus, "resamples": 1_000_001}
    yield ConfigError, "batch_tokens = 0", {"data": corpus, "batch_tokens": 0}
    yield ConfigError, "^precision = 'fp8'; allowed: fp32, bf16, auto", {"data": corpus, "precision": "fp8"}
    yield ConfigError, "^device = 'tpu'", {"data": corpus, "device": "tpu"}
    yield ConfigError, "predictions are written into a folder", {"data": corpus, "predictions": True}


def test_refusals(tiny_bert, corpus, tmp_path):
    for kind, message, options in refusals(tmp_path, corpus):
        with pytest.raises(kind, match=message):
            unmask.evaluate(tiny_bert, **options)


def test_a_corpus_of_another_tokenizer(corpus, tiny_bert, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    made = unmask.train_tokenizer(sentences(50, seed=8), kind="wordpiece", vocab_size=200)
    made.save_pretrained(tmp_path)
    config = BertConfig.from_pretrained(tiny_bert)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(StoreError, match="was built with the tokenizer"):
        unmask.evaluate(tmp_path, corpus)


def test_command(run, tmp_path, capsys):
    assert dispatch(["evaluate", str(run.folder), "-o", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert DEFINITIONS.keys() <= lines.keys()
    assert lines["masked_loss"].split()[1] == f"{run.metrics['masked_loss']:.6g}" and " to " in lines["masked_loss"]
    assert run.metrics["masks_fingerprint"] in out and "policy corrupt" in out and "by position" in out
    assert f"written to {tmp_path / 'out'}" in err
    assert dispatch(["evaluate", str(run.folder), "--json", "--policy", "mask", "--views", "2", "--resamples", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["policy"] == "mask" and found["settings"]["views"] == 2
    assert found["masked_loss"]["low"] is None and found["masked_loss"]["why"] == "no resamples were asked for"


def test_a_table_on_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    dispatch(["evaluate", str(run.folder), "--resamples", "50"])
    out = capsys.readouterr().out
    assert "\x1b[" in out and "95% interval" in out and "masked_perplexity" in out and "by frequency" in out


def test_command_refuses(run):
    with pytest.raises(UnmaskError, match="name one with --output"):
        dispatch(["evaluate", str(run.folder), "--predictions"])
