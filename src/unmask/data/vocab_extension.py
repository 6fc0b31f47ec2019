"""Add the words of a domain to a tokenizer: those that save the most pieces, as ordinary vocabulary, whole words only."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, TokenizerError
from .encode import Encoder
from .manifest import check_sum, checksum
from .tokenizer import special_ids
from .vocabulary import wrap
from .words import ALONE, CONTINUES, LETTER, Surfaces, character_class

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_COUNT, MIN_DOCUMENTS = 10, 3  # of a word: an embedding that is seen less often is hardly trained, and one text's word is not a domain's
MIN_LETTERS, MAX_PIECES = 3, 16
REPEATED = re.compile(r"(.)\1\1")  # aaaa, www, iii
MOST_KEPT = 2_000_000  # distinct words in memory; beyond that the rarest so far are let go
BATCH_BYTES = 1 << 20

_ROLES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "bos_token", "eos_token")


@dataclass(frozen=True)
class Word:
    """A word to add: how it reads, its entry in the vocabulary, the pieces that it had, and how often all of them occur in the text."""

    word: str
    token: str
    id: int
    pieces: tuple[str, ...]
    piece_ids: tuple[int, ...]
    count: int
    num_documents: int
    piece_counts: tuple[int, ...]

    @property
    def saved(self) -> int:
        """How many pieces fewer the text has with this word."""
        return (len(self.pieces) - 1) * self.count


@dataclass(frozen=True)
class Extension:
    """The words to add to a tokenizer, and what was looked through for them."""

    words: tuple[Word, ...]
    num_documents: int
    num_tokens: int
    num_words: int  # in the text
    num_candidates: int  # different words of several pieces in the text
    num_eligible: int  # of them: frequent enough, and nothing but letters
    min_count: int = MIN_COUNT
    min_documents: int = MIN_DOCUMENTS

    @property
    def saved(self) -> int:
        """How many pieces fewer the text has with these words, those aside that a word brings about inside of longer ones."""
        return sum(word.saved for word in self.words)

    def save(self, path: Path) -> None:
        """Write the words as JSON."""
        record = asdict(self)
        path.write_text(json.dumps({**record, "checksum": checksum(record)}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Extension:
        """Return what `save` wrote.

        Raises: DataError for anything else.
        """
        lists = ("pieces", "piece_ids", "piece_counts")
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            check_sum(data)
            words = tuple(Word(**{**word, **{name: tuple(word[name]) for name in lists}}) for word in data["words"])
            return cls(**{**{name: value for name, value in data.items() if name != "checksum"}, "words": words})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"'{path}' is not the list of words that the run began with ({error}); start a new run") from None


@dataclass
class _Counts:
    """What was counted in the text."""

    tokens: np.ndarray
    words: dict[tuple[int, ...], list[int]] = field(default_factory=dict)  # pieces -> how often, in how many documents
    num_documents: int = 0
    num_words: int = 0


def propose(tokenizer: Any, texts: Iterable[str], number: int) -> Extension:
    """Return the `number` words (or as many as there are) that save the most pieces of the texts: (pieces - 1) x count.

    A word is a run of letters as whole-word masking sees it, after the tokenizer's own normalisation; it occurs MIN_COUNT times, in
    MIN_DOCUMENTS documents. The same texts give the same words.
    Raises: TokenizerError for a tokenizer that cannot be extended, or a text without such a word.
    """
    if number < 1:
        raise TokenizerError(f"extend_vocab = {number}: the number of words to add; allowed: a whole number from 1")
    kind = _kind(tokenizer)
    counts = _count(tokenizer, texts)
    eligible = sorted(_eligible(tokenizer, kind, counts), key=lambda item: (-(len(item[1]) - 1) * item[2][0], -item[2][0], item[0][1]))
    if not eligible:
        raise TokenizerError(
            f"there is no word to add: of {len(counts.words):,} different words of several pieces in {counts.num_documents:,} documents "
            f"none occurs {MIN_COUNT} times, in {MIN_DOCUMENTS} documents, and is made of letters alone; give more text, or leave out "
            "--extend-vocab"
        )
    names = tokenizer.convert_ids_to_tokens
    words = [
        Word(word, token, new, tuple(names(list(pieces))), pieces, found[0], found[1], tuple(int(counts.tokens[piece]) for piece in pieces))
        for ((word, token), pieces, found), new in zip(eligible[:number], _free_ids(tokenizer), strict=False)
    ]
    return Extension(tuple(words), counts.num_documents, int(counts.tokens.sum()), counts.num_words, len(counts.words), len(eligible))


def extend(tokenizer: Any, extension: Extension) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has the words too, each one token wherever it stands as a word of its own.

    They are entries of the vocabulary like all others, not "added tokens", so that normalisation, word boundaries and decoding are
    those of the tokenizer: WordPiece finds them first because it takes the longest entry; a byte-level BPE looks for the whole word before
    it merges (`ignore_merges`); a Unigram gets them with the log of their share of the text. Longer words may begin with them.
    Raises: TokenizerError for a tokenizer that cannot be extended.
    """
    from tokenizers import Tokenizer

    kind, words = _kind(tokenizer), extension.words
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    if kind == "Unigram":
        backend = _extend_unigram(spec, extension)
    else:
        vocab = spec["model"]["vocab"]
        # tokens that were added by hand are numbered from the size of the vocabulary on: in it, they keep their numbers when it grows
        vocab.update({token["content"]: token["id"] for token in spec["added_tokens"]})
        vocab.update({word.token: word.id for word in words})
        if kind == "BPE":
            spec["model"]["ignore_merges"] = True
        backend = Tokenizer.from_str(json.dumps(spec))
    last = (backend.encode(_in_text(kind, word.word, word.token), add_special_tokens=False).ids[-1:] for word in words)
    failed = [word.word for word, ids in zip(words, last, strict=True) if ids != [word.id]]
    if failed:
        raise TokenizerError(
            f"this tokenizer ({kind}) cannot be extended: {len(failed):,} of {len(words):,} words are still cut ({', '.join(failed[:5])}); "
            "adapt without --extend-vocab"
        )
    # a class of its own would be built again from the vocabulary on loading, and lose how it is searched
    names = {role: getattr(tokenizer, role) for role in _ROLES if getattr(tokenizer, role, None) is not None}
    extra = [token for token in getattr(tokenizer, "extra_special_tokens", None) or () if token not in names.values()]
    types = "token_type_ids" in tokenizer.model_input_names
    return wrap(backend, names, max_length=tokenizer.model_max_length, extra=extra, types=types)


def _kind(tokenizer: Any) -> str:
    """Return WordPiece, BPE (byte-level) or Unigram.

    Raises: TokenizerError for another kind.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, marking = spec["model"].get("type"), Surfaces(tokenizer).kind
    allowed = {"WordPiece": "prefix", "BPE": "bytes", "Unigram": "metaspace"}
    if allowed.get(kind) != marking or spec["pre_tokenizer"] is None:
        raise TokenizerError(
            f"the vocabulary of this tokenizer ({kind}) cannot be extended; allowed: WordPiece (BERT), byte-level BPE (RoBERTa, "
            "ModernBERT) and Unigram (XLM-R, ALBERT). Adapt without --extend-vocab"
        )
    return str(kind)


def _free_ids(tokenizer: Any) -> Iterator[int]:
    """Yield the numbers that no token has, in order."""
    used = set(tokenizer.get_vocab().values())
    return (number for number in itertools.count() if number not in used)


def _count(tokenizer: Any, texts: Iterable[str]) -> _Counts:
    """Count the tokens of texts, and their words of several pieces."""
    encoder = Encoder(tokenizer)
    counts = _Counts(np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64))
    for _, _, batch, (ids, starts, lengths) in encoder.encode_all(("train", [], batch) for batch in _batches(texts)):
        counts.num_documents += len(batch)
        counts.tokens += np.bincount(ids, minlength=len(counts.tokens))
        first = np.flatnonzero(starts)
        counts.num_words += len(first)
        sizes = np.diff(first, append=len(ids))
        documents = np.searchsorted(np.cumsum(lengths), first, side="right")
        for size in range(2, MAX_PIECES + 1):
            chosen = np.flatnonzero(sizes == size)
            if not len(chosen):
                continue
            rows = np.column_stack([ids[first[chosen, None] + np.arange(size)].astype(np.int64), documents[chosen]])
            for (*pieces, _), times in zip(*(part.tolist() for part in np.unique(rows, axis=0, return_counts=True)), strict=True):
                found = counts.words.setdefault(tuple(pieces), [0, 0])
                found[0] += times
                found[1] += 1
        rarest = 1
        while len(counts.words) > MOST_KEPT:
            counts.words = {pieces: found for pieces, found in counts.words.items() if found[0] > rarest}
            rarest += 1
    return counts


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _eligible(tokenizer: Any, kind: str, counts: _Counts) -> Iterator[tuple[tuple[str, str], tuple[int, ...], list[int]]]:
    """Yield ((word, entry), pieces, [count, documents]) of the words that may be added, each entry once."""
    backend, known = tokenizer.backend_tokenizer, tokenizer.get_vocab()
    special = set(special_ids(tokenizer).all) | {special_ids(tokenizer).unk} | set(tokenizer.added_tokens_decoder)
    prefix = json.loads(backend.to_str())["model"].get("continuing_subword_prefix") or ""
    best: dict[str, tuple[tuple[str, str], tuple[int, ...], list[int]]] = {}
    for pieces, found in counts.words.items():
        if found[0] < MIN_COUNT or found[1] < MIN_DOCUMENTS or not special.isdisjoint(pieces):
            continue
        head, *rest = tokenizer.convert_ids_to_tokens(list(pieces))
        token = head + "".join(piece.removeprefix(prefix) for piece in rest)
        word = backend.decoder.decode([head, *rest]).strip()
        # one word may have been cut in two ways by its surroundings (Unigram)
        if token not in known and _is_word(word) and token in _stretches(backend, kind, word, token):
            before = best.get(token)
            if before is None or (before[2][0], before[1]) < (found[0], pieces):
                best[token] = ((word, token), pieces, found)
    yield from best.values()


def _is_word(word: str) -> bool:
    classes = {character_class(character) for character in word}
    return len(word) >= MIN_LETTERS and LETTER in classes and classes <= {LETTER, CONTINUES, ALONE} and not REPEATED.search(word)


def _stretches(backend: Any, kind: str, word: str, token: str) -> list[str]:
    """Return what the pre-tokenizer cuts out of a short text with the word in it."""
    if kind == "Unigram" and not token.startswith("▁"):  # it would be found within other words
        return []
    text = _in_text(kind, word, token)
    text = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    return [stretch for stretch, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _in_text(kind: str, word: str, token: str) -> str:
    """Return a short text that ends in a word, after a space or, where its entry has none, after a bracket."""
    return f"({word}" if kind == "BPE" and not token.startswith("Ġ") else f" {word}"


def _extend_unigram(spec: dict[str, Any], extension: Extension) -> Any:
    """Return a Unigram tokenizer with the words; one that shorter pieces would still beat gets a score just above theirs."""
    from tokenizers import Tokenizer

    vocab = spec["model"]["vocab"]
    have, lowest = {token for token, _ in vocab}, min(score for _, score in vocab)
    added = sorted((token["id"], token["content"]) for token in spec["added_tokens"] if token["content"] not in have)
    vocab += [[token, lowest] for _, token in added]
    first = len(vocab)
    vocab += [[word.token, math.log(word.count / extension.num_tokens)] for word in extension.words]
    while True:  # a word is beaten by shorter ones only, so that this ends
        backend = Tokenizer.from_str(json.dumps(spec))
        beaten = False
        for place, word in enumerate(extension.words, start=first):
            ids = [token.id for token in backend.model.tokenize(word.token)]
            if ids != [place]:
                vocab[place][1] = sum(vocab[number][1] for number in ids) + 0.01
                beaten = True
        if not beaten:
            return backend
