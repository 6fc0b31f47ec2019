"""`unmask tokenizer`: text in, a tokenizer out, and how it does on text that it has not seen."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, TokenizerError

HELD_BYTES = 4_000_000  # of held-out text to measure on: more of it changes no digit that is shown
MADE_OF = ("tokenizer.json", "tokenizer_config.json")
COLUMNS = {
    "vocab_size": ("vocabulary", "{:,}"), "fertility": ("pieces/word", "{:.3f}"), "unknown_rate": ("unknown", "{:.4%}"),
    "bytes_per_token": ("bytes/piece", "{:.2f}"), "round_trip": ("round trip", "{:.2%}"),
}  # fmt: skip


def tokenizer(
    sources: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, '-' (standard input), 'python-docs' or 'hub:NAME[:config][@revision]'.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to make; without it --compare's are described.")] = None,
    kind: Annotated[str, typer.Option(help="wordpiece, bpe (byte-level) or unigram.")] = "wordpiece",
    vocab_size: Annotated[int, typer.Option(min=1, help="Entries of the vocabulary, special tokens included.")] = 16_000,
    lowercase: Annotated[bool | None, typer.Option("--lowercase/--cased", help="Lower all text; by default only wordpiece.")] = None,
    strip_accents: Annotated[bool, typer.Option("--strip-accents", help="Take accents and other marks off letters.")] = False,
    digits: Annotated[str, typer.Option(help="whole: numbers are words like others; single: every digit is a token.")] = "whole",
    special_token: Annotated[list[str] | None, typer.Option(help="One more special token; may be repeated.")] = None,
    min_frequency: Annotated[int, typer.Option(min=1, help="How often a pair must be seen to be joined (wordpiece and bpe).")] = 2,
    max_length: Annotated[int, typer.Option(min=1, help="The model_max_length to save.")] = 512,
    compare: Annotated[list[str] | None, typer.Option(help="A tokenizer to measure beside it; may be repeated.")] = None,
    held_out: Annotated[float, typer.Option(min=0, help="The share of documents kept from training to measure on.")] = 0.05,
    format: Annotated[str | None, typer.Option(help="txt, md, rst, jsonl, json, csv, tsv or parquet; by default the name tells.")] = None,
    text_column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    layout: Annotated[str, typer.Option(help="Documents of a text file: line, blank (blank lines between), file, or auto.")] = "auto",
    encoding: Annotated[str, typer.Option(help="The encoding of text files.")] = "utf-8",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train a tokenizer on text and say how it does on held-out documents; or describe others on them.

    The folder loads with transformers' AutoTokenizer, and goes to `unmask pack --tokenizer`.
    """
    from ..data.manifest import write_manifest
    from ..data.text import read
    from ..data.tokenizer import describe, load_tokenizer, save_tokenizer, tokenizer_hash, train_tokenizer
    from ..data.whole import whole_folder
    from ..rng import rng

    if out is None and not compare:
        raise ConfigError("nothing to do: name the folder to make with -o OUT, or tokenizers to describe with --compare NAME")
    if not 0 <= held_out < 1:
        raise ConfigError(f"--held-out {held_out}: the share of documents to measure on is at least 0 and below 1, 0.05 for one in twenty")
    _check_out(out, overwrite)
    others = {name: load_tokenizer(name) for name in compare or []}
    documents = read(sources, format=format, text_column=text_column, layout=layout, encoding=encoding)
    text = Split(documents, held_out if out is not None else 1.0)
    started, made = time.monotonic(), None
    if out is not None:
        with whole_folder(out, made_of=MADE_OF, error=TokenizerError) as partial:
            _check_out(out, overwrite)  # once more: another process may have finished meanwhile
            made = train_tokenizer(
                text, kind=kind, vocab_size=vocab_size, lowercase=lowercase, strip_accents=strip_accents, digits=digits,  # type: ignore[arg-type]
                special_tokens=special_token or (), min_frequency=min_frequency, max_length=max_length,
            )  # fmt: skip
            save_tokenizer(made, partial)
            write_manifest(partial)
    else:
        for _ in text:
            pass
    seconds = time.monotonic() - started
    texts = text.held
    rows = [{"name": str(out), **describe(made, texts)}] if made is not None else []
    rows += [{"name": name, **describe(other, texts)} for name, other in others.items()]
    report: dict[str, Any] = {
        "out": str(out) if out is not None else None, "kind": kind, "hash": tokenizer_hash(made) if made is not None else None,
        "train_documents": text.num_train, "train_bytes": text.train_bytes, "heldout_documents": len(texts),
        "heldout_bytes": sum(len(one.encode()) for one in texts), "seconds": round(seconds, 2), "tokenizers": rows,
    }  # fmt: skip
    if not texts:
        print(f"nothing was held out of {text.num_train:,} documents, so nothing could be measured; raise --held-out", file=sys.stderr)
    if as_json:
        print(json.dumps(report, ensure_ascii=False))
        return
    if texts:
        print(f"on {len(texts):,} held-out documents ({report['heldout_bytes'] / 1e6:.2f} MB):")
        print(table(rows))
    if made is not None:
        example = texts[int(rng(0, "example").integers(len(texts)))] if texts else "The mask is a [MASK]."
        print("\n" + " ".join(made.tokenize(" ".join(example.split())[:200])[:24]))
        print(f"\n{out} was trained on {text.num_train:,} documents ({text.train_bytes / 1e6:.1f} MB) in {seconds:.1f} s; "
              f"next: unmask pack {' '.join(sources)} --tokenizer {out} -o CORPUS")  # fmt: skip


class Split:
    """Yields the texts to train on and keeps those held out: a function of a text's content alone, as in `unmask pack`."""

    def __init__(self, documents: Any, held_out: float) -> None:
        self.documents, self.held_out = documents, held_out
        self.held: list[str] = []
        self.held_bytes = self.num_train = self.train_bytes = 0

    def __iter__(self) -> Iterator[str]:
        from ..data.clean import normalise, split_of

        shown = time.monotonic()
        for document in self.documents:
            text = normalise(document.text)
            if not text:
                continue
            if split_of(text, self.held_out) == "heldout":
                if self.held_bytes < HELD_BYTES:
                    self.held.append(text)
                    self.held_bytes += len(text.encode())
                continue
            self.num_train += 1
            self.train_bytes += len(text.encode())
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                print(f"reading: {self.num_train:,} documents, {self.train_bytes / 1e6:,.1f} MB", file=sys.stderr, flush=True)
            yield text


def _check_out(out: Path | None, overwrite: bool) -> None:
    """Raise TokenizerError where something is in the way, and is not a tokenizer that may be overwritten."""
    if out is None or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise TokenizerError(f"'{out}' exists; name another folder, or replace it with --overwrite")
    if not (out / "tokenizer.json").is_file():
        raise TokenizerError(f"'{out}' is not a tokenizer's folder, so it is not overwritten; choose a new name, or remove it yourself")
    if (out / "config.json").is_file():
        raise TokenizerError(f"'{out}' holds a model too, so it is not overwritten; choose a new name, or remove it yourself")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures of tokenizers side by side."""
    cells = [["tokenizer", *(title for title, _ in COLUMNS.values())]]
    for row in rows:
        cells.append([row["name"], *(form.format(row[key]) if row[key] is not None else "-" for key, (_, form) in COLUMNS.items())])
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )
