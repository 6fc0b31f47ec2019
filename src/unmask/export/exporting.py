"""`unmask.export`: a model becomes a folder that runs without torch, if what is measured first allows it."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data.manifest import write_manifest
from ..data.tokenizer import load_tokenizer
from ..errors import CheckpointError, ConfigError, GateError, require
from ..evaluate.evaluation import model_folder, run_defaults
from ..evaluate.text import Text, open_text
from ..infer.backends import is_export, open_export
from ..infer.backends.onnx import MODEL
from ..infer.engine import Engine
from ..infer.measure import drawn
from ..model.heads import reads_texts
from ..model.load import HEADS, check_fit, load_model
from ..tasks.kinds import TASKS, task_of
from ..train.card import shown
from ..train.runlog import cpu_name
from . import gate
from .card import card
from .labelled import Labelled
from .onnx import export_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPORT = "export.json"
FORMATS = ("onnx",)
MASKED = "ForMaskedLM"
MAX_DROP, MAX_TOKENS = 0.005, 50_000
# of the processor, that int8 is fast or slow by
INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm"}
VERSIONS = ("torch", "transformers", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What was exported: the folder, and what was measured, as in export.json."""

    folder: Path
    report: dict[str, Any]
    table: list[tuple[str, ...]]


def export(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    *,
    to: str = "onnx",
    int8: bool = False,
    max_drop: float = MAX_DROP,
    data: str | Path | Sequence[str | Path] | None = None,
    max_tokens: int = MAX_TOKENS,
    tokenizer: Any = None,
    log: Callable[[str], None] = lambda line: None,
    **reading: Any,
) -> Exported:
    """Write a model into a new folder as an ONNX file, once it gives the answers of the model it was made from.

    It is a masked language model, or one that is fine-tuned for a task. `int8` is measured on `data` (what `read` takes, or a packed
    corpus, at most `max_tokens` of it; for a task, labelled files; of a run, by default what it has held out), and refused where it loses
    more than `max_drop` of the masked accuracy, or of the task's own number, or is not faster than fp32 with torch and with ONNX Runtime.
    `log` is told how far it is; the rest is for `read`, or fields of TaskData.
    Raises: GateError, with what was measured; CheckpointError, ConfigError, DataError, MissingExtra, RunError.
    """
    if to not in FORMATS:
        raise ConfigError(f"to = {to!r}; allowed: {', '.join(FORMATS)}")
    if not 0 <= max_drop < 1:
        raise ConfigError(f"max_drop = {max_drop:g}; it is a share of all masked tokens: 0 or more, below 1")
    if max_tokens < 0:
        raise ConfigError(f"max_tokens = {max_tokens}; allowed: 0 (all), or how many tokens to measure on")
    for module in ("onnx", "onnxruntime"):
        require(module, extra="onnx", why="an export to ONNX")
    folder = Path(output).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"'{folder}' exists, and nothing is written over; choose another name, or remove it")
    run = Path(model).expanduser() if isinstance(model, (str, Path)) else None
    name, loaded, tokenizer = _load(model, tokenizer)
    kind = next((kind for kind, ending in TASKS.items() if type(loaded).__name__.endswith(ending)), None)
    text: Text | Labelled | None = None
    if kind is not None and (int8 or data is not None):
        sources = [data] if isinstance(data, (str, Path)) else data
        text = Labelled.read(kind, loaded, tokenizer, run, None if sources is None else list(map(str, sources)), reading)
    elif kind is None:
        data = run_defaults(run, None).get("data") if data is None and run is not None else data
        text = None if data is None else open_text(data, tokenizer, max_tokens=max_tokens, **reading)
    if text is None and int8:
        what = "labelled data" if kind else "text"
        raise ConfigError(f"int8 is measured on your {what} before it may be used: name some, --data FILES; or export in fp32")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside the folder, so that it comes to be in one step, whole
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=folder.parent) as work:
        made, report, table = _make(name, loaded, tokenizer, Path(work), text, int8, max_drop, log)
        os.replace(made, folder)
    return Exported(folder, report, table)


def _load(model: Any, tokenizer: Any) -> tuple[str, PreTrainedModel, Any]:
    """Return the name of a model, the model on the CPU, and its tokenizer."""
    if not isinstance(model, (str, Path)):
        if tokenizer is None:
            raise ConfigError("a model that is given as an object needs its tokenizer beside it: export(model, output, tokenizer=...)")
        check_fit(model, tokenizer)
        name = str(getattr(model, "name_or_path", "") or type(model).__name__)
        return name, model if model.device.type == "cpu" else copy.deepcopy(model).cpu(), tokenizer
    folder = model_folder(model)
    if is_export(folder):
        raise CheckpointError(f"'{model}' is an exported model already; name the model that it was made from")
    if not hasattr(tokenizer, "get_vocab"):
        tokenizer = load_tokenizer(folder if tokenizer is None else tokenizer)
    kind = TASKS.get(task_of(folder) or "", MASKED)
    head: Any = next(head for head, (auto, *_) in HEADS.items() if auto.endswith(kind))
    return str(model), load_model(folder, head=head, tokenizer=tokenizer), tokenizer


def _make(
    name: str,
    model: PreTrainedModel,
    tokenizer: Any,
    work: Path,
    text: Text | Labelled | None,
    int8: bool,
    max_drop: float,
    log: Callable[[str], None],
) -> tuple[Path, dict[str, Any], list[tuple[str, ...]]]:
    """Export a model into a folder in `work`, if what is measured allows it, and return the folder, its report and the table in it."""
    engines, sizes = {"torch fp32": Engine(model)}, {"torch fp32": sum(one.nbytes for one in model.parameters())}
    report: dict[str, Any] = {"format": "onnx", "precision": "int8" if int8 else "fp32", "model": shown(name)}
    length = engines["torch fp32"].max_length
    if text is None:
        requests = drawn(tokenizer, range(4, min(132, length or 132) + 1, 2), every=gate.EVERY)
        report |= {"text": "no text: tokens drawn at random", "num_tokens": sum(len(one.input_ids) for one in requests)}
        if reads_texts(model):
            requests = [replace(one, positions=[0], labels=None) for one in requests]
    elif isinstance(text, Labelled):
        requests = text.requests(gate.PARITY_SEQUENCES)
        report |= {"text": f"{len(text.items):,} labelled items", "num_tokens": sum(len(one.input_ids) for one in requests)}
    else:
        requests = gate.sequences(text, length)
        report |= {"text": f"{len(text.order):,} documents of {text.num_tokens:,} tokens", "num_tokens": text.num_tokens}

    def add(precision: str) -> Path:
        made = export_model(model, tokenizer, work / precision, int8=precision == "int8")
        sizes[f"onnx {precision}"] = sum(file.stat().st_size for file in made.glob(f"{MODEL}*"))
        log(f"exported in {precision}: {sizes[f'onnx {precision}'] / 1e6:,.1f} MB")
        opened = open_export(made)
        assert opened is not None
        engines[f"onnx {precision}"] = Engine(opened[0])
        return made

    made = add("fp32")
    first, second = engines.values()
    head = str(second.backend.info["head"])  # type: ignore[attr-defined]
    parity = gate.compared(first, second, requests, head=head)
    report |= {"parity": parity.to_dict(), "tolerance": {"max_difference": gate.TOLERANCE, "same_top_1": gate.SAME}}
    log(f"the same answer at {parity.same_top_1:.2%} of {parity.num_rows:,} places, {parity.max_difference:.1e} apart at most")
    if not gate.holds(parity):
        raise GateError(
            f"the exported model does not give the answers of '{name}', so nothing was written: the same answer at "
            f"{parity.same_top_1:.2%} of {parity.num_rows:,} places, largest difference {parity.max_difference:.2g} of logits up to "
            f"{parity.max_logit:.3g}; allowed: {gate.SAME:.1%}, and {gate.TOLERANCE:g} of the largest logit"
        )
    metric, higher = text.metric if isinstance(text, Labelled) else (gate.METRIC, True)
    points: Mapping[str, Mapping[str, float]] = {}
    if int8:
        assert text is not None
        made = add("int8")
        points, change, about = text.quality(engines, log) if isinstance(text, Labelled) else gate.quality(engines, text, log)
        report |= {"max_drop": max_drop, f"change_of_{metric}": change, **about}
    rows = gate.rows(engines, sizes, requests, points, metric, head=head)
    table = gate.table(rows, metric)
    report |= {"table": [row.to_dict() for row in rows], "machine": machine(), "versions": versions()}
    ways = list(points.values())
    also = {name: (ways[0][name], ways[-1][name]) for name in (text.also if int8 and isinstance(text, Labelled) else ())}
    wrong = gate.faults(rows, max_drop, metric, higher, also) if int8 else []
    if wrong:
        raise GateError(f"int8 is refused, and nothing was written: {'; '.join(wrong)}\n\n" + "\n".join(lines(table)))
    report |= {"head": head}
    (made / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (made / "README.md").write_text(card(name, report, table, tokenizer.mask_token), encoding="utf-8")
    write_manifest(made)
    return made, report, table


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    import torch

    instructions = sorted(cpu_flags() & INSTRUCTIONS)
    return {"cpu": cpu_name(), "num_threads": torch.get_num_threads(), "instructions": instructions}


def cpu_flags() -> set[str]:
    """Return what the processor can do, as Linux names it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    return {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}


def versions() -> dict[str, str]:
    """Return the versions of what made the export."""
    return {"unmask": __version__} | {package: importlib.metadata.version(package) for package in VERSIONS}


def lines(table: list[tuple[str, ...]]) -> list[str]:
    """Return a table as lines of text."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(f"{cell:>{width}}" if column else f"{cell:{width}}" for column, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
