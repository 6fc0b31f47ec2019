"""The processes of bench/serve.py: the plain service, the engine alone, and the clients.

python bench/serve_worker.py plain_threads|plain_async MODEL_FOLDER
python bench/serve_worker.py engine MODEL_FOLDER SENTENCES.json CLIENTS
python bench/serve_worker.py clients CLIENTS SENTENCES.json
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel


class Text(BaseModel):
    """What the plain service is sent (here, where FastAPI finds the name)."""

    inputs: str


def plain(kind: str, folder: str) -> None:
    """Serve the stock pipeline as anybody would."""
    import uvicorn
    from fastapi import FastAPI
    from transformers import pipeline

    fill = pipeline("fill-mask", model=folder, device="cpu")
    app = FastAPI()

    if kind == "plain_async":

        @app.post("/fill")
        async def answer_in_the_loop(text: Text) -> list[dict[str, Any]]:
            return fill(text.inputs)
    else:

        @app.post("/fill")
        def answer_in_a_thread(text: Text) -> list[dict[str, Any]]:
            return fill(text.inputs)

    sock = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{sock.getsockname()[1]}", file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[sock])


def engine(folder: str, sentences: str, clients: str) -> None:
    """Fill the sentences without a service: so many a call, and all in one."""
    from unmask import Filler

    fillers = {precision: Filler.load(folder, device="cpu", precision=precision) for precision in ("fp32", "auto")}
    texts = json.loads(Path(sentences).read_text(encoding="utf-8"))
    size = int(clients)
    for request in iter(sys.stdin.readline, "stop\n"):
        if not request:
            break
        precision, seconds = json.loads(request)
        filler = fillers[precision]

        def rate(step: int, filler: Filler = filler, seconds: float = seconds) -> float:
            start, count = time.perf_counter(), 0
            places = itertools.cycle(range(0, len(texts), step))
            while time.perf_counter() - start < seconds / 2:
                part = texts[(place := next(places)) : place + step]
                filler.fill(part, independent=True)
                count += len(part)
            return count / (time.perf_counter() - start)

        print(json.dumps({"per_second": rate(size), "bulk_per_second": rate(len(texts))}), flush=True)


def clients(number: str, sentences: str) -> None:
    """Be that many clients, each of which asks again when it has its answer."""
    texts = json.loads(Path(sentences).read_text(encoding="utf-8"))
    for request in iter(sys.stdin.readline, "stop\n"):
        if not request:
            break
        port, path, seconds = json.loads(request)
        print(json.dumps(asyncio.run(ask(port, path, seconds, int(number), texts))), flush=True)


async def ask(port: int, path: str, seconds: float, number: int, texts: list[str]) -> dict[str, float]:
    """Return how many answers a second, and what share of them came within how many seconds."""
    order, times, failed = itertools.cycle(texts), [], 0
    end = time.perf_counter() + seconds

    async def client() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < end:
            body = json.dumps({"inputs": next(order)}).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(size)
            times.append(time.perf_counter() - start)
            failed += not answer.startswith(b"http/1.1 200")
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(number)))
    lasted = time.perf_counter() - start
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist()
    return {"per_second": len(times) / lasted, "p50": p50, "p95": p95, "p99": p99, "answers": len(times), "failed": failed}


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind.startswith("plain"):
        plain(kind, *rest)
    else:
        {"engine": engine, "clients": clients}[kind](*rest)
