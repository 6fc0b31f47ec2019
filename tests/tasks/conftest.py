"""Labelled texts that a tiny model can learn: the place in a sentence gives its label."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

KINDS = {"health": ["hospital", "doctor", "nurse"], "law": ["court", "judge", "lawyer"], "sea": ["harbour", "sailor", "tower"]}


def make_labelled(number: int, seed: int = 0) -> list[dict]:
    generator = np.random.default_rng(seed)
    rows = []
    for place in range(number):
        label = list(KINDS)[int(generator.integers(len(KINDS)))]
        words = [KINDS[label][int(generator.integers(3))] for _ in range(2)]
        rows.append({"text": f"The {words[0]} meets the student in the {words[1]} number {place} .", "label": label})
    return rows


def make_csv(path: Path, rows: list[dict]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def labelled_file(tmp_path_factory) -> Path:
    """A CSV file of 160 texts with three labels."""
    return make_csv(tmp_path_factory.mktemp("labelled") / "texts.csv", make_labelled(160))


@pytest.fixture(scope="session")
def labelled():
    """Return a function: number, seed -> rows of texts with the label that their words give."""
    return make_labelled


@pytest.fixture(scope="session")
def write_csv():
    """Return a function: path, rows -> the path, written."""
    return make_csv


@pytest.fixture(scope="session")
def write_jsonl():
    """Return a function: path, rows -> the path, written."""
    return make_jsonl
