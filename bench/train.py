"""Training speed of Unmask beside the stock Trainer, in one run, in turn, on the same tokens.

    python bench/train.py [--data FILES] [--vocab VOCAB.txt] [--texts paragraphs,sentences] [--rounds 7] [--seconds 4] [--json OUT.json]
    python bench/train.py --time-to-loss [--minutes 2] [--limit-minutes 20] [--json OUT.json]

The sides are processes that take turns of some seconds, so that a slow spell of the machine falls on all of them; a round gives one ratio,
and the median over the rounds is reported. Tokens are real tokens: padding does not count. Peers need `pip install 'unmask[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WINDOW = 512


class Side:
    """A worker process: told for how many seconds to run, it says how many tokens it trained on in how many seconds."""

    def __init__(self, name: str, script: str, *args: str) -> None:
        self.name = name
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, text=True, env=env
        )

    def ask(self, request: str) -> dict:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"'):
                return json.loads(line)
        raise SystemExit(f"the side '{self.name}' stopped (exit {self.process.wait()})")

    def stop(self) -> None:
        if self.process.poll() is None:
            assert self.process.stdin
            self.process.stdin.write("stop\n")
            self.process.stdin.close()
            self.process.wait(timeout=60)


def load_tokenizer(vocab: str | None, data: list[str], folder: Path) -> object:
    """Save the tokenizer that both sides use in `folder`: a published vocab.txt, or 30,522 WordPiece pieces of the data."""
    import unmask

    if vocab:
        tokenizer = unmask.load_tokenizer(vocab)
    else:
        texts = (document.text for document in unmask.read(data))
        tokenizer = unmask.train_tokenizer(texts, kind="wordpiece", vocab_size=30_522, lowercase=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def texts_of(data: list[str], kind: str, limit_bytes: int) -> list[str]:
    """Return texts of natural length: the paragraphs of the data, or their sentences."""
    import unmask

    texts: list[str] = []
    size = 0
    for document in unmask.read(data):
        for line in document.text.splitlines():
            for piece in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", line) if kind == "sentences" else [line]:
                if len(piece) > 10:
                    texts.append(piece)
                    size += len(piece)
        if size > limit_bytes:
            break
    return texts


def tokenize(tokenizer, texts: list[str], path: Path) -> dict:
    """Save the texts as ids, each at most one window long, so that neither side has anything to cut."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = [np.array([cls, *encoding.ids[: WINDOW - 2], sep], dtype=np.int32) for encoding in encodings if encoding.ids]
    np.random.default_rng(0).shuffle(ids)  # type: ignore[arg-type]
    lengths = [len(item) for item in ids]
    np.savez(path, flat=np.concatenate(ids), bounds=np.cumsum([0, *lengths]), special=np.array(tokenizer.all_special_ids))
    return {"texts": len(ids), "tokens": int(sum(lengths)), "mean_tokens": round(statistics.mean(lengths), 1)}


def environment(data: list[str]) -> dict:
    """Return what every result says of where it comes from; of data the names alone."""
    import torch
    import transformers

    machine = {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    return {
        "torch": torch.__version__, "transformers": transformers.__version__, "machine": machine, "data": [Path(one).name for one in data],
    }  # fmt: skip


def matmul_rate(seconds: float = 1.0) -> float:
    """Return the machine's bf16 matrix-product rate in FLOP/s, on the shape of the model's feed-forward product."""
    import torch

    from unmask.train.precision import matmul_rate as rate

    return rate("cpu", torch.bfloat16, seconds)


def throughput(kind: str, tokenizer, args: argparse.Namespace, work: Path) -> dict:
    """Run the three sides in turn on texts of a kind; return rates, ratios and the share of the matrix rate."""
    tokens, folder = work / f"{kind}.npz", work / "tokenizer"
    stats = tokenize(tokenizer, texts_of(args.data, kind, args.megabytes * 10**6), tokens)
    print(f"{kind}: {stats['texts']} texts, mean {stats['mean_tokens']} tokens", file=sys.stderr)
    sides = {
        "unmask": Side("unmask", "unmask_worker.py", "throughput", str(tokens), str(folder), "{}", str(work)),
        "tutorial": Side("tutorial", "trainer_worker.py", "tutorial", str(tokens), str(folder), "{}", str(work)),
        "tuned": Side("tuned", "trainer_worker.py", "tuned", str(tokens), str(folder), "{}", str(work)),
    }
    rounds: list[dict[str, float]] = []
    try:
        flops = sides["unmask"].ask("flops")["flops_per_token"]
        for side in sides.values():  # warm-up
            side.ask(str(args.seconds))
        for number in range(args.rounds):
            row = {"matmul": matmul_rate()}
            for name, side in sides.items():
                answer = side.ask(str(args.seconds))
                row[name] = answer["tokens"] / answer["seconds"]
                if "waited" in answer:
                    row["data_wait_share"] = answer["waited"] / answer["seconds"]
            row["matmul_end"] = matmul_rate()
            rounds.append(row)
            print(f"  round {number + 1}: " + ", ".join(f"{key} {value:,.4g}" for key, value in row.items()), file=sys.stderr)
    finally:
        for side in sides.values():
            side.stop()

    def median(function) -> float:
        return statistics.median(function(row) for row in rounds)

    return {
        "texts": stats,
        "unmask_tokens_per_second": round(median(lambda r: r["unmask"])),
        "tutorial_tokens_per_second": round(median(lambda r: r["tutorial"])),
        "tuned_tokens_per_second": round(median(lambda r: r["tuned"])),
        "ratio_tutorial": round(median(lambda r: r["unmask"] / r["tutorial"]), 2),
        "ratio_tuned": round(median(lambda r: r["unmask"] / r["tuned"]), 2),
        "flops_per_token": flops,
        "matmul_flops_per_second": round(median(lambda r: (r["matmul"] + r["matmul_end"]) / 2)),
        "matmul_share": round(median(lambda r: flops * r["unmask"] / ((r["matmul"] + r["matmul_end"]) / 2)), 3),
        "data_wait_share": round(median(lambda r: r["data_wait_share"]), 4),
        "rounds": rounds,
    }


def time_to_loss(tokenizer, args: argparse.Namespace, work: Path) -> dict:
    """Train Unmask for `minutes`, then the well-configured Trainer until it reaches the same held-out loss, or the limit.

    Only the time spent training counts, on both sides; the held-out masks (15%, 80/10/10) are the same frozen ones.
    """
    texts = texts_of(args.data, "paragraphs", args.megabytes * 10**6)
    held = max(200, len(texts) // 100)
    folder, tokens, frozen = work / "tokenizer", work / "train.npz", work / "frozen.npz"
    stats = tokenize(tokenizer, texts[held:], tokens)
    freeze(tokenizer, texts[:held][:600], frozen)
    settings = json.dumps({"seconds": args.minutes * 60})
    ours = Side("unmask", "unmask_worker.py", "loss", str(tokens), str(folder), settings, str(work))
    start = ours.ask("start")
    used = ours.ask(str(args.minutes * 60))
    ours_loss = ours.ask(f"evaluate {frozen}")["loss"]
    ours.stop()
    print(f"unmask: loss {ours_loss:.3f} after {used['seconds']:.0f} s ({used['tokens'] / used['seconds']:,.0f} tokens/s)", file=sys.stderr)

    limit = args.limit_minutes * 60
    # its linear schedule is laid over the steps that it is expected to make within the limit
    schedule = {"max_steps": args.trainer_steps, "warmup_steps": max(10, args.trainer_steps // 15)}
    peer = Side("tuned", "trainer_worker.py", "tuned", str(tokens), str(folder), json.dumps(schedule), str(work))
    curve, spent = [], 0.0
    while spent < limit:
        answer = peer.ask(str(min(60.0, limit - spent)))
        spent += answer["seconds"]
        loss = peer.ask(f"evaluate {frozen}")["loss"]
        curve.append({"seconds": round(spent), "steps": answer["steps"], "loss": round(loss, 4)})
        print(f"  trainer: loss {loss:.3f} after {spent:.0f} s", file=sys.stderr)
        if loss <= ours_loss or answer.get("finished"):
            break
    peer.stop()
    reached = curve[-1]["loss"] <= ours_loss
    return {
        "texts": stats,
        "unmask_parameters": start["parameters"],
        "unmask_loss": round(ours_loss, 4),
        "unmask_seconds": round(used["seconds"]),
        "trainer_reached": reached,
        "trainer_seconds": round(spent),
        "trainer_curve": curve,
        "time_to_loss_ratio": round(spent / used["seconds"], 2),
        "time_to_loss_is_a_lower_bound": not reached,
    }


def freeze(tokenizer, texts: list[str], path: Path) -> None:
    """Save 15% masks over texts, 80/10/10, once for both sides: rows of corrupted ids (0 pads) and labels (-100 elsewhere)."""
    rng = np.random.default_rng(15)
    cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    assert tokenizer.pad_token_id == 0
    rows_ids, rows_labels = np.zeros((len(texts), 128), np.int32), np.full((len(texts), 128), -100, np.int32)
    for row, encoding in enumerate(tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)):
        ids = np.array([cls, *encoding.ids[:126], sep])
        chosen = rng.random(len(ids)) < 0.15
        chosen[[0, -1]] = False
        rows_labels[row, : len(ids)][chosen] = ids[chosen]
        fate = rng.random(len(ids))
        ids[chosen & (fate < 0.8)] = mask
        swap = chosen & (fate >= 0.8) & (fate < 0.9)
        ids[swap] = rng.integers(1000, len(tokenizer), swap.sum())
        rows_ids[row, : len(ids)] = ids
    np.savez(path, ids=rows_ids, labels=rows_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt; without it a vocabulary of 30,522 pieces is trained on the data")
    parser.add_argument("--texts", default="paragraphs,sentences")
    parser.add_argument("--megabytes", type=int, default=40, help="how much text at the most")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--time-to-loss", action="store_true")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--limit-minutes", type=float, default=20.0)
    parser.add_argument("--trainer-steps", type=int, default=250, help="the Trainer's max_steps in --time-to-loss, for its schedule")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        tokenizer = load_tokenizer(args.vocab, args.data, work / "tokenizer")
        result = environment(args.data)
        if args.time_to_loss:
            result |= time_to_loss(tokenizer, args, work)
        else:
            kinds = args.texts.split(",")
            result |= {kind: throughput(kind, tokenizer, args, work) for kind in kinds}
            result |= {key: result[kinds[0]][key] for key in ("ratio_tutorial", "ratio_tuned", "matmul_share")}
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
