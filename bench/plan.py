"""What `unmask plan` says beside what short runs on this machine really take: tokens/s, memory, checkpoint; and what it assumes of data.

    python bench/plan.py --data CORPUS [--seconds 20] [--json OUT.json]

CORPUS is a packed one. Each run is a process of its own, so that the most memory it has held is its own too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train import environment

# a recipe's settings, by name: the default optimizer and family, and the other ones
RUNS = {
    "mini": ["model.preset=mini", "data.max_length=128", "data.batch_tokens=4096"],
    "mini_adamw": ["model.preset=mini", "data.max_length=128", "data.batch_tokens=4096", "optim.optimizer=adamw"],
    "small_bert": ["model.preset=small", "model.family=bert", "data.max_length=256", "data.batch_tokens=8192", "optim.optimizer=adamw"],
}
PLANNED = ("tokens_per_second", "memory_bytes", "checkpoint_bytes", "matmul_rate", "flops_per_token")


def run(settings: list[str], data: str, seconds: float) -> dict:
    """Train for so many seconds and return tokens/s of the steps, the most memory that was held, and the bytes of a checkpoint."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        args = [sys.executable, "-m", "unmask", "pretrain", "-o", str(folder), "-d", data, "--minutes", str(seconds / 60)]
        args += [word for setting in [*settings, "train.log_steps=1", "train.eval_tokens=2000"] for word in ("-s", setting)]
        process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(args)} failed")
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        rates = [line["tokens_per_second"] for line in lines if "event" not in line]
        checkpoint = max((folder / "checkpoints").iterdir())
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        return {
            "tokens_per_second": statistics.median(rates[3:]), "steps": len(rates), "memory_bytes": usage.ru_maxrss * 1024,
            "checkpoint_bytes": size, "precision": "bf16" if 'precision = "bf16"' in (folder / "config.toml").read_text() else "fp32",
        }  # fmt: skip


def loader_rate(settings: list[str], data: str, seconds: float = 3.0) -> float:
    """Return how many tokens a second the batches of a run have that one thread makes."""
    from unmask.data.loader import Loader
    from unmask.data.store import TokenStore
    from unmask.data.tokenizer import load_tokenizer, special_ids
    from unmask.train import recipe as recipes

    recipe = recipes.load(overrides=settings)
    tokenizer = load_tokenizer(Path(data) / "tokenizer")
    size = recipe.data.batch_tokens
    loader = Loader(
        TokenStore.open(Path(data) / "train"), special_ids(tokenizer), recipe.masking, vocab_size=len(tokenizer), seed=0,
        max_length=recipe.data.max_length, micro_tokens=size, batch_tokens=size,
    )  # fmt: skip
    loader.batch(0)
    tokens, step, start = 0, 1, time.perf_counter()
    while time.perf_counter() - start < seconds:
        tokens += sum(batch.num_tokens for batch in loader.batch(step))
        step += 1
    return tokens / (time.perf_counter() - start)


def gloo(rank: int, port: int, size: int, answer: str) -> None:
    """Sum numbers in two processes of one thread, again and again; the first writes down the bytes a second of the formula's."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    numbers, times = torch.zeros(size // 4), []
    for _ in range(12):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(numbers)
        times.append(time.perf_counter() - start)
    if rank == 0:
        Path(answer).write_text(str(size / statistics.median(times[2:])))  # 2 (n - 1) / n is 1 for two
    dist.destroy_process_group()


def gloo_rate(size: int = 25 * 10**6) -> float:
    """Return the bytes a second that two processes of this machine exchange, in buckets of 25 MB."""
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as free, tempfile.TemporaryDirectory() as work:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        mp.spawn(gloo, (port, size, f"{work}/rate"), nprocs=2)
        return float(Path(work, "rate").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a packed corpus")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--json", help="where to write the result")
    args = parser.parse_args()

    from unmask.train import recipe as recipes
    from unmask.train.plan import plan

    result = environment([args.data]) | {"gloo_bytes_per_second": round(gloo_rate()), "runs": {}}
    empty = run([*RUNS["mini"][1:], "model.preset=tiny", "data.batch_tokens=128"], args.data, 3.0)
    for name, settings in RUNS.items():
        real = run(settings, args.data, args.seconds)
        sources = [f'data.sources=["{args.data}"]', f"train.precision={real['precision']}"]
        said = plan(recipes.load(overrides=[*settings, *sources]), devices="1xcpu")
        row = {
            "measured": real,
            "planned": {
                key: said[key] for key in ("tokens_per_second", "memory_bytes", "checkpoint_bytes", "matmul_rate", "flops_per_token")
            },
            "loader_tokens_per_second": round(loader_rate(settings, args.data)),
            "ratio_tokens_per_second": round(said["tokens_per_second"] / real["tokens_per_second"], 3),
            # a process that trains next to nothing: the interpreter, torch and what else is loaded
            "ratio_memory": round(said["memory_bytes"] / (real["memory_bytes"] - empty["memory_bytes"]), 3),
            "ratio_checkpoint": round(said["checkpoint_bytes"] / real["checkpoint_bytes"], 4),
            "efficiency": round(said["flops_per_token"] * real["tokens_per_second"] / said["matmul_rate"], 3),
        }
        result["runs"][name] = row
        print(name, json.dumps({key: value for key, value in row.items() if key not in ("measured", "planned")}), file=sys.stderr)
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
