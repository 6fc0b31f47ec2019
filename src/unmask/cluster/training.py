"""A training run over a cluster: Ray Train starts a process a worker, and all again where one is lost; each runs the usual session."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import CheckpointError, ConfigError, RunError, UnmaskError
from ..train.background import Background, regularly
from ..train.signals import StopRequest
from ..train.status import Viewer

if TYPE_CHECKING:
    from ..train.session import Run
    from .ray import Cluster

RESTARTS = 3
LOOK_SECONDS = 10.0
STOP_SECONDS = 1.0  # until a wish to stop is passed on, and until it is seen
MARK, STOP = "seen-from", "stop"


def train(
    cluster: Cluster,
    verb: str,
    folder: str | Path,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    restarts: int = RESTARTS,
    say: Callable[[str], None] = lambda text: None,
) -> Run:
    """Return the run of a verb ("pretrain", "adapt", "resume") with these arguments, trained by the workers of a cluster together.

    The run's `folder`, its text and its tokenizer are used by their paths: they lie on a file system that all nodes share.
    Where a worker is lost, all are started again and go on from the last checkpoint, up to `restarts` times. Ctrl-C and SIGTERM stop it
    after the step in hand, with a checkpoint.
    Raises: what the verb raises; RunError when workers are lost too often.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from ..train.session import Run

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            # one starts a process that outlives us, and where the cluster has no dashboard it never learns that it may end; what it is to
            # clear away, Ray does itself when our job is over
            kept = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in kept if type(one).__name__ != "PlacementGroupCleanerCallback"]

    workers, each = cluster.room()
    folder = Path(folder).expanduser().absolute()
    with _shared(folder) as place:
        trainer = Trainer(
            _session,
            train_loop_config={"verb": verb, "args": list(args), "kwargs": dict(kwargs), "folder": str(folder),
                               "place": str(place), "cwd": os.getcwd(),
                               "begun": (folder / "config.toml").is_file()},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(each.get("GPU")), resources_per_worker=each),
            run_config=RunConfig(name="ray", storage_path=str(place), failure_config=FailureConfig(max_failures=restarts)),
        )  # fmt: skip
        logging.getLogger("ray").setLevel(logging.ERROR)
        say(f"{workers} {'process' if workers == 1 else 'processes'} on {cluster}")
        with _watched(folder, say):
            try:
                _fit(trainer, folder / "log.jsonl", place)
            except (ray.exceptions.RayError, RuntimeError) as error:
                raise _failure(error) from error
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("rank-*.json"))]
    for outcome in found:
        if "error" in outcome:
            raise getattr(errors, outcome["error"], ConfigError)(outcome["message"])
    run = Run(folder, found[0]["metrics"], found[0]["step"], found[0]["interrupted"])
    if run.interrupted:
        say(f"interrupted at step {run.step}, with a checkpoint; go on with: unmask resume {folder}")
    return run


@contextlib.contextmanager
def _shared(folder: Path) -> Iterator[Path]:
    """Yield a folder beside a run's, for what workers and we tell each other, and for what Ray notes."""
    place = folder.with_name(f"{folder.name}.ray")
    if place.exists() and not (place / MARK).is_file():
        raise CheckpointError(f"'{place}' is in the way and was not made by unmask; move it away")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / MARK).write_text(socket.gethostname(), encoding="utf-8")
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _watched(folder: Path, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Say now and then how the run stands."""
    viewer: Viewer | None = None

    def look() -> None:
        nonlocal viewer
        with contextlib.suppress(UnmaskError, OSError):  # not begun yet, or just being written
            viewer = viewer or Viewer(folder)
            say(viewer.look().short())

    return regularly(look, LOOK_SECONDS, "unmask-status")


def _fit(trainer: Any, log: Path, place: Path) -> None:
    """Have Ray train, in a thread: in the main one it takes Ctrl-C for itself, and ends the process as if all were well.

    What interrupts us once the log is written to is passed on to the workers, which signals do not reach; before, there is nothing to save.
    """
    before, ended, fitting = _written(log), threading.Event(), Background()

    def fit() -> None:
        try:
            trainer.fit()
        finally:
            ended.set()

    def look() -> None:
        if stop.requested:
            (place / STOP).touch()

    fitting.start(fit)
    while _written(log) == before and not ended.wait(STOP_SECONDS):
        pass
    with StopRequest() as stop, regularly(look, STOP_SECONDS, "unmask-stop"):
        fitting.wait()


def _written(log: Path) -> int:
    return log.stat().st_mtime_ns if log.exists() else 0


def _heard(place: Path) -> contextlib.AbstractContextManager[None]:
    """Have this worker's session stop when it is told to, or when nobody waits for it any more."""
    from ..train.distributed import to_stop

    def look() -> None:
        if (place / STOP).exists() or not place.exists():
            to_stop.set()

    return regularly(look, STOP_SECONDS, "unmask-stop")


def _session(told: dict[str, Any]) -> None:
    """Be one of the processes that train together, and write down what came of it."""
    import ray.train

    from ..evaluate import runs

    rank = ray.train.get_context().get_world_rank()
    place, folder = Path(told["place"]), Path(told["folder"])
    _check_sees(place, told)
    os.chdir(told["cwd"])
    _leave_group(rank)
    if not told["begun"] and (folder / "config.toml").is_file():
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"  # begun by those before us, one of whom was lost
    try:
        with _heard(place):
            run = getattr(runs, told["verb"])(*told["args"], **told["kwargs"])
        outcome = {"metrics": run.metrics, "step": run.step, "interrupted": run.interrupted}
    except UnmaskError as error:
        if error.exit_code != 2:
            if rank and _one_has_said(place):  # it is over for a reason that starting again does not mend
                return
            raise
        outcome = {"error": type(error).__name__, "message": str(error)}
    path = place / f"rank-{rank:05d}.json"
    path.with_suffix(".part").write_text(json.dumps(outcome), encoding="utf-8")
    path.with_suffix(".part").replace(path)


def _check_sees(place: Path, told: Mapping[str, Any]) -> None:
    for path in (place / MARK, Path(told["cwd"])):
        if not path.exists():
            raise ConfigError(
                f"the node {socket.gethostname()} does not see '{path}': of a run over several nodes the folder, the text and the folder "
                "in which it is started lie on a file system that all of them share"
            )


def _leave_group(rank: int) -> None:
    """Leave the group that Ray Train has made, for the session makes its own; it meets at a port of its own, too."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return
    with socket.create_server(("", 0)) as server:
        port = torch.tensor([server.getsockname()[1]], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(port, 0)
    dist.destroy_process_group()
    os.environ["MASTER_PORT"] = str(int(port))


def _one_has_said(place: Path) -> bool:
    """Return whether another process has written down an error that the user can mend; it may be about to."""
    for _ in range(50):
        if any(place.glob("rank-*.json")):
            return True
        time.sleep(0.1)
    return False


def _failure(error: BaseException) -> UnmaskError:
    """Return what a failure of Ray Train says: the error of ours in it, if there is one."""
    for cause in (error, *getattr(error, "worker_failures", {}).values(), error.__cause__):
        inner = getattr(cause, "cause", cause)
        if isinstance(inner, UnmaskError):
            return inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RunError(
        f"the run over the cluster has failed ({type(error).__name__}: {lines[-1][:300] if lines else ''}); what it had saved is kept: go "
        "on with `unmask resume`"
    )
