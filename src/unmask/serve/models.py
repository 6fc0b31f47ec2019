"""The models that are served: by name, loaded when they are needed, and anew when their folder has changed, while the old one serves."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnmaskError
from ..infer.backends import is_export
from ..infer.engine import Engine, Reduce
from ..infer.request import Pack
from ..tasks.kinds import model_folder
from .batcher import Lane
from .limits import LOADING, Limits, Refused
from .metrics import Metrics
from .scores import run_score, score_cost
from .tasks import Task, Work, task_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
SUFFIXES = (".json", ".safetensors", ".bin", ".onnx", ".data", ".txt", ".model")  # of the files that make a model
LOOK_SECONDS = 2.0  # between two looks at a model's folder, which are made when a request comes
AGAIN_SECONDS = 30.0  # before a model that could not be loaded is tried again

log = logging.getLogger(__name__)


def parse_names(specs: Sequence[str]) -> dict[str, str]:
    """Return name -> path of `NAME=PATH` or `PATH`, whose name is that of its folder (of the run, for a run's model).

    Raises: ConfigError for a name that cannot stand in an address, or that is there twice.
    """
    found: dict[str, str] = {}
    for spec in specs:
        name, equals, path = spec.partition("=")
        if not equals or Path(spec).expanduser().exists():
            path = spec
            folder = Path(spec).expanduser().absolute()
            name = folder.parent.name if folder.name == "model" and (folder.parent / "config.toml").is_file() else folder.name
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be a model's name; letters, digits, '.', '_' and '-' can: give NAME={path}")
        if name in found:
            raise ConfigError(f"there are two models of the name '{name}': '{found[name]}' and '{path}'; name one of them NAME={path}")
        found[name] = path
    if not found:
        raise ConfigError("there is no model to serve; name a model folder")
    return found


def check_paths(paths: dict[str, str]) -> None:
    """Check that folders hold models, so that what cannot be served is known before it is asked.

    Raises: CheckpointError, ConfigError.
    """
    from ..model.load import check_folder

    for path in paths.values():
        folder = model_folder(path)
        if not is_export(folder):
            check_folder(str(folder))


class WatchedEngine(Engine):
    """An Engine that stops between two passes when nobody waits for the result any more."""

    def __init__(self, engine: Engine, lane: Lane) -> None:
        super().__init__(engine.backend, max_tokens=engine.max_tokens, lookahead=engine.lookahead)
        self.lane = lane

    def _forward(self, batch: Pack, reduce: Reduce) -> tuple[Any, ...]:
        self.lane.check()
        return super()._forward(batch, reduce)


class Running:
    """A model in memory, with a lane for its task and one for scores."""

    def __init__(self, name: str, task: Task, path: str | Path, limits: Limits, metrics: Metrics, options: dict[str, Any]) -> None:
        self.task, self.limits = task, limits
        self.runner = task.load(path, **options)
        _own(self.runner.engine.model)
        self.engine: Engine = self.runner.engine
        self.tokenizer = self.runner.tokenizer
        if task.name == "fill-mask":  # weights that answer with no numbers are found now, and kernels are made
            self.runner.fill(self.tokenizer.mask_token)
        self.scorer: Any = None
        max_cost = self.engine.max_tokens
        self.lane = Lane(f"{name} {task.name}", lambda works: task.run(self.runner, works, limits), max_cost=max_cost,
                         after=metrics.turn(name, task.name))  # fmt: skip
        # what takes many passes has a lane of its own: the passes of both take turns, so that the quick ones are not kept waiting
        self.deep = copy(self.runner)
        self.deep_lane = Lane(f"{name} {task.name} deep", lambda works: task.run(self.deep, works, limits), max_cost=4 * max_cost,
                              after=metrics.turn(name, f"{task.name} deep"))  # fmt: skip
        self.score_lane = Lane(f"{name} score", self._score, max_cost=4 * max_cost, after=metrics.turn(name, "score"))
        self.runner.engine = WatchedEngine(self.engine, self.lane)
        self.deep.engine = WatchedEngine(self.engine, self.deep_lane)

    def _score(self, works: Sequence[Work]) -> list[Any]:
        if self.scorer is None:
            from ..evaluate.pll import Scorer

            self.scorer = Scorer(self.engine.backend, self.tokenizer, max_tokens=self.engine.max_tokens)
            self.scorer.engine = WatchedEngine(self.engine, self.score_lane)
        return run_score(self.scorer, works, self.limits)

    def ask(self, work: Work) -> asyncio.Future[Any]:
        """Return the answer to come of the model's own task."""
        return (self.deep_lane if work.deep else self.lane).submit(work, self.task.cost(work))

    def score(self, work: Work) -> asyncio.Future[Any]:
        """Return the scores to come.

        Raises: Refused for a model that has no such head.
        """
        if self.task.name != "fill-mask":
            raise Refused(422, f"texts are scored by a masked language model; this one does {self.task.name}")
        return self.score_lane.submit(work, score_cost(work))

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All of them."""
        return self.lane, self.deep_lane, self.score_lane

    def close(self) -> None:
        """End when all is answered."""
        for lane in self.lanes:
            lane.close()


def _own(model: Any) -> None:
    """Copy a model's weights, which are the pages of its file: whoever writes that file anew must not change, or end, what is served."""
    if model is not None:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()


class Model:
    """A model by name; all of it runs in the event loop, but the loading."""

    def __init__(
        self, name: str, path: str, load: Callable[[Task, str | Path], Running], pool: ThreadPoolExecutor, metrics: Metrics
    ) -> None:
        self.name, self.path, self.load, self.pool, self.metrics = name, path, load, pool, metrics
        self.task = self._task()
        self.current: Running | None = None
        self.loading: asyncio.Task[None] | None = None
        self.problem: Exception | None = None
        self.num_loads = 0
        self.stamp: Any = None
        self.seen: Any = None
        self.looked = self.failed = -float("inf")

    def _task(self) -> Task:
        config = Path(model_folder(self.path)).expanduser() / "config.json"
        if not config.is_file():
            return task_of(None, self.path)  # a Hub id, or an export without one
        try:
            return task_of(json.loads(config.read_text(encoding="utf-8")).get("architectures"), self.path)
        except (ValueError, AttributeError):
            raise ConfigError(f"'{config}' is not JSON with an object in it; name another folder") from None

    async def running(self) -> Running:
        """Return the model, loaded if it was not; a folder that has changed is loaded in the background.

        Raises: Refused where it cannot be loaded.
        """
        if self.current is None:
            if self.loading is None and time.monotonic() - self.failed < AGAIN_SECONDS and self._stamp() == self.stamp:
                raise self._unusable()
            await self.loaded()
            if self.current is None:
                raise self._unusable()
        elif time.monotonic() - self.looked > LOOK_SECONDS:
            self.looked = time.monotonic()
            stamp = self._stamp()
            # a folder that is being written is left alone until it is the same at two looks
            if stamp not in (self.stamp, None) and stamp == self.seen and self.loading is None:
                log.info("%s: its folder has changed", self.name)
                self.reload()
            self.seen = stamp
        return self.current

    async def loaded(self) -> None:
        """Wait for the loading under way, begun if there was none; it goes on where the request that waits is given up."""
        LOADING.set(self.name)
        await asyncio.shield(self.reload())
        LOADING.set(None)

    def reload(self) -> asyncio.Task[None]:
        """Return the loading under way, begun if there was none; the model that serves goes on until another takes its place."""
        if self.loading is None:
            self.loading = asyncio.create_task(self._load())
            self.loading.add_done_callback(lambda _: setattr(self, "loading", None))
        return self.loading

    async def _load(self) -> None:
        self.stamp = self._stamp()
        started = time.monotonic()
        try:
            task = self._task()
            fresh = await asyncio.get_running_loop().run_in_executor(self.pool, self.load, task, model_folder(self.path))
        except Exception as error:  # of whatever library: a service goes on with the models that it has
            self.problem, self.failed = error, time.monotonic()
            self.metrics.loads.labels(self.name, "failed").inc()
            why = None if isinstance(error, (UnmaskError, OSError)) else error
            log.error("%s cannot be loaded%s: %s", self.name, "; the one that serves goes on" if self.current else "", error, exc_info=why)
            return
        old, self.current, self.task, self.problem = self.current, fresh, task, None
        self.num_loads += 1
        self.metrics.loads.labels(self.name, "done").inc()
        log.info("%s: loaded in %.1f s from %s", self.name, time.monotonic() - started, self.path)
        if old is not None:
            old.close()

    def _stamp(self) -> Any:
        """Return what changes when the folder is written anew; None where there is nothing to look at."""
        folder = Path(model_folder(self.path)).expanduser()
        try:
            files = sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES)
            return tuple((file.name, (stat := file.stat()).st_mtime_ns, stat.st_size, stat.st_ino) for file in files)
        except OSError:
            return None

    def _unusable(self) -> Refused:
        # what exactly is wrong names folders, and is for the log
        return Refused(503, f"the model '{self.name}' cannot be loaded; the server's log says why", retry_after=int(AGAIN_SECONDS))

    def info(self) -> dict[str, Any]:
        """Return what is told of it."""
        found: dict[str, Any] = {
            "name": self.name, "task": self.task.name, "path_name": Path(self.path).name, "loaded": self.current is not None,
            "num_loads": self.num_loads, "error": None if self.problem is None else "it cannot be loaded; the server's log says why",
            "vocab_size": None, "max_length": None, "mask_token": None, "backend": None, "precision": None,
        }  # fmt: skip
        if self.current is not None:
            engine, tokenizer = self.current.engine, self.current.tokenizer
            found |= {
                "vocab_size": len(tokenizer), "max_length": engine.max_length, "mask_token": tokenizer.mask_token,
                "backend": engine.backend.name, "precision": str(getattr(engine.precision, "name", engine.precision)),
            }  # fmt: skip
        return found


class Models:
    """All models; `options` go to what runs them (device, precision, max_tokens)."""

    def __init__(self, paths: dict[str, str], limits: Limits, metrics: Metrics, options: dict[str, Any]) -> None:
        # one at a time: two models that are being loaded are twice the memory
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="load")

        def loader(name: str) -> Callable[[Task, str | Path], Running]:
            return lambda task, path: Running(name, task, path, limits, metrics, options)

        self.all = {name: Model(name, path, loader(name), self.pool, metrics) for name, path in paths.items()}

    def find(self, name: str | None) -> Model:
        """Return a model; without a name, the only one.

        Raises: Refused.
        """
        if name is None:
            if len(self.all) == 1:
                return next(iter(self.all.values()))
            raise Refused(422, f"several models are served, and the request names none; model is one of: {', '.join(self.all)}")
        if name not in self.all:
            raise Refused(404, f"there is no model {name[:100]!r}; models: {', '.join(self.all)}")
        return self.all[name]

    async def preload(self) -> None:
        """Load all.

        Raises: the error of the first that cannot be loaded.
        """
        for model in self.all.values():
            await model.reload()
            if model.problem is not None:
                raise model.problem

    def reload(self) -> None:
        """Load anew what has been loaded, or could not be."""
        for model in self.all.values():
            if model.current is not None or model.problem is not None:
                model.reload()

    async def close(self) -> None:
        """End when all is answered."""
        for model in self.all.values():
            if model.current is not None:
                model.current.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
