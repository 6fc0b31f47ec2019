"""The numbers of the model in the box: gathered from what the commands of docs/box.md have left, kept in docs/box.json, shown in tables.

python bench/box.py collect OUT [--untrained]    # the folders that the commands wrote, of the box or of an untrained model of its size
python bench/box.py speed                        # cold start of `unmask fill` and tokens a second in bulk; needs the machine alone
python bench/box.py write                        # the tables of docs/box.md, and the card of the model, anew from docs/box.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask import box

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "box.json", ROOT / "docs" / "box.md"
PLACE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)  # of a table in the page
CARD = "README.md"


@dataclass(frozen=True)
class Test:
    """One line of the table: the folder that holds its metrics.json, a metric, its format, and BERT-Mini's figure if one is published."""

    name: str
    folder: str
    metric: str
    form: str = ".1%"
    bert_mini: str = "–"


TESTS = (
    Test("held-out Wikipedia, masked perplexity", "wiki", "masked_perplexity", ".2f"),
    Test("held-out Wikipedia, masked accuracy", "wiki", "masked_accuracy"),
    Test("held-out books, masked perplexity", "books", "masked_perplexity", ".2f"),
    Test("held-out books, masked accuracy", "books", "masked_accuracy"),
    Test("BLiMP, all 67 sets (the first 300 pairs of each), accuracy (chance: 50%)", "blimp", "accuracy"),
    Test("SST-2, accuracy on test", "sst2-test", "accuracy", bert_mini="85.9%"),
    Test("SST-2 from 500 labelled sentences, accuracy on test", "sst2-few-test", "accuracy"),
    Test("BANKING77, accuracy on test", "banking77-test", "accuracy"),
    Test("GoEmotions, macro F1 on test", "goemotions-test", "macro_f1"),
    Test("GoEmotions, micro F1 on test", "goemotions-test", "micro_f1"),
    Test("WNUT-17, entity F1 on test", "wnut17-test", "f1"),
    Test("BC5CDR, entity F1 on test", "bc5cdr-test", "f1"),
    Test("SQuAD 1.1, F1 on dev", "squad-test", "f1"),
    Test("SQuAD 1.1, exact match on dev", "squad-test", "exact_match"),
    Test("SQuAD 2.0, F1 on half of dev (answering nothing: 47.7%)", "squad2-test", "f1"),
)
ADAPTED = {"medquad": "MedQuAD", "docs": "documentation of Python packages"}


def collect(out: Path, side: str, kept: dict[str, Any]) -> None:
    """Put the numbers of a folder of results among those that are kept; what is not there stays as it was."""
    for test in TESTS:
        path = out / test.folder / "metrics.json"
        if path.is_file():
            metrics = json.loads(path.read_text(encoding="utf-8"))
            found = {name: metrics[test.metric][name] for name in ("value", "low", "high", "count")}
            if "seeds" in metrics:
                over = metrics["seeds"]["numbers"][test.metric]
                found.update(value=over["mean"], low=over["low"], high=over["high"], seeds=over["count"])
            kept.setdefault("numbers", {}).setdefault(test.name, {})[side] = found
        else:
            print(f"not there: {path}", file=sys.stderr)
    for name in ADAPTED:
        path = out / name / "adaptation.json"
        if path.is_file():
            texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
            found = {text: {key: one["bits_per_byte"][key] for key in ("before", "after", "difference", "low", "high", "count")}
                     for text, one in texts.items()}  # fmt: skip
            kept.setdefault("adaptation", {}).setdefault(name, {})[side] = found
        else:
            print(f"not there: {path}", file=sys.stderr)


def speed(kept: dict[str, Any], rounds: int = 9) -> None:
    """Measure how long `unmask fill` takes from nothing to an answer, and tokens a second in bulk."""
    import unmask

    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "unmask", "fill", "The [MASK] is playing soccer."], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    bench = unmask.bench(box.box_model(), lengths=[64], batches=[1, 32], seconds=2.0).report
    kept["speed"] = {"cold_start_seconds": statistics.median(seconds), "rounds": rounds, "bench": bench}


def amount(found: Mapping[str, Any] | None, form: str) -> str:
    """Return a number with its interval."""
    if found is None or found["value"] is None:
        return "–"
    bounds = "" if found["low"] is None else f" ({found['low']:{form}} to {found['high']:{form}})"
    return f"{found['value']:{form}}{bounds}" + (f", {found['seeds']} seeds" if "seeds" in found else "")


def numbers(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of all tests."""
    yield "| | the box | untrained, same size | BERT-Mini, published | measured on |"
    yield "|---|---:|---:|---:|---:|"
    for test in TESTS:
        found = kept.get("numbers", {}).get(test.name, {})
        one, other = found.get("box"), found.get("untrained")
        count = f"{one['count']:,}" if one else "–"
        yield f"| {test.name} | {amount(one, test.form)} | {amount(other, test.form)} | {test.bert_mini} | {count} |"


def adaptation(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of what adapting gives: bits per byte of hidden words."""
    yield "| bits per byte of hidden words | before | after | difference (95%) | untrained, trained as long |"
    yield "|---|---:|---:|---:|---:|"
    for name, title in ADAPTED.items():
        found = kept.get("adaptation", {}).get(name, {})
        for text in ("domain", "general"):
            one, other = found.get("box", {}).get(text), found.get("untrained", {}).get(text)
            if text == "general" and one is None:
                continue
            said = ["–"] * 3
            if one:
                bounds = "" if one["low"] is None else f" ({one['low']:+.3f} to {one['high']:+.3f})"
                said = [f"{one['before']:.3f}", f"{one['after']:.3f}", f"{one['difference']:+.3f}{bounds}"]
            shown = title if text == "domain" else f"{title}: general text (Wikipedia)"
            yield f"| {shown} | {' | '.join(said)} | {other['after']:.3f} |" if other else f"| {shown} | {' | '.join(said)} | – |"


def about(kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was spent, and what storing the weights in sixteen bits costs."""
    run, storage = kept.get("run"), kept.get("storage")
    if not run or not storage:
        yield "- (not measured yet)"
        return
    hardware, corpus = run["hardware"], run["corpus"]
    device = ", ".join(hardware["cuda"]) if hardware.get("cuda") else f"{hardware['num_threads']} thread(s) of a CPU ({hardware['cpu']})"
    train = corpus.get("train", {})
    yield (
        f"- {run['parameters'] / 1e6:.2f}M parameters, embeddings included: {run['num_hidden_layers']} layers x {run['hidden_size']}, "
        f"{run['vocab_size']:,} words; {run['bytes'] / 1e6:.1f} MB"
    )
    if train:
        yield (
            f"- text: {train['documents']:,} documents, {train['tokens']:,} tokens after cleaning and de-duplication; "
            f"{run['tokens'] / train['tokens']:.2f} passes over it"
        )
    yield (
        f"- seen: {run['tokens']:,} tokens in {run['steps']:,} steps of {run['batch_tokens']:,}, windows of {run['max_length']}, "
        f"seed {run['seed']}"
    )
    yield f"- spent: {run['minutes']:.0f} minutes on {device}, {run['precision']} products"
    change = storage["accuracy_change"]
    bounds = "" if change["low"] is None else f" ({change['low']:+.5f} to {change['high']:+.5f})"
    same = {name: f"{one['same_top_1']:.3%}" for name, one in storage["agreement"].items()}
    yield (
        f"- stored in {storage['chosen']}, computed in fp32: masked accuracy {change['difference']:+.5f}{bounds} against fp32 on "
        f"{storage['num_masked_tokens']:,} masked tokens; the most probable token is the same at {same['fp16']} of the masks "
        f"(bf16: {same['bf16']}; ONNX Runtime against torch: {same['onnx']})"
    )
    if "speed" in kept:
        found = kept["speed"]
        yield f"- `unmask fill TEXT`, from nothing to an answer: {found['cold_start_seconds']:.2f} s (median of {found['rounds']})"


def card(kept: Mapping[str, Any], page: str) -> str:
    """Return the card of the model: the tables, and the parts of the page that are about the model itself."""
    parts = re.split(r"^## ", page, flags=re.MULTILINE)
    own = "\n".join(f"## {part.rstrip()}\n" for part in parts if part.split("\n")[0] in ("Data and licences", "Limits and biases"))
    return f"""---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: fill-mask
tags:
- masked-lm
- fill-mask
- unmask
---

# The model in the box of Unmask

A small English masked language model, lower-cased, trained by Unmask from raw text. `unmask fill "The [MASK] is playing soccer."` uses it;
so do `AutoModelForMaskedLM.from_pretrained` and `pipeline("fill-mask")`. How it was made, one command a stage: docs/box.md of Unmask.

{chr(10).join(about(kept))}

## Results

{chr(10).join(numbers(kept))}

{chr(10).join(adaptation(kept))}

Intervals: 95%, bootstrap over documents or items. A masked perplexity is that of 15% masked tokens of this vocabulary: it compares with no
other vocabulary's, and is not the perplexity of a model that reads from left to right. Fine-tuned figures are of one seed, but for SST-2;
GoEmotions, and SST-2 of the untrained model, may be too low (docs/box.md says why).

{own}"""


def filled(page: str, kept: Mapping[str, Any]) -> str:
    """Return the page with its tables made anew."""
    makers = {"about": about, "numbers": numbers, "adaptation": adaptation}
    return PLACE.sub(lambda found: f"{found[1]}{chr(10).join(makers[found[2]](kept))}\n{found[3]}", page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("collect", "speed", "write"))
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--untrained", action="store_true", help="OUT is of the untrained model of the same size")
    given = parser.parse_args(argv)
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    if given.what == "collect":
        if given.out is None:
            parser.error("name the folder that holds the results")
        collect(given.out, "untrained" if given.untrained else "box", kept)
    elif given.what == "speed":
        speed(kept)
    if given.what != "write":
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = filled(PAGE.read_text(encoding="utf-8"), kept)
    PAGE.write_text(page, encoding="utf-8")
    if (box.FOLDER / "config.json").is_file():
        (box.FOLDER / CARD).write_text(card(kept, page), encoding="utf-8")


if __name__ == "__main__":
    main()
