"""Unmask: from raw text to a working masked language model."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> module that holds it; importing unmask imports none of them (no torch until a name is used)
_PUBLIC = {
    "UnmaskError": "errors",
    "box_model": "box",
    "read": "data.text",
    "pack": "data.pack",
    "train_tokenizer": "data.tokenizer",
    "load_tokenizer": "data.tokenizer",
    "TokenStore": "data.store",
    "load_model": "model.load",
    "build_model": "model.load",
    "Recipe": "train.recipe",
    "pretrain": "evaluate.runs",
    "adapt": "evaluate.runs",
    "resume": "evaluate.runs",
    "plan": "train.plan",
    "status": "train.status",
    "finetune": "evaluate.tasks",
    "evaluate_task": "evaluate.tasks",
    "doctor": "tasks.doctor",
    "Classifier": "tasks.classify",
    "LabelWords": "tasks.label_words",
    "Tagger": "tasks.ner",
    "Answerer": "tasks.qa",
    "Filler": "tasks.fill",
    "fill": "tasks.fill",
    "evaluate": "evaluate.evaluation",
    "compare": "evaluate.compare",
    "export": "export.exporting",
    "bench": "export.bench",
    "Scorer": "evaluate.pll",
    "score": "evaluate.pll",
    "cloze": "evaluate.cloze",
    "Cluster": "cluster.ray",
    "facts": "evaluate.cloze",
    "minimal_pairs": "evaluate.minimal_pairs",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'unmask' has no attribute '{name}'; public names: {', '.join(sorted(_PUBLIC))}")


def __dir__() -> list[str]:
    return __all__
