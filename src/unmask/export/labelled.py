"""What an export is measured on that is fine-tuned for a task: labelled items, by the number that the task is known by."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..evaluate.page import read_json
from ..evaluate.paired import difference
from ..evaluate.stats import RESAMPLES, units, weights
from ..infer.engine import Engine, Request
from ..tasks import recipe as recipes
from ..tasks.finetune import CONFIG, METRICS, is_task_run
from ..tasks.kinds import task
from ..tasks.predictor import Predictor
from ..tasks.recipe import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Quality = tuple[dict[str, dict[str, float]], dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Labelled:
    """Labelled items, the predictor of the model that is exported, and its number: by which the run chose its best checkpoint, or the
    task's own; and whether a higher one is better.
    """

    predictor: Predictor
    items: list[Any]
    metric: tuple[str, bool]

    @classmethod
    def read(
        cls, name: str, model: PreTrainedModel, tokenizer: Any, run: Path | None, data: Sequence[str] | None, reading: Mapping[str, Any]
    ) -> Labelled | None:
        """Return the items of files, or those that a run has held out; None where there are neither.

        Raises: DataError for items that cannot be used.
        """
        kind = task(name)
        predictor = kind.predictor_type(model, tokenizer)
        mine = run is not None and (run / CONFIG).is_file() and is_task_run(run)
        told = read_json(run / METRICS) if run is not None and mine else {}
        metric = (str(told["best"]), bool(told["higher_is_better"])) if "higher_is_better" in told else predictor.best
        if data is None:
            items = kind.load_data(recipes.load(run / CONFIG)).dev if run is not None and mine else []
            return cls(predictor, items, metric) if items else None
        given = {key: value for key, value in reading.items() if value is not None}
        wrong = given.keys() - {field.name for field in fields(TaskData)}
        if wrong:
            raise ConfigError(
                f"{', '.join(sorted(wrong))}: a model for a task is measured on labelled files, which have none; leave it out"
            )
        settings = TaskData(sources=tuple(data), **given)
        items, findings = kind.read_for(predictor, settings)
        findings.refuse(settings.on_bad)
        return cls(predictor, items, metric)

    @property
    def also(self) -> tuple[str, ...]:
        """What else int8 may not lose: of several labels a text, what thresholds make of probabilities, which ranking does not show."""
        return ("micro_f1",) if getattr(self.predictor, "problem", None) == "multi" else ()

    def requests(self, number: int) -> list[Request]:
        """Return the sequences of the first items, as the model is asked when it predicts."""
        return list(islice(self.predictor.requests(self.predictor.encode(self.items[:number])), number))

    def quality(self, engines: Mapping[str, Engine], log: Callable[[str], None]) -> Quality:
        """Return the number of each way to run the model, how the last one's differs from the first's (as paired.Difference, with its
        interval over items), and what was measured on.
        """
        name, count = self.metric[0], len(self.items)
        unit = units(count)
        points: dict[str, dict[str, float]] = {}
        samples: dict[str, np.ndarray] = {}
        for way, engine in engines.items():
            start = time.perf_counter()
            predictor = type(self.predictor)(engine.backend, self.predictor.tokenizer, config=self.predictor.config)
            scores = predictor.score(self.items, list(predictor.stream(self.items)))
            if name not in (known := scores.of(np.ones((1, count)))):
                raise ConfigError(f"the run chose its best checkpoint by {name}, and these items give {', '.join(known)} only; name others")
            points[way] = {one: float(known[one][0]) for one in (name, *self.also)}
            samples[way] = np.concatenate([scores.of(part[:, unit])[name] for part in weights(int(unit[-1]) + 1, RESAMPLES, 0)])
            others = "".join(f" ({one} {points[way][one]:.4f})" for one in self.also if one != name)
            log(f"{way}: {name} {points[way][name]:.4f}{others} on {count:,} labelled items in {time.perf_counter() - start:.1f} s")
        first, last = next(iter(engines)), way
        change = difference(
            points[first][name], points[last][name], samples[first], samples[last], count=count, num_documents=count, resamples=RESAMPLES
        )
        return points, change.to_dict(), {"metric": name, "num_items": count, "points": points}
