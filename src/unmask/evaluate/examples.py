"""Sentences with a mask, taken from held-out text: chosen by a hash, never by how well a model fills them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.text import read
from ..rng import rng

if TYPE_CHECKING:
    from ..tasks.fill import Filler

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_PLAIN = re.compile(r"[A-Z][A-Za-z ,'-]*\.")
_WORD = re.compile(r"[A-Za-z]{2,}")


def sentences(texts: Iterable[tuple[str, str]], *, min_words: int = 5, max_words: int = 16) -> Iterator[tuple[str, str]]:
    """Yield (document id, sentence) for the plain prose sentences of documents: words and commas, a capital first, a full stop last."""
    for name, text in texts:
        for sentence in _SENTENCE.split(text):
            if min_words <= len(sentence.split()) <= max_words and _PLAIN.fullmatch(sentence):
                yield name, sentence


def masked_sentences(heldout: Path, *tokenizers: Any, count: int = 12, seed: int = 0) -> list[dict[str, str]]:
    """Return sentences of a heldout.jsonl with one word replaced by [MASK], and that word, which is one token of each tokenizer.

    The sentences with the smallest keys are taken, no two beginning alike; the word is drawn by the same key.
    """
    drawn: list[tuple[float, str, dict[str, str]]] = []
    for name, sentence in sentences(_texts(heldout)):
        words = [match for match in _WORD.finditer(sentence) if all(_is_one_token(match[0], tokenizer) for tokenizer in tokenizers)]
        if not words:
            continue
        random = rng(seed, "example", name, sentence)
        key, word = float(random.random()), words[int(random.integers(len(words)))]
        text = f"{sentence[: word.start()]}[MASK]{sentence[word.end() :]}"
        drawn.append((key, sentence, {"text": text, "answer": word[0], "document": name}))
    chosen: list[dict[str, str]] = []
    beginnings: set[str] = set()
    for _, sentence, item in sorted(drawn, key=lambda entry: entry[:2]):
        beginning = " ".join(sentence.lower().split()[:2])
        if beginning not in beginnings:
            beginnings.add(beginning)
            chosen.append(item)
        if len(chosen) == count:
            break
    return chosen


def fill_examples(filler: Filler, items: list[dict[str, str]], *, top_k: int = 5) -> list[dict[str, Any]]:
    """Return the items with what the model puts there, of whole words as the answers are: `candidates` of token and score."""
    filled = filler.fill([item["text"] for item in items], top_k=top_k, whole_words=True)
    return [
        {**item, "candidates": [{"token": candidate.token, "score": candidate.score} for candidate in (result[0] if len(result) else ())]}
        for item, result in zip(items, filled, strict=True)
    ]


def filled_by(heldout: Path, models: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return masked held-out sentences with what each model puts there, `candidates` or whatever else it is called."""
    from ..tasks.fill import Filler

    fillers = {name: Filler.load(path, device="cpu") for name, path in models.items()}
    made: list[dict[str, Any]] = [dict(item) for item in masked_sentences(heldout, *(filler.tokenizer for filler in fillers.values()))]
    for name, filler in fillers.items():
        for item, answer in zip(made, fill_examples(filler, made), strict=True):
            item[name] = answer["candidates"]
    return made


def _texts(heldout: Path) -> Iterator[tuple[str, str]]:
    return ((document.id, document.text) for document in read(heldout, id_column="id"))


def _is_one_token(word: str, tokenizer: Any) -> bool:
    pieces = tokenizer.backend_tokenizer.encode(f" {word}", add_special_tokens=False).tokens  # an exported model's has no more
    return len(pieces) == 1 and pieces[0] != tokenizer.unk_token
