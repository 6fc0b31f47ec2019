"""`unmask demo` on a small folder of text: what it leaves, what it prints, and that it can be done again."""

import json
import os
import random
import shutil

import pytest

from unmask import box
from unmask.cli import main
from unmask.data.whole import alone
from unmask.errors import CheckpointError, DataError
from unmask.evaluate.demo import collect, demo, make_room, text_beside

SUBJECTS = ("array", "list", "value", "file", "number", "name", "object", "string", "line", "index")
VERBS = ("Return", "Remove", "Print", "Copy", "Sort", "Read", "Write", "Count")
TINY = [
    "model.preset=tiny", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64", "data.vocab_size=200",
    "data.max_length=32", "data.batch_tokens=256", "data.held_out=0.2", "train.max_steps=3", "train.precision=fp32", "train.device=cpu",
]  # fmt: skip
FLAGS = [part for setting in TINY for part in ("--set", setting)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of documents of a few sentences of plain prose each."""
    choose, folder = random.Random(2), tmp_path_factory.mktemp("docs")
    for number in range(150):
        sentences = [
            f"{choose.choice(VERBS)} the {choose.choice(SUBJECTS)} of every {choose.choice(SUBJECTS)} in the {choose.choice(SUBJECTS)}."
            for _ in range(choose.randint(3, 6))
        ]
        (folder / f"{number:03d}.txt").write_text(f"{' '.join(sentences)}\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def boxed(tiny_bert):
    """A tiny model in the place of the one in the box."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box, "FOLDER", tiny_bert)
        yield tiny_bert


@pytest.fixture(scope="module")
def made(texts, tmp_path_factory):
    """The metrics of a demo and its folder; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return demo(folder, sources=[str(texts)], overrides=TINY), folder


def unmask(*args):
    with pytest.raises(SystemExit) as end:
        main([*map(str, args)])
    return end.value.code


def test_what_a_demo_leaves(made):
    metrics, folder = made
    kept = json.loads((folder / "metrics.json").read_text())
    for row in (kept, kept["unigram"], kept["untrained"]):
        assert 0 <= row["masked_accuracy"] <= 1 and row["masked_perplexity"] > 1
        assert row["num_masked_tokens"] == kept["num_masked_tokens"] > 0
    assert kept["masks_fingerprint"] and kept.items() <= metrics.items()
    examples = json.loads((folder / "examples.json").read_text())
    assert examples == metrics["examples"] and examples
    for example in examples:
        assert example["text"].count("[MASK]") == 1 and len(example["candidates"]) == 5
    page = (folder / "report.html").read_text()
    assert "Filled masks" in page and "<svg" in page and page.count("<article>") == len(examples)
    assert "Beside the model in the box" in page and page.count("the same, adapted") == len(examples) + 1
    assert {path.name for path in folder.parent.iterdir()} == {"demo"}  # the text went into the folder


def test_the_box_before_and_after_beside_the_one_from_scratch(made, boxed):
    metrics, folder = made
    from unmask.evaluate.compare import compare

    # tokens of its own vocabulary: the same before and after
    assert metrics["box"]["num_masked_tokens"] == metrics["adapted"]["num_masked_tokens"] > 0
    found = metrics["words"]
    assert set(found["rows"]) == {"box", "adapted", "from_scratch"} and found["num_words"] > 0
    # on the same words as `unmask compare`, and the same numbers
    pair = compare(folder / "model", folder / "adapted" / "model", folder / "corpus" / "heldout.jsonl", max_length=128)
    assert pair.info["masks_fingerprint"] == found["masks_fingerprint"]
    for side, name in (("a", "from_scratch"), ("b", "adapted")):
        assert getattr(pair.metrics["bits_per_byte"], side) == pytest.approx(found["rows"][name]["bits_per_byte"])
    change = found["differences"]["adapted - box"]["bits_per_byte"]
    assert change["a"] == pytest.approx(found["rows"]["box"]["bits_per_byte"]) and change["low"] <= change["difference"] <= change["high"]
    # both were held out the same documents
    held = [[json.loads(line)["text"] for line in (place / "corpus" / "heldout.jsonl").open()] for place in (folder, folder / "adapted")]
    assert sorted(held[0]) == sorted(held[1])
    for example in metrics["examples"]:
        assert len(example["box"]) == len(example["adapted"]) == 5


def test_without_a_model_in_the_box_the_rest_is_shown(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(box, "FOLDER", tmp_path / "none")
    assert unmask("demo", "-o", tmp_path / "demo", "--data", texts, *FLAGS) == 0
    captured = capsys.readouterr()
    assert "holds no box model" in captured.err and "adapted" not in captured.out and str(tmp_path / "demo" / "model") in captured.out
    assert "words" not in json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert "Filled masks" in (tmp_path / "demo" / "report.html").read_text()


def test_the_model_is_one_that_fills(made, capsys):
    _, folder = made
    assert unmask("fill", folder / "model", "Return the [MASK] of every list.", "--json") == 0
    assert "masks" in capsys.readouterr().out


def test_a_second_demo_moves_the_first_aside(made, texts, tmp_path, capsys):
    folder = tmp_path / "demo"
    shutil.copytree(made[1], folder)
    before = (folder / "metrics.json").read_bytes()
    assert unmask("demo", "-o", folder, "--data", texts, *FLAGS) == 0
    captured = capsys.readouterr()
    assert f"the demo that was in {folder} is now in {folder}-old-1" in captured.err
    assert (tmp_path / "demo-old-1" / "metrics.json").read_bytes() == before
    last = " ".join(captured.out.split())
    places = [str(folder / name) for name in ("model", "adapted/model", "metrics.json", "report.html")]
    for text in (*places, "unmask fill", "unmask adapt", "unmask pretrain", "untrained", "the model in the box"):
        assert text in last, text


def test_json_alone_is_on_standard_output(texts, tmp_path, capsys):
    assert unmask("demo", "--output", tmp_path / "demo", "--data", texts, "--json", *FLAGS) == 0
    assert json.loads(capsys.readouterr().out)["examples"]


def test_the_report_can_be_made_again(made, tmp_path, capsys):
    folder = tmp_path / "demo"
    shutil.copytree(made[1], folder)
    (folder / "report.html").unlink()
    (folder / "examples.json").unlink()
    assert unmask("report", folder) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "Filled masks" in (folder / "report.html").read_text()
    assert json.loads((folder / "examples.json").read_text()) == made[0]["examples"]


def test_the_report_fills_again_when_the_model_is_newer(made, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(made[1], folder)
    (folder / "examples.json").write_text("[]")
    weights = folder / "model" / "model.safetensors"
    later = (folder / "examples.json").stat().st_mtime + 5
    assert unmask("report", folder) == 0 and "Filled masks" not in (folder / "report.html").read_text()
    os.utime(weights, (later, later))
    assert unmask("report", folder) == 0 and "Filled masks" in (folder / "report.html").read_text()


def test_what_is_no_demo_is_not_touched(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    assert make_room(folder) is None
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="was not made by `unmask demo`; name another folder"):
        demo(folder, sources="python-docs")
    assert [path.name for path in tmp_path.iterdir()] == ["demo"] and (folder / "thesis.tex").read_text() == "years of work"


def test_a_demo_that_was_killed_is_moved_aside(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "config.toml").write_text("")
    text_beside(folder).write_text("")
    (tmp_path / "demo-old-1").mkdir()
    assert make_room(folder) == tmp_path / "demo-old-2"
    assert not folder.exists() and (tmp_path / "demo-old-2" / "config.toml").exists()


@pytest.mark.parametrize("part", [".", "adapted"])
def test_a_demo_that_another_process_is_at_is_not_moved_away(tmp_path, part):
    (tmp_path / "demo" / "adapted").mkdir(parents=True)
    (tmp_path / "demo" / "demo.json").write_text("{}")
    with alone(tmp_path / "demo" / part), pytest.raises(CheckpointError, match="another process is at work on"):
        make_room(tmp_path / "demo")
    assert make_room(tmp_path / "demo") == tmp_path / "demo-old-1"


def test_folders_without_a_name(tmp_path, monkeypatch):
    for name in ("empty", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told: list[str] = []
    with pytest.raises(DataError):
        demo(".", sources=["../empty", "."], say=told.append)
    assert told == ["reading ../empty, ."]  # not a list as Python writes it
    with pytest.raises(CheckpointError, match="'/' cannot be the folder of a demo"):
        demo("/", sources=[str(tmp_path / "empty")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "here"]


def test_the_text_of_a_demo_that_was_killed_may_be_that_of_the_next(tmp_path):
    text = text_beside(tmp_path / "demo")
    text.write_text(json.dumps({"text": "A line that was collected before."}) + "\n")
    assert collect([str(text)], text)[0] == 1
    assert "collected before" in text.read_text()


def test_no_text(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        collect([str(tmp_path / "empty")], tmp_path / "text.jsonl")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n")
    with pytest.raises(DataError, match=r"there is no text in [^\[]*a\.txt, [^']*b\.txt; name files"):
        collect([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tmp_path / "text.jsonl")
