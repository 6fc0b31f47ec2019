"""The page in a real browser, on the real service: a person who clicks and types."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the service needs the extra `serve`")
api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the extra `browser`")
CHROMIUM = os.environ.get("UNMASK_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH (or name one in UNMASK_CHROMIUM)"),
]
expect = api.expect
TEXT = "The nurse watches the doctor in the garden today."


@pytest.fixture(scope="module")
def models(tiny_bert, tmp_path_factory) -> dict[str, str]:
    """The tiny model, and one that says much the same."""
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM

    folder = tmp_path_factory.mktemp("models") / "near"
    model = BertForMaskedLM.from_pretrained(tiny_bert)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weights in model.bert.encoder.parameters():
            weights += 0.03 * torch.randn_like(weights)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    return {"tiny": str(tiny_bert), "near": str(folder)}


@pytest.fixture(scope="module")
def fillers(models):
    """The same models, loaded here: before the service loads its own, because transformers cannot load two at a time."""
    from unmask import Filler

    return {name: Filler.load(path, device="cpu") for name, path in models.items()}


@pytest.fixture(scope="module")
def filler(fillers):
    return fillers["tiny"]


@pytest.fixture(scope="module")
def service(models, fillers, serving):
    with serving(models) as service:
        for name in models:  # one that cannot answer is known here, and not by the patience of each test
            status, answer = service.post("/api/fill", {"model": name, "text": "The [MASK]."})
            assert status == 200, answer
        yield f"{service.url}/"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


@pytest.fixture
def visit(browser, service):
    """Return open(sentence, hidden, ...): a page on the service, which at the end has asked nobody else and made no fuss."""
    contexts, wrong = [], []

    def visit(text=TEXT, hide="4", *, address=service, view=None, width=1280, height=860, ready=True, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith(address) or wrong.append(f"asked for {request.url}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        # a refusal is shown in the page; that the browser writes it down as well is no fault
        page.on("console", lambda said: said.type == "error" and "Failed to load" not in said.text and wrong.append(said.text))
        given = {"text": text, "hide": hide} | ({"view": view} if view else {})
        query = page.evaluate("given => String(new URLSearchParams(given))", given)
        page.goto(f"{address}#{query}")
        if ready and hide:
            expect(page.locator(".list:not(.stale) .row:not(.none)").first).to_be_visible()
        return page

    expect.set_options(timeout=30_000)
    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def sentence(page) -> str:
    """Return the text on the sheet, a mask where one is."""
    return page.locator("#read").evaluate(
        "node => [...node.childNodes].map(one => one.classList?.contains('masked') ? '[MASK]' : one.textContent).join('')"
    )


def candidates(page, mask=0, lane=0) -> list[str]:
    """Return the words that are offered."""
    rows = page.locator(".panel").nth(mask).locator(f".lane{lane} .list:not(.stale) .row:not(.none) .word-of b")
    expect(rows.first).to_be_visible()
    return rows.all_text_contents()


def best(filler, text, mask=0) -> list[str]:
    return [one.token for one in filler.fill(text, top_k=9, independent=True)[mask]]


def filled(filler, text, place, mask=0) -> str:
    """Return a text with a candidate in it: one that is the rest of a word joins what stands before it."""
    return filler.fill(text, top_k=9, independent=True)[mask][place].sequence


def word(page, name):
    return page.locator("#read").get_by_role("button", name=name, exact=True).first


def test_a_click_hides_a_word_and_another_shows_it(visit, filler):
    page = visit(hide="")
    expect(page.locator(".hint")).to_be_visible()
    word(page, "doctor").click()
    assert sentence(page) == TEXT.replace("doctor", "[MASK]")
    assert candidates(page) == best(filler, TEXT.replace("doctor", "[MASK]"))
    expect(page.locator(".own").first).to_contain_text(re.compile(r"you wrote doctor · (no\. \d, )?[\d<.]+%"))
    page.locator(".masked").click()
    assert sentence(page) == TEXT
    expect(page.locator(".hint")).to_be_visible()


def test_everything_by_keyboard(visit, filler):
    page = visit(hide="")
    word(page, "The").focus()
    for key in ("ArrowRight", "ArrowRight", "Space"):
        page.keyboard.press(key)
    masked = TEXT.replace("watches", "[MASK]")
    assert sentence(page) == masked
    assert candidates(page) == best(filler, masked)
    page.keyboard.press("ArrowDown")  # the sentence is one line: into the list
    page.keyboard.press("ArrowDown")
    expect(page.locator(".row").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#read .picked")).to_be_focused()
    assert sentence(page) == filled(filler, masked, 1)
    page.keyboard.press("Control+z")
    assert sentence(page) == masked
    candidates(page)
    page.keyboard.press("3")
    assert sentence(page) == filled(filler, masked, 2)
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert sentence(page) == TEXT
    page.keyboard.press("Control+Shift+z")
    assert sentence(page) == masked
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.get_by_label("Single letters and digits are keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert sentence(page) == masked


def test_masks_are_filled_together(visit, filler):
    page = visit(hide="4.22")  # nurse, doctor
    masked = TEXT.replace("nurse", "[MASK]").replace("doctor", "[MASK]")
    best = filler.fill(masked, top_k=5).joint
    rows = page.locator(".together .list:not(.stale) .row")
    expect(rows).to_have_count(5)
    assert rows.locator(".word-of").all_text_contents() == [" · ".join(one.tokens) for one in best]
    rows.nth(1).click()
    assert sentence(page) == best[1].sequence
    expect(page.locator(".together")).to_be_hidden()
    page.keyboard.press("Control+z")
    assert sentence(page) == masked
    expect(page.locator(".together .list:not(.stale) .row").first).to_be_visible()


def test_picking_undoing_and_the_address(visit, filler, service):
    page = visit()
    masked = TEXT.replace("nurse", "[MASK]")
    page.locator(".row").first.click()
    picked = filled(filler, masked, 0)
    assert sentence(page) == picked
    page.wait_for_url(lambda url: "hide" not in url)
    again = visit(hide="")
    again.goto(page.url)
    again.reload()
    assert sentence(again) == picked
    page.get_by_role("button", name="Undo").click()
    assert sentence(page) == masked
    page.get_by_role("button", name="Redo").click()
    assert sentence(page) == picked


def test_two_masks_are_filled_one_after_the_other(visit, filler):
    page = visit(hide="4.22")
    both = "The [MASK] watches the [MASK] in the garden today."
    assert [candidates(page, 0), candidates(page, 1)] == [best(filler, both, 0), best(filler, both, 1)]
    page.locator(".panel").nth(1).locator(".row").nth(2).click()
    one = filled(filler, both, 2, mask=1)
    assert sentence(page) == one
    expect(page.locator(".panel")).to_have_count(1)
    assert candidates(page) == best(filler, one)


def test_typing_blanks_and_asking_for_certain_words(visit, filler):
    page = visit(hide="")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your text").fill("The judge helps the ___.")
    assert candidates(page) == best(filler, "The judge helps the [MASK].")  # before editing has ended
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your text")).to_be_hidden()
    page.keyboard.press("f")
    page.keyboard.type("lawyer, witness")
    rows = page.locator(".lane0 .list:not(.stale) .row:not(.none) .word-of b")
    expect(rows).to_have_text(["lawyer", "witness"])
    scores = [one.score for one in filler.fill("The judge helps the [MASK].", targets=["lawyer", "witness"])[0]]
    shown = page.locator(".lane0 .row:not(.none)").evaluate_all("rows => rows.map(row => Number.parseFloat(row.title.split(': ').at(-1)))")
    assert shown == pytest.approx(scores, rel=6e-3)


def test_a_late_answer_is_not_shown(visit, filler):
    page = visit(hide="")
    held = []
    page.route("**/api/fill", lambda route: held.append(route) if not held else route.continue_())
    word(page, "nurse").click()
    expect(page.locator(".row.waiting").first).to_be_visible()
    page.wait_for_timeout(50)
    word(page, "garden").click()
    both = "The [MASK] watches the doctor in the [MASK] today."
    assert candidates(page, 1) == best(filler, both, 1)
    with contextlib.suppress(api.Error):  # the page has given it up
        held[0].continue_()
    page.wait_for_timeout(200)
    assert [candidates(page, 0), candidates(page, 1)] == [best(filler, both, 0), best(filler, both, 1)]


def test_two_models_are_compared(visit, fillers):
    page = visit()
    page.get_by_role("button", name="Compare").click()
    masked = TEXT.replace("nurse", "[MASK]")
    one, other = (best(filler, masked) for filler in fillers.values())
    assert [candidates(page, 0, 0), candidates(page, 0, 1)] == [one, other]
    both = set(one) & set(other)
    assert 0 < len(both) < 9
    assert set(page.locator(".agreed .word-of b").all_text_contents()) == both
    expect(page.locator(".common")).to_have_text(f"● in both: {len(both)} of 9")
    page.keyboard.press("Shift+Digit2")
    assert sentence(page) == filled(fillers["near"], masked, 1)


def test_surprisal(visit, filler):
    from unmask import Scorer

    text = "😀 The nurse watches the elephant in the garden."
    page = visit(text, "", view="surprisal")
    tokens = page.locator("#read .token")
    (scored,) = Scorer(filler.engine.model, filler.tokenizer).score([text])
    expect(tokens).to_have_count(len(scored.tokens))
    assert page.locator("#read").text_content() == text
    expect(page.locator(".figures dd").first).to_contain_text(re.compile(rf"^{scored.pseudo_perplexity:,.0f}\D"))
    shown = tokens.evaluate_all("all => all.map(one => Number.parseFloat(one.getAttribute('aria-label').split(': ').at(-1)))")
    assert shown == pytest.approx([-value for value in scored.log_probs], abs=0.006)
    tokens.nth(1).focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tooltip")).to_contain_text(f"{-scored.log_probs[2]:.2f} nats")
    page.keyboard.press("Enter")  # what would stand here instead?
    assert sentence(page) == text.replace("nurse", "[MASK]")
    candidates(page)


@pytest.mark.parametrize("view", ["fill", "surprisal"])
def test_markup_is_text(visit, view):
    text = "<img src=x onerror=alert(1)> the <script>alert(2)</script> nurse &amp; <b>doctor</b>"
    page = visit(text, str(text.index("nurse")) if view == "fill" else "", view=view)
    if view == "surprisal":
        expect(page.locator(".token").first).to_be_visible()
    assert page.locator("#read").text_content() == text
    assert page.locator("#read").locator("img, script, b").count() == 0
    page.keyboard.press("e")
    expect(page.get_by_label("Your text")).to_have_value(text)
    assert page.locator("#mirror img, #mirror script").count() == 0


CONTRAST = """selectors => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, i) => value * a + under[i] * (1 - a));
  const light = (colour) => colour.map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  return selectors.map((selector) => {
    const node = document.querySelector(selector);
    const chain = []; for (let one = node; one; one = one.parentElement) chain.unshift(rgba(getComputedStyle(one).backgroundColor));
    const ground = chain.reduce((under, colour) => over(colour, under), [255, 255, 255]);
    const [one, other] = [light(ground), light(over(rgba(getComputedStyle(node).color), ground))].sort((a, b) => b - a);
    return [selector, (one + 0.05) / (other + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(visit, scheme):
    page = visit(color_scheme=scheme, reduced_motion="reduce")
    ground = "getComputedStyle(document.body).backgroundColor"
    paper = {"light": "rgb(251, 250, 248)", "dark": "rgb(22, 24, 28)"}
    assert page.evaluate(ground) == paper[scheme]
    seen = [".status", ".word", ".actions button", ".row b", ".score", ".own", ".own b", ".panel-head span", ".small", "footer p", "#about",
            "[aria-selected=true]", "[aria-selected=false]"]  # fmt: skip
    assert page.evaluate(CONTRAST, seen) == []
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".agreed b").first).to_be_visible()
    assert page.evaluate(CONTRAST, ["#compare", ".agreed b", ".common", ".lane0 h3", ".lane1 h3"]) == []
    page.get_by_role("tab", name="Surprisal").click()
    expect(page.locator(".token").first).to_be_visible()
    page.locator(".token").first.evaluate("one => one.style.setProperty('--heat-share', '75%')")
    assert page.evaluate(CONTRAST, [".token", ".legend", "dt", "dd", "dd small"]) == []
    page.keyboard.press("d")
    other = paper["dark" if scheme == "light" else "light"]
    assert page.evaluate(ground) == other
    page.reload()
    assert page.evaluate(ground) == other


def test_a_phone_scrolls_down_only(visit):
    page = visit(TEXT + " " + "supercalifragilistic" * 6, width=390, height=844)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.get_by_role("button", name="Compare").click()
    candidates(page, 0, 1)
    assert page.evaluate(fits)
    small = page.locator("button:visible, select:visible").evaluate_all(
        "all => all.filter(one => one.getBoundingClientRect().height < 24).map(one => one.outerHTML)"
    )
    assert small == []
    page.get_by_role("tab", name="Surprisal").click()
    expect(page.locator(".token").first).to_be_visible()
    assert page.evaluate(fits)
    page.get_by_role("button", name="Help and keys").click()
    assert page.evaluate(fits)


def test_nothing_jumps(visit):
    page = visit(hide="")
    places = "[...document.querySelectorAll('.sheet, .ask, .actions')].map(one => JSON.stringify(one.getBoundingClientRect()))"
    before = page.evaluate(places)
    width = word(page, "doctor").bounding_box()["width"]
    word(page, "doctor").click()
    candidates(page)
    assert page.evaluate(places) == before
    assert page.locator(".masked").bounding_box()["width"] == width
    stage = page.locator(".panel").bounding_box()
    word(page, "nurse").click()
    candidates(page, 1)
    assert page.locator(".panel").first.bounding_box()["height"] == stage["height"]
    page.keyboard.press("e")
    assert page.evaluate(places) == before


def test_an_error_of_the_server_is_shown(visit):
    page = visit(" ".join(["___"] * 65), "")  # one more than the service fills
    expect(page.get_by_role("alert").filter(has_text="65")).to_be_visible()
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Your text").fill("The judge helps the ___.")
    candidates(page)
    expect(page.locator(".error")).to_have_count(0)


def test_a_server_that_is_away_and_comes_back(visit, filler):
    page = visit(hide="")
    page.context.set_offline(True)
    word(page, "doctor").click()
    expect(page.locator("#trouble")).to_contain_text("cannot be reached")
    expect(page.get_by_role("status").first).to_have_text("disconnected")
    page.context.set_offline(False)
    assert candidates(page) == best(filler, TEXT.replace("doctor", "[MASK]"))
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_key_is_asked_for_and_kept_out_of_the_address(visit, models, serving):
    with serving({"tiny": models["tiny"]}, api_key="sesame") as service:
        page = visit(address=f"{service.url}/", ready=False)
        dialog = page.get_by_role("dialog", name="This server wants a key")
        dialog.get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Key").fill("sesame")
        page.keyboard.press("Enter")
        candidates(page)
        assert "sesame" not in page.url and page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("which", ["Python", "curl"])
def test_the_copied_request_runs(visit, filler, which):
    if which == "curl" and shutil.which("curl") is None:
        pytest.skip("no curl here")
    text = "The nurse's [MASK] isn't $HOME \"there\" `x` \\ é."
    page = visit(text, "", permissions=["clipboard-read", "clipboard-write"])
    candidates(page)
    page.get_by_role("button", name=which).click()
    expect(page.get_by_text("Copied as")).to_be_visible()
    program = page.evaluate("navigator.clipboard.readText()")
    command = [sys.executable, "-c", program] if which == "Python" else ["bash", "-c", program]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parent).stdout
    words = re.findall(r'"word":\s*"([^"]+)"', said) if which == "curl" else [line.split(" ", 1)[1] for line in said.splitlines()]
    assert words == [one.word for one in filler.fill(text, top_k=9)[0]]


@pytest.fixture(scope="module")
def tasks(tiny_bert):
    """An app that has the page and answers as the Hugging Face inference API does, with what transformers' pipelines give back."""
    import torch
    from fastapi import FastAPI
    from transformers import AutoTokenizer, BertForSequenceClassification, BertForTokenClassification, pipeline

    from unmask.serve.page import mount

    labels = {"id2label": {0: "PER", 1: "LOC", 2: "ORG"}, "label2id": {"PER": 0, "LOC": 1, "ORG": 2}}
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classes = pipeline("text-classification", BertForSequenceClassification.from_pretrained(tiny_bert, **labels), tokenizer=tokenizer)
        tags = pipeline("token-classification", BertForTokenClassification.from_pretrained(tiny_bert, **labels), tokenizer=tokenizer)

    app = FastAPI()
    mount(app)

    @app.get("/models")
    def listed():
        names = {"classes": "text-classification", "tags": "token-classification", "answers": "question-answering"}
        return {"models": [{"name": name, "task": task} for name, task in names.items()]}

    @app.post("/models/{name}")
    def ask(name: str, body: dict):
        inputs = body["inputs"]
        if name == "classes":
            return [classes(inputs, top_k=None)]
        if name == "tags":
            return [one | {"score": float(one["score"])} for one in tags(inputs, **body["parameters"])]
        start = inputs["context"].index("garden")  # transformers 5 has no pipeline for it: an answer of the documented shape
        garden = {"answer": "garden", "score": 0.75, "start": start, "end": start + 6}
        nothing = {"answer": "", "score": 0.9, "start": 0, "end": 0}
        return garden if inputs["question"] == "Where?" else [nothing, garden]

    app.state.found = {"classes": classes(TEXT, top_k=None), "tags": tags(f"😀 {TEXT}", aggregation_strategy="simple")}
    return app


def test_models_of_other_tasks(visit, tasks):
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(tasks, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        address, text = f"http://127.0.0.1:{sock.getsockname()[1]}/", f"😀 {TEXT}"
        page = visit(text, "", address=address)
        expect(page.get_by_role("tab")).to_have_text(["Classify", "Entities", "Answer"])
        labels = page.locator(".task .row b")
        expect(labels).to_have_count(3)
        page.keyboard.press("e")
        page.get_by_label("Your text").fill(TEXT)
        page.keyboard.press("Enter")
        expect(page.locator(".task .worst:not(.stale)").first).to_be_visible()
        assert labels.all_text_contents() == [one["label"] for one in tasks.state.found["classes"]]
        page.keyboard.press("Control+z")
        page.get_by_role("tab", name="Entities").click()
        marks = page.locator("#read mark")
        expect(marks.first).to_be_visible()
        found = tasks.state.found["tags"]
        assert marks.all_text_contents() == [text[one["start"] : one["end"]] for one in found]
        assert marks.evaluate_all("all => all.map(one => one.dataset.label)") == [one["entity_group"] for one in found]
        page.get_by_role("tab", name="Answer").click()
        page.get_by_label("Question").fill("Where?")
        expect(marks).to_have_text(["garden"])
        expect(page.locator(".task .row")).to_contain_text("garden")
        page.wait_for_url("**question=Where*")
        page.get_by_label("Question").fill("When?")
        expect(page.locator(".task .row").first).to_contain_text("no answer")
        expect(marks).to_have_count(0)
        assert page.locator("#read").text_content() == text
        server.should_exit = True
        thread.join(20)
