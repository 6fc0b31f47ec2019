"""A cluster computes what one process computes, to the bit, whatever the number of workers and whatever becomes of them."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="work on a cluster needs the extra `cluster`")

import ray
import torch

from unmask.cli import main
from unmask.cluster import team
from unmask.cluster.ray import Cluster
from unmask.cluster.team import TRIES, UNDELIVERED
from unmask.data import pack as packing
from unmask.data.pack import pack
from unmask.errors import ConfigError, DataError, MissingExtra, RunError, TaskError
from unmask.evaluate.cloze import cloze
from unmask.evaluate.evaluation import evaluate
from unmask.evaluate.minimal_pairs import minimal_pairs
from unmask.evaluate.pll import Scorer
from unmask.tasks.classify import Classifier
from unmask.tasks.label_words import LabelWords

from ..conftest import sentences


@pytest.fixture(scope="module")
def machine():
    """A cluster of this machine with room for three workers, whatever cores there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have the tests
    os.environ.setdefault("RAY_worker_niceness", "0")  # else they starve on a machine that has other things to do
    ray.init(
        "local", num_cpus=3, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def two(machine):
    with Cluster("ray", workers=2) as made:
        yield made


def workers(cluster: Cluster) -> list[int]:
    """Return the process ids of a cluster's workers."""
    return [member.facts["pid"] for member in cluster._team.members]


def slowly(tool, items):
    """Return each number's square, the first ones last."""
    for item in items:
        time.sleep(0.3 if item == 0 else 0.01)
        yield item * item + tool


def badly(tool, items):
    for item in items:
        if item == 5:
            raise DataError(f"line {item} is no text; give one")
        yield item


def fatally(tool, items):
    for item in items:
        if item == 2:
            os._exit(7)
        yield item


def one() -> int:
    return 1


def born_dead(folder: Path, times: int) -> int:
    """Return 1, once so many workers have died of it."""
    (folder / str(os.getpid())).touch()
    if len(list(folder.iterdir())) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def same_files(a: Path, b: Path) -> None:
    names = sorted(path.relative_to(a) for path in a.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(b) for path in b.rglob("*") if path.is_file())
    for name in names:
        if name.name == "report.json":
            first, second = (json.loads((folder / name).read_text()) for folder in (a, b))
            assert first.pop("seconds").keys() == second.pop("seconds").keys()
            assert first == second
        else:
            assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file with documents of every fate (held out, repeated, nearly repeated, empty), its tokenizer, and what it is packed to here."""
    from unmask.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("corpus")
    texts = sentences(400)
    texts += [*texts[:20], *(f"{text} Indeed." for text in texts[20:40]), "​", " ".join(texts[:60])]
    random.Random(1).shuffle(texts)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)))
    tokenizer = train_tokenizer(texts, kind="wordpiece", vocab_size=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BATCH_DOCUMENTS", 16)
        report = pack(folder / "texts.jsonl", folder / "here", tokenizer=tokenizer, held_out=0.1)
    dropped = report["documents"]
    assert all(dropped[f"dropped_{why}"] for why in ("exact", "near", "empty")) and report["heldout"]["documents"]
    return folder, tokenizer


@pytest.mark.parametrize("number", [1, 3])
def test_a_pack_is_the_same_folder(machine, number, corpus, tmp_path, monkeypatch):
    folder, tokenizer = corpus
    monkeypatch.setattr(packing, "BATCH_DOCUMENTS", 16)
    with Cluster("ray", workers=number) as cluster:
        pack(folder / "texts.jsonl", tmp_path / "out", tokenizer=tokenizer, held_out=0.1, on=cluster)
    same_files(folder / "here", tmp_path / "out")


def test_a_lost_worker_costs_nothing_but_time(two, corpus, tmp_path, monkeypatch, caplog):
    folder, tokenizer = corpus
    monkeypatch.setattr(packing, "BATCH_DOCUMENTS", 4)
    killed: list[int] = []

    def kill(stage, num_documents, num_bytes):
        if num_documents > 100 and len(killed) < {"read": 1, "tokenize": 3}.get(stage, 0):
            killed.append(workers(two)[-1])
            os.kill(killed[-1], signal.SIGKILL)

    pack(folder / "texts.jsonl", tmp_path / "out", tokenizer=tokenizer, held_out=0.1, on=two, progress=kill)
    same_files(folder / "here", tmp_path / "out")
    lost = [record.getMessage() for record in caplog.records if "is lost" in record.getMessage()]
    assert len(killed) == 3 and lost and "done again" in lost[0]


def test_results_come_in_order_and_the_stream_is_not_read_far_ahead(two):
    read = []

    def stream():
        for number in range(40):
            read.append(number)
            yield number

    with two.hired(one) as over:
        found = []
        for result in over(slowly, stream()):
            found.append(result)
            assert len(read) - len(found) < UNDELIVERED * 2 + 1
        assert found == [number * number + 1 for number in range(40)]
        assert list(over(slowly, [])) == []
        next(iter(over(slowly, range(9))))  # left before its end
        assert list(over(slowly, range(3))) == [1, 2, 5]


def test_what_the_work_raises_is_raised_here(two, tmp_path, corpus):
    with two.hired(one) as over, pytest.raises(DataError, match="line 5 is no text"):
        list(over(badly, range(9)))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "A nurse."}\n{"text": \n')
    with pytest.raises(DataError, match="broken.jsonl"):
        pack(broken, tmp_path / "out", tokenizer=corpus[1], on=two)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.jsonl"]


def test_an_item_that_ends_its_workers_ends_the_work(two):
    with two.hired(one) as over:
        stream = over(fatally, range(6))
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(RunError, match=rf"{TRIES} workers, one after the other, .*number 2"):
            list(stream)


def test_a_worker_that_dies_as_it_starts_has_a_successor(machine, tmp_path):
    with Cluster("ray", workers=1) as alone:
        (tmp_path / "some").mkdir()
        with alone.hired(partial(born_dead, tmp_path / "some", TRIES - 1)) as over:
            assert list(over(slowly, range(3))) == [1, 2, 5]
        (tmp_path / "all").mkdir()
        with pytest.raises(RunError, match="end as they start"), alone.hired(partial(born_dead, tmp_path / "all", 99)):
            pass


def test_a_worker_with_other_versions_is_not_worked_with(two, monkeypatch):
    monkeypatch.setattr(team, "versions", lambda: {"torch": "1.0"})
    with pytest.raises(ConfigError, match=r"a worker of the cluster has torch .* \(here 1.0\)"), two.hired(one) as over:
        list(over(slowly, range(3)))


def test_scores_are_the_same(machine, tiny_bert):
    texts = [*sentences(30), "", "The nurse " * 300]
    here = Scorer.load(tiny_bert, max_tokens=128, max_length=64)
    with Cluster("ray") as cluster:
        there = Scorer.load(tiny_bert, max_tokens=128, max_length=64, on=cluster)
        for method in ("original", "word_l2r", "sampled"):
            for a, b in zip(here.score(texts, method), there.score(texts, method), strict=True):
                assert np.array_equal(a.log_probs, b.log_probs, equal_nan=True)
                assert json.dumps(a.to_dict()) == json.dumps(b.to_dict())
        assert len(workers(cluster)) == 3


def test_an_evaluation_is_the_same(two, tiny_bert, sentences_file, tmp_path):
    how = {"batch_tokens": 256, "resamples": 20}
    a = evaluate(tiny_bert, sentences_file, output=tmp_path / "here", predictions=True, **how)
    b = evaluate(tiny_bert, sentences_file, output=tmp_path / "there", predictions=True, on=two, **how)
    assert a.metrics == b.metrics
    for name in ("metrics.json", "predictions.jsonl", "records.arrow"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes(), name
    both = zip(sentences(30), sentences(30, seed=1), strict=True)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"sentence_good": good, "sentence_bad": bad} for good, bad in both])
    blanks = write_jsonl(tmp_path / "blanks.jsonl", [{"text": f"The [MASK] {x}", "answer": "nurse"} for x in sentences(300)])
    two.workers = 1
    for test, data in ((minimal_pairs, pairs), (cloze, blanks)):
        here = test(tiny_bert, data, resamples=20, batch_tokens=256, **({"template": "{text}"} if test is cloze else {}))
        there = test(tiny_bert, data, resamples=20, batch_tokens=256, on=two, **({"template": "{text}"} if test is cloze else {}))
        assert (here.metrics, here.predictions) == (there.metrics, there.predictions)


@pytest.fixture(scope="module")
def classifier(tiny_bert, tmp_path_factory):
    """A folder with a model that has three labels and has learnt nothing."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "classifier"
    labels = dict(enumerate(["health", "law", "sea"]))
    config = BertConfig.from_pretrained(tiny_bert, id2label=labels, label2id={name: number for number, name in labels.items()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return folder


def test_predictions_are_the_same(two, classifier, tiny_bert, monkeypatch):
    from unmask.tasks import predictor

    monkeypatch.setattr(predictor, "CHUNK", 16)
    texts = [*sentences(70), "", "The judge " * 400]
    here, there = Classifier.load(classifier, max_tokens=256), Classifier.load(classifier, max_tokens=256, on=two)
    assert list(here.stream(texts)) == list(there.stream(texts))
    two.workers = 1
    words = {"health": ["nurse", "doctor"], "law": ["judge"]}
    a, b = (LabelWords.load(tiny_bert, words, on=on) for on in (None, two))
    assert list(a.stream(sentences(300))) == list(b.stream(sentences(300)))
    with pytest.raises(TaskError, match="were let go of, for another one"):
        there.predict(["A nurse."])


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    return int(caught.value.code or 0)


def test_the_command_line(machine, corpus, classifier, tiny_bert, sentences_file, tmp_path, capsys):
    corpus[1].save_pretrained(tmp_path / "tokenizer")
    source, on = str(sentences_file), ["--on", "ray", "--workers", "1"]
    for name, extra in (("here", []), ("there", on)):
        assert run("pack", source, "-t", str(tmp_path / "tokenizer"), "-o", str(tmp_path / name), "--json", *extra) == 0
    same_files(tmp_path / "here", tmp_path / "there")
    captured = capsys.readouterr()
    assert all(json.loads(line) for line in captured.out.splitlines()) and "on ray: 1 node, 3 CPUs, 0 GPUs" in captured.err
    for verb in (["score", str(tiny_bert), "--data", source], ["predict", str(classifier), "--data", source]):
        outputs = []
        for extra in ([], on):
            assert run(*verb, "--json", *extra) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1] and outputs[0].count("\n") >= 300


@pytest.mark.parametrize("address", ["raj", "ray://", "http://head:6379", "head:port", "head:0"])
def test_an_address_that_is_none(address, sentences_file, tmp_path, capsys):
    assert run("pack", str(sentences_file), "-o", str(tmp_path / "x"), "-t", "bert", "--on", address) == 2
    assert f"'{address}' is none; allowed: ray (" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["ray://127.0.0.1:{}", "127.0.0.1:{}"])
def test_a_cluster_that_is_not_there(form, tiny_bert, capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
        server.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray, "is_initialized", lambda: False)
            assert run("score", str(tiny_bert), "A nurse.", "--on", address) == 2
    error = capsys.readouterr().err
    assert "there is no cluster at 127.0.0.1:" in error and "refused" in error and "ray start --head" in error


def test_something_else_that_answers_is_no_cluster(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ConfigError, match="what answers there is no Ray"):
        Cluster(f"127.0.0.1:{server.getsockname()[1]}")


def test_workers_belong_to_a_cluster_and_to_what_it_has(machine, tiny_bert, capsys):
    assert run("score", str(tiny_bert), "A nurse.", "--workers", "2") == 2
    assert "name one with --on" in capsys.readouterr().err
    assert run("score", str(tiny_bert), "A nurse.", "--on", "ray", "--workers", "0") == 2
    for device in ("cuda", "cuda:1", "tpu"):
        with Cluster("ray") as cluster, pytest.raises(ConfigError, match=r"on a cluster, auto \(GPUs where there are some\), cpu or cuda"):
            Scorer.load(tiny_bert, device=device, on=cluster)
    torch.set_num_threads(4)
    try:
        with Cluster("ray") as cluster, pytest.raises(ConfigError, match="no node of the cluster has 4 CPUs.*OMP_NUM_THREADS=1"):
            Scorer.load(tiny_bert, on=cluster)
    finally:
        torch.set_num_threads(1)


def test_a_model_in_memory_is_refused(two, tiny_bert, sentences_file):
    from unmask.infer.load import load

    model, tokenizer = load(tiny_bert)
    with pytest.raises(ConfigError, match="for a cluster save it"):
        evaluate(model, sentences_file, tokenizer=tokenizer, on=two)


def test_without_the_extra_the_command_that_installs_it_is_named(monkeypatch, tiny_bert, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'unmask\[cluster\]'"):
        Cluster("ray")
    assert run("score", str(tiny_bert), "A nurse.", "--on", "ray") == 2
