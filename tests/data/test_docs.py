"""The documentation corpus: prose out of docstrings of every style, in the same order however many processes parse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.data.docs import _extract_all, extract, python_docs
from unmask.data.prose import is_prose, markdown_prose, rst_prose

NUMPY = """Compute the arithmetic mean along the specified axis.

Returns the average of the :class:`~numpy.ndarray` elements, see [1]_ and ``axis``.

Parameters
----------
a : array_like
    Array containing numbers whose mean is desired.
axis : None or int, optional
    Axis along which the means are computed.

Returns
-------
m : ndarray
    A new array containing the mean values.

.. versionadded:: 1.7.0

.. note:: The mean is the sum of the elements divided by their number.

See Also
--------
average : Weighted average

Examples
--------
>>> np.mean([1, 2])
1.5
"""
GOOGLE = """Tokenize a sequence of texts for the model.

Args:
    texts (`list[str]`, *optional*, defaults to `None`):
        The texts that should be tokenized.
    padding (bool): Whether to pad the *shorter* sequences.

Returns:
    A mapping from names to tensors.

Example:

    ```python
    tokenizer("hello")
    ```
"""
SPHINX = """Open a connection to the given host.

:param host: The name of the host that is contacted.
:type host: str
:returns: An open connection.

For example::

    connect("localhost")

It must be **closed** when it is `no longer <http://x.org>`_ used.
"""


@pytest.mark.parametrize(
    ("docstring", "kept", "gone"),
    [
        (
            NUMPY,
            ["Returns the average of the ndarray elements, see and axis.", "Array containing numbers whose mean is desired.",
             "Axis along which the means are computed.", "A new array containing the mean values.",
             "The mean is the sum of the elements divided by their number."],
            ["Parameters", "---", "array_like", ">>>", "1.5", "Weighted", "versionadded"],
        ),
        (
            GOOGLE,
            ["The texts that should be tokenized.", "Whether to pad the shorter sequences.", "A mapping from names to tensors."],
            ["Args", "list[str]", "optional", "hello", "`", "*"],
        ),
        (
            SPHINX,
            ["The name of the host that is contacted.", "An open connection.", "It must be closed when it is no longer used."],
            [":param", "str", "localhost", "http", "**"],
        ),
    ],
)  # fmt: skip
def test_docstring_styles(docstring: str, kept: list[str], gone: list[str]) -> None:
    prose = rst_prose(docstring)
    assert prose.startswith(docstring.split("\n")[0])
    assert [text for text in kept if text not in prose.split("\n")] == []
    assert [text for text in gone if text in prose] == []


def test_markdown() -> None:
    text = (
        "---\ntitle: x\n---\n# Heading\n\nSome *words* about [a thing](http://x.y), in `code`\nand [there][x.y] on the next line.\n\n"
        "| a | b |\n|---|---|\n\n- A first point is made here.\n- A second point is made here.\n\n~~~\nx = 1\n~~~\n<img src='x'>\n"
    )
    assert markdown_prose(text).split("\n") == [
        "Some words about a thing, in code and there on the next line.",
        "A first point is made here.",
        "A second point is made here.",
    ]


def test_what_is_prose() -> None:
    assert is_prose("Return the sum of the elements.")
    for text in ("x = [1, 2, 3]", "a b", "one two three", "IDENTIFIER IDENTIFIER IDENTIFIER.", "| a | b | c | d | e | f | g | h"):
        assert not is_prose(text), text


SOURCES = {
    "alpha/__init__.py": '''\
"""Alpha does one thing, and it does this thing well enough.

It is small, so that it can be read in one sitting by anybody."""
import nothing_that_exists


def f():
    """Return the first item of it."""


def g():
    """Return the second item of it."""
''',
    "alpha/tests/test_alpha.py": '"""Test the things that alpha does in some detail and at length."""',
    "alpha/shapes.py": '''\
class Shape:
    """A shape in the plane."""

    def area(self):
        """Return the area of this shape."""

    def edge(self):
        """Return the first item of it."""
''',
    "beta.py": '''\
from x import add_newdoc

add_newdoc("x", "y", """
    Return the {kind} cosine of every element.

    The input is taken to be in radians, and
    the output is between minus one and one, always.
    """.format(**common))
''',
    "broken.py": '"""This text is in a file that is no Python at all."""\ndef (:',
    "gamma-1.0.dist-info/METADATA": """\
Name: gamma
Description-Content-Type: text/markdown

# Gamma

Gamma reads files of many kinds and tells what is in them.
""",
    "guide.rst": "Guide\n=====\n\nThis guide leads the reader through the whole of the package.",
    "LICENSE.md": "You may do with this text whatever you would like to do with it.",
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "binary.py").write_bytes(b'"""\xff\xfe"""')
    return tmp_path


def test_documents_of_packages(packages: Path) -> None:
    documents = {document.id: document.text for document in python_docs([packages])}
    assert documents == {
        "alpha/__init__.py:1": "Alpha does one thing, and it does this thing well enough.\n"
        "It is small, so that it can be read in one sitting by anybody.",
        # short ones of a module together; of a class too, and without the paragraph that came before
        "alpha/__init__.py:8": "Return the first item of it.\nReturn the second item of it.",
        "alpha/shapes.py:2": "A shape in the plane.\nReturn the area of this shape.",
        "beta.py:3": "Return the cosine of every element.\n"
        "The input is taken to be in radians, and the output is between minus one and one, always.",
        "gamma-1.0.dist-info/METADATA:1": "Gamma reads files of many kinds and tells what is in them.",
        "guide.rst:1": "This guide leads the reader through the whole of the package.",
    }
    assert [document.meta["package"] for document in python_docs([packages])][-2:] == ["gamma", "guide.rst"]


def test_processes_give_the_same_in_the_same_order(packages: Path) -> None:
    paths = sorted(str(path) for path in packages.rglob("*") if path.is_file())
    alone = list(_extract_all(paths, 1))
    assert json.loads(json.dumps(alone)) == list(_extract_all(paths, 2))
    assert sum(map(len, alone)) > 5
    assert list(python_docs([packages], num_workers=3)) == list(python_docs([packages]))


def test_real_docstrings_give_sentences() -> None:
    import textwrap

    entries = extract(Path(textwrap.__file__))
    text = "\n".join(paragraph for _, _, texts in entries for paragraph in texts)
    assert "Reformat the single paragraph in 'text' so it fits in lines of no more than 'width' columns" in text
    assert ">>>" not in text


def test_stopping_early_ends_the_processes(packages: Path) -> None:
    documents = python_docs([packages], num_workers=2)
    next(documents)
    documents.close()  # hangs or complains where a process is left behind
    with pytest.raises(StopIteration):
        next(documents)
