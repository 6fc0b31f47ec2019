"""The command `unmask`: a table of verbs, each imported when it is used."""

from __future__ import annotations

import difflib
import errno
import functools
import importlib
import io
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from .. import __version__
from ..errors import ConfigError, UnmaskError

# verb -> (module beside this one, the line that `unmask --help` shows)
VERBS = {
    "pack": ("pack", "Turn text files into a packed corpus: cleaned, de-duplicated, split, tokenized."),
    "tokenizer": ("tokenizer", "Train a tokenizer on text files, or describe one."),
    "pretrain": ("train", "Pre-train a masked language model from scratch."),
    "adapt": ("train", "Continue the pre-training of an existing model on the text of a domain."),
    "resume": ("train", "Go on with an interrupted run, exactly where it stood."),
    "plan": ("plan", "Say what a run takes of memory, disk and time, on devices that may be elsewhere."),
    "status": ("status", "Say how a run stands, while another process is at it or after."),
    "doctor": ("doctor", "Look at labelled data: what is wrong with it, before anything is trained on it."),
    "finetune": ("finetune", "Fine-tune a model for a task: classify, ner, qa."),
    "predict": ("predict", "Say what a fine-tuned model says of texts."),
    "fill": ("fill", "Fill the masks in a text."),
    "evaluate": ("evaluate", "Measure a model on hidden tokens of a text: loss, accuracy, F1, calibration, intervals."),
    "score": ("score", "Score texts: how probable does a model find each text, word and token?"),
    "compare": ("compare", "Say whether one model is better than another on a text."),
    "report": ("report", "Make the report page of a run, an evaluation or a comparison again."),
    "export": ("export", "Make a model a folder that runs without torch: ONNX, in fp32 or int8."),
    "bench": ("bench", "Time a model on this machine, with every backend and precision."),
    "serve": ("serve", "Serve models over HTTP, with a page to play with."),
    "demo": ("demo", "From the documentation on this machine to a filled mask, in a few minutes."),
}


def usage() -> str:
    """Return what `unmask --help` prints."""
    width = max(map(len, VERBS))
    lines = ["Usage: unmask [--debug] VERB [OPTIONS]", "", "From raw text to a masked language model that works for you.", "", "Verbs:"]
    lines += [f"  {name:{width}}  {text}" for name, (_, text) in VERBS.items()]
    lines += ["", "`unmask VERB --help` tells more; --version shows the version, --debug the traceback of an error."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 well, 1 failed while running, 2 bad input, 3 a gate not passed, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # half a character on the command line is shown escaped, as JSON does it
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)  # as Ctrl-C: what is half made is cleared away
    try:
        code = dispatch(args)
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has gone; say nothing more to them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UnmaskError, OSError) as error:
        if debug:
            traceback.print_exc()
        said, code = (str(error), error.exit_code) if isinstance(error, UnmaskError) else refused(error)
        print(f"unmask{' ' + args[0] if args else ''}: {said}", file=sys.stderr)
        sys.exit(code)
    finally:
        if signal.getsignal(signal.SIGTERM) is _terminated:  # what Python does at its end is not to be interrupted with a traceback
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def refused(error: OSError) -> tuple[str, int]:
    """Return what to say of a refusal of the system that no verb knew better, and the exit code: 2 for a path that is wrong, else 1."""
    what = f"'{error.filename}': {error.strerror}" if error.filename is not None and error.strerror else str(error)
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)) or (
        error.errno in (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
    ):
        return f"{what}; name a path that exists and that you may read (or, for an output, write)", 2
    todo = "make room, then try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "`unmask --debug` shows where"
    return f"{what}; {todo}", 1


def dispatch(args: list[str]) -> int:
    """Answer what needs no verb, and run the verb otherwise; return the exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("--version", "-V"):
        print(f"unmask {__version__}")
        return 0
    verb, *rest = args
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"verbs: {', '.join(VERBS)}"
        print(f"unmask: there is no verb '{verb}'; {hint}", file=sys.stderr)
        return 2
    return run(verb, rest)


def _interruptible(function: Callable[..., Any], began: list[bool]) -> Callable[..., Any]:
    """Return a verb that says when it was interrupted, and refuses numbers that are none, both of which typer would pass over.

    `began` is told that it ran.
    """

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> Any:
        began.append(True)
        for name, value in kwargs.items():  # whatever the bounds of an option are, NaN is not outside of them
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"--{name.replace('_', '-')} {value} is no number to work with; give a finite one")
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return verb


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def run(verb: str, args: list[str]) -> int:
    """Import the module of a verb, let typer read its arguments, and run it."""
    import typer

    function = getattr(importlib.import_module(f".{VERBS[verb][0]}", __name__), verb)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    began: list[bool] = []
    app.command(verb, context_settings={"help_option_names": ["-h", "--help"]})(_interruptible(function, began))
    try:
        code = app(args=args, prog_name=f"unmask {verb}", standalone_mode=False) or 0
        if code == 130 and not began:  # typer was, while it read the arguments, and says nothing
            raise KeyboardInterrupt
        return code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # typer's own usage errors know how to print themselves; everything else goes on up
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
