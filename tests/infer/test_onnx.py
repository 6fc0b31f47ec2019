"""An exported model in use: without torch, with the same answers, in threads and after a fork."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from unmask.data.plain import PlainTokenizer
from unmask.data.tokenizer import frame, load_tokenizer, special_ids, train_tokenizer
from unmask.errors import CheckpointError, TokenizerError
from unmask.evaluate.compare import compare
from unmask.evaluate.evaluation import evaluate
from unmask.evaluate.pll import score
from unmask.export.onnx import export_model
from unmask.infer.backends import is_export, open_export
from unmask.infer.backends.onnx import OnnxBackend
from unmask.infer.engine import Engine, Request
from unmask.model.load import load_model
from unmask.tasks.fill import Filler

LONG = "A [MASK] judge [MASK] the ___ in court. " * 3
TEXTS = ["The [MASK] treats the nurse.", LONG, "[MASK]", "no mask", ("The [MASK] is", "ill [MASK].")]
KINDS = ["wordpiece", "bpe", "unigram"]


@pytest.fixture(scope="module")
def exported(tiny_bert, tmp_path_factory):
    tokenizer = load_tokenizer(tiny_bert)
    return export_model(load_model(tiny_bert, tokenizer=tokenizer), tokenizer, tmp_path_factory.mktemp("exports") / "tiny")


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """A model's folder and its export, with each kind of tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    root = tmp_path_factory.mktemp(request.param)
    words = ["The doctor treats the nurse in court.", "A patient isn't calling the judge (number 7)."] * 20
    tokenizer = train_tokenizer(words, kind=request.param, vocab_size=400)
    dials = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    torch.manual_seed(3)
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **dials))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    return root / "model", export_model(model.eval(), tokenizer, root / "export")


def numbers(result):
    return [[(one.token, one.sequence, round(one.log_prob, 3)) for one in mask] for mask in result], [one.tokens for one in result.joint]


@pytest.mark.parametrize("options", [{"top_k": 3}, {"max_pieces": 2, "top_k": 2}, {"whole_words": True}, {"independent": True}])
def test_fills_as_the_model_does(both, options):
    one, other = (Filler.load(folder).fill(TEXTS, **options) for folder in both)
    assert [numbers(result) for result in one] == [numbers(result) for result in other]
    assert [result.error for result in one] == [result.error for result in other]


def test_scores_targets_as_the_model_does(both):
    one, other = (Filler.load(folder).fill("The [MASK] is here.", targets=["judge", "doctors", "x"])[0] for folder in both)
    np.testing.assert_allclose([a.log_prob for a in one], [b.log_prob for b in other], rtol=1e-4)


def test_a_plain_tokenizer_is_the_tokenizer(both):
    plain, whole = PlainTokenizer.load(both[1]), load_tokenizer(both[0])
    assert special_ids(plain) == special_ids(whole) and frame(plain) == frame(whole) and len(plain) == len(whole)
    assert plain.get_vocab() == whole.get_vocab() and plain.model_input_names == whole.model_input_names
    assert plain.convert_ids_to_tokens([5, 6]) == whole.convert_ids_to_tokens([5, 6])
    with pytest.raises(AttributeError, match="a plain tokenizer has no 'eat'"):
        plain.eat  # noqa: B018


def test_a_tokenizer_that_calls_cls_and_sep_by_other_names(both, tmp_path):
    shutil.copytree(both[1], tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["bos_token"], settings["eos_token"] = settings.pop("cls_token"), settings.pop("sep_token")
    file.write_text(json.dumps(settings))
    assert special_ids(PlainTokenizer.load(tmp_path / "copy"))[:4] == special_ids(load_tokenizer(both[0]))[:4]
    (tmp_path / "copy" / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="expected tokenizer.json, tokenizer_config.json"):
        PlainTokenizer.load(tmp_path / "copy")


def test_filling_loads_neither_torch_nor_transformers(exported):
    code = (
        "import sys\nfrom unmask.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'onnx', 'scipy', 'sklearn', 'pyarrow'} & set(sys.modules), 'loaded'"
    )
    args = ["fill", str(exported), "The [MASK] treats the nurse.", "A [MASK] and a [MASK].", "--json", "--target", "judge"]
    for rest in (args[:-2], args):
        done = subprocess.run([sys.executable, "-c", code, *rest], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2 and json.loads(done.stdout.splitlines()[0])["masks"]


def test_measures_scores_and_compares_as_the_model_does(tiny_bert, exported, sentences_file):
    one, other = (evaluate(folder, sentences_file, resamples=0, max_tokens=2000) for folder in (tiny_bert, exported))
    assert other["masks_fingerprint"] == one["masks_fingerprint"] and other["masked_loss"] == pytest.approx(one["masked_loss"], abs=1e-5)
    text = "The nurse treats the patient in the hospital today."
    one, other = (score(folder, text) for folder in (tiny_bert, exported))
    assert other.total == pytest.approx(one.total, abs=1e-4)
    found = compare(tiny_bert, exported, sentences_file, resamples=100)
    assert found.verdict == "equivalent"


def test_pairs_are_told_apart(exported, tiny_bert):
    requests = [Request([2, 9, 3, 8, 7, 3], [1, 3], token_type_ids=[0, 0, 0, 1, 1, 1]), Request([2, 9, 3], [1])]
    one, other = Engine(load_model(tiny_bert)), Engine(open_export(exported)[0])
    for a, b in zip(one.logits(requests), other.logits(requests), strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-5)
    plain = next(other.logits([Request([2, 9, 3, 8, 7, 3], [1, 3])]))
    assert np.abs(plain - b).max() >= 0 and not np.allclose(plain, next(other.logits(requests[:1])))


def test_threads_share_a_backend_and_a_fork_makes_its_own(exported):
    from concurrent.futures import ThreadPoolExecutor

    backend, _ = open_export(exported)
    asked = [[Request([2, *range(5, 7 + number), 3], [number % 3])] * 3 for number in range(8)]
    expected = [np.concatenate(list(Engine(backend).logits(one))) for one in asked]
    with ThreadPoolExecutor(8) as pool:
        for want, found in zip(expected, pool.map(lambda one: list(Engine(backend).logits(one)), asked), strict=True):
            np.testing.assert_allclose(np.concatenate(found), want, atol=1e-6)
    child = os.fork()
    if child == 0:  # two threads, so that there is a pool which has not come along
        found = np.concatenate(list(Engine(backend).logits(asked[3])))
        os._exit(0 if np.allclose(found, expected[3], atol=1e-6) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_is_no_export_is_told_apart(tiny_bert, exported, tmp_path):
    assert open_export(tiny_bert) is None and open_export("bert-base-uncased") is None and not is_export(tiny_bert)
    shutil.copytree(exported, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"model.onnx' cannot be loaded by ONNX Runtime 1"):
        open_export(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.onnx").rename(tmp_path / "damaged" / "other.onnx")
    with pytest.raises(CheckpointError, match=r"has no model.onnx, so it is no model that Unmask exported"):
        open_export(tmp_path / "damaged")


def test_a_file_of_another_tool_is_refused(exported, tmp_path):
    import onnx

    shutil.copytree(exported, tmp_path / "foreign")
    model = onnx.load(exported / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign" / "model.onnx")
    with pytest.raises(CheckpointError, match="was not made by `unmask export`"):
        OnnxBackend(tmp_path / "foreign")


def test_threads_are_as_many_as_asked_for(exported, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert OnnxBackend(exported).threads == 3 and OnnxBackend(exported, threads=1).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert OnnxBackend(exported).threads in (0, len(os.sched_getaffinity(0)))
