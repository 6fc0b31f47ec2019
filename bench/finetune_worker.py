"""One side of bench/finetune.py: trains for as many seconds as it is told, counts examples, and waits."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import questions

BATCH, MAX_LENGTH, RATE = 32, 128, 2e-5
LENGTHS = {"qa": questions.LENGTH}
SIDES: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"},
}


class Turns:
    """Answers after as many seconds as it was told, and waits for the next request."""

    def __init__(self) -> None:
        self.examples = 0
        self.wait()

    def wait(self) -> None:
        line = sys.stdin.readline().strip()
        if not line or line == "stop":
            sys.exit(0)
        self.begin, self.seconds, self.examples = time.perf_counter(), float(line), 0

    def step(self, examples: int) -> None:
        self.examples += examples
        spent = time.perf_counter() - self.begin
        if spent >= self.seconds:
            print(json.dumps({"seconds": spent, "examples": self.examples}), flush=True)
            self.wait()


def ours(task: str, model: str, data: str, work: str) -> None:
    """Train with Unmask's loop on its own batches."""
    from unmask.data.prefetch import prefetch
    from unmask.tasks.finetune import make_recipe
    from unmask.tasks.kinds import task as objective_of
    from unmask.train import optim
    from unmask.train.loop import TrainState, train

    recipe = make_recipe(
        task,
        model,
        data,
        max_steps=1_000_000,
        batch_size=BATCH,
        max_length=LENGTHS.get(task, MAX_LENGTH),
        learning_rate=RATE,
        weight_decay=0.0,
        warmup_ratio=0.0,
        hide_prob=0.0,  # the Trainer hides nothing
    )
    folder = Path(work) / f"unmask-{task}-{Path(model).name}"  # a run knows what data it has begun with
    folder.mkdir(exist_ok=True)
    objective = objective_of(task).make(recipe, folder, say=lambda text: None)
    state = TrainState(objective.model, optim.build(objective.model, objective.recipe.optim), objective.loader.steps_per_epoch())
    turns = Turns()
    counts: list[int] = []

    def counted(batches):  # of words there are more labels than examples
        for step in batches:
            counts.append(sum(int((batch.documents >= 0).sum()) for batch in step))
            yield step

    with prefetch(objective.loader) as batches:
        train(
            state, counted(batches), objective.loss_sum, objective.recipe, lambda state, step: turns.step(counts.pop()), objective.count
        )  # fmt: skip


def quality(side: str, request: dict[str, Any]) -> str:
    """Fine-tune a checkpoint to classify with the last weights kept, and return the folder of the model."""
    data, output = request.pop("train"), request.pop("output")
    request.pop("test")
    if side == "unmask":
        import unmask

        settings = {"precision": "auto", "keep": "last", "eval_steps": 0, "save_steps": 0, "calibrate": False,
                    "hide_prob": 0.0}  # fmt: skip
        return str(unmask.finetune("classify", request.pop("model"), data, output=output, dev_share=1e-9, **request, **settings).model)
    from transformers import AutoModelForSequenceClassification as Stock
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments, set_seed

    from unmask.tasks.classify_data import in_order, read_items
    from unmask.tasks.recipe import TaskData

    items, _ = read_items(data, TaskData())
    labels = in_order(label for item in items for label in item.label or ())
    set_seed(request["seed"])
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}
    net = Stock.from_pretrained(request["model"], num_labels=len(labels), **names)
    rows = [
        {**tokenizer(item.text, truncation=True, max_length=request["max_length"]), "labels": labels.index((item.label or ("",))[0])}
        for item in items
    ]
    arguments = TrainingArguments(
        output_dir=output, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=True,
        num_train_epochs=request["num_epochs"], per_device_train_batch_size=request["batch_size"], seed=request["seed"],
        learning_rate=request["learning_rate"], weight_decay=request["weight_decay"], warmup_steps=request["warmup_ratio"],
        optim="adamw_torch_fused",
    )  # fmt: skip
    Trainer(model=net, args=arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)).train()
    net.config.problem_type = "single_label_classification"
    net.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def stock(task: str, side: str, model: str, data: str, work: str) -> None:
    """Train with the stock Trainer, as `side` says."""
    from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(model)
    net, rows, collator = globals()[f"stock_{task}"](tokenizer, model, data, side)

    class Stepwise(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.turns = Turns()

        def on_step_end(self, args, state, control, **kwargs):
            self.turns.step(BATCH)

    arguments = TrainingArguments(
        output_dir=str(Path(work) / side), use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        max_steps=1_000_000, per_device_train_batch_size=BATCH, learning_rate=RATE, dataloader_drop_last=True, **SIDES[side],
    )  # fmt: skip
    Trainer(model=net, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[Stepwise()]).train()


def stock_classify(tokenizer, model: str, data: str, side: str) -> tuple[Any, Any, Any]:
    """Return the model, the dataset and the collator of the text-classification example."""
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, default_data_collator

    padding: Any = "max_length" if side == "default" else False
    rows = []
    for line in Path(data).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        encoded = tokenizer(row["text"], padding=padding, truncation=True, max_length=MAX_LENGTH)
        rows.append({**encoded, "labels": int(row["label"] == "yes")})
    net = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    return net, rows, default_data_collator if side == "default" else DataCollatorWithPadding(tokenizer)


def stock_ner(tokenizer, model: str, data: str, side: str) -> tuple[Any, Any, Any]:
    """Return the model, the dataset and the collator of the token-classification example."""
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

    rows, names = [], ["O", "B-X", "B-Y"]
    for line in Path(data).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=MAX_LENGTH)
        words = encoded.word_ids()
        first = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
        labels = [names.index(row["tags"][word]) if new else -100 for word, new in zip(words, first, strict=True)]
        rows.append({**encoded, "labels": labels})
    net = AutoModelForTokenClassification.from_pretrained(model, num_labels=len(names))
    return net, rows, DataCollatorForTokenClassification(tokenizer)


def stock_qa(tokenizer, model: str, data: str, side: str) -> tuple[Any, Any, Any]:
    """Return the model, the dataset and the collator of the question-answering example."""
    from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, default_data_collator

    rows = questions.stock_rows(tokenizer, data, pad=side == "default")
    net = AutoModelForQuestionAnswering.from_pretrained(model)
    return net, rows, default_data_collator if side == "default" else DataCollatorWithPadding(tokenizer)


if __name__ == "__main__":
    if sys.argv[1] == "quality":
        sys.stdin.readline()
        print(json.dumps({"model": quality(sys.argv[2], json.loads(sys.argv[3]))}), flush=True)
        sys.exit(0)
    task, side, model, data, work = sys.argv[1:]
    if side == "unmask":
        ours(task, model, data, work)
    else:
        stock(task, side, model, data, work)
