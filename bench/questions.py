"""The question-answering part of bench/finetune.py and bench/predict.py: questions made of sentences, and what run_qa.py does with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LENGTH, STRIDE, NUM_BEST, LONGEST = 384, 128, 20, 30  # as run_qa.py has them
SIZES = 300, 800  # characters of a context, as most of SQuAD's have; none is longer than a window


def write(texts: list[str], path: Path) -> None:
    """Write questions about paragraphs that are made of sentences, in rows of SQuAD's fields; which words are right changes no speed."""
    random, rows, sentences = np.random.default_rng(0), [], iter(texts)
    while True:
        wanted, words, size = int(random.integers(*SIZES)), [], 0
        while size < wanted and (sentence := next(sentences, None)) is not None:
            words += sentence[: SIZES[1] - size].split()
            size += len(sentence) + 1
        if size < wanted:
            break
        place, asked = int(random.integers(len(words) - 2)), words[: int(random.integers(6, 14))]
        start = len(" ".join(words[:place])) + (place > 0)
        answers = {"text": [" ".join(words[place : place + 2])], "answer_start": [start]}
        rows.append({"id": str(len(rows)), "question": " ".join(asked) + "?", "context": " ".join(words), "answers": answers})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def features(tokenizer: Any, rows: list[dict[str, Any]], *, pad: bool) -> Any:
    """Return questions with windows of their contexts, as run_qa.py makes them."""
    return tokenizer(
        [row["question"] for row in rows], [row["context"] for row in rows], truncation="only_second", max_length=LENGTH, stride=STRIDE,
        return_overflowing_tokens=True, return_offsets_mapping=True, padding="max_length" if pad else False,
    )  # fmt: skip


def stock_rows(tokenizer: Any, data: str, *, pad: bool) -> list[dict[str, Any]]:
    """Return what the stock Trainer is given to train on."""
    given = read(data)
    made = features(tokenizer, given, pad=pad)
    assert len(made["input_ids"]) == len(given), "a context is longer than the window: the sides would not train on the same"
    rows = []
    for number, row in enumerate(given):
        start = row["answers"]["answer_start"][0]
        end = start + len(row["answers"]["text"][0])
        second = [place for place, which in enumerate(made.sequence_ids(number)) if which == 1]
        offsets = made["offset_mapping"][number]
        first = next(place for place in second if offsets[place][1] > start)
        last = next(place for place in reversed(second) if offsets[place][0] < end)
        keys = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in made]
        rows.append({**{key: made[key][number] for key in keys}, "start_positions": first, "end_positions": last})
    return rows


def stock_answers(net: Any, tokenizer: Any, rows: list[dict[str, Any]], *, batch_size: int, pad: bool) -> tuple[list[str], list[float]]:
    """Return the best answer to each question as run_qa.py finds it, and its logits beyond those of none.

    Of the twenty likeliest starts and ends, those that are of whole words: what Unmask answers with too.
    """
    import torch

    made = features(tokenizer, rows, pad=pad)
    keys = [key for key in ("input_ids", "attention_mask", "token_type_ids") if key in made]
    logits: list[Any] = []
    with torch.no_grad():
        for low in range(0, len(made["input_ids"]), batch_size):
            batch = tokenizer.pad({key: made[key][low : low + batch_size] for key in keys}, return_tensors="pt")
            output = net(**batch)
            logits += zip(output.start_logits.float().numpy(), output.end_logits.float().numpy(), strict=True)
    best: list[tuple[float, str]] = [(-np.inf, "")] * len(rows)
    for number, (start, end) in enumerate(logits):
        owner, offsets, words = made["overflow_to_sample_mapping"][number], made["offset_mapping"][number], made.word_ids(number)
        inside = np.array([which == 1 for which in made.sequence_ids(number)])
        change = np.array([one != other for one, other in zip(words[1:], words[:-1], strict=True)])
        starts = np.flatnonzero(inside & np.append(True, change))
        ends = np.flatnonzero(inside & np.append(change, True))
        null = start[0] + end[0]
        for first in starts[np.argsort(-start[starts])[:NUM_BEST]].tolist():
            for last in ends[np.argsort(-end[ends])[:NUM_BEST]].tolist():
                if first <= last < first + LONGEST:
                    score = float(start[first] + end[last] - null)
                    if score > best[owner][0]:
                        best[owner] = score, rows[owner]["context"][offsets[first][0] : offsets[last][1]]
    return [text for _, text in best], [score for score, _ in best]
