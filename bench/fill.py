"""Filling speed of Unmask beside the stock pipeline, ONNX Runtime and OpenVINO, in one run, in turn, on the same sentences.

    python bench/fill.py [--data FILES] [--vocab VOCAB.txt] [--shapes base,mini] [--sentences 256] [--rounds 5] [--json OUT.json]

Sentences of natural length with one word masked, by a BERT of base shape and one of 4 x 256, both with 30,522 words and random weights.
Ours: torch alone in fp32 and bf16, and an int8 export (made here without its gate, which random weights tell nothing). Theirs: the stock
pipeline as it comes, and with batches of 32 in bf16; ONNX Runtime on the stock model quantized dynamically, logits at all positions;
OpenVINO in bf16 on the same model, where it is installed. The sides are processes that take turns; medians over rounds of the ratios.
Needs `pip install 'unmask[bench,onnx]' onnxscript`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from score import make_model
from train import Side, environment, load_tokenizer, matmul_rate, texts_of

SIDES = {
    "pipeline": "pipeline", "pipeline_bf16": "pipeline:bf16", "fp32": "unmask:fp32", "bf16": "unmask:bf16", "int8": "unmask:int8",
    "ort_int8": "ort:int8", "openvino": "openvino:bf16",
}  # fmt: skip
SLOW = {"pipeline": 4}  # takes so many times fewer sentences a turn


def masked(tokenizer, texts: list[str], number: int) -> list[str]:
    """Return sentences with one word masked, in a fixed random order, none longer than 128 tokens."""
    rng, chosen = np.random.default_rng(0), []
    for place in rng.permutation(len(texts)).tolist():
        words = texts[place].split()
        if len(words) < 4:
            continue
        words[int(rng.integers(len(words)))] = tokenizer.mask_token
        text = " ".join(words)
        if len(tokenizer(text)["input_ids"]) <= 128:
            chosen.append(text)
        if len(chosen) == number:
            break
    return chosen


def same_top_1(found: list[list[int]], reference: list[list[int]]) -> float:
    """Return the share of sentences with the same first candidate."""
    return round(statistics.mean(one[0] == other[0] for one, other in zip(found, reference, strict=False)), 4)


def fill(shape: str, model: Path, sentences: Path, lengths: list[int], args: argparse.Namespace) -> dict:
    """Run the sides on the sentences in turn; return rates, ratios, agreement and the share of the matrix rate."""
    from unmask import load_model, load_tokenizer
    from unmask.export.onnx import export_model
    from unmask.model.flops import flops_per_token

    tokenizer = load_tokenizer(model)
    plain = load_model(model, tokenizer=tokenizer)
    export_model(plain, tokenizer, f"{model}-int8", int8=True)
    sizes = np.array(lengths, float)
    flops = float(flops_per_token(plain, float((sizes**2).sum() / sizes.sum()), len(sizes) / sizes.sum(), training=False)) * sizes.mean()
    del plain
    there = [name for name in SIDES if name != "openvino" or importlib.util.find_spec("openvino")]
    sides, rounds, found = {}, [], {}
    number = {name: args.sentences // SLOW.get(name, 1) for name in there}
    try:
        for name in there:
            sides[name] = Side(name, "fill_worker.py", SIDES[name], str(model), str(sentences))
            sides[name].ask(f"fill {min(64, args.sentences)}")
        for turn in range(args.rounds):
            row = {"matmul": matmul_rate(0.5)}
            for name, side in sides.items():
                answer = side.ask(f"fill {number[name]}")
                row[name], found[name] = number[name] / answer["seconds"], answer["found"]
            rounds.append(row)
            print(f"{shape}, round {turn + 1}: " + ", ".join(f"{k} {v:,.4g}" for k, v in row.items()), file=sys.stderr)
    finally:
        for side in sides.values():
            side.stop()

    def median(over: str, under: str) -> float:
        return round(statistics.median(row[over] / row[under] for row in rounds), 2)

    end = "" if shape == "base" else f"_{shape}"
    result = {
        f"ratio{end}_pipeline": median("bf16", "pipeline"),
        f"ratio{end}_pipeline_bf16": median("bf16", "pipeline_bf16"),
        f"ratio{end}_int8": median("int8", "pipeline"),
        f"ratio{end}_ort_int8": median("int8", "ort_int8"),
    }
    if "openvino" in sides:
        result[f"ratio{end}_openvino"] = median("bf16", "openvino")
    return result | {
        shape: {
            "sentences_per_second": {name: round(statistics.median(row[name] for row in rounds), 1) for name in sides},
            "same_top_1_as_fp32": {name: same_top_1(found[name], found["fp32"]) for name in sides if name != "fp32"},
            "matmul_share": round(statistics.median(flops * row["bf16"] / row["matmul"] for row in rounds), 3),
            "rounds": rounds,
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt of 30,522 pieces; without it one is trained on the data")
    parser.add_argument("--shapes", default="base,mini")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = environment(args.data)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = load_tokenizer(args.vocab, args.data, work / "tokenizer")
        sentences = masked(tokenizer, texts_of(args.data, "sentences", 4 * 10**6), args.sentences)
        lengths = [len(tokenizer(text)["input_ids"]) for text in sentences]
        result |= {"sentences": len(sentences), "mean_tokens": round(statistics.mean(lengths), 1), "longest_tokens": max(lengths)}
        file = work / "sentences.json"
        file.write_text(json.dumps(sentences), encoding="utf-8")
        for shape in args.shapes.split(","):
            result |= fill(shape, make_model(shape, tokenizer, work / shape), file, lengths, args)
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
