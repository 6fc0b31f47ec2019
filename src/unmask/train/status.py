"""How a run stands, read from its files by whoever asks: nothing is written, nobody is disturbed, no torch is loaded."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .. import config
from ..data.whole import is_held
from ..errors import CheckpointError, ConfigError
from .checkpoint import INFO, NAME, check
from .runlog import LOG, duration, is_number

State = Literal["running", "preparing", "finished", "interrupted", "not begun", "unknown"]
BUDGETS = ("max_steps", "num_epochs", "max_tokens", "max_minutes")
NOTICES = ("skipped", "rollback", "plateau", "stopped")  # events that somebody should know of; the others are a run's course


@dataclass(frozen=True)
class Status:
    """How a run stands; what has not been written down yet is None.

    state: running; preparing (it reads or packs its text); finished; interrupted (stopped, killed or failed: it can be resumed); not begun;
    unknown (it may run on another machine, whose locks this file system does not show: `silent_seconds` tells).
    silent_seconds: since log.jsonl was last written to. seconds_left: at the speed of this sitting, counted from now.
    line: the last line of steps in log.jsonl, as it is; by_rank: its entries that have a number for each process.
    heldout: the last evaluation; events: how often each of NOTICES was logged, and `notices` the last of them.
    checkpoint: the newest that is whole by its marker, its manifest and its sizes (contents are compared when a run resumes).
    """

    folder: str
    kind: str
    state: State
    budget: dict[str, float]
    step: int = 0
    progress: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    loss: float | None = None
    seconds_left: float | None = None
    silent_seconds: float | None = None
    heldout: dict[str, Any] | None = None
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    damaged: dict[str, str] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    notices: list[dict[str, Any]] = field(default_factory=list)
    by_rank: dict[str, list[float]] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)
    seeds: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return dataclasses.asdict(self)

    def short(self) -> str:
        """Return the run's present in a line."""
        loss = "" if self.loss is None else f"  loss {self.loss:.3f}"
        rate = "" if self.tokens_per_second is None else f"  {self.tokens_per_second:,.0f} tokens/s"
        left = "" if self.seconds_left is None else f"  {duration(self.seconds_left)} left"
        return f"step {self.step:,}{loss}{rate}  {min(self.progress, 1.0):.0%}{left}"

    def lines(self) -> list[str]:
        """Return all of it in words."""
        rows = [("run", f"{self.folder} ({self.kind})"), ("state", self.state)]
        if self.silent_seconds is not None and self.state in ("running", "unknown"):
            said = "running" if self.state == "running" else "running on another machine, or interrupted"
            rows[-1] = ("state", f"{said}; log.jsonl was written to {duration(self.silent_seconds)} ago")
        budget = " or ".join(f"{name} = {value:,}" for name, value in self.budget.items()) or "its budget"
        rows.append(("progress", f"step {self.step:,}, {min(self.progress, 1.0):.1%} of {budget}"))
        if self.seconds:
            rows.append(("speed", f"{self.tokens:,} tokens in {duration(self.seconds)}, {self.tokens / self.seconds:,.0f} tokens/s in all"))
        if self.tokens_per_second is not None:
            rows.append(("", f"{self.tokens_per_second:,.0f} tokens/s in the last steps"))
        waits = {"for data": "wait_share", "for one another": "communication_share"}
        told = [f"{self.line[name]:.1%} of the time {what}" for what, name in waits.items() if is_number(self.line.get(name))]
        if told:
            rows.append(("waiting", ", ".join(told)))
        if is_number(self.line.get("num_processes")):
            each = self.line.get("tokens_per_second_per_process") or 0.0
            rows.append(("processes", f"{self.line['num_processes']}, {each:,.0f} tokens/s each"))
        if is_number(self.line.get("peak_memory_bytes")):
            rows.append(("memory", f"{self.line['peak_memory_bytes'] / 1e9:.2f} GB at the most"))
        if self.seconds_left is not None:
            rows.append(("left", f"about {duration(self.seconds_left)}"))
        if self.loss is not None:
            rows.append(("loss", f"{self.loss:.4f}"))
        if self.heldout:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in _numbers(self.heldout))
            rows.append(("held out", f"step {self.heldout.get('step', 0):,}: {numbers}"))
        rows += [(name, ", ".join(f"{value:,.4g}" for value in values)) for name, values in self.by_rank.items()]
        if self.checkpoint is not None:
            rows.append(("checkpoint", f"{self.checkpoint}, whole by its sizes"))
        rows += [("damaged", f"{name}: {why}") for name, why in self.damaged.items()]
        rows += [(name, f"{count} times" if count > 1 else "once") for name, count in self.events.items()]
        rows += [("", _told(notice)) for notice in self.notices]
        rows += [(name, state) for name, state in self.seeds.items()]
        width = max(len(name) for name, _ in rows)
        return [f"{name:{width}}  {text}" for name, text in rows]


def _numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in record.items() if is_number(value) and name != "step" and not name.startswith("num_"))


def _told(record: dict[str, Any]) -> str:
    """Return an event as a person reads it, however much it holds."""
    rest = ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("event", "step"))
    return f"step {record.get('step', '?')}: {record['event']}: {rest[:200]}{' ...' if len(rest) > 200 else ''}"


class Log:
    """The lines of a run's log.jsonl, read on from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._seen: tuple[int, int] = (0, 0)  # which file it was, and how far it was read

    def read(self) -> list[dict[str, Any]]:
        """Return every line that is whole. A log that was cut back, as a resume does, is another file: it is read again from its start."""
        try:
            with open(self.path, "rb") as file:
                found, (number, place) = file.seek(0, 2), self._seen
                new = self.path.stat().st_ino
                if new != number or found < place:
                    self.records, place = [], 0
                file.seek(place)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return self.records
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # a disk that was full has left half a line in the middle
                continue
            if isinstance(record, dict):
                self.records.append(record)
        self._seen = (new, place + len(whole) + bool(whole))
        return self.records


def status(folder: str | Path) -> Status:
    """Return how a run stands: finished, running in another process, interrupted, or not begun.

    Raises: CheckpointError for a folder that holds no run; ConfigError where its config.toml is damaged.
    """
    return Viewer(folder).look()


class Viewer:
    """A run that is looked at again and again."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "config.toml").is_file():
            raise CheckpointError(f"'{folder}' holds no run (no config.toml); name the folder that pretrain, adapt or finetune made")
        self.log = Log(self.folder / LOG)
        self.seeds: dict[Path, Viewer] = {}

    def look(self) -> Status:
        """Return how the run stands now."""
        settings = read_settings(self.folder / "config.toml")
        records = self.log.read()
        held = is_held(self.folder)
        if (settings.get("seeds") or 1) > 1 and not held and not records:
            return self._look_at_seeds(settings)
        steps = [record for record in records if "event" not in record and is_number(record.get("step"))]
        last = steps[-1] if steps else {}
        state = _state(records, held)
        silent = max(0.0, time.time() - self.log.path.stat().st_mtime) if self.log.path.exists() else None
        left = None if state not in ("running", "unknown") else _seconds_left(records, silent or 0.0)
        unusual = [record for record in records if record.get("event") in NOTICES]
        checkpoint, damaged = newest_checkpoint(self.folder / "checkpoints")
        return Status(
            folder=str(self.folder), kind=_kind(settings), state=state, budget=_budget(settings.get("train", {})),
            step=max((int(record["step"]) for record in records if is_number(record.get("step"))), default=0),
            progress=last.get("progress", 0.0), tokens=last.get("tokens", 0), seconds=last.get("seconds", 0.0),
            tokens_per_second=last.get("tokens_per_second"), loss=last.get("loss"), seconds_left=left, silent_seconds=silent,
            heldout=next((_rest(record) for record in reversed(records) if record.get("event") == "heldout"), None),
            checkpoint=None if checkpoint is None else str(checkpoint), checkpoint_step=_step_of(checkpoint), damaged=damaged,
            events=dict(Counter(str(record["event"]) for record in unusual)), notices=unusual[-5:], by_rank=_by_rank(last), line=last,
        )  # fmt: skip

    def _look_at_seeds(self, settings: dict[str, Any]) -> Status:
        """Return how the newest of several seeds stands, each of which is a run in a folder of its own."""
        for inner in sorted(self.folder.glob("seed-*")):
            if (inner / "config.toml").is_file():
                self.seeds.setdefault(inner, Viewer(inner))
        found = {watch.folder.name: watch.look() for watch in self.seeds.values()}
        states = {f"seed-{number}": "not begun" for number in range(settings["seeds"])} if not found else {}
        states |= {name: one.state for name, one in found.items()}
        if not found:
            return Status(str(self.folder), _kind(settings), "not begun", _budget(settings.get("train", {})), seeds=states)
        newest = max(found.values(), key=lambda one: (one.state in ("running", "preparing"), -(one.silent_seconds or 0.0)))
        return dataclasses.replace(newest, seeds=states)


def read_settings(path: Path) -> dict[str, Any]:
    """Return what the config.toml of a run says, once it is seen to be one; a recipe would know more of it, and load torch.

    Raises: ConfigError.
    """
    settings = config.read_toml(path)
    train = settings.get("train")
    wrong = [f"there is no section [{name}]" for name in ("train", "data") if not isinstance(settings.get(name), dict)]
    wrong += [f"{name} = {settings[name]!r}" for name in ("task", "base_model") if not isinstance(settings.get(name, ""), str)]
    seeds = settings.get("seeds", 1)
    wrong += [] if type(seeds) is int and seeds > 0 else [f"seeds = {seeds!r}"]
    if isinstance(train, dict):
        wrong += [f"train.{name} = {train[name]!r}" for name in BUDGETS if not is_number(train.get(name, 1))]
    if wrong:
        raise ConfigError(f"'{path}' is not what a run has written there: {', '.join(wrong)}; take another copy of it")
    return settings


def _state(records: list[dict[str, Any]], held: bool | None) -> State:
    if held:
        return "running" if records else "preparing"
    if not records:
        return "not begun"
    if records[-1].get("event") == "end":
        return "finished"
    return "unknown" if held is None else "interrupted"


def _seconds_left(records: list[dict[str, Any]], silent: float) -> float | None:
    """Return how long the rest takes at the speed since the run was last taken up; None where nothing can be said yet."""
    begin, last = (0.0, 0.0), None
    for record in records:
        if record.get("event") == "resume" and last is not None:
            begin = last
        elif "event" not in record and is_number(record.get("progress")) and is_number(record.get("seconds")):
            last = (record["seconds"], record["progress"])
    if last is None or last[1] <= begin[1]:
        return None
    left = (1 - last[1]) * (last[0] - begin[0]) / (last[1] - begin[1])
    return max(0.0, left - silent) if math.isfinite(left) else None


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[str, str]]:
    """Return the newest checkpoint that has its marker, its manifest and the right sizes; and why each newer one has not.

    What is inside the files is not read: that is for the resume, and for hours of disk traffic elsewhere.
    """
    damaged: dict[str, str] = {}
    found = [(int(match[1]), match[2] is None, child) for child in _children(folder) if (match := NAME.fullmatch(child.name))]
    for _, _, child in sorted(found, reverse=True):
        try:
            check(child, content=False)
            return child, damaged
        except (CheckpointError, OSError) as error:
            if child.is_dir():  # and not one that the run has just deleted
                damaged[child.name] = str(error)
    return None, damaged


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _step_of(checkpoint: Path | None) -> int | None:
    if checkpoint is None:
        return None
    try:
        return int(json.loads((checkpoint / INFO).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):  # deleted a moment ago
        return None


def _rest(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "event"}


def _by_rank(line: dict[str, Any]) -> dict[str, list[float]]:
    return {name: value for name, value in line.items() if isinstance(value, list) and value and all(map(is_number, value))}


def _kind(settings: dict[str, Any]) -> str:
    if "task" in settings:
        return f"finetune {settings['task']}"
    return "adapt" if settings.get("base_model") else "pretrain"


def _budget(train: dict[str, Any]) -> dict[str, float]:
    return {name: train[name] for name in BUDGETS if train.get(name) is not None}
