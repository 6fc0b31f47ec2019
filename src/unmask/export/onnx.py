"""A model as an ONNX file that ONNX Runtime runs: what it is made of is in body.py, whether it may be used is measured in gate.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..data.tokenizer import save_tokenizer, special_ids
from ..errors import CheckpointError, RunError, require
from ..infer.backends.onnx import KEY, MODEL
from ..model.load import max_positions
from .body import write
from .encoders import read
from .graph import IR_VERSION, MICROSOFT, OPSET, Graph

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST_BYTES = 2**30  # of weights within the file: protobuf ends at 2 GiB


def export_model(model: PreTrainedModel, tokenizer: Any, folder: str | Path, *, int8: bool = False) -> Path:
    """Write a model of any head that `encoders.HEADS` knows into a folder, with its tokenizer and configuration, and return the folder.

    Nothing is measured here. `int8` makes of weights eight bits a number, a scale a row; what they are multiplied with is rounded as it
    comes. The logits of every head are (N, C) at N label positions: C is the vocabulary, the labels, or 2 for start and end of an answer;
    a head for whole texts is asked at their first tokens.
    Raises: CheckpointError for what cannot be exported; MissingExtra; RunError when the disk is full or cannot be written.
    """
    encoder, head, kind = read(model)
    graph = Graph(int8=int8)
    mean = kind == "ForSequenceClassification" and getattr(model.config, "classifier_pooling", "cls") == "mean"
    logits = write(graph, encoder, head, mean=mean)
    info = {
        "version": __version__, "head": kind, "model_type": model.config.model_type, "precision": "int8" if int8 else "fp32",
        "max_length": max_positions(model), "pad_token_id": special_ids(tokenizer).pad,
    }  # fmt: skip
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(graph, logits, folder / MODEL, info)
        save_tokenizer(tokenizer, folder)
        model.config.save_pretrained(folder)
    except OSError as error:
        raise RunError(f"the export could not be written to '{folder}': {error}; make room or name another folder") from error
    return folder


def save(graph: Graph, logits: str, path: Path, info: dict[str, Any]) -> None:
    """Write a graph into a file, its weights beside it where they are too many for one."""
    onnx = require("onnx", extra="onnx", why="an export to ONNX")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [*graph.nodes, helper.make_node("Identity", [logits], ["logits"], name="logits")]
    inputs = [helper.make_tensor_value_info(name, kinds.INT64, dims) for name, dims in graph.inputs.items()]
    outputs = [helper.make_tensor_value_info("logits", kinds.FLOAT, ["labels", "classes"])]
    weights = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in graph.weights.items()]
    versions = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "unmask", inputs, outputs, weights), opset_imports=versions, ir_version=IR_VERSION,
        producer_name="unmask", producer_version=__version__,
    )  # fmt: skip
    helper.set_model_props(model, {KEY: json.dumps(info)})
    outside = sum(array.nbytes for array in graph.weights.values()) > LARGEST_BYTES
    options = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": f"{path.name}.data"} if outside else {}
    onnx.save_model(model, path, **options)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise CheckpointError(f"the model makes no valid ONNX file: {error}") from error
