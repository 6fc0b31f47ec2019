"""Kill a training run (SIGKILL) at random steps, again and again, resume it each time, and compare its end with an undisturbed run.

    python bench/kills.py [--times 20] [--steps 240] [--seed 0] [--json FILE]

The model has dropout on, so that its random numbers must be resumed too. The result is JSON; the exit code is 1 where a byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    "model.preset=tiny", "model.family=bert", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64",
    "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", "data.vocab_size=200", "data.max_length=32",
    "data.batch_tokens=256", "data.micro_tokens=128", "data.held_out=0.1", "train.log_steps=1", "train.eval_steps=24", "train.save_steps=4",
    "train.precision=fp32", "train.device=cpu",
]  # fmt: skip


def write_corpus(path: Path, seed: int) -> None:
    """Write a small corpus of made-up words."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("aeioubdgklmnrst", k=generator.randint(2, 7))) for _ in range(150)]
    lines = [" ".join(generator.choices(words, k=generator.randint(4, 40))) for _ in range(300)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "unmask", *args]


def last_step(run: Path) -> int:
    """Return the step of the last whole line of log.jsonl."""
    try:
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line).get("step", 0))
        except ValueError:
            continue
    return 0


def kill_at(args: list[str], run: Path, step: int, delay: float, env: dict[str, str]) -> bool:
    """Start a command, kill it `delay` seconds after the log shows `step`; return whether it was killed before it ended."""
    with open(run.with_suffix(".err"), "ab") as errors:
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=errors, env=env)
        while process.poll() is None and last_step(run) < step:
            time.sleep(0.002)
        time.sleep(delay)
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def campaign(folder: Path, times: int, steps: int, seed: int) -> dict[str, object]:
    """Return what came of `times` kills of a run of `steps` steps."""
    generator = random.Random(seed)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1"}
    write_corpus(folder / "corpus.txt", seed)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    first = command("pretrain", "--data", str(folder / "corpus.txt"), "--steps", str(steps), *settings)
    quiet = subprocess.run([*first, "-o", str(folder / "quiet")], capture_output=True, text=True, env=env)
    if quiet.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{quiet.stderr}")
    run, killed = folder / "killed", []
    while len(killed) < times:
        reached = last_step(run)
        target = reached + generator.randint(1, max(1, 2 * (steps - reached) // (3 * (times - len(killed)))))
        args = command("resume", str(run)) if (run / "config.toml").exists() else [*first, "-o", str(run)]
        if not kill_at(args, run, target, generator.uniform(0, 0.03), env):
            break
        killed.append(last_step(run))
        print(f"kill {len(killed)}: at step {killed[-1]}", file=sys.stderr)
    end = subprocess.run(command("resume", str(run)), capture_output=True, text=True, env=env)
    if end.returncode:
        raise SystemExit(f"the last resume failed:\n{end.stderr}")
    numbers = [json.loads((folder / name / "metrics.json").read_text()) for name in ("quiet", "killed")]
    same = [key for key in ("masked_loss", "masked_accuracy", "num_masked_tokens", "tokens") if numbers[0][key] == numbers[1][key]]
    return {
        "kills": len(killed), "steps": steps, "killed_at_steps": killed, "bit_equal": digest(folder / "quiet") == digest(run),
        "equal_metrics": same, "weights_sha256": digest(run),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="how often the run is killed")
    parser.add_argument("--steps", type=int, default=240, help="steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus and of the moments of the kills")
    parser.add_argument("--json", type=Path, help="write the result here too")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="unmask-kills-"))
    try:
        result = campaign(folder, args.times, args.steps, args.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    return 0 if result["bit_equal"] and len(result["equal_metrics"]) == 4 else 1  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
