"""Which tokens may stand at a mask: all but the special ones, whole words, words of a list, the rest of a word."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..errors import TaskError
from ..infer.arrays import is_numpy
from .masked_text import MaskedText, MaskedTexts

Kind = Literal["ordinary", "no_subwords", "whole_words", "rest", "vocabulary"]
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_REST = re.compile(r"[^\W_]+")


class Allowed:
    """Sets of tokens by number, made once and used as labels of requests; `masked` keeps what a row's set allows of its logits."""

    def __init__(self, texts: MaskedTexts) -> None:
        self.texts = texts
        self.size = len(texts.tokenizer)  # a model may have more rows, to round their number up
        self.sets: list[np.ndarray] = []
        self._numbers: dict[Any, int] = {}
        self._tables: tuple[np.ndarray, np.ndarray] | None = None
        self._arrays: dict[Any, Any] = {}
        self._lock = threading.Lock()
        ordinary = np.ones(self.size, dtype=bool)
        ordinary[[number for number in texts.specials.all if number < self.size]] = False
        self._add("ordinary", ordinary)
        first = texts.tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
        self._starts_bare = bool(first) and texts.surfaces.text(first[0])[1]  # whether a text's first word has no space put before it

    def number(self, kind: Kind, item: MaskedText, mask: int) -> int:
        """Return the number of the set of tokens of a kind that may stand at a mask of a text."""
        if kind == "ordinary":
            return 0
        before = item.before(mask)
        # a vocabulary that keeps the space with the word has other tokens for words where there is no space
        bare = self.texts.surfaces.marks_spaces and (not before[-1].isspace() if before else self._starts_bare)
        if (kind, bare) not in self._numbers:
            self._add((kind, bare), self._make(kind, bare))
        return self._numbers[kind, bare]

    def words(self, words: Sequence[str], item: MaskedText, mask: int) -> tuple[int, list[str]]:
        """Return the set of those words that are one token at a mask, and the words that are several."""
        before = item.before(mask)
        tail = before[-1:]
        key = ("words", tuple(words), tail)
        if key not in self._numbers:
            # what stands before decides whether a space belongs to the token; one letter of it is enough to tell
            encode = self.texts.tokenizer.backend_tokenizer.encode_batch
            lead = "" if not tail else f"a{tail}" if tail.isspace() else tail
            whole = [one.ids for one in encode([f"{lead}{word.strip()}" for word in words], add_special_tokens=False)]
            skip = len(encode([lead.rstrip() if tail.isspace() else lead], add_special_tokens=False)[0].ids) if lead else 0
            pieces = [ids[skip:] for ids in whole]
            allowed = np.zeros(self.size, dtype=bool)
            allowed[[ids[0] for ids in pieces if len(ids) == 1]] = True
            unknown = [word for word, ids in zip(words, pieces, strict=True) if not ids or self.texts.specials.unk in ids]
            if unknown:
                raise TaskError(f"the vocabulary holds {unknown[0]!r}, which the tokenizer does not know; leave it out")
            self._add(key, allowed & self.sets[0])
            self._numbers["long", key] = [word for word, ids in zip(words, pieces, strict=True) if len(ids) > 1]  # type: ignore[assignment]
        return self._numbers[key], self._numbers["long", key]  # type: ignore[return-value]

    def masked(self, logits: Any, labels: Any) -> Any:
        """Return logits with all that a row's set does not allow at minus infinity."""
        used = np.unique(labels if is_numpy(labels) else labels.cpu().numpy())
        if len(used) == 1:
            return logits + self._penalty(int(used[0]), logits)
        made = logits.copy() if is_numpy(logits) else logits.clone()
        for number in used.tolist():
            made[labels == number] += self._penalty(number, logits)
        return made

    def _add(self, key: Any, allowed: np.ndarray) -> None:
        with self._lock:
            if key not in self._numbers:
                self.sets.append(allowed)
                self._numbers[key] = len(self.sets) - 1

    def _penalty(self, number: int, logits: Any) -> Any:
        width = logits.shape[1]
        key = (number, width, is_numpy(logits))
        if key not in self._arrays:
            row = np.full(width, -np.inf, dtype=np.float32)
            row[: self.size][self.sets[number][:width]] = 0
            if not is_numpy(logits):
                import torch

                self._arrays[key] = torch.from_numpy(row).to(logits.device)
            else:
                self._arrays[key] = row
        return self._arrays[key]

    def _make(self, kind: Kind, bare: bool) -> np.ndarray:
        texts, joined = self._tokens()
        ordinary = self.sets[0]
        begins = joined if bare else ~joined
        if kind == "no_subwords":
            return ordinary & (begins | ~_matches(_REST, texts))  # punctuation follows its word without a space
        if kind == "rest":
            return ordinary & joined & _matches(_REST, texts)
        return ordinary & begins & _matches(_WORD, texts)

    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        if self._tables is None:
            pairs = [self.texts.surfaces.text(number) for number in range(self.size)]
            self._tables = np.array([text for text, _ in pairs], dtype=object), np.array([joined for _, joined in pairs])
        return self._tables


def _matches(pattern: re.Pattern[str], texts: np.ndarray) -> np.ndarray:
    return np.array([pattern.fullmatch(text) is not None for text in texts])
