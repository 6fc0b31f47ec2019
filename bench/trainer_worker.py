"""The stock Trainer as a process that runs for as many seconds as it is told, counts its real tokens, and waits."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

SIDES = {
    # the tutorial: batches of 8 padded to their longest text, fp32, dropout, everything else as it comes
    "tutorial": {"arguments": {"per_device_train_batch_size": 8}, "model": {}},
    # as well as the documentation allows: bf16, batches of 64 texts of like length, fused optimizer, no dropout
    "tuned": {
        "arguments": {
            "per_device_train_batch_size": 64,
            "bf16": True,
            "train_sampling_strategy": "group_by_length",
            "optim": "adamw_torch_fused",
            "learning_rate": 5e-4,
            "warmup_steps": 200,
            "lr_scheduler_type": "linear",
        },
        "model": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    },
}


class Texts(torch.utils.data.Dataset):
    """Texts as lists of ids, special tokens included."""

    def __init__(self, flat: np.ndarray, bounds: np.ndarray, special: np.ndarray) -> None:
        self.flat, self.bounds, self.special = flat, bounds, special

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = self.flat[self.bounds[index] : self.bounds[index + 1]]
        special = np.isin(ids, self.special).astype(int)
        return {"input_ids": ids.tolist(), "special_tokens_mask": special.tolist(), "length": len(ids)}


class Counted(DataCollatorForLanguageModeling):
    """The stock collator, with a count of the tokens that are not padding."""

    tokens = 0

    def torch_call(self, examples):
        for example in examples:
            example.pop("length", None)
        batch = super().torch_call(examples)
        Counted.tokens += int(batch["attention_mask"].sum())
        return batch


class Stepwise(TrainerCallback):
    """Lets the Trainer run for the seconds that stdin asks for, then answers and waits."""

    def __init__(self, trainer_of) -> None:
        self.trainer_of = trainer_of

    def on_step_end(self, args, state, control, **kwargs):
        if self.until is not None and time.perf_counter() >= self.until:
            answer(
                {
                    "seconds": time.perf_counter() - self.started,
                    "tokens": Counted.tokens - self.tokens,
                    "steps": state.global_step - self.step,
                }
            )
            self.wait(state)

    def on_train_end(self, args, state, control, **kwargs):
        # its schedule is at its end: there is nothing more to come
        seconds = time.perf_counter() - self.started
        answer({"seconds": seconds, "tokens": Counted.tokens - self.tokens, "steps": state.global_step - self.step, "finished": True})
        self.wait(state)

    def on_train_begin(self, args, state, control, **kwargs):
        self.wait(state)

    def wait(self, state) -> None:
        line = sys.stdin.readline().split()
        while line and line[0] == "evaluate":
            answer({"loss": evaluate(self.trainer_of().model, line[1])})
            line = sys.stdin.readline().split()
        if not line or line[0] == "stop":
            sys.exit(0)
        self.started, self.tokens, self.step = time.perf_counter(), Counted.tokens, state.global_step
        self.until = self.started + float(line[0])


@torch.no_grad()
def evaluate(model, path: str) -> float:
    """Return the mean loss over the frozen masks in `path`: padded rows of corrupted ids and labels, -100 where there is none."""
    data = np.load(path)
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(data["ids"]), 32):
        ids, labels = (torch.from_numpy(data[name][start : start + 32].astype(np.int64)) for name in ("ids", "labels"))
        keep = (ids != 0).long()
        width = int(keep.sum(1).max())
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids[:, :width], attention_mask=keep[:, :width]).logits
        chosen = labels[:, :width] >= 0
        total += torch.nn.functional.cross_entropy(logits[chosen].float(), labels[:, :width][chosen], reduction="sum").item()
        count += int(chosen.sum())
    model.train()
    return total / count


def answer(message: dict) -> None:
    print(json.dumps(message), flush=True)


def main(side: str, tokens: str, tokenizer: str, overrides: str, work: str) -> None:
    """Make the tutorial's model and train it as `side` says, on the texts in `tokens`."""
    torch.set_num_threads(int(__import__("os").environ.get("OMP_NUM_THREADS", "2")))
    tok = AutoTokenizer.from_pretrained(tokenizer)
    data = np.load(tokens)
    chosen = SIDES[side]
    config = BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, vocab_size=30522, **chosen["model"])
    torch.manual_seed(0)
    model = BertForMaskedLM(config)
    arguments = {**chosen["arguments"], **json.loads(overrides)}
    args = TrainingArguments(
        output_dir=str(Path(work) / side), use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        **({"max_steps": 1_000_000} | arguments),
    )  # fmt: skip
    collator = Counted(tokenizer=tok, mlm=True, mlm_probability=0.15)
    trainer: Trainer
    callback = Stepwise(lambda: trainer)
    args.remove_unused_columns = False
    texts = Texts(data["flat"], data["bounds"], data["special"])
    trainer = Trainer(model=model, args=args, data_collator=collator, train_dataset=texts, callbacks=[callback])
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
