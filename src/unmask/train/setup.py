"""From a recipe to what the loop needs: tokenizer, packed corpus, model, batches. Doing it twice gives the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.batch import PackedBatch
from ..data.frozen import EVAL_MASKING, EVAL_SEED, content_keys, frozen_batches, frozen_order, masks_fingerprint
from ..data.loader import Loader
from ..data.masking import Vocabulary
from ..data.replay import ReplayLoader
from ..data.store import TokenStore
from ..data.tokenizer import Specials, load_tokenizer, save_tokenizer, special_ids, tokenizer_hash
from ..errors import CheckpointError, ConfigError, DataError
from ..model.load import build_model, check_fit, check_folder, load_model, position_offset
from ..model.memory import tune_allocator
from . import extension, lora, replay
from .distributed import launched
from .precision import Precision, choose
from .recipe import Recipe
from .trackers import check as check_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MICRO_TOKENS = {"cpu": 8192, "cuda": 65_536}  # in one pass where the recipe says nothing; halved when memory runs out


@dataclass
class Setup:
    """Everything that a run is made of, ready to go."""

    recipe: Recipe  # with what "auto" came to
    device: torch.device
    precision: Precision
    tokenizer: PreTrainedTokenizerFast
    store: TokenStore
    heldout: TokenStore | None
    model: PreTrainedModel
    loader: Loader | ReplayLoader
    specials: Specials
    eval_batches: list[PackedBatch]  # frozen; empty where nothing is held out
    masks_fingerprint: str | None
    general_batches: list[PackedBatch]  # frozen; of the replayed text's held-out part


def prepare(recipe: Recipe, folder: Path, *, model_folder: Path | None = None, say: Callable[[str], None]) -> Setup:
    """Return the setup of a run in `folder`, with the model from `model_folder` (a checkpoint) where one is given.

    What takes long and is found there already, a trained tokenizer or a packed corpus, is taken as it is.
    Raises: ConfigError, DataError, TokenizerError, StoreError, CheckpointError.
    """
    tune_allocator()
    device = find_device(recipe.train.device, setting="train.device")
    precision = choose(recipe.train.precision, device, setting="train.precision")
    check_early(recipe)
    if model_folder is None and recipe.base_model is not None:
        check_folder(recipe.base_model)
    corpus, tokenizer = find_corpus(recipe, folder, model_folder, say)
    verify = model_folder is None  # every byte, once a run: its beginning counts all tokens anyway, a resume reads next to nothing
    inside = corpus / "train" if (corpus / "train").is_dir() else corpus
    store = TokenStore.open(inside, tokenizer_hash=tokenizer_hash(tokenizer), verify=verify)
    if not store.num_tokens:
        raise DataError(f"the packed corpus '{corpus}' holds no tokens to train on")
    model = find_model(recipe, tokenizer, folder, model_folder)
    check_fit(model, tokenizer, recipe.data.max_length)
    specials = special_ids(tokenizer)
    embeddings: Any = model.get_input_embeddings()
    shape: dict[str, Any] = {
        "vocab_size": int(embeddings.weight.shape[0]),
        "max_length": recipe.data.max_length,
        "position_offset": position_offset(model),
    }
    batch_tokens, micro_tokens, terms, general = 0, 0, None, None
    loader: Loader | ReplayLoader
    own = recipe
    if recipe.data.replay:
        general = replay.find_text(replay.REPLAY, recipe, folder, tokenizer, store.tokenizer_hash, is_packed, say)
        limit = recipe.data.micro_tokens or max(MICRO_TOKENS.get(device.type, 8192), recipe.data.max_length)
        (batch_tokens, micro_tokens), replayed = replay.parts(recipe.data, limit)
        data = dataclasses.replace(recipe.data, batch_tokens=batch_tokens, micro_tokens=micro_tokens)
        own = dataclasses.replace(recipe, data=data)
    batch_tokens, micro_tokens = token_counts(own, store, device.type, num_special=2)
    if recipe.masking.strategy == "terms":

        def general_store() -> TokenStore:
            text = general or replay.find_text(replay.GENERAL, recipe, folder, tokenizer, store.tokenizer_hash, is_packed, say)
            return replay.open_train(text, store.tokenizer_hash, verify=verify)

        known = Vocabulary(int(specials.mask), tuple(specials.all), store.vocab_size)
        terms = replay.run_terms(folder, store, general_store, known, tokenizer, say)
    loader = Loader(
        store, specials, recipe.masking, seed=recipe.train.seed, batch_tokens=batch_tokens, micro_tokens=micro_tokens,
        batch_tokens_start=recipe.data.batch_tokens_start, ramp_steps=recipe.data.batch_ramp_steps, terms=terms,
        keep=folder / "order", **shape,
    )  # fmt: skip
    general_batches: list[PackedBatch] = []
    if general is not None:
        other = replay.open_train(general, store.tokenizer_hash, verify=verify)
        loader = replay.with_replay(loader, other, recipe, specials, replayed, say, keep=folder / "order-replay", **shape)
        if (general / "heldout").is_dir():
            kept = TokenStore.open(general / "heldout", tokenizer_hash=store.tokenizer_hash, verify=verify)
            few = min(recipe.train.eval_tokens or replay.EVAL_TOKENS, replay.EVAL_TOKENS)
            measured = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, eval_tokens=few))
            general_batches, _ = eval_batches(kept, specials, measured, micro_tokens=min(micro_tokens, 4096), **shape)
    heldout: TokenStore | None = None
    batches: list[PackedBatch] = []
    fingerprint: str | None = None
    if (corpus / "heldout").is_dir():
        heldout = TokenStore.open(corpus / "heldout", tokenizer_hash=store.tokenizer_hash, verify=verify)
        batches, fingerprint = eval_batches(heldout, specials, recipe, micro_tokens=min(micro_tokens, 4096), **shape)
    resolved = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision.name))
    if recipe.train.parallel != "fsdp" or launched()[1] == 1:  # otherwise it goes there in parts
        model.to(device)  # type: ignore[arg-type]
    return Setup(resolved, device, precision, tokenizer, store, heldout, model, loader, specials, batches, fingerprint, general_batches)


def find_device(name: str, *, setting: str = "device") -> torch.device:
    """Return the device of that name; "auto" is cuda where there is one.

    Raises: ConfigError for a device that this machine does not have, which was given as `setting`.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{setting} = {name!r}; allowed: auto, cpu, cuda, cuda:0, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{setting} = {name!r}; allowed: auto, cpu, cuda, cuda:0, ...")
    if device.type == "cuda" and (device.index or 0) >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise ConfigError(f"{setting} = {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device


def check_early(recipe: Recipe) -> None:
    """Raise ConfigError for what can be seen to be wrong before hours go into packing a corpus."""
    data = recipe.data
    if not data.sources:
        raise ConfigError("no text is named: give --data FILES, or a packed corpus (data.sources in a recipe)")
    check_trackers(recipe.train.trackers)
    extension.check(recipe, is_packed)
    check_general(recipe)
    replay.check(recipe, is_packed)
    lora.check(recipe.lora, recipe.base_model)
    if data.max_length < 8:
        raise ConfigError(f"data.max_length = {data.max_length}; allowed: 8 or more")
    if data.batch_tokens < data.max_length:
        raise ConfigError(f"data.batch_tokens = {data.batch_tokens} is less than data.max_length = {data.max_length}; raise it")
    if data.micro_tokens is not None and (data.micro_tokens < data.max_length or data.batch_tokens % data.micro_tokens):
        raise ConfigError(
            f"data.micro_tokens = {data.micro_tokens}; allowed: a divisor of data.batch_tokens = {data.batch_tokens} "
            f"that is at least data.max_length = {data.max_length}"
        )
    check_ramp(recipe)


def check_ramp(recipe: Recipe) -> None:
    """Raise ConfigError for a number of tokens a step that cannot rise."""
    data, train = recipe.data, recipe.train
    if (data.batch_tokens_start is None) != (data.batch_ramp_steps == 0):
        raise ConfigError(
            f"data.batch_tokens_start = {data.batch_tokens_start}, data.batch_ramp_steps = {data.batch_ramp_steps}: give both, or neither"
        )
    if data.batch_tokens_start is None:
        return
    if not data.max_length <= data.batch_tokens_start <= data.batch_tokens:
        raise ConfigError(
            f"data.batch_tokens_start = {data.batch_tokens_start}; allowed: from data.max_length = {data.max_length} "
            f"to data.batch_tokens = {data.batch_tokens}"
        )
    if data.replay:
        raise ConfigError("data.batch_tokens_start with data.replay: the two parts of a step do not rise together; leave one of them out")
    if train.num_epochs is not None or (train.max_steps is None and train.max_tokens is None and train.max_minutes is None):
        raise ConfigError("data.batch_tokens_start: epochs have more steps while it rises; give the budget in steps, tokens or minutes")


def check_general(recipe: Recipe) -> None:
    """Raise an error for general text that could not be read when the run has ended."""
    from ..data.text import read

    general = recipe.data.general
    if general and recipe.base_model is None:
        raise ConfigError(
            f"data.general = {', '.join(general)}: a model from scratch has nothing to forget; it goes with adapt (base_model in a recipe)"
        )
    if "-" in general:
        raise ConfigError("data.general = '-': standard input cannot be read again when the run has ended; name files")
    for source in general:
        if is_packed(source) and not (Path(source) / "heldout.jsonl").is_file():
            raise ConfigError(f"data.general = '{source}' is a packed corpus without held-out text (heldout.jsonl); name text files")
        reading = {"format": recipe.data.format, "text_column": recipe.data.text_column, "encoding": recipe.data.encoding}
        if not is_packed(source) and next(read(source, **reading), None) is None:  # type: ignore[arg-type]
            raise DataError(f"data.general = '{source}' holds no text; name other files")


def is_packed(path: str | Path) -> bool:
    """Return whether a path is a packed corpus (or the store of one)."""
    return (Path(path) / "train" / "store.json").is_file() or (Path(path) / "store.json").is_file()


def find_corpus(
    recipe: Recipe, folder: Path, model_folder: Path | None, say: Callable[[str], None]
) -> tuple[Path, PreTrainedTokenizerFast]:
    """Return the folder of the packed corpus of a run, and its tokenizer; raw text is packed into the run's own folder."""
    data = recipe.data
    named = model_folder or data.tokenizer or recipe.base_model  # a checkpoint needs nothing that the run started from
    packed = [source for source in data.sources if is_packed(source)]
    if packed:
        if len(data.sources) > 1:
            raise ConfigError(
                f"data.sources names the packed corpus '{packed[0]}' and something else; name one packed corpus alone, or files only"
            )
        corpus = Path(packed[0])
        if named is None and not (corpus / "tokenizer").is_dir():
            raise ConfigError(f"the packed corpus '{corpus}' has no tokenizer beside it; name the one that it was packed with: --tokenizer")
        if data.held_out is not None and model_folder is None:
            say(f"'{corpus}' is packed already, and what it holds out is what is measured on: held_out = {data.held_out:g} changes nothing")
        return corpus, load_tokenizer(named or corpus / "tokenizer")
    corpus = folder / "corpus"
    if is_packed(corpus):  # a run that was interrupted after packing
        return corpus, load_tokenizer(corpus / "tokenizer")
    tokenizer = load_tokenizer(named) if named is not None else trained_tokenizer(recipe, folder, say)
    if data.extend_vocab and model_folder is None:
        tokenizer = extension.extended_tokenizer(recipe, folder, tokenizer, say)
    from ..data.pack import pack

    say(f"packing {', '.join(data.sources)} into {corpus}")
    report = pack(
        list(data.sources), corpus, tokenizer=tokenizer, held_out=data.held_out_share,
        format=data.format, text_column=data.text_column, encoding=data.encoding,
    )  # fmt: skip
    counts = report["documents"]
    say(f"packed {counts['kept']:,} of {counts['read']:,} documents, {report['train']['tokens']:,} tokens to train on")
    return corpus, tokenizer


def trained_tokenizer(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a run that names none, trained on its text."""
    from ..data.text import read
    from ..data.tokenizer import train_tokenizer

    data = recipe.data
    if "-" in data.sources:
        raise ConfigError("standard input is read once, and training a tokenizer takes a pass of its own: name one with --tokenizer")
    if (folder / "tokenizer" / "tokenizer_config.json").is_file():
        return load_tokenizer(folder / "tokenizer")
    say(f"training a {data.tokenizer_kind} tokenizer of {data.vocab_size:,} tokens")
    documents = read(list(data.sources), format=data.format, text_column=data.text_column, encoding=data.encoding)
    tokenizer = train_tokenizer((document.text for document in documents), kind=data.tokenizer_kind, vocab_size=data.vocab_size)
    partial = folder / "tokenizer.partial"
    save_tokenizer(tokenizer, partial)
    partial.rename(folder / "tokenizer")
    return tokenizer


def find_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path, model_folder: Path | None) -> PreTrainedModel:
    """Return the model of a run: a checkpoint's, the one that it continues, or a fresh one; with LoRA, its matrices beside the base's."""
    if recipe.lora.r:  # a checkpoint's weights are merged: what it trains stands on the base, and is restored with the optimizer
        base = lora.keep_base(folder, lambda: _start(recipe, tokenizer, folder), tokenizer)
        model = load_model(base, tokenizer=tokenizer)
        lora.inject(model, recipe.lora, seed=recipe.train.seed)
        if recipe.data.extend_vocab:
            lora.train_embeddings(model)
        return model
    return load_model(model_folder, tokenizer=tokenizer) if model_folder is not None else _start(recipe, tokenizer, folder)


def _start(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedModel:
    if recipe.base_model is not None and recipe.data.extend_vocab:
        return extension.extended_model(folder, load_model(recipe.base_model))
    if recipe.base_model is not None:
        return load_model(recipe.base_model, tokenizer=tokenizer)
    return build_model(recipe.model, tokenizer, max_length=recipe.data.max_length, seed=recipe.train.seed)


def token_counts(recipe: Recipe, store: TokenStore, device_type: str, *, num_special: int) -> tuple[int, int]:
    """Return the tokens of a step and of a pass through the model: the recipe's, or less where the whole corpus is smaller than a step."""
    data = recipe.data
    windows = -(-store.lengths // (data.max_length - num_special))
    # a corpus that is smaller than a step is one pack, not filled up with padding beyond the next round number
    whole = -(-(store.num_tokens + num_special * int(windows.sum())) // 64) * 64
    start = data.batch_tokens_start or data.batch_tokens
    if whole <= data.batch_tokens and start < data.batch_tokens:
        raise ConfigError(
            f"data.batch_tokens_start = {start}: the whole corpus has {whole:,} tokens, no more than a step (data.batch_tokens = "
            f"{data.batch_tokens}); lower that"
        )
    if whole <= data.batch_tokens:
        whole = max(whole, data.max_length)
        return whole, whole
    if data.micro_tokens is not None:
        return data.batch_tokens, data.micro_tokens
    limit = min(max(MICRO_TOKENS.get(device_type, 8192), data.max_length), start)
    common = math.gcd(data.batch_tokens, start)  # a pass divides both
    passes = data.batch_tokens // next(common // n for n in range(1, common + 1) if common % n == 0 and common // n <= limit)
    if data.batch_tokens // passes < data.max_length:
        raise ConfigError(f"data.batch_tokens = {data.batch_tokens} has no divisor from data.max_length to {limit}; set data.micro_tokens")
    return data.batch_tokens, data.batch_tokens // passes


def eval_batches(
    heldout: TokenStore, specials: Specials, recipe: Recipe, *, micro_tokens: int, **shape: Any
) -> tuple[list[PackedBatch], str | None]:
    """Return frozen batches of the held-out documents (those with the smallest keys, where that is enough), and their fingerprint."""
    documents = frozen_order(heldout, content_keys(heldout), recipe.train.eval_tokens)
    if not len(documents):
        return [], None
    common: dict[str, Any] = {"vocab_size": shape["vocab_size"], "seed": EVAL_SEED, "documents": documents}
    batches = frozen_batches(
        heldout, specials, EVAL_MASKING, **common,
        max_length=shape["max_length"], micro_tokens=max(micro_tokens, shape["max_length"]), position_offset=shape["position_offset"],
    )  # fmt: skip
    return list(batches), masks_fingerprint(heldout, specials, EVAL_MASKING, **common)


def claim(output: str | Path) -> Path:
    """Return the folder of a new run, made; what is there already is not touched.

    Raises: CheckpointError where it holds something.
    """
    folder = Path(output).expanduser()
    if folder.is_file():
        raise CheckpointError(f"'{folder}' is a file; name a folder for the run")
    if folder.is_dir() and any(path.name != "config.toml.partial" for path in folder.iterdir()):  # of one that was killed at once
        if (folder / "config.toml").is_file():
            raise CheckpointError(f"'{folder}' already holds a run; go on with it (`unmask resume {folder}`), or choose another name")
        raise CheckpointError(f"'{folder}' exists and is not empty; choose another name for the run")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
