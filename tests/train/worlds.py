"""Run jobs in several processes each, as torchrun would: torch is imported once, and every process is a fork of this one.

    python worlds.py '[{"size": 2, "call": "unmask.train.run:pretrain", "options": {...}}, ...]'

Jobs run one after another until one fails; the exit code is that of the first process that did.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
import transformers  # noqa: F401  (seconds, which every process would take)
from safetensors.torch import save_file

import unmask.train.run
from unmask.data.loader import Loader
from unmask.data.masking import MaskingConfig
from unmask.data.store import TokenStore
from unmask.data.tokenizer import load_tokenizer, special_ids
from unmask.model.heads import forward_packed
from unmask.model.load import ModelConfig, build_model
from unmask.train import distributed, optim
from unmask.train import recipe as recipes
from unmask.train.loop import TrainConfig, TrainState, accumulate
from unmask.train.loss import masked_loss_sum
from unmask.train.masking_objective import MaskedLanguageModel
from unmask.train.optim import OptimConfig


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def work(rank: int, size: int, port: int, call: str, options: dict) -> int:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    module, _, name = call.rpartition(":")
    try:
        function = getattr(importlib.import_module(module), name) if module else globals()[name]
        function(**options)
    except unmask.UnmaskError as error:
        print(f"process {rank}: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def run(size: int, call: str, options: dict) -> int:
    """Run a job; when a process fails, the others are killed, as torchrun does."""
    port, children = free_port(), {}
    for rank in range(size):
        child = os.fork()
        if not child:
            code = work(rank, size, port, call, options)
            sys.stderr.flush()
            os._exit(code)
        children[child] = rank
    failed = 0
    while children:
        child, status = os.wait()
        children.pop(child)
        if status and not failed:
            failed = os.waitstatus_to_exitcode(status)
            time.sleep(0.5)  # for the others to say what they say
            for other in children:
                os.kill(other, signal.SIGKILL)
    return failed


class Memory(torch.autograd.Function):
    """Runs out in the backward pass of micro-batches that are too large."""

    @staticmethod
    def forward(ctx, loss, fits):
        ctx.fits = fits
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        if not ctx.fits:
            raise torch.OutOfMemoryError("out of memory, in the backward pass")
        return grad, None


class Tight(torch.nn.Module):
    """A layer that lets its input through, and has memory for so many tokens in the pass back."""

    def __init__(self, inner, limit):
        super().__init__()
        self.inner, self.limit = inner, limit

    def forward(self, hidden, *args, **kwargs):
        out = self.inner(hidden, *args, **kwargs)
        return Memory.apply(out, out.shape[-2] <= self.limit)


def gradients(store: str, tokenizer: str, output: str, case: str, compression: str = "none") -> None:
    """Write the loss and the gradients of two steps, as they are once all processes have done their share."""
    words = load_tokenizer(tokenizer)
    fields = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
    model = build_model(ModelConfig(preset="tiny", family="bert", fields=fields), words, max_length=32, seed=1)
    loader = Loader(
        TokenStore.open(store), special_ids(words), MaskingConfig(), vocab_size=len(words), seed=0, max_length=32, micro_tokens=512,
        batch_tokens=512,
    )  # fmt: skip
    if case == "unused":
        model.unused = torch.nn.Parameter(torch.ones(3))
    with distributed.join(torch.device("cpu")) as world:
        loader.divide(world.rank, world.size)
        if case == "empty" and world.size > 1:
            loader.divide(0, 1)
        if case == "backward" and world.rank == 1:
            layer = model.bert.encoder.layer[0]
            layer.intermediate = Tight(layer.intermediate, 200)

        def loss_sum(model, batch):
            if case == "forward" and world.rank == 1 and batch.input_ids.shape[1] > 200:
                raise torch.OutOfMemoryError("out of memory, in the forward pass")
            return masked_loss_sum(forward_packed(model, batch), batch.labels)

        step_loss = world.wrap(model, loss_sum, TrainConfig(bucket_megabytes=0.02, gradient_compression=compression))
        state, tensors = TrainState(model, []), {}
        for step in range(2):
            batches = loader.batch(step) if case != "empty" or world.is_first else []
            (labels,) = world.sum(sum(len(batch.labels) for batch in batches))
            tensors[f"loss{step}"] = accumulate(state, batches, step_loss, labels, world)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    tensors[f"{name}.{step}"] = parameter.grad.to_dense().clone()
                parameter.grad = None
        tensors["halvings"] = torch.tensor(state.halvings)
        assert not case.endswith("ward") or world.size == 1 or state.halvings == 1
        said = world.agree({"rank": world.rank, "third": 1 / 3})
        assert said == {"rank": 0, "third": 1 / 3}
        assert world.gather(b"x" * world.rank) == [b"x" * rank for rank in range(world.size)]
        if world.is_first or case == "plain":
            save_file({key.replace(".inner", ""): value for key, value in tensors.items()}, f"{output}.{world.rank}")


def muon(tokenizer: str) -> None:
    """Check that Muon shared out is Muon, to the bit, its memory too."""
    fields = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
    words = load_tokenizer(tokenizer)
    plain, shared = (build_model(ModelConfig(preset="tiny", fields=fields), words, max_length=32, seed=1) for _ in range(2))
    with distributed.join(torch.device("cpu")) as world:
        for fp32 in (True, False):
            alone, together = optim.build(plain, OptimConfig(), fp32=fp32), optim.build(shared, OptimConfig(), fp32=fp32)
            torch.manual_seed(5)
            for _ in range(3):
                for left, right in zip(plain.parameters(), shared.parameters(), strict=True):
                    left.grad = torch.randn_like(left)
                    right.grad = left.grad.clone()
                for optimizer in alone:
                    optimizer.step()
                world.step(together)
            assert all(torch.equal(*pair) for pair in zip(plain.parameters(), shared.parameters(), strict=True))
            world.complete(together)
            mine, ours = optim.state_tensors(alone), optim.state_tensors(together)
            assert mine.keys() == ours.keys() and all(torch.equal(mine[name], ours[name]) for name in mine)


def shards() -> None:
    """Check that what was copied of tensors in shards comes together as it was, however few rows there are, while they are changed."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from unmask.train.snapshot import Snapshot

    with distributed.join(torch.device("cpu")) as world:
        world.aside = torch.distributed.new_group(backend="gloo")
        mesh = init_device_mesh("cpu", (world.size,))
        whole = {str(rows): torch.arange(rows * 5.0).reshape(rows, 5) for rows in (1, 2, 3, 4, 7, 300)} | {"bias": torch.arange(8.0)}
        cut = {name: distribute_tensor(tensor.clone(), mesh, [Shard(0)]) for name, tensor in whole.items()}
        tied, step = {"tied": cut["7"]}, {"step": torch.tensor(3.0)}
        copies = Snapshot({**cut, **tied, **step}, world)
        for tensor in cut.values():
            tensor.to_local().zero_()
        found = copies.whole()
        assert world.is_first or "step" not in found
        if world.is_first:
            assert found["tied"] is found["7"] and found.keys() == {*cut, "tied", "step"}
            assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
        world.sum(1.0)


def spoilt(corpus: str, output: str, at: int, **settings) -> None:
    """Train while in the last process the weights, or its part of them, go wrong in memory as its pass `at` begins."""

    class Spoilt(MaskedLanguageModel):
        passes = 0

        def loss_sum(self, model, batch):
            Spoilt.passes += 1
            if Spoilt.passes == at and os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
                with torch.no_grad():
                    for parameter in model.parameters():
                        own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                        own.add_(3.0 * (torch.arange(own.numel()).reshape(own.shape) % 7 - 3))
            return super().loss_sum(model, batch)

    nested = recipes.nested(settings)
    nested["data"]["sources"] = [corpus]
    unmask.train.run.start(recipes.load(settings=nested), output, Spoilt.make)


def hang(seconds: float) -> None:
    """Have process 1 keep the others waiting."""
    with distributed.join(torch.device("cpu")) as world, world.watching(seconds):
        world.sum(1.0)
        if world.rank == 1:
            time.sleep(60)
        world.sum(1.0)


def forget(run: str, step: int) -> None:
    """Take a run back to the checkpoint of a step, as if it had been killed after it."""
    import shutil

    for path in Path(run, "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    shutil.rmtree(Path(run, "model"))
    Path(run, "metrics.json").unlink()


if __name__ == "__main__":
    for job in json.loads(sys.argv[1]):
        code = run(job["size"], job["call"], job["options"])
        if code:
            sys.exit(code)
