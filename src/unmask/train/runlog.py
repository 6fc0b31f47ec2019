"""What a run writes down while it goes: log.jsonl, environment.json, one live line on the terminal."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, RunError
from .trackers import Trackers

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from .loop import Step, TrainConfig, TrainState

LOG, ENVIRONMENT = "log.jsonl", "environment.json"
PACKAGES = ("unmask", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


class RunLog:
    """The log of a run: `step` takes every step, `write` any event, `notice` tells the user something; all but log.jsonl is on stderr.

    log.jsonl gets a line every `log_steps` steps: the loss is the mean over the masked tokens (what `unit` names) since the line before,
    `tokens_per_second` counts real tokens (no padding) and the time of the steps alone. A run that is resumed first loses the lines
    beyond its step.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        step: int = 0,
        config: TrainConfig,
        console: Console | None = None,
        unit: str = "masked_tokens",
        num_processes: int = 1,
    ) -> None:
        self.folder, self.config, self.unit, self.num_processes = Path(folder), config, unit, num_processes
        self.path = self.folder / LOG
        cut_back(self.path, step)
        self.trackers = Trackers(config.trackers, self.folder, step=step)
        self.file = open(self.path, "a", encoding="utf-8")
        self.display = Display(console, num_processes)
        self._window = Window()
        record = environment()
        (self.folder / ENVIRONMENT).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self.write({"event": "resume" if step else "start", "step": step, "time": now(), "environment": record})

    def step(self, state: TrainState, step: Step, progress: float, *, final: bool = False) -> None:
        """Take a step that was not skipped, with the share of the budget that is used up after it."""
        self._window.add(step)
        self.display.step(state, step, progress)
        if final or state.step % self.config.log_steps == 0:
            line = {"step": state.step, "progress": round(progress, 6), "tokens": state.tokens, "seconds": round(state.seconds, 3)}
            self.write({**line, **self._window.numbers(self.unit, self.num_processes), "learning_rate": step.learning_rate})
            self._window = Window()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl, at once; its numbers go to the trackers too.

        Raises: RunError when it cannot be written.
        """
        try:
            self.file.write(json.dumps(finite(record), allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise RunError(f"'{self.path}' cannot be written ({error.strerror}); make room, then go on with `unmask resume`") from error
        prefix = f"{record['event']}/" if "event" in record else "train/"
        values = {f"{prefix}{name}": float(value) for name, value in record.items() if is_number(value) and name != "step"}
        if values and "step" in record:
            self.trackers.log(values, int(record["step"]))

    def notice(self, text: str) -> None:
        """Tell the user something, above the live line."""
        self.display.notice(text)

    def close(self) -> None:
        """End the live line and the trackers, and close log.jsonl; more than once does no harm."""
        self.display.close()
        self.trackers.close()
        with contextlib.suppress(OSError):  # of a full disk, once more: half a line, which the next sitting cuts off
            self.file.close()


class NoLog:
    """What a process has in place of a log, where another one writes it."""

    def step(self, state: TrainState, step: Step, progress: float, *, final: bool = False) -> None:
        """Pass over a step."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Pass over an event."""

    def notice(self, text: str) -> None:
        """Tell the user nothing."""

    def close(self) -> None:
        """Do nothing."""


class Window:
    """The steps since the last line of the log."""

    def __init__(self) -> None:
        self.loss = self.seconds = self.waited = self.talked = 0.0
        self.labels: float = 0
        self.tokens = 0
        self.grad_norm = 0.0

    def add(self, step: Step) -> None:
        """Take a step."""
        self.loss += step.loss * step.num_labels
        self.labels += step.num_labels
        self.tokens += step.num_tokens
        self.seconds += step.seconds
        self.waited += step.wait_seconds
        self.talked += step.talk_seconds
        self.grad_norm = max(self.grad_norm, step.grad_norm)

    def numbers(self, unit: str = "masked_tokens", num_processes: int = 1) -> dict[str, Any]:
        """Return the numbers of a line: mean loss, largest gradient norm, speed, share of the time spent waiting for data.

        Of several processes, also the speed of each, the share of the time that they wait for one another, and the first one's memory.
        """
        seconds = max(self.seconds, 1e-9)
        line = {
            "loss": self.loss / (self.labels or 1), "grad_norm": self.grad_norm, f"num_{unit}": self.labels,
            "tokens_per_second": round(self.tokens / seconds, 1), "wait_share": round(self.waited / seconds, 4),
        }  # fmt: skip
        if num_processes > 1:
            line |= {
                "num_processes": num_processes, "tokens_per_second_per_process": round(self.tokens / seconds / num_processes, 1),
                "communication_share": round(self.talked / seconds, 4), "peak_memory_bytes": peak_memory_bytes(),
            }  # fmt: skip
        return line


class Display:
    """One line that moves on a terminal; elsewhere a plain line every so often."""

    SMOOTH = 0.95  # of the loss and the speed that are shown, a step
    REFRESH_SECONDS = 0.25
    PLAIN_SECONDS = (10.0, 60.0)  # between plain lines, at first and later on

    def __init__(self, console: Console | None = None, num_processes: int = 1) -> None:
        from rich.console import Console

        self.console, self.num_processes = console or Console(stderr=True, highlight=False), num_processes
        self.loss = self.rate = self.waited = self.talked = 0.0
        self.weight = 0.0
        self.begin: tuple[float, float] | None = None  # seconds and progress of the run when this process took it up
        self.shown = 0.0
        self.live: Progress | None = None
        self.closed = False

    def step(self, state: TrainState, step: Step, progress: float) -> None:
        """Take a step, and show it if it is time to."""
        if self.begin is None:
            # the first step is over already: what came before it is found by its share
            self.begin = (state.seconds - step.seconds, progress * (1 - 1 / max(1, state.step)))
        self.weight = self.SMOOTH * self.weight + 1 - self.SMOOTH  # so that the first steps are not drawn to zero
        self.loss += (1 - self.SMOOTH) * (step.loss - self.loss)
        self.rate += (1 - self.SMOOTH) * (step.num_tokens / max(step.seconds, 1e-9) - self.rate)
        self.waited += (1 - self.SMOOTH) * (step.wait_seconds / max(step.seconds, 1e-9) - self.waited)
        self.talked += (1 - self.SMOOTH) * (step.talk_seconds / max(step.seconds, 1e-9) - self.talked)
        moment = time.monotonic()
        if self.console.is_terminal:
            if moment - self.shown >= self.REFRESH_SECONDS or progress >= 1:
                self._move(state, progress)
                self.shown = moment
        elif not self.shown:
            self.shown = moment
        elif moment - self.shown >= min(max(self.PLAIN_SECONDS[0], state.seconds / 20), self.PLAIN_SECONDS[1]):
            self.shown = moment
            self._plain(self.line(state, progress))

    def line(self, state: TrainState, progress: float) -> str:
        """Return what the line says."""
        loss, rate, left = self.loss / self.weight, self.rate / self.weight, self.seconds_left(state, progress)
        eta = f"  {duration(left)} left" if left is not None else ""
        shares = ""
        if self.num_processes > 1:
            waited, talked = self.waited / self.weight, self.talked / self.weight
            shares = (
                f" ({self.num_processes} x {rate / self.num_processes:,.0f}; waiting for data {waited:.0%}, for one another {talked:.0%})"
            )
        return f"step {state.step:,}  loss {loss:.3f}  {rate:,.0f} tokens/s{shares}  {min(progress, 1.0):.0%}{eta}"

    def seconds_left(self, state: TrainState, progress: float) -> float | None:
        """Return how long the rest of the budget takes at the speed so far; None where nothing can be said yet."""
        if self.begin is None or progress <= self.begin[1]:
            return None
        return max(0.0, (1 - progress) * (state.seconds - self.begin[0]) / (progress - self.begin[1]))

    def notice(self, text: str) -> None:
        """Print a line that stays."""
        self._plain(text)

    def close(self) -> None:
        """End the live line."""
        if self.live is not None and not self.closed:
            self.live.stop()
        self.closed = True

    def _plain(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads it any more; the run goes on
            if self.console.is_terminal:
                self.console.print(text, markup=False)
            else:  # one record, one line: no wrapping at a width that is nobody's
                print(text, file=self.console.file, flush=True)

    def _move(self, state: TrainState, progress: float) -> None:
        if self.live is None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
            self.live = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
            self.live.add_task("", total=1.0)
            self.live.start()
        self.live.update(self.live.task_ids[0], completed=min(progress, 1.0), description=self.line(state, progress))
        self.live.refresh()


def cut_back(path: Path, step: int) -> None:
    """Remove from a log the lines beyond a step, its end, and a last line that was written half; all of them for step 0."""
    if not path.exists():
        return
    partial = path.with_name(path.name + ".partial")
    with open(path, encoding="utf-8", errors="replace") as file, open(partial, "w", encoding="utf-8") as new:
        for number, line in enumerate(file if step else (), start=1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                keep = record.get("step", 0) <= step and record.get("event") != "end"
            except (ValueError, AttributeError, TypeError, RecursionError):
                raise CheckpointError(f"{path}:{number} is not a line of a log: {line[:80]!r}; mend or remove it, then resume") from None
            if keep:
                new.write(line)
    partial.replace(path)


def environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on beside its recipe: versions, machine, threads."""
    import torch

    record: dict[str, Any] = {
        "python": platform.python_version(), "platform": platform.platform(), "cpu": cpu_name(), "cpu_count": os.cpu_count(),
        "memory_bytes": memory_bytes(), "num_threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }  # fmt: skip
    for package in PACKAGES:
        try:
            record[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            record[package] = None
    return record


def cpu_name() -> str:
    """Return the name of the processor."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return the size of the machine's memory, where the system says it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held: of its GPU where it uses one, otherwise of the machine."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def duration(seconds: float) -> str:
    """Return a length of time as people say it: 45 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def now() -> str:
    """Return the time of day, as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def finite(value: Any) -> Any:
    """Return a value, as JSON can hold it, with null for the numbers that JSON does not have (a perplexity beyond all bounds)."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_number(value: Any) -> bool:
    """Return whether a value is a number (a truth value is none)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
