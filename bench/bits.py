"""Turn one bit of a file that a run or evaluation left, and use what is left: it must be found, or change nothing. Part of faults.py."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from faults import Case, cases, check_time, digests, untimed
from processes import undisturbed

OUTCOMES = ("found", "same", "SILENT", "TRACEBACK", "CRASH")


def resumed(run: Path) -> dict:
    """Take up a run, and return what it came to."""
    import unmask

    unmask.resume(run)
    return {**digests(run / "model", ("README.md",)), "metrics": untimed(json.loads((run / "metrics.json").read_text(encoding="utf-8")))}


def loaded(run: Path) -> dict:
    """Load a model with its tokenizer, and return what it says of a text."""
    import torch

    from unmask.data.tokenizer import load_tokenizer
    from unmask.model.load import load_model

    tokenizer = load_tokenizer(run / "model")
    batch = tokenizer(["ba de [MASK] go", "a"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = load_model(run / "model", tokenizer=tokenizer)(**batch).logits
    return {"ids": batch["input_ids"].tolist(), "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest()}


def classified(run: Path) -> dict:
    """Load a classifier, and return what it says of texts."""
    import unmask

    found = unmask.Classifier.load(run / "model", device="cpu").predict(["ba de go", "a"])
    return {"classes": repr(found)}


def shown(run: Path) -> dict:
    """Make a report, which shows what it finds: what counts is that it does not break."""
    from unmask.evaluate.report import write

    write(run)
    return {}


def page_of(results: Path) -> dict:
    """Make the report of an evaluation or a comparison, and return what it shows."""
    from unmask.evaluate.report import write

    return {"page": hashlib.sha256(write(results).read_bytes()).hexdigest()}


def measured_again(results: Path) -> dict:
    """Read the records in a folder, and those of two models in one, and return their numbers."""
    from unmask.evaluate.metrics import metrics
    from unmask.evaluate.records import Records

    sides = [results] if (results / "records.arrow").exists() else [results / "a", results / "b"]
    return {side.name: repr(metrics(Records(side), resamples=20)) for side in sides}


def watched(run: Path) -> dict:
    """Say how a run stands."""
    import unmask

    return {"lines": bool(unmask.status(run).lines())}


def trained(corpus: Path) -> dict:
    """Train some steps on a packed corpus, and return what came of it."""
    import unmask

    run = corpus.with_name("trained")
    shutil.rmtree(run, ignore_errors=True)
    model = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    unmask.pretrain(
        output=run, data=corpus, model=model, max_steps=2, eval_steps=2, max_length=32, batch_tokens=256, device="cpu", precision="fp32"
    )
    return {**digests(run / "model", ("README.md",)), "metrics": untimed(json.loads((run / "metrics.json").read_text(encoding="utf-8")))}


def read_back(corpus: Path) -> dict:
    """Read all that a packed corpus holds."""
    import numpy as np

    import unmask

    tokenizer = unmask.load_tokenizer(corpus / "tokenizer")
    found: dict = {
        "tokenizer": tokenizer("ba de [MASK] go a")["input_ids"],
        "texts": [one.text for one in unmask.read(corpus / "heldout.jsonl")],
    }
    for side in ("train", "heldout"):
        store = unmask.TokenStore.open(corpus / side)
        documents = range(len(store))
        found[side] = [array.tolist() for array in store.gather(np.arange(len(store)))]
        found[side] += [[(store.document_id(one), store.num_bytes(one)) for one in documents], store.fingerprint, store.vocab_size]
    return found


def over(case: Case, work: Path, name: str) -> Path:
    """Return what an undisturbed command leaves."""
    undisturbed(case.first(work / name), work / f"{name}.txt")
    return work / name


def results_of(work: Path, name: str, args: list[str]) -> Path:
    """Return the folder of results that a command leaves."""
    undisturbed([*args, "--resamples", "20", "-o", str(work / name)], work / f"{name}.txt")
    return work / name


def halfway(case: Case, work: Path) -> Path:
    """Return a run as one that was killed after its last checkpoint but one leaves it."""
    run = work / f"half-{case.name}"
    if not run.is_dir():
        undisturbed(case.first(run), work / f"half-{case.name}.txt")
        for name in ("model", "metrics.json", "report.html", "predictions.jsonl"):
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(max((run / "checkpoints").iterdir()))
    return run


def turn(file: Path, whole: bytes, place: int, bit: int) -> None:
    file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])


def try_out(use: Callable[[Path], dict], folder: Path, name: str, spots: list[tuple[int, int]], told: Path) -> None:
    """In a process of its own: turn one bit of a file after the other, use the folder, and write down what became of it.

    What an undamaged one comes to is kept beside `told`.
    """
    from unmask.errors import UnmaskError

    def copy() -> Path:
        shutil.rmtree(folder.with_name("copy"), ignore_errors=True)
        return Path(shutil.copytree(folder, folder.with_name("copy")))

    known = told.with_name(f"expected-{use.__name__}-{folder.name}.json")
    if not known.exists():
        known.write_text(json.dumps(use(copy())), encoding="utf-8")
    expected = json.loads(known.read_text(encoding="utf-8"))
    with open(told, "a", encoding="utf-8") as file:
        for place, bit in spots:
            turn(copy() / name, (folder / name).read_bytes(), place, bit)
            file.write(f"{place} {bit} ")
            file.flush()
            signal.alarm(120)  # what goes on for ever ends the process, and is told as that
            try:
                file.write("same\n" if json.loads(json.dumps(use(folder.with_name("copy")))) == expected else "SILENT\n")
            except UnmaskError as error:
                file.write(f"found {json.dumps(str(error)[:300])}\n")
            except BaseException as error:
                file.write(f"TRACEBACK {json.dumps(repr(error)[:300])}\n")
            signal.alarm(0)


Use = tuple[Callable[[], Path], str, Callable[[Path], dict]]  # what is used, what is damaged of it, and how it is used


def uses(work: Path, seed: int) -> dict[str, Use]:
    """Return by name what is used of what runs and evaluations leave."""
    known = cases(work, seed)
    base, text, labelled = str(work / "base" / "model"), str(work / "text.txt"), str(work / "labelled.jsonl")

    def evaluated() -> Path:
        return results_of(work, "evaluated", ["evaluate", base, "--data", text, "--predictions"])

    def compared() -> Path:
        args = known["pretrain"].first(work / "early")  # of one step: the two must be right at different places
        args[args.index("--steps") + 1] = "1"
        undisturbed(args, work / "early.txt")
        return results_of(work, "compared", ["compare", base, str(work / "early" / "model"), "--data", text])

    def scored() -> Path:
        return results_of(work, "scored", ["evaluate", str(over(known["finetune"], work, "tuned") / "model"), "--data", labelled])

    return {
        "pretrain": (lambda: halfway(known["raw"], work), "", resumed),
        "finetune": (lambda: halfway(known["finetune"], work), "", resumed),
        "model": (lambda: work / "base", "model", loaded),
        "classifier": (lambda: over(known["finetune"], work, "tuned"), "model", classified),
        "corpus, trained on": (lambda: over(known["pack"], work, "packed"), "", trained),
        "corpus, read": (lambda: over(known["pack"], work, "packed"), "", read_back),
        "finished run, resumed": (lambda: work / "base", "", resumed),
        "finished run, reported": (lambda: work / "base", "", shown),
        "finished task, reported": (lambda: over(known["finetune"], work, "tuned"), "", shown),
        "finished run, watched": (lambda: work / "base", "", watched),
        "evaluation, measured again": (evaluated, "", measured_again),
        "evaluation, reported": (evaluated, "", page_of),
        "comparison, measured again": (compared, "", measured_again),
        "comparison, reported": (compared, "", page_of),
        "task, reported": (scored, "", page_of),
    }


def turned(work: Path, flips: int, seed: int, until: float) -> dict:
    """Turn so many bits of every file (one of each byte of a short one) that runs and evaluations leave, and return what became of it."""
    record = work / "bits.jsonl"  # what was done before is not done again
    results = dict(json.loads(line) for line in record.read_text().splitlines()) if record.exists() else {}
    for use, (make, part, function) in uses(work, seed).items():
        folder = make()
        inner = folder / part
        for path in sorted(path for path in inner.rglob("*") if path.is_file() and path.stat().st_size):
            if (key := f"{use}: {path.relative_to(inner).as_posix()}") in results:
                continue
            check_time(until)
            generator, size = random.Random(f"{path.name} {seed}"), path.stat().st_size
            places = range(size) if size <= flips else sorted(generator.sample(range(size), flips))
            spots = [(place, generator.randrange(8)) for place in places]
            told = work / "told.txt"
            told.unlink(missing_ok=True)
            while len(seen := told.read_text().splitlines() if told.exists() else []) < len(spots):
                process = os.fork()
                if not process:
                    with open(os.devnull, "wb") as nothing:
                        os.dup2(nothing.fileno(), 1)
                        os.dup2(nothing.fileno(), 2)
                    try_out(function, folder, path.relative_to(folder).as_posix(), spots[len(seen) :], told)
                    os._exit(0)
                if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
                    with open(told, "a", encoding="utf-8") as file:
                        file.write(f"CRASH exit {code}\n")
            counts = {word: sum(f" {word}" in line for line in seen) for word in OUTCOMES}
            results[key] = {word: count for word, count in counts.items() if count}
            with open(record, "a", encoding="utf-8") as file:
                file.write(json.dumps([key, results[key]]) + "\n")
            wrong = [line for line in seen if any(word in line for word in OUTCOMES[2:])]
            print(f"{key}: {counts} {wrong[:3]}", file=sys.stderr, flush=True)
    totals = {word: sum(counts.get(word, 0) for counts in results.values()) for word in OUTCOMES}
    return {"turned": sum(totals.values()), **totals, "files": results}
