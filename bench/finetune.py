"""Fine-tuning speed of Unmask beside the stock Trainer, in one run, in turn, on the same labelled texts.

    python bench/finetune.py [--data FILES] [--vocab VOCAB.txt] [--shapes base,mini] [--rounds 5] [--seconds 6] [--json OUT.json]

`default` is what the example scripts leave: every text padded to 128 tokens, fp32. `tuned` is what the documentation allows: bf16, batches
of texts of like length padded to the longest, fused AdamW. Batches are of 32 texts of natural length on all sides, with the model's own
dropout, AdamW and a linear schedule. The sides are processes that take turns; the median over rounds of the ratios of examples a second is
reported (`ratio_default_TASK`, `ratio_tuned_TASK`: the first shape's). Needs `pip install 'unmask[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from score import make_model
from train import Side, environment, load_tokenizer, texts_of

MAX_LENGTH = 128
TEXTS = 4000


def classify(texts: list[str], path: Path) -> None:
    """Write texts with one of two labels; which of them changes nothing about the speed."""
    rows = ({"text": text, "label": ["no", "yes"][number % 2]} for number, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


WRITERS: dict[str, Callable[[list[str], Path], None]] = {"classify": classify}  # task -> what makes labelled data of texts


def sentences(tokenizer, data: list[str]) -> list[str]:
    """Return sentences that are no longer than the window, so that no side has anything to cut."""
    texts = [" ".join(text.split()) for text in texts_of(data, "sentences", 4_000_000)]
    lengths = [len(encoding.ids) for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
    kept = [text for text, length in zip(texts, lengths, strict=True) if 4 <= length <= MAX_LENGTH - 2]
    return [kept[place] for place in np.random.default_rng(0).permutation(len(kept))[:TEXTS]]


def measure(task: str, shape: str, model: Path, data: Path, args: argparse.Namespace, work: Path) -> dict:
    """Run the three sides in turn; return rates and ratios."""
    names = ("unmask", "default", "tuned")
    sides = {name: Side(name, "finetune_worker.py", task, name, str(model), str(data), str(work)) for name in names}
    rounds = []
    try:
        for side in sides.values():
            side.ask(str(args.seconds))
        for number in range(args.rounds):
            answers = {name: side.ask(str(args.seconds)) for name, side in sides.items()}
            rounds.append({name: answer["examples"] / answer["seconds"] for name, answer in answers.items()})
            print(f"  {shape} round {number + 1}: " + ", ".join(f"{k} {v:,.1f}" for k, v in rounds[-1].items()), file=sys.stderr)
    finally:
        for side in sides.values():
            side.stop()
    found = {f"{name}_examples_per_second": round(statistics.median(row[name] for row in rounds), 1) for name in sides}
    return {**found, **{f"ratio_{name}": round(statistics.median(row["unmask"] / row[name] for row in rounds), 2)
                        for name in ("default", "tuned")}, "rounds": rounds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt; without it a vocabulary of 30,522 pieces is trained on the data")
    parser.add_argument("--tasks", default=",".join(WRITERS))
    parser.add_argument("--shapes", default="base,mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = load_tokenizer(args.vocab, args.data, work / "tokenizer")
        texts = sentences(tokenizer, args.data)
        result = environment(args.data)
        for task in args.tasks.split(","):
            WRITERS[task](texts, work / f"{task}.jsonl")
            for shape in args.shapes.split(","):
                model = make_model(shape, tokenizer, work / shape)
                found = measure(task, shape, model, work / f"{task}.jsonl", args, work)
                result.setdefault(task, {})[shape] = found
                for name in ("default", "tuned"):
                    result.setdefault(f"ratio_{name}_{task}", found[f"ratio_{name}"])
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
