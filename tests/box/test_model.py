"""The model that the package holds: a plain folder that loads everywhere, in fp32, with the graph and the card that belong to it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from unmask import box

pytestmark = pytest.mark.skipif(not (box.FOLDER / "config.json").is_file(), reason="the package holds no box model")

TEXTS = ["The [MASK] is playing soccer.", "Paris is the [MASK] of France.", "He opened the ___ and looked [MASK]."]


def test_it_is_as_small_as_it_has_to_be():
    from safetensors import safe_open

    assert sum(path.stat().st_size for path in box.FOLDER.iterdir()) < 25e6
    with safe_open(box.FOLDER / "model.safetensors", framework="numpy") as tensors:
        weights = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118 - it is no dict
    assert {weight.get_dtype() for weight in weights} == {"F16"}
    assert sum(int(np.prod(weight.get_shape())) for weight in weights) <= 11.2e6


def test_its_files_are_those_that_were_measured():
    from unmask.data.manifest import MANIFEST, check_manifest

    assert (box.FOLDER / MANIFEST).is_file()
    check_manifest(box.FOLDER)


def test_plain_transformers_load_it_with_nothing_missing_and_in_fp32():
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    model, info = AutoModelForMaskedLM.from_pretrained(box.FOLDER, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert len(AutoTokenizer.from_pretrained(box.FOLDER)) <= model.config.vocab_size
    found = pipeline("fill-mask", model=str(box.FOLDER))(TEXTS[0])
    from unmask import Filler

    ours = Filler.load().fill(TEXTS[0])[0]
    assert [one["token_str"] for one in found] == [one.token for one in ours]
    assert [one["score"] for one in found] == pytest.approx([one.score for one in ours], abs=1e-5)


def test_our_loaders_give_fp32():
    import torch

    from unmask import load_model

    assert {weight.dtype for weight in load_model(box.FOLDER).parameters()} == {torch.float32}


def test_the_graph_answers_as_torch_does():
    pytest.importorskip("onnxruntime")
    from unmask import Filler
    from unmask.model.load import load_model, max_positions

    fast = Filler.load()
    assert fast.engine.backend.name == "onnx"
    slow = Filler(load_model(box.FOLDER), fast.tokenizer)
    assert fast.engine.max_length == max_positions(slow.engine.model) == slow.engine.max_length
    long = " ".join([TEXTS[1]] * 20)
    for one, other in zip(*(filler.fill([*TEXTS, long], top_k=20, independent=True) for filler in (fast, slow)), strict=True):
        for mine, torchs in zip(one.masks, other.masks, strict=True):
            assert [candidate.token for candidate in mine] == [candidate.token for candidate in torchs]
            assert [candidate.score for candidate in mine] == pytest.approx([candidate.score for candidate in torchs], abs=1e-5)


def test_what_asks_for_torch_gets_it():
    from unmask import Filler

    assert Filler.load(precision="bf16").engine.backend.name == "torch"


def test_a_text_is_filled_without_importing_torch():
    pytest.importorskip("onnxruntime")
    code = (
        "import json, sys\nfrom unmask.cli import run\n"
        f"code = run('fill', [{TEXTS[0]!r}])\n"
        "print(json.dumps([code, sorted({'torch', 'transformers', 'sklearn', 'scipy', 'pyarrow', 'matplotlib'} & set(sys.modules))]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []] and done.stderr == box.SAID + "\n"


def test_it_has_learnt_something():
    from unmask import Filler, score

    (best, *_) = Filler.load().fill("He was the first president of the United [MASK].")[0]
    assert best.token == "states" and best.score > 0.5
    good, bad = score(None, ["The dogs are in the house.", "The dogs is in the house."])
    assert good.total > bad.total
