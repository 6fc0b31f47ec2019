"""Whether an exported model may be used: the same answers as the model it was made from, and in int8 as good and faster, on real text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.tokenizer import frame, special_ids
from ..evaluate.masked import measure, window_length
from ..evaluate.metrics import Estimates, estimates
from ..evaluate.paired import difference
from ..infer.arrays import to_numpy
from ..infer.engine import Engine, Request
from ..infer.measure import Agreement, Speed, agreement, masked, speeds

if TYPE_CHECKING:
    from ..evaluate.text import Text

EVERY = 7  # of the tokens that are compared, one is a mask: as many as are measured on
PARITY_SEQUENCES, BULK_TOKENS, ALONE = 64, 4096, 24
# sums of many fp32 numbers in another order: what twelve layers make of it is a hundredth of this
TOLERANCE, SAME = 1e-3, 0.999
METRIC = "masked_accuracy"
ANSWERS = "ForQuestionAnswering"


@dataclass(frozen=True)
class Row:
    """What one way to run the model does on the text: against the first one where it is compared, None where it was not measured."""

    name: str
    tokens_per_second: float
    p50_milliseconds: float
    p95_milliseconds: float
    size_bytes: int
    agreement: Agreement | None = None
    masked_accuracy: float | None = None
    masked_loss: float | None = None
    task_metric: float | None = None  # of a model that is fine-tuned for a task

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def sequences(text: Text, max_length: int | None, number: int = PARITY_SEQUENCES) -> list[Request]:
    """Return the first windows of documents of a text, every seventh token masked."""
    before, after = frame(text.tokenizer)
    room = window_length(max_length, None) - len(before) - len(after)
    contents = (text.store.gather(np.array([document]))[0][:room].astype(np.int64) for document in text.order[:number].tolist())
    mask = special_ids(text.tokenizer).mask
    return [masked(content, before, after, mask, EVERY) for content in contents]


class Ends(Engine):
    """An engine of a model that answers questions, to be compared by what it answers: of the tokens asked for, which is the start, which
    the end. Two rows a request, a column a token, in place of the start and the end of each token, between which nothing is decided.
    """

    def logits(self, requests: Iterable[Request]) -> Iterator[Any]:
        """Yield for each request how likely an answer starts and ends at each of its positions. Shapes: (2, N)."""
        for one in super().logits(requests):
            yield to_numpy(one).T


def compared(reference: Engine, other: Engine, requests: Sequence[Request], *, head: str) -> Agreement:
    """Return how far the answers of an engine are from those of a reference; `head` is how the name of the model's class ends."""
    if head == ANSWERS:
        reference, other = Ends(reference.backend), Ends(other.backend)
    return agreement(reference, other, requests)


def holds(found: Agreement) -> bool:
    """Return whether two ways to compute the same numbers in fp32 agree: to a thousandth of the largest, and in what they answer."""
    return found.max_difference <= TOLERANCE * max(1.0, found.max_logit) and found.same_top_1 >= SAME


def rows(
    engines: Mapping[str, Engine],
    sizes: Mapping[str, int],
    requests: list[Request],
    points: Mapping[str, Mapping[str, float]],
    metric: str = METRIC,
    *,
    head: str,
) -> list[Row]:
    """Return a row for each way to run a model: how fast it answers the requests, and how it agrees with the first of them.

    `points` are the numbers that were measured of each, `metric` the one that is looked at, `head` as for `compared`.
    """
    first = next(iter(engines))
    bulk, alone = timed(engines, requests)
    made = []
    for name, engine in engines.items():
        p50, p95 = (float(np.quantile(alone[name], share)) * 1e3 for share in (0.5, 0.95))
        apart = None if name == first else compared(engines[first], engine, requests, head=head)
        point = points.get(name, {})
        quality = point.get(METRIC), point.get("masked_loss"), None if metric == METRIC else point.get(metric)
        made.append(Row(name, bulk[name].tokens_per_second, p50, p95, sizes[name], apart, *quality))
    return made


def timed(engines: Mapping[str, Engine], requests: list[Request]) -> tuple[dict[str, Speed], dict[str, list[float]]]:
    """Return the speed of each engine with many texts together, and the seconds that it takes for one alone."""
    sizes = np.cumsum([len(request.input_ids) for request in requests])
    bulk = speeds(engines, requests[: max(1, int((sizes <= BULK_TOKENS).sum()))], rounds=3)
    alone: dict[str, list[float]] = {name: [] for name in engines}
    for request in requests[:ALONE]:
        for name, speed in speeds(engines, [request], rounds=3).items():
            alone[name].append(float(np.median(speed.seconds)))
    return bulk, alone


def quality(
    engines: Mapping[str, Engine], text: Text, log: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], dict[str, Any], dict[str, Any]]:
    """Return the numbers of each way to run a model on the frozen masks of a text, how the last one's accuracy differs from the first's
    (as paired.Difference, with its interval over documents), and what was measured on.
    """
    found: dict[str, Estimates] = {}
    for name, engine in engines.items():
        start = time.perf_counter()
        records = measure(engine, text)
        found[name] = estimates(records, slices=False)
        log(f"{name}: measured on {len(records):,} masked tokens in {time.perf_counter() - start:.1f} s")
    a, b = found[next(iter(engines))], found[name]
    change = difference(
        a.point[METRIC], b.point[METRIC], a.samples[METRIC], b.samples[METRIC], count=a.counts[""],
        num_documents=a.num_documents[""], resamples=len(a.samples[METRIC]),
    )  # fmt: skip
    masks = {"num_masked_tokens": len(records), "masks_fingerprint": records.fingerprint, "policy": records.info["policy"]}
    return {name: one.point for name, one in found.items()}, change.to_dict(), masks


def faults(
    rows: list[Row], max_drop: float, metric: str = METRIC, higher: bool = True, also: Mapping[str, tuple[float, float]] | None = None
) -> list[str]:
    """Return why the last of the rows is not to be used in place of the others; nothing where it is good enough and faster.

    Where a lower number is better, what is lost is its growth, as a share of it. `also` are other numbers, of the first and the last
    row, of which a higher one is better.
    """
    *others, last = rows
    before, after = ((row.masked_accuracy if metric == METRIC else row.task_metric) or 0.0 for row in (others[0], last))
    drop = before - after if higher else (after - before) / (before or 1.0)
    lost = {metric: drop, **{name: one - other for name, (one, other) in (also or {}).items()}}
    wrong = [
        f"it loses {drop:.4f} of the {name.replace('_', ' ')}, and {max_drop:g} is allowed (--max-drop)"
        for name, drop in lost.items()
        if not drop <= max_drop  # NaN, too
    ]
    for other in others:
        if last.tokens_per_second <= other.tokens_per_second:
            wrong.append(f"many texts together are not faster than with {other.name}")
        if last.p50_milliseconds >= other.p50_milliseconds:
            wrong.append(f"one text alone is not faster than with {other.name}")
    return wrong


def table(rows: list[Row], metric: str = METRIC) -> list[tuple[str, ...]]:
    """Return rows as they are printed, below their headings."""
    of_task = metric != METRIC

    def form(value: float | None, how: str) -> str:
        return "-" if value is None else format(value, how)

    names = (metric,) if of_task else ("accuracy", "loss")
    lines: list[tuple[str, ...]] = [("", *names, "same top-1", "max |Δ|", "tokens/s", "p50 ms", "p95 ms", "MB")]
    for row in rows:
        same, apart = (row.agreement.same_top_1, row.agreement.max_difference) if row.agreement else (None, None)
        own = (row.task_metric,) if of_task else (row.masked_accuracy, row.masked_loss)
        numbers = (*((value, ".4f") for value in own), (same, ".4f"), (apart, ".1e"), (row.tokens_per_second, ",.0f"),
                   (row.p50_milliseconds, ".2f"), (row.p95_milliseconds, ".2f"), (row.size_bytes / 1e6, ",.1f"))  # fmt: skip
        lines.append((row.name, *(form(*number) for number in numbers)))
    return lines
