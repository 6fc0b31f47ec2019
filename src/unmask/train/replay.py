"""A run beside whose domain there is general text: replayed, so that it is not forgotten, or compared with, to find the domain's terms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.loader import Loader
from ..data.masking import Terms, Vocabulary
from ..data.replay import FIRST_KEY, ReplayLoader
from ..data.store import TokenStore
from ..data.terms import find_terms, load_terms
from ..errors import ConfigError, DataError
from .recipe import DataConfig, Recipe

REPLAY, GENERAL = "replay", "general"  # in the run's folder: general text that was packed for it, with and without a held-out part
TERMS = "terms.json"
EVAL_TOKENS = 20_000  # of the replayed corpus's held-out text are measured on in the loop at most: it costs every evaluation

Say = Callable[[str], None]


def check(recipe: Recipe, is_packed: Callable[[str], bool]) -> None:
    """Raise an error for replay or terms that cannot be, as far as that can be seen at once."""
    from ..data.text import expand

    data = recipe.data
    if recipe.masking.strategy == "terms" and not (data.replay or data.general):
        raise ConfigError(
            'masking.strategy = "terms" hides the words that stand out against general text, and none is named; '
            "give it with --general or --replay (data.general, data.replay)"
        )
    if not data.replay:
        if data.replay_ratio is not None:
            raise ConfigError(
                f"data.replay_ratio = {data.replay_ratio}, but no text to replay is named; give it with --replay (data.replay)"
            )
        return
    if "-" in data.replay:
        raise ConfigError("data.replay = '-': standard input is kept for --data; name files")
    packed = [source for source in data.replay if is_packed(source)]
    if packed and len(data.replay) > 1:
        raise ConfigError(
            f"data.replay names the packed corpus '{packed[0]}' and something else; name one packed corpus alone, or files only"
        )
    if not packed:
        expand(list(data.replay))  # a file that is not there is told before the domain is packed
        for name, others in (("data.sources", data.sources), ("data.general", data.general)):
            both = sorted(set(data.replay) & set(others))
            if both and name == "data.sources":
                raise ConfigError(f"'{both[0]}' is named in data.sources and in data.replay; name general text to replay")
            if both:
                raise ConfigError(
                    f"'{both[0]}' is to be replayed and to be measured on (data.general), and what is trained on says nothing of what is "
                    "forgotten; name another file, or pack it (unmask pack) and name the corpus in both: what it holds out is measured on"
                )
    if int(data.replay_share * data.batch_tokens) < data.max_length:
        least = int(-(-data.max_length // data.replay_share))
        raise ConfigError(
            f"data.replay_ratio = {data.replay_share} of data.batch_tokens = {data.batch_tokens} is less than a window of "
            f"data.max_length = {data.max_length} tokens; raise batch_tokens to {least} or more, or the ratio"
        )
    if data.batch_tokens - int(data.replay_share * data.batch_tokens) < data.max_length:
        raise ConfigError(f"data.replay_ratio = {data.replay_share} leaves no room for a window of the domain's own text; lower it")


def find_text(
    name: str, recipe: Recipe, folder: Path, tokenizer: Any, tokenizer_hash: str, is_packed: Callable[[str | Path], bool], say: Say
) -> Path:
    """Return the packed corpus of the general text of a run; raw text is packed into the run's folder, by its name.

    Raises: StoreError for a corpus that was packed with another tokenizer.
    """
    from ..data.pack import pack

    data = recipe.data
    sources = data.replay if name == REPLAY else data.general
    if len(sources) == 1 and is_packed(sources[0]):
        corpus = Path(sources[0])
        inside = corpus / "train" if (corpus / "train").is_dir() else corpus
        TokenStore.open(inside, tokenizer_hash=tokenizer_hash)
        return corpus
    mixed = next((source for source in sources if is_packed(source)), None)
    if mixed is not None:
        raise ConfigError(
            f"data.{name} names the packed corpus '{mixed}' and something else; to find terms, name one corpus, or files only"
        )
    corpus = folder / name
    if not is_packed(corpus):
        say(f"packing {', '.join(sources)} into {corpus}")
        held_out = data.held_out_share if name == REPLAY else 0.0
        pack(list(sources), corpus, tokenizer=tokenizer, held_out=held_out, encoding=data.encoding, text_column=data.text_column)
    return corpus


def open_train(corpus: Path, tokenizer_hash: str, *, verify: bool) -> TokenStore:
    """Return the part of a packed corpus that is trained on.

    Raises: DataError where it holds nothing.
    """
    store = TokenStore.open(corpus / "train" if (corpus / "train").is_dir() else corpus, tokenizer_hash=tokenizer_hash, verify=verify)
    if not store.num_tokens:
        raise DataError(f"the packed corpus '{corpus}' holds no tokens; give more general text")
    return store


def parts(data: DataConfig, limit: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the tokens of a step and of a pass through the model, for the domain and for what is replayed beside it."""
    replayed = int(data.replay_share * data.batch_tokens)
    return _passes(data.batch_tokens - replayed, limit, data.max_length), _passes(replayed, limit, data.max_length)


def _passes(tokens: int, limit: int, max_length: int) -> tuple[int, int]:
    number = max(1, min(-(-tokens // limit), tokens // max_length))
    return tokens // number * number, tokens // number


def with_replay(
    domain: Loader, store: TokenStore, recipe: Recipe, specials: Any, sizes: tuple[int, int], say: Say, **shape: Any
) -> ReplayLoader:
    """Return a loader whose steps are those of `domain` with replayed text beside them.

    Of the terms of the domain general text has few: with masking.strategy = "terms", its masks are of whole words.
    Raises: DataError where the text does not fill one step's part.
    """
    masking = recipe.masking
    if masking.strategy == "terms":
        masking = dataclasses.replace(masking, strategy="whole_word")
    batch_tokens, micro_tokens = sizes
    replay = Loader(
        store, specials, masking, seed=recipe.train.seed, batch_tokens=batch_tokens, micro_tokens=micro_tokens,
        keys=FIRST_KEY + np.arange(len(store)), **shape,
    )  # fmt: skip
    if replay.steps_per_epoch() < 2:
        raise DataError(
            f"the text to replay holds {store.num_tokens:,} tokens, which do not fill its part of two steps ({batch_tokens:,} tokens each, "
            f"data.replay_ratio = {recipe.data.replay_share}); give more of it, or lower the ratio"
        )
    result = ReplayLoader(domain, replay)
    say(
        f"replay: {result.share:.1%} of the tokens of a step; an epoch of the domain has "
        f"{domain.steps_per_epoch() / replay.steps_per_epoch():.2f} passes over the {store.num_tokens:,} tokens of general text"
    )
    return result


def run_terms(
    folder: Path, domain: TokenStore, general: Callable[[], TokenStore], vocabulary: Vocabulary, tokenizer: Any, say: Say
) -> Terms:
    """Return the terms of a run: found once, when it begins, and kept in its folder as terms.json."""
    path = folder / TERMS
    if not path.is_file():
        found = find_terms(domain, general(), vocabulary, tokenizer)
        partial = path.with_name(f"{TERMS}.partial")
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
        top = ", ".join(term["word"] for term in found["terms"][:8])
        say(f"{found['num_terms']:,} words stand out in the domain ({found['share_of_tokens']:.1%} of its tokens): {top}, ...")
    return load_terms(path)
