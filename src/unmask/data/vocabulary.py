"""Train a tokenizer: WordPiece, byte-level BPE or Unigram, each with BERT's special tokens."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from ..errors import TokenizerError
from .words import ALONE, CONTINUES, LETTER, NUMBER, character_class

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Kind = Literal["wordpiece", "bpe", "unigram"]
KINDS = ("wordpiece", "bpe", "unigram")

log = logging.getLogger(__name__)

# letters with the marks and joiners that belong to them, so that words of any script stay whole; a space goes with what follows it
_WORD = r"[\p{L}\p{M}\x{200c}\x{200d}]+"
_BPE_PATTERN = rf"'(?i:[sdmt]|ll|ve|re)(?!\p{{L}})| ?{_WORD}| ?\p{{N}}NUM| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\s+(?!\S)|\s+"
_UNIGRAM_PATTERN = rf"▁?{_WORD}|▁?\p{{N}}NUM|▁?[^▁\p{{L}}\p{{M}}\p{{N}}]+|▁"

_ROLES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}

MOST = 10_000_000  # entries of a vocabulary: room for all that are asked for is taken before there is one
_PIECE = 1_000_000  # characters handed to a trainer at a time: a line of 50 MB is cut
_ENDLESS = re.compile(r"(\S{500})(?=\S)")


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Kind = "wordpiece",
    vocab_size: int = 16_000,
    lowercase: bool | None = None,
    strip_accents: bool = False,
    digits: Literal["whole", "single"] = "whole",
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on texts, with [PAD] [UNK] [CLS] [SEP] [MASK] as ids 0 to 4 and `special_tokens` after them.

    `lowercase` is True for wordpiece and False for bpe and unigram unless said; `digits="single"` makes every digit a token of its own.
    The same texts give the same tokenizer, but for unigram, whose trainer is not deterministic.
    Raises: TokenizerError where there is no text, or the vocabulary size cannot be met.
    """
    if kind not in KINDS:
        raise TokenizerError(f"kind = {kind!r}; allowed: {', '.join(KINDS)}")
    if digits not in ("whole", "single"):
        raise TokenizerError(f"digits = {digits!r}; allowed: whole, single")
    lowercase = kind == "wordpiece" if lowercase is None else lowercase
    names = [*_ROLES, *special_tokens]
    if len(set(names)) != len(names):
        raise TokenizerError(f"special_tokens = {list(special_tokens)}: each is given once, and {', '.join(_ROLES)} are always there")
    for name, value in (("vocab_size", vocab_size), ("min_frequency", min_frequency), ("max_length", max_length)):
        if value < 1 or (value > MOST and name != "max_length"):
            raise TokenizerError(f"{name} = {value}; allowed: a whole number from 1" + ("" if value < 1 else f" to {MOST:,}"))
    if not all(name.strip() for name in names):
        raise TokenizerError(f"special_tokens = {list(special_tokens)}: one of them is empty; a special token is a name such as [DOC]")
    backend, trainer = _untrained(kind, vocab_size, lowercase, strip_accents, digits, names, min_frequency)
    characters: Counter[str] = Counter()
    pieces = _pieces(texts, characters)
    head = list(islice(pieces, 1))
    if not head:
        raise TokenizerError("there is no text to train a tokenizer on; check the sources: every document was empty")
    try:
        backend.train_from_iterator(_chain(head, pieces), trainer=trainer)
    except Exception as error:  # the library raises bare Exception; what the reader of `texts` raised goes on up as it is
        if type(error) is not Exception:
            raise
        raise TokenizerError(f"the {kind} trainer failed: {error}; give it more text, or a smaller vocab_size than {vocab_size}") from error
    if kind == "wordpiece":
        backend = _to_wordpiece(backend, names, characters, vocab_size, digits)
    if kind == "unigram":
        backend = _to_words(backend, names, vocab_size, digits)
    if backend.get_vocab_size() > vocab_size:
        raise TokenizerError(
            f"vocab_size = {vocab_size} is too small: the characters of these texts and the special tokens alone take "
            f"{backend.get_vocab_size()}; set it to more"
        )
    if backend.get_vocab_size() < vocab_size:
        log.warning("the text holds pieces for a vocabulary of %s only, not %s", f"{backend.get_vocab_size():,}", f"{vocab_size:,}")
    backend.post_processor = template(backend, "[CLS]", "[SEP]")
    return wrap(backend, BERT_NAMES, max_length=max_length, extra=special_tokens)


def _untrained(
    kind: str, vocab_size: int, lowercase: bool, strip_accents: bool, digits: str, names: list[str], min_frequency: int
) -> tuple[Tokenizer, Any]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    number = "" if digits == "single" else "+"
    steps: list[Any] = [normalizers.NFC()]
    common: dict[str, Any] = {"vocab_size": vocab_size, "show_progress": False}
    trainer: Any
    if kind == "wordpiece":
        backend = Tokenizer(models.BPE())
        steps.append(normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents))
        mark = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([_bert_words(digits), mark])
        # merges enough to fill the vocabulary when those of rare characters, and "▁x" for x, have been left out
        limit = _alphabet_limit(vocab_size)
        common |= {"vocab_size": vocab_size + 2 * limit, "limit_alphabet": limit + 1}
        trainer = trainers.BpeTrainer(min_frequency=min_frequency, special_tokens=_special(names, kind), **common)
        backend.normalizer = normalizers.Sequence(steps)
        return backend, trainer
    if lowercase:
        steps.append(normalizers.Lowercase())
    if strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    if kind == "bpe":
        backend = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(_BPE_PATTERN.replace("NUM", number)), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        backend.decoder = decoders.ByteLevel()
        common |= {"min_frequency": min_frequency, "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
        trainer = trainers.BpeTrainer(special_tokens=_special(names, kind), **common)
    else:
        backend = Tokenizer(models.Unigram())
        steps.append(normalizers.Replace(Regex(r"\s+"), " "))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        common["vocab_size"] = vocab_size + vocab_size // 3  # of which _to_words drops what it must
        trainer = trainers.UnigramTrainer(special_tokens=_special(names, kind), unk_token="[UNK]", **common)
    backend.normalizer = normalizers.Sequence(steps)
    return backend, trainer


def _alphabet_limit(vocab_size: int) -> int:
    """Return how many characters a WordPiece vocabulary holds, each as itself and as ##itself; the rare ones become [UNK]."""
    return max(100, vocab_size // 8)


def _special(names: list[str], kind: str) -> list[Any]:
    from tokenizers import AddedToken

    # the mask swallows the space before it, where a space is part of the token that follows: it stands for that token
    return [AddedToken(name, special=True, normalized=False, lstrip=name == "[MASK]" and kind != "wordpiece") for name in names]


def _bert_words(digits: str) -> Any:
    from tokenizers import pre_tokenizers

    words: list[Any] = [pre_tokenizers.BertPreTokenizer()]
    return pre_tokenizers.Sequence([*words, pre_tokenizers.Digits(individual_digits=True)] if digits == "single" else words)


def _to_wordpiece(bpe: Tokenizer, names: list[str], characters: Counter[str], vocab_size: int, digits: str) -> Tokenizer:
    """Return a WordPiece tokenizer made of the merges of a BPE that marked the beginnings of words.

    The library's own WordPiece trainer does the same with ##, but numbers its pieces in the order of a hash table: no two runs agree.
    """
    from tokenizers import Tokenizer, decoders, models

    counts: Counter[str] = Counter()
    for character, count in characters.items():
        for part in bpe.normalizer.normalize_str(character) if bpe.normalizer else character:
            counts[part] += count
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: _alphabet_limit(vocab_size)]
    alphabet = {character for character, _ in common}
    learnt = sorted(bpe.get_vocab().items(), key=lambda item: item[1])[len(names) :]
    single = [token for token, _ in learnt if len(token) == 1 and token in alphabet]
    tokens = dict.fromkeys([*names, *single, *(f"##{token}" for token in single)])
    full = max(vocab_size, len(tokens))
    for token, _ in learnt:
        if len(tokens) >= full:
            break
        begins, text = token.startswith("▁"), token.removeprefix("▁")
        if len(text) > 1 and alphabet.issuperset(text):
            tokens.setdefault(text if begins else f"##{text}")
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=200))  # type: ignore[call-arg]
    backend.normalizer, backend.pre_tokenizer = bpe.normalizer, _bert_words(digits)
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(_special(names, "wordpiece"))
    return backend


def _to_words(trained: Tokenizer, names: list[str], vocab_size: int, digits: str) -> Tokenizer:
    """Return a Unigram tokenizer whose pieces stay within words, runs of digits and runs of punctuation.

    The trainer sees words with their punctuation: it takes up only what occurs in two different ones, so that of words cut out clean
    the commonest would be missing ("▁tha" without its t).
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    spec = json.loads(trained.to_str())
    learnt = spec["model"]["vocab"][len(names) :]
    kept = sorted((row for row in learnt if _is_one_word(row[0], digits)), key=lambda row: (-row[1], row[0]))
    spare = len(kept) + len(names) - vocab_size
    if spare > 0:  # the least likely go, but no character of the alphabet
        drop = {row[0] for row in [row for row in reversed(kept) if len(row[0]) > 1][:spare]}
        kept = [row for row in kept if row[0] not in drop]
    spec["model"]["vocab"] = spec["model"]["vocab"][: len(names)] + kept
    backend = Tokenizer.from_str(json.dumps(spec))
    split = pre_tokenizers.Split(Regex(_UNIGRAM_PATTERN.replace("NUM", "" if digits == "single" else "+")), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), split])
    return backend


def _is_one_word(piece: str, digits: str) -> bool:
    text = piece.removeprefix("▁")
    classes = {LETTER if kind in (ALONE, CONTINUES) else kind for kind in map(character_class, text)}
    return len(classes) <= 1 and "▁" not in text and (digits == "whole" or classes != {NUMBER} or len(text) == 1)


def _pieces(texts: Iterable[str], characters: Counter[str]) -> Iterator[str]:
    for text in texts:
        start = 0
        while start < len(text):
            stop = start + _PIECE
            if stop < len(text):
                space = text.rfind(" ", start + _PIECE // 2, stop)
                stop = space if space > 0 else stop
            # the trainers are quadratic in the length of a word, and files hold words of a megabyte (base64, say)
            if piece := _ENDLESS.sub(r"\1 ", text[start:stop]).strip():
                characters.update(piece)
                yield piece
            start = stop


def _chain(head: list[str], rest: Iterator[str]) -> Iterator[list[str]]:
    """Yield lists of a thousand texts: the trainers read a list in parallel."""
    while head:
        head += islice(rest, 999 if len(head) else 1000)
        yield head
        head = list(islice(rest, 1))


def template(backend: Tokenizer, cls: str, sep: str) -> Any:
    """Return the post-processor that puts one text, or two with their token types, between the special tokens."""
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, backend.token_to_id(cls)), (sep, backend.token_to_id(sep))],
    )


def wrap(
    backend: Tokenizer, names: dict[str, str], *, max_length: int = 512, extra: Sequence[str] = (), types: bool = True
) -> PreTrainedTokenizerFast:
    """Return the transformers tokenizer around one of the tokenizers library."""
    from transformers import PreTrainedTokenizerFast

    inputs = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    more = {"extra_special_tokens": list(extra)} if extra else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=max_length, model_input_names=inputs, clean_up_tokenization_spaces=False, **names, **more
    )
