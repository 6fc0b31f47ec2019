"""How much faster `unmask pack --on ray` is with two workers than with one, on this machine, in one run, in turn.

    python bench/ray_pack.py [--data FILES] [--vocab VOCAB.txt] [--megabytes 30] [--rounds 3] [--json OUT.json]

`ray_pack_ratio`: seconds of a pack (from the first text read to the last token stored) with one worker of one CPU over those with two
(wanted: at least 1.7). Medians over rounds; workers start before the clock does, and how long that takes is told beside. The command's own
process, which reads, compares and writes, and Ray's take their share of the same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import unmask
from pack import texts_of, write
from train import load_tokenizer
from unmask.cluster.ray import Cluster

STORE_BYTES = 200 * 2**20


def ray_pack(source: Path, tokenizer: Path, out: Path, *, rounds: int = 3) -> dict[str, Any]:
    """Return the ratio and what it was computed from; a cluster of two CPUs is started, and ended."""
    import ray

    ray.init("local", num_cpus=2, object_store_memory=STORE_BYTES, include_dashboard=False, log_to_driver=False)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    whole: dict[int, list[float]] = {1: [], 2: []}
    try:
        for number in range(rounds + 1):
            for workers in (1, 2):
                start = time.perf_counter()
                with Cluster("ray", workers=workers) as cluster:
                    report = unmask.pack(source, out, tokenizer=tokenizer, overwrite=True, on=cluster)
                if number:  # the first round warms up
                    seconds[workers].append(report["seconds"]["total"])
                    whole[workers].append(time.perf_counter() - start)
    finally:
        ray.shutdown()
    return {
        "ray_pack_ratio": round(statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True)), 3),
        "ray_pack_seconds": {str(workers): round(statistics.median(values), 2) for workers, values in seconds.items()},
        "ray_pack_seconds_with_start": {str(workers): round(statistics.median(values), 2) for workers, values in whole.items()},
        "ray_pack_bytes": report["bytes_read"],
        "ray_pack_rounds": rounds,
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Measure, and print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt; by default a WordPiece of 30,522 entries is trained")
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = write(texts_of(options.data, int(options.megabytes * 1e6)), folder / "texts.jsonl")
        load_tokenizer(options.vocab, [str(source)], folder / "tokenizer")
        result = ray_pack(source, folder / "tokenizer", folder / "out", rounds=options.rounds)
    result["data"] = [Path(source).name for source in options.data]
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
