"""How fast a model runs on this machine, by backend, precision, length and batch, and how far the answers agree."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigError, MissingExtra
from ..evaluate.evaluation import model_folder
from ..evaluate.text import open_text
from ..infer.backends import Backend, open_export
from ..infer.engine import Engine
from ..infer.load import load
from ..infer.measure import agreement, drawn, speeds
from ..train.card import shown
from ..train.precision import bf16_speedup
from . import gate
from .exporting import machine, versions
from .onnx import export_model

LENGTHS, BATCHES = (16, 64, 256), (1, 8, 32)
AGREES = 0.9  # of the most probable tokens: what answers otherwise more often is not recommended for its speed (the gate measures the rest)
NATIVE = 0.5  # a bf16 product is emulated where it takes more than twice as long as one of fp32


@dataclass(frozen=True)
class Bench:
    """What was found, as `unmask bench --json` prints it, and what to take, in a line."""

    report: dict[str, Any]

    @property
    def recommendation(self) -> str:
        """What to take, in a line."""
        return str(self.report["recommendation"])


def bench(
    model: str | Path,
    *,
    lengths: Sequence[int] | None = None,
    batches: Sequence[int] = BATCHES,
    seconds: float = 1.0,
    data: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
    **reading: Any,
) -> Bench:
    """Return tokens per second and latency of a model with every backend and precision that there is here, by turns, and their agreement.

    Sequences hold tokens drawn at random and one mask each; agreement is measured on `data` where it is given (the rest goes to `read`).
    `seconds` is what each of them may take for a length and a batch. A model is exported to a temporary folder to run in ONNX Runtime.
    Raises: ConfigError, CheckpointError, TokenizerError, TaskError, DataError.
    """
    for name, values in (("lengths", lengths or LENGTHS), ("batches", batches)):
        if not values or min(values) < 1:
            raise ConfigError(f"{name} = {list(values)}; give numbers of 1 or more")
    if not seconds > 0:
        raise ConfigError(f"seconds = {seconds:g}; give a time above 0")
    with _engines(model, device, log) as (engines, tokenizer, left_out):
        first, reference = next(iter(engines.items()))
        limit = reference.max_length
        if lengths is None:
            lengths = [length for length in LENGTHS if limit is None or length <= limit] or [limit or LENGTHS[0]]
        cells = []
        for length in lengths:
            for batch in batches:
                found = speeds(engines, drawn(tokenizer, [length] * batch), rounds=5, seconds=seconds)
                log(
                    f"{length} tokens x {batch}: "
                    + ", ".join(f"{name} {one.tokens_per_second:,.0f} tokens/s" for name, one in found.items())
                )
                cells += [
                    {
                        "backend": name, "length": length, "batch": batch, "tokens_per_second": one.tokens_per_second,
                        "p50_milliseconds": one.percentile(0.5), "p95_milliseconds": one.percentile(0.95), "num_rounds": len(one.seconds),
                    }
                    for name, one in found.items()
                ]  # fmt: skip
        requests = drawn(tokenizer, range(4, min(132, limit or 132) + 1, 2), every=gate.EVERY)
        on = "tokens drawn at random"
        if data is not None:
            text = open_text(data, tokenizer, max_tokens=gate.PARITY_SEQUENCES * gate.BULK_TOKENS, **reading)
            requests, on = gate.sequences(text, limit), "text"
        apart = {name: agreement(reference, engine, requests) for name, engine in engines.items() if name != first}
        report = {
            "model": shown(str(model)), "cells": cells, "agreement": {name: one.to_dict() for name, one in apart.items()},
            "agreement_with": first, "agreement_on": on, "speedup": _speedups(cells, first), "not_run": left_out,
            "machine": machine(), "versions": versions(),
        }  # fmt: skip
    return Bench(report | {"recommendation": _recommend(report, first)})


@contextlib.contextmanager
def _engines(model: str | Path, device: str, log: Callable[[str], None]) -> Iterator[tuple[dict[str, Engine], Any, dict[str, str]]]:
    """Give the engines that there are, the plainest first, the tokenizer, and why others are not run."""
    loaded, tokenizer = load(model_folder(model), device=device)
    if isinstance(loaded, Backend):
        why = "the model is an export; name the model that it was made from to compare"
        engine = Engine(loaded)
        yield {f"{loaded.name} {engine.precision}": engine}, tokenizer, {"torch": why}
        return
    place = loaded.device.type
    where = "" if place == "cpu" else f" ({place})"
    engines, left_out = {f"torch fp32{where}": Engine(loaded)}, {}
    speedup = bf16_speedup(place)
    if speedup > NATIVE:
        engines[f"torch bf16{where}"] = Engine(loaded, precision="bf16")
    else:
        left_out["torch bf16"] = f"a product in bf16 is {speedup:.2g} times as fast as one in fp32 here: it is emulated"
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as work:
        try:
            for precision in ("fp32", "int8"):
                made = open_export(export_model(loaded, tokenizer, Path(work) / precision, int8=precision == "int8"))
                assert made is not None
                engines[f"onnx {precision}"] = Engine(made[0])
                log(f"exported in {precision}")
        except (MissingExtra, CheckpointError) as error:
            left_out["onnx"] = str(error)
        yield engines, tokenizer, left_out


def _speedups(cells: list[dict[str, Any]], first: str) -> dict[str, dict[str, float]]:
    """Return how many times the tokens per second of the first each one does: the least, the geometric mean over all cells, the most."""
    base = {(cell["length"], cell["batch"]): cell["tokens_per_second"] for cell in cells if cell["backend"] == first}
    ratios: dict[str, list[float]] = {}
    for cell in cells:
        ratios.setdefault(cell["backend"], []).append(cell["tokens_per_second"] / base[cell["length"], cell["batch"]])
    return {name: {"least": min(one), "mean": float(np.exp(np.mean(np.log(one)))), "most": max(one)} for name, one in ratios.items()}


def _recommend(report: dict[str, Any], first: str) -> str:
    """Return which to take: the fastest of those that answer as the first does."""
    speedup, apart = report["speedup"], report["agreement"]
    fit = [name for name in speedup if name == first or apart[name]["same_top_1"] >= AGREES]
    best = max(fit, key=lambda name: speedup[name]["mean"])
    faster = max(speedup, key=lambda name: speedup[name]["mean"])
    hint = ""
    if faster != best:
        hint = (
            f"; {faster} is {speedup[faster]['mean']:.1f} times as fast as {first} but gives the same most probable token at only "
            f"{apart[faster]['same_top_1']:.1%} of {apart[faster]['num_rows']:,} masks on {report['agreement_on']}"
        )
    if best == first:
        return f"recommended: {first}" + (hint or (": nothing that was run is faster" if len(speedup) > 1 else ": nothing else was run"))
    one = speedup[best]
    how = {
        "torch bf16": "--precision bf16", "onnx fp32": "unmask export MODEL -o FOLDER",
        "onnx int8": "unmask export MODEL --int8 --data FILES -o FOLDER measures what it loses",
    }[best.partition(" (")[0]]  # fmt: skip
    return (
        f"recommended: {best}, {one['mean']:.1f} times the tokens/s of {first} ({one['least']:.1f} to {one['most']:.1f}), the same most "
        f"probable token at {apart[best]['same_top_1']:.1%} of {apart[best]['num_rows']:,} masks on {report['agreement_on']}: {how}{hint}"
    )


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return what was found as it is printed, below its headings."""
    head = ("backend", "tokens", "batch", "tokens/s", "p50 ms", "p95 ms")
    numbers = {"length": "d", "batch": "d", "tokens_per_second": ",.0f", "p50_milliseconds": ".2f", "p95_milliseconds": ".2f"}
    return [head, *((cell["backend"], *(format(cell[name], how) for name, how in numbers.items())) for cell in report["cells"])]
