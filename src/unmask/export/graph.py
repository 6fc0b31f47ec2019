"""An ONNX graph that is written by hand: nodes, weights, and the layers that encoders are made of, in fp32 or int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError, require

if TYPE_CHECKING:
    from torch import Tensor

OPSET, IR_VERSION = 20, 10  # what ONNX Runtime reads since 1.18
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
# by the name of the module's class: transformers has several of each
GELU = {"GELUActivation": "none", "GELU": "none", "NewGELUActivation": "tanh", "GELUTanh": "tanh", "PytorchGELUTanh": "tanh"}
SILU = ("SiLU", "SiLUActivation")
PLAIN = {"ReLU": "Relu", "Tanh": "Tanh", "Sigmoid": "Sigmoid"}


class Graph:
    """Collects nodes and weights; a value is known by its name. `int8` lays products with weights down in eight bits."""

    def __init__(self, *, int8: bool = False) -> None:
        self.onnx = require("onnx", extra="onnx", why="an export to ONNX")
        self.int8 = int8
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.inputs: dict[str, list[str]] = {}
        self._known: dict[Any, str] = {}
        self._kept: list[Any] = []  # tensors whose addresses are keys of `_known`

    def input(self, name: str, *dims: str) -> str:
        """Declare an input, int64, whose dimensions have these names."""
        self.inputs[name] = list(dims)
        return name

    def op(self, kind: str, *inputs: Any, domain: str = "", **attributes: Any) -> str:
        """Add a node and return its output; what is no name among the inputs is made a constant."""
        (name,) = self.ops(kind, 1, *inputs, domain=domain, **attributes)
        return name

    def ops(self, kind: str, num_outputs: int, *inputs: Any, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node and return its outputs."""
        names = [one if isinstance(one, str) else self.constant(np.asarray(one)) for one in inputs]
        number = len(self.nodes)
        outputs = [f"{kind}_{number}" + (f"_{place}" if place else "") for place in range(num_outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, names, outputs, name=f"{kind}_{number}", domain=domain, **attributes))
        return outputs

    def constant(self, array: np.ndarray) -> str:
        """Return the name of a small array, which is written once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"constant_{len(self.weights)}"
            self.weights[self._known[key]] = array
        return self._known[key]

    def weight(self, tensor: Tensor) -> str:
        """Return the name of a weight; one that is shared is written once."""
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in self._known:
            self._kept.append(tensor)
            self._known[key] = f"weight_{len(self.weights)}"
            self.weights[self._known[key]] = tensor.detach().float().contiguous().cpu().numpy()
        return self._known[key]

    # layers, over rows: (T, D)

    def linear(self, x: str, weight: Tensor, bias: Tensor | None) -> str:
        """Return x W^T + b. Shapes: x (T, D), weight (E, D), bias (E,), returns (T, E)."""
        if not self.int8:
            return self.op("Gemm", x, self.weight(weight), *([] if bias is None else [self.weight(bias)]), transB=1)
        table, scale = self.quantized(weight)
        columns = self.op("Transpose", table, perm=[1, 0])  # done once, when the file is loaded
        zero = np.zeros(weight.shape[0], dtype=np.int8)
        ends = [] if bias is None else [self.weight(bias)]
        return self.op("DynamicQuantizeMatMul", x, columns, scale, zero, *ends, domain=MICROSOFT)

    def quantized(self, weight: Tensor) -> tuple[str, str]:
        """Return the names of a weight's rows in eight bits, (E, D), and of what they are multiplied by, (E,)."""
        key = ("int8", weight.data_ptr(), tuple(weight.shape))
        if key not in self._known:
            self._kept.append(weight)
            rows = weight.detach().float().cpu().numpy()
            scale = np.maximum(np.abs(rows).max(1), 1e-12).astype(np.float32) / 127
            self._known[key] = f"int8_{len(self.weights)}"
            self.weights[self._known[key]] = np.rint(rows / scale[:, None]).astype(np.int8)
            self.weights[self._known[key] + "_scale"] = scale
        return self._known[key], self._known[key] + "_scale"

    def embedding(self, ids: str, table: Tensor) -> str:
        """Return the rows of a table. Shapes: ids (T,), table (V, D), returns (T, D)."""
        if not self.int8:
            return self.op("Gather", self.weight(table), ids)
        rows, scale = self.quantized(table)
        numbers = self.op("Cast", self.op("Gather", rows, ids), to=self.onnx.TensorProto.FLOAT)
        return self.op("Mul", numbers, self.op("Unsqueeze", self.op("Gather", scale, ids), np.array([1])))

    def norm(self, x: str, module: Any) -> str:
        """Return the layer normalisation of x; x itself where there is none."""
        if type(module).__name__ == "Identity":
            return x
        ends = [] if module.bias is None else [self.weight(module.bias)]
        return self.op("LayerNormalization", x, self.weight(module.weight), *ends, axis=-1, epsilon=float(module.eps))

    def layer(self, x: str, module: Any) -> str:
        """Return what a module makes of x: a product, a normalisation, or an activation (which may be named alone)."""
        name = module if isinstance(module, str) else type(module).__name__
        if name == "Linear":
            return self.linear(x, module.weight, module.bias)
        if name == "LayerNorm":
            return self.norm(x, module)
        if name in GELU:
            return self.op("Gelu", x, approximate=GELU[name])
        if name in SILU:
            return self.op("Mul", x, self.op("Sigmoid", x))
        if name in PLAIN:
            return self.op(PLAIN[name], x)
        raise CheckpointError(
            f"a layer of the kind {name} cannot be exported; allowed: Linear, LayerNorm, {', '.join([*GELU, *SILU, *PLAIN])}"
        )
