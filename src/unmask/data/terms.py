"""The words that stand out in a domain against general text, by frequency alone: what masking.strategy = "terms" hides more often."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .manifest import check_sum, checksum
from .masking import Terms, Vocabulary, word_hashes
from .store import TokenStore

ENOUGH = 20_000_000  # tokens: of a larger corpus every so many-th document is counted
MIN_COUNT = 5  # in the domain: rarer words say little
MIN_RATIO = 4.0  # times as frequent in the domain as in general text
MIN_Z = 3.0  # standard errors that the logarithm of the ratio lies above zero
MAX_SHARE = 0.2  # of the tokens of the domain: where half of all words stand out, none does
SMOOTHING = 0.5  # added to every count

DEFINITION = (
    f"words that occur at least {MIN_COUNT} times in the domain, whose odds there are at least {MIN_RATIO:g} times those in the general "
    f"text, and whose log-odds differ by at least {MIN_Z:g} standard errors; of them those with the "
    f"highest scores, as many as have {MAX_SHARE:.0%} of the domain's tokens (one at least); score: natural logarithm of the ratio of "
    f"the odds, {SMOOTHING:g} added to each count (Monroe et al. 2008, with a flat prior)"
)


@dataclass(frozen=True, slots=True)
class Counts:
    """How often the words of a text occur; all (words,), `hashes` rising; (document, start, stop) is where a word stands first."""

    hashes: np.ndarray
    counts: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def count_words(store: TokenStore, vocabulary: Vocabulary) -> Counts:
    """Return the words of a store (of a large one, of a sample of its documents) without those that hold a special token."""
    documents = np.arange(0, len(store), 1 + store.num_tokens // ENOUGH)
    documents = documents[store.lengths[documents] > 0]
    ends = np.cumsum(store.lengths[documents])
    parts = [np.zeros((0, 5), np.uint64)]
    for group in np.split(documents, np.flatnonzero(np.diff(ends // 2**21)) + 1):
        parts.append(_merge(_words_of(store, group, vocabulary)))
    hashes, counts, document, start, stop = _merge(np.concatenate(parts)).T
    return Counts(hashes, *(column.astype(np.int64) for column in (counts, document, start, stop)))


def _words_of(store: TokenStore, documents: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return (words, 5) uint64: hash, 1, document, start and stop of every word of some documents."""
    if not len(documents):
        return np.zeros((0, 5), np.uint64)
    ids, begins = store.gather(documents)
    lengths = store.lengths[documents]
    starts = np.cumsum(lengths) - lengths
    begins[starts] = True
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(ids))
    place = np.searchsorted(starts, first, side="right") - 1
    rows = [word_hashes(ids, first), np.ones(len(first)), documents[place], first - starts[place], last - starts[place]]
    ordinary = np.logical_and.reduceat(vocabulary.is_ordinary[ids], first)
    return np.stack([row.astype(np.uint64) for row in rows], axis=1)[ordinary]


def _merge(rows: np.ndarray) -> np.ndarray:
    """Return the rows with one for each hash, the counts added up, the place of the first."""
    found, first, inverse = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    merged = rows[first]
    merged[:, 0] = found
    merged[:, 1] = np.bincount(inverse, rows[:, 1], len(found)).astype(np.uint64)
    return merged


def find_terms(domain: TokenStore, general: TokenStore, vocabulary: Vocabulary, tokenizer: Any) -> dict[str, Any]:
    """Return the terms of a domain, with their scores and counts, as they are written to terms.json.

    Raises: DataError where no word stands out.
    """
    here, there = count_words(domain, vocabulary), count_words(general, vocabulary)
    total, other_total = int(here.counts.sum()), int(there.counts.sum())
    other = np.zeros_like(here.counts)
    _, mine, theirs = np.intersect1d(here.hashes, there.hashes, assume_unique=True, return_indices=True)
    other[mine] = there.counts[theirs]
    score, z = log_odds(here.counts, total, other, other_total)
    found = np.flatnonzero((here.counts >= MIN_COUNT) & (score >= np.log(MIN_RATIO)) & (z >= MIN_Z))
    sizes = here.stop - here.start
    num_tokens = int((here.counts * sizes).sum())
    terms: list[dict[str, Any]] = []
    tokens = 0
    for word in found[np.lexsort((here.hashes[found], -score[found]))]:
        ids = domain.ids(int(here.document[word]))[here.start[word] : here.stop[word]].tolist()
        text = tokenizer.decode(ids).strip()
        if not any(character.isalpha() for character in text):  # numbers, punctuation
            continue
        if terms and tokens + int(here.counts[word] * sizes[word]) > MAX_SHARE * num_tokens:
            break
        tokens += int(here.counts[word] * sizes[word])
        counts = {"count": int(here.counts[word]), "general_count": int(other[word])}
        terms.append({"word": text, "score": round(float(score[word]), 4), "z": round(float(z[word]), 2), **counts, "ids": ids})
    if not terms:
        raise DataError(
            f"no word of the domain ({total:,} words) stands out against the general text ({other_total:,} words): {DEFINITION}; "
            "give more text, or another masking.strategy (whole_word)"
        )
    record = {
        "definition": DEFINITION, "share_of_tokens": tokens / num_tokens, "num_terms": len(terms),
        "num_words": total, "num_general_words": other_total, "terms": terms,
    }  # fmt: skip
    return {**record, "checksum": checksum(record)}


def log_odds(counts: np.ndarray, total: int, other: np.ndarray, other_total: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithm of the ratio of the words' smoothed odds here and there, and that in standard errors."""
    here, there = counts + SMOOTHING, other + SMOOTHING
    difference = np.log(here / (total - counts + SMOOTHING)) - np.log(there / (other_total - other + SMOOTHING))
    return difference, difference / np.sqrt(1 / here + 1 / there)


def load_terms(path: Path) -> Terms:
    """Return the terms that terms.json lists.

    Raises: DataError for a file that does not hold what `find_terms` found.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_sum(record)
        words, share = [np.array(term["ids"], np.int64) for term in record["terms"]], float(record["share_of_tokens"])
        lengths = np.array([len(word) for word in words])
        return Terms(np.sort(word_hashes(np.concatenate(words), np.cumsum(lengths) - lengths)), share)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"'{path}' is not the list of terms that the run began with ({error}); start a new run") from None
