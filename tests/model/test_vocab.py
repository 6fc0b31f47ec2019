"""Rows for added words: old ones stay, new ones are means, and the folder loads with nothing missing."""

import math

import pytest
import torch

from unmask.data.vocab_extension import Word
from unmask.errors import TokenizerError
from unmask.model.load import load_model, save_model
from unmask.model.vocab import add_rows

WORDS = [
    Word("file", "file", 96, ("f", "##ile"), (20, 30), 40, 9, (100, 50)),
    Word("object", "object", 97, ("ob", "##je", "##ct"), (21, 31, 41), 10, 5, (10, 1000, 10)),
]


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[2, 20, 30, 4, 41, 3]])).logits


def test_old_rows_stay_and_new_ones_are_the_mean_of_their_pieces(small_model, architecture, tmp_path):
    from transformers import AutoModelForMaskedLM

    model = small_model(architecture)
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    before = logits(model)
    tied = head.weight is model.get_input_embeddings().weight
    state = torch.random.get_rng_state()
    add_rows(model, WORDS)
    assert torch.equal(torch.random.get_rng_state(), state)  # dropout draws what it would have drawn

    after, head, table = logits(model), model.get_output_embeddings(), model.get_input_embeddings().weight
    assert after.shape[-1] == table.shape[0] == head.weight.shape[0] == model.config.vocab_size == 98
    assert torch.equal(after[..., :96], before)
    assert (head.weight is table) == tied
    for rows in (table, head.weight):
        for word in WORDS:
            torch.testing.assert_close(rows[word.id], rows[list(word.piece_ids)].mean(0))
    if head.bias is not None:
        shifts = [math.log(40 / math.sqrt(100 * 50)), math.log(10 / (10 * 1000 * 10) ** (1 / 3))]
        for word, shift in zip(WORDS, shifts, strict=True):
            torch.testing.assert_close(head.bias[word.id], head.bias[list(word.piece_ids)].mean() + shift)

    save_model(model, None, tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert torch.equal(logits(loaded.eval()), after)
    assert load_model(tmp_path).get_input_embeddings().weight.shape[0] == 98


def test_rows_that_were_to_spare_are_used(small_model):
    model = small_model("bert")
    model.resize_token_embeddings(128)
    add_rows(model, WORDS)
    table = model.get_input_embeddings().weight
    assert table.shape[0] == 128
    torch.testing.assert_close(table[97], table[[21, 31, 41]].mean(0))


def test_a_tokenizer_that_is_not_the_model_s_is_refused(small_model):
    model = small_model("bert")
    beyond = [Word("x", "x", 120, ("a", "##b"), (7, 8), 10, 3, (5, 5))]
    with pytest.raises(TokenizerError, match="the tokenizer has 120 tokens and the model has embeddings for 96"):
        add_rows(model, beyond)
