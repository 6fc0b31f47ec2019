"""The pages of evaluations, comparisons and scored texts: escaped, self-contained, made again from the files alone, the numbers theirs."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import unmask
from unmask.cli import dispatch
from unmask.errors import CheckpointError, DataError
from unmask.evaluate.heat import heat_map, running_text
from unmask.evaluate.records import Records
from unmask.evaluate.report import write
from unmask.evaluate.text import open_text
from unmask.evaluate.worst import MIN_MASKED, worst_sentences

from ..conftest import sentences

spec = importlib.util.spec_from_file_location("page_of_a_run", Path(__file__).with_name("test_report.py"))
page_of_a_run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(page_of_a_run)
Page, HOSTILE, ALLOWED = page_of_a_run.Page, page_of_a_run.HOSTILE, page_of_a_run.ALLOWED


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Sentences with what can hurt a page: markup, right-to-left text, emoji, a word without an end."""
    odd = [
        f"The nurse calls {HOSTILE} today.",
        "العربية لغة جميلة جدا",
        "The judge 🙂👍🏽 trusts the sailor often.",
        f"The {'longword' * 40} meets the nurse.",
    ]
    path = tmp_path_factory.mktemp("pages") / "<script>alert(1)<script>.txt"
    path.write_text("\n".join([*sentences(24, seed=11), *odd]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def evaluation(tiny_bert, text):
    unmask.evaluate(tiny_bert, text, resamples=50, output=text.parent / "<b>evaluated", slice_by="source")
    return text.parent / "<b>evaluated"


@pytest.fixture(scope="module")
def comparison(tiny_bert, text):
    folder = text.parent / "compared"
    unmask.compare(tiny_bert, tiny_bert, text, resamples=50, output=folder, slice_by="source")
    found = json.loads((folder / "metrics.json").read_text())
    one = found["metrics"]["masked_loss"]
    one.update(difference=-0.25, low=-0.5, high=-0.125)
    found["metrics"]["masked_accuracy"].update(difference=-0.0625, low=-0.125, high=-0.01)
    found.update(
        a=HOSTILE, b=HOSTILE, reason=HOSTILE, verdict="better", notes=[HOSTILE], num_flips={"right_to_wrong": 20, "wrong_to_right": 1}
    )
    found["slices"]["frequency"][0]["name"] = HOSTILE
    (folder / "metrics.json").write_text(json.dumps(found))
    said = [{"predicted": HOSTILE, "confidence": 0.5, "probability": 0.5}, {"predicted": "سلام", "confidence": 0.25, "probability": 0.001}]
    flip = {
        "kind": "right_to_wrong",
        "document": HOSTILE,
        "position": 3,
        "before": HOSTILE,
        "token": HOSTILE,
        "after": HOSTILE,
        "a": said[0],
        "b": said[1],
    }
    flips = [{**flip, "b": {**said[1], "probability": 0.25 / (1 + place)}} for place in range(20)] + [
        {**flip, "kind": "wrong_to_right", "token": "mine"}
    ]
    (folder / "flips.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in flips))
    (folder / "manifest.json").unlink()  # it was changed on purpose
    return folder


@pytest.fixture(scope="module")
def scores(text):
    folder = text.parent / "scored"
    folder.mkdir()
    rows = [
        {"id": HOSTILE, "text": "x", "tokens": ["the", "play", "##ing", HOSTILE], "log_probs": [-0.5, -20.0, None, -1.0]},
        {"text": "", "error": HOSTILE},
        {"id": "b", "text": "x", "tokens": ["سلام", "a" * 500, "🙂"], "log_probs": [-3.0, -3.0, -3.0]},
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    settings = {"model": HOSTILE, "method": "sampled"}
    (folder / "metrics.json").write_text(json.dumps({"settings": settings, "pseudo_perplexity": 1234.5, "num_texts": 3, "num_failed": 1}))
    return folder


@pytest.mark.parametrize("kind", ["evaluation", "comparison", "scores"])
def test_hostile_text_is_text_and_nothing_is_fetched(kind, request):
    written = write(request.getfixturevalue(kind)).read_text()
    page = Page(written)
    assert set(page.tags) <= ALLOWED, set(page.tags) - ALLOWED
    assert not page.open
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on") or attribute[1] == "src"]
    assert "http:" not in written and "https:" not in written and "@import" not in written
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", written) and "default-src 'none'" in written
    assert "script" not in {tag.lower() for tag in page.tags}
    assert "prefers-color-scheme: dark" in written and "width=device-width" in written


@pytest.mark.parametrize("kind", ["evaluation", "comparison", "scores"])
def test_the_page_is_made_again_from_the_files_alone(kind, request, tmp_path, capsys):
    folder = request.getfixturevalue(kind)
    first = write(folder).read_bytes()
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "a", ignore_errors=True)  # a comparison's records are for whoever goes on with them
    assert dispatch(["report", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    assert (copy / "report.html").read_bytes() == first


def test_the_numbers_of_an_evaluation(evaluation):
    found = json.loads((evaluation / "metrics.json").read_text())
    page = Page(write(evaluation).read_text())
    whole = " ".join("".join(page.text).split())
    assert (
        f"{found['masked_loss']['value']:.3f}" in whole
        and f"{found['masked_loss']['low']:.3f} to {found['masked_loss']['high']:.3f}" in whole
    )
    assert f"{found['num_masked_tokens']:,} masked tokens in {found['num_documents']} documents" in whole
    assert found["masks_fingerprint"] in whole and "bootstrap over documents" in whole
    for name in ("masked_accuracy", "top_5_accuracy", "macro_f1", "expected_calibration_error"):
        assert name.replace("_", " ") in whole
    assert page.tags.count("svg") == 2 and "How sure, how right" in whole and "Slices" in whole and "Worst sentences" in whole
    assert "<b>evaluated" in whole and "<script>alert(1)<script>.txt" in whole


def test_a_comparison_says_what_it_found(comparison):
    text = write(comparison).read_text()
    page = Page(text)
    whole = " ".join("".join(page.text).split())
    assert "B is better" in whole and 'class="verdict good"' in text
    assert "−0.250" in whole and "−0.500 to −0.125" in whole and "−6.2 pp" in whole
    row = re.search(r"<th scope=\"row\">masked loss</th>.*?</tr>", text)[0]
    assert 'class="range good"' in row and "left:2.0%;width:36.0%" in row  # -0.5 to -0.125 on a scale that reaches to 0.5
    assert 'class="range bad"' in re.search(r"<th scope=\"row\">masked accuracy</th>.*?</tr>", text)[0]
    assert "20 tokens. Shown are the 12 whose probability changed most" in whole and "A wrong, B right" in whole
    assert text.count("<article>") == 13 and whole.count(HOSTILE) > 30


def test_texts_that_were_scored(scores):
    text = write(scores).read_text()
    whole = " ".join("".join(Page(text).text).split())
    assert f"the playing {HOSTILE}" in whole  # the second piece has no colour, and joins the first
    assert text.count('style="--h:') == 6 and "--h:75%" in text and "2 of 2 scored texts" in whole and "1,234.5" in whole
    assert whole.index("7.17 nats a token over 3 tokens") < whole.index("3.00 nats a token")  # the least probable first
    (scores / "broken").mkdir()
    (scores / "broken" / "scores.jsonl").write_text('{"tokens": [')
    with pytest.raises(CheckpointError, match=r"scores.jsonl:1 is no JSON object"):
        write(scores / "broken")
    shutil.rmtree(scores / "broken")


def test_the_worst_sentences_are_those_of_a_plain_loop(tiny_bert, evaluation, text):
    rows = [json.loads(line) for line in (evaluation / "worst.jsonl").read_text().splitlines()]
    found = unmask.evaluate(tiny_bert, text, resamples=0)
    tokenizer = unmask.load_tokenizer(tiny_bert)
    whole = open_text(text, tokenizer)
    losses = {}
    for place, document in enumerate(whole.order):
        ids, _ = whole.store.gather(np.array([document]))
        own = found.records.document == place
        sentence = np.cumsum([0, *(tokenizer.decode([number]) in (".", "!", "?") for number in ids[:-1])])
        for number in set(sentence.tolist()):
            values = -found.records.log_prob[own & np.isin(found.records.position, np.flatnonzero(sentence == number))]
            if len(values) >= MIN_MASKED:
                losses[found.records.document_id(place), int(np.flatnonzero(sentence == number)[0])] = (float(values.mean()), len(values))
    assert [row["masked_loss"] for row in rows] == pytest.approx(sorted((loss for loss, _ in losses.values()), reverse=True)[: len(rows)])
    for row in rows:
        assert losses[row["document"], row["first"]] == (pytest.approx(row["masked_loss"]), row["num_masked_tokens"])
        known = [value for value in row["log_probs"] if value is not None]
        assert len(known) == row["num_masked_tokens"] and -sum(known) / len(known) == pytest.approx(row["masked_loss"])
        assert len(row["tokens"]) == len(row["joined"]) == len(row["predicted"])
    assert len(worst_sentences(found.records, whole, 2)) == 2


def test_colours_go_with_surprisal():
    shown = heat_map(["a", "b", "c", "d"], [False, True, False, False], [0.0, -6.0, None, -60.0], [None, "<i>", None, None])
    assert re.findall(r"--h:(\d+)%", shown) == ["0", "38", "75"]
    assert Page(shown).text == ["a", "b", " c ", "d"] and "6.00 nats; predicted: &lt;i&gt;" in shown and 'dir="auto"' in shown


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["The", "play", "##ing", "(", "x", ")", "."], "The playing (x)."),
        (["The", "Ġnurse", "Ã©", "Ġ<"], "The nurseé <"),
        (["▁The", "▁nur", "se"], "The nurse"),
    ],
)
def test_tokens_of_any_kind_as_running_text(tokens, text):
    shown, joined = running_text(tokens)
    assert (
        "".join(("" if close or not place else " ") + token for place, (token, close) in enumerate(zip(shown, joined, strict=True))) == text
    )


def test_a_bit_that_has_turned_in_what_a_page_is_made_of_is_found(tiny_bert, text, evaluation, tmp_path):
    other = unmask.load_model(tiny_bert)
    other.get_input_embeddings().weight.data[:100] *= 3
    other.save_pretrained(tmp_path / "other")
    unmask.load_tokenizer(tiny_bert).save_pretrained(tmp_path / "other")
    unmask.compare(tiny_bert, tmp_path / "other", text, resamples=20, output=tmp_path / "compared")
    for folder, names in ((evaluation, ("metrics.json", "worst.jsonl")), (tmp_path / "compared", ("metrics.json", "flips.jsonl"))):
        page = write(folder).read_bytes()
        for name in names:
            copy = tmp_path / "copy" / folder.name
            shutil.copytree(folder, copy)
            data = bytearray((folder / name).read_bytes())
            place = next(place for place, byte in enumerate(data) if chr(byte).isdigit())
            data[place] ^= 1  # another digit: no reader of JSON could tell
            (copy / name).write_bytes(data)
            with pytest.raises(CheckpointError, match=f"'.*' is damaged: the content of {name} has changed.*; evaluate or compare again"):
                write(copy)
            (copy / "manifest.json").unlink()  # of one from before there was a manifest, or that was changed on purpose
            assert write(copy).is_file()
            shutil.rmtree(copy)
        assert write(folder).read_bytes() == page
    for side in (tmp_path / "compared" / "a", tmp_path / "compared" / "b"):
        data = (side / "records.arrow").read_bytes()
        (side / "records.arrow").write_bytes(data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:])
        with pytest.raises(DataError, match="the content of records.arrow has changed.*; evaluate or compare again"):
            Records(side)


def test_a_folder_that_holds_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no evaluation or comparison"):
        write(tmp_path)
