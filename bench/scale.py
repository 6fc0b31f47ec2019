"""Training in several processes, checkpoints, resuming, and packing on Ray, measured through the command line as a user runs it.

    python bench/scale.py --data CORPUS [--parts processes,resume,ray] [--rounds 2] [--steps 24] [--set KEY=VALUE] [--json OUT.json]

CORPUS is a packed one. `efficiency_2`: tokens/s of 2 processes of 1 thread over twice those of 1 process of 1 thread, the two in turn;
rates are medians over the steps of a run (the first ones left out), and the median over the rounds is told. `checkpoint_share`: what ten
checkpoints, as many as a run has, cost of a run of five minutes, the shortest that the README has. `resume_seconds`: from the command
`unmask resume` to the end of its first step, on the corpus and on one of ten times as many documents; the longer of the two.
`ray_pack_ratio`: bench/ray_pack.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from train import environment

HERE = Path(__file__).parent
WARM_UP = 2  # steps
SAVES, MINUTES = 10, 5  # checkpoints of a run that does not say how many, and how long it is
SETTINGS = ["model.preset=mini", "data.max_length=128", "data.batch_tokens=16384", "train.log_steps=1", "train.eval_steps=0"]
SETTINGS += ["train.eval_tokens=2000"]


def unmask(*args: object, threads: int = 1) -> float:
    """Run a command with so many threads a process; return its seconds."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "unmask", *map(str, args)], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"unmask {' '.join(map(str, args))}:\n{done.stderr}")
    return time.perf_counter() - start


def flags(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def lines(run: Path) -> list[dict]:
    """Return the lines of a run's log that are about steps."""
    return [line for line in map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines()) if "event" not in line]


def pretrain(data: str, run: Path, steps: int, *more: str, processes: int = 1) -> list[dict]:
    """Train for so many steps in so many processes of one thread each; return the log."""
    several = ["--processes", str(processes)] if processes > 1 else []
    unmask("pretrain", "--data", data, "-o", run, "--steps", steps, *several, *flags([*SETTINGS, *more]))
    return lines(run)


def rate(log: list[dict], name: str = "tokens_per_second") -> float:
    """Return the median of a number over the steps, without the first ones."""
    return statistics.median(line[name] for line in log[WARM_UP:])


def saving(log: list[dict], every: int) -> float:
    """Return the median seconds that a save costs: how much longer the save and the step after it, beside which it is written, take."""
    steps = {after["step"]: after["seconds"] - before["seconds"] for before, after in itertools.pairwise(log)}
    usual = statistics.median(seconds for step, seconds in steps.items() if step > WARM_UP and step % every > 1)
    return statistics.median(seconds for step, seconds in steps.items() if step > WARM_UP and step % every == 1) - usual


def processes(data: str, work: Path, rounds: int, steps: int, more: list[str]) -> dict:
    """Return the speed of two processes beside that of one, and what a checkpoint takes."""
    every = max(3, steps // 4)
    one, two, shares, saves = [], [], [], []
    size = 0
    for number in range(rounds):
        log = pretrain(data, work / f"one-{number}", steps, f"train.save_steps={every}", *more)
        one.append(rate(log))
        saves.append(saving(log, every))
        size = sum(path.stat().st_size for path in max((work / f"one-{number}" / "checkpoints").iterdir()).iterdir())
        log = pretrain(data, work / f"two-{number}", 2 * steps, "train.save_steps=0", *more, processes=2)
        two.append(rate(log))
        shares.append(rate(log, "communication_share"))
        print(
            f"round {number + 1}: 1 process {one[-1]:,.0f} tokens/s, 2 processes {two[-1]:,.0f}, a save {saves[-1]:.3f} s", file=sys.stderr
        )
    seconds = statistics.median(saves)
    return {
        "efficiency_2": round(statistics.median(b / a / 2 for a, b in zip(one, two, strict=True)), 3),
        "tokens_per_second_1": round(statistics.median(one)), "tokens_per_second_2": round(statistics.median(two)),
        "communication_share": round(statistics.median(shares), 4), "rounds": rounds, "steps": steps,
        "checkpoint_share": round(SAVES * seconds / (60 * MINUTES), 5), "checkpoint_seconds": round(seconds, 3), "checkpoint_bytes": size,
    }  # fmt: skip


def tenfold(data: str, folder: Path) -> Path:
    """Write a packed corpus with the documents of another one ten times over, and nothing held out."""
    import shutil

    from unmask.data.store import TokenStore
    from unmask.data.store_writer import StoreWriter

    store = TokenStore.open(Path(data) / "train")
    numbers = np.arange(len(store))
    with StoreWriter(folder / "train", tokenizer_hash=store.tokenizer_hash, vocab_size=store.vocab_size) as writer:
        for copy in range(10):
            for part in np.array_split(numbers, max(1, len(numbers) // 20_000)):
                ids, words = store.gather(part)
                writer.add_flat(ids, words, store.lengths[part], [f"{copy}:{number}" for number in part], store.lengths[part] * 4)
    shutil.copytree(Path(data) / "tokenizer", folder / "tokenizer")
    return folder


def resuming(data: str, work: Path, name: str) -> dict:
    """Return how long it takes from the command to the end of the first step, with the machine's threads."""
    from unmask.data.store import TokenStore

    run, store = work / name, TokenStore.open(Path(data) / "train")
    threads = len(os.sched_getaffinity(0))
    unmask("pretrain", "--data", data, "-o", run, "--steps", 2, *flags([*SETTINGS, "train.save_steps=2"]), threads=threads)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "unmask", "resume", str(run), "--steps", "9999"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
    )
    while process.poll() is None and lines(run)[-1]["step"] < 3:
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return {"seconds": round(seconds, 2), "documents": len(store), "tokens": store.num_tokens}


def resume(data: str, work: Path) -> dict:
    """Return how long a resume takes on the corpus and on a tenfold one."""
    found = {"corpus": resuming(data, work, "resumed"), "tenfold": resuming(str(tenfold(data, work / "tenfold")), work, "resumed-10")}
    return {"resume_seconds": max(one["seconds"] for one in found.values()), "resume": found}


def ray_pack(work: Path) -> dict:
    """Return the numbers of bench/ray_pack.py."""
    target = work / "ray.json"
    done = subprocess.run([sys.executable, HERE / "ray_pack.py", "--rounds", "1", "--json", target], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench/ray_pack.py:\n{done.stderr}")
    return dict(json.loads(target.read_text(encoding="utf-8")))


def main() -> None:
    """Measure, and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a packed corpus")
    parser.add_argument("--parts", default="processes,resume,ray", help="what to measure")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24, help="of one process; two do twice as many")
    parser.add_argument("--set", action="append", default=[], help="a setting of both sides, section.key=value")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    parts = {
        "processes": lambda work: processes(options.data, work, options.rounds, options.steps, options.set),
        "resume": lambda work: resume(options.data, work),
        "ray": ray_pack,
    }
    result = {}
    for name in options.parts.split(","):
        with tempfile.TemporaryDirectory() as work:
            result |= parts[name](Path(work))
    result |= {"settings": options.set, **environment([options.data])}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
