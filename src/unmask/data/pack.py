"""From text to a packed corpus: read, clean, drop what came before, split by content, tokenize, store; in constant memory.

Two passes. The first sets the clean documents down on disk with their keys; when all keys are known, the second tokenizes those that
stay. Nothing grows with the corpus but a byte of flags for each document, mapped from disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from ..errors import DataError, RunError, StoreError
from .clean import content_hash, normalise, split_point
from .encode import Encoder, Tokens
from .files import EmptyFile
from .manifest import write_manifest
from .near import NUM_BANDS, KeyIndex, band_keys
from .over import Over, Place, along, here
from .spill import Spill
from .text import Document, read
from .whole import whole_folder

Progress = Callable[[str, int, int], None]  # stage, documents and bytes done so far

BATCH_BYTES, BATCH_DOCUMENTS = 1 << 20, 1000
EXACT, NEAR, SHARED = 1, 2, 4  # the flags of a document: its text came before, one much like it did, one much like it is there
DEDUP = ("near", "exact", "none")
MADE_OF = ("work", "train", "heldout", "heldout.jsonl", "tokenizer", "report.json")
LEFT_OUT_SHOWN, SOURCES_SHOWN = 20, 100


@dataclass
class Counts:
    """What happened to the documents of a corpus."""

    read: int = 0
    bytes_read: int = 0
    empty: int = 0
    exact: int = 0
    near: int = 0
    num_skipped: int = 0
    skipped: list[str] = field(default_factory=list)
    examples: list[dict[str, str]] = field(default_factory=list)
    smallest: float = 1.0  # the least split point of a document that could be held out: says which share would hold one
    sources: Counter[str] = field(default_factory=Counter)


def pack(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: Any,
    held_out: float = 0.01,
    dedup: Literal["near", "exact", "none"] = "near",
    skip_bad: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    on: Place | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Pack a corpus into the folder `out` and return its report; `tokenizer` is one, or its name or folder; `reading` goes to `read`.

    Near-duplicates are never on both sides of the split: with dedup="near" only the first is kept; else a document that has one
    is not held out.
    A file that cannot be read ends the pack, unless `skip_bad`. The folder appears when everything is in it. `on` is a Cluster that
    cleans, hashes and tokenizes, to the same folder; texts are read and the folder is written here.
    Raises: DataError, TokenizerError; StoreError where `out` exists and not `overwrite`; RunError when the disk is full.
    """
    if dedup not in DEDUP:
        raise DataError(f"unknown dedup '{dedup}'; allowed: {', '.join(DEDUP)}")
    if not 0 <= held_out < 1:
        raise DataError(f"held_out = {held_out}: the share of documents to hold out is at least 0 and below 1, 0.01 for one in a hundred")
    out = Path(out)
    _check_out(out, overwrite)
    counts = Counts()
    documents = read(sources, on_skip=_skipper(counts, skip_bad), **reading)
    encoder = Encoder.of(tokenizer)
    try:
        with (
            whole_folder(out, made_of=MADE_OF, error=StoreError) as folder,
            contextlib.nullcontext(here(encoder)) if on is None else on.hired(partial(Encoder.of, encoder.tokenizer)) as over,
        ):
            _check_out(out, overwrite)  # once more: another pack may have finished meanwhile
            show = progress or (lambda stage, num_documents, num_bytes: None)
            return _pack(documents, folder, encoder, over, held_out, dedup, counts, show)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk is full while packing into '{out}'; free some space (the corpus needs about twice its size meanwhile)"
            ) from None
        raise


def _check_out(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise StoreError(f"'{out}' exists already; choose a new name, or pack over it with --overwrite")
    if not (out / "report.json").exists() or not (out / "train").is_dir():
        raise StoreError(f"'{out}' is not a packed corpus, so it is not overwritten; choose a new name, or remove it yourself")


def _skipper(counts: Counts, skip_bad: bool) -> Callable[[DataError], None]:
    def on_skip(error: DataError) -> None:
        # an empty file among others in a folder is no reason to stop; one that was named is
        if not skip_bad and not (isinstance(error, EmptyFile) and error.found):
            raise error
        counts.num_skipped += 1
        if len(counts.skipped) < SOURCES_SHOWN:
            counts.skipped.append(str(error))

    return on_skip


def _pack(
    documents: Iterator[Document],
    folder: Path,
    encoder: Encoder,
    over: Over,
    held_out: float,
    dedup: str,
    counts: Counts,
    progress: Progress,
) -> dict[str, Any]:
    started = time.perf_counter()
    work = folder / "work"
    work.mkdir()
    compare = dedup == "near" or held_out > 0
    index = KeyIndex(work / "keys", 1 + (NUM_BANDS if compare else 0))
    spill = Spill(work / "documents")
    _first_pass(documents, spill, index, over, compare, counts, progress)
    read_seconds = time.perf_counter() - started
    flags = _find_repeats(index, work, dedup, compare, progress)
    find_seconds = time.perf_counter() - started - read_seconds
    report = _second_pass(spill, flags, folder, encoder, over, held_out, dedup, counts, progress)
    encode_seconds = report.pop("seconds")
    encoder.save(folder / "tokenizer")
    del flags
    shutil.rmtree(work)
    report = {
        "documents": {
            "read": counts.read, "kept": report["train"]["documents"] + report.get("heldout", {}).get("documents", 0),
            "dropped_empty": counts.empty, "dropped_exact": counts.exact, "dropped_near": counts.near,
        },
        "bytes_read": counts.bytes_read,
        **report,
        "sources": dict(counts.sources.most_common()),
        "num_skipped": counts.num_skipped, "skipped": counts.skipped,
        "dropped_examples": counts.examples,
        "settings": {"held_out": held_out, "dedup": dedup, "tokenizer_hash": encoder.hash, "vocab_size": encoder.vocab_size},
        "seconds": {
            "read_and_clean": round(read_seconds, 2), "find_duplicates": round(find_seconds, 2),
            "tokenize_and_store": round(encode_seconds, 2), "total": round(time.perf_counter() - started, 2),
        },
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(folder, only=("heldout.jsonl",))
    return report


def batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield documents in lists of a bounded size, in documents and in characters."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cleaned(worker: Any, batches: Iterable[list[str]], *, compare: bool) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield the clean texts of each batch, "" for the empty ones, and the keys of the others."""
    for batch in batches:
        texts = [normalise(text) for text in batch]
        full = [text for text in texts if text]
        keys = np.fromiter(map(content_hash, full), np.uint64, len(full))[:, None]
        yield texts, np.hstack([keys, band_keys(full)]) if compare and full else keys


def _first_pass(
    documents: Iterator[Document], spill: Spill, index: KeyIndex, over: Over, compare: bool, counts: Counts, progress: Progress
) -> None:
    stage = partial(_cleaned, compare=compare)
    for batch, (texts, keys) in along(over, stage, batches(documents), lambda batch: [document.text for document in batch]):
        counts.read += len(batch)
        counts.bytes_read += sum(len(text.encode("utf-8")) for text in texts)
        for document in batch:  # the first so many by name: files may be millions
            known = document.source in counts.sources or len(counts.sources) < SOURCES_SHOWN
            counts.sources[document.source if known else "(others)"] += 1
        if not all(texts):
            batch = [document for document, text in zip(batch, texts, strict=True) if text]
            counts.empty += len(texts) - len(batch)
            texts = [text for text in texts if text]
        if texts:
            spill.add(texts, batch)
            index.add(keys)
        progress("read", counts.read, counts.bytes_read)
    spill.finish()
    index.finish()
    if index.num_rows == 0:
        raise DataError(f"there is no text in the corpus: {counts.read:,} documents read, all of them empty; give files that hold text")


def _find_repeats(index: KeyIndex, work: Path, dedup: str, compare: bool, progress: Progress) -> np.ndarray:
    flags = np.memmap(work / "flags", dtype=np.uint8, mode="w+", shape=(index.num_rows,))
    if dedup != "none":
        index.mark(0, flags, again=EXACT, shared=0, without=0)
    for column in range(1, 1 + NUM_BANDS if compare else 1):
        index.mark(column, flags, again=NEAR, shared=SHARED, without=EXACT)
        progress("compare", column, NUM_BANDS)
    return flags


def _tokenized(encoder: Encoder, batches: Iterable[list[str]]) -> Iterator[Tokens]:
    for *_, tokens in encoder.encode_all(("", [], texts) for texts in batches):
        yield tokens


def _second_pass(
    spill: Spill,
    flags: np.ndarray,
    folder: Path,
    encoder: Encoder,
    over: Over,
    held_out: float,
    dedup: str,
    counts: Counts,
    progress: Progress,
) -> dict[str, Any]:
    started = time.perf_counter()
    sides = ("train", "heldout") if held_out else ("train",)
    num_documents = num_bytes = 0
    with contextlib.ExitStack() as stack:
        writers = {side: stack.enter_context(encoder.writer(folder / side)) for side in sides}
        jsonl = stack.enter_context(open(folder / "heldout.jsonl", "w", encoding="utf-8")) if held_out else None
        batches = _sides(spill, flags, held_out, dedup, counts, jsonl)
        for (side, ids, texts), tokens in along(over, _tokenized, batches, lambda batch: batch[2]):
            sizes = np.fromiter((len(text.encode("utf-8")) for text in texts), np.int64, len(texts))
            writers[side].add_flat(tokens[0], tokens[1], tokens[2], ids, sizes)
            encoder.count(side, tokens, sizes)
            num_documents, num_bytes = num_documents + len(ids), num_bytes + int(sizes.sum())
            progress("tokenize", num_documents, num_bytes)
        totals = encoder.totals
        for side in sides:
            if not totals[side]["documents"]:
                raise _too_small(side, num_documents, held_out, counts)
    return {**{side: totals[side] for side in sides}, "seconds": time.perf_counter() - started}


def _sides(
    spill: Spill, flags: np.ndarray, held_out: float, dedup: str, counts: Counts, jsonl: IO[str] | None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (side, ids, texts) in batches, without the documents that are dropped; the held-out ones are written to `jsonl` too."""
    dropping = {"near": EXACT | NEAR, "exact": EXACT, "none": 0}[dedup]
    first = 0
    for batch in spill:
        texts, ids = batch.column("text").to_pylist(), batch.column("id").to_pylist()
        found = flags[first : first + len(texts)].tolist()
        first += len(texts)
        chosen: dict[str, list[int]] = {"train": [], "heldout": []}
        for row, (text, flag) in enumerate(zip(texts, found, strict=True)):
            if flag & dropping:
                kind = "exact" if flag & EXACT else "near"
                counts.exact, counts.near = counts.exact + (kind == "exact"), counts.near + (kind == "near")
                if len(counts.examples) < LEFT_OUT_SHOWN:
                    counts.examples.append({"id": ids[row], "why": f"{kind} duplicate of an earlier document", "text": text[:120]})
                continue
            # where near-duplicates are kept, only a document without any can be held out
            if not held_out or (dedup != "near" and flag & SHARED):
                chosen["train"].append(row)
                continue
            point = split_point(content_hash(text))
            counts.smallest = min(counts.smallest, point)
            chosen["heldout" if point < held_out else "train"].append(row)
        if jsonl is not None:
            sources, metas = batch.column("source"), batch.column("meta")
            for row in chosen["heldout"]:
                meta = json.loads(metas[row].as_py() or "{}")
                record = {"id": ids[row], "text": texts[row], "source": sources[row].as_py()}
                jsonl.write(json.dumps({**meta, **record}, ensure_ascii=False) + "\n")
        for side, rows in chosen.items():
            if rows:
                yield side, [ids[row] for row in rows], [texts[row] for row in rows]


def _too_small(side: str, num_documents: int, held_out: float, counts: Counts) -> DataError:
    what = f"{num_documents:,} document{'s' * (num_documents != 1)}"
    if side == "train":
        return DataError(
            f"a corpus of {what} is too small to split: with held_out = {held_out:g} nothing is left to train on; "
            "lower --held-out, or give more text"
        )
    if counts.smallest >= 1:
        return DataError(
            f"none of {what} can be held out: each has a near-duplicate; drop those (--dedup near), or hold out none: --held-out 0"
        )
    share = math.ceil(counts.smallest * 1000 + 1e-9) / 1000
    hint = f"hold out more (--held-out {share:g} holds out one), " if num_documents > 1 and share < 1 else ""
    return DataError(
        f"a corpus of {what} is too small to split: with held_out = {held_out:g} none is held out; "
        f"{hint}hold out none (--held-out 0), give more text, or split what there is into more documents (--layout line)"
    )
