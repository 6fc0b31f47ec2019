"""What tests of several folders need: no network, text made on the spot, a BERT small enough for any machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
# a machine that judges tries the same cases every time; a person's tries new ones
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

SUBJECTS = ["nurse", "doctor", "patient", "surgeon", "judge", "lawyer", "witness", "teacher", "student", "engineer", "farmer", "sailor"]
VERBS = ["watches", "treats", "calls", "helps", "follows", "meets", "finds", "pays", "asks", "warns", "thanks", "trusts"]
PLACES = ["hospital", "court", "school", "harbour", "market", "station", "garden", "library", "kitchen", "office", "village", "tower"]
TIMES = ["today", "tomorrow", "often", "never", "again", "early", "late", "twice", "slowly", "quickly"]


def sentences(number: int, seed: int = 0) -> list[str]:
    """Return documents of some short sentences, all different, with a vocabulary of fifty words."""
    generator = np.random.default_rng(seed)

    def pick(words: list[str]) -> str:
        return words[int(generator.integers(len(words)))]

    def sentence() -> str:
        return f"The {pick(SUBJECTS)} {pick(VERBS)} the {pick(SUBJECTS)} in the {pick(PLACES)} {pick(TIMES)}."

    return [" ".join(sentence() for _ in range(int(generator.integers(2, 6)))) for _ in range(number)]


@pytest.fixture(scope="session")
def sentences_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 300 documents, one a line."""
    path = tmp_path_factory.mktemp("sentences") / "texts.txt"
    path.write_text("\n".join(sentences(300)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of bert-base-uncased, two layers of 32 wide: config.json, model.safetensors and a WordPiece tokenizer."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from unmask.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tokenizer = train_tokenizer(sentences(200), kind="wordpiece", vocab_size=300)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_questions(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return questions where and when something happens, as rows of SQuAD 2.0: the context of every fourth does not say."""
    generator = np.random.default_rng(seed)

    def pick(words: list[str]) -> str:
        return words[int(generator.integers(len(words)))]

    rows = []
    for place in range(number):
        said = {"Where": pick(PLACES), "When": pick(TIMES)}
        asked = list(said)[int(generator.integers(2))]
        silent = {asked} if generator.random() < 0.25 else set()
        parts = {"Where": f" in the {said['Where']}", "When": f" {said['When']}"}
        event = (
            f"The {pick(SUBJECTS)} helps the {pick(SUBJECTS)}" + "".join(part for name, part in parts.items() if name not in silent) + "."
        )
        others = [f"The {pick(SUBJECTS)} {pick(VERBS)} the {pick(SUBJECTS)}." for _ in range(int(generator.integers(6)))]
        others.insert(int(generator.integers(len(others) + 1)), event)
        context = " ".join(others)
        answers = {"text": [], "answer_start": []} if silent else {"text": [said[asked]], "answer_start": [context.index(said[asked])]}
        rows.append({"id": f"q{place}", "question": f"{asked} is the help?", "context": context, "answers": answers})
    return rows


@pytest.fixture(scope="session")
def questions():
    """Return a function: number, seed -> rows of questions."""
    return make_questions


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 320 questions, a quarter of them without an answer."""
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_questions(320)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def answering(tiny_bert: Path, questions_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of a tiny model that has learnt to answer these questions."""
    import unmask

    return unmask.finetune(
        "qa", tiny_bert, questions_file, output=tmp_path_factory.mktemp("answering") / "run", max_steps=120, batch_size=16, max_length=48,
        learning_rate=1e-2, hide_prob=0.0, device="cpu", precision="fp32", dev_share=0.25,  # 50 or more, for a threshold
    )  # fmt: skip
