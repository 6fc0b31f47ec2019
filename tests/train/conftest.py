"""A tokenizer of two hundred words, a few hundred documents, and models of two layers of 32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import unmask

os.environ["HF_HUB_OFFLINE"] = "1"

FIRST, LAST = ["ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "ti", "vo"], ["n", "r", "st", "lo", "mi", "ka", "te"]
WORDS = [first + last for first in FIRST for last in LAST]


def make_texts(number: int = 240, seed: int = 3) -> list[str]:
    """Return documents in which every word all but decides the next one, so that a small model learns something soon."""
    generator = np.random.default_rng(seed)
    texts = []
    for index in range(number):
        word, words = int(generator.integers(len(WORDS))), []
        for _ in range(int(generator.integers(4, 40))):
            words.append(WORDS[word])
            word = (3 * word + 1 + int(generator.integers(2))) % len(WORDS)
        texts.append(f"{' '.join(words)} {WORDS[index % len(WORDS)]}")
    return texts


@pytest.fixture(scope="session")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(make_texts()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def store(tokenizer, tmp_path_factory):
    from unmask.data.store import StoreWriter, TokenStore
    from unmask.data.tokenizer import tokenizer_hash

    folder = tmp_path_factory.mktemp("store")
    texts = make_texts()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    with StoreWriter(folder, tokenizer_hash=tokenizer_hash(tokenizer), vocab_size=len(tokenizer)) as writer:
        writer.add(ids, [[True] * len(row) for row in ids], [f"corpus.txt:{n + 1}" for n in range(len(ids))], [len(text) for text in texts])
    return TokenStore.open(folder)


@pytest.fixture
def make_model(tokenizer):
    """Return a function: family, model fields -> a fresh model, the same every time."""

    def make(family: str = "modernbert", **fields):
        from unmask.model.load import ModelConfig, build_model

        fields = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48, **fields}
        return build_model(ModelConfig(preset="tiny", family=family, fields=fields), tokenizer, max_length=32, seed=1)

    return make


@pytest.fixture
def make_loader(store, tokenizer):
    """Return a function: micro_tokens, batch_tokens -> a loader over the store."""

    def make(micro_tokens: int = 256, batch_tokens: int = 256, **options):
        from unmask.data.loader import Loader
        from unmask.data.masking import MaskingConfig
        from unmask.data.tokenizer import special_ids

        return Loader(
            store, special_ids(tokenizer), MaskingConfig(), vocab_size=len(tokenizer), seed=0, max_length=32,
            micro_tokens=micro_tokens, batch_tokens=batch_tokens, **options,
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def corpus(text_file, tokenizer, tmp_path_factory):
    """A packed corpus, with a tenth held out."""
    folder = tmp_path_factory.mktemp("packed") / "corpus"
    unmask.pack(text_file, folder, tokenizer=tokenizer, held_out=0.1, dedup="none")
    return folder


@pytest.fixture(scope="session")
def together():
    """Return a function: (size, function, options), ... -> what was printed, and the exit code.

    They are run one after another in that many processes each, forks of one (worlds.py).
    """

    def run(*jobs) -> tuple[str, int]:
        text = json.dumps([{"size": size, "call": call, "options": options} for size, call, options in jobs], default=str)
        command = [sys.executable, Path(__file__).with_name("worlds.py"), text]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
        return done.stderr, done.returncode

    return run
