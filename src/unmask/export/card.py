"""The README.md of an exported model: what it is, how to load it, and what was measured before it was written."""

from __future__ import annotations

import json
import shlex
from typing import Any

from ..train.card import escape, is_local, shown

# by the end of the class's name: what a hub calls it, how it is used, and where the answers stand
KINDS = {
    "ForMaskedLM": ("fill-mask", "fill . {example}", "Filler", "fill"),
    "ForSequenceClassification": ("text-classification", "predict . {example}", "Classifier", "predict"),
    "ForTokenClassification": ("token-classification", "predict . {example}", "Tagger", "predict"),
    "ForQuestionAnswering": ("question-answering", "predict . --data FILE", "", ""),
}
PLACES = {"ForMaskedLM": "np.flatnonzero(ids == tokenizer.token_to_id({mask!r}))", "ForSequenceClassification": "np.array([0])"}


def card(name: str, report: dict[str, Any], table: list[tuple[str, ...]], mask: str) -> str:
    """Return the README.md of an export; `report` is what export.json holds, `mask` the tokenizer's mask token."""
    head, parity = report["head"], report["parity"]
    pipeline, command, use, method = KINDS[head]
    front = ["library_name: onnx", f"pipeline_tag: {pipeline}", "tags:", "- onnx", "- unmask"]
    if not is_local(name):
        front.append(f"base_model: {json.dumps(name)}")
    example = f"This is the {mask}." if head == "ForMaskedLM" else "This is a text."
    best = "[tokenizer.id_to_token(number) for number in np.argsort(-logits[0])[:5]]" if head == "ForMaskedLM" else "logits"
    places = PLACES.get(head, "np.arange(ids.size)").format(mask=mask)
    parts = [
        "\n".join(["---", *front, "---", ""]),
        f"# {escape(shown(name))}, exported to ONNX ({report['precision']})\n",
        f"Made by Unmask {report['versions']['unmask']}; it runs without torch and transformers, by `pip install 'unmask[onnx]'`.\n",
        f"```sh\nunmask {command.format(example=shlex.quote(example))}\n```\n",
        f'```python\nfrom unmask import {use}\n\nprint({use}.load(".").{method}({example!r}))\n```\n' if use else "",
        f"With ONNX Runtime alone:\n\n```python\n{_RUNTIME.format(example=example, places=places, best=best)}```\n",
        _INPUTS,
        "## Measured before it was written\n",
        f"On {escape(report['text'])}; {escape(report['machine']['cpu'])}, {report['machine']['num_threads']} threads. tokens/s: many "
        "texts together; p50 and p95: the time of one text alone. Agreement is with the first row, on "
        f"{parity['num_rows']:,} answers, whose logits reach {parity['max_logit']:.1f}.\n",
        markdown(table),
    ]
    if report["precision"] == "int8":
        parts.append(
            "Weights and embeddings are 8-bit integers with a scale for each row; activations are rounded to 8 bits as they come.\n"
        )
    return "\n".join(part for part in parts if part)


_RUNTIME = """import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx")
ids = np.array([tokenizer.encode({example!r}).ids])
feeds = {{
    "input_ids": ids,
    "attention_mask": np.ones_like(ids),
    "token_type_ids": np.zeros_like(ids),
    "label_positions": {places},
}}
names = [value.name for value in session.get_inputs()]
(logits,) = session.run(None, {{name: feeds[name] for name in names}})
print({best})
"""
_INPUTS = """`input_ids`, `attention_mask` (and `token_type_ids`, where the model has them) are (batch, length), padded anywhere.
`label_positions` (N,) says at which tokens the answer is wanted, as places in the flattened (batch x length), in any order; `logits` are
(N, classes), fp32. All inputs are int64; every dimension may vary.
"""


def markdown(table: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    head, *rows = table
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
