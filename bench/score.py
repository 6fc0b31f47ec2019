"""Scoring and evaluation speed of Unmask beside minicons and the stock Trainer, in one run, in turn, on the same texts.

    python bench/score.py [--data FILES] [--vocab VOCAB.txt] [--shapes base,mini] [--sentences 20] [--rounds 3] [--json OUT.json]

Pseudo-log-likelihoods (one token masked at a time) of sentences of 20 tokens in the mean, by a BERT of base shape and one of 4 x 256, both
with 30,522 words and random weights. minicons gets all sentences in one call, as its documentation shows it (`ratio_*`), and one sentence a
call, which is its fastest way because it pads (`ratio_*_single`). `ratio_evaluate`: 1,000 documents, `Trainer.evaluate()` with
its batches of 8 against `unmask.evaluate` with all of its metrics. The sides are processes that take turns; medians over rounds of the
ratios. Needs `pip install 'unmask[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from train import Side, environment, load_tokenizer, matmul_rate, texts_of

MEAN, DOCUMENTS = 20, 1000
LONG = 4, 16  # sentences joined to one text, to see that memory does not grow
SHAPES = {
    "base": {},
    "mini": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
}


def sentences_of(tokenizer, texts: list[str], number: int) -> list[str]:
    """Return sentences of 5 to 45 tokens, 20 in the mean, in a fixed random order."""
    chosen, total = [], 0
    for place in np.random.default_rng(0).permutation(len(texts)).tolist():
        text = " ".join(texts[place].split())
        size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        if 5 <= size <= 45 and (size <= MEAN) == (total >= MEAN * len(chosen)):
            chosen.append(text)
            total += size
        if len(chosen) == number:
            break
    return chosen


def make_model(shape: str, tokenizer, folder: Path) -> Path:
    """Save a BERT of a shape with random weights, and return its folder."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30_522, pad_token_id=tokenizer.pad_token_id, **SHAPES[shape])
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def apart(one: list[list[float]], other: list[list[float]]) -> float:
    """Return the largest difference of a token's score."""
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


def score(shape: str, model: Path, files: list[str], args: argparse.Namespace) -> dict:
    """Run the sides on the sentences in turn; return times, ratios, how far the scores are apart, and memory."""
    names = {"minicons": f"minicons:{args.sentences}", "minicons_single": "minicons:1", "fp32": "unmask:fp32", "bf16": "unmask:bf16"}
    sides = {name: Side(side, "score_worker.py", side, str(model), *files) for name, side in names.items()}
    rounds, memory = [], {}
    try:
        warm = {name: side.ask(f"score {min(2, args.sentences)}") for name, side in sides.items()}
        assert warm
        for number in range(args.rounds):
            answers = {name: side.ask(f"score {args.sentences}") for name, side in sides.items()}
            rounds.append({name: answer["seconds"] for name, answer in answers.items()})
            memory = memory or {f"{name}_peak_bytes": answer["peak_bytes"] for name, answer in answers.items()}
            print(f"{shape}, round {number + 1}: " + ", ".join(f"{k} {v:.2f} s" for k, v in rounds[-1].items()), file=sys.stderr)
        scores = {name: answer["scores"] for name, answer in answers.items()}
        grows = (
            {f"fp32_text_of_{n}_sentences_peak_bytes": sides["fp32"].ask(f"long {n}")["peak_bytes"] for n in LONG}
            if shape == "mini"
            else {}
        )
    finally:
        for side in sides.values():
            side.stop()

    def median(over: str, under: str) -> float:
        return round(statistics.median(row[over] / row[under] for row in rounds), 2)

    end = "" if shape == "base" else f"_{shape}"
    return {
        **{f"ratio{end}_{name}": median("minicons", name) for name in ("fp32", "bf16")},
        **{f"ratio{end}_{name}_single": median("minicons_single", name) for name in ("fp32", "bf16")},
        shape: {
            **{f"{name}_seconds": round(statistics.median(row[name] for row in rounds), 3) for name in sides},
            **{f"{name}_largest_difference": apart(scores[name], scores["minicons_single"]) for name in ("fp32", "bf16")},
            **memory,
            **grows,
            "rounds": rounds,
        },
    }


def evaluation(model: Path, files: list[str], args: argparse.Namespace) -> dict:
    """Run both evaluations of the documents in turn."""
    sides = {name: Side(name, "score_worker.py", f"{name}:fp32", str(model), *files) for name in ("trainer", "evaluate")}
    rounds = []
    try:
        for number in range(args.rounds):
            rounds.append({name: side.ask("score 1")["seconds"] for name, side in sides.items()})
            print(f"evaluation, round {number + 1}: " + ", ".join(f"{k} {v:.2f} s" for k, v in rounds[-1].items()), file=sys.stderr)
    finally:
        for side in sides.values():
            side.stop()
    ratio = statistics.median(row["trainer"] / row["evaluate"] for row in rounds)
    return {"ratio_evaluate": round(ratio, 2), "evaluation": {"documents": DOCUMENTS, "rounds": rounds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt of 30,522 pieces; without it one is trained on the data")
    parser.add_argument("--shapes", default="base,mini")
    parser.add_argument("--sentences", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-evaluation", dest="evaluation", action="store_false")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = environment(args.data) | {"bf16_matmul_flops_per_second": matmul_rate()}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = load_tokenizer(args.vocab, args.data, work / "tokenizer")
        sentences = sentences_of(tokenizer, texts_of(args.data, "sentences", 4 * 10**6), args.sentences)
        sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in sentences]
        result |= {"sentences": len(sentences), "mean_tokens": statistics.mean(sizes), "longest_tokens": max(sizes)}
        documents = [" ".join(text.split()) for text in texts_of(args.data, "paragraphs", 4 * 10**6)[:DOCUMENTS]]
        files = [str(work / "sentences.json"), str(work / "documents.txt")]
        Path(files[0]).write_text(json.dumps(sentences), encoding="utf-8")
        Path(files[1]).write_text("\n".join(documents) + "\n", encoding="utf-8")
        for shape in args.shapes.split(","):
            model = make_model(shape, tokenizer, work / shape)
            result |= score(shape, model, files, args)
            if shape == "mini" and args.evaluation:
                result |= evaluation(model, files, args)
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
