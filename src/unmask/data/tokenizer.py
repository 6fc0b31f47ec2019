"""Tokenizers: train one, load any, describe it. All kinds speak BERT's special tokens and are plain Hugging Face folders on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..box import or_box
from ..errors import RunError, TokenizerError
from ..hub import only_local, why_not
from .manifest import TRAINING, WEIGHTS, check_manifest
from .vocabulary import BERT_NAMES, Kind, template, train_tokenizer, wrap
from .whole import unfinished
from .words import word_starts, word_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "Kind", "Specials", "describe", "frame", "load_tokenizer", "save_tokenizer", "special_ids", "tokenizer_hash", "train_tokenizer",
    "word_starts", "word_table",
]  # fmt: skip

_ROBERTA_NAMES = {"unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
# names by which a special token is known when nothing says which one it is, the likeliest first
_KNOWN = {
    "mask_token": ("[MASK]", "<mask>", "<|mask|>", "[mask]"),
    "pad_token": ("[PAD]", "<pad>", "<|padding|>", "<|pad|>"),
    "cls_token": ("[CLS]", "<s>", "<cls>", "<|begin_of_text|>"),
    "sep_token": ("[SEP]", "</s>", "<sep>", "<eos>", "<|end_of_text|>"),
    "unk_token": ("[UNK]", "<unk>"),
}


def load_tokenizer(name_or_path: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder, a Hub id, or a bare vocab.txt, tokenizer.json or vocab.json with merges.txt beside it.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured; no code of a repository is run. Saved truncation and padding are off.
    Raises: TokenizerError where there is none, or it lacks a token that masked language models need.
    """
    name = str(or_box(name_or_path))
    path = Path(name).expanduser()
    if path.is_file():
        tokenizer = _load_file(path)
    elif path.is_dir():
        tokenizer = _load_folder(path)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or name.endswith((".txt", ".json")):
        raise TokenizerError(f"there is no file or folder '{name}'; name a tokenizer's folder, vocab.txt or tokenizer.json, or a Hub id")
    else:
        tokenizer = _load_auto(name, revision)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(f"the tokenizer of '{name}' ({type(tokenizer).__name__}) has no tokenizer.json and cannot be made into one")
    backend.no_truncation()
    backend.no_padding()
    for key in ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    _check(tokenizer, name)
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Write a tokenizer's files into a folder.

    Raises: RunError when the disk is full or cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError):  # tokenizers raises a bare one for what the system refuses
            raise
        raise RunError(f"the tokenizer could not be written to '{folder}': {error}; make room or name another folder") from error


def _load_folder(path: Path) -> Any:
    check_manifest(path, leave_out=(*WEIGHTS, *TRAINING), error=TokenizerError)
    has = {file.name for file in path.iterdir()}
    if "tokenizer_config.json" in has and has & {"tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model"}:
        return _load_auto(str(path), None)
    for file in ("tokenizer.json", "vocab.txt", "vocab.json"):
        if file in has:
            return _load_file(path / file)
    if any(file.endswith((".model", ".vocab")) for file in has) and "config.json" in has:
        return _load_auto(str(path), None)
    for inner in ("tokenizer", "model"):  # a packed corpus, a run
        if inner in has and (path / inner / "tokenizer.json").is_file():
            return _load_folder(path / inner)
    raise TokenizerError(
        f"'{path}' holds no tokenizer; expected tokenizer.json, vocab.txt, or vocab.json with merges.txt{unfinished(path)}"
    )


def _load_auto(name: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=Path(name).is_dir() or only_local(), **options)
    except Exception as error:  # the Hub, json and tokenizers each raise their own kind
        if Path(name).is_dir():
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise TokenizerError(f"cannot load the tokenizer in '{name}': {reason}") from error
        raise TokenizerError(f"there is no folder '{name}', and no such model can be had from the Hub: {why_not(error)}") from error


def _load_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        if path.name == "merges.txt" or (path.suffix == ".json" and path.name.endswith("vocab.json")):
            return _load_vocab_json(path.with_name(path.name.replace("merges.txt", "vocab.json")))
        if path.suffix == ".txt":
            return _load_vocab_txt(path)
        backend = Tokenizer.from_file(str(path))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"'{path}' is not a tokenizer file ({error}); expected tokenizer.json, vocab.txt or vocab.json") from error
    vocab = backend.get_vocab()
    names = {role: known for role, options in _KNOWN.items() if (known := next((x for x in options if x in vocab), None))}
    return wrap(backend, names, types="[CLS]" in vocab)


def _load_vocab_txt(path: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"'{path}' is not UTF-8 text (byte {error.start}); a vocab.txt holds one token a line") from None
    if lines and not lines[-1]:
        lines.pop()
    lines = [line.rstrip("\r") for line in lines]
    vocab = {token: number for number, token in enumerate(lines)}
    lacking = [token for token in BERT_NAMES.values() if token not in vocab]
    if lacking:
        raise TokenizerError(f"'{path}' has no line {' '.join(lacking)}: it is not the vocabulary of a BERT tokenizer (one token a line)")
    # a vocabulary without one capital letter was made from lowercased text, with accents stripped as BERT does
    lowercase = not any(token != token.lower() for token in lines if not (token.startswith("[") and token.endswith("]")))
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))  # type: ignore[call-arg]
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in BERT_NAMES.values()])
    backend.post_processor = template(backend, "[CLS]", "[SEP]")
    return wrap(backend, BERT_NAMES)


def _load_vocab_json(path: Path) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    for file in (path, merges):
        if not file.is_file():
            raise TokenizerError(f"there is no '{file}'; a byte-level BPE tokenizer is vocab.json with merges.txt beside it")
    backend = Tokenizer(models.BPE.from_file(str(path), str(merges)))
    vocab = backend.get_vocab()
    names = next((names for names in (_ROBERTA_NAMES, BERT_NAMES) if all(token in vocab for token in names.values())), None)
    if names is None:
        lacking = ", ".join(token for token in _ROBERTA_NAMES.values() if token not in vocab)
        raise TokenizerError(
            f"'{path}' has no {lacking}, so it is not the vocabulary of a masked language model (GPT-2's has no mask, for one); "
            "name an encoder's tokenizer, or train one with `unmask tokenizer`"
        )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, lstrip=role == "mask_token") for role, token in names.items()])
    cls, sep = names["cls_token"], names["sep_token"]
    backend.post_processor = processors.RobertaProcessing((sep, vocab[sep]), (cls, vocab[cls]), add_prefix_space=False)
    return wrap(backend, names, types=False)


def _check(tokenizer: Any, name: str) -> None:
    """Name the special tokens that are in the vocabulary but were not said to be special; complain of those that are needed and missing."""
    vocab = tokenizer.get_vocab()
    substitutes = {"cls_token": tokenizer.bos_token, "sep_token": tokenizer.eos_token}
    lacking = []
    for role, options in _KNOWN.items():
        if getattr(tokenizer, role) is not None:
            continue
        known = substitutes.get(role) or next((token for token in options if token in vocab), None)
        if known is not None:
            setattr(tokenizer, role, known)
        elif role != "unk_token":
            lacking.append(role.removesuffix("_token"))
    if lacking:
        what = "token" if len(lacking) == 1 else "tokens"
        raise TokenizerError(
            f"the tokenizer '{name}' has no {' and no '.join(lacking)} {what}, which masked language models need; name the tokenizer of an "
            "encoder (BERT, RoBERTa, ModernBERT and their like), train one with `unmask tokenizer`, or add the token to this one"
        )


class Specials(NamedTuple):
    """The ids of the special tokens; `all` also holds those that have no role here, in order."""

    mask: int
    pad: int
    cls: int
    sep: int
    unk: int | None
    all: tuple[int, ...]


def special_ids(tokenizer: Any) -> Specials:
    """Return the ids of the special tokens of a tokenizer.

    Raises: TokenizerError where it has no mask, pad, cls or sep token.
    """
    _check(tokenizer, getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Specials(
        mask=tokenizer.mask_token_id, pad=tokenizer.pad_token_id, cls=tokenizer.cls_token_id, sep=tokenizer.sep_token_id,
        unk=tokenizer.unk_token_id, all=tuple(sorted(added | set(tokenizer.all_special_ids))),
    )  # fmt: skip


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and after the content of a single text."""
    encoding = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
    if not inside:
        return [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


def tokenizer_hash(tokenizer: Any) -> str:
    """Return 16 hex digits of everything in a tokenizer that turns text into ids (truncation, padding and special frames do not count)."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    counted = {part: _without_none(spec[part]) for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(counted, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def describe(tokenizer: Any, texts: Iterable[str]) -> dict[str, Any]:
    """Return how a tokenizer does on texts: fertility (pieces per whitespace word), unknown_rate, bytes_per_token, round_trip, counts.

    `round_trip` is the share of texts that decoding gives back, whitespace and what the normaliser takes away aside.
    """
    backend, unk = tokenizer.backend_tokenizer, tokenizer.unk_token_id
    counts = dict.fromkeys(("documents", "words", "bytes", "tokens", "unknown", "whole"), 0)
    rest = iter(texts)
    while batch := list(islice(rest, 256)):
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        decoded = backend.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        for text, encoding, back in zip(batch, encodings, decoded, strict=True):
            counts["documents"] += 1
            counts["words"] += len(text.split())
            counts["bytes"] += len(text.encode("utf-8", errors="replace"))
            counts["tokens"] += len(encoding.ids)
            counts["unknown"] += encoding.ids.count(unk) if unk is not None else 0
            counts["whole"] += _bare(backend, text) == _bare(backend, back)
    tokens, documents = counts["tokens"], counts["documents"]
    whole = counts.pop("whole")
    return {
        "vocab_size": len(tokenizer),
        "fertility": tokens / counts["words"] if counts["words"] else None,
        "unknown_rate": counts["unknown"] / tokens if tokens else None,
        "bytes_per_token": counts["bytes"] / tokens if tokens else None,
        "round_trip": whole / documents if documents else None,
        **counts,
    }


def _bare(backend: Tokenizer, text: str) -> str:
    normalised = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    return "".join(normalised.split())
