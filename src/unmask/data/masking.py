"""Which tokens are hidden, and behind what: strategies, and the 80/10/10 of BERT once for all of them.

Everything is drawn from (seed, epoch, document, position in the document), so that masks do not depend on the window length, the batch
size, the rank, the number of workers or where a run was resumed. The work is done for all documents of a batch at once, laid end to end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ConfigError
from ..rng import hashes, uniforms

BLOCK = 1024  # a long document is masked in blocks of this many tokens, so that a window of it costs no more than its blocks
REACH = 64  # how far a block's edge looks ahead for the beginning of a word


@dataclass(frozen=True)
class MaskingConfig:
    """How tokens are chosen and replaced.

    strategy: "token", "whole_word" (all pieces of a word or none), "span" (runs of whole words) or "terms" (whole words, those that stand
        out in the domain against general text more often than others).
    mlm_probability: the share of tokens to predict (at the beginning, where it changes).
    mlm_probability_end: the share at the end of the run, reached in a straight line; unset: it does not change.
    mask_replace_prob: of the chosen tokens, the share replaced by the mask token.
    random_replace_prob: the share replaced by a random ordinary token; the rest stay as they are.
    span_length: mean length of a span, in words.
    term_factor: how many times as often as another word a term is chosen.
    """

    strategy: Literal["token", "whole_word", "span", "terms"] = "token"
    mlm_probability: float = 0.3
    mlm_probability_end: float | None = None
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1
    span_length: float = 3.0
    term_factor: float = 3.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"masking.strategy = {self.strategy!r}; allowed: {', '.join(STRATEGIES)}")
        for name in ("mlm_probability", "mlm_probability_end"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value <= 1.0:
                raise ConfigError(
                    f"masking.{name} = {value!r} is not a share of the tokens; allowed: above 0, at most 1 (0.15 and 0.3 are usual)"
                )
        for name in ("mask_replace_prob", "random_replace_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"masking.{name} = {getattr(self, name)!r} is not a probability; allowed: 0 to 1")
        if self.mask_replace_prob + self.random_replace_prob > 1.0 + 1e-9:
            raise ConfigError(
                f"masking.mask_replace_prob = {self.mask_replace_prob} and masking.random_replace_prob = {self.random_replace_prob} "
                "add up to more than 1; lower one of them (BERT has 0.8 and 0.1)"
            )
        if not self.span_length >= 1.0:
            raise ConfigError(f"masking.span_length = {self.span_length!r} words; allowed: 1 or more (3 is usual)")
        if not 1.0 <= self.term_factor < np.inf:
            raise ConfigError(f"masking.term_factor = {self.term_factor!r}; allowed: 1 (as often as any other word) or more")

    def probability_at(self, progress: float) -> float:
        """Return the share of tokens to predict when `progress` in [0, 1] of the run is done."""
        if self.mlm_probability_end is None:
            return self.mlm_probability
        share = min(max(progress, 0.0), 1.0)
        return self.mlm_probability + share * (self.mlm_probability_end - self.mlm_probability)


@dataclass(frozen=True, slots=True)
class Draws:
    """Uniform numbers in [0, 1), one for each token, that depend on (seed, epoch, document, position) and the name of the draw alone."""

    seed: int
    epoch: tuple[int | str, ...]
    documents: np.ndarray
    positions: np.ndarray

    def __call__(self, name: str, where: np.ndarray | slice = slice(None)) -> np.ndarray:
        return uniforms(self.seed, "mask", *self.epoch, name, rows=self.documents[where], columns=self.positions[where])


@dataclass(frozen=True, slots=True)
class Terms:
    """The words that stand out in a domain, by the hash of their ids, and the share of the domain's maskable tokens that is theirs.

    Shapes: hashes (terms,) uint64, rising.
    """

    hashes: np.ndarray
    share: float


def word_hashes(ids: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return a hash of the ids of each word, (words,) uint64; `first` (words,) is where each begins: it ends where the next one does."""
    places = np.arange(len(ids)) - np.repeat(first, np.diff(first, append=len(ids)))
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        return np.add.reduceat(hashes(ids, places), first) if len(first) else np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens to choose from: documents (of long ones, blocks) laid end to end.

    Shapes: ids (n,); word_index (n,) rises by one where a word begins, and no word reaches over a boundary; maskable (n,) bool;
        bounds (pieces + 1,), where the documents or blocks begin and end, none of them empty.
    """

    ids: np.ndarray
    word_index: np.ndarray
    maskable: np.ndarray
    bounds: np.ndarray
    terms: Terms | None = None


Masker = Callable[[Tokens, Draws, float, MaskingConfig], np.ndarray]


def choose(units: np.ndarray, tokens: Tokens, draws: Draws, probability: float | np.ndarray) -> np.ndarray:
    """Return which tokens are selected when every unit is with `probability`, and in each document one unit at least.

    Shapes: units (n,) numbers the units from 0 on without a gap; a unit's tokens lie together, within one document.
        probability is one for all, or (n,), the same for all tokens of a unit.
    The numbers drawn do not depend on the probability: a higher one selects the same tokens and more.
    """
    first = np.flatnonzero(np.diff(units, prepend=-1))
    score = np.where(tokens.maskable, draws("select", first)[units], 2.0)
    least = np.minimum.reduceat(score, tokens.bounds[:-1])
    return tokens.maskable & ((score < probability) | (score == np.repeat(least, np.diff(tokens.bounds))))


def token(tokens: Tokens, draws: Draws, probability: float, config: MaskingConfig) -> np.ndarray:
    """Choose every token by itself. Source: BERT (Devlin et al. 2019)."""
    return choose(np.arange(len(tokens.ids)), tokens, draws, probability)


def whole_word(tokens: Tokens, draws: Draws, probability: float, config: MaskingConfig) -> np.ndarray:
    """Choose words, all pieces of one together."""
    return choose(tokens.word_index, tokens, draws, probability)


def span(tokens: Tokens, draws: Draws, probability: float, config: MaskingConfig) -> np.ndarray:
    """Choose runs of words, geometric in length.

    Source: SpanBERT (Joshi et al. 2020); here the text is cut into spans first and each is chosen with the same probability,
    so that spans never overlap and the share of chosen tokens is exact; lengths are not clipped.
    """
    first = np.flatnonzero(np.diff(tokens.word_index, prepend=-1))
    begins = draws("span", first) < 1.0 / config.span_length
    begins |= np.isin(first, tokens.bounds, assume_unique=True)
    return choose((np.cumsum(begins) - 1)[tokens.word_index], tokens, draws, probability)


def terms(tokens: Tokens, draws: Draws, probability: float, config: MaskingConfig) -> np.ndarray:
    """Choose words, all pieces of one together, and those that stand out in the domain `term_factor` times as often as others.

    Others are chosen less often by as much as keeps the share of all tokens of the domain; where nothing stands out, it is `whole_word`.
    """
    if tokens.terms is None:
        return whole_word(tokens, draws, probability, config)
    share = tokens.terms.share
    usual = probability / (1 - share + share * config.term_factor)
    often = min(1.0, usual * config.term_factor)
    if often == 1.0 and share < 1.0:  # a term cannot be chosen more often than always: the rest falls on the others
        usual = max(0.0, (probability - share) / (1 - share))
    first = np.flatnonzero(np.diff(tokens.word_index, prepend=-1))
    is_term = np.isin(word_hashes(tokens.ids, first), tokens.terms.hashes)
    return choose(tokens.word_index, tokens, draws, np.where(is_term, often, usual)[tokens.word_index])


STRATEGIES: dict[str, Masker] = {"token": token, "whole_word": whole_word, "span": span, "terms": terms}


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows of a tokenizer: the mask's id, and which ids are ordinary (not special); and of a domain its terms."""

    mask: int
    special: tuple[int, ...]
    size: int
    terms: Terms | None = None

    @functools.cached_property
    def is_ordinary(self) -> np.ndarray:
        """Return a table over the vocabulary, False at special tokens; they are neither chosen nor drawn."""
        table = np.ones(self.size, dtype=bool)
        table[[number for number in self.special if 0 <= number < self.size]] = False
        return table

    @functools.cached_property
    def ordinary(self) -> np.ndarray:
        """Return the ids that random replacements are drawn from."""
        return np.flatnonzero(self.is_ordinary)


def corrupt(ids: np.ndarray, selected: np.ndarray, policy: MaskingConfig, draws: Draws, vocabulary: Vocabulary) -> np.ndarray:
    """Return ids (int64) with the selected ones masked, replaced by random ordinary ones, or kept, as the policy says."""
    result = ids.astype(np.int64)
    places = np.flatnonzero(selected)
    action = draws("action", places)
    result[places[action < policy.mask_replace_prob]] = vocabulary.mask
    is_random = (action >= policy.mask_replace_prob) & (action < policy.mask_replace_prob + policy.random_replace_prob)
    places = places[is_random]
    ordinary = vocabulary.ordinary
    result[places] = ordinary[(draws("replace", places) * len(ordinary)).astype(np.int64)]
    return result


def mask_tokens(
    ids: np.ndarray,
    word_start: np.ndarray,
    bounds: np.ndarray,
    documents: np.ndarray,
    firsts: np.ndarray,
    *,
    config: MaskingConfig,
    vocabulary: Vocabulary,
    seed: int,
    epoch: int | tuple[int | str, ...],
    probability: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the corrupted ids and which tokens are selected, for documents (or blocks) laid end to end.

    Shapes: ids, word_start and both results (n,); bounds (pieces + 1,); documents and firsts (pieces,): of each piece the number of its
        document and the position in it at which the piece begins. A piece holds at least one token.
    """
    lengths = np.diff(bounds)
    begins = word_start.astype(bool)  # a copy: the first token of a piece begins a word, whatever the tokenizer said
    begins[bounds[:-1]] = True
    positions = np.arange(len(ids)) + np.repeat(firsts - bounds[:-1], lengths)
    draws = Draws(seed, epoch if isinstance(epoch, tuple) else (epoch,), np.repeat(documents, lengths), positions)
    tokens = Tokens(ids, np.cumsum(begins) - 1, vocabulary.is_ordinary[ids], bounds, vocabulary.terms)
    share = config.mlm_probability if probability is None else probability
    selected = STRATEGIES[config.strategy](tokens, draws, share, config)
    return corrupt(ids, selected, config, draws, vocabulary), selected


def mask_document(
    ids: np.ndarray,
    word_start: np.ndarray,
    *,
    document: int,
    config: MaskingConfig,
    vocabulary: Vocabulary,
    seed: int,
    epoch: int | tuple[int | str, ...],
    probability: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the corrupted ids and which tokens are selected in one whole document, exactly as training sees it."""
    edges = block_edges(word_start)
    return mask_tokens(
        np.asarray(ids), np.asarray(word_start), edges, np.full(len(edges) - 1, document), edges[:-1],
        config=config, vocabulary=vocabulary, seed=seed, epoch=epoch, probability=probability,
    )  # fmt: skip


def num_blocks(lengths: np.ndarray) -> np.ndarray:
    """Return how many blocks documents are masked in: each has at least BLOCK - REACH tokens, or is the whole document."""
    return np.maximum(lengths // BLOCK, 1)


def block_edges(word_start: np.ndarray) -> np.ndarray:
    """Return where the blocks of one document begin, and its end; an edge is the first beginning of a word at or after its mark."""
    length = len(word_start)
    if length == 0:
        return np.zeros(1, np.int64)
    marks = np.arange(1, int(num_blocks(np.array([length]))[0])) * BLOCK
    ahead = [np.argmax(word_start[mark : mark + REACH]) for mark in marks]  # 0 where none begins in reach: the word is cut
    return np.array([0, *(marks + np.array(ahead, dtype=np.int64)), length], dtype=np.int64)
