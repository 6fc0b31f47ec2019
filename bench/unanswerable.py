"""Questions without an answer to train on, where SQuAD 2.0's training part cannot be had: half of the articles of its dev part.

    python bench/unanswerable.py --train train-v1.1.json --dev dev-v2.0.json -o OUT [--answered 12000]

Writes OUT/train.json (every second article of the dev part, with so many questions of 1.1's training part, drawn with a fixed seed) and
OUT/dev.json (the other articles, which no question of the first is about), in SQuAD's format, and what they hold. Prints also what
answering nothing at all would get on OUT/dev.json: the baseline.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from unmask.data.files import decode


def read(path: str) -> list[dict[str, Any]]:
    """Return the articles of a file."""
    return json.loads("".join(decode(path)))["data"]


def drawn(articles: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return the articles with `number` of their questions, the same ones every time."""
    count = sum(len(paragraph["qas"]) for article in articles for paragraph in article["paragraphs"])
    kept = np.zeros(count, dtype=bool)
    kept[np.random.default_rng(0).permutation(count)[:number]] = True
    turns = iter(kept.tolist())
    paragraphs = ((article["title"], one) for article in articles for one in article["paragraphs"])
    found = [(title, {**one, "qas": [asked for asked in one["qas"] if next(turns)]}) for title, one in paragraphs]
    return [{"title": title, "paragraphs": [one]} for title, one in found if one["qas"]]


def count(articles: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many questions there are, and how many of them have no answer."""
    asked = [asked for article in articles for paragraph in article["paragraphs"] for asked in paragraph["qas"]]
    return len(asked), sum(bool(one.get("is_impossible")) for one in asked)


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="SQuAD 1.1's training part")
    parser.add_argument("--dev", required=True, help="SQuAD 2.0's dev part")
    parser.add_argument("--answered", type=int, default=12000, help="questions of the first that are taken")
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()
    articles, folder = read(options.dev), Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": articles[0::2] + drawn(read(options.train), options.answered), "dev": articles[1::2]}
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps({"version": "v2.0", "data": part}), encoding="utf-8")
        asked, none = count(part)
        said = ": what answering nothing gets, exact match and F1" if name == "dev" else ""
        print(f"{name}: {asked:,} questions, {none:,} of them without an answer ({none / asked:.1%}{said})")


if __name__ == "__main__":
    main()
