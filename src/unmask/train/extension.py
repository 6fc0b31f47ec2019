"""A run whose model gets words of its domain: found once, when the run begins, and kept in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.vocab_extension import Extension, extend, propose
from ..errors import ConfigError
from .recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = "vocabulary.json"  # in the run's folder: the words, their pieces, their counts


def check(recipe: Recipe, is_packed: Callable[[str], bool]) -> None:
    """Raise ConfigError for words that cannot be added, as far as that can be seen at once."""
    number, sources = recipe.data.extend_vocab, recipe.data.sources
    if not number:
        return
    if recipe.base_model is None:
        raise ConfigError(
            f"data.extend_vocab = {number} adds words to an existing model; a model from scratch has the vocabulary that it is given: "
            "raise data.vocab_size, or name a base_model"
        )
    if "-" in sources:
        raise ConfigError(f"data.extend_vocab = {number}: standard input is read once, and finding words is a pass of its own: name files")
    packed = [source for source in sources if is_packed(source)]
    if packed:
        raise ConfigError(
            f"data.extend_vocab = {number}, but '{packed[0]}' is a packed corpus, made with the old vocabulary; name the text files"
        )


def extended_tokenizer(recipe: Recipe, folder: Path, tokenizer: Any, say: Callable[[str], None]) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the words of the run's text added; which they are is kept in the run's folder."""
    number = recipe.data.extend_vocab
    say(f"looking for {number:,} words of the domain that the tokenizer cuts into pieces")
    extension = propose(tokenizer, texts(recipe), number)
    result = extend(tokenizer, extension)
    extension.save(folder / VOCABULARY)
    few = "" if len(extension.words) == number else f" (of {number:,}: the text holds no more that are frequent enough)"
    top = ", ".join(f"{word.word} ({len(word.pieces)} pieces, {word.count:,} times)" for word in extension.words[:5])
    say(f"added {len(extension.words):,} words{few}, {extension.saved / extension.num_tokens:.1%} fewer tokens: {top}, ...")
    return result


def texts(recipe: Recipe) -> Iterator[str]:
    """Yield the texts of a run, cleaned, without those that are going to be held out: words are not found in what is measured on."""
    from ..data.clean import normalise, split_of
    from ..data.text import read

    data = recipe.data
    for document in read(list(data.sources), format=data.format, text_column=data.text_column, encoding=data.encoding):
        text = normalise(document.text)
        if text and split_of(text, data.held_out_share) == "train":
            yield text


def extended_model(folder: Path, model: PreTrainedModel) -> PreTrainedModel:
    """Return the base model with rows for the words of the run, as they are before training."""
    from ..model.vocab import add_rows

    add_rows(model, Extension.load(folder / VOCABULARY).words)
    return model
