"""Pseudo-log-likelihoods equal a plain loop over a stock model, whatever the method, the order, the budget and the length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unmask.data.tokenizer import load_tokenizer, train_tokenizer
from unmask.errors import TaskError
from unmask.evaluate.pll import Scored, Scorer, Totals, perplexity, score
from unmask.model.load import load_model

from ..conftest import sentences

LIMIT = 64
TEXTS = [text[:100] for text in sentences(5, seed=3)] + ["Unbelievable surgeons antidisestablish the harbourmaster.", "nurse"]
FAMILIES = ["bert", "roberta", "modernbert"]


def folder_of(family, path):
    """A two-layer model with weights large enough to tell tokens and places apart, and a tokenizer of its kind."""
    from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, RobertaConfig

    kind = "wordpiece" if family == "bert" else "bpe"
    tokenizer = train_tokenizer(sentences(200), kind=kind, vocab_size=300)
    dials = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    pad = {"pad_token_id": tokenizer.pad_token_id}
    config = {
        "bert": lambda: BertConfig(**dials, **pad, max_position_embeddings=LIMIT),
        "roberta": lambda: RobertaConfig(**dials, **pad, max_position_embeddings=LIMIT + 1 + tokenizer.pad_token_id),
        "modernbert": lambda: ModernBertConfig(**dials, **ends, **pad, max_position_embeddings=LIMIT, local_attention=8),
    }[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            folder_of(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="module")
def bert(folders):
    return Scorer.load(folders("bert"))


def plain_loop(folder, text, method):
    """One masked copy at a time through a stock model, words as the tokenizer's own pre-tokenizer cuts them."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoded = tokenizer(text, return_tensors="pt")
    ids, words = encoded["input_ids"], encoded.word_ids()
    values = []
    for place, word in enumerate(words):
        if word is None:
            continue
        masked = ids.clone()
        for other in range(place, len(words)):
            if other == place or (method == "word_l2r" and words[other] == word):
                masked[0, other] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=masked, attention_mask=torch.ones_like(masked)).logits
        values.append(float(logits[0, place].log_softmax(-1)[ids[0, place]]))
    return values


@pytest.mark.parametrize("method", ["original", "word_l2r"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_loop(folders, family, method):
    scored = score(folders(family), TEXTS, method)
    for text, one in zip(TEXTS, scored, strict=True):
        expected = plain_loop(folders(family), text, method)
        np.testing.assert_allclose(one.log_probs, expected, atol=1e-4)
        assert one.total == pytest.approx(sum(expected), abs=1e-4) and one.error is None
        assert one.num_tokens == len(one.tokens) == len(expected) and one.windows == 1
