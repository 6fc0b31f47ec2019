"""What adapting a model gave and what it cost: the base model and the adapted one on text of the domain and on general text."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.clean import content_hash, normalise
from ..data.frozen import EVAL_SEED
from ..data.text import read
from ..data.tokenizer import describe, load_tokenizer, tokenizer_hash
from ..data.vocab_extension import Extension
from ..data.whole import write_text
from ..errors import CheckpointError, DataError, UnmaskError
from ..infer.engine import Engine
from ..model.load import load_model
from ..train import recipe as recipes
from ..train.card import SECTION, before_and_after, with_section
from ..train.extension import VOCABULARY
from ..train.recipe import Recipe
from ..train.replay import REPLAY
from ..train.setup import find_device, is_packed
from .paired import difference, verdict
from .pairs import WORD_DEFINITIONS, Pairs, folding, tokens, words
from .shared import Answered
from .stats import RESAMPLES

ADAPTATION, HELD_OUT = "adaptation.json", "heldout.jsonl"
BYTES_PER_TOKEN = 2.5  # of train.eval_tokens: about half of them; the text is cut to bytes, which no tokenizer changes
TOKEN_METRICS = ("masked_loss", "masked_perplexity", "masked_accuracy", "bits_per_byte")
MARGIN = 0.01  # bits per byte: less is no gain and no forgetting
MIN_WORD_COUNT, WORDS_SHOWN, ADDED_SHOWN = 5, 20, 100

DEFINITIONS = {
    **WORD_DEFINITIONS,
    "masked_word_loss": "mean over hidden words of the negative log-probability of their pieces, each guessed with those before it in view "
    "and added up, in nats",
    "masked_word_accuracy": "share of hidden words all of whose pieces are the most probable prediction, given those before them",
    "masked_loss": "mean over masked tokens (15%, of which 80% are behind the mask token, 10% behind a random one, 10% as they are) of the "
    "negative log-probability of the original token, in nats",
}

Models = tuple[tuple[Engine, Any], tuple[Engine, Any]]


def is_wanted(recipe: Recipe) -> bool:
    """Return whether a run is to be measured against the model that it started from."""
    return recipe.base_model is not None and bool(recipe.data.general or recipe.data.replay or recipe.data.extend_vocab)


def write(folder: Path, *, resamples: int = RESAMPLES, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure a finished run's model and its base model, write RUN/adaptation.json and the model card's section, return the results.

    The held-out text of the domain and the general text are each cut to as many bytes as half of `train.eval_tokens` tokens have, about:
    the documents with the smallest hashes. Whole words are hidden in both models alike, and their pieces guessed from left to right, lest
    a tokenizer with more pieces has to guess them blindly; where the tokenizer is the same, tokens are hidden, too. Where no general text
    is named, it is what was held out of the replayed text.
    Raises: CheckpointError where the base model is not there any more; DataError for a text without a word.
    """
    recipe = recipes.load(folder / "config.toml")
    named = _sources(recipe, folder)
    if recipe.data.replay and "general" not in named:
        say("nothing is held out of the replayed text, so what was forgotten is not measured; name text to measure it on: --general")
    if not named and not recipe.data.extend_vocab:
        return {}
    say("comparing with the base model on " + ("held-out and general text" if "general" in named else "held-out text"))
    models = _models(recipe, folder)
    same = len({tokenizer_hash(tokenizer) for _, tokenizer in models}) == 1
    texts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="unmask-adaptation-") as place:
        for name, (shown, sources, reading) in named.items():
            path = Path(place) / f"{name}.jsonl"
            counts = sample(sources, path, max_bytes=int(BYTES_PER_TOKEN * recipe.train.eval_tokens), **reading)
            texts[name] = {
                "sources": shown, **counts, **_compare(models, path, recipe.data.max_length, resamples, same=same),
                "tokenizer": _fertility(models, path),
            }  # fmt: skip
    result = {
        "kind": "adaptation", "before": recipe.base_model, "after": str(folder / "model"), "same_tokenizer": same, "texts": texts,
        "vocabulary": _vocabulary(folder / VOCABULARY),
        "definitions": {**DEFINITIONS, "fertility": "tokens per word, a word being what stands between spaces"},
        "interval": {"level": 0.95, "method": "paired expanded percentile bootstrap over documents", "resamples": resamples},
    }  # fmt: skip
    write_text(folder / ADAPTATION, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    card = folder / "model" / "README.md"
    if card.is_file():
        write_text(card, with_section(card.read_text(encoding="utf-8"), SECTION, before_and_after(result)))
    return result


def _models(recipe: Recipe, folder: Path) -> Models:
    device = find_device(recipe.train.device)

    def one(name: str | Path, tokenizer: Any) -> tuple[Engine, Any]:
        return Engine(load_model(name, tokenizer=tokenizer).to(device)), tokenizer  # type: ignore[arg-type]

    base = str(recipe.base_model)
    try:
        before = one(base, load_tokenizer(recipe.data.tokenizer or base))
    except UnmaskError as error:
        raise CheckpointError(
            f"the model is finished ('{folder / 'model'}'), but cannot be compared with the one that it started from: {error}"
        ) from error
    return before, one(folder / "model", load_tokenizer(folder / "model"))


def _sources(recipe: Recipe, folder: Path) -> dict[str, tuple[list[str], list[str | Path], dict[str, Any]]]:
    """Return (what to call them, files, how to read them) of the texts to measure on; of a packed corpus, its held-out text."""
    data = recipe.data
    found: dict[str, tuple[list[str], list[str | Path], dict[str, Any]]] = {}
    if heldout := _held_out([folder / "corpus", *map(Path, data.sources)]):
        found["domain"] = ["held-out documents of the run"], [heldout], {}
    if data.general:
        packed = [is_packed(source) for source in data.general]
        named: list[str | Path] = [Path(one) / HELD_OUT if inside else one for one, inside in zip(data.general, packed, strict=True)]
        reading = {} if any(packed) else {"format": data.format, "text_column": data.text_column, "encoding": data.encoding}
        found["general"] = [Path(source).name for source in data.general], named, reading
    elif data.replay and (heldout := _held_out([folder / REPLAY, *map(Path, data.replay)])):
        found["general"] = ["held-out documents of the replayed text"], [heldout], {}
    return found


def _held_out(corpora: Iterable[Path]) -> Path | None:
    return next((corpus / HELD_OUT for corpus in corpora if (corpus / HELD_OUT).is_file()), None)


def sample(sources: Sequence[str | Path], path: Path, *, max_bytes: int = 0, **reading: Any) -> dict[str, int]:
    """Write the documents of files with the smallest content hashes, some `max_bytes` of them (0: all), as JSON lines; return counts.

    What is taken does not depend on the order of the documents, nor on any tokenizer.
    Raises: DataError where no document holds text.
    """
    kept: list[tuple[int, str, str, int]] = []
    size = num_read = 0
    for document in read(sources, **reading):
        text = normalise(document.text)
        num_read += 1
        if not text:
            continue
        num_bytes = len(text.encode("utf-8"))
        heapq.heappush(kept, (-content_hash(text), text, document.id, num_bytes))
        size += num_bytes
        while max_bytes and size - kept[0][3] >= max_bytes:
            size -= heapq.heappop(kept)[3]
    if not kept:
        raise DataError(f"there is nothing to measure on in '{sources[0]}': {num_read:,} documents, and none holds text; name other files")
    with open(path, "w", encoding="utf-8") as file:
        for _, text, name, _ in sorted(kept, reverse=True):
            file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
    return {"num_documents": len(kept), "num_documents_read": num_read, "num_bytes": size}


class _Changes:
    """How the log-probability of each word changed, added up over its occurrences."""

    def __init__(self, models: Models) -> None:
        self.small = all(folding(tokenizer)[0] for _, tokenizer in models)
        self.sums: dict[str, list[float]] = {}

    def add(self, answered: Answered) -> None:
        item = answered.item
        spans = zip(item.words.starts[item.chosen].tolist(), item.words.stops[item.chosen].tolist(), strict=True)
        for (start, stop), before, after in zip(spans, *(values.tolist() for values in answered.log_prob), strict=True):
            word = item.document.text[start:stop]
            found = self.sums.setdefault(word.lower() if self.small else word, [0, 0.0, 0.0])
            found[0], found[1], found[2] = found[0] + 1, found[1] + before, found[2] + after

    def table(self) -> dict[str, Any]:
        """Return the words that rose and fell most, by the mean over their occurrences, of those that are frequent enough."""
        rows: list[dict[str, Any]] = [
            {"word": word, "count": int(count), "before": before / count, "after": after / count, "difference": (after - before) / count}
            for word, (count, before, after) in self.sums.items()
            if count >= MIN_WORD_COUNT
        ]
        rows.sort(key=lambda row: (-row["difference"], row["word"]))
        rose = sum(row["difference"] > 0 for row in rows)
        return {
            "min_count": MIN_WORD_COUNT, "num_words": len(self.sums), "num_frequent": len(rows), "num_rose": rose,
            "num_fell": sum(row["difference"] < 0 for row in rows), "rose": [row for row in rows[:WORDS_SHOWN] if row["difference"] > 0],
            "fell": [row for row in rows[: -WORDS_SHOWN - 1 : -1] if row["difference"] < 0],
        }  # fmt: skip


def _compare(models: Models, path: Path, max_length: int, resamples: int, *, same: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": EVAL_SEED, "slice_by": None, "resamples": resamples}
    limit = min([max_length, *(engine.max_length for engine, _ in models if engine.max_length)])
    changes = _Changes(models)
    hidden = words(models, path, max_length=limit, watch=changes.add, left_to_right=True, **options)
    result: dict[str, Any] = {"words": {**_numbers(hidden, tuple(WORD_DEFINITIONS), resamples), **_about(hidden)}, "tokens": None}
    bits = result["words"]["bits_per_byte"]
    found = _difference(hidden, "bits_per_byte", resamples)
    said, _ = verdict("bits per byte", found, margin=MARGIN, lower_is_better=True)
    result |= {"verdict": said, "bits_per_byte": bits, "changes": changes.table()}
    if same:
        masked = tokens(models, path, policy="corrupt", views=1, max_length=limit, folders=(None, None), progress=None, **options)
        result["tokens"] = {**_numbers(masked, TOKEN_METRICS, resamples), **_about(masked)}
    return result


def _difference(pairs: Pairs, name: str, resamples: int) -> Any:
    return difference(
        pairs.a.point[name], pairs.b.point[name], pairs.a.samples[name], pairs.b.samples[name],
        count=pairs.a.counts[""], num_documents=pairs.a.num_documents[""], resamples=resamples,
    )  # fmt: skip


def _numbers(pairs: Pairs, names: Iterable[str], resamples: int) -> dict[str, Any]:
    """Return name -> {before, after, difference, low, high, count, num_documents}; low and high bound the difference."""
    found = {name: _difference(pairs, name, resamples).to_dict() for name in names}
    return {name: {"before": one.pop("a"), "after": one.pop("b"), **one} for name, one in found.items()}


def _about(pairs: Pairs) -> dict[str, Any]:
    return {"num_hidden": len(pairs.document), **{name: pairs.info.get(name) for name in ("masks_fingerprint", "policy", "max_length")}}


def _fertility(models: Models, path: Path) -> dict[str, Any]:
    """Return how the tokenizers do on a text, and the tokens that the second saves."""
    texts = [document.text for document in read(path)]
    before, after = (describe(tokenizer, texts) for _, tokenizer in models)
    return {"before": before, "after": after, "saved": (before["tokens"] - after["tokens"]) / max(1, before["tokens"])}


def _vocabulary(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = Extension.load(path)
    return {
        "num_words": len(found.words), "num_eligible": found.num_eligible, "min_count": found.min_count,
        "min_documents": found.min_documents, "training_tokens": found.num_tokens, "training_tokens_saved": found.saved,
        "words": [
            {"word": word.word, "pieces": list(word.pieces), "count": word.count, "saved": word.saved} for word in found.words[:ADDED_SHOWN]
        ],
    }  # fmt: skip


def lines(results: Mapping[str, Any]) -> list[str]:
    """Return the results as a few lines for a terminal."""
    said = []
    for name, text in results["texts"].items():
        bits = text["bits_per_byte"]
        counts = f"{bits['count']:,} words, {bits['num_documents']:,} documents"
        said.append(f"{name:8} {change(bits, 3)} bits per byte: {text['verdict']} ({counts})")
    for name, text in results["texts"].items():
        before, after = (text["tokenizer"][side]["fertility"] for side in ("before", "after"))
        more = f" -> {after:.3f} ({text['tokenizer']['saved']:.1%} fewer tokens)" if not results["same_tokenizer"] else ""
        said.append(f"{name:8} {before:.3f}{more} tokens per word")
    for name, text in results["texts"].items():
        kind = "rose" if name == "domain" else "fell"
        some = ", ".join(f"{row['word']} ({row['difference']:+.1f}, {row['count']} times)" for row in text["changes"][kind][:5])
        if some:
            said.append(f"{name:8} {kind} most: {some}")
    return said


def change(found: Mapping[str, Any], digits: int) -> str:
    """Return a number before and after, and its difference with the interval."""
    bounds = "no interval" if found["low"] is None else f"95% {found['low']:+.{digits}f} to {found['high']:+.{digits}f}"
    return f"{found['before']:.{digits}f} -> {found['after']:.{digits}f} ({found['difference']:+.{digits}f}, {bounds})"
