"""What training takes of a device's memory and of a disk, counted on a model and a batch that have shapes and no content."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..data.batch import PackedBatch
from ..model.attention import SHORT, STEP
from ..model.flops import num_parameters
from ..model.heads import forward_packed
from ..model.load import quiet_transformers, set_attention
from . import lora
from .compiling import encoder_layers
from .loss import masked_loss_sum
from .optim import OptimConfig, group_parameters
from .recompute import recompute_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Change = Callable[["PreTrainedModel"], Any]
FP32 = 4  # bytes of a weight, of its gradient, of each number that an optimizer remembers of it
Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # by name: what they are made of, their shape
NEWTON_SCHULZ = 5  # steps of Muon's iteration (torch's default)


@dataclass(frozen=True)
class Footprint:
    """Sizes in bytes, but for the numbers of parameters; `weights` in fp32, as they are trained.

    optimizer: what AdamW and Muon remember. highest: what a forward and backward pass of a micro-batch holds at its fullest beside weights
    and gradients: activations, copies of the weights in the precision of the products, logits and their gradient. logits: of it, the
    logits alone. gathered: what a sharded model holds whole at a time, all that is outside of the layers and two layers, in fp32.
    model_file, state_file: of a checkpoint. muon_flops: of a step of Muon, whatever the batch.
    """

    num_parameters: int
    num_trainable: int
    weights: int
    gradients: int
    optimizer: int
    highest: int
    logits: int
    gathered: int
    model_file: int
    state_file: int
    muon_flops: float


class Live(TorchDispatchMode):
    """Follow, while the context lasts, how many bytes the tensors that it makes take: `now`, and at the highest."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.highest = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take(tensor.untyped_storage())
        return result

    def _take(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:  # a view, or changed in place
            return

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.highest = max(self.highest, self.now)


def hollow(config: PreTrainedConfig, change: Change | None = None) -> tuple[PreTrainedModel, FakeTensorMode]:
    """Return the stock masked language model of a configuration, packed, on tensors without content; and what makes more of those.

    `change` is what is done to the model before it is trained (LoRA's matrices).
    """
    from transformers import AutoModelForMaskedLM

    with torch.device("meta"), quiet_transformers():
        model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
        if change is not None:
            change(model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:  # on the meta device nothing runs for which a kernel asks where it is
        model.to_empty(device="cpu")
    model.tie_weights()
    set_attention(model, "packed")
    return model.train(), mode


def count(
    config: PreTrainedConfig,
    optim: OptimConfig,
    *,
    micro_tokens: int,
    length: int,
    probability: float,
    device_type: str = "cpu",
    precision: str = "fp32",
    change: Change | None = None,
    again: bool = False,
) -> tuple[Footprint, PreTrainedModel]:
    """Return what training a model takes, and the model without content that it was counted on.

    `length` is that of the segments of a micro-batch, `probability` the share of their content that is masked; `change` as in `hollow`;
    `again` has the layers forget their activations and make them again.
    """
    model, mode = hollow(config, change)
    groups = group_parameters(model, muon=optim.optimizer == "muon")
    trained = [parameter for group in groups.values() for parameter in group]
    state: Tensors = {"rng.cpu": (torch.uint8, torch.get_rng_state().shape)}
    for number, names in enumerate([("muon",)] * bool(groups["muon"]) + [("decay", "no_decay")]):
        for index, parameter in enumerate(parameter for name in names for parameter in groups[name]):
            for name, shape in remembered(parameter, muon=names == ("muon",)).items():
                state[f"optim.{number}.{index}.{name}"] = (torch.float32, shape)
    optimizer = sum(FP32 * math.prod(shape) for name, (_, shape) in state.items() if name.startswith("optim."))
    if change is not None:
        state |= {f"{lora.PREFIX}{name}": (value.dtype, value.shape) for name, value in model.named_parameters() if value.requires_grad}
    weights: Tensors = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen and not lora.is_matrix(name):  # tied weights are written once, LoRA's are merged
            weights[name.replace(".base_layer.", ".")] = (value.dtype, value.shape)
        seen.add(id(value))
    if again:
        recompute_layers(model)
    highest, logits = fullest(model, mode, trained, micro_tokens, length, probability, device_type, precision)
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in encoder_layers(model, every=True)]
    found = Footprint(
        num_parameters=num_parameters(model),
        num_trainable=sum(parameter.numel() for parameter in trained),
        weights=FP32 * num_parameters(model),
        gradients=FP32 * sum(parameter.numel() for parameter in trained),
        optimizer=optimizer,
        highest=highest,
        logits=logits,
        gathered=FP32 * (num_parameters(model) - sum(layers) + 2 * max(layers, default=0)),
        model_file=safetensors_bytes(weights, {"format": "pt"}),
        state_file=safetensors_bytes(state),
        muon_flops=sum(newton_schulz(*sorted(parameter.shape)) for parameter in groups["muon"]),
    )
    return found, model


def remembered(parameter: Tensor, *, muon: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what an optimizer remembers of a parameter."""
    shape = tuple(parameter.shape)
    return {"momentum_buffer": shape} if muon else {"step": (), "exp_avg": shape, "exp_avg_sq": shape}


def safetensors_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> int:
    """Return the size of a safetensors file: eight bytes, a header of JSON that is filled up to a multiple of eight, the tensors."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    place = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-item[1][0].itemsize, item[0])):  # as the format lays them
        end = place + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": "U8" if dtype == torch.uint8 else "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + place


def newton_schulz(rows: int, columns: int) -> float:
    """Return the floating-point operations that Muon spends on a matrix of at most as many rows as columns."""
    return NEWTON_SCHULZ * (4.0 * rows**2 * columns + 2.0 * rows**3)


def fullest(
    model: PreTrainedModel,
    mode: FakeTensorMode,
    trained: list[Tensor],
    num_tokens: int,
    length: int,
    probability: float,
    device_type: str,
    precision: str,
) -> tuple[int, int]:
    """Return how many bytes a forward and backward pass holds at its fullest beside weights and gradients, and those of the logits.

    A GPU's attention kernel keeps no weights, and nothing else of a layer's activations depends on the length: for a GPU short segments
    are counted, and what their attention weights take is taken off.
    """
    segments = -(-num_tokens // length)
    labels = max(1, round(probability * (num_tokens - 2 * segments)))
    short = length if device_type == "cpu" else SHORT + STEP  # the shortest that are attended in the format of the products, as there
    bounds = torch.tensor([*range(0, num_tokens, short), num_tokens], dtype=torch.int32)
    with mode:
        batch = PackedBatch(
            input_ids=torch.zeros(1, num_tokens, dtype=torch.long),
            position_ids=torch.zeros(1, num_tokens, dtype=torch.long),
            cu_seqlens=bounds,
            max_seqlen=min(short, num_tokens),
            label_positions=torch.zeros(labels, dtype=torch.long),
            labels=torch.zeros(labels, dtype=torch.long),
            documents=torch.zeros(len(bounds) - 1, dtype=torch.long),
            num_tokens=num_tokens,
        )
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    with Live() as live:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = forward_packed(model, batch, spare=True)
        spare = 0 if device_type == "cpu" else len(logits) - labels  # only the CPU's rows come in few sizes
        row = logits.shape[1] * logits.element_size()
        size = (len(logits) - spare) * row
        loss = masked_loss_sum(logits, batch.labels)
        del logits
        loss.backward()
    highest = live.highest
    if device_type != "cpu":
        highest -= 2 * spare * row
        config: Any = model.config
        number = 2 if precision == "bf16" else 4
        highest -= config.num_hidden_layers * config.num_attention_heads * num_tokens * short * number
    return highest, size
