"""The graph of an encoder and its head: padded ids and their mask go in, what the head says at the tokens that are asked for comes out.

Inside, tokens are laid end to end, so that only attention sees padding; the last layer computes only what is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .encoders import Block, Encoder, Step
from .graph import MICROSOFT, Graph

if TYPE_CHECKING:
    from torch import Tensor

FAR = np.float32(-1e9)  # added to the weight of what must not be attended to


def write(graph: Graph, encoder: Encoder, head: list[Step], *, mean: bool = False) -> str:
    """Write an encoder and its head into a graph and return the name of the logits, (N, C).

    Its inputs are input_ids and attention_mask, (B, L), token_type_ids where the encoder tells the sentences of a pair apart, and
    label_positions, (N,): places in the flattened (B * L), in any order. `mean`: the head reads the mean of a text's tokens.
    """
    x = _Body(graph, encoder, mean).write()
    for step in head:
        x = graph.layer(x, step)
    return x


class _Body:
    def __init__(self, graph: Graph, encoder: Encoder, mean: bool) -> None:
        self.graph, self.encoder, self.mean = graph, encoder, mean
        self.width = int(encoder.blocks[0].query[0].shape[0])
        op = graph.op
        self.ids = graph.input("input_ids", "batch", "length")
        self.mask = graph.input("attention_mask", "batch", "length")
        self.types = graph.input("token_type_ids", "batch", "length") if encoder.types is not None and len(encoder.types) > 1 else None
        self.asked = graph.input("label_positions", "labels")
        shape = op("Shape", self.mask)
        self.batch, self.length = op("Gather", shape, np.array([0])), op("Gather", shape, np.array([1]))
        flat = op("Reshape", self.mask, np.array([-1]))
        self.rows = op("Reshape", op("NonZero", flat), np.array([-1]))  # where in (B * L) each token stands, (T,)
        self.where = op("Max", op("Sub", op("CumSum", flat, np.array(0)), np.array([1])), np.array([0]))  # the token at each place
        self.steps = self._flat(op("Sub", op("CumSum", self.mask, np.array(1)), np.array([1])))  # of a token in its text, from 0
        self.padding = op("Cast", self.mask, to=graph.onnx.TensorProto.INT32)
        self._cached: dict[Any, Any] = {}

    def _flat(self, padded: str) -> str:
        """Return what stands at the tokens of something padded. Shapes: (B, L) to (T,)."""
        return self.graph.op("Gather", self.graph.op("Reshape", padded, np.array([-1])), self.rows)

    def _count(self, rows: str) -> str:
        """Return 0, 1, 2 ... for the rows of something."""
        op = self.graph.op
        return op("Range", np.array(0), op("Squeeze", op("Shape", rows, end=1)), np.array(1))

    def write(self) -> str:
        """Return the hidden states that the head reads, (N, D)."""
        encoder, graph = self.encoder, self.graph
        x = self._embed()
        for block in encoder.blocks[:-1]:
            x = self._block(x, block, last=False)
        x = self._block(x, encoder.blocks[-1], last=not self.mean)
        x = x if encoder.final_norm is None else graph.norm(x, encoder.final_norm)
        return self._means(x) if self.mean else x

    def _embed(self) -> str:
        encoder, graph = self.encoder, self.graph
        x = graph.embedding(self._flat(self.ids), encoder.words)
        if encoder.types is not None:
            kinds = self._flat(self.types) if self.types else np.array([0])
            x = graph.op("Add", x, graph.op("Gather", graph.weight(encoder.types), kinds))
        if encoder.positions is not None:
            x = graph.op("Add", x, graph.op("Gather", graph.weight(encoder.positions), self.steps))
        x = graph.norm(x, encoder.norm)
        return x if encoder.widen is None else graph.layer(x, encoder.widen)

    def _block(self, x: str, block: Block, *, last: bool) -> str:
        graph = self.graph
        inside = graph.norm(x, block.attention_norm) if block.before else x
        asking = inside
        if last:
            chosen = graph.op("Gather", self.where, self.asked)
            asking, x = (graph.op("Gather", one, chosen) for one in (inside, x))
        x = graph.op("Add", x, graph.layer(self._attend(asking, inside, block, last=last), block.out))
        if not block.before:
            x = graph.norm(x, block.attention_norm)
        inside = graph.norm(x, block.mlp_norm) if block.before else x
        inner = graph.layer(graph.linear(inside, *block.up), block.act)
        if block.gate is not None:
            inner = graph.op("Mul", inner, graph.linear(inside, *block.gate))
        x = graph.op("Add", x, graph.layer(inner, block.down))
        return x if block.before else graph.norm(x, block.mlp_norm)

    def _attend(self, asking: str, inside: str, block: Block, *, last: bool) -> str:
        """Return what tokens take from those of their text. Shapes: asking (Q, D), inside (T, D), returns (Q, D)."""
        graph = self.graph
        query, key, value = graph.linear(asking, *block.query), graph.linear(inside, *block.key), graph.linear(inside, *block.value)
        if block.inv_freq is not None:
            query, key = self._turn(query, block.inv_freq, last), self._turn(key, block.inv_freq, False)
        slots, back = self._slots() if last else (self.where, self.rows)
        padded = [self._pad(query, slots), self._pad(key, self.where), self._pad(value, self.where)]
        bias = "" if block.window is None else self._near(block.window, last)
        mixed = graph.op(
            "MultiHeadAttention", *padded, "", self.padding, bias, domain=MICROSOFT, num_heads=self.encoder.num_heads
        )  # fmt: skip
        return graph.op("Gather", graph.op("Reshape", mixed, np.array([-1, self.width])), back)

    def _pad(self, rows: str, places: str) -> str:
        """Return rows in their places, (B, L, D)."""
        if "shape" not in self._cached:
            self._cached["shape"] = self.graph.op("Concat", self.batch, np.array([-1, self.width]), axis=0)
        return self.graph.op("Reshape", self.graph.op("Gather", rows, places), self._cached["shape"])

    def _slots(self) -> tuple[str, str]:
        """Return which label stands in each place of (B, M), M the most labels of a text, and the place of each label."""
        if "slots" not in self._cached:
            op, size = self.graph.op, self.graph.op("Shape", self.asked)
            positions, order = self.graph.ops("TopK", 2, self.asked, size, axis=0, largest=0, sorted=1)
            text = op("Div", positions, self.length)
            zeros = op("Expand", np.array([0]), size)
            counts = op(
                "ScatterElements", op("Expand", np.array([0]), self.batch), text, op("Expand", np.array([1]), size), reduction="add"
            )
            first = op("Gather", op("CumSum", counts, np.array(0), exclusive=1), text)
            most = op("ReduceMax", counts, keepdims=1)
            places = op("Add", op("Mul", text, most), op("Sub", self._count(self.asked), first))
            labels = op("ScatterElements", op("Expand", np.array([0]), op("Mul", self.batch, most)), places, order)
            self._cached["slots"] = labels, op("ScatterElements", zeros, order, places)
        return self._cached["slots"]

    def _turn(self, x: str, inv_freq: Tensor, asked: bool) -> str:
        """Return queries or keys turned by their positions. Source: Su et al. 2021."""
        graph, op = self.graph, self.graph.op
        key = ("turn", inv_freq.data_ptr(), asked)
        if key not in self._cached:
            steps = op("Gather", self.steps, op("Gather", self.where, self.asked)) if asked else self.steps
            column = op("Unsqueeze", op("Cast", steps, to=graph.onnx.TensorProto.FLOAT), np.array([1]))
            angles = op("Mul", column, graph.weight(inv_freq))
            self._cached[key] = op("Unsqueeze", self._count(steps), np.array([0])), op("Cos", angles), op("Sin", angles)
        rows, heads = op("Unsqueeze", x, np.array([0])), self.encoder.num_heads
        return op("Squeeze", op("RotaryEmbedding", rows, *self._cached[key], domain=MICROSOFT, num_heads=heads), np.array([0]))

    def _near(self, window: int, last: bool) -> str:
        """Return what is added so that tokens see no further than a window, (1, 1, L, L), or (B, 1, M, L) in the last layer."""
        key = ("near", window, last)
        if key not in self._cached:
            op = self.graph.op
            steps = op("Range", np.array(0), op("Squeeze", self.length), np.array(1))
            asking = op("Reshape", steps, np.array([1, 1, -1, 1]))
            if last:
                columns = op("Gather", op("Mod", self.asked, self.length), self._slots()[0])
                asking = op("Reshape", columns, op("Concat", self.batch, np.array([1, -1, 1]), axis=0))
            far = op("Greater", op("Abs", op("Sub", asking, steps)), np.array(window))
            self._cached[key] = op("Where", far, FAR, np.float32(0))
        return self._cached[key]

    def _means(self, x: str) -> str:
        """Return the mean of the tokens of the text that each label stands in. Shapes: (T, D) to (N, D)."""
        op = self.graph.op
        mask = op("Cast", self.mask, to=self.graph.onnx.TensorProto.FLOAT)
        held = op("Mul", self._pad(x, self.where), op("Unsqueeze", mask, np.array([2])))
        means = op("Div", op("ReduceSum", held, np.array([1]), keepdims=0), op("ReduceSum", mask, np.array([1]), keepdims=1))
        return op("Gather", means, op("Div", self.asked, self.length))
