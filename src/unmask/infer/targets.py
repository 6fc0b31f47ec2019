"""How probable a given word or phrase is at a mask: exact, whatever number of pieces it has.

A target of k pieces is asked at k mask tokens in the place of the one. Its log-probability is that of its pieces by the chain rule, left
to right: the first with all k hidden, the second with the first filled in, and so on. So the probabilities of everything that k tokens can
say sum to one, and a target of a single piece has the score that `fill` gives it. That there are k pieces is taken as given: how probable
that is, no masked language model says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..data.over import here
from ..data.tokenizer import frame, special_ids
from ..data.words import Surfaces
from ..errors import TaskError
from .arrays import is_numpy, log_normalizer, to_numpy
from .request import Request

if TYPE_CHECKING:
    from tokenizers import Encoding

    from .engine import Engine

CHUNK = 256  # texts tokenized at a time
TAIL = 256  # characters before a mask that decide how a target is cut into pieces
CHUNK_ELEMENTS = 2**20  # logits compared together: what stays in a core's cache


@dataclass(frozen=True, slots=True)
class Question:
    """A text with a mask, and what may stand there. `mask` says which one is meant, from 0; None: there has to be one only."""

    text: str
    targets: Sequence[str]
    mask: int | None = None


class Fault(NamedTuple):
    """Why there is no score: a reason of few words, the same for all that have it, to be counted by, and what is to be said."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class TargetScore:
    """A target with, for each of its pieces, its log-probability (natural), its rank, and the piece that the model would have put there.

    The rank counts the ordinary tokens (not the special ones) that are as probable or more: 1 is the model's first choice, a tie counts
    against the piece. `error` says why there is no score, `reason` the same in few words.
    """

    target: str
    pieces: tuple[str, ...] = ()
    piece_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    predicted: tuple[str, ...] = ()
    error: str | None = None
    reason: str | None = None

    @property
    def num_pieces(self) -> int:
        """How many tokens the target is."""
        return len(self.pieces)

    @property
    def log_prob(self) -> float:
        """The log-probability of the whole target; NaN where there is none."""
        return math.fsum(self.log_probs) if self.log_probs else math.nan

    @property
    def rank(self) -> int | None:
        """The worst rank of its pieces: 1 where filling k masks from left to right, each with its likeliest token, gives the target."""
        return max(self.ranks, default=None)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with the scores of its targets, in their order; `error` says why there are none (the text is at fault), as does `reason`.

    `truncated` is True where the model saw a window around the mask only, because the text has more tokens than it takes.
    """

    question: Question
    targets: tuple[TargetScore, ...] = ()
    truncated: bool = False
    error: str | None = None
    reason: str | None = None


Node = tuple[int, tuple[int, ...]]  # of how many pieces, and those that are filled in already


@dataclass(slots=True)
class _Item:
    """A question on its way through the engine; `nodes` are what is asked: at each, which ids are wanted, and then what came back."""

    question: Question
    fault: Fault | None = None
    truncated: bool = False
    before: str = ""
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    pieces: list[list[int] | Fault] = field(default_factory=list)  # of each target: its ids, or what is wrong with it
    nodes: dict[Node, dict[int, int]] = field(default_factory=dict)
    results: list[tuple[np.ndarray, ...]] = field(default_factory=list)


def mask_marker(tokenizer: Any) -> re.Pattern[str]:
    """Return what matches a mask in a text: `[MASK]`, `<mask>`, `___` (three underscores or more) and the tokenizer's own mask token."""
    # underscores between two letters are part of a name
    return re.compile(rf"{re.escape(tokenizer.mask_token)}|<mask>|\[MASK\]|(?<!_)(?:(?<![^\W_])_{{3,}}|_{{3,}}(?![^\W_]))(?!_)")


def score_targets(engine: Engine, tokenizer: Any, questions: Iterable[Question], *, max_length: int | None = None) -> Iterator[Answered]:
    """Yield for each question, in order and in bounded memory, the log-probabilities of its targets; what fails says why in `error`.

    A target's pieces are those that the tokenizer makes of it where it would stand: with the space before it in vocabularies that keep the
    space, in lower case where the tokenizer lowers. Space around it does not count. Not scored, with an error: a target that becomes the
    unknown token, that is empty, that holds a special token, or that the tokenizer joins to what stands before the mask.
    Raises: TaskError where `max_length` leaves no room.
    """
    rest = iter(questions)
    chunks = iter(lambda: list(islice(rest, CHUNK)), [])
    for answers in (engine.over or here(engine))(partial(_answers, tokenizer=tokenizer, max_length=max_length), chunks):
        yield from answers


def _answers(engine: Engine, chunks: Iterable[list[Question]], *, tokenizer: Any, max_length: int | None) -> Iterator[list[Answered]]:
    asker = _Asker(engine, tokenizer, max_length)
    for chunk in chunks:
        yield asker.answer(chunk)


class _Asker:
    def __init__(self, engine: Engine, tokenizer: Any, max_length: int | None) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.specials = special_ids(tokenizer)
        self.prefix, self.suffix = frame(tokenizer)
        self.marker = mask_marker(tokenizer)
        added = tokenizer.added_tokens_decoder.get(self.specials.mask)
        # in a vocabulary that keeps the space with the word, the mask stands for both
        self.eats_space = Surfaces(tokenizer).marks_spaces and not (added is not None and added.lstrip)
        if max_length is not None and engine.max_length is not None and max_length > engine.max_length:
            raise TaskError(f"max_length = {max_length} is more than the {engine.max_length} tokens that the model has positions for")
        limits = [limit for limit in (engine.max_length, max_length) if limit is not None]
        self.room = min(limits) - len(self.prefix) - len(self.suffix) if limits else None
        if self.room is not None and self.room < 1:
            raise TaskError(f"max_length = {max_length} leaves no room beside {len(self.prefix) + len(self.suffix)} special tokens")
        self.barred = np.zeros(len(tokenizer), np.float32)  # special tokens are no answers
        self.barred[list(self.specials.all)] = -np.inf
        self.wanted: list[list[int]] = []  # by the label of a request: the ids that are asked for there
        self.width = 0  # of the longest of these lists

    def answer(self, chunk: list[Question]) -> list[Answered]:
        # one sitting of the engine a chunk: what is wanted is numbered anew, and nothing piles up
        items = self._prepare(chunk)
        self.wanted.clear()
        nodes = [(item, node) for item in items for node in item.nodes]
        self.width = max((len(item.nodes[node]) for item, node in nodes), default=0)
        results = self.engine.run((self._request(item, node) for item, node in nodes), self._look, labelled=True)
        for (item, _), result in zip(nodes, results, strict=True):
            item.results.append(result)
        return list(map(self._finish, items))

    # text to ids

    def _prepare(self, questions: list[Question]) -> list[_Item]:
        parsed = [self._parse(question) for question in questions]
        good = [(item, text) for item, text in parsed if item.fault is None]
        for (item, _), encoding in zip(good, self._encode([text for _, text in good]), strict=True):
            self._split(item, encoding)
        asked = [(item, target) for item, _ in parsed if item.fault is None for target in item.question.targets]
        encodings = self._encode([_valid(item.before + self._trim(item, target)) for item, target in asked])
        for (item, target), encoding in zip(asked, encodings, strict=True):
            item.pieces.append(self._pieces(item, target, encoding))
        for item, _ in parsed:
            self._plan(item)
        return [item for item, _ in parsed]

    def _encode(self, texts: list[str]) -> list[Encoding]:
        try:
            return self.backend.encode_batch(texts, add_special_tokens=False)
        except Exception as error:  # tokenizers raises bare Exception, for the whole batch
            raise TaskError(f"the tokenizer failed: {error}") from error

    def _parse(self, question: Question) -> tuple[_Item, str]:
        """Return a question with what stands before its mask, and its text with the tokenizer's masks."""
        text, item = question.text, _Item(question)
        if wrong := [one for one in (text, *question.targets) if not isinstance(one, str)]:
            item.fault = Fault("not text", f"texts and targets are strings, not {wrong[0]!r:.80}")
            return item, ""
        spans = [match.span() for match in self.marker.finditer(text)]
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        if not spans:
            item.fault = Fault("no mask", f"there is no mask in {shown!r}; write [MASK], <mask> or ___ where a word is wanted")
        elif question.mask is None and len(spans) > 1:
            item.fault = Fault("several masks", f"there are {len(spans)} masks in {shown!r}, and nothing says which is meant; leave one")
        elif not 0 <= (question.mask or 0) < len(spans):
            item.fault = Fault("no mask", f"mask {question.mask} is asked for in {shown!r}; allowed: 0 to {len(spans) - 1}")
        if item.fault is not None:
            return item, ""
        marked, end = "", 0
        for number, (start, stop) in enumerate(spans):
            marked += text[end:start]
            if number == (question.mask or 0):
                item.before = marked
            marked = (marked.rstrip(" ") if self.eats_space else marked) + self.tokenizer.mask_token
            end = stop
        if len(item.before) > TAIL:
            cut = next((place for place in range(len(item.before) - TAIL, 0, -1) if item.before[place].isspace()), 0)
            item.before = item.before[cut:]
        return item, _valid(marked + text[end:])

    def _split(self, item: _Item, encoding: Encoding) -> None:
        """Keep what stands before and after the mask that is meant."""
        ids = encoding.ids
        places = [place for place, number in enumerate(ids) if number == self.specials.mask]
        count = len(self.marker.findall(item.question.text))
        if len(places) != count:
            seen = f"the tokenizer sees {len(places)} masks where the text has {count}"
            item.fault = Fault("several masks" if len(places) > count else "no mask", f"{seen}; write {self.tokenizer.mask_token} for each")
            return
        place = places[item.question.mask or 0]
        item.left, item.right = ids[:place], ids[place + 1 :]

    def _trim(self, item: _Item, target: str) -> str:
        """Return a target as it stands in the text: a space before it is its own only where the text has none."""
        return target.rstrip() if item.before and not item.before[-1].isspace() else target.strip()

    def _pieces(self, item: _Item, target: str, encoding: Encoding) -> list[int] | Fault:
        """Return the ids of a target, given what the tokenizer makes of it with what stands before it; or what is wrong with it."""
        if not target.strip():
            return Fault("empty", "the target is empty; give a word")
        start = len(item.before)
        # everything after the last token of what stands before; a lone space between belongs to the target
        edge = start - item.before.endswith(" ")
        kept = [place for place, (begin, end) in enumerate(encoding.offsets) if begin < end <= edge]
        first = kept[-1] + 1 if kept else 0
        ids = encoding.ids[first:]
        if not ids:
            return Fault("empty", f"the tokenizer makes nothing of {target!r}; give a word")
        begin = encoding.offsets[first][0]
        if item.before[begin:edge].strip() and begin < edge:
            joined = _valid(item.before + self._trim(item, target))[begin : encoding.offsets[first][1]]
            said = f"the tokenizer joins {target!r} to what stands before the mask (the piece {joined!r}); mask the whole word"
            return Fault("joined to what stands before", said)
        if self.specials.unk is not None and self.specials.unk in ids:
            said = f"{target!r} cannot be written with the tokenizer's vocabulary: it becomes {self.tokenizer.unk_token}"
            return Fault("unknown to the tokenizer", said)
        special = next((number for number in ids if number in self.specials.all), None)
        if special is not None:
            said = f"{target!r} holds the special token {self.tokenizer.convert_ids_to_tokens(special)}; a target is text"
            return Fault("a special token", said)
        if self.room is not None and len(ids) > self.room:
            said = f"{target[:40]!r} has {len(ids)} pieces, and there is room for {self.room}; give a shorter one"
            return Fault("too long", said)
        return ids

    # ids to requests

    def _plan(self, item: _Item) -> None:
        for ids in item.pieces:
            if not isinstance(ids, Fault):
                for place, number in enumerate(ids):
                    wanted = item.nodes.setdefault((len(ids), tuple(ids[:place])), {})
                    wanted.setdefault(number, len(wanted))  # targets that begin alike share what they share
        if self.room is not None and item.nodes:
            longest = max(count for count, _ in item.nodes)
            item.truncated = len(item.left) + longest + len(item.right) > self.room

    def _request(self, item: _Item, node: Node) -> Request:
        count, filled = node
        left, right = item.left, item.right
        if self.room is not None and len(left) + count + len(right) > self.room:
            spare = self.room - count
            num_right = min(len(right), max(spare - spare // 2, spare - len(left)))
            num_left = spare - num_right
            left, right = left[len(left) - num_left :], right[:num_right]
        masks = [self.specials.mask] * (count - len(filled))
        self.wanted.append(list(item.nodes[node]))
        place = len(self.prefix) + len(left) + len(filled)
        return Request([*self.prefix, *left, *filled, *masks, *right, *self.suffix], [place], [len(self.wanted) - 1])

    def _look(self, logits: Any, labels: Any) -> tuple[np.ndarray, ...]:
        """Return of each row the log-probabilities and the ranks of the ids that are wanted there, padded, and the likeliest token."""
        lists = [self.wanted[label] for label in labels.tolist()]
        ids = np.zeros((len(lists), self.width), np.int64)
        for row, wanted in enumerate(lists):
            ids[row, : len(wanted)] = wanted
        if is_numpy(logits):
            barred: Any = self.barred
            values = np.take_along_axis(logits, ids, 1)
        else:
            import torch  # here, so that an export runs without torch

            barred, places = (torch.from_numpy(array).to(logits.device) for array in (self.barred, ids))
            values = logits.gather(1, places)
        ordinary = logits[:, : len(barred)] + barred  # without the rows that round the size of a model up
        columns = max(1, CHUNK_ELEMENTS // len(barred))
        ranks = np.zeros(ids.shape, np.int64)
        for row, wanted in enumerate(lists):
            for first in range(0, len(wanted), columns):
                part = slice(first, min(first + columns, len(wanted)))
                ranks[row, part] = to_numpy((ordinary[row] >= values[row, part, None]).sum(-1))
        return to_numpy(values - log_normalizer(logits)), ranks, to_numpy(ordinary.argmax(-1))

    # results to scores

    def _finish(self, item: _Item) -> Answered:
        if item.fault is not None:
            return Answered(item.question, error=item.fault.message, reason=item.fault.reason)
        found = dict(zip(item.nodes, item.results, strict=True))
        pairs = zip(item.question.targets, item.pieces, strict=True)
        return Answered(item.question, tuple(self._score(item, target, ids, found) for target, ids in pairs), item.truncated)

    def _score(self, item: _Item, target: str, ids: list[int] | Fault, found: dict[Node, tuple[np.ndarray, ...]]) -> TargetScore:
        if isinstance(ids, Fault):
            return TargetScore(target, error=ids.message, reason=ids.reason)
        log_probs, ranks, predicted = [], [], []
        for place, number in enumerate(ids):
            node = (len(ids), tuple(ids[:place]))
            column = item.nodes[node][number]
            values, order, best = found[node]
            log_probs.append(float(values[0, column]))
            ranks.append(int(order[0, column]))
            predicted.append(int(best[0]))
        if any(value != value for value in log_probs):
            said = "the model answers with what is no number (NaN): its weights are damaged; take another copy of it"
            return TargetScore(target, error=said, reason="no number")
        names = self.tokenizer.convert_ids_to_tokens
        return TargetScore(target, tuple(names(ids)), tuple(ids), tuple(log_probs), tuple(ranks), tuple(names(predicted)))


def _valid(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")  # half a surrogate pair is no text
