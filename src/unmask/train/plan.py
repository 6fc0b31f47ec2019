"""A run on paper: what it will take of memory, disk and time, on devices that may be elsewhere; every number says where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from . import recipe as recipes
from .devices import A_MACHINE, DEVICES, EFFICIENCY, GLOO, LOADER, NETWORK, REACHED, parse
from .figures import Basis, Figure, Plan
from .recipe import Recipe
from .runlog import memory_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.store import TokenStore


def plan(
    recipe: Recipe | str | Path,
    *,
    devices: str = "1xcpu",
    rate: float | None = None,
    efficiency: float | None = None,
    bandwidth: float | None = None,
    measure: bool = False,
    overrides: Iterable[str] = (),
) -> Plan:
    """Return what a recipe takes on `devices`, such as "8xH100" or "2xcpu"; nothing of the size of its model is made.

    Units: `rate` of a device's matrix products in 1e12 FLOP/s (else its published one; with `measure`, and for CPUs, the one of this
    machine), `bandwidth` of the slowest link in 1e9 bytes/s. `efficiency` is the share of the rate that training reaches.
    Raises: ConfigError for a device that is not known, a recipe that cannot be; what loading its model or tokenizer raises.
    """
    made = recipe if isinstance(recipe, Recipe) else recipes.load(recipe, overrides=overrides)
    name = "the recipe" if isinstance(recipe, Recipe) else str(recipe)
    number, kind = parse(devices)
    draft = Draft(made, number, kind)
    for part in (draft.text, draft.count, draft.memory, draft.disk):
        part()
    draft.rates(rate, efficiency, bandwidth, measure)
    draft.step()
    draft.run()
    return Plan(name, f"{number}x{kind}", draft.figures)


class Draft:
    """A plan that is being made, part by part; each part takes what it needs from the figures of those before it."""

    def __init__(self, recipe: Recipe, number: int, kind: str) -> None:
        from .setup import check_early

        data = recipe.data
        checked = dataclasses.replace(data, sources=data.sources or ("text",), general=(), replay=())
        check_early(dataclasses.replace(recipe, data=checked))
        self.recipe, self.number, self.kind = recipe, number, kind
        self.is_cpu = kind == "cpu"
        self.figures: dict[str, Figure] = {}

    def add(self, name: str, value: float | None, unit: str, basis: Basis, how: str) -> None:
        """Write down a figure."""
        self.figures[name] = Figure(value, unit, basis, how)

    def __getitem__(self, name: str) -> float:
        value = self.figures[name].value
        return 0.0 if value is None else value

    def text(self) -> None:
        """Find the tokenizer and the packed corpus, where they are there, and with them lengths and tokens."""
        from ..data.plan import cut
        from ..data.store import TokenStore
        from ..data.tokenizer import load_tokenizer, tokenizer_hash
        from .setup import is_packed, token_counts

        data = self.recipe.data
        corpus = next((Path(source) for source in data.sources if is_packed(source)), None)
        self.store: TokenStore | None = None
        self.tokenizer: Any = StandIn(data.vocab_size)
        vocabulary = ("stated", "data.vocab_size, of a tokenizer that is trained")
        named = data.tokenizer or self.recipe.base_model
        if named is None and corpus is not None and (corpus / "tokenizer").is_dir():
            named = str(corpus / "tokenizer")
        if named is not None:
            self.tokenizer = load_tokenizer(named)
            vocabulary = ("counted", f"the tokenizer '{named}'")
        self.add("vocabulary", len(self.tokenizer) + data.extend_vocab, "", *vocabulary)  # type: ignore[arg-type]
        if corpus is not None:
            inside = corpus / "train" if (corpus / "train").is_dir() else corpus
            self.store = TokenStore.open(inside, tokenizer_hash=None if named is None else tokenizer_hash(self.tokenizer))
            windows = cut(self.store.lengths, data.max_length - 2)
            sizes = (windows.stop - windows.start + 2).astype(float)
            where = f"the windows of '{corpus}'"
            self.add("tokens_an_epoch", float(sizes.sum()), "tokens", "counted", f"{where}, special tokens included")
            self.add("length", float((sizes**2).sum() / sizes.sum()), "tokens", "counted", f"{where}: the length that a token meets")
            content = 1 - 2 * len(sizes) / float(sizes.sum())
        else:
            self.add("tokens_an_epoch", None, "tokens", "assumed", "the text is not packed yet")
            self.add("length", data.max_length, "tokens", "assumed", "every window is full: data.max_length")
            content = 1 - 2 / data.max_length
        grid = [self.recipe.masking.probability_at((place + 0.5) / 100) for place in range(100)]
        self.probability = max(grid)
        self.add("label_share", content * sum(grid) / len(grid), "share", self.figures["length"].basis, "mlm_probability of the content")
        enough = NotPacked(data.batch_tokens)
        self.batch, micro = token_counts(self.recipe, self.store or enough, "cpu" if self.is_cpu else "cuda", num_special=2)  # type: ignore[arg-type]
        if self.batch < self.number * data.max_length:
            raise ConfigError(
                f"{self.number} devices share steps of {self.batch:,} tokens: less than a window of data.max_length = {data.max_length} "
                f"each; raise data.batch_tokens to {self.number * data.max_length:,}, or take {self.batch // data.max_length} at most"
            )
        passes = -(-(self.batch // micro) // self.number)
        self.add("batch_tokens", self.batch, "tokens", "stated", "of a step, over all devices")
        self.add("passes", passes, "", "follows", "micro-batches of a device in a step")
        self.add("micro_tokens", self.batch / (passes * self.number), "tokens", "follows", "of a pass through the model on one device")

    def count(self) -> None:
        """Count the model, and what a pass through it holds and computes."""
        from ..model.flops import flops_per_token
        from . import footprint, lora

        recipe = self.recipe
        self.precision = self._precision()

        def change(model: PreTrainedModel) -> None:
            lora.inject(model, recipe.lora, seed=0)
            if recipe.data.extend_vocab:
                lora.train_embeddings(model)

        self.size, model = footprint.count(
            self._config(), recipe.optim, micro_tokens=int(self["micro_tokens"]), length=round(self["length"]),
            probability=self.probability, device_type="cpu" if self.is_cpu else "cuda", precision=self.precision,
            change=change if recipe.lora.r else None, again=recipe.train.activation_checkpointing,
        )  # fmt: skip
        self.add("parameters", self.size.num_parameters, "", "counted", "on the model without content; tied weights once")
        self.add("trained_parameters", self.size.num_trainable, "", "counted", "of them, those that have a gradient")
        how = "products there and back: the head at labels, attention at `length`"
        self.add("flops_per_token", flops_per_token(model, self["length"], self["label_share"]), "FLOPs", "counted", how)

    def _precision(self) -> str:
        from .precision import choose

        name = self.recipe.train.precision
        if name == "auto":
            return choose("auto", "cpu").name if self.is_cpu else "bf16"
        return name

    def _config(self) -> Any:
        from ..model.load import read_config
        from ..model.presets import hf_config_for

        if self.recipe.base_model is None:
            return hf_config_for(self.recipe.model, self.tokenizer, max_length=self.recipe.data.max_length)
        config = read_config(self.recipe.base_model, "masked_lm")
        config.vocab_size += self.recipe.data.extend_vocab
        return config

    def memory(self) -> None:
        """Lay out the memory of a device, and of the host what a save takes there."""
        size, n = self.size, self.number
        self.add("weights_bytes", size.weights, "bytes", "counted", "fp32")
        self.add("gradients_bytes", size.gradients, "bytes", "counted", "fp32; between processes these travel")
        self.add("optimizer_bytes", size.optimizer, "bytes", "counted", "AdamW: 8 bytes a parameter; Muon: 4")
        how = f"a pass on tensors without content, at its fullest; {self.precision} products"
        self.add("activations_bytes", size.highest, "bytes", "counted", how)
        self.add("logits_bytes", size.logits, "bytes", "counted", "of the activations; as much again is their gradient")
        parts = size.weights + size.gradients + size.optimizer
        how = "of one device: the sum; libraries and mapped files come on top"
        self.add("memory_bytes", parts + size.highest, "bytes", "follows", how)
        held = size.weights / n + size.optimizer / n + size.gradients / (n if self["passes"] == 1 else 1)
        gathered = 0.0 if n == 1 else size.gathered / (2 if self.precision == "bf16" else 1)
        how = "weights and optimizer divided, gradients too where a step is one pass; two layers and the tables gathered"
        self.add("sharded_memory_bytes", held + gathered + size.highest, "bytes", "follows", how)
        if self.is_cpu:
            self.add("device_memory_bytes", memory_bytes(), "bytes", "measured", "of this machine")
        elif self.kind in DEVICES:
            self.add("device_memory_bytes", 1e9 * DEVICES[self.kind].memory, "bytes", "stated", "data sheet")
        else:
            import torch

            total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
            self.add("device_memory_bytes", total, "bytes", "measured", "of this machine's GPU")
        copied = size.model_file + size.state_file
        how = "host memory of the first process while a checkpoint is written: weights and optimizer once more"
        self.add("host_copy_bytes", copied, "bytes", "counted", how)
        how = "its part, and the whole that it gathers; each other process has its part alone"
        self.add("sharded_host_copy_bytes", copied + (copied / n if n > 1 else 0), "bytes", "follows", how)

    def disk(self) -> None:
        """Add up the files of a run."""
        size, config = self.size, self.recipe.train
        checkpoint = size.model_file + size.state_file + self._tokenizer_bytes()
        self.add("checkpoint_bytes", checkpoint, "bytes", "counted", "weights, optimizer, tokenizer where it is there")
        kept = max(config.save_total_limit, 2 if config.keep == "best" else 1)
        total = (kept + 1) * checkpoint + size.model_file
        how = f"{kept} checkpoints, one being written, the finished model; no corpus"
        self.add("disk_bytes", total, "bytes", "follows", how)

    def _tokenizer_bytes(self) -> int:
        if isinstance(self.tokenizer, StandIn):
            return 0
        return len(self.tokenizer.backend_tokenizer.to_str(pretty=True).encode())

    def rates(self, rate: float | None, efficiency: float | None, bandwidth: float | None, measure: bool) -> None:
        """Say how fast a device multiplies, what of that training reaches, and how fast devices exchange numbers."""
        sheet = DEVICES.get(self.kind)
        if rate is not None:
            self.add("matmul_rate", 1e12 * rate, "FLOP/s", "stated", "--rate")
        elif sheet is None or measure:
            import torch

            from .precision import matmul_rate
            from .setup import find_device

            device = find_device("cpu" if self.is_cpu else "cuda", setting="--devices").type
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
            how = f"{self.precision} products here" + (f", {torch.get_num_threads()} threads" if self.is_cpu else "")
            self.add("matmul_rate", matmul_rate(device, dtype), "FLOP/s", "measured", how)
        else:
            if self.precision != "bf16":
                raise ConfigError(f"train.precision = {self.precision!r}: published rates are those of bf16; state yours with --rate")
            self.add("matmul_rate", 1e12 * sheet.tflops, "FLOP/s", "stated", f"data sheet of {self.kind}: bf16, dense")
        share, why = EFFICIENCY["cpu" if self.is_cpu else "gpu"]
        if efficiency is not None:
            self.add("efficiency", efficiency, "share", "stated", "--efficiency")
        else:
            self.add("efficiency", share, "share", "measured" if self.is_cpu else "assumed", why)
        if bandwidth is not None:
            self.add("bandwidth", 1e9 * bandwidth, "B/s", "stated", "--bandwidth")
        elif sheet is None:
            self.add("bandwidth", 1e9 * GLOO, "B/s", "measured", "two processes of one machine over gloo (bench/plan.py)")
        elif self.number <= A_MACHINE:
            self.add("bandwidth", 1e9 * REACHED * sheet.link, "B/s", "assumed", f"{REACHED:g} of the link that the data sheet states")
        else:
            how = f"{REACHED:g} of a 400 Gb/s adapter for each device, between machines of {A_MACHINE}"
            self.add("bandwidth", 1e9 * REACHED * min(sheet.link, NETWORK), "B/s", "assumed", how)

    def step(self) -> None:
        """Add up the time of a step."""
        n, size = self.number, self.size
        speed = self["matmul_rate"] * self["efficiency"]
        own = self["batch_tokens"] / n
        compute = own * self["flops_per_token"] / speed
        how = "a device's tokens x flops_per_token / matmul_rate / efficiency"
        if self.recipe.train.activation_checkpointing:  # three passes become four
            compute, how = 4 / 3 * compute, f"4/3 of {how}"
        self.add("compute_seconds", compute, "seconds", "follows", how)
        sheet = DEVICES.get(self.kind)
        adamw = 3.5 * size.optimizer / (1e9 * sheet.memory_rate) if sheet else 0.0
        how = "Muon's products" + (" and AdamW's 28 bytes a parameter" if sheet else "") + ", not divided"
        self.add("optimizer_seconds", size.muon_flops / speed + adamw, "seconds", "follows", how)
        sent = size.gradients / (2 if self.recipe.train.gradient_compression == "bf16" else 1)
        turn = (n - 1) / n / self["bandwidth"]
        talk = 2 * turn * sent
        self.add("communication_seconds", talk, "seconds", "follows", "2 (n - 1) / n x gradients / bandwidth, once a step")
        gathered = size.weights / (2 if self.precision == "bf16" else 1)
        how = "(n - 1) / n x (twice the weights, of each pass, + gradients) / bandwidth"
        self.add("sharded_communication_seconds", turn * (2 * self["passes"] * gathered + size.gradients), "seconds", "follows", how)
        hidden, how = min(talk, 2 / 3 * compute / self["passes"]), "what of it the last micro-batch's backward pass does not hide"
        if self.recipe.train.parallel == "fsdp":
            talk = self["sharded_communication_seconds"]
            hidden, how = min(talk, compute), "what of the sharded one the passes do not hide"
        self.add("exposed_seconds", talk - hidden, "seconds", "follows", how)
        data = own / LOADER
        how = f"a device's tokens / {LOADER:,.0f} tokens/s, made ahead by one CPU thread"
        self.add("data_seconds", data, "seconds", "assumed", how)
        busy = compute + self["optimizer_seconds"] + self["exposed_seconds"]
        self.add(
            "step_seconds",
            max(busy, data),
            "seconds",
            "follows",
            "compute + optimizer + exposed, or data where that is longer",
        )
        self.add("tokens_per_second", self["batch_tokens"] / self["step_seconds"], "tokens/s", "follows", "of all devices together")
        alone = n * compute + self["optimizer_seconds"]
        how = "of the speed of n devices, were each as fast as one alone"
        self.add("scaling", alone / (n * self["step_seconds"]), "share", "follows", how)

    def run(self) -> None:
        """Say how long the whole budget takes."""
        from .loop import DEFAULT_EPOCHS

        config, speed = self.recipe.train, self["tokens_per_second"]
        epochs = config.num_epochs
        if epochs is None and config.max_steps is None and config.max_tokens is None and config.max_minutes is None:
            epochs = DEFAULT_EPOCHS
        epoch = self.figures["tokens_an_epoch"].value
        budgets = {
            "train.max_tokens": config.max_tokens,
            "train.max_steps": config.max_steps and config.max_steps * self["batch_tokens"],
            "train.num_epochs": epochs and epoch and epochs * epoch,
            "train.max_minutes": config.max_minutes and 60 * config.max_minutes * speed,
        }
        found = {name: float(tokens) for name, tokens in budgets.items() if tokens}
        first = min(found, key=lambda name: found[name], default=None)
        how = f"{first}, the first to be used up" if first else "the length of the text decides, and it is not packed yet"
        tokens = found[first] if first else None
        self.add("budget_tokens", tokens, "tokens", "stated" if first else "assumed", how)
        how = "budget_tokens / tokens_per_second; evaluations come on top"
        self.add("run_seconds", tokens / speed if tokens else None, "seconds", "follows", how)
        stored = 4 if self["vocabulary"] > 65_536 else 2
        self.add("reading_rate", (stored + 1 / 8) * speed, "B/s", "follows", "of the packed corpus, by all devices together")


class StandIn:
    """What a model needs to know of a tokenizer that is not there yet: how many tokens, and which are special."""

    pad_token_id, cls_token_id, sep_token_id, mask_token_id = 0, 2, 3, 4
    bos_token_id = eos_token_id = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return self.vocab_size


class NotPacked:
    """A corpus of which only this is known, that it is longer than a step."""

    def __init__(self, batch_tokens: int) -> None:
        self.num_tokens, self.lengths = 2 * batch_tokens, np.array([2 * batch_tokens])
