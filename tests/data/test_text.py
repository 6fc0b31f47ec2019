"""Readers: every format and layout gives its documents, and everything that can be wrong with a file is said with its place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask.data import files
from unmask.data.text import Document, expand, guess_layout, read
from unmask.errors import DataError, MissingExtra

TEXTS = ["The first document.", "Ein zweites, größer: äöü.", "第三个文档。"]


def texts(*args: Any, **options: Any) -> list[str]:
    return [document.text for document in read(*args, **options)]


def compressed(data: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        return pa.compress(data, "zstd", asbytes=True)
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](data)


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    ("layout", "content", "expected"),
    [
        ("line", "a\n\nb\r\n  \nc", ["a", "b", "c"]),
        ("blank", "a\nb\n\n\nc\n  \nd\n", ["a\nb", "c", "d"]),
        ("file", "a\n\nb\n", ["a\n\nb"]),
        ("auto", "a\nb\nc\n", ["a", "b", "c"]),
        ("auto", "a\nb\n\nc\nd\n", ["a\nb", "c\nd"]),
    ],
)
def test_layouts(tmp_path: Path, layout: str, content: str, expected: list[str]) -> None:
    assert texts(write(tmp_path / "x.txt", content), layout=layout) == expected


def test_a_stray_blank_line_does_not_make_a_layout() -> None:
    assert guess_layout("\n".join(["one sentence"] * 500) + "\n\n" + "\n".join(["one sentence"] * 500)) == "line"
    assert guess_layout("\n\n".join(["a paragraph\nof two lines"] * 5)) == "blank"


def test_ids_and_sources(tmp_path: Path) -> None:
    path = write(tmp_path / "folder" / "x.txt", "a\n\nb\nb\n")
    assert [(document.id, document.source) for document in read(path, layout="blank")] == [("x.txt:1", str(path)), ("x.txt:3", str(path))]
    assert [document.id for document in read(tmp_path, layout="line")] == ["folder/x.txt:1", "folder/x.txt:3", "folder/x.txt:4"]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json", "x.csv", "x.tsv"])
def test_formats_and_compressions(tmp_path: Path, name: str, suffix: str) -> None:
    content = {
        "x.txt": "\n".join(TEXTS),
        "x.jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
        "x.json": json.dumps([{"text": text} for text in TEXTS], indent=1),
        "x.csv": "text,n\n" + "".join(f'"{text}",1\n' for text in TEXTS),
        "x.tsv": "text\tn\n" + "".join(f"{text}\t1\n" for text in TEXTS),
    }[name]
    assert texts(write(tmp_path / (name + suffix), compressed(content.encode(), suffix))) == TEXTS


def test_zstandard_of_several_frames(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.ZstdCompressor().compress(f"{text}\n".encode()) for text in TEXTS]
    assert texts(write(tmp_path / "x.txt.zst", b"".join(frames))) == TEXTS


def test_columns_ids_and_meta(tmp_path: Path) -> None:
    rows = [{"key": number, "body": text, "year": 2000 + number} for number, text in enumerate(TEXTS)]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "b.csv", "key,body,year\n" + "".join(f'{row["key"]},"{row["body"]}",{row["year"]}\n' for row in rows))
    pq.write_table(pa.Table.from_pylist([{**row, "vector": [1.0]} for row in rows]), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.csv", "c.parquet"):
        documents = list(read(tmp_path / name, text_column="body", id_column="key"))
        assert [document.text for document in documents] == TEXTS
        assert [document.id for document in documents] == ["0", "1", "2"]
        assert [str(document.meta["year"]) for document in documents] == ["2000", "2001", "2002"]


def test_csv_with_quoted_newlines_and_no_header(tmp_path: Path) -> None:
    quoted = write(tmp_path / "a.csv", 'text,label\n"two\nlines, ""quoted""",x\nplain,y\n')
    assert [(document.text, document.id) for document in read(quoted)] == [('two\nlines, "quoted"', "a.csv:2"), ("plain", "a.csv:4")]
    bare = write(tmp_path / "b.tsv", 'he said "hm\t1\nshe left\t0\n')
    assert texts(bare, text_column="0") == ['he said "hm', "she left"]


def test_markup_is_left_out_unless_read_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "x.md", "# Title\n\nThis is a [link](http://x.y) in a sentence.\n\n```\ncode = 1\n```\n")
    assert texts(path) == ["This is a link in a sentence."]
    assert "code = 1" in "".join(texts(path, format="txt", layout="file"))


def test_json_lists_are_read_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"text number {number} " + "x" * (number * 7 % 50)} for number in range(60)]
    path = write(tmp_path / "x.json", json.dumps(rows))
    for size in (1, 7, 64, 4096):
        monkeypatch.setattr(files, "CHUNK_BYTES", size)
        assert texts(path) == [row["text"] for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab \n\rä中😀", max_size=60), st.integers(1, 9), st.sampled_from(["utf-8", "utf-16", "gb18030"]))
def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, size: int, encoding: str) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", size)
    path = write(tmp_path / "x.txt", ("x" + content).encode(encoding))
    lines = [line.removesuffix("\r") for line in ("x" + content).split("\n")]
    assert texts(path, encoding=encoding, layout="line") == [line for line in lines if line.strip()]


def test_utf16_without_a_mark_says_which_byte_comes_first(tmp_path: Path) -> None:
    text = "Кошка sits here.\n"
    for order in ("utf-16-le", "utf-16-be"):
        path = tmp_path / f"{order}.txt"
        path.write_bytes(text.encode(order))
        with pytest.raises(DataError, match=f"give text files, or --encoding {order} if"):
            list(read(path))
        with pytest.raises(DataError, match=r"has no byte-order mark.*--encoding utf-16-le .* or utf-16-be"):
            list(read(path, encoding="UTF16"))
        assert [document.text for document in read(path, encoding=order)] == [text.strip()]
    path.write_bytes(text.encode("utf-16"))
    assert [document.text for document in read(path, encoding="utf-16")] == [text.strip()]


def test_a_parquet_column_that_is_no_text_and_a_file_that_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for values in ([b"\xff"], [["a", "b"]]):
        pq.write_table(pa.table({"text": values}), path)
        with pytest.raises(DataError, match=r"a\.parquet: the column 'text' holds (binary|list<.*>), not text"):
            list(read(path))
    documents = read([path, tmp_path])  # listed now, opened later
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet is not a readable Parquet file"):
        next(documents)


def test_folders_globs_and_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.jsonl", "a/README.md", ".hidden/x.txt", "image.png", "d.txt"):
        write(tmp_path / name, '{"text": "x"}' if name.endswith("l") else "x")
    assert [source.name for source in expand(tmp_path)] == ["a/c.jsonl", "b.txt", "d.txt"]
    assert [source.name for source in expand(f"{tmp_path}/*.txt")] == ["b.txt", "d.txt"]
    assert [source.name for source in expand([f"{tmp_path}/d.txt", f"{tmp_path}/*.txt"])] == ["d.txt", "b.txt"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        buffer = io.BytesIO(b'{"text": "from a pipe"}\n')

    monkeypatch.setattr("sys.stdin", Stream())
    assert list(read("-", format="jsonl")) == [Document("from a pipe", "stdin:1", "-", {})]


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("x.txt", b"", {}, "x.txt is empty"),
        ("x.txt", b"fine\n\x00\x01", {}, "x.txt is not text: a NUL at byte 5"),
        ("x.txt", b"\x89PNG\r\n\x1a\n\xff", {}, "x.txt is not utf-8: 0x89 at byte 0.*PNG image.*--encoding"),
        ("x.txt", "caf\u00e9 au lait".encode("latin-1"), {}, "x.txt is not utf-8: 0xe9 at byte 3 .*--encoding cp1252"),
        ("x.txt", "cut \u00e9".encode()[:-1], {}, "x.txt is not utf-8: 0xc3 at byte 4 "),
        ("x.txt", "wide".encode("utf-16"), {}, "utf-16 byte-order mark; read it with --encoding utf-16"),
        ("x.txt", b"te", {"encoding": "utf-16"}, "x.txt is not utf-16: .*BOM.*--encoding utf-8"),
        ("x.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", {}, "x.jsonl:1: not JSON .*4300 digits"),
        ("x.json", b'[{"text": "a", "n": ' + b"9" * 5000 + b"}]", {}, "x.json: not JSON at character 1 .*4300 digits"),
        ("x.txt", b"x", {"encoding": "utf8000"}, "unknown encoding 'utf8000'"),
        ("x.txt", b"x", {"format": "doc"}, "unknown format 'doc'; allowed: txt, md"),
        ("x.txt", b"x", {"layout": "lines"}, "unknown layout 'lines'; allowed: auto, line"),
        ("x.jsonl", b'{"text": "a"}\n{"body": "b"}\n', {}, r"x.jsonl:2: there is no column 'text'; the columns are: body; .*--text-column"),
        ("x.jsonl", b'{"text": "a"}\n\n{"text": 3}\n', {}, r"x.jsonl:3: the column 'text' holds '3' \(int\), not text"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "a\n', {}, r"x.jsonl:2: not JSON"),
        ("x.jsonl", b"[1]\n", {}, r"x.jsonl:1: a row is an object .* not list"),
        ("x.json", b'[{"text": "a"}, {"text": ]', {}, r"x.json: not JSON at character 16"),
        ("x.json", b'[{"text": "a"}', {}, r"x.json: the JSON list is not closed; .* after 1 rows"),
        ("x.csv", b"a,b\n1,2\n", {}, r"x.csv: there is no column 'text'; the columns are: a, b"),
        ("x.csv", b"text,b\n1,2\n1,2,3\n", {}, r"x.csv:3: 3 columns where there should be 2"),
        ("x.csv", b'text,b\n1,2\n"open,2\n', {}, r"x.csv:3: not valid CSV"),
        ("x.csv", b"text,b\n1,2\n", {"id_column": "key"}, r"there is no column 'key'; the columns are: text, b; choose with --id-column"),
        ("x.parquet", b"PAR1 not really", {}, "x.parquet is not a readable Parquet file"),
        ("x.parquet", b"", {}, "x.parquet is empty"),
        ("x.txt.gz", gzip.compress(b"text " * 1000, mtime=0)[:-20], {}, "the compressed data breaks off"),
        ("x.txt.gz", b"no gzip at all", {}, "x.txt.gz: the compressed data .* damaged after 0 decompressed bytes"),
        ("x.txt.zst", b"no zstandard at all", {}, "x.txt.zst: the compressed data .* damaged"),
    ],
)
def test_bad_files_say_what_is_wrong_and_where(tmp_path: Path, name: str, data: bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(write(tmp_path / name, data), **options)


def test_the_offset_is_right_deep_in_a_file(tmp_path: Path) -> None:
    good = ("é" * 1_200_001).encode()
    with pytest.raises(DataError, match=f"0xff at byte {len(good):,} "):
        texts(write(tmp_path / "x.txt", good + b"\xff" + good))


def test_missing_columns_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column 'text'; the columns are: body, n"):
        texts(tmp_path / "x.parquet")


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder 'nowhere\.txt'"):
        read("nowhere.txt")
    with pytest.raises(DataError, match="no file matches"):
        read(f"{tmp_path}/*.txt")
    with pytest.raises(DataError, match=r"holds no text files \(it is empty"):
        read(tmp_path)
    with pytest.raises(DataError, match="no sources"):
        read([])


def test_skipping_bad_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "good")
    write(tmp_path / "b.txt", "")
    write(tmp_path / "c.txt", b"\xff")
    write(tmp_path / "d.txt", "good too")
    with pytest.raises(DataError, match=r"c\.txt is not utf-8"):
        texts(tmp_path)
    told: list[DataError] = []
    assert texts(tmp_path, on_skip=told.append) == ["good", "good too"]
    assert [str(error).split(" is ")[0][-5:] for error in told] == ["b.txt", "c.txt"]


def test_a_record_without_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_RECORD_CHARS", 1000)
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    line = write(tmp_path / "x.txt", "short\n" + "x" * 2000)
    with pytest.raises(DataError, match=r"x.txt:2: one document of more than 1,000 characters"):
        texts(line)
    block = write(tmp_path / "y.txt", "a\n\n" + "line\n" * 400)
    with pytest.raises(DataError, match=r"y.txt:3: one document"):
        texts(block, layout="blank")
    assert len(texts(block, layout="line")) == 401
    with pytest.raises(DataError, match=r"y.txt:1: one document"):
        texts(block, layout="file")
    row = write(tmp_path / "z.json", json.dumps([{"text": "x" * 5000}]))
    with pytest.raises(DataError, match=r"z.json:1: one document"):
        texts(row)
    cell = write(tmp_path / "z.csv", 'text\n"' + "x\n" * 1000)
    with pytest.raises(DataError, match=r"z.csv:2: not valid CSV: field larger"):
        texts(cell)


def test_a_line_of_many_megabytes_is_one_document(tmp_path: Path) -> None:
    size = 20_000_000
    (document,) = read(write(tmp_path / "x.txt", "word " * (size // 5)))
    assert len(document.text) == size


def test_hub_datasets_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'unmask\[hub\]'"):
        texts("hub:someone/something")


@pytest.mark.parametrize("encoding", ["hex", "rot13", "klingon", "utf-8\0"])
def test_an_encoding_that_makes_no_text_is_refused(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match="unknown encoding"):
        texts(write(tmp_path / "x.txt", "text"), encoding=encoding)


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(DataError, match="a source is empty: ''"):
        texts("")
