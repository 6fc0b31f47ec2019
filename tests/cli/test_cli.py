"""The command line around the verbs: help without weight, exit codes, errors without tracebacks."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import types
import typing

import pytest
import typer

from unmask import cli, errors
from unmask.cli import VERBS, main


def unmask(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "unmask", *args], capture_output=True, text=True, check=False, env=environment)


def code_of(args: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(args)
    return int(caught.value.code or 0)


@pytest.fixture
def verb(monkeypatch):
    """Return a function that makes `unmask fail` a verb that raises what it is given."""

    def make(error: BaseException | None) -> None:
        def fail(times: int = 1) -> int:
            """Fail."""
            if error is not None:
                raise error
            return times

        module = types.ModuleType("unmask.cli.failing")
        module.fail = fail
        monkeypatch.setitem(sys.modules, "unmask.cli.failing", module)
        monkeypatch.setitem(VERBS, "fail", ("failing", "Fail."))

    return make


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["help"]])
def test_help_names_every_verb_with_its_line(args, capsys):
    assert code_of(args) == 0
    out = capsys.readouterr().out
    for name, (_, line) in VERBS.items():
        assert any(row.split(None, 1) == [name, line] for row in out.splitlines()), name


def test_the_help_names_every_task():
    from unmask.tasks.kinds import TASKS

    assert VERBS["finetune"][1] == f"Fine-tune a model for a task: {', '.join(TASKS)}."


def test_nothing_at_all_shows_the_help_and_is_bad_input(capsys):
    assert code_of([]) == 2
    assert capsys.readouterr().out.startswith("Usage: unmask")


def test_the_version_is_that_of_the_package(capsys):
    import unmask as package

    assert code_of(["--version"]) == 0
    assert capsys.readouterr().out == f"unmask {package.__version__}\n"


@pytest.mark.parametrize(("wrong", "right"), [("pretain", "pretrain"), ("tokenize", "tokenizer"), ("Fill", "fill"), ("resum", "resume")])
def test_an_unknown_verb_suggests_the_nearest(wrong, right, capsys):
    assert code_of([wrong, "--help"]) == 2
    assert capsys.readouterr().err == f"unmask: there is no verb '{wrong}'; did you mean '{right}'?\n"


def test_a_verb_like_no_other_gets_the_list(capsys):
    assert code_of(["xyzzy"]) == 2
    assert capsys.readouterr().err == f"unmask: there is no verb 'xyzzy'; verbs: {', '.join(VERBS)}\n"


def test_the_help_of_every_verb_loads_no_torch():
    code = (
        "import json, sys\n"
        "from unmask.cli import VERBS, run\n"
        "codes = {verb: run(verb, ['--help']) for verb in VERBS}\n"
        "print(json.dumps([codes, sorted({'torch', 'transformers', 'matplotlib', 'sklearn'} & set(sys.modules))]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    codes, heavy = json.loads(done.stdout.splitlines()[-1])
    assert codes == dict.fromkeys(VERBS, 0)
    assert heavy == []
    assert done.stdout.count("Usage: unmask ") == len(VERBS)
    for verb in VERBS:
        assert f"Usage: unmask {verb} " in done.stdout


def test_an_error_is_a_line_and_no_traceback_unless_it_is_asked_for(tmp_path):
    args = ["pack", str(tmp_path / "gone.txt"), "-o", str(tmp_path / "out"), "-t", str(tmp_path)]
    done = unmask(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"unmask pack: there is no file or folder '{tmp_path / 'gone.txt'}'")
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    debug = unmask("--debug", *args)
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr and "DataError: there is no file or folder" in debug.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("a.b = 1"), 2),
        (errors.MissingExtra("a.b = 1"), 2),
        (errors.RunError("a.b = 1"), 1),
        (errors.GateError("a.b = 1"), 3),
    ],
)
def test_errors_end_with_their_exit_code(verb, capsys, error, code):
    verb(error)
    assert code_of(["fail"]) == code
    assert capsys.readouterr() == ("", "unmask fail: a.b = 1\n")


def test_debug_may_stand_anywhere_and_keeps_the_exit_code(verb, capsys):
    verb(errors.ConfigError("a.b = 1"))
    for args in (["--debug", "fail"], ["fail", "--debug"]):
        assert code_of(args) == 2
        assert "Traceback" in capsys.readouterr().err


def test_an_interruption_ends_with_130(verb, capsys):
    verb(KeyboardInterrupt())
    assert code_of(["fail"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interruption_while_the_arguments_are_read_is_said_too(monkeypatch, capsys):
    def interrupted(value: int) -> int:
        raise KeyboardInterrupt

    def fail(times: int = typer.Option(1, callback=interrupted)) -> None:
        """Fail."""

    module = types.ModuleType("unmask.cli.failing")
    module.fail = fail
    monkeypatch.setitem(sys.modules, "unmask.cli.failing", module)
    monkeypatch.setitem(VERBS, "fail", ("failing", "Fail."))
    assert code_of(["fail"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_of_our_own_is_not_dressed_up_as_the_user_s(verb):
    verb(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        main(["fail"])


def test_what_a_verb_returns_is_the_exit_code(verb):
    verb(None)
    assert code_of(["fail", "--times", "3"]) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fail", "--tims", "3"], "No such option"),
        (["fail", "--times", "many"], "Invalid value for '--times'"),
        (["fail", "extra"], "unexpected extra argument"),
        (["pack", "x.txt"], "Missing option '--out'"),
    ],
)
def test_a_wrong_flag_is_bad_input_and_says_so(verb, capsys, args, message):
    verb(None)
    assert code_of(args) == 2
    captured = capsys.readouterr()
    assert message.lower() in captured.err.lower() and captured.out == ""


# of options whose numbers a recipe's classes look at, or that may be any number
ANY_NUMBER = {"seed", "minutes", "steps", "epochs", "tokens", "held_out", "replay_ratio", "batch_size", "max_length", "learning_rate",
              "layer_decay", "freeze", "lora", "patience", "seeds"}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_has_its_bounds(verb):
    function = getattr(importlib.import_module(f"unmask.cli.{VERBS[verb][0]}"), verb)
    hints = typing.get_type_hints(function, include_extras=True)
    numbers = {name for name, hint in hints.items() if re.search(r"\b(int|float)\b", str(typing.get_args(hint)[:1]))}
    free = {name for name in numbers if hints[name].__metadata__[0].min is None}
    assert free <= (ANY_NUMBER if verb in ("pretrain", "adapt", "resume", "finetune") else {"seed"})


@pytest.mark.parametrize(
    "args",
    [
        ("predict RUN text", "--top-k", "0"), ("predict RUN text", "--top-k", "-1"), ("predict RUN text", "--batch-tokens", "0"),
        ("export MODEL -o X", "--max-tokens", "-5"), ("export MODEL -o X", "--max-drop", "-1"), ("export MODEL -o X", "--max-drop", "nan"),
        ("evaluate MODEL", "--views", "0"), ("evaluate MODEL", "--resamples", "-1"), ("evaluate MODEL", "--max-tokens", "-1"),
        ("compare A B -d X", "--margin", "nan"), ("compare A B -d X", "--margin", "inf"), ("compare A B -d X", "--margin", "-1"),
        ("compare A B -d X", "--resamples", "-1"), ("compare A B -d X", "--show", "-1"), ("score MODEL text", "--context", "-1"),
        ("fill [MASK]", "--beam", "0"), ("fill [MASK]", "--max-length", "-3"), ("bench MODEL", "--length", "0"),
        ("bench MODEL", "--length", "1" + "0" * 30), ("bench MODEL", "--batch", "1" + "0" * 30),
        ("bench MODEL", "--seconds", "0"), ("bench MODEL", "--seconds", "nan"), ("plan X.toml", "--rate", "nan"),
        ("plan X.toml", "--efficiency", "-1"), ("status RUN", "--seconds", "nan"), ("status RUN", "--seconds", "1e300"),
        ("serve MODEL", "--port", "-1"),
        ("serve MODEL", "--port", "70000"), ("serve MODEL", "--max-tokens", "0"), ("serve MODEL", "--client-seconds", "inf"),
        ("doctor X.csv --task classify", "--max-length", "0"), ("demo", "--minutes", "0"), ("demo", "--minutes", "nan"),
        ("tokenizer X -o Y", "--vocab-size", "-1"), ("tokenizer X -o Y", "--min-frequency", "0"), ("pack X -o Y -t Z", "--held-out", "nan"),
        ("pack X -o Y -t Z", "--workers", "0"), ("pretrain -o X", "--minutes", "nan"), ("finetune qa MODEL", "--learning-rate", "inf"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_is_refused_before_anything_is_done(capsys, args):
    assert code_of([*args[0].split(), *args[1:]]) == 2
    captured = capsys.readouterr()
    assert args[1] in captured.err and not captured.out and "Traceback" not in captured.err


@pytest.mark.parametrize("args", ["evaluate X.txt", "evaluate MODEL --pairs X.txt", "compare A B -d X.txt"])
def test_too_many_resamples_are_refused_before_anything_is_done(capsys, args):
    assert code_of([*args.split(), "--resamples", "1000001"]) == 2
    captured = capsys.readouterr()
    assert "resamples = 1000001; allowed: 0 (no intervals) to 1,000,000" in captured.err and not captured.out


def test_a_reader_that_has_gone_away_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "unmask", "pack", "--help"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_python_dash_m_is_the_same_command():
    done = unmask("--version")
    assert (done.returncode, done.stdout) == (0, f"unmask {cli.__version__}\n")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PermissionError(13, "Permission denied", "/x"), 2, "unmask fail: '/x': Permission denied; name a path"),
        (OSError(28, "No space left on device", "/x"), 1, "make room"),
        (OSError("odd"), 1, "unmask fail: odd; `unmask --debug`"),
    ],
)
def test_what_the_system_refuses_is_an_error_line(verb, capsys, error, code, said):
    verb(error)
    assert code_of(["fail"]) == code
    written = capsys.readouterr().err
    assert said in written and "Traceback" not in written


def test_half_a_character_does_not_stop_the_output():
    code = "from unmask.cli import main; import unmask.cli as c; c.dispatch = lambda args: print(args[0]) or 0; main(['a\\udcffb'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a\\udcffb\n"), done.stderr


def test_being_terminated_at_the_very_end_leaves_no_traceback():
    code = "import atexit, os, signal; atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM)); from unmask.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and done.stdout.startswith("unmask ") and not done.stderr


def test_being_terminated_clears_up_as_ctrl_c_does():
    code = (
        "import os, signal, unmask.cli as c\n"
        "def verb(args):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "    finally: print('cleared')\n"
        "c.dispatch = verb; c.main(['x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleared\n", "interrupted\n")
