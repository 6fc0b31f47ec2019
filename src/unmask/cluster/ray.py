"""A Ray cluster to work on: found or started, its workers hired, and let go of at the end."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..box import is_box
from ..data.over import Over
from ..errors import ConfigError, require

if TYPE_CHECKING:
    from .team import Team

CLIENT_PORT = 10001
PATIENCE_SECONDS = 5.0
ALLOWED = "ray (what RAY_ADDRESS names, else the cluster of this machine, else a new one on it), ray://HOST:10001, HOST:6379"


class Cluster:
    """A Ray cluster, as `on` of `pack`, `evaluate`, `Scorer.load` and what else can work on one; `workers` is the most to be used of it.

    The address is "ray" (the cluster that RAY_ADDRESS names or that this machine belongs to; where there is none, one is started on this
    machine), "ray://HOST:PORT" (through the cluster's client server, from anywhere) or "HOST:PORT" (from one of its nodes). Results are
    those of one machine, to the bit where machines are of a kind: workers of models have as many threads as torch has here.
    Raises: ConfigError for an address of another kind, or a cluster that cannot be reached; MissingExtra.
    """

    def __init__(self, address: str = "ray", *, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers = {workers}; allowed: 1 or more")
        where = _parse(address)
        ray = require("ray", extra="cluster", why="work on a cluster")
        self.address, self.workers = address, workers
        self._own = not ray.is_initialized()
        self._team: Team | None = None
        if self._own:
            _connect(address, where)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the workers go, and leave the cluster (or end it, where it was started here)."""
        import ray

        if self._team is not None and ray.is_initialized():
            self._team.dismiss()
        self._team = None
        if self._own:
            self._own = False
            ray.shutdown()

    def __str__(self) -> str:
        import ray

        has = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return f"{self.address}: {nodes} node{'s' * (nodes != 1)}, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"

    @contextlib.contextmanager
    def hired(self, make: Callable[[], Any]) -> Iterator[Over]:
        """Return, for as long as it is entered, a map whose workers each hold what `make` returns and have one CPU."""
        team = self._hire(make, cpus=1, gpus=0)
        try:
            team.first()  # what keeps workers from starting is told before anything is read
            yield team.over
        finally:
            team.dismiss()

    def spread(self, tool: Any, name: Any, make: Callable[..., Any], *, device: str = "auto") -> None:
        """Have the maps of `tool` run on the cluster from now on, by what `make(folder, device=...)` returns from the model called `name`.

        A tool that was spread before on this cluster has no workers any more.
        Raises: ConfigError for a device that the cluster does not have.
        """
        import ray
        import torch

        from .worker import Sent, boxed

        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not has_gpus):
            raise ConfigError(f"device = {device!r}: on a cluster, auto (GPUs where there are some), cpu or cuda; it has {self}")
        kind = "cuda" if has_gpus and device != "cpu" else "cpu"
        team = self._hire(
            partial(boxed if is_box(name) else Sent.of(_local(name)).unpacked, make, kind),
            cpus=torch.get_num_threads() if kind == "cpu" else 1,
            gpus=int(kind == "cuda"),
        )
        if hasattr(tool, "max_tokens"):  # an engine makes its groups here: of the size that the workers' device wants
            tool.max_tokens = team.first()["max_tokens"]
        tool.over = team.over

    def room(self) -> tuple[int, dict[str, float]]:
        """Return how many processes of a run train on the cluster together, and what each takes: a GPU, or the CPUs of torch's threads.

        Raises: ConfigError where there is no room.
        """
        import ray
        import torch

        has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
        cpus, gpus = 1 if has_gpus else torch.get_num_threads(), int(has_gpus)
        return self._places(cpus, gpus), {"CPU": cpus, **({"GPU": 1} if has_gpus else {})}

    def _places(self, cpus: int, gpus: int) -> int:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(min(_times(node, "CPU", cpus), _times(node, "GPU", gpus)) for node in nodes)
        if not room:
            raise ConfigError(
                f"no node of the cluster has {cpus} CPUs, which a worker needs ({self}): a model runs there with as many threads as here, "
                "so that its numbers are the same; take fewer: OMP_NUM_THREADS=1 unmask ..."
            )
        return int(min(room, self.workers or room))

    def _hire(self, make: Callable[[], Any], *, cpus: int, gpus: int) -> Team:
        from .team import Team

        if self._team is not None:
            self._team.dismiss()
        number = self._places(cpus, gpus)
        threads = {name: str(cpus) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")} if not gpus else {}
        quiet = {"TOKENIZERS_PARALLELISM": "false" if cpus == 1 else "true", "HF_HUB_OFFLINE": "1"}
        self._team = Team(
            make,
            number,
            {"num_cpus": cpus, "num_gpus": gpus, "runtime_env": {"env_vars": {**threads, **quiet}}},
        )
        return self._team


def _times(node: dict[str, float], name: str, each: int) -> float:
    return node.get(name, 0) // each if each else math.inf


def _local(name: Any) -> Path:
    """Return the folder in which the files of a model lie: its own, or that of the Hub's cache, where loading it here has put them."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    return Path(str(cached_file(str(name), "config.json", local_files_only=True))).parent


def _parse(address: str) -> str | None:
    """Return where to connect to, None for "ray", in Ray's words.

    Raises: ConfigError.
    """
    if address == "ray":
        return None
    client = address.startswith("ray://")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if client and not colon:
        host, port = port, str(CLIENT_PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 2**16 or "/" in host:
        raise ConfigError(f"the cluster's address '{address}' is none; allowed: {ALLOWED}")
    return f"{'ray://' if client else ''}{host}:{port}"


def _connect(address: str, where: str | None) -> None:
    """Connect to a cluster, or start one; Ray says nothing of its own, and stdout stays ours."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    where = where or _current()
    if where is not None:
        _check(address, where)
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    try:
        if where is not None:
            ray.init(where, **quiet)
        else:
            ray.init("local", num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
    except (Exception, SystemExit) as error:  # Ray ends the process where what answers is no Ray
        raise ConfigError(f"the cluster at '{address}' cannot be used: {' '.join(str(error).split())[:300]}; allowed: {ALLOWED}") from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray sets one that ends the process before anything is cleared away
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(worker, "print_to_stdstream"):  # it prints that a worker was lost, to stdout; we say it ourselves
        worker.print_to_stdstream = lambda *args, **kwargs: None


def _current() -> str | None:
    """Return where the cluster is that RAY_ADDRESS names, or that `ray start` has made this machine a part of; None where there is none."""
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return _parse(named)
    written = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    return _parse(written.read_text(encoding="utf-8").strip()) if written.is_file() else None


def _check(address: str, where: str) -> None:
    """Raise ConfigError where nothing answers in the language of Ray; Ray itself would try for minutes."""
    import grpc

    target = where.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS).close()
        if os.environ.get("RAY_USE_TLS") != "1":
            with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
                grpc.channel_ready_future(channel).result(timeout=PATIENCE_SECONDS)
    except (OSError, grpc.FutureTimeoutError) as error:
        reason = "what answers there is no Ray" if isinstance(error, grpc.FutureTimeoutError) else error.strerror or error
        raise ConfigError(
            f"there is no cluster at {target} ({reason}), which '{address}' stands for; start one with `ray start --head --port=6379` (it "
            f"serves ray://HOST:{CLIENT_PORT} as well; `ray stop` clears away what is left of one), or give another address: {ALLOWED}"
        ) from None
