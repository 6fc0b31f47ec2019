"""The tree of errors: as its docstring draws it, and what the command line makes of it."""

from __future__ import annotations

import inspect
import re

import pytest

from unmask import errors
from unmask.errors import MissingExtra, UnmaskError, require

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, UnmaskError)]


def test_the_docstring_draws_every_error():
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__)
    assert sorted([*drawn, "UnmaskError"]) == sorted(cls.__name__ for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_exit_codes_are_those_of_the_docstring(cls):
    drawn = re.search(
        rf"\b{cls.__name__}\b.*?exit (\d)", next(line for line in errors.__doc__.splitlines() if f" {cls.__name__} " in f"{line} ")
    )
    assert cls.exit_code == (int(drawn[1]) if drawn else 2)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_a_value_error_and_says_what_it_is_for(cls):
    assert issubclass(cls, ValueError)
    assert cls.__doc__
    with pytest.raises(UnmaskError, match="held_out = 2"):
        raise cls("held_out = 2")


def test_a_module_that_is_there_is_returned():
    assert require("json", extra="x", why="a test").loads("1") == 1
    assert require("os.path", extra="x", why="a test").join("a", "b")


@pytest.mark.parametrize("module", ["no_such_package_at_all", "no_such_package_at_all.inner"])
def test_a_module_that_is_not_there_names_the_command_that_installs_it(module):
    with pytest.raises(MissingExtra) as caught:
        require(module, extra="hub", why="reading 'hub:x'")
    message = str(caught.value)
    assert message.startswith("reading 'hub:x' needs the package 'no_such_package_at_all'")
    assert "pip install 'unmask[hub]'" in message
    assert isinstance(caught.value.__cause__, ImportError)


def test_every_extra_that_is_asked_for_exists():
    import tomllib
    from pathlib import Path

    import unmask

    package = Path(unmask.__file__).parent
    named = {
        extra
        for path in package.rglob("*.py")
        if path.name != "errors.py"
        for extra in re.findall(r"""require\([^)]*?extra=["'](\w+)["']""", path.read_text(encoding="utf-8"))
    }
    assert named
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert named <= set(declared)
