"""Prediction speed of Unmask beside the stock pipelines, in one run, in turn, on the same texts, with the same answers.

    python bench/predict.py [--data FILES] [--vocab VOCAB.txt] [--shapes base,mini] [--texts 256] [--rounds 3] [--json OUT.json]

`default` is the pipeline as it comes: one text at a time, fp32. `tuned` is the pipeline in bf16 with batches of 32. Questions have no
pipeline any more: there `default` is what run_qa.py does (batches of 8, padded to 384 tokens), `tuned` bf16 in batches of 32, padded to the
longest. Unmask predicts in
fp32 against the first and in bf16 against the second where this machine multiplies faster in it. The sides are processes that take turns;
the median over rounds of the ratios of texts a second is reported (`ratio_default_TASK`, `ratio_tuned_TASK`: the first shape's), beside how
far the answers of the fp32 sides are apart. Models have random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

import questions
from finetune import sentences
from score import make_model
from train import Side, environment, load_tokenizer

TASKS = ("classify", "ner", "qa")
# ratio -> whose texts a second are divided by whose
PAIRS = {"default": ("unmask", "default"), "tuned": ("unmask_auto", "tuned"), "default_auto": ("unmask_auto", "default")}


def measure(task: str, model: Path, data: Path, args: argparse.Namespace) -> dict:
    """Run the sides in turn; return rates, ratios, and how far the answers are apart."""
    names = ("unmask", "default", "unmask_auto", "tuned")
    sides = {name: Side(name, "predict_worker.py", task, name, str(model), str(data)) for name in names}
    rounds, answers = [], {}
    try:
        for number in range(args.rounds + 1):  # the first one warms up
            answers = {name: side.ask("all") for name, side in sides.items()}
            if number:
                rounds.append({name: answer["texts"] / answer["seconds"] for name, answer in answers.items()})
                print(f"  round {number}: " + ", ".join(f"{k} {v:,.1f}" for k, v in rounds[-1].items()), file=sys.stderr)
    finally:
        for side in sides.values():
            side.stop()
    apart = float(np.abs(np.array(answers["unmask"]["scores"]) - np.array(answers["default"]["scores"])).max())
    found = {f"{name}_texts_per_second": round(statistics.median(row[name] for row in rounds), 1) for name in sides}
    ratios = {f"ratio_{name}": round(statistics.median(row[own] / row[peer] for row in rounds), 2) for name, (own, peer) in PAIRS.items()}
    labels = {name: np.array(answer["labels"]) for name, answer in answers.items()}
    shares = {f"same_labels{end}": float((labels[f"unmask{end}"] == labels["default"]).mean()) for end in ("", "_auto")}
    return {**found, **ratios, "largest_score_difference": apart, **shares, "rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt; without it a vocabulary of 30,522 pieces is trained on the data")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--shapes", default="base,mini")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = load_tokenizer(args.vocab, args.data, work / "tokenizer")
        texts = sentences(tokenizer, args.data)
        questions.write(texts, work / "questions.jsonl")
        for name in ("classify", "ner"):
            (work / f"{name}.json").write_text(json.dumps(texts[: args.texts]))
        (work / "qa.json").write_text(json.dumps(questions.read(work / "questions.jsonl")[: args.texts]))
        result = environment(args.data)
        for shape in args.shapes.split(","):
            model = make_model(shape, tokenizer, work / shape)
            for task in args.tasks.split(","):
                found = measure(task, model, work / f"{task}.json", args)
                result.setdefault(task, {})[shape] = found
                for name in PAIRS:
                    result.setdefault(f"ratio_{name}_{task}", found[f"ratio_{name}"])
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
