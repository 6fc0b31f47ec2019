"""Kill commands at random instants, again and again, take them up each time, and compare their ends with undisturbed ones.

    python bench/faults.py [--kills 120] [--cases pretrain,raw,finetune,pack] [--flips 0] [--seed 0] [--work DIR] [--json FILE]

A case is a command on a tiny model; a life of it is a run that is killed several times and then goes on to its end. Killed is at a random
amount of the process's own time, in the middle of what it is writing, or (SIGTERM) so that it may save first. In the end everything must
be as if nothing had happened: weights and packed corpora to the bit, and the log with every step once, on the same batches. The processes
are forked from one that has imported torch, so that a kill costs a second; what is killed is a whole `unmask` command. Other cases are
`processes` (two that train together: one of them is killed, or the launcher) and `ray` (packing with two workers: one of them, or the
driver). `--work` keeps the lives that are over, and goes on with them. With `--flips` so many bits of every file that a run leaves are
turned as well (bits.py). The result is JSON; the exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODEL = [
    "model.preset=tiny", "model.family=bert", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", "data.max_length=32", "data.batch_tokens=256",
    "data.micro_tokens=128", "train.eval_steps=12",
]  # fmt: skip
TRAIN = ["train.log_steps=1", "train.save_steps=3", "train.precision=fp32", "train.device=cpu"]
STEPS, LIFE = 45, 6  # of a run; kills of a life
INTERRUPTED = 130
TIMED = (  # what no two runs have alike
    "seconds", "tokens_per_second", "tokens_per_second_per_process", "wait_share", "communication_share", "peak_memory_bytes",
)  # fmt: skip


def write_text(path: Path, seed: int) -> Path:
    """Write a small corpus of made-up words."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("aeioubdgklmnrst", k=generator.randint(2, 7))) for _ in range(150)]
    path.write_text("".join(" ".join(generator.choices(words, k=generator.randint(4, 40))) + "\n" for _ in range(400)), encoding="utf-8")
    return path


def write_labelled(text: Path, path: Path) -> Path:
    """Write the texts with a label each that their first letter gives."""
    lines = text.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(json.dumps({"text": one, "label": "ab"[one[0] > "g"]}) + "\n" for one in lines), encoding="utf-8")
    return path


# processes


def start(args: list[str], errors: Path, modules: Path | None = None) -> int:
    """Fork a process that runs the command `unmask` with arguments, and return its number; `modules`: where it writes what it imported."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(errors, "ab", buffering=0) as file, open(os.devnull, "wb") as nothing:
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 1)
        from unmask.cli import main

        sys.argv = ["unmask", *args]
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        import traceback

        traceback.print_exception(error)
    finally:
        if modules is not None:
            modules.write_text("\n".join(sys.modules), encoding="utf-8")
        sys.stderr.flush()
        os._exit(code)


def used_seconds(process: int) -> float:
    """Return how long a process has kept the processor: by it the moment of a kill is chosen, so that a busy machine changes little."""
    return time.clock_gettime((~process << 3) | 2)  # what clock_getcpuclockid(3) says


def wait_for(process: int, reached: Callable[[], bool], pause: float) -> int | None:
    """Wait until something is reached, and return None, or the exit code of a process that has ended before."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if reached():
            return None
        time.sleep(pause)


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def named(processes: list[int], mark: str) -> list[int]:
    """Return those of some processes that have a word in their command line."""
    found = []
    for one in processes:
        try:
            if mark in Path(f"/proc/{one}/cmdline").read_text(errors="replace"):
                found.append(one)
        except OSError:
            continue
    return found


def gone(processes: list[int], seconds: float = 120) -> None:
    """Wait until processes have ended; those that nothing ends are a fault of their own."""
    end = time.monotonic() + seconds
    while left := [one for one in processes if Path(f"/proc/{one}/cmdline").exists() and Path(f"/proc/{one}/cmdline").read_bytes()]:
        if time.monotonic() > end:
            raise SystemExit(f"processes {left} go on without the one that started them")
        time.sleep(0.05)


def undisturbed(args: list[str], errors: Path) -> tuple[float, float]:
    """Run a command to its end (unless that was done before), import here what it imported there, and return how long it took.

    The times are that of the processor, and that by the clock.
    """
    modules, record = errors.with_suffix(".modules"), errors.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(args[-1], ignore_errors=True)  # of one that was stopped: the folder is named last
        before, begin = os.times().children_user, time.monotonic()
        if os.waitstatus_to_exitcode(os.waitpid(start(args, errors, modules), 0)[1]):
            raise SystemExit(f"the undisturbed command failed: unmask {' '.join(args)}\n{errors.read_text(errors='replace')}")
        record.write_text(json.dumps([os.times().children_user - before, time.monotonic() - begin]))
    for name in modules.read_text().splitlines():  # the next ones find it in memory
        if name.partition(".")[0] not in ("__main__", "__mp_main__"):
            try:
                importlib.import_module(name)
            except Exception:  # some are not there to be imported by name
                continue
    used, elapsed = json.loads(record.read_text())
    return used, elapsed


# cases


@dataclass
class Case:
    """A command, how it is taken up after a kill, and what must come out alike."""

    name: str
    first: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    writing: Callable[[Path], list[Path]]  # what is there while something is being written
    differs: Callable[[Path, Path], list[str]]
    workers: str = ""  # a word in the command lines of the processes that it starts, one of which is killed as often as itself


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
    on_ray = [*pack, "--on", "ray", "--workers", "2"]

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
        Case("pack", lambda run: [*pack, "-o", str(run)], lambda run: [*pack, "-o", str(run)], packing, corpus_differs),
        Case(
            "processes", lambda run: [*train, *two, "-o", str(run)], lambda run: ["resume", str(run), *two], saving, run_differs, "unmask"
        ),
        Case("ray", lambda run: [*on_ray, "-o", str(run)], lambda run: [*on_ray, "-o", str(run)], packing, corpus_differs, "ray::Work"),
    ]
    return {case.name: case for case in made}


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
        path for path in folder.parent.iterdir() if path.name.startswith(f"{folder.name}.") and path.suffix in (".partial", ".replaced")
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


def life(case: Case, quiet: Path, folder: Path, taken: tuple[float, float], seed: int) -> dict:
    """Kill a run several times, let it end, and return what happened and what differs."""
    generator = random.Random(f"{case.name} {seed}")
    run, errors = folder / "run", folder / "errors.txt"
    told = {"case": case.name, "seed": seed, "kills": 0, "in_a_save": 0, "terms": 0, "workers": 0, "failed": [], "differs": []}
    while told["kills"] < LIFE:
        how = generator.choice(("instant", "instant", "save", "save", "term"))
        process = start(case.again(run) if (run / "config.toml").exists() else case.first(run), errors)
        if how == "save" and case.differs is run_differs:  # a pack writes all the time
            saves = generator.randint(1, 6)  # the so many-th
            code = wait_for(process, count_of(lambda: bool(case.writing(run)), saves), 0.0003)
            time.sleep(generator.uniform(0, 0.02) if code is None else 0)
        else:
            share, begin = generator.uniform(0, 0.7), time.monotonic()
            if case.workers:  # whose time is not its own
                code = wait_for(process, lambda until=begin + share * taken[1]: time.monotonic() >= until, 0.01)
            else:
                code = wait_for(process, lambda process=process, until=share * taken[0]: used_seconds(process) >= until, 0.001)
        if code is None:
            family = descendants(process)
            workers = named(family, case.workers) if case.workers and how != "term" and generator.random() < 0.5 else []
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(generator.choice(workers) if workers else process, signal.SIGTERM if how == "term" else signal.SIGKILL)
            told["in_a_save"] += how != "term" and not workers and bool(case.writing(run))
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            gone(family)
            told["kills"] += 1
            told["terms"] += how == "term"
            told["workers"] += bool(workers)
        if code == 0:  # it had ended, or got over it; another begins
            told["differs"] += case.differs(quiet, run)
            shutil.rmtree(run)
        elif code not in (-signal.SIGKILL, INTERRUPTED, -signal.SIGTERM) and not (case.workers and code == 1):
            told["failed"].append(f"exit {code} ({how}): {errors.read_text(errors='replace')[-600:]}")
            return told
    while not run.exists() or not is_over(case, run):
        process = start(case.again(run) if (run / "config.toml").exists() else case.first(run), errors)
        if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
            told["failed"].append(f"exit {code} (at the end): {errors.read_text(errors='replace')[-600:]}")
            return told
    told["differs"] += case.differs(quiet, run)
    return told


def is_over(case: Case, run: Path) -> bool:
    return (run / ("report.json" if case.differs is corpus_differs else "report.html")).exists()


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


def campaign(work: Path, names: list[str], kills: int, seed: int, until: float) -> dict:
    """Return what came of so many kills, shared by the cases; lives that `work` has a line for are not lived again."""
    record = work / "lives.jsonl"
    lives = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    known = cases(work, seed)
    for number, name in enumerate(names):
        quiet, errors = work / f"quiet-{name}", work / f"quiet-{name}.txt"
        taken = undisturbed(known[name].first(quiet), errors)
        wanted = kills // len(names) + (number < kills % len(names))
        while sum(one["kills"] for one in lives if one["case"] == name) < wanted:
            check_time(until)
            folder = work / "life"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            lives.append(life(known[name], quiet, folder, taken, seed + sum(one["case"] == name for one in lives)))
            with open(record, "a", encoding="utf-8") as file:
                file.write(json.dumps(lives[-1]) + "\n")
            print(json.dumps(lives[-1]), file=sys.stderr, flush=True)
            if lives[-1]["failed"] or lives[-1]["differs"]:
                shutil.copytree(folder, work / f"wrong-{name}-{lives[-1]['seed']}", dirs_exist_ok=True)
    return {"kills": sum(one["kills"] for one in lives), "wrong": sum(bool(one["failed"] or one["differs"]) for one in lives),
            "cases": {name: summary([one for one in lives if one["case"] == name]) for name in names}}  # fmt: skip


def summary(lives: list[dict]) -> dict:
    """Return the numbers of the lives of a case."""
    counts = {name: sum(one[name] for one in lives) for name in ("kills", "in_a_save", "terms", "workers")}
    return {"lives": len(lives), **counts, "bit_equal": sum(not one["failed"] and not one["differs"] for one in lives)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=120, help="how often something is killed, over all cases")
    parser.add_argument("--cases", default="pretrain,raw,finetune,pack", help="which commands")
    parser.add_argument("--flips", type=int, default=0, help="bits to turn in every file that a run leaves")
    parser.add_argument("--seed", type=int, default=0, help="of the text and of the moments of the kills")
    parser.add_argument("--work", type=Path, help="a folder to work in, which is kept")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop, to go on later with the same --work")
    parser.add_argument("--json", type=Path, help="write the result here too")
    args = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"))
    import torch  # noqa: F401  (imported once, here)

    from train import environment

    until = time.monotonic() + 60 * args.minutes
    folder = args.work or Path(tempfile.mkdtemp(prefix="unmask-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = {**environment([]), **campaign(folder, args.cases.split(","), args.kills, args.seed, until)}
        if args.flips:
            from bits import turned

            result["bits"] = turned(folder, args.flips, args.seed, until)
    finally:
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
