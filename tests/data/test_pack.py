"""The pack as a whole: what goes in comes out once, on one side, as the tokenizer says; and nothing is left behind when it fails."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.cli import main
from unmask.cli.pack import Progress
from unmask.data import encode
from unmask.data.clean import normalise, split_of
from unmask.data.encode import Encoder
from unmask.data.near import band_keys
from unmask.data.pack import pack
from unmask.data.store import TokenStore
from unmask.data.text import read
from unmask.data.tokenizer import load_tokenizer, tokenizer_hash, train_tokenizer
from unmask.errors import DataError, RunError, StoreError, TokenizerError

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "nrstl"]


def documents(number: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(20, 60))).capitalize() + "." for _ in range(number)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return documents(400)


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Any:
    return train_tokenizer(texts, kind="wordpiece", vocab_size=400)


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def stored(folder: Path, side: str, tokenizer: Any) -> dict[str, list[int]]:
    store = TokenStore.open(folder / side, tokenizer_hash=tokenizer_hash(tokenizer), verify=True)
    return {store.document_id(number): store.ids(number).tolist() for number in range(len(store))}


def test_every_document_once_with_the_tokenizers_ids(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    source = write(tmp_path / "x.txt", texts)
    report = pack(source, tmp_path / "out", tokenizer=tokenizer, held_out=0.1)
    train, heldout = (stored(tmp_path / "out", side, tokenizer) for side in ("train", "heldout"))
    assert report["documents"] == {"read": 400, "kept": 400, "dropped_empty": 0, "dropped_exact": 0, "dropped_near": 0}
    assert not train.keys() & heldout.keys()
    for number, text in enumerate(texts, start=1):
        side = heldout if split_of(text, 0.1) == "heldout" else train
        assert side[f"x.txt:{number}"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    store = TokenStore.open(tmp_path / "out" / "train")
    assert report["train"]["tokens"] == store.num_tokens == sum(map(len, train.values()))
    assert report["train"]["bytes"] == sum(store.num_bytes(number) for number in range(len(store)))
    assert all(store.word_start(number)[0] for number in range(len(store)))
    lines = [json.loads(line) for line in (tmp_path / "out" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == list(heldout)
    assert all(line["text"] == texts[int(line["id"].split(":")[1]) - 1] and line["source"] == str(source) for line in lines)
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8")) == report
    assert tokenizer_hash(load_tokenizer(tmp_path / "out" / "tokenizer")) == tokenizer_hash(tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.txt"]
    assert not (tmp_path / "out" / "work").exists()


def test_duplicates_are_dropped_and_the_first_stays(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    near = [f"{text} Again." for text in texts[:50] if len(text.split()) > 40]
    source = write(tmp_path / "x.txt", [*texts, *texts[:100], *near, "  " + texts[0] + "  "])
    report = pack(source, tmp_path / "out", tokenizer=tokenizer, held_out=0.1)
    assert report["documents"]["dropped_exact"] == 101
    assert report["documents"]["dropped_near"] >= 0.9 * len(near)
    ids = [*stored(tmp_path / "out", "train", tokenizer), *stored(tmp_path / "out", "heldout", tokenizer)]
    assert {f"x.txt:{number}" for number in range(1, 401)} <= set(ids)
    assert {"id": "x.txt:401", "why": "exact duplicate of an earlier document", "text": texts[0][:120]} in report["dropped_examples"]


@pytest.mark.parametrize("dedup", ["near", "exact", "none"])
def test_no_near_duplicates_across_the_split(tmp_path: Path, texts: list[str], tokenizer: Any, dedup: str) -> None:
    twins = [text.replace(".", " also.") for text in texts[::2]]
    mixed = [*texts, *twins, *texts[:40]]
    random.Random(1).shuffle(mixed)
    pack(write(tmp_path / "x.txt", mixed), tmp_path / "out", tokenizer=tokenizer, held_out=0.3, dedup=dedup)  # type: ignore[arg-type]
    sides = [stored(tmp_path / "out", side, tokenizer) for side in ("train", "heldout")]
    train, heldout = (band_keys([mixed[int(name.split(":")[1]) - 1] for name in side]) for side in sides)
    assert len(heldout) > 20
    assert not any(set(train[:, band].tolist()) & set(heldout[:, band].tolist()) for band in range(train.shape[1]))
    assert len(train) + len(heldout) == {"none": len(mixed), "exact": len(mixed) - 40}.get(dedup, len(train) + len(heldout))


def test_long_documents_are_encoded_in_parts_and_stay_one(monkeypatch: pytest.MonkeyPatch, texts: list[str], tokenizer: Any) -> None:
    long = [" ".join(texts[:60]), texts[0], "\n".join(texts[60:100]), "x" * 5000]
    whole = Encoder(tokenizer).encode_all([("train", list("abcd"), long)])
    (_, _, _, expected) = next(iter(whole))
    monkeypatch.setattr(encode, "PART_CHARS", 100)
    monkeypatch.setattr(encode, "PARTS_AT_ONCE", 3)
    batches = [("train", list("abcd"), long), ("heldout", ["e"], texts[:1])]
    parts = list(Encoder(tokenizer).encode_all(batches))
    assert [(side, ids) for side, ids, _, _ in parts] == [("train", list("abcd")), ("heldout", ["e"])]
    ids, starts, lengths = parts[0][3]
    length = int(expected[2][:3].sum())  # the run of 5,000 letters has no space to cut at, so its pieces differ
    assert lengths[:3].tolist() == expected[2][:3].tolist()
    assert ids[:length].tolist() == expected[0][:length].tolist()
    assert starts[:length].tolist() == expected[1][:length].tolist()
    assert lengths.sum() == len(ids) == len(starts)


def test_a_mask_token_in_a_text_is_text(tokenizer: Any) -> None:
    (batch,) = Encoder(tokenizer).encode_all([("train", ["a"], ["This text has a [MASK] in it."])])
    assert tokenizer.mask_token_id not in batch[3][0].tolist()
    assert tokenizer.mask_token_id in tokenizer("This text has a [MASK] in it.")["input_ids"]


def test_meta_and_ids_of_rows_reach_the_heldout_file(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    rows = [{"text": text, "key": f"k{number}", "year": number} for number, text in enumerate(texts)]
    source = tmp_path / "x.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pack(source, tmp_path / "out", tokenizer=tokenizer, held_out=0.2, id_column="key")
    line = json.loads((tmp_path / "out" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert line == {"id": f"k{line['year']}", "text": texts[line["year"]], "source": str(source), "year": line["year"]}


def test_nothing_held_out(tmp_path: Path, tokenizer: Any) -> None:
    report = pack(write(tmp_path / "x.txt", documents(3)), tmp_path / "out", tokenizer=tokenizer, held_out=0)
    assert report["train"]["documents"] == 3 and "heldout" not in report
    assert not (tmp_path / "out" / "heldout").exists() and not (tmp_path / "out" / "heldout.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        (["just one document of some words"], {}, DataError, "a corpus of 1 document is too small to split.*--held-out 0"),
        (documents(4), {"held_out": 0.001}, DataError, r"4 documents is too small to split: with held_out = 0.001 none .* hold out more"),
        (documents(4), {"held_out": 0.9999}, DataError, "nothing is left to train on"),
        (documents(1) * 9, {"dedup": "none", "held_out": 0.5}, DataError, "none of 9 documents can be held out: each has a near-duplicate"),
        ([" ", "\u200b"], {}, DataError, "there is no text in the corpus: 1 documents read, all of them empty"),
        (documents(4), {"held_out": 1.0}, DataError, "held_out = 1.0: the share"),
        (documents(4), {"dedup": "fuzzy"}, DataError, "unknown dedup 'fuzzy'; allowed: near, exact, none"),
        (documents(4), {"tokenizer": "./nowhere"}, TokenizerError, "nowhere"),
    ],
)
def test_bad_corpora_leave_nothing_behind(
    tmp_path: Path, tokenizer: Any, content: list[str], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    source = write(tmp_path / "x.txt", content)
    with pytest.raises(error, match=message):
        pack(source, tmp_path / "out", **{"tokenizer": tokenizer, "layout": "line", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_the_share_that_the_error_names_works(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "x.txt", documents(5))
    with pytest.raises(DataError, match="too small to split") as caught:
        pack(source, tmp_path / "out", tokenizer=tokenizer, held_out=0.001)
    share = float(str(caught.value).split("--held-out ")[1].split(" ")[0])
    assert pack(source, tmp_path / "out", tokenizer=tokenizer, held_out=share)["heldout"]["documents"] == 1


def test_an_output_that_exists_is_kept(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    source = write(tmp_path / "x.txt", texts)
    out = tmp_path / "out"
    pack(source, out, tokenizer=tokenizer)
    before = stored(out, "train", tokenizer)
    with pytest.raises(StoreError, match="exists already; choose a new name, or pack over it with --overwrite"):
        pack(source, out, tokenizer=tokenizer)
    with pytest.raises(DataError):
        pack(write(tmp_path / "bad.txt", [""]), out, tokenizer=tokenizer, overwrite=True)
    assert stored(out, "train", tokenizer) == before
    pack(write(tmp_path / "y.txt", texts[:200]), out, tokenizer=tokenizer, overwrite=True)
    assert len(stored(out, "train", tokenizer)) < 200
    other = tmp_path / "thesis"
    other.mkdir()
    write(other / "chapter.txt", ["precious"])
    with pytest.raises(StoreError, match="is not a packed corpus, so it is not overwritten"):
        pack(source, other, tokenizer=tokenizer, overwrite=True)
    assert (other / "chapter.txt").exists()


def test_what_a_killed_pack_left_is_replaced(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    (tmp_path / "out.partial" / "work").mkdir(parents=True)
    pack(write(tmp_path / "x.txt", texts), tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out.partial").exists()
    (tmp_path / "new.partial").mkdir()
    write(tmp_path / "new.partial" / "mine.txt", ["precious"])
    with pytest.raises(StoreError, match="is in the way"):
        pack(tmp_path / "x.txt", tmp_path / "new", tokenizer=tokenizer)
    assert (tmp_path / "new.partial" / "mine.txt").exists()


def test_of_two_packs_into_one_folder_the_second_is_refused(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    source = write(tmp_path / "x.txt", texts)

    def second(stage: str, num_documents: int, num_bytes: int) -> None:
        if stage == "tokenize":
            with pytest.raises(StoreError, match=r"another process is at work on '.*out'"):
                pack(source, tmp_path / "out", tokenizer=tokenizer)

    pack(source, tmp_path / "out", tokenizer=tokenizer, progress=second)
    assert len(stored(tmp_path / "out", "train", tokenizer)) > 300

    class Late(list[Path]):  # the first ends after the second has looked, before it begins
        def __iter__(self) -> Any:
            (tmp_path / "new").mkdir(exist_ok=True)
            write(tmp_path / "new" / "report.json", ["of the first"])
            return super().__iter__()

    with pytest.raises(StoreError, match="exists already"):
        pack(Late([source]), tmp_path / "new", tokenizer=tokenizer)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"] and not (tmp_path / "new.partial").exists()


def test_bad_files_stop_the_pack_or_are_reported(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    write(folder / "a.txt", texts)
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "c.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.txt is not utf-8: 0xe9 at byte 3"):
        pack(folder, tmp_path / "out", tokenizer=tokenizer)
    report = pack(folder, tmp_path / "out", tokenizer=tokenizer, skip_bad=True)
    assert report["num_skipped"] == 2
    assert report["documents"]["kept"] == 400
    with pytest.raises(DataError, match=r"c\.txt is empty"):
        pack([folder / "a.txt", folder / "c.txt"], tmp_path / "new", tokenizer=tokenizer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_says_so(tmp_path: Path, texts: list[str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from unmask.data import spill

    real = open
    monkeypatch.setattr(spill, "open", lambda path, mode: real("/dev/full", mode), raising=False)
    with pytest.raises(RunError, match="the disk is full while packing"):
        pack(write(tmp_path / "x.txt", texts), tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out.partial").exists()


VOWELS = ["aeiou", "eioua", "iouae", "ouaei", "uaeio", "xyzwq", "wqxyz", "zwqxy"]
PEAK = r"""
import ctypes, re
from unmask.data import pack as module
from unmask.data.tokenizer import load_tokenizer

def status(name):
    return int(re.search(name + r":\s+(\d+)", open("/proc/self/status").read())[1]) / 1024

module.BATCH_BYTES = 1 << 18  # so that the small corpus has several batches too
tokenizer = load_tokenizer("tokenizer")
for name in ("warm-up", "one", "eight", "again"):
    ctypes.CDLL(None).malloc_trim(0)  # what is free but held would hide what is taken
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak
    module.pack(name + ".txt", name + ".out", tokenizer=tokenizer)
    print(name, status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads the peak from /proc, as on Linux")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    one = documents(5_000, seed=5)
    for name in ("warm-up", "one"):
        write(tmp_path / f"{name}.txt", one)
    # the same letter by letter but for the names of the vowels: texts of the same length that share no words
    write(tmp_path / "eight.txt", [text.translate(str.maketrans("aeiou", vowels)) for vowels in VOWELS for text in one])
    write(tmp_path / "again.txt", one * 8)
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=tmp_path, capture_output=True, text=True, check=True)
    peaks = {name: float(peak) for name, peak in map(str.split, done.stdout.splitlines())}
    print(peaks)
    # 6 MB more of text: as documents, keys and ids in memory it would take two to five times that
    assert peaks["eight"] < peaks["one"] + 7, peaks
    assert peaks["again"] < peaks["one"] + 7, peaks


def test_the_command(tmp_path: Path, texts: list[str], tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = write(tmp_path / "x.txt", [*texts, texts[0]])
    args = ["pack", str(source), "-o", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    with pytest.raises(SystemExit) as caught:
        main([*args, "--held-out", "0.1", "--json"])
    shown = capsys.readouterr()
    assert caught.value.code == 0
    assert json.loads(shown.out)["documents"]["dropped_exact"] == 1
    assert "documents/s" in shown.err and "MB/s" in shown.err
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*args, "--overwrite"])
    assert "1 exact duplicates" in capsys.readouterr().out


def test_a_stage_of_one_step_is_as_fast_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        time.sleep(0.02)
        progress("tokenize", 1, 1_000_000)
    rate = capsys.readouterr().err.rsplit(", ", 1)[1]
    assert rate.endswith(" MB/s)\n") and 0 <= float(rate.split()[0]) <= 50


def test_packing_is_reproducible(tmp_path: Path, texts: list[str], tokenizer: Any) -> None:
    source = write(tmp_path / "x.txt", texts)
    prints = []
    for name in ("a", "b"):
        pack(source, tmp_path / name, tokenizer=tokenizer, held_out=0.1)
        prints.append([TokenStore.open(tmp_path / name / side).fingerprint for side in ("train", "heldout")])
    assert prints[0] == prints[1]


def test_reading_and_packing_agree_on_text(tmp_path: Path, tokenizer: Any) -> None:
    source = tmp_path / "x.txt"
    source.write_text("A  line\twith   spaces.\n\u00e9 and e\u0301 are one.\n", encoding="utf-8")
    pack(source, tmp_path / "out", tokenizer=tokenizer, held_out=0)
    store = TokenStore.open(tmp_path / "out" / "train")
    for number, document in enumerate(read(source)):
        clean = normalise(document.text)
        assert store.num_bytes(number) == len(clean.encode())
        assert np.array_equal(store.ids(number), tokenizer(clean, add_special_tokens=False)["input_ids"])
