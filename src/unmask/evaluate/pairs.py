"""What two models say of the same hidden tokens (or, where their tokenizers differ, of the same hidden words) of a text."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.clean import normalise
from ..data.text import Document, read
from ..data.words import Surfaces
from ..errors import DataError
from ..infer.engine import Engine
from ..train.setup import is_packed
from .heat import closed
from .masked import measure, window_length
from .metrics import DEFINITIONS, Estimates, estimates
from .shared import SHARE, Answered, Side, ask
from .stats import finite, no_interval, units, weights
from .text import MAX_VALUES, NO_VALUE, open_text

AROUND = 40  # tokens of text kept on each side of a flipped one
AROUND_CHARS = 200

WORD_DEFINITIONS = {
    "masked_word_loss": "mean over hidden words of the negative log-probability, a word's pieces guessed from left to right, in nats",
    "masked_word_perplexity": "exponential of masked_word_loss; not the perplexity of a model that reads from left to right",
    "masked_word_accuracy": "share of hidden words each of whose pieces, those before it given, is the most probable prediction",
    "bits_per_byte": "sum of the losses of the hidden words in bits, over the UTF-8 bytes of their text",
}
_END = re.compile(r"[.!?…。！？](?=\s|$)|\n")


@dataclass
class Pairs:
    """Two models side by side: `a` and `b` hold their numbers with resamples that pair; the rest is a row for each token or word.

    `sentence` makes of a row what is shown of it. Shapes: document, correct and log_prob (for each model) (rows,).
    """

    unit: str
    a: Estimates
    b: Estimates
    document: np.ndarray
    correct: tuple[np.ndarray, np.ndarray]
    log_prob: tuple[np.ndarray, np.ndarray]
    sentence: Callable[[int], dict[str, Any]]
    definitions: Mapping[str, str]
    info: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def tokens(
    models: tuple[tuple[Engine, Any], tuple[Engine, Any]],
    data: str | Path | Sequence[str | Path],
    *,
    policy: str,
    views: int,
    seed: int,
    max_length: int | None,
    slice_by: str | None,
    resamples: int,
    folders: tuple[Path | None, Path | None],
    progress: Callable[[int, int], None] | None,
    **reading: Any,
) -> Pairs:
    """Return what two models with one tokenizer say at the same masked tokens, in windows of the same length."""
    (engine_a, tokenizer), (engine_b, _) = models
    text = open_text(data, tokenizer, slice_by=slice_by, **reading)
    length = min(window_length(engine.max_length, max_length) for engine in (engine_a, engine_b))
    options: dict[str, Any] = {"policy": policy, "views": views, "seed": seed, "max_length": length, "progress": progress}
    a, b = (measure(engine, text, folder=folder, **options) for engine, folder in zip((engine_a, engine_b), folders, strict=True))
    surfaces = Surfaces(tokenizer)
    store, order = text.store, text.order

    def sentence(row: int) -> dict[str, Any]:
        document, place = int(a.document[row]), int(a.position[row])
        first, end = max(0, place - AROUND), min(int(store.lengths[order[document]]), place + AROUND + 1)
        ids = store.gather(order[document : document + 1], np.array([first]), np.array([end]))[0].tolist()
        inside = place - first
        near = [surfaces.text(number) for number in ids[max(0, inside - 1) : inside + 2]]
        names, joined = [name for name, _ in near], [close for _, close in near]
        joined = joined if surfaces.marks_spaces else closed(names, joined)
        here = min(1, inside)
        before, after = (decoded(tokenizer, part) for part in (ids[:inside], ids[inside + 1 :]))
        gaps = ["" if close else " " for close in [joined[here] or not before, *joined[here + 1 :], True][:2]]
        shown = around(before.rstrip(" ") + gaps[0], names[here], gaps[1] + after.lstrip(" "))
        said = [
            {
                "predicted": surfaces.text(int(side.predicted[row]))[0],
                "confidence": float(side.confidence[row]),
                "probability": math.exp(side.log_prob[row]),
            }
            for side in (a, b)
        ]
        where = {"document": a.document_id(document), "position": place, "view": int(a.view[row])}
        return {**where, "before": shown[0], "token": names[here], "after": shown[1], "a": said[0], "b": said[1]}

    info = {key: value for key, value in a.info.items() if key not in ("precision", "part")}
    info |= {"num_empty": text.num_empty, "num_windows": int(a.numbers("num_windows").sum())}
    numbers_a, numbers_b = (estimates(side, resamples=resamples, seed=seed) for side in (a, b))
    return Pairs("token", numbers_a, numbers_b, a.document, (a.correct, b.correct), (a.log_prob, b.log_prob), sentence, DEFINITIONS, info)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """Return the text of tokens; of an exported model's tokenizer too, which has none of transformers' methods."""
    return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))


def around(before: str, word: str, after: str) -> tuple[str, str]:
    """Return the rest of the sentence on both sides of a word, cut where it is long."""
    ends = [match.end() for match in _END.finditer(before.rstrip())]
    before = before[ends[-1] :].lstrip() if ends else before
    end = _END.search(f"{word}{after}", max(0, len(word) - 1))
    after = (after[: max(0, end.end() - len(word))] if end else after).rstrip()
    before = before if len(before) <= AROUND_CHARS else "…" + before[-AROUND_CHARS:]
    return before, after if len(after) <= AROUND_CHARS else after[:AROUND_CHARS] + "…"


# where the tokenizers differ


def words(
    models: tuple[tuple[Engine, Any], tuple[Engine, Any]],
    data: str | Path | Sequence[str | Path],
    *,
    seed: int,
    max_length: int | None,
    slice_by: str | None,
    resamples: int,
    watch: Callable[[Answered], None] | None = None,
    left_to_right: bool = True,
    **reading: Any,
) -> Pairs:
    """Return what two models with different tokenizers say of the same hidden words, all pieces of a word hidden.

    The log-probability of a word is the sum over its pieces, each guessed with those before it in view (the chain rule): per word and per
    byte of the text it compares. Without `left_to_right` no piece sees another. `watch` is shown every document with its words.
    """
    sides = tuple(Side(engine, tokenizer, max_length) for engine, tokenizer in models)
    folds = [folding(tokenizer) for _, tokenizer in models]
    table = _Table(sides, folds)
    for answered in ask(_texts(data, table, slice_by, reading), sides, seed=seed, left_to_right=left_to_right):
        table.add(answered, slice_by)
        if watch is not None:
            watch(answered)
    return table.pairs(seed, resamples, slice_by, folds)


def folding(tokenizer: Any) -> tuple[bool, bool]:
    """Return whether a tokenizer makes capitals small, and whether it takes accents away."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    seen = normalizer.normalize_str("\u00c9") if normalizer is not None else "\u00c9"
    plain = unicodedata.normalize("NFD", seen)
    return plain[:1] == "e", len(plain) == 1


def fold(text: str, case: bool, accents: bool) -> str:
    """Return a text without the differences of case or accents."""
    if accents:
        text = "".join(char for char in unicodedata.normalize("NFD", text) if unicodedata.category(char) != "Mn")
    return (text.casefold() if case else text).strip()


def _texts(data: Any, table: _Table, slice_by: str | None, reading: dict[str, Any]) -> Iterator[Document]:
    """Yield the documents of files, cleaned as `pack` does it, or the held-out ones of a packed corpus."""
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    packed = [Path(source) for source in sources if is_packed(source)]
    for corpus in packed:
        if not (corpus / "heldout.jsonl").is_file():
            raise DataError(
                f"'{corpus}' holds tokens of one tokenizer and no text (no heldout.jsonl), and these models have different tokenizers; "
                "name the text files themselves"
            )
    named = [corpus / "heldout.jsonl" if (corpus := Path(source)) in packed else source for source in sources]
    fields: set[str] = set()
    found = False
    for document in read(named, **{name: value for name, value in reading.items() if value is not None}):
        text = normalise(document.text)
        fields.update(document.meta)
        found = found or slice_by in (None, "source") or document.meta.get(str(slice_by)) is not None
        if text:
            yield replace(document, text=text)
        else:
            table.num_empty += 1
    if not found:
        raise DataError(f"no document has a field '{slice_by}' to slice by; the fields are: {', '.join(sorted(fields | {'source'}))}")


class _Table:
    """The hidden words of all documents, in columns, and what is counted beside them."""

    def __init__(self, sides: tuple[Side, ...], folds: list[tuple[bool, bool]]) -> None:
        self.sides = sides
        self.case, self.accents = (folds[0][part] != folds[1][part] for part in (0, 1))
        self.columns: dict[str, list[np.ndarray]] = {}
        self.names: list[str] = []
        self.keys: list[int] = []
        self.values: list[str] = []
        self.distinct: set[str] = set()
        self.flips: list[dict[int, dict[str, Any]]] = []
        self.num_empty = self.num_without_words = self.num_unscored = self.num_windows = self.num_words = 0

    def add(self, answered: Answered, slice_by: str | None) -> None:
        """Add the words of a document; one without a word to hide is counted."""
        item, document = answered.item, answered.item.document
        self.num_unscored += item.num_unscored
        self.num_windows += len(item.windows)
        self.num_words += len(document.text.split())
        count = len(item.chosen)
        if not count:
            self.num_without_words += 1
            return
        right = [self._right(answered, side) for side in range(len(self.sides))]
        starts, stops = item.words.starts[item.chosen], item.words.stops[item.chosen]
        hidden = [document.text[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        columns = {
            "document": np.full(count, len(self.names)), "start": starts, "stop": stops,
            "num_bytes": np.array([len(word.encode("utf-8", errors="replace")) for word in hidden]),
            "capital": np.array([word != word.lower() for word in hidden]),
            **{f"pieces_{side}": item.words.pieces[side][item.chosen] for side in (0, 1)},
            **{f"log_prob_{side}": answered.log_prob[side] for side in (0, 1)},
            **{f"correct_{side}": right[side] for side in (0, 1)},
        }  # fmt: skip
        for name, values in columns.items():
            self.columns.setdefault(name, []).append(values)
        self.flips.append({int(row): self._sentence(answered, int(row), hidden[row]) for row in np.flatnonzero(right[0] != right[1])})
        self.names.append(document.id)
        self.keys.append(int.from_bytes(hashlib.blake2b(document.text.encode("utf-8", errors="replace"), digest_size=8).digest(), "little"))
        value = document.meta.get(slice_by or "", Path(document.source).name if slice_by == "source" else None)
        self.values.append(NO_VALUE if value is None else value if isinstance(value, str) else json.dumps(value, default=str))
        self.distinct.add(self.values[-1])
        if slice_by is not None and len(self.distinct) > MAX_VALUES:
            raise DataError(
                f"the field '{slice_by}' has more than {MAX_VALUES} values, and slices are made of no more; choose another field"
            )

    def _right(self, answered: Answered, side: int) -> np.ndarray:
        """Return which words a model got right: piece by piece, and where only one of the models sees case or accents, without them."""
        right = answered.correct[side].copy()
        if self.case or self.accents:
            tokenizer, counts = self.sides[side].tokenizer, answered.item.words.pieces[side][answered.item.chosen]
            labels = np.split(answered.item.labels(side), np.cumsum(counts)[:-1])
            for row in np.flatnonzero(~right).tolist():
                said, true = (
                    fold(decoded(tokenizer, ids.tolist()), self.case, self.accents) for ids in (answered.predicted[side][row], labels[row])
                )
                right[row] = said == true
        return right

    def _sentence(self, answered: Answered, row: int, word: str) -> dict[str, Any]:
        item = answered.item
        text, start, stop = item.document.text, int(item.words.starts[item.chosen[row]]), int(item.words.stops[item.chosen[row]])
        before, after = around(text[max(0, start - 2 * AROUND_CHARS) : start], word, text[stop : stop + 2 * AROUND_CHARS])
        said = [
            {
                "predicted": decoded(side.tokenizer, answered.predicted[number][row].tolist()).strip(),
                "confidence": float(answered.confidence[number][row]),
                "probability": math.exp(answered.log_prob[number][row]),
            }
            for number, side in enumerate(self.sides)
        ]
        where = {"document": item.document.id, "position": start}
        return {**where, "before": before, "token": word, "after": after, "a": said[0], "b": said[1]}

    def pairs(self, seed: int, resamples: int, slice_by: str | None, folds: list[tuple[bool, bool]]) -> Pairs:
        """Return the whole of it, documents in the order of the hash of their content, so that the order of files changes nothing."""
        if not self.names:
            raise DataError(
                f"there is no word that both models can be asked for: {self.num_empty + self.num_without_words:,} documents, and none "
                f"holds one ({self.num_unscored:,} words are unknown to a tokenizer or longer than a window); name other text"
            )
        order = np.array(sorted(range(len(self.names)), key=lambda number: (self.keys[number], self.names[number])))
        place = np.argsort(order)
        columns = {name: np.concatenate(values) for name, values in self.columns.items()}
        rows = np.argsort(place[columns["document"]], kind="stable")
        columns = {name: values[rows] for name, values in columns.items()}
        owner = columns["document"]
        first = np.flatnonzero(np.diff(place[owner], prepend=-1))
        inside = np.arange(len(owner)) - np.repeat(first, np.diff(np.append(first, len(owner))))
        columns["document"] = place[owner]
        groups = _groups(columns, np.array(self.values, dtype=object)[owner] if slice_by else None, slice_by)
        a, b = (_estimates(columns, side, groups, seed, resamples) for side in (0, 1))
        digest = hashlib.sha256()
        for name in ("document", "start", "stop"):
            digest.update(columns[name].astype("<i8").tobytes())
        digest.update(np.array(self.keys, dtype=np.uint64)[order].astype("<u8").tobytes())
        info = {
            "policy": "mask", "word_probability": SHARE, "seed": seed, "max_length": [side.room for side in self.sides],
            "slice_by": slice_by, "masks_fingerprint": digest.hexdigest()[:16], "num_empty": self.num_empty,
            "num_documents_without_words": self.num_without_words, "num_words_unscored": self.num_unscored, "num_words": self.num_words,
            "num_windows": self.num_windows, "pieces_per_word": [finite(columns[f"pieces_{side}"].mean()) for side in (0, 1)],
        }  # fmt: skip
        return Pairs(
            "word", a, b, columns["document"], (columns["correct_0"], columns["correct_1"]), (columns["log_prob_0"], columns["log_prob_1"]),
            lambda row: self.flips[owner[row]][int(inside[row])], WORD_DEFINITIONS, info, self._notes(folds),
        )  # fmt: skip

    def _notes(self, folds: list[tuple[bool, bool]]) -> list[str]:
        notes = [
            "The tokenizers differ, so whole words are compared: the same words are hidden from both models, and a word counts as the sum "
            "of the log-probabilities of its pieces, guessed from left to right. The loss of a token would not compare: each model has its "
            "own tokens."
        ]
        for part, what, more in ((0, "makes capitals small", "capitals"), (1, "takes accents away", "accents")):
            if folds[0][part] != folds[1][part]:
                one, other = ("A", "B") if folds[0][part] else ("B", "A")
                notes.append(
                    f"{one} {what} and {other} does not: {other} has to get {more} right too, which its loss pays for; accuracy is counted "
                    f"without regard to {more}."
                )
        return notes


def _groups(columns: dict[str, np.ndarray], values: np.ndarray | None, slice_by: str | None) -> dict[Any, np.ndarray]:
    """Return for each slice, named (dimension, value), which words are in it; "" is all of them."""
    found: dict[Any, np.ndarray] = {"": np.ones(len(columns["start"]), dtype=bool)}
    for side, name in enumerate("ab"):
        pieces = columns[f"pieces_{side}"]
        for low, high, value in ((1, 1, "1"), (2, 2, "2"), (3, 3, "3"), (4, 10**9, "4 and more")):
            found[f"word_pieces_{name}", value] = (pieces >= low) & (pieces <= high)
    found["capitals", "no"], found["capitals", "yes"] = ~columns["capital"], columns["capital"]
    for value in sorted(set(values)) if values is not None else ():
        found[str(slice_by), value] = values == value
    return {group: inside for group, inside in found.items() if inside.any()}


def _estimates(columns: dict[str, np.ndarray], side: int, groups: dict[Any, np.ndarray], seed: int, resamples: int) -> Estimates:
    """Return the metrics of one model over the words, in all and in each slice, with the resamples that all models share."""
    num_documents = int(columns["document"].max()) + 1
    unit = units(num_documents)
    num_units = int(unit[-1]) + 1
    values = (np.ones(len(columns["document"])), -columns[f"log_prob_{side}"], columns[f"correct_{side}"], columns["num_bytes"])
    owner = unit[columns["document"]]
    table = np.stack([np.bincount(owner, inside * column, minlength=num_units) for inside in groups.values() for column in values], axis=1)
    drawn = [weight @ table for weight in weights(num_units, resamples, seed)] if no_interval(num_documents, resamples) is None else []
    total, samples = table.sum(0)[None], np.concatenate([np.zeros((0, table.shape[1])), *drawn])
    found = [{}, {}]  # type: list[dict[Any, Any]]
    counts, documents = {}, {}
    for number, (group, inside) in enumerate(groups.items()):
        for sums, put in zip((total, samples), found, strict=True):
            count, loss, right, size = sums[:, 4 * number : 4 * number + 4].T
            with np.errstate(invalid="ignore", divide="ignore"):
                each = {
                    "masked_word_loss": loss / count, "masked_word_perplexity": np.exp(np.minimum(loss / count, 700.0)),
                    "masked_word_accuracy": right / count, "bits_per_byte": loss / math.log(2) / size,
                }  # fmt: skip
            put.update({(*group, name) if group else name: value for name, value in each.items()})
        counts[group], documents[group] = int(inside.sum()), len(np.unique(columns["document"][inside]))
    return Estimates({name: float(value[0]) for name, value in found[0].items()}, found[1], counts, documents, [])
