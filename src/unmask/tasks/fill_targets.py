"""How probable given words are at the masks of texts, in the order in which they were given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import TaskError
from ..infer.targets import Question, TargetScore, score_targets
from .filled import Candidate, Filled, whole_word
from .masked_text import MaskedText, Text

if TYPE_CHECKING:
    from .fill import Filler, FillOptions

CHUNK = 256  # texts scored at a time


def fill_targets(filler: Filler, pairs: Iterable[tuple[Text, FillOptions]]) -> Iterator[Filled]:
    """Yield for each text the scores of its targets at each mask."""
    rest = iter(pairs)
    while chunk := list(islice(rest, CHUNK)):
        items = list(zip(filler.texts.read([text for text, _ in chunk]), [chosen for _, chosen in chunk], strict=True))
        asked = [(item, mask, words) for item, chosen in items if item.error is None for mask, words in enumerate(_wanted(item, chosen))]
        answers = iter(_ask(filler, asked))
        for item, chosen in items:
            masks = [next(answers) for _ in item.spans] if item.error is None else []
            wrong = next((found for found in masks if isinstance(found, str)), None)
            if wrong is not None:
                item.error = wrong
            shared = [_share(found) if chosen.renormalize else found for found in masks if not isinstance(found, str)]
            yield filler.result(item, shared)


def score(filler: Filler, item: MaskedText, mask: int, words: Sequence[str]) -> tuple[Candidate, ...]:
    """Return words with their scores at a mask of a text.

    Raises: TaskError where the text cannot be scored.
    """
    (found,) = _ask(filler, [(item, mask, words)])
    if isinstance(found, str):
        raise TaskError(found)
    return found


def _wanted(item: MaskedText, chosen: FillOptions) -> list[Sequence[str]]:
    """Return the targets of each mask of a text; a text whose masks they do not fit gets an error."""
    targets, count = chosen.targets or (), len(item.spans)
    if all(isinstance(target, str) for target in targets):
        return [targets] * count  # type: ignore[list-item]
    if len(targets) != count or any(isinstance(target, str) for target in targets):
        item.error = (
            f"there are targets for {len(targets)} masks and the text has {count}; give a list of words for each, or one list for all"
        )
        return []
    return list(targets)  # type: ignore[arg-type]


def _ask(filler: Filler, asked: Sequence[tuple[MaskedText, int, Sequence[str]]]) -> list[tuple[Candidate, ...] | str]:
    """Return the candidates at each (text, mask), or what is wrong with the text."""
    pairs = [len(item.parts) > 1 for item, _, _ in asked]
    questions = (Question(item.parts[0], list(words), mask) for (item, mask, words), pair in zip(asked, pairs, strict=True) if not pair)
    answers = score_targets(filler.engine, filler.tokenizer, questions, max_length=filler.max_length)
    found: list[tuple[Candidate, ...] | str] = []
    for (item, mask, _), pair in zip(asked, pairs, strict=True):
        if pair:
            found.append("targets are scored in a single text, not in a pair; give one text")
            continue
        answer = next(answers)
        item.truncated = item.truncated or answer.truncated
        found.append(answer.error or tuple(_candidate(filler, item, mask, one) for one in answer.targets))
    return found


def _candidate(filler: Filler, item: MaskedText, mask: int, scored: TargetScore) -> Candidate:
    _, start, stop = item.spans[mask]
    text = item.parts[0]
    before, after, word = text[:start], text[stop:], scored.target.strip()
    if scored.error is not None:
        return Candidate(word, -1, math.nan, f"{before}{word}{after}", start, error=scored.error)
    sequence = f"{before}{word}{after}"
    whole = whole_word(sequence, start, start + len(word))
    return Candidate(word, scored.piece_ids[0], math.exp(scored.log_prob), sequence, start, False, whole, scored.log_prob, scored.piece_ids)


def _share(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """Return candidates with scores that sum to one."""
    peak = max((one.log_prob for one in candidates if one.error is None), default=0.0)
    total = math.fsum(math.exp(one.log_prob - peak) for one in candidates if one.error is None)
    return tuple(one if one.error else replace(one, score=math.exp(one.log_prob - peak) / total) for one in candidates)
