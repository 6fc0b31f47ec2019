"""Texts with masks in them: from the text to ids and places, and from ids back to a filled text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

from ..data.tokenizer import special_ids
from ..data.words import Surfaces
from ..errors import TaskError
from ..infer.request import Request
from ..infer.targets import mask_marker

Text = str | tuple[str, str]


@dataclass(slots=True)
class MaskedText:
    """A text, or a pair of them, on its way through the engine.

    `spans` says for each mask in which part of a pair it stands, and from where to where; `ids` are the parts' tokens without special
    ones, end to end, `num_first` of them the first part's; `places` are where the masks are among them.
    """

    parts: tuple[str, ...]
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    num_first: int = 0
    places: list[int] = field(default_factory=list)
    truncated: bool = False
    error: str | None = None

    def before(self, mask: int) -> str:
        """Return what stands before a mask in its part."""
        part, start, _ = self.spans[mask]
        return self.parts[part][:start]

    def is_blank(self, mask: int) -> bool:
        """Return whether a mask was written as underscores."""
        part, start, _ = self.spans[mask]
        return self.parts[part][start] == "_"


class MaskedTexts:
    """Turns texts into ids and back, for a model that takes `max_length` tokens (None: any number)."""

    def __init__(self, tokenizer: Any, max_length: int | None) -> None:
        self.tokenizer = tokenizer
        self.specials = special_ids(tokenizer)
        self.surfaces = Surfaces(tokenizer)
        self.surface = cache(self.surfaces.text)  # of a vocabulary at most
        self.marker = mask_marker(tokenizer)
        self.typed = "token_type_ids" in tokenizer.model_input_names  # whether the model was trained to tell the texts of a pair apart
        self.frames = {1: self._frame("a"), 2: self._frame("a", "a")}
        added = tokenizer.added_tokens_decoder.get(self.specials.mask)
        # in a vocabulary that keeps the space with the word, the mask stands for both
        self.eats_space = self.surfaces.marks_spaces and not (added is not None and added.lstrip)
        self.max_length = max_length
        num_special = sum(map(len, self.frames[1][0]))
        if max_length is not None and max_length <= num_special:
            raise TaskError(f"max_length = {max_length} leaves no room beside {num_special} special tokens")

    def _frame(self, *texts: str) -> tuple[list[list[tuple[int, int]]], list[int]]:
        """Return what stands before, between and after the texts, as (id, type), and the types of the texts."""
        encoding = self.tokenizer.backend_tokenizer.encode(*texts, add_special_tokens=True)
        cells = zip(encoding.special_tokens_mask, encoding.ids, encoding.type_ids, strict=True)
        frame: list[list[tuple[int, int]]] = [[]]
        types: list[int] = []
        for special, run in groupby(cells, key=lambda cell: cell[0]):
            if special:
                frame[-1] += [(number, type_id) for _, number, type_id in run]
            else:
                types.append(next(run)[2])
                frame.append([])
        if len(types) == len(texts) and frame[0]:
            return frame, types
        ends = [[(self.specials.sep, part)] for part in range(len(texts))]  # a tokenizer without a template
        return [[(self.specials.cls, 0)], *ends], list(range(len(texts)))

    # text to ids

    def read(self, texts: Sequence[Text]) -> list[MaskedText]:
        """Return texts with their ids and the places of their masks; what cannot be filled says why in `error`."""
        items = [self._parse(text) for text in texts]
        good = [item for item in items if item.error is None]
        marked = [self._with_mask_tokens(item, part) for item in good for part in range(len(item.parts))]
        try:
            encodings = iter(self.tokenizer.backend_tokenizer.encode_batch(marked, add_special_tokens=False))
        except Exception as error:  # tokenizers raises bare Exception, for the whole batch
            raise TaskError(f"the tokenizer failed: {error}") from error
        for item in good:
            ids = [next(encodings).ids for _ in item.parts]
            item.ids, item.num_first = [number for part in ids for number in part], len(ids[0])
            item.places = [place for place, number in enumerate(item.ids) if number == self.specials.mask]
            item.truncated = not self.fits(item, 0)
            if len(item.places) != len(item.spans):
                seen = f"the tokenizer sees {len(item.places)} masks where the text has {len(item.spans)}"
                item.error = f"{seen}; write {self.tokenizer.mask_token} for each"
        return items

    def _parse(self, text: Any) -> MaskedText:
        parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
        if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
            return MaskedText((str(text),), error=f"a text is a string, or a pair of them, not {text!r:.80}")
        spans = [(number, *match.span()) for number, part in enumerate(parts) for match in self.marker.finditer(part)]
        if spans:
            return MaskedText(parts, spans)
        whole = " ".join(parts)
        shown = whole if len(whole) <= 80 else f"{whole[:77]}..."
        return MaskedText(parts, error=f"there is no mask in {shown!r}; write [MASK], <mask> or ___ where a word is wanted")

    def _with_mask_tokens(self, item: MaskedText, part: int) -> str:
        text, pieces, end = item.parts[part], [], 0
        for number, start, stop in item.spans:
            if number == part:
                before = text[end:start]
                pieces += [before.rstrip(" ") if self.eats_space else before, self.tokenizer.mask_token]
                end = stop
        whole = "".join([*pieces, text[end:]])
        return whole.encode("utf-8", errors="replace").decode("utf-8")  # half a surrogate pair is no text

    def _room(self, item: MaskedText) -> int | None:
        return None if self.max_length is None else self.max_length - sum(map(len, self.frames[len(item.parts)][0]))

    # ids to requests

    def request(self, item: MaskedText, ids: Sequence[int], places: Sequence[int], num_first: int, labels: Sequence[int]) -> Request:
        """Return what the model is asked about a text: its ids, perhaps some filled in, and the places of the answers, a label for each.

        A text that is too long is seen through a window around the first of the places.
        """
        room, low, high = self._room(item), 0, len(ids)
        if room is not None and high > room:
            low = min(max(places[0] - room // 2, 0), high - room)
            high = low + room
        frame, types = self.frames[len(item.parts)]
        cut = min(max(num_first, low), high) if len(item.parts) == 2 else high
        chunks = [ids[low:cut], ids[cut:high]][: len(item.parts)]
        sequence, kinds, shift = [number for number, _ in frame[0]], [kind for _, kind in frame[0]], {}
        for number, (chunk, ending) in enumerate(zip(chunks, frame[1:], strict=True)):
            shift[number] = len(sequence) - (low if number == 0 else cut)
            sequence += [*chunk, *(one for one, _ in ending)]
            kinds += [types[number]] * len(chunk) + [kind for _, kind in ending]
        positions = [place + shift[int(place >= cut and len(chunks) == 2)] for place in places]
        return Request(sequence, positions, labels, kinds if self.typed and any(kinds) else None)

    def requests(self, item: MaskedText, labels: Sequence[int]) -> list[Request]:
        """Return what asks for every mask of a text: one request, or a window for each mask where the text is too long for one."""
        if not item.truncated:
            return [self.request(item, item.ids, item.places, item.num_first, labels)]
        pairs = zip(item.places, labels, strict=True)
        return [self.request(item, item.ids, [place], item.num_first, [label]) for place, label in pairs]

    def fits(self, item: MaskedText, num_more: int) -> bool:
        """Return whether a text is seen whole with that many tokens more."""
        room = self._room(item)
        return room is None or len(item.ids) + num_more <= room

    # ids to text

    def text_of(self, ids: Sequence[int], at_start: bool) -> tuple[str, bool]:
        """Return the text of tokens that stand together, and whether it is joined to what stands before it without a space."""
        text, joined = self.surface(ids[0])
        if len(ids) > 1:
            whole = self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False).strip()
            if self.surfaces.kind == "prefix" and joined:
                whole = whole.removeprefix(self.surfaces.mark)
            text = whole or text
        return text, joined and not at_start

    def _put(self, before: str, ids: Sequence[int]) -> tuple[str, int, str, bool]:
        """Return a text with tokens put after it, where they begin, their own text, and whether they are joined to it without a space."""
        near = before.rstrip(" ")
        word, joined = self.text_of(ids, not near or near[-1].isspace())
        if joined:
            before = near
        elif self.surfaces.marks_spaces and before and not before[-1].isspace():
            before += " "
        return before + word, len(before), word, joined

    def filled(self, item: MaskedText, mask: int, ids: Sequence[int]) -> tuple[str, int, str, bool]:
        """Return the part of a text that a mask stands in with ids in its place: (text, where they begin, their text, joined)."""
        part, start, stop = item.spans[mask]
        made, place, word, joined = self._put(item.parts[part][:start], ids)
        return made + item.parts[part][stop:], place, word, joined

    def render(self, item: MaskedText, fills: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], list[tuple[int, str]]]:
        """Return the parts of a text with all of its masks filled by ids, and for each where in its part it begins, and its text."""
        texts, found, spans = [], [], list(zip(item.spans, fills, strict=True))
        for part, text in enumerate(item.parts):
            made, end = "", 0
            for (number, start, stop), ids in spans:
                if number == part:
                    made, place, word, _ = self._put(made + text[end:start], ids)
                    found.append((place, word))
                    end = stop
            texts.append(made + text[end:])
        return tuple(texts), found
