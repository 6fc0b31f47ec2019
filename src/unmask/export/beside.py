"""An ONNX graph that reads its weights from the safetensors file beside it: the folder starts without torch, and nothing is kept twice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..data.tokenizer import load_tokenizer
from ..errors import CheckpointError, require
from ..infer.backends.onnx import MODEL
from ..model.load import load_model
from .onnx import export_model

WEIGHTS = "model.safetensors"
SMALL_BYTES = 64  # what is smaller stands in the graph itself


def write_graph(folder: str | Path) -> Path:
    """Write FOLDER/model.onnx for a folder whose weights are stored in fp16, and return its path; it computes in fp32, as torch does.

    What is not found in the file is written into the graph.
    Raises: CheckpointError for a folder whose weights are stored in another precision.
    """
    onnx = require("onnx", extra="onnx", why="a graph for ONNX Runtime")
    folder = Path(folder)
    tokenizer = load_tokenizer(folder)
    with tempfile.TemporaryDirectory(prefix="unmask-graph-") as work:
        export_model(load_model(folder, tokenizer=tokenizer), tokenizer, work)
        model = onnx.load(Path(work) / MODEL)
    stored = (folder / WEIGHTS).read_bytes()
    graph, widened, kept = model.graph, [], []
    for weight in graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        half = array.astype(np.float16) if array.dtype == np.float32 and array.nbytes >= SMALL_BYTES else None
        place = stored.find(half.tobytes()) if half is not None and np.array_equal(half, array) else -1
        if half is None or place < 0:  # a constant, or a table of the architecture's, such as frequencies
            kept.append(weight)
            continue
        kept.append(_outside(onnx, f"{weight.name}_stored", half, place))
        widened.append(onnx.helper.make_node("Cast", [f"{weight.name}_stored"], [weight.name], to=onnx.TensorProto.FLOAT))
    inside = sum(onnx.numpy_helper.to_array(weight).nbytes for weight in kept if weight.data_location != onnx.TensorProto.EXTERNAL)
    if inside > len(stored) / 10:  # no more than tables is expected here
        raise CheckpointError(f"the weights in '{folder / WEIGHTS}' are not stored in fp16; store the model in fp16 first")
    nodes = [*widened, *graph.node]
    for part, values in ((graph.initializer, kept), (graph.node, nodes)):
        del part[:]
        part.extend(values)
    onnx.save_model(model, folder / MODEL)
    onnx.checker.check_model(folder / MODEL)
    return folder / MODEL


def _outside(onnx: Any, name: str, array: np.ndarray, place: int) -> Any:
    """Return a weight that is said to lie in the safetensors file, from a byte on."""
    tensor = onnx.TensorProto(
        name=name, data_type=onnx.TensorProto.FLOAT16, dims=array.shape, data_location=onnx.TensorProto.EXTERNAL
    )  # fmt: skip
    for key, value in (("location", WEIGHTS), ("offset", place), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
