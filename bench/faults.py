"""Kill commands at random instants, again and again, take them up each time, and compare their ends with undisturbed ones.

    python bench/faults.py [--kills 120] [--cases pretrain,raw,finetune,pack] [--whom WHO,...] [--flips 0] [--seed 0] [--work DIR]
        [--json FILE]

A case is a command on a tiny model; a life of it is a run that is killed several times and then goes on to its end. Killed is at a random
amount of the process's own time, in the middle of what it is writing, or (SIGTERM) so that it may save first. In the end everything must
be as if nothing had happened: weights and packed corpora to the bit, and the log with every step once, on the same batches. The processes
are forked from one that has imported torch, so that a kill costs a second; what is killed is a whole `unmask` command. Other cases are
`processes` (two that train together), `sharded` (each of which holds half of the model: FSDP2), `ray` (packing on a cluster of its own),
`cluster` (packing by two workers of a cluster that stays) and `ray-train` (training by two workers of such a one). Of these is killed
(`--whom`) a worker alone, the launcher or driver alone, the one and up to two seconds later the other (both), or all workers and the
launcher at once (all); a command that loses a worker must come to the same end by itself, and none may leave a process behind. All is on
one machine: a machine that is lost, a network that is cut and NCCL are not tried. `--work` keeps the lives that are over, and goes on
with them. With `--flips` so many bits of every file that a run leaves are turned as well (bits.py). The result is JSON; the exit code is
1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import at_work, cluster, descendants, left_of, named, start, undisturbed, used_seconds, wait_for

MODEL = [
    "model.preset=tiny", "model.family=bert", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", "data.max_length=32", "data.batch_tokens=256",
    "data.micro_tokens=128", "train.eval_steps=12",
]  # fmt: skip
TRAIN = ["train.log_steps=1", "train.save_steps=3", "train.precision=fp32", "train.device=cpu"]
STEPS, LIFE, LIFE_OF_MANY = 45, 6, 3  # of a run; kills of a life, and of one with workers, which takes longer
LINES, MANY_LINES = 400, 20000  # of the text; that which is packed on a cluster makes some twenty batches
INTERRUPTED = 130
AND_WORKERS = ("worker", "both", "all")  # one of them; one and then the launcher; every one and the launcher
WHOM = ("launcher", "term", *AND_WORKERS)  # may be killed
COUNTS = ("kills", "in_a_save", *WHOM)
TIMED = (  # what no two runs have alike
    "seconds", "tokens_per_second", "tokens_per_second_per_process", "wait_share", "communication_share", "peak_memory_bytes",
)  # fmt: skip


def write_text(path: Path, seed: int, lines: int = LINES) -> Path:
    """Write a small corpus of made-up words."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("aeioubdgklmnrst", k=generator.randint(2, 7))) for _ in range(150)]
    path.write_text("".join(" ".join(generator.choices(words, k=generator.randint(4, 40))) + "\n" for _ in range(lines)), encoding="utf-8")
    return path


def write_labelled(text: Path, path: Path) -> Path:
    """Write the texts with a label each that their first letter gives."""
    lines = text.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(json.dumps({"text": one, "label": "ab"[one[0] > "g"]}) + "\n" for one in lines), encoding="utf-8")
    return path


# cases


@dataclass
class Case:
    """A command, how it is taken up after a kill, and what must come out alike."""

    name: str
    first: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    writing: Callable[[Path], list[Path]]  # what is there while something is being written
    differs: Callable[[Path, Path], list[str]]
    end: str = "report.html"  # is there when it is over
    workers: str = ""  # a word in the command lines of the processes that work for it, which are killed as well
    port: int = 0  # of the cluster that it works on, where that is there before it and after
    host: int | None = None  # the process that the workers were started by, where it is not the command itself


def cases(work: Path, seed: int) -> dict[str, Case]:
    """Return the cases by name; what they need is made in `work`."""
    text = write_text(work / "text.txt", seed)
    labelled = write_labelled(text, work / "labelled.jsonl")
    settings = [part for one in (*MODEL, *TRAIN) for part in ("--set", one)]
    corpus, base = work / "corpus", work / "base"
    raw = ["pretrain", "--data", str(text), "--steps", str(STEPS), *settings, "--set", "data.vocab_size=200", "--set", "data.held_out=0.1"]
    undisturbed([*raw, "-o", str(base)], work / "base.txt")
    if not corpus.is_dir():
        shutil.copytree(base / "corpus", corpus)
    train = ["pretrain", "--data", str(corpus), "--steps", str(STEPS), *settings]
    tune = ["finetune", "classify", str(base / "model"), "-t", str(labelled), "--steps", str(STEPS)]
    tune += [part for one in (*TRAIN, "train.eval_steps=12", "data.batch_size=8") for part in ("--set", one)]
    pack = ["pack", str(text), "-t", str(corpus / "tokenizer"), "--held-out", "0.1"]

    two = ["--processes", "2", "--restarts", "1"]
    large = write_text(work / "large.txt", seed, MANY_LINES)
    packed = work / "large"  # by one process, what a cluster must come to

    sharded = [*two, "--set", "train.parallel=fsdp", "--set", "optim.optimizer=adamw"]
    port = free_port()
    head = ["--on", f"127.0.0.1:{port}", "--workers", "2"]

    def on(place: list[str]) -> Callable[[Path], list[str]]:
        return lambda run: ["pack", str(large), *pack[2:], *place, "-o", str(run)]

    def large_differs(quiet: Path, run: Path) -> list[str]:
        undisturbed(["pack", str(large), *pack[2:], "-o", str(packed)], work / "large-pack.txt")
        return corpus_differs(packed, run)

    def resume(run: Path) -> list[str]:
        return ["resume", str(run)]

    def saving(run: Path) -> list[Path]:
        return [*run.glob("checkpoints/*.partial"), *run.glob("*.partial"), *run.glob("checkpoints/*.deleted")]

    def packing(run: Path) -> list[Path]:
        return [run.with_name(f"{run.name}.partial")] if run.with_name(f"{run.name}.partial").exists() else []

    made = [
        Case("pretrain", lambda run: [*train, "-o", str(run)], resume, saving, run_differs),
        Case("raw", lambda run: [*raw, "-o", str(run)], resume, saving, run_differs),
        Case("finetune", lambda run: [*tune, "-o", str(run)], resume, saving, run_differs),
        Case("pack", lambda run: [*pack, "-o", str(run)], lambda run: [*pack, "-o", str(run)], packing, corpus_differs, "report.json"),
        Case(
            "processes", lambda run: [*train, *two, "-o", str(run)], lambda run: ["resume", str(run), *two], saving, run_differs,
            workers="unmask",
        ),
        Case(
            "sharded", lambda run: [*train, *sharded, "-o", str(run)], lambda run: ["resume", str(run), *two], saving, run_differs,
            workers="unmask",
        ),
        Case("ray", own := on(["--on", "ray", "--workers", "2"]), own, packing, large_differs, "report.json", "ray::Work"),
        Case("cluster", on(head), on(head), packing, large_differs, "report.json", "ray::Work", port=port),
        Case(
            "ray-train", lambda run: [*train, *head, "-o", str(run)], lambda run: ["resume", str(run), *head], saving, run_differs,
            workers="TrainWorker", port=port,
        ),
    ]  # fmt: skip
    return {case.name: case for case in made}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def digests(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the SHA-256 of every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in leave_out)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def corpus_differs(quiet: Path, run: Path) -> list[str]:
    """Return what differs between two packed corpora: nothing where every document is there once, in its place."""
    found = [name for name, digest in digests(quiet, ("report.json",)).items() if digests(run, ("report.json",)).get(name) != digest]
    reports = [untimed(json.loads((folder / "report.json").read_text(encoding="utf-8"))) for folder in (quiet, run)]
    return [*found, *(["report.json"] if reports[0] != reports[1] else []), *left_over(run)]


def run_differs(quiet: Path, run: Path) -> list[str]:
    """Return what differs between two runs: weights, numbers, steps of the log, the packed corpus."""
    models = [digests(folder / "model", ("README.md",)) for folder in (quiet, run)]
    found = [f"model/{name}" for name in models[0].keys() | models[1].keys() if models[0].get(name) != models[1].get(name)]
    metrics = [untimed(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))) for folder in (quiet, run)]
    found += ["metrics.json"] if metrics[0] != metrics[1] else []
    steps = [[line for line in log(folder) if "event" not in line] for folder in (quiet, run)]
    found += ["log.jsonl"] if steps[0] != steps[1] or [line["step"] for line in steps[1]] != list(range(1, STEPS + 1)) else []
    if (quiet / "corpus").is_dir():
        found += [f"corpus/{name}" for name in corpus_differs(quiet / "corpus", run / "corpus")]
    return [*found, *left_over(run)]


def left_over(folder: Path) -> list[str]:
    """Return what a killed process has left for ever."""
    beside = [
        path
        for path in folder.parent.iterdir()
        if path.name.startswith(f"{folder.name}.") and path.suffix in (".partial", ".replaced", ".ray")
    ]
    return [path.name for path in (*beside, *folder.rglob("*")) if path.suffix in (".partial", ".replaced", ".deleted")]


def log(run: Path) -> list[dict]:
    return [untimed(json.loads(line)) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(value):
    """Return a value of JSON without what no two runs have alike."""
    if isinstance(value, dict):
        return {name: untimed(inner) for name, inner in value.items() if name not in TIMED}
    return value


# lives


def life(case: Case, quiet: Path, folder: Path, taken: tuple[float, float], seed: int, whom: list[str]) -> dict:
    """Kill a run several times, let it end, and return what happened and what differs."""
    generator = random.Random(f"{case.name} {seed}")
    run, errors = folder / "run", folder / "errors.txt"
    told = {"case": case.name, "seed": seed, **dict.fromkeys(COUNTS, 0), "failed": [], "differs": []}
    while told["kills"] < (LIFE_OF_MANY if case.workers else LIFE):
        how, who = generator.choice(("instant", "save")), generator.choice(whom)
        process = start(case.again(run) if (run / "config.toml").exists() else case.first(run), errors)
        code, allowed = wait(case, process, run, how, who, taken, generator), (0,)
        if code is None:
            is_writing = bool(case.writing(run))
            code, left, reached = strike(case, process, who, generator)
            told["failed"] += [f"goes on without the one that started it ({how}, {who}): {line[:200]}" for line in left]
            allowed = {"worker": (0,), "term": (0, INTERRUPTED, -signal.SIGTERM)}.get(who, (0, -signal.SIGKILL))
            if reached:  # else it had ended just before
                told["kills"] += 1
                told[who] += 1
                told["in_a_save"] += is_writing and who != "term"
        if code == 0:  # it had ended, or got over it; another begins
            told["differs"] += case.differs(quiet, run)
            shutil.rmtree(run)
        elif code not in allowed:
            told["failed"].append(f"exit {code} ({how}, {who}): {errors.read_text(errors='replace')[-600:]}")
        if told["failed"]:
            return told
    while not run.exists() or not is_over(case, run):
        process = start(case.again(run) if (run / "config.toml").exists() else case.first(run), errors)
        if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            told["failed"].append(f"exit {code} (at the end): {errors.read_text(errors='replace')[-600:]}")
            return told
    told["differs"] += case.differs(quiet, run)
    return told


def wait(case: Case, process: int, run: Path, how: str, who: str, taken: tuple[float, float], generator: random.Random) -> int | None:
    """Wait for the moment of a kill, and return None, or the exit code of a process that has ended before."""
    packs = case.end == "report.json"
    if who in AND_WORKERS:
        code = wait_for(process, lambda: bool(workers_of(case, process)), 0.05)
        if code is not None:
            return code
    if how == "save" and (case.workers or not packs):  # a pack writes all the time
        saves = 1 if packs else generator.randint(1, 6)  # the so many-th
        code = wait_for(process, count_of(lambda: bool(case.writing(run)), saves), 0.002 if case.workers else 0.0003)
        if code is not None:
            return code
        until = time.monotonic() + generator.uniform(0, 0.5 * taken[1] if packs else 0.02)
        return wait_for(process, lambda: time.monotonic() >= until, 0.002)
    share, begin = generator.uniform(0, 0.7), time.monotonic()
    if case.workers:  # whose time is not its own
        return wait_for(process, lambda: time.monotonic() >= begin + share * taken[1], 0.01)
    return wait_for(process, lambda: used_seconds(process) >= share * taken[0], 0.001)


def strike(case: Case, process: int, who: str, generator: random.Random) -> tuple[int, list[str], bool]:
    """Kill a process, one of its workers, or more of them; return its exit code, what goes on nevertheless, and whether one was hit."""
    family, workers = descendants(process), workers_of(case, process)
    victims = workers if who == "all" else workers and [generator.choice(workers)]
    reached = False
    with contextlib.suppress(ProcessLookupError):  # one has just ended
        for victim in victims if who in AND_WORKERS else ():
            os.kill(victim, signal.SIGKILL)
            reached = True
        if who == "both":
            time.sleep(generator.choice((0.0, generator.uniform(0, 2))))  # while others may be on their way
            family = descendants(process)
        if who != "worker":
            os.kill(process, signal.SIGTERM if who == "term" else signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, left_of([*family, *(at_work(case.host) if case.host else ())]), reached or code != 0


def workers_of(case: Case, process: int) -> list[int]:
    """Return the processes that work for a command."""
    return named(descendants(case.host or process), case.workers) if case.workers else []


def is_over(case: Case, run: Path) -> bool:
    return (run / case.end).exists()


def count_of(there: Callable[[], bool], times: int) -> Callable[[], bool]:
    """Return what is true once `there` has turned true so many times."""
    seen = {"times": 0, "before": False}

    def reached() -> bool:
        now = there()
        seen["times"] += now and not seen["before"]
        seen["before"] = now
        return seen["times"] >= times

    return reached


def check_time(until: float) -> None:
    if time.monotonic() > until:
        raise SystemExit("the time is up; go on with the same --work")


def campaign(work: Path, names: list[str], kills: int, seed: int, until: float, whom: list[str]) -> dict:
    """Return what came of so many kills, shared by the cases; lives that `work` has a line for are not lived again."""
    record = work / "lives.jsonl"
    lives = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    known = cases(work, seed)
    for number, name in enumerate(names):
        quiet, errors = work / f"quiet-{name}", work / f"quiet-{name}.txt"
        wanted = kills // len(names) + (number < kills % len(names))
        hit = [one for one in whom if known[name].workers or one not in AND_WORKERS]
        port = known[name].port
        with cluster(port, work / "cluster.txt") if port else contextlib.nullcontext() as known[name].host:
            taken = undisturbed(known[name].first(quiet), errors)
            while sum(max(one["kills"], bool(one["failed"])) for one in lives if one["case"] == name) < wanted:
                check_time(until)
                folder = work / "life"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                lives.append(life(known[name], quiet, folder, taken, seed + sum(one["case"] == name for one in lives), hit))
                with open(record, "a", encoding="utf-8") as file:
                    file.write(json.dumps(lives[-1]) + "\n")
                print(json.dumps(lives[-1]), file=sys.stderr, flush=True)
                if lives[-1]["failed"] or lives[-1]["differs"]:
                    shutil.copytree(folder, work / f"wrong-{name}-{lives[-1]['seed']}", dirs_exist_ok=True)
    return {"kills": sum(one["kills"] for one in lives), "wrong": sum(bool(one["failed"] or one["differs"]) for one in lives),
            "cases": {name: summary([one for one in lives if one["case"] == name]) for name in names}}  # fmt: skip


def summary(lives: list[dict]) -> dict:
    """Return the numbers of the lives of a case."""
    counts = {name: sum(one[name] for one in lives) for name in COUNTS}
    return {"lives": len(lives), **counts, "bit_equal": sum(not one["failed"] and not one["differs"] for one in lives)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=120, help="how often something is killed, over all cases")
    parser.add_argument("--cases", default="pretrain,raw,finetune,pack", help="which commands")
    parser.add_argument("--whom", default=",".join(WHOM), help="who may be killed (by SIGTERM: term)")
    parser.add_argument("--flips", type=int, default=0, help="bits to turn in every file that a run leaves")
    parser.add_argument("--seed", type=int, default=0, help="of the text and of the moments of the kills")
    parser.add_argument("--work", type=Path, help="a folder to work in, which is kept")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop, to go on later with the same --work")
    parser.add_argument("--json", type=Path, help="write the result here too")
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    import torch  # noqa: F401  (imported once, here)

    from train import environment

    os.environ["RAY_AUTH_MODE"] = "disabled"  # else one that finds a token on this machine asks for it, and the other does not send it
    os.environ.setdefault("RAY_worker_niceness", "0")  # else a busy machine has no time for its workers
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="unmask-ray-")  # other clusters of this machine are not touched
    until = time.monotonic() + 60 * args.minutes
    folder = args.work or Path(tempfile.mkdtemp(prefix="unmask-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = {**environment([]), **campaign(folder, args.cases.split(","), args.kills, args.seed, until, args.whom.split(","))}
        if args.flips:
            from bits import turned

            result["bits"] = turned(folder, args.flips, args.seed, until)
    finally:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
        if args.work is None:
            shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    bits = result.get("bits", {})
    return 1 if result["wrong"] or any(bits.get(word) for word in ("SILENT", "TRACEBACK", "CRASH")) else 0


if __name__ == "__main__":
    sys.exit(main())
