"""Before and after: what is measured, where it is written, and that it is the same from Python and from the command line."""

import json

import numpy as np
import pytest
import torch

import unmask
from unmask.errors import CheckpointError, DataError
from unmask.evaluate import adaptation, report_adaptation
from unmask.train.card import SECTION, before_and_after, with_section

SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "max_steps": 3, "save_steps": 0}


@pytest.fixture(scope="module")
def texts(sentences_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("domain") / "texts.txt"
    path.write_text(sentences_file.read_text().replace("nurse", "cardiologist").replace("court", "<i>ventricle"))
    return path


@pytest.fixture(scope="module")
def adapted(tiny_bert, texts, sentences_file, tmp_path_factory):
    """A run with general text, and one that adds words beside."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {**SMALL, "general": sentences_file, "learning_rate": 1e-2}
    return (
        unmask.adapt(tiny_bert, texts, output=folder / "plain", **settings),
        unmask.adapt(tiny_bert, texts, output=folder / "more", extend_vocab=2, **settings),
    )


def results_of(run):
    return json.loads((run.folder / "adaptation.json").read_text())


def test_both_texts_are_measured_before_and_after_on_the_same_masks(adapted):
    plain, more = map(results_of, adapted)
    assert plain["same_tokenizer"] and not more["same_tokenizer"]
    for results in (plain, more):
        assert set(results["texts"]) == {"domain", "general"}
        for text in results["texts"].values():
            found = text["bits_per_byte"]
            assert found["difference"] == pytest.approx(found["after"] - found["before"])
            assert found["low"] <= found["difference"] <= found["high"] and found["count"] == text["words"]["num_hidden"] > 50
            assert text["verdict"] in ("better", "worse", "equivalent", "cannot tell")
            assert len(text["words"]["masks_fingerprint"]) == 16
            changes = text["changes"]
            assert changes["num_rose"] + changes["num_fell"] <= changes["num_frequent"] <= changes["num_words"]
            for kind, sign in (("rose", 1), ("fell", -1)):
                moved = [sign * row["difference"] for row in changes[kind]]
                assert moved == sorted(moved, reverse=True) and all(value > 0 for value in moved)
                assert all(row["count"] >= changes["min_count"] for row in changes[kind])
    assert set(plain["texts"]["domain"]["tokens"]) >= {"masked_loss", "masked_perplexity", "masked_accuracy", "bits_per_byte"}
    assert more["texts"]["domain"]["tokens"] is None
    # the words hidden are those of the text, whatever the tokenizer, and the base model says of them what it said
    for name in ("domain", "general"):
        left, right = (results["texts"][name] for results in (plain, more))
        assert left["num_bytes"] == right["num_bytes"] and left["words"]["num_hidden"] == right["words"]["num_hidden"]
        assert left["words"]["masks_fingerprint"] == right["words"]["masks_fingerprint"]
        assert left["bits_per_byte"]["before"] == pytest.approx(right["bits_per_byte"]["before"], rel=1e-5)


def test_words_that_were_added_are_shown_with_what_they_save(adapted):
    plain, more = map(results_of, adapted)
    assert plain["vocabulary"] is None
    assert [word["word"] for word in more["vocabulary"]["words"]] == ["cardiologist", "ventricle"]
    tokenizer = more["texts"]["domain"]["tokenizer"]
    before, after = tokenizer["before"], tokenizer["after"]
    assert before["words"] == after["words"] and after["tokens"] < before["tokens"]
    assert tokenizer["saved"] == pytest.approx(1 - after["tokens"] / before["tokens"])
    assert plain["texts"]["domain"]["tokenizer"]["saved"] == 0
    # measured on the held-out documents themselves
    held = [json.loads(line)["text"] for line in (adapted[1].folder / "corpus" / "heldout.jsonl").read_text().splitlines()]
    assert before["documents"] == len(held) and before["words"] == sum(len(text.split()) for text in held)


def test_replayed_text_is_measured_on_what_was_held_out_of_it(tiny_bert, texts, sentences_file, tmp_path, capsys):
    settings = {**SMALL, "replay": [str(sentences_file)], "replay_ratio": 0.5}
    run = unmask.adapt(tiny_bert, texts, output=tmp_path / "run", **settings)
    general = results_of(run)["texts"]["general"]
    held = (run.folder / "replay" / "heldout.jsonl").read_text().splitlines()
    assert general["sources"] == ["held-out documents of the replayed text"] and general["num_documents"] == len(held) > 5
    assert "General text" in (run.folder / "report.html").read_text()
    bare = unmask.adapt(tiny_bert, texts, output=tmp_path / "bare", **{**settings, "held_out": 0.0})
    assert not (bare.folder / "adaptation.json").exists()
    assert "nothing is held out of the replayed text, so what was forgotten is not measured" in capsys.readouterr().err


def test_the_card_and_the_report_carry_the_numbers(adapted):
    for run in adapted:
        results = results_of(run)
        card = (run.model / "README.md").read_text()
        assert card.count(SECTION) == 1 and card.index("## Results") < card.index(SECTION) < card.index("## Limits")
        assert results["texts"]["general"]["words"]["masks_fingerprint"] in card
        assert f"{results['texts']['domain']['bits_per_byte']['after']:,.3f}" in card
        assert with_section(card, SECTION, before_and_after(results)) == card  # once more changes nothing
        page = (run.folder / "report.html").read_text()
        assert "<h2>Before and after</h2>" in page and results["texts"]["domain"]["words"]["masks_fingerprint"] in page
    assert "cardiologist" in card and "as many as 2 words of the text were added" in card
    assert "Words added to the vocabulary" in page
    row = {"word": "<b>x", "before": -3.0, "after": -2.0, "difference": 1.0, "count": 7}
    assert "&lt;b&gt;x" in report_adaptation.words("t", [row]) and "<b>" not in report_adaptation.words("t", [row])


def test_lines_for_the_terminal(adapted):
    lines = adaptation.lines(results_of(adapted[1]))
    assert lines[0].startswith("domain   ") and " bits per byte: " in lines[0] and "95% " in lines[0]
    assert "fewer tokens" in lines[2] and lines[2].startswith("domain") and lines[3].startswith("general")


def test_the_command_line_does_the_same(tiny_bert, texts, sentences_file, adapted, tmp_path, capsys):
    from unmask.cli import main

    flags = [f"--set={key}={value}" for key, value in {**SMALL, "learning_rate": 1e-2}.items() if key != "max_steps"]
    homes = {"max_length": "data", "batch_tokens": "data", "held_out": "data", "learning_rate": "optim"}
    flags = [flag.replace("--set=", f"--set={homes.get(flag[6:].split('=')[0], 'train')}.") for flag in flags]
    args = [
        "adapt",
        tiny_bert,
        "--data",
        texts,
        "-o",
        tmp_path / "run",
        "--steps",
        3,
        "--general",
        sentences_file,
        "--extend-vocab",
        2,
        *flags,
    ]
    with pytest.raises(SystemExit) as end:
        main([*map(str, args), "--json"])
    assert end.value.code == 0
    result = json.loads(capsys.readouterr().out)["adaptation"]
    assert {key: value for key, value in result.items() if key != "after"} == {
        key: value for key, value in results_of(adapted[1]).items() if key != "after"
    }
    with pytest.raises(SystemExit) as end:
        main([*map(str, args[:-4]), "--extend-vocab", "0", *flags])
    assert end.value.code == 2


def test_a_base_model_that_is_gone_is_said_when_the_run_is_done(tiny_bert, texts, tmp_path):
    import shutil

    base = shutil.copytree(tiny_bert, tmp_path / "base")
    run = unmask.adapt(base, texts, output=tmp_path / "run", general=texts, **SMALL)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="the model is finished .*, but cannot be compared with the one that it started from"):
        unmask.resume(run.folder, max_steps=4)
    assert (run.model / "model.safetensors").is_file()


def test_a_sample_is_the_same_in_any_order(tmp_path, sentences_file):
    lines = sentences_file.read_text().splitlines()
    (tmp_path / "back.txt").write_text("\n".join(lines[::-1]) + "\n")
    found = []
    for number, source in enumerate((sentences_file, tmp_path / "back.txt")):
        counts = adaptation.sample([source], tmp_path / f"{number}.jsonl", max_bytes=2000)
        found.append([json.loads(line)["text"] for line in (tmp_path / f"{number}.jsonl").read_text().splitlines()])
        sizes = [len(text.encode()) for text in found[-1]]
        assert counts["num_documents_read"] == 300 and counts["num_bytes"] == sum(sizes) >= 2000 > sum(sizes[:-1])
    assert found[0] == found[1] and set(found[0]) <= set(lines)
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(DataError, match="documents, and none holds text"):
        adaptation.sample([tmp_path / "blank.jsonl"], tmp_path / "none.jsonl")


def test_pieces_from_left_to_right_are_those_of_a_plain_loop(tiny_bert):
    from unmask.data.text import Document
    from unmask.evaluate.shared import Side, ask
    from unmask.infer.engine import Engine
    from unmask.model.load import load_model

    tokenizer, model = unmask.load_tokenizer(tiny_bert), load_model(tiny_bert)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    side = Side(Engine(model), tokenizer, 24)
    text = " ".join(["The cardiologist warns the anaesthetist in the ventricle twice, and a metastasis follows the surgeon."] * 6)
    (answered,) = ask([Document(text, "a", "a")], (side, side), seed=1, left_to_right=True)
    item = answered.item
    ids, hidden = item.encodings[0].ids, item.places(0)
    assert max(item.words.pieces[0][item.chosen]) > 2 and len(item.windows) > 2 and len(item.chosen) > 3
    for row, word in enumerate(item.chosen.tolist()):
        begin, count = int(item.words.firsts[0][word]), int(item.words.pieces[0][word])
        first, end = next((low, high) for low, high in item.windows if low <= word < high)
        low, high = int(item.words.firsts[0][first]), int(item.words.firsts[0][end])
        total = 0.0
        for piece in range(count):
            shown = ids.copy()
            shown[hidden] = tokenizer.mask_token_id
            for other in item.chosen.tolist():  # of all words that have more pieces, those before this turn are in view
                start, size = int(item.words.firsts[0][other]), int(item.words.pieces[0][other])
                if size > piece:
                    shown[start : start + piece] = ids[start : start + piece]
            window = np.concatenate([[tokenizer.cls_token_id], shown[low:high], [tokenizer.sep_token_id]])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(window[None]), attention_mask=torch.ones(1, len(window))).logits[0]
            total += float(logits[begin + piece - low + 1].log_softmax(-1)[ids[begin + piece]])
        assert answered.log_prob[0][row] == pytest.approx(total, abs=1e-4)
