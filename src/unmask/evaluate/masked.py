"""What a model says at the masked tokens of a text: frozen masks, whole documents in windows, the masked rows only, in flat memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.frozen import EVAL_SEED, POLICIES, Frozen, frozen_documents
from ..data.loader import Packer
from ..data.plan import cut
from ..data.tokenizer import special_ids
from ..data.words import Surfaces
from ..errors import CheckpointError, ConfigError
from ..infer.engine import Engine, Request
from .records import ACTIONS, Records, RecordsWriter
from .text import Text

LONGEST = 512  # tokens of a window where nothing is said, if the model has positions for so many
CHUNK_ELEMENTS = 2**20  # logits looked at together: what stays in a core's cache
GROUP_TOKENS = 2**15  # of documents masked together
MASK, RANDOM, KEEP = range(len(ACTIONS))


@dataclass
class _Group:
    """Rows of some documents, waiting for what the model says; `rows` are columns of Records."""

    rows: dict[str, np.ndarray]
    documents: dict[str, Any]
    requests: list[Request]
    num_tokens: int
    results: list[tuple[np.ndarray, ...]] = field(default_factory=list)


def measure(
    engine: Engine,
    text: Text,
    *,
    policy: str = "corrupt",
    views: int = 1,
    seed: int = EVAL_SEED,
    max_length: int | None = None,
    frequencies: np.ndarray | None = None,
    folder: str | Path | None = None,
    part: tuple[int, int] = (0, 1),
    info: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Records:
    """Return what a model says at the masked tokens of a text; 15% of its tokens, each of `views` draws.

    `policy` says what stands in their place: "corrupt", as in training (80% the mask token, 10% a random one, 10% the token itself), or
    "mask", the mask token alone. Documents longer than `max_length` tokens, special ones included, are cut into windows exactly as in
    training. `frequencies` counts the tokens of another text, (V,), for slices by frequency. `part` = (k, n) measures every n-th document
    from k on; Records.join makes one of the parts. `folder` keeps the records; `progress` is told tokens done and in all.
    Raises: ConfigError; CheckpointError for a model that answers with what is no number.
    """
    if policy not in POLICIES:
        raise ConfigError(f"policy = {policy!r}; allowed: {', '.join(POLICIES)} (as in training, or the mask token alone)")
    if views < 1:
        raise ConfigError(f"views = {views}; allowed: 1 or more")
    if not 0 <= part[0] < part[1]:
        raise ConfigError(f"part = {part}; allowed: (0, n) to (n - 1, n)")
    length = window_length(engine.max_length, max_length)
    specials = special_ids(text.tokenizer)
    packer = Packer(
        text.store, specials, POLICIES[policy], keys=text.keys,
        vocab_size=text.store.vocab_size, seed=seed, max_length=length, micro_tokens=length,
    )  # fmt: skip
    if length <= packer.num_special:
        raise ConfigError(f"max_length = {length} leaves no room beside {packer.num_special} special tokens; raise it")
    counts = text.token_counts() if frequencies is None else frequencies
    tables = {"num_bytes": token_bytes(text.tokenizer), "per_million": counts * (1e6 / max(1, int(counts.sum())))}
    documents = text.order[part[0] :: part[1]]
    total, done = int(text.store.lengths[documents].sum()) * views, 0
    waiting: deque[_Group] = deque()

    def finish(group: _Group) -> None:
        nonlocal done
        _write(writer, group)
        done += group.num_tokens
        if progress is not None:
            progress(done, total)

    def requests() -> Iterator[Request]:
        first = 0
        streams = [frozen_documents(packer, documents, view=view, group_tokens=GROUP_TOKENS) for view in range(views)]
        for drawn in zip(*streams, strict=True):
            group = _group(packer, text, drawn, first, tables)
            first += len(drawn[0].documents)
            waiting.append(group)
            yield from group.requests

    with RecordsWriter(folder) as writer:
        for result in engine.run(requests(), _look, labelled=True):
            while len(waiting[0].results) == len(waiting[0].requests):
                finish(waiting.popleft())
            waiting[0].results.append(result)
        while waiting:
            finish(waiting.popleft())
        return writer.finish(
            {
                "policy": policy, "mlm_probability": POLICIES[policy].mlm_probability, "views": views, "seed": seed, "max_length": length,
                "precision": str(getattr(engine.precision, "name", engine.precision)),
                "tokenizer_hash": text.store.tokenizer_hash, "vocab_size": text.store.vocab_size,
                "frequencies": "this text" if frequencies is None else "another text", "slice_by": text.slice_by, "part": list(part),
                **(info or {}),
            }
        )  # fmt: skip


def window_length(limit: int | None, wanted: int | None) -> int:
    """Return the tokens of a window, special ones included: those wanted, else what the model has positions for, at most LONGEST.

    Raises: ConfigError for more than the model has.
    """
    if wanted is None:
        return min(LONGEST, limit or LONGEST)
    if limit is not None and wanted > limit:
        raise ConfigError(f"max_length = {wanted} is more than the {limit} positions that the model has; allowed: {limit} or less")
    return wanted


def token_bytes(tokenizer: Any) -> np.ndarray:
    """Return the UTF-8 bytes of each token's text, the space before it and the marks of its vocabulary not counted, (V,) int64."""
    surfaces, vocab = Surfaces(tokenizer), tokenizer.get_vocab()
    sizes = np.zeros(max(len(tokenizer), max(vocab.values()) + 1), np.int64)
    for token, number in vocab.items():
        if surfaces.kind == "bytes" and number not in surfaces.added:  # a character of such a token is a byte
            sizes[number] = len(token.removeprefix("Ġ")) if token != "Ġ" else 1
        elif surfaces.kind == "metaspace" and len(token) == 6 and token.startswith("<0x"):
            sizes[number] = 1
        else:
            sizes[number] = len(surfaces.text(number)[0].encode("utf-8", errors="replace"))
    return sizes


def _look(logits: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what is kept of logits (N, V): log-probability of the label and confidence (N, 2); predicted id and label's rank (N, 2).

    Logits and labels are tensors of torch, or numpy's arrays from a backend without it.
    """
    if isinstance(logits, np.ndarray):
        logits, labels = torch.from_numpy(logits), torch.from_numpy(np.asarray(labels))
    numbers = torch.empty(len(labels), 2, device=logits.device)
    places = torch.empty(len(labels), 2, dtype=torch.int64, device=logits.device)
    on_cpu = logits.device.type == "cpu"
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1]) if on_cpu else max(1, len(labels))
    better = torch.empty(rows, logits.shape[1], device=logits.device)
    for start in range(0, len(labels), rows):
        chunk = slice(start, start + rows)
        part, label = logits[chunk], labels[chunk, None]
        log_probs = part.log_softmax(1)
        # on a CPU torch's own argmax, logsumexp and sums of bools take some eight times longer than these ways to the same numbers
        best = torch.from_numpy(part.numpy().argmax(1))[:, None] if on_cpu else part.argmax(1, keepdim=True)
        numbers[chunk, :1], numbers[chunk, 1:] = log_probs.gather(1, label), log_probs.gather(1, best).exp()
        # of equals the others come first, lest a model that knows nothing looks as if it knew all; the first of all is what was predicted
        rank = torch.ge(part, part.gather(1, label), out=better[: len(part)]).sum(1, keepdim=True).long()
        places[chunk, :1], places[chunk, 1:] = best, torch.where(best == label, 1, rank)
    return numbers.cpu().numpy(), places.cpu().numpy()


def _group(packer: Packer, text: Text, drawn: tuple[Frozen, ...], first: int, tables: Mapping[str, np.ndarray]) -> _Group:
    """Return the rows and requests of a group of documents, of which `drawn` has the masks of each view."""
    members, original = drawn[0].documents, drawn[0].original
    lengths = packer.store.lengths[members]
    ends = np.cumsum(lengths)
    windows = cut(lengths, packer.max_length - packer.num_special)
    begins = (ends - lengths)[windows.document] + windows.start  # of each window, in the group
    starts = packer.store.gather(members)[1]
    starts[ends - lengths] = True
    word = np.cumsum(starts) - 1
    pieces = np.bincount(word)[word]
    owner = np.repeat(np.arange(len(members)), lengths)  # of each token, the document
    before, size = len(packer.before), windows.stop - windows.start
    shift = np.arange(len(windows)) * packer.num_special + before
    framed = np.empty((len(drawn), len(original) + len(windows) * packer.num_special), np.int64)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("view", "place", "action")}
    requests: list[tuple[int, int, int, Request]] = []
    for view, masks in enumerate(drawn):
        head, tail = begins + shift - before, begins + shift + size
        framed[view, head[:, None] + np.arange(before)] = packer.before
        framed[view, tail[:, None] + np.arange(len(packer.after))] = packer.after
        framed[view, np.arange(len(original)) + np.repeat(shift, size)] = masks.corrupted
        place = np.flatnonzero(masks.selected)
        bounds = np.searchsorted(place, np.append(begins, len(original)))
        for window in np.flatnonzero(np.diff(bounds)).tolist():  # where nothing is masked there is nothing to ask
            inside = place[bounds[window] : bounds[window + 1]]
            ids = framed[view, head[window] : tail[window] + len(packer.after)]
            request = Request(ids, inside - begins[window] + before, original[inside])
            requests.append((int(windows.document[window]), view, window, request))
        new, old = masks.corrupted[place], original[place]
        columns["view"].append(np.full(len(place), view))
        columns["place"].append(place)
        columns["action"].append(np.where(new == packer.vocabulary.mask, MASK, np.where(new == old, KEEP, RANDOM)))
    requests.sort(key=lambda item: item[:3])
    place, draw, action = (np.concatenate(columns[name]) for name in ("place", "view", "action"))
    if len(drawn) > 1:
        order = np.lexsort((place, draw, owner[place]))
        place, draw, action = place[order], draw[order], action[order]
    label = original[place]
    rows = {
        "document": owner[place] + first, "view": draw, "position": place - (ends - lengths)[owner[place]], "label": label,
        "word_pieces": np.minimum(pieces[place], 2**15 - 1), "word_start": starts[place], "action": action,
        **{name: np.minimum(table[label], 2**15 - 1) if name == "num_bytes" else table[label] for name, table in tables.items()},
    }  # fmt: skip
    numbers = members.tolist()
    documents = {
        "id": [packer.store.document_id(number) for number in numbers], "key": text.keys[members], "masks": _chain(drawn),
        "num_tokens": lengths, "num_words": np.add.reduceat(starts, ends - lengths, dtype=np.int64),
        "num_bytes": [packer.store.num_bytes(number) for number in numbers],
        "num_windows": np.bincount(windows.document, minlength=len(members)),
        "slice": [text.slice_of(number) for number in numbers],
    }  # fmt: skip
    return _Group(rows, documents, [request for *_, request in requests], len(original) * len(drawn))


def _chain(drawn: tuple[Frozen, ...]) -> np.ndarray:
    """Return the hash of each document's masks over all views; of one view, its own."""
    masks = drawn[0].masks
    for other in drawn[1:]:
        masks = masks * np.uint64(0x9E3779B97F4A7C15) ^ other.masks  # arithmetic modulo 2**64
    return masks


def _write(writer: RecordsWriter, group: _Group) -> None:
    if group.requests:  # else none of its tokens can be masked
        _write_rows(writer, group)
    writer.add_documents(group.documents)


def _write_rows(writer: RecordsWriter, group: _Group) -> None:
    numbers, places = (np.concatenate([result[i] for result in group.results]) for i in range(2))
    if not np.isfinite(numbers).all():
        raise CheckpointError("the model answers with what is no number (NaN): its weights are damaged; take another copy of it")
    writer.add(**group.rows, log_prob=numbers[:, 0], confidence=numbers[:, 1], predicted=places[:, 0], rank=places[:, 1])
