"""One side of bench/score.py: a process that scores sentences, or evaluates documents, when it is told, and waits.

    python bench/score_worker.py SIDE MODEL_FOLDER SENTENCES.json DOCUMENTS.txt

SIDE is minicons:B (B sentences in a call), unmask:fp32, unmask:bf16; trainer:fp32, evaluate:fp32.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WINDOW = 512
Run = Callable[[list[str]], list[Any]]


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def minicons(folder: str, batch: str) -> Run:
    """Return minicons' PLL of texts, token by token."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    try:
        from minicons.scorer import MaskedLMScorer
    except ImportError as error:
        raise SystemExit(f"this side needs minicons ({error}): pip install 'unmask[bench]'") from None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # minicons 0.3.39 calls what transformers 5 took away
    tokenizer.batch_encode_plus = lambda texts, **options: tokenizer(list(texts), **options)
    scorer = MaskedLMScorer(AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32), "cpu", tokenizer=tokenizer)

    def run(texts: list[str]) -> list[list[float]]:
        parts = (texts[first : first + int(batch)] for first in range(0, len(texts), int(batch)))
        return [[value for _, value in tokens] for part in parts for tokens in scorer.token_score(part)]

    return run


def unmask(folder: str, precision: str) -> Run:
    """Return Unmask's PLL of texts, token by token."""
    from unmask import Scorer

    scorer = Scorer.load(folder, precision=precision)
    return lambda texts: [scored.log_probs.tolist() for scored in scorer.score(texts)]


def trainer(folder: str, documents: str) -> Run:
    """Return the stock Trainer's evaluation of documents as it comes: the loss of padded batches of 8; they are tokenized beforehand."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = Path(documents).read_text(encoding="utf-8").splitlines()
    dataset = [{"input_ids": ids} for ids in tokenizer(texts, truncation=True, max_length=WINDOW)["input_ids"]]
    arguments = TrainingArguments(output_dir=f"{folder}/trainer", report_to="none", disable_tqdm=True, use_cpu=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    judge = Trainer(model, arguments, data_collator=DataCollatorForLanguageModeling(tokenizer), eval_dataset=dataset)
    return lambda texts: [judge.evaluate()["eval_loss"]]


def evaluate(folder: str, documents: str) -> Run:
    """Return Unmask's evaluation of documents: tokenizing, all of its metrics and their intervals included."""
    from unmask import load_model, load_tokenizer
    from unmask.evaluate.evaluation import evaluate as measure

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer=tokenizer)
    return lambda texts: [measure(model, documents, tokenizer=tokenizer, layout="line", max_length=WINDOW)["masked_loss"]]


def memory(name: str) -> int:
    """Return VmRSS, the resident memory of the process, or VmHWM, its peak, in bytes (Linux)."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def main(side: str, folder: str, sentences: str, documents: str) -> None:
    """Answer each line of stdin, `score N` (the first N sentences) or `long N` (N sentences as one text)."""
    kind, _, option = side.partition(":")
    if kind in ("trainer", "evaluate"):
        run = {"trainer": trainer, "evaluate": evaluate}[kind](folder, documents)
    else:
        run = {"minicons": minicons, "unmask": unmask}[kind](folder, option)
    texts = json.loads(Path(sentences).read_text(encoding="utf-8"))
    for line in sys.stdin:
        verb, _, number = line.strip().partition(" ")
        if verb == "stop":
            break
        chosen = texts[: int(number)] if verb == "score" else [" ".join((texts * int(number))[: int(number)])]
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        start = time.perf_counter()
        scores = run(chosen)
        seconds = time.perf_counter() - start
        answer({"seconds": seconds, "peak_bytes": memory("VmHWM"), "added_bytes": memory("VmHWM") - before, "scores": scores})


if __name__ == "__main__":
    main(*sys.argv[1:])
