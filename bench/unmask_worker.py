"""Unmask's own loop as a process that runs for as many seconds as it is told, counts its real tokens, and waits."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from trainer_worker import answer, evaluate
from unmask.data.loader import Loader
from unmask.data.masking import MaskingConfig
from unmask.data.prefetch import prefetch
from unmask.data.store import TokenStore
from unmask.data.store_writer import StoreWriter
from unmask.data.tokenizer import load_tokenizer, special_ids, tokenizer_hash
from unmask.model.flops import flops_per_token, num_parameters
from unmask.model.heads import forward_packed
from unmask.model.load import build_model
from unmask.model.memory import tune_allocator
from unmask.model.presets import ModelConfig
from unmask.train import optim
from unmask.train.loop import TrainConfig, TrainState, train
from unmask.train.loss import masked_loss_sum
from unmask.train.optim import OptimConfig
from unmask.train.precision import choose
from unmask.train.recipe import Recipe
from unmask.train.unigram import start_at_frequencies, token_counts

# the same model and objective as the Trainer's sides, AdamW, 4,096 tokens a step
THROUGHPUT = Recipe(
    model=ModelConfig(family="bert", preset="mini", fields={"intermediate_size": 3072, "max_position_embeddings": 512}),
    masking=MaskingConfig(mlm_probability=0.15),
    optim=OptimConfig(optimizer="adamw", learning_rate=5e-4),
    train=TrainConfig(max_steps=1_000_000),
)
# free in everything but the tokenizer and the size: at most the 15.4M parameters of the tutorial's model
FREE = {
    "model": {"family": "modernbert", "preset": "mini", "num_hidden_layers": 6, "intermediate_size": 512},
    "masking": {"mlm_probability": 0.15},
    "optim": {"optimizer": "muon", "learning_rate": 3e-3, "muon_learning_rate": 2e-2},
    "data": {"batch_tokens": 2048},
}


def store_of(tokens: str, tokenizer, folder: Path) -> TokenStore:
    """Pack the benchmark's texts, less their special tokens, as documents of a store."""
    data = np.load(tokens)
    flat, bounds = data["flat"], data["bounds"]
    starts = np.zeros(len(flat), bool)
    with StoreWriter(folder, tokenizer_hash=tokenizer_hash(tokenizer), vocab_size=len(tokenizer)) as writer:
        for first in range(0, len(bounds) - 1, 1000):
            spans = [slice(bounds[i] + 1, bounds[i + 1] - 1) for i in range(first, min(first + 1000, len(bounds) - 1))]
            names = [str(first + i) for i in range(len(spans))]
            writer.add([flat[s] for s in spans], [starts[s] for s in spans], names, [s.stop - s.start for s in spans])
    return TokenStore.open(folder)


def main(mode: str, tokens: str, tokenizer_folder: str, settings: str, work: str) -> None:
    """Run the loop of Unmask on the texts in `tokens`; answer as trainer_worker does."""
    options = json.loads(settings)
    tune_allocator()
    if mode == "throughput":
        recipe = THROUGHPUT
    else:
        from unmask.train import recipe as recipes

        recipe = recipes.load(settings={**FREE, "train": {"max_minutes": options.pop("seconds") / 60}}, overrides=options.pop("set", []))
    tokenizer = load_tokenizer(tokenizer_folder)
    store = store_of(tokens, tokenizer, Path(work) / f"store-{Path(tokens).stem}")
    max_length = recipe.data.max_length if mode == "loss" else 512
    model = build_model(recipe.model, tokenizer, max_length=max_length, seed=0)
    batch_tokens = recipe.data.batch_tokens
    loader = Loader(
        store, special_ids(tokenizer), recipe.masking, vocab_size=len(tokenizer), seed=0,
        max_length=max_length, micro_tokens=batch_tokens, batch_tokens=batch_tokens,
    )  # fmt: skip
    precision = choose("auto", "cpu")

    def step_loss(model, batch):
        with precision.autocast():
            logits = forward_packed(model, batch, spare=True)
        return masked_loss_sum(logits, batch.labels)

    turn = {"until": 0.0, "started": 0.0, "tokens": 0, "step": 0, "waited": 0.0}

    def listen(state: TrainState) -> None:
        line = sys.stdin.readline().split()
        while line and not line[0][0].isdigit():
            if line[0] == "flops":
                lengths = np.minimum(store.lengths + 2, max_length).astype(float)
                answer({"flops_per_token": flops_per_token(model, float((lengths**2).sum() / lengths.sum()), label_share(loader))})
            elif line[0] == "start":
                answer({"parameters": num_parameters(model)})
            elif line[0] == "evaluate":
                answer({"loss": evaluate(model, line[1])})
            else:
                sys.exit(0)
            line = sys.stdin.readline().split()
        if not line:
            sys.exit(0)
        now = time.perf_counter()
        turn.update(until=now + float(line[0]), started=now, tokens=state.tokens, step=state.step, waited=0.0)

    def report(state: TrainState) -> None:
        seconds = time.perf_counter() - turn["started"]
        answer({"seconds": seconds, "tokens": state.tokens - turn["tokens"], "steps": state.step - turn["step"], "waited": turn["waited"]})

    def on_step(state: TrainState, step) -> bool:
        turn["waited"] += step.wait_seconds
        if mode == "throughput" and time.perf_counter() >= turn["until"]:
            report(state)
            listen(state)
        return False

    fp32 = precision.name == "fp32"
    if mode == "loss":  # as a run of Unmask does
        start_at_frequencies(model, token_counts(store, len(tokenizer)))
    state = TrainState(model, optim.build(model, recipe.optim, fp32=fp32), steps_per_epoch=loader.steps_per_epoch())
    listen(state)
    with prefetch(loader) as batches:
        train(state, batches, step_loss, recipe, on_step)
    report(state)
    listen(state)


def label_share(loader: Loader) -> float:
    """Return the labels a token over some batches."""
    batches = [batch for step in range(8) for batch in loader.batch(step)]
    return sum(len(batch.labels) for batch in batches) / sum(batch.num_tokens for batch in batches)


if __name__ == "__main__":
    main(*sys.argv[1:])
