"""One side of bench/fill.py: a process that fills the mask of each sentence when it is told, and waits.

    python bench/fill_worker.py SIDE MODEL_FOLDER SENTENCES.json

SIDE is pipeline, pipeline:bf16 (batches of 32), unmask:fp32, unmask:bf16, unmask:int8 (an export), ort:int8 or openvino:bf16 (which give
logits at all positions).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from score_worker import answer

BATCH = 32
TOP = 5
Run = Callable[[list[str]], list[list[int]]]


def pipeline(folder: str, precision: str) -> Run:
    """Return the stock pipeline: as it comes, or in batches and bf16."""
    import torch
    import transformers

    tuned = precision == "bf16"
    options: dict[str, Any] = {"dtype": torch.bfloat16, "batch_size": BATCH} if tuned else {}
    fill = transformers.pipeline("fill-mask", model=folder, tokenizer=folder, device="cpu", top_k=TOP, **options)
    return lambda texts: [[one["token"] for one in found] for found in fill(texts)]


def unmask(folder: str, precision: str) -> Run:
    """Return Unmask's Filler, with torch or of an exported model."""
    from unmask import Filler

    filler = Filler.load(f"{folder}-int8") if precision == "int8" else Filler.load(folder, precision=precision)

    def run(texts: list[str]) -> list[list[int]]:
        return [[one.token_id for one in filled[0]] for filled in filler.fill(texts, top_k=TOP)]

    return run


def padded(folder: str) -> tuple[Any, Callable[[list[str], Callable[[Any, Any], Any]], list[list[int]]]]:
    """Return the tokenizer, and what runs texts in padded batches of like length through something that gives all logits."""
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def run(texts: list[str], forward: Callable[[Any, Any], Any]) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            batch = tokenizer([texts[place] for place in part], padding=True, return_tensors="np")
            logits = forward(batch["input_ids"].astype(np.int64), batch["attention_mask"].astype(np.int64))
            rows = logits[batch["input_ids"] == tokenizer.mask_token_id]
            top = np.argpartition(-rows, TOP, axis=-1)[:, :TOP]
            for place, row, ids in zip(part, rows, top, strict=True):
                found[place] = [int(token) for token in ids[np.argsort(-row[ids])]]
        return found

    return tokenizer, run


def stock_onnx(folder: str) -> Path:
    """Return the model as torch itself exports it to ONNX, logits at all positions."""
    import torch
    from transformers import AutoModelForMaskedLM

    path = Path(f"{folder}-stock/model.onnx")
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    dims = {0: torch.export.Dim("batch", min=2, max=1024), 1: torch.export.Dim("length", min=4, max=512)}
    ids = torch.randint(5, 1000, (3, 9))
    partial = path.with_name("partial.onnx")
    torch.onnx.export(
        Plain(), (ids, torch.ones_like(ids)), str(partial), input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_shapes={"input_ids": dims, "attention_mask": dims}, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    return partial.rename(path)


def ort(folder: str, precision: str) -> Run:
    """Return ONNX Runtime on a dynamically quantized model, as its documentation shows it."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = Path(f"{folder}-stock/int8.onnx")
    if not quantized.exists():
        quantize_dynamic(stock_onnx(folder), quantized, per_channel=True, weight_type=QuantType.QInt8)
    session = onnxruntime.InferenceSession(str(quantized), providers=["CPUExecutionProvider"])
    _, run = padded(folder)
    return lambda texts: run(texts, lambda ids, mask: session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0])


def openvino(folder: str, precision: str) -> Run:
    """Return OpenVINO, told that bf16 will do."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(stock_onnx(folder))), "CPU", {"INFERENCE_PRECISION_HINT": precision})
    _, run = padded(folder)
    return lambda texts: run(texts, lambda ids, mask: compiled({"input_ids": ids, "attention_mask": mask})["logits"])


def main(side: str, folder: str, sentences: str) -> None:
    """Answer each line of stdin, `fill N`: the first N sentences."""
    kind, _, precision = side.partition(":")
    run: Run = {"pipeline": pipeline, "unmask": unmask, "ort": ort, "openvino": openvino}[kind](folder, precision)
    texts = json.loads(Path(sentences).read_text(encoding="utf-8"))
    for line in sys.stdin:
        verb, _, number = line.strip().partition(" ")
        if verb == "stop":
            break
        start = time.perf_counter()
        found = run(texts[: int(number)])
        answer({"seconds": time.perf_counter() - start, "found": found})


if __name__ == "__main__":
    main(*sys.argv[1:])
