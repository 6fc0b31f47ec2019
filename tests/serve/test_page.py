"""The files of the page: what is sent, with which headers, and that they need nothing but each other."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import unmask

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
from fastapi import FastAPI
from starlette.testclient import TestClient

from unmask.serve import page

STATIC = Path(page.__file__).parent / "static"
NAMES = sorted(path.name for path in STATIC.iterdir())


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    page.mount(app)
    return TestClient(app, raise_server_exceptions=False)


def test_the_page_is_sent_with_a_policy_that_lets_nothing_else_in(client):
    answer = client.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert rules["default-src"] == "'none'" and rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == rules["trusted-types"] == "'none'"
    assert not re.search(r"unsafe|\*|https?:|data:", answer.headers["content-security-policy"])
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_sent_as_what_it_is(client, name):
    answer = client.get(f"/static/{name}")
    assert answer.status_code == 200 and answer.content == (STATIC / name).read_bytes()
    assert answer.headers["content-type"].split(";")[0] == page.TYPES[name.rpartition(".")[2]]
    assert client.get(f"/static/{name}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get(f"/static/{name}", headers={"If-None-Match": '"of another version"'}).status_code == 200


ODD = ["nothing.js", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "%2fetc%2fpasswd", "a/b", "index.html%00", ""]


@pytest.mark.parametrize("path", ODD)
def test_no_name_leads_out_of_the_files(client, path):
    assert client.get(f"/static/{path}").status_code == 404


def test_nothing_stands_in_the_page_that_the_policy_would_stop():
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", html)
    scripts = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|\.cookie", scripts)


def test_the_files_name_only_each_other():
    found = set()
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w-]+\.\w", text), f"{path.name} names another host"
        found |= set(re.findall(r'(?:from "\./|(?:src|href)="static/)([\w.]+)"', text))
    assert found == set(NAMES) - {"index.html"}


def test_every_id_that_is_asked_for_is_in_the_page():
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    scripts = "".join(path.read_text(encoding="utf-8") for path in STATIC.glob("*.js"))
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', scripts)) <= set(ids)


def test_an_installed_package_holds_the_files():
    project = Path(unmask.__file__).parents[2] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not a source tree")
    globs = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]["unmask"]
    assert all(any(fnmatch(f"serve/static/{name}", one) for one in globs) for name in NAMES)
