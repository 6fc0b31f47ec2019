"""Rows for words that were added to a model's vocabulary: embedding and output start as the mean of the pieces that the word had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.vocab_extension import Word
from ..errors import CheckpointError, TokenizerError
from .load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_rows(model: PreTrainedModel, words: Sequence[Word]) -> None:
    """Give a model an embedding and an output row for each word, tied where the model ties them; old rows stay as they are, to the bit.

    A new row is the mean of the rows of the word's pieces. A bias follows how often a token occurs: it is the mean of the pieces' biases
    plus the log of the word's count over the geometric mean of the pieces' counts, in the text that the words were found in.
    Raises: TokenizerError for words of a tokenizer that is not the model's; CheckpointError for a model whose head does not grow.
    """
    first, size = min(word.id for word in words), max(word.id for word in words) + 1
    embeddings: Any = model.get_input_embeddings()
    before = int(embeddings.weight.shape[0])
    if first > before:
        raise TokenizerError(
            f"the tokenizer has {first:,} tokens and the model has embeddings for {before:,}; use the tokenizer that the model was "
            "trained with"
        )
    with torch.random.fork_rng(devices=[]), quiet_transformers():  # the random rows that it makes are written over
        model.resize_token_embeddings(max(before, size), mean_resizing=False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    bias: Any = getattr(head, "bias", None)
    found: list[Any] = [embeddings.weight, getattr(head, "weight", None)]
    tables = {id(table): table for table in found if table is not None}  # one where they are tied
    for table in (*tables.values(), *(() if bias is None else (bias,))):
        if table.shape[0] < size:
            raise CheckpointError(
                f"{type(model).__name__} cannot be extended: its head keeps {table.shape[0]:,} rows where {size:,} are needed; "
                "adapt without --extend-vocab"
            )
    with torch.no_grad():
        for table in tables.values():
            for word in words:
                table[word.id] = table[list(word.piece_ids)].mean(0)
        if bias is not None:
            for word in words:
                rarer = np.log(word.count) - np.log(word.piece_counts).mean()
                bias[word.id] = bias[list(word.piece_ids)].mean() + float(rarer)
