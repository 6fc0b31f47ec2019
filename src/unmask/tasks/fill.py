"""Fill the masks in texts: what does the model expect to stand there?"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..data.tokenizer import frame, load_tokenizer, special_ids
from ..data.words import Surfaces
from ..errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ..infer.engine import Request

CHUNK = 256  # texts tokenized at a time


@dataclass(frozen=True, slots=True)
class Candidate:
    """One token that may stand at a mask: its text, its id, its probability, and the text with the mask filled (other masks stay).

    `start` is where in `sequence` the token begins; `joined` is True where it goes on with what precedes it, without a space.
    """

    token: str
    token_id: int
    score: float
    sequence: str
    start: int
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with, for each of its masks, the candidates in order of their probability; `error` says why there are none.

    `truncated` is True where the model saw a window around each mask only, because the text has more tokens than it has positions.
    """

    text: str
    masks: tuple[tuple[Candidate, ...], ...] = ()
    truncated: bool = False
    error: str | None = None

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, mask: int) -> tuple[Candidate, ...]:
        return self.masks[mask]

    def __iter__(self) -> Iterator[tuple[Candidate, ...]]:
        return iter(self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Return what `unmask fill --json` prints."""
        if self.error is not None:
            return {"text": self.text, "error": self.error}
        return {"text": self.text, "truncated": self.truncated, "masks": [[asdict(candidate) for candidate in mask] for mask in self.masks]}


@dataclass(slots=True)
class _Item:
    """A text on its way through the engine."""

    text: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    results: list[tuple[Tensor, ...]] = field(default_factory=list)
    truncated: bool = False
    error: str | None = None


class Filler:
    """Fills masks with a masked language model; `options` go to the Engine.

    `<mask>`, `[MASK]`, `___` (three underscores or more) and the tokenizer's own mask token all mean a mask.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, *, max_length: int | None = None, **options: Any) -> None:
        from ..infer.engine import Engine
        from ..model.load import check_fit

        check_fit(model, tokenizer, max_length)
        self.engine = Engine(model, **options)
        self.tokenizer = tokenizer
        self.specials = special_ids(tokenizer)
        self.surfaces = Surfaces(tokenizer)
        self.prefix, self.suffix = frame(tokenizer)
        limits = [limit for limit in (self.engine.max_length, max_length) if limit is not None]
        self.max_length = min(limits) if limits else None
        if self.max_length is not None and self.max_length <= len(self.prefix) + len(self.suffix):
            raise TaskError(f"max_length = {self.max_length} leaves no room beside {len(self.prefix) + len(self.suffix)} special tokens")
        own = re.escape(tokenizer.mask_token)
        # underscores between two letters are part of a name
        self.marker = re.compile(rf"{own}|<mask>|\[MASK\]|(?<!_)(?:(?<![^\W_])_{{3,}}|_{{3,}}(?![^\W_]))(?!_)")
        added = tokenizer.added_tokens_decoder.get(self.specials.mask)
        self.takes_space = added is not None and added.lstrip

    @classmethod
    def load(cls, name_or_path: str | Path, *, device: str = "auto", **options: Any) -> Filler:
        """Return a Filler of a model folder or a Hub id; `device` is auto, cpu, cuda, cuda:1..., `options` as of Filler.

        Raises: CheckpointError, TokenizerError.
        """
        import torch

        from ..model.load import check_folder, load_model

        check_folder(str(name_or_path))
        tokenizer = load_tokenizer(name_or_path)
        model = load_model(name_or_path, tokenizer=tokenizer)
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if chosen.partition(":")[0] == "meta":
            raise TaskError("device = 'meta' holds no numbers; allowed: auto, cpu, cuda, cuda:0 ...")
        try:
            model.to(torch.device(chosen))  # type: ignore[arg-type]
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise TaskError(f"device = {device!r} cannot be used: {reason}; allowed: auto, cpu, cuda, cuda:0 ...") from None
        return cls(model, tokenizer, **options)

    @overload
    def fill(self, text: str, *, top_k: int = 5) -> Filled: ...  # type: ignore[overload-overlap]
    @overload
    def fill(self, text: Iterable[str], *, top_k: int = 5) -> list[Filled]: ...
    def fill(self, text: str | Iterable[str], *, top_k: int = 5) -> Filled | list[Filled]:
        """Return for each mask of a text its likeliest tokens; a list for many texts. Masks of one text are filled apart from each other.

        Scores are shares of the whole vocabulary; special tokens are not offered.
        Raises: TaskError for a text without a mask (in a list, its result says so in `error`).
        """
        if isinstance(text, str):
            (result,) = self.stream([text], top_k=top_k)
            if result.error is not None:
                raise TaskError(result.error)
            return result
        return list(self.stream(text, top_k=top_k))

    def stream(self, texts: Iterable[str], *, top_k: int = 5) -> Iterator[Filled]:
        """Yield a result for each of any number of texts, in order and in bounded memory; one that fails says why in `error`."""
        import torch

        if top_k < 1:
            raise TaskError(f"top_k = {top_k}; at least 1")
        special = torch.tensor(self.specials.all, device=self.engine.device)
        size = len(self.tokenizer)  # a model may have more rows, to round their number up

        def best(logits: Tensor) -> tuple[Tensor, ...]:
            total = logits.logsumexp(-1, keepdim=True)
            values, ids = logits[:, :size].index_fill(-1, special, -torch.inf).topk(min(top_k, size - len(special)), dim=-1)
            return (values - total).exp().cpu(), ids.cpu()

        waiting: deque[_Item] = deque()

        def requests() -> Iterator[Request]:
            rest = iter(texts)
            while chunk := list(islice(rest, CHUNK)):
                for item in self._prepare(chunk):
                    waiting.append(item)
                    yield from item.requests

        for result in self.engine.run(requests(), best):
            while len(waiting[0].results) == len(waiting[0].requests):
                yield self._finish(waiting.popleft())
            waiting[0].results.append(result)
        while waiting:
            yield self._finish(waiting.popleft())

    def _prepare(self, texts: list[str]) -> list[_Item]:
        items = [self._parse(text) for text in texts]
        good = [item for item in items if item.error is None]
        marked = [self._with_mask_tokens(item) for item in good]
        try:
            encodings = self.tokenizer.backend_tokenizer.encode_batch(marked, add_special_tokens=False)
        except Exception as error:  # tokenizers raises bare Exception, for the whole batch
            raise TaskError(f"the tokenizer failed: {error}") from error
        for item, encoding in zip(good, encodings, strict=True):
            self._request(item, encoding.ids)
        return items

    def _parse(self, text: str) -> _Item:
        if not isinstance(text, str):
            return _Item(str(text), error=f"a text is a string, not {text!r:.80}")
        spans = [match.span() for match in self.marker.finditer(text)]
        if spans:
            return _Item(text, spans)
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        return _Item(text, error=f"there is no mask in {shown!r}; write [MASK], <mask> or ___ where a word is wanted")

    def _with_mask_tokens(self, item: _Item) -> str:
        parts, end = [], 0
        for start, stop in item.spans:
            before = item.text[end:start]
            # in a vocabulary that keeps the space with the word, the mask stands for both
            parts.append(before.rstrip(" ") if self.surfaces.marks_spaces and not self.takes_space else before)
            parts.append(self.tokenizer.mask_token)
            end = stop
        text = "".join([*parts, item.text[end:]])
        return text.encode("utf-8", errors="replace").decode("utf-8")  # half a surrogate pair is no text

    def _request(self, item: _Item, ids: list[int]) -> None:
        from ..infer.engine import Request

        places = [place for place, number in enumerate(ids) if number == self.specials.mask]
        if len(places) != len(item.spans):
            seen = f"the tokenizer sees {len(places)} masks where the text has {len(item.spans)}"
            item.error = f"{seen}; write {self.tokenizer.mask_token} for each"
            return
        room = None if self.max_length is None else self.max_length - len(self.prefix) - len(self.suffix)
        if room is None or len(ids) <= room:
            item.requests = [Request([*self.prefix, *ids, *self.suffix], [place + len(self.prefix) for place in places])]
            return
        item.truncated = True
        for place in places:
            start = min(max(place - room // 2, 0), len(ids) - room)
            window = [*self.prefix, *ids[start : start + room], *self.suffix]
            item.requests.append(Request(window, [place - start + len(self.prefix)]))

    def _finish(self, item: _Item) -> Filled:
        if item.error is not None:
            return Filled(item.text, error=item.error)
        masks: list[tuple[Candidate, ...]] = []
        rows = [row for scores, ids in item.results for row in zip(scores.tolist(), ids.tolist(), strict=True)]
        if any(score != score for scores, _ in rows for score in scores):
            return Filled(
                item.text, error="the model answers with what is no number (NaN): its weights are damaged; take another copy of it"
            )
        for span, (scores, ids) in zip(item.spans, rows, strict=True):
            masks.append(tuple(self._candidate(item.text, span, number, score) for score, number in zip(scores, ids, strict=True)))
        return Filled(item.text, tuple(masks), item.truncated)

    def _candidate(self, text: str, span: tuple[int, int], number: int, score: float) -> Candidate:
        token, joined = self.surfaces.text(number)
        before, after = text[: span[0]], text[span[1] :]
        near = before.rstrip(" ")
        joined = joined and bool(near) and not near[-1].isspace()
        if joined:
            before = near
        elif self.surfaces.marks_spaces and before and not before[-1].isspace():
            before += " "
        return Candidate(token, number, score, f"{before}{token}{after}", len(before), joined)


@lru_cache(maxsize=1)
def _cached(name: str, stamp: float) -> Filler:
    return Filler.load(name)


@overload
def fill(model: str | Path | Filler, text: str, *, top_k: int = 5) -> Filled: ...  # type: ignore[overload-overlap]
@overload
def fill(model: str | Path | Filler, text: Iterable[str], *, top_k: int = 5) -> list[Filled]: ...
def fill(model: str | Path | Filler, text: str | Iterable[str], *, top_k: int = 5) -> Filled | list[Filled]:
    """Return what a model folder, Hub id or Filler puts at the masks of a text, or of many (the last model named is kept loaded).

    Raises: TaskError, CheckpointError, TokenizerError.
    """
    if isinstance(model, Filler):
        return model.fill(text, top_k=top_k)
    # a folder that was written anew is loaded anew
    stamps = [file.stat().st_mtime for file in Path(model).glob("*") if file.is_file()] if Path(model).is_dir() else []
    return _cached(str(model), max(stamps, default=0.0)).fill(text, top_k=top_k)
