"""Scores of texts, which every masked language model that is served gives beside its task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import schema
from .limits import Limits, Refused
from .tasks import OVERHEAD_TOKENS, Work, inputs_of

if TYPE_CHECKING:
    from ..evaluate.pll import Scorer


def read_score(body: schema.ScoreRequest, limits: Limits) -> Work:
    """Return a request to score texts."""
    inputs, single = inputs_of(body.inputs, limits)
    few_characters(inputs, limits)
    return Work(inputs, body.parameters or schema.ScoreParameters(), single)


def few_characters(texts: Sequence[str], limits: Limits) -> None:
    """Refuse texts that are too long to be answered token by token.

    Raises: Refused.
    """
    size = sum(map(len, texts))
    if size > limits.max_characters:
        raise Refused(413, f"{size:,} characters; at most {limits.max_characters:,} in one request: send it in parts")


def score_cost(work: Work) -> int:
    """Return about how many tokens the model will see: each token is masked in a copy of its text."""
    per_text = ((OVERHEAD_TOKENS + len(text) // 4) for text in work.inputs)
    sampled = work.options.sample if work.options.method == "sampled" else None
    return sum(size * min(size, sampled or size) for size in per_text)


def run_score(scorer: Scorer, works: Sequence[Work], limits: Limits) -> list[Any]:
    """Score the texts of many requests, those that ask for the same method together.

    Returns for each request its (score, places of the tokens in the text) a text, or its error.
    """
    outcomes: list[Any] = [None] * len(works)
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, work in enumerate(works):
        encodings = scorer.encoder.backend.encode_batch(work.inputs, add_special_tokens=False)
        longest = max(len(encoding.ids) for encoding in encodings)
        num_masked = min(longest, work.options.sample) if work.options.method == "sampled" else longest
        if num_masked > limits.max_text_tokens:
            outcomes[number] = Refused(
                413, f"{num_masked:,} tokens of a text; at most {limits.max_text_tokens:,}, each of which is masked in turn: "
                'send it in parts, or ask for a sample (parameters: {"method": "sampled"})')  # fmt: skip
            continue
        outcomes[number] = [encoding.offsets for encoding in encodings]
        chosen = work.options
        groups[(chosen.method, chosen.sample, chosen.seed)].append(number)
    for (method, sample, seed), members in groups.items():
        texts = [text for number in members for text in works[number].inputs]
        results = scorer.score(texts, method, sample=sample, seed=seed)
        for number in members:
            outcomes[number] = [(next(results), places) for places in outcomes[number]]
        next(results, None)  # lets the generator end
    return outcomes
