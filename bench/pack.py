"""Speed and memory of `unmask pack` beside the bare tokenizer, in one run, in turn, on the same texts and cores.

    python bench/pack.py [--data FILES] [--vocab VOCAB.txt] [--megabytes 40] [--rounds 5] [--json OUT.json]

`ratio_tokenize`: bytes of text a second that the pack tokenizes and stores, over those of `tokenizers`' encode_batch, whose result is
thrown away (wanted: at least 0.8); `ratio_fast`: over encode_batch_fast, which computes no offsets, as the pack does. `ratio_whole`: the
whole pack, near-duplicates and all. Medians over rounds. Memory is the peak of the pack's process on a quarter of the text and all of it.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import load_tokenizer
from unmask import read
from unmask.data.clean import normalise

BATCH = 1000  # texts a call: all of them at once would hold every encoding in memory


def texts_of(data: list[str], limit_bytes: int) -> list[str]:
    """Return documents, as the pack cleans them, of some bytes together."""
    texts, size = [], 0
    for document in read(data):
        if text := normalise(document.text):
            texts.append(text)
            size += len(text.encode())
        if size > limit_bytes:
            break
    return texts


def write(texts: list[str], path: Path) -> Path:
    """Write documents as JSON lines, and return the file."""
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def bare_seconds(encode: Callable[..., Any], texts: list[str]) -> float:
    """Return how long the bare tokenizer takes."""
    start = time.perf_counter()
    for first in range(0, len(texts), BATCH):
        encode(texts[first : first + BATCH], add_special_tokens=False)
    return time.perf_counter() - start


def pack(source: Path, tokenizer: Path, out: Path, *options: str) -> tuple[dict[str, float], float]:
    """Return the seconds that a pack, in a process of its own, took for its stages, and the process's peak of memory in MB."""
    command = [sys.executable, "-m", "unmask", "pack", str(source), "-o", str(out), "-t", str(tokenizer), "--overwrite", "--json", *options]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"the pack ended with {process.returncode}: {' '.join(command)}")
        output.seek(0)
        return json.load(output)["seconds"], usage.ru_maxrss / 1000


def main() -> None:
    """Measure, and print a table and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt; by default a WordPiece of 30,522 entries is trained")
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        texts = texts_of(options.data, int(options.megabytes * 1e6))
        whole, part = write(texts, folder / "whole.jsonl"), write(texts[: len(texts) // 4], folder / "part.jsonl")
        backend = load_tokenizer(options.vocab, [str(whole)], folder / "tokenizer").backend_tokenizer  # type: ignore[attr-defined]
        num_bytes = sum(len(text.encode()) for text in texts)
        seconds: dict[str, list[float]] = {"encode_batch": [], "encode_batch_fast": [], "tokenize": [], "whole": []}
        bare = ["--dedup", "none", "--held-out", "0"]
        for number in range(options.rounds + 1):
            found = {name: bare_seconds(getattr(backend, name), texts) for name in ("encode_batch", "encode_batch_fast")}
            found["tokenize"] = pack(whole, folder / "tokenizer", folder / "out", *bare)[0]["tokenize_and_store"]
            stages, most = pack(whole, folder / "tokenizer", folder / "out")
            found["whole"] = stages["total"]
            for name, value in found.items() if number else ():  # the first round warms up
                seconds[name].append(value)
        _, least = pack(part, folder / "tokenizer", folder / "out")

    def ratio(ours: str, theirs: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[theirs], seconds[ours], strict=True)), 3)

    result = {
        "ratio_tokenize": ratio("tokenize", "encode_batch"), "ratio_fast": ratio("tokenize", "encode_batch_fast"),
        "ratio_whole": ratio("whole", "encode_batch"),
        "megabytes_per_second": {name: round(num_bytes / 1e6 / statistics.median(values), 2) for name, values in seconds.items()},
        "peak_memory_mb": {"quarter": round(least), "whole": round(most)}, "documents": len(texts), "bytes": num_bytes,
        "cores": len(os.sched_getaffinity(0)), "rounds": options.rounds, "data": [Path(source).name for source in options.data],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
