"""Fine-tuning speed of Unmask beside the stock Trainer, in one run, in turn, on the same labelled texts.

    python bench/finetune.py [--data FILES] [--vocab VOCAB.txt] [--shapes base,mini] [--rounds 5] [--seconds 6] [--json OUT.json]
    python bench/finetune.py --quality MODEL --train FILE --test FILE [--seeds 3] [--epochs 2] [--json OUT.json]

`default` is what the example scripts leave: every text padded to 128 tokens (a question with its paragraph to 384; of named entities to
the longest of the batch), fp32. `tuned` is
what the documentation allows: bf16, batches of texts of like length padded to the longest, fused AdamW. Batches are of 32 texts of
natural length on all sides, with the model's own dropout, AdamW and a linear schedule. The sides are processes that take turns; the
median over rounds of the ratios of examples a second is reported (`ratio_default_TASK`, `ratio_tuned_TASK`: the first shape's). Needs
`pip install 'unmask[bench]'`.

`--quality` fine-tunes one checkpoint with both, from several seeds and with the same settings, on labelled texts, and measures what comes
out with one and the same evaluation: are they as good, or does the speed cost something?
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

import questions
from score import make_model
from train import Side, environment, load_tokenizer, texts_of

MAX_LENGTH = 128
TEXTS = 4000
TAGS = ("O", "B-X", "B-Y")


def classify(texts: list[str], path: Path) -> None:
    """Write texts with one of two labels; which of them changes nothing about the speed."""
    rows = ({"text": text, "label": ["no", "yes"][number % 2]} for number, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ner(texts: list[str], path: Path) -> None:
    """Write the words of texts with a tag each, one in ten an entity's; which of them changes nothing about the speed."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            words = text.split()
            tags = [TAGS[int(place)] for place in random.choice(len(TAGS), len(words), p=[0.9, 0.05, 0.05])]
            file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")


WRITERS: dict[str, Callable[[list[str], Path], None]] = {
    "classify": classify,
    "ner": ner,
    "qa": questions.write,
}  # task -> what makes labelled data of texts


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


def quality(args: argparse.Namespace, work: Path) -> dict:
    """Return the accuracy of both sides, seed by seed, and the 95% interval of the difference of their means (Welch's t)."""
    from scipy.stats import ttest_ind

    import unmask

    files = {"train": str(args.train.resolve()), "test": str(args.test.resolve())}
    settings = {"num_epochs": args.epochs, "learning_rate": args.learning_rate, "batch_size": 32, "max_length": MAX_LENGTH,
                "weight_decay": 0.01, "warmup_ratio": 0.1}  # fmt: skip
    found: dict[str, list[float]] = {"unmask": [], "trainer": []}
    for seed in range(args.seeds):
        for name, values in found.items():
            request = {**settings, **files, "seed": seed, "model": args.quality, "output": str(work / f"{name}-{seed}")}
            side = Side(name, "finetune_worker.py", "quality", name, json.dumps(request))
            folder = side.ask("go")["model"]
            side.stop()
            values.append(unmask.evaluate_task(folder, files["test"], resamples=0)["accuracy"])
            print(f"  seed {seed}: {name} {values[-1]:.4f}", file=sys.stderr)
    test = ttest_ind(found["unmask"], found["trainer"], equal_var=False)
    low, high = test.confidence_interval(0.95)
    means = {f"{name}_accuracy": round(statistics.mean(values), 4) for name, values in found.items()}
    return {**means, "difference": {"mean": round(means["unmask_accuracy"] - means["trainer_accuracy"], 4), "low": round(low, 4),
            "high": round(high, 4)}, "holds_zero": bool(low <= 0 <= high), "seeds": found, "settings": settings,
            "data": {name: Path(path).name for name, path in files.items()}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt; without it a vocabulary of 30,522 pieces is trained on the data")
    parser.add_argument("--tasks", default=",".join(WRITERS))
    parser.add_argument("--shapes", default="base,mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--quality", metavar="MODEL", help="fine-tune this checkpoint with both, and compare how good they are")
    parser.add_argument("--train", type=Path, help="labelled texts, for --quality")
    parser.add_argument("--test", type=Path, help="labelled texts to measure on, for --quality")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quality:
        with tempfile.TemporaryDirectory() as folder:
            report({**environment([]), "quality": quality(args, Path(folder))}, args.json)
        return
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
    report(result, args.json)


def report(result: dict, path: Path | None) -> None:
    """Print a result, and write it where that is asked for."""
    text = json.dumps(result, indent=1)
    if path:
        path.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
