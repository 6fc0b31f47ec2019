"""Imports point one way, and what a newcomer types first loads no torch."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unmask

ROOT = Path(unmask.__file__).parent
ORDER = ["box", "data", "model", "train", "infer", "tasks", "evaluate", "export", "serve", "cluster", "cli"]
GROUND = ["config", "errors", "rng"]  # modules that everything may import and that import only each other
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imports(source: str, module: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name below unmask) of every import of unmask's own in a module, wherever in the file it stands."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["unmask", *module.parent.parts]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        found += [(node.lineno, name.removeprefix("unmask.")) for name in names if name.startswith("unmask.")]
    return found


def backwards(source: str, module: Path) -> list[str]:
    """Return what a module imports that it may not."""
    own = module.parts[0].removesuffix(".py")
    wrong = []
    for line, name in imports(source, module):
        other = name.split(".")[0]
        if own in ORDER:
            bad = other in ORDER and ORDER.index(other) > ORDER.index(own)
        else:
            bad = own in GROUND and other in ORDER
        if bad:
            wrong.append(f"{module}:{line} imports unmask.{name}")
    return wrong


def test_imports_point_one_way():
    wrong = [item for module in MODULES for item in backwards((ROOT / module).read_text(encoding="utf-8"), module)]
    assert not wrong, "imports go data -> model -> train -> infer -> tasks -> evaluate -> cli:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data/x.py", "from ..model.load import load_model"),
        ("data/x.py", "from unmask.train import run"),
        ("model/x.py", "def f():\n    from .. import train"),
        ("model/x.py", "import unmask.cli.train"),
        ("rng.py", "from .data import batch"),
    ],
)
def test_a_backward_import_is_seen(module, line):
    assert backwards(line, Path(module))


def test_every_package_has_its_place():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(ORDER), f"give {packages - set(ORDER)} a place in the order of imports"


@pytest.mark.parametrize(
    "statement",
    [
        "import unmask",
        "import unmask; unmask.UnmaskError; dir(unmask)",
        "from unmask.cli import usage; usage()",
        "import unmask.data.text, unmask.data.clean, unmask.data.pack, unmask.data.tokenizer, unmask.data.store, unmask.data.masking",
        "import unmask.config, unmask.errors, unmask.rng, unmask.data.batch",
    ],
)
def test_no_torch_until_it_is_needed(statement):
    code = f"{statement}\nimport sys\nprint(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_first_command_imports_no_torch(flag):
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "unmask", flag], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout
    heavy = {"torch", "transformers", "tokenizers", "numpy", "pyarrow"}
    assert not heavy & {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("name", unmask.__all__)
def test_public_names_are_there(name):
    assert getattr(unmask, name) is not None


def test_a_name_that_is_not_there_says_what_is():
    with pytest.raises(AttributeError, match="no attribute 'pretain'; public names: .*pretrain"):
        unmask.pretain  # noqa: B018


def test_every_verb_is_a_function():
    from unmask.cli import VERBS

    for verb, (module, _) in VERBS.items():
        assert callable(getattr(importlib.import_module(f"unmask.cli.{module}"), verb)), verb
