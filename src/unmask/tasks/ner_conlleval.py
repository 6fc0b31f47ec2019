"""The figures of conlleval, the scorer of the CoNLL shared tasks, for tags of any kind, legal or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import DataError
from .ner_tags import chunks


@dataclass(frozen=True)
class Conlleval:
    """What conlleval counts: entities in the data, found, and both, by type; tokens, and those with the right tag."""

    gold: Counter[str]
    found: Counter[str]
    right: Counter[str]
    num_tokens: int
    right_tokens: int

    def figures(self, kind: str | None = None) -> tuple[float, float, float]:
        """Return precision, recall and F1, from 0 to 1, of a type or of all."""
        gold, found, right = (
            counts.total() if kind is None else counts[kind] for counts in (self.gold, self.found, self.right)
        )  # fmt: skip
        precision, recall = right / found if found else 0.0, right / gold if gold else 0.0
        return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    def report(self) -> str:
        """Return what the official script prints."""
        lines = [
            f"processed {self.num_tokens} tokens with {self.gold.total()} phrases; found: {self.found.total()} phrases; "
            f"correct: {self.right.total()}."
        ]
        if self.num_tokens:
            lines.append(f"accuracy: {100 * self.right_tokens / self.num_tokens:6.2f}%; {_line(*self.figures())}")
        for kind in sorted(self.gold.keys() | self.found.keys()):
            lines.append(f"{kind:>17}: {_line(*self.figures(kind))}  {self.found[kind]}")
        return "".join(line + "\n" for line in lines)


def conlleval(gold: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> Conlleval:
    """Return what the official script counts in the tags of sentences; entities count where borders and type are right.

    Raises: DataError for sentences that differ in their number of words.
    """
    counts: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
    num_tokens = right_tokens = 0
    for number, (right, said) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(right) != len(said):
            raise DataError(f"sentence {number}: {len(right)} tags and {len(said)} predicted ones; there must be one a word")
        pairs = [[_split(tag) for tag in tags] for tags in (right, said)]
        a, b = set(chunks(pairs[0])), set(chunks(pairs[1]))
        for counter, spans in zip(counts, (a, b, a & b), strict=True):
            counter.update(kind for _, _, kind in spans)
        num_tokens += len(right)
        right_tokens += sum(one == other for one, other in zip(*pairs, strict=True))
    return Conlleval(*counts, num_tokens, right_tokens)


def _split(tag: str) -> tuple[str, str]:
    letter, _, kind = tag.partition("-")
    if tag != "O" and not (letter and letter != "O" and kind):
        raise DataError(
            f"{tag!r} is no tag; allowed: O, and LETTER-TYPE; bare types are for unmask.tasks.ner_tags.convert(tags, 'bio', bare=True)"
        )
    return letter, kind


def _line(precision: float, recall: float, f1: float) -> str:
    return f"precision: {100 * precision:6.2f}%; recall: {100 * recall:6.2f}%; FB1: {100 * f1:6.2f}"
