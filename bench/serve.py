"""Throughput and latency of `unmask serve` beside a plain FastAPI app around the stock fill-mask pipeline, in one run, in turn.

    python bench/serve.py [--data FILES] [--vocab VOCAB.txt] [--shapes base,mini] [--clients 32] [--seconds 8] [--rounds 3] [--json OUT]

Sentences of 20 tokens in the mean, one a request, over kept connections, by a BERT of base shape and one of 4 x 256, both with 30,522
words and random weights. The services and the clients are processes of their own on the same cores; what does not have its turn waits.
`plain_threads` is the app as FastAPI's documentation has it (a function that threads call), `plain_async` calls the pipeline in the event
loop: the ratios are to the faster one, and its latencies. `overhead` is what the service loses to the engine it runs on: to a loop that
fills as many texts a call as there are clients (`overhead`), and to one call with all texts, sorted by length (`overhead_bulk`). Keys that
end in `_fp32` are of `--precision fp32`, the others of `auto`. Needs `pip install 'unmask[serve]'`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from score import make_model, sentences_of
from train import HERE, Side, environment, load_tokenizer, matmul_rate, texts_of

SERVERS = ("fp32", "auto", "plain_threads", "plain_async")


class Server:
    """A service in a process; `port` and `path` are where it answers."""

    def __init__(self, name: str, model: Path) -> None:
        plain = name.startswith("plain")
        command = (
            [str(HERE / "serve_worker.py"), name, str(model)] if plain
            else ["-m", "unmask", "serve", f"model={model}", "--port", "0", "--preload", "--precision", name]
        )  # fmt: skip
        self.process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
        self.path = "/fill" if plain else "/models/model"
        assert self.process.stderr
        for line in self.process.stderr:
            if "http://127.0.0.1:" in line:
                self.port = int(line.rpartition(":")[2].split()[0])
                return
        raise SystemExit(f"the service '{name}' did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate()


def measure(shape: str, model: Path, sentences: Path, args: argparse.Namespace) -> dict:
    """Let the services answer in turn; return throughput, latencies and ratios."""
    servers = {name: Server(name, model) for name in SERVERS}
    engine = Side("engine", "serve_worker.py", "engine", str(model), str(sentences), str(args.clients))
    clients = Side("clients", "serve_worker.py", "clients", str(args.clients), str(sentences))
    rounds: list[dict[str, dict]] = []
    try:
        for number in range(-1, args.rounds):  # the first one warms up
            row = {}
            for name, server in servers.items():
                row[name] = clients.ask(json.dumps([server.port, server.path, 2 if number < 0 else args.seconds]))
                if row[name]["failed"]:  # what refuses is fast, and no peer
                    raise SystemExit(f"'{name}' failed {row[name]['failed']} of {row[name]['answers']} requests")
            for precision in ("fp32", "auto"):
                row[f"engine_{precision}"] = engine.ask(json.dumps([precision, 1 if number < 0 else args.seconds / 2]))
            if number >= 0:
                rounds.append(row)
            print(f"{shape}, round {number + 1}: " + ", ".join(f"{name} {side['per_second']:.1f}/s" for name, side in row.items()),
                  file=sys.stderr)  # fmt: skip
    finally:
        for part in (*servers.values(), engine, clients):
            part.stop()

    def median(name: str, key: str) -> float:
        return statistics.median(row[name][key] for row in rounds)

    peer = max(("plain_threads", "plain_async"), key=lambda name: median(name, "per_second"))
    found: dict = {"peer": peer}
    for name in ("fp32", "auto"):
        end = "" if name == "auto" else f"_{name}"

        def ratio(key: str, over: str, other: str, name: str = name) -> float:
            return statistics.median(row[name][key] / row[over][other] for row in rounds)

        found |= {
            f"ratio_throughput{end}": round(ratio("per_second", peer, "per_second"), 2),
            f"p95_over_peer_p50{end}": round(ratio("p95", peer, "p50"), 3),
            f"overhead{end}": round(1 - ratio("per_second", f"engine_{name}", "per_second"), 3),
            f"overhead_bulk{end}": round(1 - ratio("per_second", f"engine_{name}", "bulk_per_second"), 3),
        }
    keys = ("per_second", "p50", "p95", "p99")
    found |= {name: {key: round(median(name, key), 4) for key in keys} for name in SERVERS}
    found |= {f"engine_{p}": {k: round(median(f"engine_{p}", k), 1) for k in ("per_second", "bulk_per_second")} for p in ("fp32", "auto")}
    return found | {"rounds": rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["python-docs"])
    parser.add_argument("--vocab", help="a published vocab.txt of 30,522 pieces; without it one is trained on the data")
    parser.add_argument("--shapes", default="base,mini")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = environment(args.data) | {"clients": args.clients, "bf16_matmul_flops_per_second": matmul_rate()}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = load_tokenizer(args.vocab, args.data, work / "tokenizer")
        sentences = sentences_of(tokenizer, texts_of(args.data, "sentences", 4 * 10**6), 512)
        masked = work / "sentences.json"
        masked.write_text(json.dumps([_mask(text, number) for number, text in enumerate(sentences)]), encoding="utf-8")
        for shape in args.shapes.split(","):
            found = measure(shape, make_model(shape, tokenizer, work / shape), masked, args)
            result[shape] = found
            end = "" if shape == "base" else f"_{shape}"
            result |= {f"{key}{end}": found[key] for key in found if key.startswith(("ratio", "p95_over", "overhead"))}
    text = json.dumps(result, indent=1)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


def _mask(text: str, number: int) -> str:
    """Return a sentence with one of its words hidden."""
    words = text.replace("[MASK]", "mask").split(" ")
    words[number % len(words)] = "[MASK]"
    return " ".join(words)


if __name__ == "__main__":
    main()
