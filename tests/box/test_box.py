"""The model in the box is used where none is named, by every verb, and says so; what is named goes first."""

from __future__ import annotations

import json
import shutil

import pytest

import unmask
from unmask import box
from unmask.cli import main
from unmask.cli.model import split
from unmask.errors import CheckpointError

TEXT = "The [MASK] helps the judge today."


def run(*args, code=0):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    assert (ended.value.code or 0) == code


@pytest.fixture
def boxed(tiny_bert, monkeypatch):
    """A tiny model in the place of the one in the box."""
    monkeypatch.setattr(box, "FOLDER", tiny_bert)
    return tiny_bert


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A package without a model in it."""
    monkeypatch.setattr(box, "FOLDER", tmp_path / "model")
    return tmp_path / "model"


# the rule of the help: the first argument is the model if it is a folder, or holds no mask and either no space or the beginning of a path
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "<mask> helps.",
        "___",
        "[MASK]",
        "a sentence without a mask",
        "no/folder with words",
        "runs/[MASK]",
        "/etc is a [MASK] .",
        "two\nlines",
    ],
)
def test_what_is_read_as_a_text(text):
    assert split([text]) == (None, [text])
    assert split([text, "bert-base-uncased"]) == (None, [text, "bert-base-uncased"])
    assert split(["bert-base-uncased", text]) == ("bert-base-uncased", [text])


@pytest.mark.parametrize(
    "name",
    ["bert-base-uncased", "org/name", "runs/gone/model", "./gone", "../gone", "/gone", "~/gone", "/gone/with words", "./a b", "box", ""],
)
def test_what_is_read_as_a_model(name):
    assert split([name]) == (name, [])
    assert split([name, TEXT]) == (name, [TEXT])


def test_a_folder_is_a_model_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a ___ b", "[MASK]", "two words"):
        (tmp_path / name).mkdir()
        assert split([name, TEXT]) == (name, [TEXT])
    assert split(None) == split([]) == (None, []) and split(["x " * 5000])[0] is None


@pytest.mark.parametrize("verb", ["fill", "score"])
def test_the_help_says_the_rule(verb, capsys):
    run(verb, "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert "[MODEL] [TEXT]..." in said and "holds no mask and either no space" in said and "the one in the box is used" in said


def test_fill_and_score_without_a_model(boxed, tmp_path, capsys):
    run("fill", TEXT, "--json")
    found = capsys.readouterr()
    run("fill", boxed, TEXT, "--json")
    assert found.out == capsys.readouterr().out and found.err == box.SAID + "\n"
    (tmp_path / "texts.txt").write_text(f"{TEXT}\n")
    run("fill", "--data", tmp_path / "texts.txt", "--json", "-k", 1)
    assert json.loads(capsys.readouterr().out)["text"] == TEXT
    run("score", "The nurse helps the judge.", "--json")
    found = capsys.readouterr()
    assert box.SAID in found.err
    run("score", "box", "The nurse helps the judge.", "--json")  # its name, where a name is wanted; then nothing need be said
    again = capsys.readouterr()
    assert again.out == found.out and again.err == ""


@pytest.mark.parametrize("verb", ["fill", "score"])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("./gone", "there is no folder './gone'"),
        ("runs/gone/model", "there is no folder 'runs/gone/model'"),
        ("", "'' has no config.json"),
        ("no-such-model", "can be had from the Hub"),
    ],
)
def test_a_model_that_is_not_there_is_no_text(boxed, verb, name, why, capsys):
    run(verb, name, TEXT, code=2)
    assert why in capsys.readouterr().err
    run(verb, name, code=2)
    said = capsys.readouterr().err
    assert f"there is no text to {verb} ({name!r} is read as the MODEL" in said


def test_nothing_at_all_says_what_to_give(boxed, capsys):
    run("fill", code=2)
    assert capsys.readouterr().err == (
        "unmask fill: there is no text to fill; give one, such as 'The [MASK] is playing.', or --data FILE ('-' is standard input)\n"
    )


def test_a_package_without_a_model_says_so(empty, capsys):
    for args in (["fill", TEXT], ["score", "a text"], ["evaluate", "--data", "x"], ["serve"], ["bench"], ["export", "-o", "x"]):
        run(*args, code=2)
        assert f"this copy of the package holds no box model ('{empty}'); name a model: a folder or a Hub id" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="holds no box model"):
        unmask.Filler.load()


def test_python_without_a_model(boxed, sentences_file):
    assert unmask.box_model() == boxed
    expected = unmask.Filler.load(boxed).fill(TEXT)
    assert unmask.Filler.load().fill(TEXT) == unmask.fill(None, TEXT) == expected
    assert unmask.score(None, TEXT).total == next(unmask.Scorer.load().score([TEXT])).total == unmask.score(boxed, TEXT).total
    found = unmask.evaluate(data=sentences_file, resamples=0, max_tokens=500)
    assert found["masked_loss"] == unmask.evaluate(boxed, sentences_file, resamples=0, max_tokens=500)["masked_loss"]


def test_a_folder_called_box_goes_first(boxed, tmp_path, monkeypatch):
    assert box.or_box("box") == boxed and box.or_box("other") == "other"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(boxed, "box")
    assert box.or_box("box") == "box" and not box.is_box("box")


def test_evaluate_and_compare(boxed, sentences_file, tmp_path, capsys):
    run("evaluate", "--data", sentences_file, "--max-tokens", 500, "--resamples", 0, "--json")
    found = capsys.readouterr()
    assert box.SAID in found.err and json.loads(found.out)["num_masked_tokens"] > 0
    run("evaluate", code=2)
    assert "no text is named" in capsys.readouterr().err
    run("compare", "box", boxed, "--data", sentences_file, "--resamples", 50, "--json")
    assert json.loads(capsys.readouterr().out)["verdict"] == "equivalent"


def test_adapt_starts_from_it(boxed, sentences_file, tmp_path, capsys):
    flags = [
        "--steps",
        1,
        "-s",
        "train.device=cpu",
        "-s",
        "train.precision=fp32",
        "-s",
        "data.max_length=32",
        "-s",
        "data.batch_tokens=256",
    ]
    run("adapt", "--data", sentences_file, "-o", tmp_path / "run", *flags, "--held-out", 0.1)
    assert box.SAID in capsys.readouterr().err
    assert f'base_model = "{boxed}"' in (tmp_path / "run" / "config.toml").read_text()
    recipe = tmp_path / "own.toml"
    recipe.write_text("[train]\nmax_steps = 1\n")
    run("adapt", recipe, "--data", sentences_file, "-o", tmp_path / "again", *flags[2:], "--held-out", 0)
    assert box.SAID in capsys.readouterr().err


def test_finetune_starts_from_it(boxed, tmp_path, capsys):
    rows = [f"The {who} {what}.,{label}" for who in ("nurse", "judge", "sailor", "farmer") for what, label in (("helps", 1), ("warns", 0))]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    run("finetune", "classify", "--train", tmp_path / "train.csv", "--dry-run")
    assert box.SAID in capsys.readouterr().err
    run("finetune", "classify", "--train", tmp_path / "train.csv", "-o", tmp_path / "run", "--steps", 1, "-s", "train.device=cpu",
        "-s", "train.precision=fp32")  # fmt: skip
    assert box.SAID in capsys.readouterr().err
    assert f'base_model = "{boxed}"' in (tmp_path / "run" / "config.toml").read_text()


def test_cards_and_reports_call_it_by_its_name():
    from unmask.train.card import shown

    assert shown(str(box.FOLDER)) == "box" and shown("/runs/mine/model") == "mine" and shown("bert-base-uncased") == "bert-base-uncased"
