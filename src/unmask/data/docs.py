"""The documentation of the Python packages on this machine as a corpus: megabytes of real domain text, no download."""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import RunError
from .prose import markdown_prose, paragraphs, rst_prose
from .text import Document

SKIPPED_FOLDERS = {
    "tests",
    "test",
    "_vendor",
    "vendored",
    "third_party",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "node_modules",
}
MAX_SOURCE_BYTES = 4 << 20
LONG_WORDS = 20  # a docstring of this many words is a document; shorter ones of a class or module are put together
GROUP_WORDS = 120
LEAST_WORDS = 8
Entry = tuple[int, int, list[str]]
PLACEHOLDER = re.compile(r"\{\w*\}|%\(\w+\)s")


def python_docs(folders: Sequence[str | Path] | None = None, *, num_workers: int | None = None) -> Iterator[Document]:
    """Yield the prose of the docstrings, .rst and .md files of the standard library and the installed packages.

    A document is a docstring of several sentences, or the short docstrings of one class or module together; sources are parsed,
    never imported; a paragraph that came before is left out; the order is that of the sorted file names, whatever `num_workers`.
    """
    roots = _roots() if folders is None else [Path(folder) for folder in folders]
    paths = [(root, path) for root in roots for path in sorted(_files(root), key=lambda path: path.relative_to(root).parts)]
    if num_workers is None:
        num_workers = min(8, os.cpu_count() or 1) if len(paths) > 500 else 1
    seen: set[bytes] = set()
    for (root, path), entries in zip(paths, _extract_all([str(path) for _, path in paths], num_workers), strict=True):
        name = path.relative_to(root).as_posix()
        package = name.split("/")[0].removesuffix(".py").split("-")[0]
        for line, text in _group(entries, seen):
            yield Document(text, f"{name}:{line}", "python-docs", {"package": package})


def _extract_all(paths: list[str], num_workers: int) -> Iterator[list[Entry]]:
    """Yield what every file holds, in order; the parsing, which takes its time, is shared by processes of their own."""
    if num_workers < 2:
        for path in paths:
            yield extract(Path(path))
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", f"from {__name__} import _serve; _serve()"]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(num_workers)]
    try:
        for number, worker in enumerate(workers):
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(paths[number::num_workers]).encode())
            worker.stdin.close()
        for number in range(len(paths)):
            pipe = workers[number % num_workers].stdout
            line = pipe.readline() if pipe is not None else b""
            if not line:
                raise RunError(
                    f"a process that parses the documentation ended before {paths[number]}; try again with less running beside it"
                )
            yield json.loads(line)
    finally:
        for worker in workers:
            if worker.stdout is not None:
                worker.stdout.close()
            worker.terminate()
            worker.wait()


def _serve() -> None:
    """Read a list of files from the standard input and write what each holds, a line of JSON a file."""
    gc.disable()  # syntax trees hold many objects and no cycles
    try:
        for path in json.loads(sys.stdin.buffer.read()):
            sys.stdout.write(json.dumps(extract(Path(path))) + "\n")
    except (BrokenPipeError, KeyboardInterrupt):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _roots() -> list[Path]:
    paths = sysconfig.get_paths()
    return list(dict.fromkeys(Path(paths[key]).resolve() for key in ("stdlib", "purelib", "platlib") if Path(paths[key]).is_dir()))


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        for name in names:
            if (name.endswith((".py", ".rst", ".md")) and "LICENSE" not in name.upper()) or name == "METADATA":
                yield Path(folder, name)


def extract(path: Path) -> list[Entry]:
    """Return (line, line of the class or 0 for the module, paragraphs) of the docstrings of a file; a text file has one."""
    try:
        if path.stat().st_size > MAX_SOURCE_BYTES:
            return []
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []  # a file that cannot be read has no documentation for us
    if path.suffix != ".py":
        return [(1, 0, _readme(path, text))]
    if '"""' not in text and "'''" not in text:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [(line, owner, paragraphs(docstring)) for line, owner, docstring in sorted(_docstrings(tree))]


def _group(entries: list[Entry], seen: set[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the documents made of a file's docstrings."""
    short: list[str] = []
    short_line, short_owner = 0, -1
    for line, owner, texts in entries:
        fresh = _fresh(texts, seen)
        if _num_words(fresh) >= LONG_WORDS:
            yield line, "\n".join(fresh)
            continue
        if short and (owner != short_owner or _num_words(short) > GROUP_WORDS):
            if _num_words(short) >= LEAST_WORDS:
                yield short_line, "\n".join(short)
            short = []
        if fresh:
            short_line, short_owner = short_line if short else line, owner
            short += fresh
    if _num_words(short) >= LEAST_WORDS:
        yield short_line, "\n".join(short)


def _num_words(texts: list[str]) -> int:
    return sum(len(text.split()) for text in texts)


def _readme(path: Path, text: str) -> list[str]:
    head = ""
    if path.name == "METADATA":  # a package's long description follows the headers
        head, _, text = text.partition("\n\n")
    is_rst = path.suffix == ".rst" or (path.name == "METADATA" and "markdown" not in head)
    return (rst_prose(text) if is_rst else markdown_prose(text)).split("\n")


def _fresh(texts: list[str], seen: set[bytes]) -> list[str]:
    """Return the paragraphs that have not come before, and remember them: packages repeat each other's boilerplate."""
    fresh = []
    for text in texts:
        key = hashlib.blake2b(text.lower().encode("utf-8", "replace"), digest_size=8).digest()
        if text and key not in seen:
            seen.add(key)
            fresh.append(text)
    return fresh


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, int, str]]:
    """Yield (line, line of the class or 0 for the module, text) of every docstring: bare strings in bodies, and long strings
    handed to a call that is a statement, which is how compiled functions get theirs (add_newdoc, add_docstr)."""
    todo: list[tuple[ast.AST, int]] = [(tree, 0)]
    while todo:
        node, owner = todo.pop()
        for child in getattr(node, "body", ()) if not isinstance(node, ast.Lambda) else ():
            match child:
                case ast.Expr(value=ast.Constant(value=str() as text)):
                    yield child.lineno, owner, inspect.cleandoc(text)
                case ast.Expr(value=ast.Call() as call):
                    yield from ((child.lineno, owner, text) for text in _handed(call))
                case ast.Assign(value=ast.Dict(values=values)) if node is tree:  # the language reference in pydoc_data
                    for value in values:
                        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.count("\n") > 5:
                            yield value.lineno, owner, inspect.cleandoc(value.value)
                case ast.ClassDef():
                    todo.append((child, child.lineno))
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.If() | ast.Try() | ast.With():
                    todo.append((child, owner))


def _handed(call: ast.Call) -> Iterator[str]:
    for argument in call.args:
        if isinstance(argument, ast.Tuple):
            yield from _handed(ast.Call(func=call.func, args=argument.elts, keywords=[]))
        if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Attribute):
            argument = argument.func.value  # "...".format(**common)
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str) and argument.value.count("\n") > 2:
            yield PLACEHOLDER.sub("", inspect.cleandoc(argument.value))
