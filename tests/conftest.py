"""What tests of several folders need: no network, text made on the spot, a BERT small enough for any machine."""

from __future__ import annotations

import os
from pathlib import Path

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
