"""The numbers of a tagger: entities right in borders and type, as CoNLL counts them, and partly right ones; by weights of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from .classify_scores import per_label, ratio
from .ner_tags import Span

ERRORS = ("missed", "invented", "wrong type", "wrong border", "wrong type and border")
Pair = tuple[str, Span | None, Span | None]  # what is wrong, the right entity, the predicted one


def pair(gold: Sequence[Span], said: Sequence[Span]) -> list[Pair]:
    """Return every entity of the data or the prediction in one pair: "right", or one of ERRORS; the most overlap first."""
    right = set(gold) & set(said)
    found: list[Pair] = [("right", span, span) for span in sorted(right)]
    left, other = [span for span in gold if span not in right], [span for span in said if span not in right]
    touching = [
        (min(a[1], b[1]) - max(a[0], b[0]), a, b) for a in left for b in other if a[0] < b[1] and b[0] < a[1]
    ]  # fmt: skip
    rank = sorted(touching, key=lambda one: (one[1][:2] != one[2][:2], one[1][2] != one[2][2], -one[0], one[1:]))
    taken: set[tuple[int, Span]] = set()
    for _, a, b in rank:
        if (0, a) in taken or (1, b) in taken:
            continue
        taken |= {(0, a), (1, b)}
        what = "wrong type" if a[:2] == b[:2] else "wrong border" if a[2] == b[2] else "wrong type and border"
        found.append((what, a, b))
    found += [("missed", a, None) for a in left if (0, a) not in taken]
    return [*found, *(("invented", None, b) for b in other if (1, b) not in taken)]


class Entities:
    """Entities of texts beside those predicted; `words` are where words stand, for the share of words with the right tag."""

    def __init__(self, gold: Sequence[Sequence[Span]], said: Sequence[Sequence[Span]], words: Sequence[Sequence[tuple[int, int]]]) -> None:
        self.types = sorted({span[2] for spans in (*gold, *said) for span in spans})
        number = {kind: place for place, kind in enumerate(self.types)}
        self.pairs = [pair(a, b) for a, b in zip(gold, said, strict=True)]
        shape = (3, len(gold), len(self.types))
        self.table = np.zeros(shape)  # of each text and type: right, in the data, predicted
        self.kinds = np.zeros((len(gold), 1 + len(ERRORS)))  # of each text: right, and each error
        for place, pairs in enumerate(self.pairs):
            for what, a, b in pairs:
                self.kinds[place, 0 if what == "right" else 1 + ERRORS.index(what)] += 1
                if a is not None:
                    self.table[1, place, number[a[2]]] += 1
                if b is not None:
                    self.table[2, place, number[b[2]]] += 1
                if what == "right" and a is not None:
                    self.table[0, place, number[a[2]]] += 1
        self.words = np.array([len(one) for one in words], float)
        self.right_words = np.array([
            sum(x == y for x, y in zip(word_tags(w, a), word_tags(w, b), strict=True)) for w, a, b in zip(words, gold, said, strict=True)
        ], float)  # fmt: skip

    def of(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return each number for each row of weights, (R,)."""
        right, gold, said = (weights @ part for part in self.table)
        hits, n_gold, n_said = right.sum(1), gold.sum(1), said.sum(1)
        counted = weights @ self.kinds
        kind, border, both = counted[:, 3], counted[:, 4], counted[:, 5]
        f1 = ratio(2 * right, gold + said)
        return {
            "f1": ratio(2 * hits, n_gold + n_said),
            "precision": ratio(hits, n_said),
            "recall": ratio(hits, n_gold),
            "macro_f1": f1.sum(1) / max(1, len(self.types)),
            "partial_f1": ratio(2 * (hits + kind + 0.5 * (border + both)), n_gold + n_said),
            "exact_f1": ratio(2 * (hits + kind), n_gold + n_said),
            "type_f1": ratio(2 * (hits + border), n_gold + n_said),
            "token_accuracy": ratio(weights @ self.right_words, weights @ self.words),
        }

    def counts(self) -> dict[str, int]:
        """Return over how many entities, and words, the numbers are taken."""
        _, gold, said = self.table.sum((1, 2)).astype(int).tolist()
        names = ("f1", "recall", "macro_f1", "partial_f1", "exact_f1", "type_f1")
        return {**dict.fromkeys(names, gold), "precision": said, "token_accuracy": int(self.words.sum())}

    def details(self) -> dict[str, Any]:
        """Return the numbers of each type, the errors, and which types are taken for which."""
        right, gold, said = self.table.sum(1)
        confused = Counter((a[2], b[2]) for pairs in self.pairs for _, a, b in pairs if a is not None and b is not None and a[2] != b[2])
        return {
            "per_type": per_label(self.types, right, gold, said),
            "errors": dict(zip(("right", *ERRORS), self.kinds.sum(0).astype(int).tolist(), strict=True)),
            "confused": [{"right": a, "predicted": b, "count": count} for (a, b), count in confused.most_common(20)],
        }


def word_tags(words: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[str]:
    """Return a tag in BIO for each word that an entity touches."""
    tags, place = ["O"] * len(words), 0
    for start, stop, kind in sorted(spans):
        while place < len(words) and words[place][1] <= start:
            place += 1
        letter = "B"
        while place < len(words) and words[place][0] < stop:
            tags[place], letter = f"{letter}-{kind}", "I"
            place += 1
    return tags
