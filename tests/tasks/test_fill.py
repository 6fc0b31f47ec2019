"""Filled masks: the plain model's probabilities, clean tokens, and the text as it was."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

import unmask
from unmask.data.tokenizer import load_tokenizer, train_tokenizer
from unmask.errors import CheckpointError, TaskError, TokenizerError
from unmask.tasks.fill import Filler, fill

TEXTS = [
    f"{a} {b} {c} (number {n})."
    for n, (a, b, c) in enumerate(
        itertools.product(
            ["The doctor", "A patient", "Our judge"], ["treats", "isn't calling", "follows"], ["the nurse", "a lawyer", "someone"]
        )
    )
]
WORDS = ["doctor", "patient", "judge", "nurse", "lawyer", "calling", "follows", "treats"]
TEXTS += [f"A {word}, the {word}! Our {word}? {word}s" for word in WORDS] * 2
KINDS = {"bert": "wordpiece", "roberta": "bpe", "modernbert": "bpe", "xlm-roberta": "unigram"}


def write_model(folder, family, tokenizer, *, rows=0, limit=64):
    from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig, RobertaConfig, XLMRobertaConfig

    dials = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    dials["vocab_size"] = len(tokenizer) + rows
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    modern = {**ends, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8}
    config = {
        "bert": lambda: BertConfig(**dials, max_position_embeddings=limit, pad_token_id=0),
        "roberta": lambda: RobertaConfig(**dials, **ends, max_position_embeddings=limit + 1),
        "modernbert": lambda: ModernBertConfig(**dials, **modern, max_position_embeddings=limit),
        "xlm-roberta": lambda: XLMRobertaConfig(**dials, **ends, max_position_embeddings=limit + 1),
    }[family]()
    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, name, train_tokenizer(TEXTS, kind=kind, vocab_size=400)) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def fillers(folders):
    return {name: Filler.load(folder, device="cpu") for name, folder in folders.items()}


def plain(folder, text):
    """The probabilities that transformers itself gives at each mask, and the ids it made of the text."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0]
    places = encoded["input_ids"][0] == tokenizer.mask_token_id
    return logits[places].softmax(-1), encoded["input_ids"][0].tolist(), tokenizer


MIXED = [
    "The [MASK] treats the nurse.",
    "[MASK]",
    "A patient [MASK] the [MASK] (number [MASK]).",
    "Our judge, someone: [MASK]!",
    "The doctor follows the nurse, a patient calling the [MASK] isn't someone.",
]


@pytest.mark.parametrize("family", KINDS)
def test_scores_are_those_of_transformers(folders, fillers, family):
    results = fillers[family].fill(MIXED * 3, top_k=7)
    assert [result.text for result in results] == MIXED * 3
    for result in results[4:9]:
        scores, _, tokenizer = plain(folders[family], result.text)
        assert len(result) == len(scores)
        ordinary = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids]
        for mask, row in zip(result, scores, strict=True):
            assert len(mask) == 7
            best = row[ordinary].topk(7)
            assert [candidate.score for candidate in mask] == pytest.approx(best.values.tolist(), abs=1e-5)
            for candidate in mask:
                assert candidate.score == pytest.approx(row[candidate.token_id].item(), abs=1e-5)


@pytest.mark.parametrize("family", KINDS)
def test_every_way_to_write_a_mask_is_the_same(fillers, family):
    filler = fillers[family]
    expected = filler.fill("The [MASK] treats the nurse.")
    for mark in ("<mask>", "___", "_______"):
        given = filler.fill(f"The {mark} treats the nurse.")
        assert [(c.token, c.score, c.sequence) for c in given[0]] == [(c.token, c.score, c.sequence) for c in expected[0]]
    assert len(filler.fill("The ___ treats [MASK], <mask> and ___s.")) == 4


@pytest.mark.parametrize("text", ["un___able", "a __ b", "def __init__(self)", "_ _ _", "[mask ]", ""])
def test_what_is_no_mask(fillers, text):
    with pytest.raises(TaskError, match=r"there is no mask in .*write \[MASK\]"):
        fillers["bert"].fill(text)


@pytest.mark.parametrize("family", KINDS)
def test_the_filled_text_reads_as_the_model_saw_it(fillers, family):
    """A whole word put in place of the mask is tokenized as the text with that token in the mask's place."""
    filler = fillers[family]
    (mask,) = filler.fill("The [MASK] treats the nurse.", top_k=500)
    encode = filler.tokenizer.backend_tokenizer.encode
    masked = encode("The [MASK] treats the nurse.").ids
    words = [candidate for candidate in mask if candidate.token in WORDS and not candidate.joined]
    assert len(words) >= 4
    for candidate in words:
        assert candidate.sequence == f"The {candidate.token} treats the nurse."
        assert candidate.sequence[candidate.start :].startswith(candidate.token)
        assert encode(candidate.sequence).ids == [candidate.token_id if number == filler.specials.mask else number for number in masked]


@pytest.mark.parametrize("family", KINDS)
def test_tokens_are_clean_and_the_rest_of_the_text_is_left_alone(fillers, family):
    filler = fillers[family]
    text = "  The  [MASK] isn't\tcalling \n [MASK] (number 3). Ü "
    result = filler.fill(text, top_k=100)
    first, second = [match.span() for match in filler.marker.finditer(text)]
    for span, mask in zip((first, second), result, strict=True):
        for candidate in mask:
            assert not candidate.token.startswith(("##", "Ġ", "▁")) or candidate.token in ("#", "##")
            assert candidate.sequence.endswith(text[span[1] :])
            before = candidate.sequence[: candidate.start]
            assert before == text[: span[0]] or (candidate.joined and before == text[: span[0]].rstrip(" "))
            assert candidate.sequence == before + candidate.token + text[span[1] :]
    joined = [candidate for candidate in result[0] if candidate.joined]
    assert joined and all(candidate.sequence.startswith(f"  The{candidate.token} isn't") for candidate in joined)


def test_byte_level_without_a_space_before_the_mask(fillers):
    for candidate in fillers["roberta"].fill("([MASK]", top_k=60)[0]:
        space = "" if candidate.joined else " "
        assert candidate.sequence == f"({space}{candidate.token}"
    for candidate in fillers["roberta"].fill("[MASK] x", top_k=60)[0]:
        assert candidate.sequence == f"{candidate.token} x" and not candidate.joined


def test_a_mask_token_that_does_not_take_its_space_is_helped(folders, tmp_path):
    """Stock RoBERTa tokenizers made from vocab.json have a mask that leaves the space standing: it is swallowed all the same."""
    source = load_tokenizer(folders["roberta"])
    spec = json.loads(source.backend_tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["lstrip"] = False
    write_model(tmp_path, "roberta", source)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    text = "The [MASK] treats the nurse."
    assert load_tokenizer(tmp_path)(text)["input_ids"] != source(text)["input_ids"]
    expected = [(c.token, c.sequence) for c in Filler.load(folders["roberta"], device="cpu").fill(text)[0]]
    assert [(c.token, c.sequence) for c in Filler.load(tmp_path, device="cpu").fill(text)[0]] == expected


@pytest.mark.parametrize("family", KINDS)
def test_long_texts_are_seen_through_a_window_around_the_mask(folders, fillers, family):
    filler = fillers[family]
    words = "the doctor follows a patient and the judge calls someone"
    for before, after in ((0, 9), (4, 4), (9, 0)):
        text = " ".join([*[words] * before, "[MASK]", *[words] * after])
        assert not filler.fill("the [MASK] follows").truncated
        result = filler.fill(text, top_k=3)
        assert result.truncated and len(result) == 1
        _, ids, tokenizer = plain(folders[family], "a [MASK]")
        content = tokenizer(text, add_special_tokens=False)["input_ids"]
        place, room = content.index(tokenizer.mask_token_id), filler.max_length - 2
        start = min(max(place - room // 2, 0), len(content) - room)
        window = [ids[0], *content[start : start + room], ids[-1]]
        assert len(window) == filler.max_length == 64
        model = filler.engine.model
        with torch.no_grad():
            row = model(input_ids=torch.tensor([window])).logits[0, place - start + 1].softmax(-1)
        assert [candidate.score for candidate in result[0]] == pytest.approx([row[c.token_id].item() for c in result[0]], abs=1e-5)
        assert result[0][0].sequence.count(words) == before + after
    both = filler.fill(" ".join(["[MASK]", *[words] * 9, "[MASK]"]))
    assert both.truncated and len(both) == 2 and both[0][0].sequence.endswith("[MASK]")


def test_max_length_is_a_dial(folders):
    short = Filler.load(folders["bert"], device="cpu", max_length=6)
    assert short.fill("the doctor follows a [MASK] and the judge").truncated
    for wrong in (2, 65):
        with pytest.raises(ValueError, match="max_length"):
            Filler.load(folders["bert"], device="cpu", max_length=wrong)


def test_one_bad_text_does_not_end_the_batch(fillers):
    texts = ["The [MASK].", "no mask", "", "a ___", 7, "lone \ud800 [MASK]"]
    results = fillers["bert"].fill(texts)
    assert [result.error is None for result in results] == [True, False, False, True, False, True]
    assert "no mask in 'no mask'" in results[1].error and len(results[1]) == 0 and "not 7" in results[4].error
    assert results[1].to_dict() == {"text": "no mask", "error": results[1].error}
    assert fillers["bert"].fill(["nothing"] * 3)[2].error and fillers["bert"].fill([]) == []


def test_streams_without_reading_everything(folders):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield "The [MASK] treats the nurse." if taken % 3 else "no mask"

    results = list(itertools.islice(Filler.load(folders["bert"], device="cpu", max_tokens=256).stream(endless()), 5))
    assert [result.error is None for result in results] == [True, True, False, True, True]
    assert taken <= 256 * 16 // 7 + 2 * 256


def test_special_tokens_and_spare_rows_are_not_offered(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=120, special_tokens=["[DOC]"])
    filler = Filler.load(write_model(tmp_path, "bert", tokenizer, rows=8), device="cpu")
    (mask,) = filler.fill("The [MASK] treats.", top_k=1000)
    assert sorted(candidate.token_id for candidate in mask) == list(range(6, len(tokenizer)))
    assert sum(candidate.score for candidate in mask) < 1  # of the whole vocabulary: what is not offered keeps its share
    with pytest.raises(TaskError, match="top_k = 0"):
        filler.fill("[MASK]", top_k=0)


def test_from_python(folders):
    result = unmask.fill(folders["bert"], "The [MASK] treats the nurse.", top_k=2)
    assert [type(candidate.score) for candidate in result[0]] == [float, float]
    assert result.to_dict()["masks"][0][0]["sequence"] == result[0][0].sequence
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    again = unmask.Filler.load(folders["bert"], device="cpu")
    assert again.fill("The [MASK] treats the nurse.", top_k=2) == result == fill(again, "The [MASK] treats the nurse.", top_k=2)


def test_a_folder_written_anew_is_loaded_anew(tmp_path):
    import os

    tokenizer = train_tokenizer(TEXTS, vocab_size=120)
    first = fill(write_model(tmp_path, "bert", tokenizer), "The [MASK] treats.")
    assert fill(tmp_path, "The [MASK] treats.") == first
    write_model(tmp_path, "bert", tokenizer, limit=72)
    for file in tmp_path.iterdir():
        os.utime(file, (2e9, 2e9))
    assert fill(tmp_path, "The [MASK] treats.") != first


def test_errors_of_loading(folders, tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        Filler.load(tmp_path / "nowhere")
    with pytest.raises(TaskError, match="allowed: auto, cpu, cuda"):
        Filler.load(folders["bert"], device="cuda:77")
    larger = train_tokenizer(TEXTS, vocab_size=330, kind="bpe")
    write_model(tmp_path, "bert", train_tokenizer(TEXTS, vocab_size=100))
    larger.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="embeddings for 100"):
        Filler.load(tmp_path)


def test_weights_that_are_no_numbers_give_an_error_not_scores(folders):
    filler = Filler.load(folders["bert"], device="cpu")
    with torch.no_grad():
        filler.engine.model.get_input_embeddings().weight.fill_(float("nan"))
    (result,) = filler.fill(["The [MASK] treats."])
    assert "weights are damaged" in result.error and not len(result)
