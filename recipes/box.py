"""Make a run's model the one in the box: in sixteen bits, measured against what it was, with a graph for ONNX Runtime, and its card.

    python recipes/box.py RUN --data HELD_OUT [HELD_OUT ...]   # writes src/unmask/box/model, and docs/box.json, where its numbers are kept
    python recipes/box.py RUN --untrained FOLDER               # the same architecture with new weights, to measure beside it

The weights are stored in fp16 or bf16, whichever answers more like fp32 on the text; config.json says float32, so that everything that
loads the folder computes in fp32. Refused (exit code 3) where more than 0.0005 of the masked accuracy is lost. docs/box.json is filled by
bench/box.py, which makes the tables and the card of it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unmask import box
from unmask.config import read_toml
from unmask.data.manifest import write_manifest
from unmask.data.tokenizer import load_tokenizer
from unmask.errors import GateError, UnmaskError
from unmask.evaluate.text import open_text
from unmask.export.beside import write_graph
from unmask.export.gate import quality, sequences
from unmask.infer.backends.onnx import OnnxBackend
from unmask.infer.engine import Engine
from unmask.infer.measure import agreement
from unmask.model.load import load_model, save_model

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "box.json"
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NUMBERS = ("masked_loss", "masked_perplexity", "masked_accuracy")
HELD_OUT = (*NUMBERS, "num_masked_tokens", "masks_fingerprint", "unigram", "untrained")
MAX_DROP = 0.0005
LARGEST = 25e6  # bytes of the folder


def ship(run: Path, data: list[Path], folder: Path, results: Path, max_tokens: int) -> None:
    """Write the folder of the model in the box from a run's, and what was measured into the results."""
    source = run / "model"
    tokenizer = load_tokenizer(source)
    model = load_model(source, tokenizer=tokenizer)
    text = open_text(data, tokenizer, max_tokens=max_tokens)
    models = {"fp32": model, **{name: rounded(model, kind) for name, kind in TYPES.items()}}
    engines = {name: Engine(one) for name, one in models.items()}
    requests = sequences(text, engines["fp32"].max_length)
    apart = {name: agreement(engines["fp32"], engines[name], requests) for name in TYPES}
    chosen = min(TYPES, key=lambda name: apart[name].max_difference)
    order = ["fp32", *(name for name in TYPES if name != chosen), chosen]
    found, change, masks = quality({name: engines[name] for name in order}, text, say)
    storage = {
        "chosen": chosen, "text": [path.name for path in data], **masks, "accuracy_change": change, "agreement": {},
        "numbers": {name: {key: found[name][key] for key in NUMBERS} for name in order},
    }  # fmt: skip
    for name, one in apart.items():
        storage["agreement"][name] = asdict(one)
        say(f"{name}: {one.same_top_1:.4%} the same most probable token as fp32, logits up to {one.max_difference:.1e} apart")
    if not -change["difference"] <= MAX_DROP:
        raise GateError(f"{chosen} loses {-change['difference']:.5f} of the masked accuracy, and {MAX_DROP:g} is allowed")
    if chosen != "fp16":
        raise GateError("bf16 answers more like fp32 than fp16 does: some weights are beyond what fp16 holds; look at them first")
    with tempfile.TemporaryDirectory(prefix="box-", dir=folder.parent) as work:
        made = Path(work) / "model"
        save_model(load_model(source, tokenizer=tokenizer).to(TYPES[chosen]), tokenizer, made)  # type: ignore[arg-type]
        settings = json.loads((made / "config.json").read_text(encoding="utf-8"))
        (made / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (made / "model.safetensors").chmod(0o644)
        write_graph(made)
        there = agreement(Engine(load_model(made)), Engine(OnnxBackend(made)), requests)
        storage["agreement"]["onnx"] = asdict(there)
        if there.max_difference > 1e-3 * max(1.0, there.max_logit):
            raise GateError(f"ONNX Runtime answers otherwise than torch: logits up to {there.max_difference:.1e} apart")
        write_manifest(made)
        size = sum(path.stat().st_size for path in made.iterdir())
        if size > LARGEST:
            raise GateError(f"the folder has {size / 1e6:.1f} MB; at most {LARGEST / 1e6:.0f}")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    kept = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    kept |= {"run": about(run, model, size), "storage": storage}
    results.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"written to {folder} ({size / 1e6:.1f} MB) and {results}; next: python bench/box.py write")


def rounded(model: Any, kind: torch.dtype) -> Any:
    """Return a copy of a model with its weights as they are when they were stored in sixteen bits."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(weight.to(kind).float())
    return made


def about(run: Path, model: Any, size: int) -> dict[str, Any]:
    """Return what a run says of itself: what was spent, and on what."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    settings = read_toml(run / "config.toml")
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    corpus = Path(settings["data"]["sources"][0])
    report = json.loads((corpus / "report.json").read_text(encoding="utf-8")) if (corpus / "report.json").is_file() else {}
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()), "num_hidden_layers": model.config.num_hidden_layers,
        "hidden_size": model.config.hidden_size, "vocab_size": model.config.vocab_size, "bytes": size,
        "tokens": metrics["tokens"], "steps": metrics["last_step"], "minutes": metrics["seconds"] / 60, "seed": settings["train"]["seed"],
        "precision": settings["train"]["precision"], "masking": settings["masking"], "optim": settings["optim"],
        "max_length": settings["data"]["max_length"], "batch_tokens": settings["data"]["batch_tokens"],
        "hardware": {key: environment.get(key) for key in ("cpu", "num_threads", "cuda", "torch", "transformers")},
        "corpus": {key: report[key] for key in ("documents", "train", "heldout") if key in report},
        "heldout": {key: metrics[key] for key in HELD_OUT if key in metrics},
    }  # fmt: skip


def untrained(run: Path, folder: Path) -> None:
    """Write a model of a run's architecture as it is before training, with its tokenizer."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(0)
    source = run / "model" if (run / "model").is_dir() else run
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.float32)
    save_model(model, load_tokenizer(source), folder)
    say(f"written to {folder}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run (with --untrained, also one of its checkpoints)")
    parser.add_argument("--data", type=Path, nargs="+", help="held-out text, for what sixteen bits lose")
    parser.add_argument("--untrained", type=Path, help="write an untrained model into this folder, and no more")
    parser.add_argument("--output", type=Path, default=box.FOLDER)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--max-tokens", type=int, default=300_000, help="of the text to measure on")
    given = parser.parse_args(argv)
    try:
        if given.untrained is not None:
            untrained(given.run, given.untrained)
        elif not given.data:
            parser.error("name held-out text: --data FILES")
        else:
            ship(given.run, given.data, given.output, given.results, given.max_tokens)
    except UnmaskError as error:
        say(f"box: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
