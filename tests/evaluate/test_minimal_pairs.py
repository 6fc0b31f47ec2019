"""Minimal pairs: the better sum of log-probabilities wins, by hand over the plain model; ties, phenomena, archives, what is left out."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
import torch

from unmask.cli import main
from unmask.errors import ConfigError, DataError
from unmask.evaluate.minimal_pairs import minimal_pairs

from ..conftest import sentences

GOOD = [text.split(". ")[0].rstrip(".") + "." for text in sentences(12, seed=9)]
PAIRS = [(good, " ".join(reversed(good.split()))) for good in GOOD]


def blimp(pairs):
    return [
        {"sentence_good": good, "sentence_bad": bad, "field": "syntax", "linguistics_term": f"term{n % 2}", "UID": f"uid{n % 3}"}
        for n, (good, bad) in enumerate(pairs)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def by_hand(folder, text):
    """The pseudo-log-likelihood over the plain model, one mask at a time."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    total = 0.0
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            total += float(model(input_ids=masked).logits[0, place].log_softmax(-1)[ids[0, place]])
    return total


def test_accuracy_by_hand(tiny_bert, tmp_path):
    found = minimal_pairs(tiny_bert, write(tmp_path / "a.jsonl", blimp(PAIRS)), output=tmp_path / "out", device="cpu")
    totals = np.array([[by_hand(tiny_bert, text) for text in pair] for pair in PAIRS])
    for line, (good, bad) in zip(found.predictions, totals, strict=True):
        assert (line["good_log_likelihood"], line["bad_log_likelihood"]) == (pytest.approx(good, abs=1e-4), pytest.approx(bad, abs=1e-4))
    right = totals[:, 0] > totals[:, 1]
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["mean_difference"] == pytest.approx((totals[:, 0] - totals[:, 1]).mean(), abs=1e-4)
    slices = found.metrics["slices"]
    assert list(slices) == ["field", "linguistics_term", "UID"]
    assert [row["accuracy"]["value"] for row in slices["UID"]] == pytest.approx([right[n::3].mean() for n in range(3)])
    assert [row["count"] for row in slices["linguistics_term"]] == [6, 6] and slices["field"][0]["accuracy"]["count"] == 12
    assert (tmp_path / "out" / "metrics.json").is_file() and len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 12


def test_ties_count_half_and_bad_pairs_are_counted(tiny_bert, tmp_path):
    (tmp_path / "a.tsv").write_text(
        "good\tbad\nThe nurse.\tThe nurse.\n\tThe nurse.\nThe nurse.\t \nThe nurse.\tnurse the . .\n", encoding="utf-8"
    )
    found = minimal_pairs(tiny_bert, tmp_path / "a.tsv", columns=("good", "bad"), method="word_l2r", device="cpu")
    assert found.metrics["num_ties"] == 1 and found.predictions[0]["right"] == 0.5
    assert found.metrics["excluded"] == {"no sentence": 2} and found.metrics["num_scored"] == 2
    assert found["accuracy"] == pytest.approx((0.5 + found.predictions[3]["right"]) / 2)


def test_folders_and_archives_are_read_alike(tiny_bert, tmp_path):
    (tmp_path / "sets").mkdir()
    rows = blimp(PAIRS)
    files = {"one.jsonl": rows[:6], "two.jsonl": rows[6:]}
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, part in files.items():
            data = write(tmp_path / "sets" / name, part).read_bytes()
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "sets.tar").write_bytes(raw.getvalue())
    with pa.CompressedOutputStream(str(tmp_path / "sets.tar.zst"), "zstd") as stream:
        stream.write(raw.getvalue())
    results = [minimal_pairs(tiny_bert, tmp_path / name, device="cpu") for name in ("sets", "sets.tar", "sets.tar.zst")]
    assert len({json.dumps(found.metrics["slices"]) for found in results}) == 1
    assert results[0].metrics["num_items"] == 12
    (tmp_path / "torn.tar").write_bytes(raw.getvalue()[:700])
    with pytest.raises(DataError, match=r"torn\.tar is not a readable tar archive"):
        minimal_pairs(tiny_bert, tmp_path / "torn.tar", device="cpu")


def test_files_without_names_of_phenomena_go_by_file(tiny_bert, tmp_path):
    for name in ("one", "two"):
        write(tmp_path / f"{name}.jsonl", [{"sentence_good": good, "sentence_bad": bad} for good, bad in PAIRS[:3]])
    found = minimal_pairs(tiny_bert, [tmp_path / "one.jsonl", tmp_path / "two.jsonl"], device="cpu")
    assert [row["name"] for row in found.metrics["slices"]["file"]] == ["one", "two"]


def test_an_exported_model_says_the_same(tiny_bert, tmp_path):
    pytest.importorskip("onnxruntime")
    from unmask.data.tokenizer import load_tokenizer
    from unmask.evaluate.cloze import cloze
    from unmask.evaluate.compare import compare
    from unmask.export.onnx import export_model
    from unmask.model.load import load_model

    tokenizer = load_tokenizer(tiny_bert)
    export = export_model(load_model(tiny_bert, tokenizer=tokenizer), tokenizer, tmp_path / "export")
    blank = PAIRS[0][0].replace("watches", "[MASK]", 1)
    for test, rows in (
        (minimal_pairs, blimp(PAIRS)),
        (cloze, [{"text": "The [MASK] calls.", "answer": "nurse"}, {"text": blank, "answer": "the"}]),
    ):
        file = write(tmp_path / "items.jsonl", rows)
        ours, theirs = test(tiny_bert, file, device="cpu"), test(export, file)
        for name in ("accuracy", "precision_at_10", "mean_log_prob", "mean_difference"):
            if name in ours.metrics:
                assert theirs[name] == pytest.approx(ours[name], abs=1e-4)
    (tmp_path / "texts.txt").write_text("\n".join(GOOD), encoding="utf-8")
    for one, other in ((tiny_bert, export), (export, tiny_bert)):
        found = compare(one, other, tmp_path / "texts.txt", resamples=20, output=tmp_path / "out")
        assert found.verdict == "equivalent" and abs(found.metrics["masked_loss"].difference) < 1e-4 and list(found.flips()) == []


def test_what_is_wrong(tiny_bert, tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", blimp(PAIRS[:2]))
    with pytest.raises(ConfigError, match="allowed: original, word_l2r"):
        minimal_pairs(tiny_bert, file, method="sampled")
    with pytest.raises(ConfigError, match="name two"):
        minimal_pairs(tiny_bert, file, columns=("one",))
    with pytest.raises(DataError, match="no column 'good'; the columns are: sentence_good"):
        minimal_pairs(tiny_bert, file, columns=("good", "sentence_bad"))
    with pytest.raises(DataError, match="holds 3, not a sentence"):
        minimal_pairs(tiny_bert, write(tmp_path / "b.jsonl", [{"sentence_good": 3, "sentence_bad": "a"}]), device="cpu")
    with pytest.raises(DataError, match="none of 1 pairs"):
        minimal_pairs(tiny_bert, write(tmp_path / "b.jsonl", [{"sentence_good": "", "sentence_bad": "a"}]), device="cpu")
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(tiny_bert), "--pairs", str(file), "--device", "cpu"])
    said = capsys.readouterr().out
    assert done.value.code == 0 and "by linguistics_term" in said and "2 of 2 pairs of a.jsonl" in said
