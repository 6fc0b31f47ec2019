"""Numbers over the items of a test, with intervals, overall and by category; how items that could not be asked are counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.manifest import MANIFEST, write_manifest
from ..train.runlog import finite as all_finite
from .evaluation import METRICS, PREDICTIONS, output_folder, write
from .stats import LEVEL, check_resamples, finite, interval, weights

NO_VALUE = "(none)"
MAX_ITEMS = 300_000  # of a test, which is held in memory with what the model said of it: some 3 kB an item
METHOD = "Wilson score of shares of items that are right or wrong; percentile bootstrap over items of all else, and of shares with ties"
SHARES = ("accuracy", "candidate_accuracy", "precision_at_1", "precision_at_5", "precision_at_10", "mean_reciprocal_rank")
Ratios = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Outcome:
    """What a test gave: the numbers, as in metrics.json, and a dict for each item, as in predictions.jsonl."""

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]

    def __getitem__(self, name: str) -> Any:
        return self.metrics[name]["value"] if isinstance(self.metrics[name], dict) and "value" in self.metrics[name] else self.metrics[name]

    def save(self, folder: Path) -> None:
        """Write metrics.json and predictions.jsonl, and last a manifest of both."""
        self.write(folder)
        write_manifest(folder, only=(METRICS, PREDICTIONS))

    def write(self, folder: Path) -> None:
        """Write metrics.json and predictions.jsonl alone: among the files of a run, which go on changing."""
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / PREDICTIONS, (json.dumps(all_finite(line), ensure_ascii=False) + "\n" for line in self.predictions))
        write(folder / METRICS, [json.dumps(all_finite(self.metrics), indent=1, ensure_ascii=False, allow_nan=False) + "\n"])


def check_output(output: str | Path | None, resamples: int) -> Path | None:
    """Return the folder for the results; the results of a test are written over, anything else is not touched.

    Raises: CheckpointError; ConfigError for a number of resamples that cannot be.
    """
    check_resamples(resamples)
    return output_folder(output, "the results of a test", lambda names: names <= {METRICS, PREDICTIONS, MANIFEST})


def numbers(ratios: Ratios, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return {value, low, high, count} of each ratio of sums over items, and `why` where there is no interval.

    Items are drawn with replacement; items with a divisor of zero do not count. A share of items, each 0 or 1, has Wilson's interval
    instead: of a test that is all right a bootstrap says that nothing else could have been, from 1 to 1.
    Shapes: both arrays of a ratio (items,).
    Source: Wilson 1927; Brown, Cai and DasGupta 2001 on few items.
    """
    tables = np.stack([part for pair in ratios.values() for part in pair], axis=1) if ratios else np.zeros((0, 0))
    size = len(tables)
    drawn = [weight @ tables for weight in weights(size, resamples, seed)] if size > 1 else []
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = np.concatenate(drawn) if drawn else np.zeros((0, tables.shape[1]))
        samples = samples[:, ::2] / samples[:, 1::2]
        values = tables.sum(0)[::2] / tables.sum(0)[1::2]
    found = {}
    for place, (name, (top, divisor)) in enumerate(ratios.items()):
        count = int(np.count_nonzero(divisor))
        each = top[divisor != 0]
        bounds, why = None, None
        if count < 2:
            why = f"{'one item' if count else 'no item'} only: how far items differ cannot be seen; test on more"
        elif resamples < 2:
            why = "no resamples were asked for"
        elif name in SHARES and np.isin(each, (0, 1)).all():
            bounds = wilson(int(each.sum()), count)
        else:
            bounds = interval(samples[:, place])
            why = None if bounds else "most resamples hold nothing of it: too few items have it; test on more"
            if bounds and bounds[0] == bounds[1]:
                bounds, why = None, "it is the same in all items: how far others would differ cannot be seen; test on more"
        low, high = bounds or (None, None)
        found[name] = {"value": finite(values[place]), "low": low, "high": high, "count": count, **({"why": why} if why else {})}
    return found


def wilson(num_right: int, num_items: int) -> tuple[float, float]:
    """Return the interval of a share of independent items."""
    from scipy.stats import binomtest

    found = binomtest(num_right, num_items).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def sliced(ratios: Ratios, categories: Mapping[str, list[str]], *, resamples: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the numbers of each value of each category, in the order of their first item."""
    found: dict[str, list[dict[str, Any]]] = {}
    for dimension, of_items in categories.items():
        values = np.array(of_items, dtype=object)
        rows = found.setdefault(dimension, [])
        for value in dict.fromkeys(of_items):
            where = np.flatnonzero(values == value)
            part = {name: (top[where], bottom[where]) for name, (top, bottom) in ratios.items()}
            rows.append({"name": value, "count": len(where), **numbers(part, resamples=resamples, seed=seed)})
    return found


def about_items(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many items there are, and how many were left out for which reason."""
    excluded = Counter(line["reason"] for line in predictions if "error" in line)
    return {
        "num_items": len(predictions),
        "num_scored": len(predictions) - excluded.total(),
        "num_excluded": excluded.total(),
        "excluded": dict(sorted(excluded.items())),
        "num_truncated": sum(line.get("truncated", False) for line in predictions),
    }


def about_interval(resamples: int, seed: int) -> dict[str, Any]:
    """Return how the intervals were made."""
    return {"level": LEVEL, "method": METHOD, "resamples": resamples, "seed": seed}


def category(values: Mapping[str, Any], name: str, none: str = NO_VALUE) -> str:
    """Return an item's value of a column, as text."""
    value = values.get(name)
    return none if value is None or value == "" else str(value)


def precision_name(engine: Any) -> str:
    """Return the number format in which an engine runs."""
    return str(getattr(engine.precision, "name", engine.precision))


def names(sources: Any) -> list[str]:
    """Return the names of files, without the folders they lie in."""
    several: Iterable[Any] = [sources] if isinstance(sources, (str, Path)) else sources
    return [Path(source).name for source in several]
