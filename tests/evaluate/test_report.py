"""The report page: complete, self-contained, every text escaped, made of whatever a run has written so far."""

import json
import re
from html.parser import HTMLParser

import pytest

from unmask.errors import CheckpointError
from unmask.evaluate.page import shown
from unmask.evaluate.report import write
from unmask.evaluate.report_run import num_parameters, read_log

HOSTILE = "<script>alert('x')</script>\"'&<img src=x onerror=alert(1)>"
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "b", "dl", "div", "dt", "dd",
    "small", "section", "figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td", "code", "article", "mark", "ol", "li",
    "span", "i", "details", "summary", "footer", "svg", "defs", "g", "path", "rect", "use", "text", "clippath",
}  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of the page: its elements, their attributes, its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.text.append(data)


def numbers(loss, accuracy):
    counts = {"num_masked_tokens": 1234, "num_documents": 56}
    return {"masked_loss": loss, "masked_perplexity": 2.0**loss, "masked_accuracy": accuracy, **counts}


@pytest.fixture
def run(tmp_path):
    """A finished run in which every text that can be hostile is."""
    folder = tmp_path / "runs" / "first & <b>best"
    folder.mkdir(parents=True)
    text = json.dumps(HOSTILE)
    settings = f"base_model = {text}\n[data]\nsources = [{text}]\n[masking]\nmlm_probability = 0.2\n['a {HOSTILE[:8]}']\nx = {text}\n"
    (folder / "config.toml").write_text(settings)
    log = [{"event": "start", "step": 0, "time": "2026-01-02T03:04:05+00:00" + HOSTILE}]
    for step in range(10, 200, 10):
        log.append({"step": step, "loss": 9 - step / 40, "tokens": step * 4000, "seconds": step * 0.4, "tokens_per_second": 10_000 + step})
    log += [{"event": "heldout", "step": step, "masked_loss": 9 - step / 45} for step in (0, 95, 190)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log) + '{"step": 200, "lo')
    metrics = {**numbers(3.25, 0.4567), "masks_fingerprint": HOSTILE, "unigram": numbers(6.5, 0.06), "untrained": numbers(9.0, 0.0001)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text(json.dumps({"cpu": HOSTILE, HOSTILE: [1, HOSTILE], "memory_bytes": 16_000_000_000}))
    candidates = [{"token": HOSTILE, "score": 0.5}, {"token": "mean", "score": 0.25}, {"token": "x", "score": 0.0001}]
    example = {"text": f"Return the [MASK] of {HOSTILE}.", "answer": "mean", "document": HOSTILE, "candidates": candidates}
    other = {**example, "answer": HOSTILE, "candidates": candidates[1:]}
    (folder / "examples.json").write_text(json.dumps([example, other]))
    (folder / "corpus").mkdir()
    (folder / "corpus" / "report.json").write_text(json.dumps({"documents": {"read": 10, HOSTILE: HOSTILE}, "sources": {HOSTILE: 1}}))
    return folder


def test_hostile_text_is_text(run):
    text = write(run).read_text()
    page = Page(text)
    assert set(page.tags) <= ALLOWED, set(page.tags) - ALLOWED
    assert not page.open
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on") or attribute[1] == "src"]
    whole = "".join(page.text)
    assert whole.count(HOSTILE) >= 10  # shown as it is
    assert "first & <b>best" in whole


def test_nothing_is_fetched_and_no_script_runs(run):
    text = write(run).read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in re.sub(r"url\(#[\w-]+\)", "", text) and "@import" not in text
    assert [attribute[2] for attribute in Page(text).attributes if attribute[1] == "href" and not attribute[2].startswith("#")] == []
    assert "default-src 'none'" in text and "script" not in {tag.lower() for tag in Page(text).tags}


def test_the_numbers_are_those_of_the_run(run):
    whole = " ".join("".join(Page(write(run).read_text()).text).split())
    for fact in (
        "45.7%", "7.6 times word frequencies", "9.5", "90.5", "3.250", "6.500", "1,234 masked tokens in 56 documents", "10,100",
        "1 min 16 s", "190 steps, 760,000 tokens", "2026-01-02 03:04 UTC", "masks 20% of the tokens", "16,000,000,000", "50%", "25%", "<1%",
    ):  # fmt: skip
        assert fact in whole, fact


def test_a_hidden_word_that_is_found_is_marked(run):
    text = write(run).read_text()
    assert text.count('<mark class="hit">mean</mark>') == 1 and text.count('<mark class="miss">') == 1
    assert text.count("<li class=right>") == 1


def test_light_and_dark_narrow_and_wide(run):
    text = write(run).read_text()
    assert "prefers-color-scheme: dark" in text and "max-width" in text and text.count("<svg") == 2
    assert "width=device-width" in text


def test_a_run_that_has_only_begun(run):
    for name in ("metrics.json", "examples.json", "environment.json"):
        (run / name).unlink()
    (run / "log.jsonl").write_text('{"event": "start", "step": 0}\n')
    page = Page(write(run).read_text())
    assert "has not ended" in "".join(page.text) and "svg" not in page.tags
    assert "On held-out text" not in "".join(page.text)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_damaged_is_named(run):
    (run / "metrics.json").write_text('{"masked_')
    with pytest.raises(CheckpointError, match=r"metrics.json is not JSON"):
        write(run)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.json", "[1]"),
        ("config.toml", "data = 1\n"),
        ("config.toml", "[data\n"),
        ("log.jsonl", '{"step": "x", "loss": []}\n'),
        ("examples.json", '[{"x": 1}]'),
    ],
)
def test_files_that_hold_something_else_are_an_error_of_ours(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(CheckpointError, match="do not hold what its report shows"):
        write(run)
    assert not (run / "report.html").exists()


def test_parameters_are_counted_from_the_header(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7), "c": torch.tensor(1.0)}, tmp_path / "m.safetensors")
    assert num_parameters(tmp_path / "m.safetensors") == 23 and num_parameters(tmp_path / "none") == 0


def test_lines_of_a_log_that_are_not_whole_are_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n[2]\n{"step": 3}\n{"ste')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (None, "–"), ([], "–"), (["a", 2], "a, 2"), (12345, "12,345"), (0.003, "0.003"), (1e-8, "1e-08"), ("a", "a")],
)
def test_values_as_a_reader_wants_them(value, text):
    assert shown(value) == text
