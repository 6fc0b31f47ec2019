"""One side of bench/predict.py: predicts all texts whenever it is asked to, and says how long it took and what came out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import questions

SEED = 7


def classify_model(model: str) -> Any:
    """Return the stock model with a head from a seed, the same in every process, whose answers differ from text to text."""
    import torch

    from unmask.model.new_head import with_new_head

    net = with_new_head(model, "sequence_classification", labels=["a", "b", "c"], seed=SEED)
    with torch.no_grad():
        net.classifier.weight.mul_(20)
    return net


def classify(side: str, model: str) -> Callable[[list[str]], tuple[list[str], list[float]]]:
    """Return a function: texts -> the likeliest label of each, and its probability."""
    import torch

    from unmask.data.tokenizer import load_tokenizer

    net, tokenizer = classify_model(model), load_tokenizer(model)
    if side.startswith("unmask"):
        from unmask.tasks.classify import Classifier

        classifier = Classifier(net, tokenizer, precision="auto" if side == "unmask_auto" else "fp32")

        def ours(texts: list[str]) -> tuple[list[str], list[float]]:
            found = classifier.predict(texts)
            return [result.label for result in found], [result.score for result in found]

        return ours
    from transformers import pipeline

    net.set_attn_implementation("sdpa")
    options: dict[str, Any] = {}
    if side == "tuned":
        net, options = net.to(torch.bfloat16), {"batch_size": 32}
    pipe = pipeline("text-classification", model=net, tokenizer=tokenizer, device="cpu", **options)

    def stock(texts: list[str]) -> tuple[list[str], list[float]]:
        found = pipe(texts)
        return [one["label"] for one in found], [one["score"] for one in found]

    return stock


def ner(side: str, model: str) -> Callable[[list[str]], tuple[list[str], list[float]]]:
    """Return a function: texts -> the entities of each (and no scores); any order of the tags is a legal one."""
    import torch

    from unmask.data.tokenizer import load_tokenizer
    from unmask.model.new_head import with_new_head

    net, tokenizer = with_new_head(model, "token_classification", labels=["O", "I-X", "I-Y"], seed=SEED), load_tokenizer(model)
    with torch.no_grad():
        net.classifier.weight.mul_(20)
    if side.startswith("unmask"):
        from unmask.tasks.ner import Tagger

        tagger = Tagger(net, tokenizer, precision="auto" if side == "unmask_auto" else "fp32")

        def ours(texts: list[str]) -> tuple[list[str], list[float]]:
            found = tagger.predict(texts)
            return [str([(one.start, one.end, one.label) for one in result]) for result in found], [0.0] * len(found)

        return ours
    from transformers import pipeline

    net.set_attn_implementation("sdpa")
    options: dict[str, Any] = {}
    if side == "tuned":
        net, options = net.to(torch.bfloat16), {"batch_size": 32}
    pipe = pipeline("token-classification", model=net, tokenizer=tokenizer, device="cpu", aggregation_strategy="first", **options)

    def stock(texts: list[str]) -> tuple[list[str], list[float]]:
        found = pipe(texts)
        return [str([(one["start"], one["end"], one["entity_group"]) for one in text]) for text in found], [0.0] * len(found)

    return stock


def qa(side: str, model: str) -> Callable[[list[dict[str, Any]]], tuple[list[str], list[float]]]:
    """Return a function: questions -> the best answer to each, and its logits beyond those of none; transformers has no pipeline for it."""
    import torch

    from unmask.data.tokenizer import load_tokenizer
    from unmask.model.new_head import with_new_head

    net, tokenizer = with_new_head(model, "question_answering", labels=None, seed=SEED), load_tokenizer(model)
    with torch.no_grad():
        net.qa_outputs.weight.mul_(20)
    if side.startswith("unmask"):
        from unmask.tasks.qa import Answerer

        answerer = Answerer(net, tokenizer, max_length=questions.LENGTH, precision="auto" if side == "unmask_auto" else "fp32")

        def ours(rows: list[dict[str, Any]]) -> tuple[list[str], list[float]]:
            found = answerer.predict((row["question"], row["context"]) for row in rows)
            return [result.text or "" for result in found], [result.margin for result in found]

        return ours
    net.set_attn_implementation("sdpa")
    if side == "tuned":
        net = net.to(torch.bfloat16)
    batch_size, pad = (8, True) if side == "default" else (32, False)  # run_qa.py's own; a larger batch, padded to its longest
    return lambda rows: questions.stock_answers(net.eval(), tokenizer, rows, batch_size=batch_size, pad=pad)


def main(task: str, side: str, model: str, data: str) -> None:
    """Make a side ready, and predict whenever asked."""
    texts = json.loads(Path(data).read_text())
    predict = globals()[task](side, model)
    while (line := sys.stdin.readline().strip()) and line != "stop":
        begin = time.perf_counter()
        labels, scores = predict(texts)
        print(json.dumps({"seconds": time.perf_counter() - begin, "texts": len(texts), "labels": labels, "scores": scores}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
