"""The sentences that a model predicts worst, token by token: where the text is hard for it, at a glance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..data.words import Surfaces
from .heat import closed
from .records import Records
from .text import Text

WORST = "worst.jsonl"
COUNT = 12
MIN_MASKED = 3  # tokens of a sentence that must have been hidden: one rare word alone makes no hard sentence
LONGEST = 64  # tokens after which a sentence is cut, where no full stop does it
_ENDS = tuple(".!?…。！？؟۔।")


def worst_sentences(records: Records, text: Text, count: int = COUNT) -> list[dict[str, Any]]:
    """Return the sentences with the highest mean loss of their masked tokens, the worst first; of equal ones the first in the records.

    Each has `document`, `first` (the place of its first token), `masked_loss`, `num_masked_tokens`, and a list entry for each token:
    `tokens`, `joined` (to what stands before it), `log_probs` and `predicted`, null where the token was not hidden (over several views:
    the mean, and the last prediction).
    """
    surfaces = Surfaces(text.tokenizer)
    ends = np.zeros(text.store.vocab_size, dtype=bool)
    for number in range(text.store.vocab_size):
        ends[number] = surfaces.text(number)[0].endswith(_ENDS)
    best: list[tuple[float, int, int, int]] = []
    for low in range(0, len(text.order), 4096):
        best = sorted([*best, *_candidates(records, text, ends, low)])[:count]
    return [_sentence(records, text, surfaces, -loss, document, first, end) for loss, document, first, end in best]


def _candidates(records: Records, text: Text, ends: np.ndarray, low: int) -> Iterator[tuple[float, int, int, int]]:
    """Yield (minus the mean loss, document, first token, end) of the sentences of a chunk of documents that have enough masked tokens."""
    members = text.order[low : low + 4096]
    ids, _ = text.store.gather(members)
    lengths = text.store.lengths[members]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    begins = np.zeros(len(ids) + 1, dtype=bool)
    begins[1:] = np.append(ends[ids], False)[: len(ids)]
    begins[bounds] = True
    first = np.flatnonzero(begins[:-1])
    since = np.arange(len(ids)) - np.repeat(first, np.diff(np.append(first, len(ids))))
    first = np.flatnonzero(since % LONGEST == 0)
    edges = np.append(first, len(ids))
    rows = slice(*np.searchsorted(records.document, [low, low + len(members)]))
    sentence = np.searchsorted(first, bounds[records.document[rows] - low] + records.position[rows], side="right") - 1
    counts = np.bincount(sentence, minlength=len(first))
    sums = np.bincount(sentence, -records.log_prob[rows].astype(np.float64), minlength=len(first))
    owner = np.searchsorted(bounds, first, side="right") - 1
    for number in np.flatnonzero(counts >= MIN_MASKED * int(records.info.get("views", 1))).tolist():
        document = int(owner[number])
        start, end = int(edges[number] - bounds[document]), int(edges[number + 1] - bounds[document])
        yield -float(sums[number] / counts[number]), low + document, start, end


def _sentence(records: Records, text: Text, surfaces: Surfaces, loss: float, document: int, first: int, end: int) -> dict[str, Any]:
    ids, _ = text.store.gather(text.order[document : document + 1], np.array([first]), np.array([end]))
    low, high = np.searchsorted(records.document, [document, document + 1])
    rows = low + np.flatnonzero((records.position[low:high] >= first) & (records.position[low:high] < end))
    log_probs: list[list[float]] = [[] for _ in ids]
    predicted: list[str | None] = [None] * len(ids)
    for row in rows.tolist():
        place = int(records.position[row]) - first
        log_probs[place].append(float(records.log_prob[row]))
        predicted[place] = surfaces.text(int(records.predicted[row]))[0]
    shown = [surfaces.text(number) for number in ids.tolist()]
    names, joined = [token for token, _ in shown], [close for _, close in shown]
    return {
        "document": records.document_id(document),
        "first": first,
        "masked_loss": loss,
        "num_masked_tokens": len(rows),
        "tokens": names,
        "joined": joined if surfaces.marks_spaces else closed(names, joined),
        "log_probs": [sum(values) / len(values) if values else None for values in log_probs],
        "predicted": predicted,
    }


def keep_worst(records: Records, text: Text, folder: Path) -> None:
    """Write worst.jsonl, from which the report draws its heat-map."""
    from .evaluation import write

    write(folder / WORST, (json.dumps(row, ensure_ascii=False) + "\n" for row in worst_sentences(records, text)))
