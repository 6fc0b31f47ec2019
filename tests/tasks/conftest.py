"""Labelled texts that a tiny model can learn: the place in a sentence gives its label."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.train.loop import TrainState, accumulate

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


@pytest.fixture
def check_cuts(tmp_path):
    """A check that how a step is cut changes nothing.

    It takes make(micro_tokens, folder) -> objective, and the (micro_tokens, halvings) of each cut.
    """

    def check(make, cuts, *, least=2):
        found = {}
        for micro_tokens, halvings in cuts:
            folder = tmp_path / f"{micro_tokens}-{halvings}"
            folder.mkdir()
            objective = make(micro_tokens, folder)
            objective.model.eval()  # without dropout
            batches = objective.loader.batch(0)
            assert len(batches) == 1 if micro_tokens == 4096 else len(batches) >= least
            state = TrainState(objective.model, [], halvings=halvings)
            loss = accumulate(state, batches, objective.loss_sum, sum(map(objective.count, batches)))
            found[micro_tokens, halvings] = loss, [p.grad.to_dense() for p in objective.model.parameters() if p.grad is not None]
        (loss, gradients), *others = found.values()
        assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-3
        for other, theirs in others:
            torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
            for one, two in zip(gradients, theirs, strict=True):
                torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)

    return check
