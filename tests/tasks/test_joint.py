"""Several masks together, blanks of several pieces, targets, vocabularies, pairs: against search without shortcuts and the plain model."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from unmask.data.tokenizer import train_tokenizer
from unmask.errors import TaskError
from unmask.tasks.fill import Filler, FillOptions

from .test_fill import KINDS, TEXTS, folders, write_model  # noqa: F401


@pytest.fixture(scope="module")
def fillers(folders):  # noqa: F811
    return {name: Filler.load(folder, device="cpu") for name, folder in folders.items()}


def log_probs(filler, ids, place):
    """What the model says of one place of a sequence, without the engine."""
    with torch.no_grad():
        return filler.engine.model(input_ids=torch.tensor([ids])).logits[0, place].log_softmax(-1)


def framed(filler, text):
    return filler.tokenizer(text)["input_ids"]


def exhaustive(filler, text, ordinary):
    """The joint log-probability of every filling of two masks, by the chain rule."""
    ids = framed(filler, text)
    first, second = [place for place, number in enumerate(ids) if number == filler.specials.mask]
    begin, found = log_probs(filler, ids, first), {}
    for number in ordinary:
        after = log_probs(filler, [*ids[:first], number, *ids[first + 1 :]], second)
        found |= {(number, other): float(begin[number] + after[other]) for other in ordinary}
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS, vocab_size=90)
    return Filler.load(write_model(tmp_path_factory.mktemp("small"), "bert", tokenizer), device="cpu")


def test_joint_filling_is_exhaustive_search(small):
    ordinary = [number for number in range(len(small.tokenizer)) if number not in small.specials.all]
    for text in ("The [MASK] treats [MASK].", "[MASK] nurse, a [MASK]!"):
        found = exhaustive(small, text, ordinary)
        assert math.fsum(map(math.exp, found.values())) < 1.0001
        best = sorted(found, key=found.get, reverse=True)[:10]
        wide = small.fill(text, top_k=10, beam=len(ordinary))
        assert [one.token_ids for one in wide.joint] == best
        assert [one.log_prob for one in wide.joint] == pytest.approx([found[pair] for pair in best], abs=1e-4)
        assert [one.score for one in wide.joint] == pytest.approx([math.exp(found[pair]) for pair in best], rel=1e-3)
        # a narrow beam gives true scores too, and masking again what it found leaves it little to miss
        narrow = small.fill(text, top_k=3)
        assert narrow.joint[0].token_ids == best[0]
        assert all(one.log_prob == pytest.approx(found[one.token_ids], abs=1e-4) for one in narrow.joint)


def test_masking_again_finds_what_a_beam_of_one_passes_over(tmp_path):
    from unmask.tasks import joint

    filler = Filler.load(write_model(tmp_path, "bert", train_tokenizer(TEXTS, vocab_size=90)), device="cpu")
    with torch.no_grad():
        for parameter in filler.engine.model.bert.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # so that one mask has much to say about the other
    ordinary = [number for number in range(len(filler.tokenizer)) if number not in filler.specials.all]
    gains = 0
    for text in ("[MASK] [MASK] follows someone (number 8).", "The doctor follows a [MASK] [MASK] 7).", "The [MASK] treats [MASK]."):
        found = exhaustive(filler, text, ordinary)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(joint, "ROUNDS", 0)
            greedy = filler.fill(text, beam=1).joint[0]
        better = filler.fill(text, beam=1).joint[0]
        assert better.log_prob >= greedy.log_prob and better.log_prob == pytest.approx(found[better.token_ids], abs=1e-3)
        gains += better.log_prob > greedy.log_prob + 1e-3
    assert gains


@pytest.mark.parametrize("family", KINDS)
def test_joint_text_and_marginals(fillers, family):
    text = "The [MASK] treats the ___, a [MASK]!"
    result = fillers[family].fill(text, top_k=3)
    alone = fillers[family].fill(text, top_k=3, independent=True)
    assert not alone.joint and alone.masks == result.masks and len(result.joint) == 3
    for one in result.joint:
        assert "[MASK]" not in one.sequence and "___" not in one.sequence
        for token, start in zip(one.tokens, one.starts, strict=True):
            assert one.sequence[start:].startswith(token)
    assert [one.log_prob for one in result.joint] == sorted((one.log_prob for one in result.joint), reverse=True)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    assert not fillers[family].fill("The [MASK] treats.").joint


@pytest.mark.parametrize("family", KINDS)
def test_targets_keep_their_order_and_follow_the_chain_rule(fillers, family):
    filler = fillers[family]
    words = ["nurse", "someone", "lawyers", "judge"]
    result = filler.fill("The doctor treats the [MASK].", targets=words)
    assert [candidate.token for candidate in result[0]] == words
    for candidate in result[0]:
        if candidate.error:
            assert math.isnan(candidate.score) and candidate.to_dict()["score"] is None
            continue
        pieces = candidate.token_ids
        ids = framed(filler, "The doctor treats the [MASK].")
        place = ids.index(filler.specials.mask)
        ids = [*ids[:place], *[filler.specials.mask] * len(pieces), *ids[place + 1 :]]
        total = 0.0
        for number, piece in enumerate(pieces):
            total += float(log_probs(filler, ids, place + number)[piece])
            ids[place + number] = piece
        assert candidate.log_prob == pytest.approx(total, abs=1e-4) and candidate.score == pytest.approx(math.exp(total), rel=1e-3)
        assert candidate.sequence == f"The doctor treats the {candidate.token}."
    shares = filler.fill("The doctor treats the [MASK].", targets=words, renormalize=True)[0]
    assert math.fsum(one.score for one in shares if not one.error) == pytest.approx(1)
    assert [one.log_prob for one in shares if not one.error] == [one.log_prob for one in result[0] if not one.error]


def test_targets_of_each_mask(fillers):
    result = fillers["bert"].fill("The [MASK] treats the [MASK].", targets=[["doctor"], ["nurse", "judge"]])
    assert [[one.token for one in mask] for mask in result] == [["doctor"], ["nurse", "judge"]]
    (wrong,) = fillers["bert"].fill(["The [MASK]."], targets=[["doctor"], ["nurse"]])
    assert "targets for 2 masks and the text has 1" in wrong.error


@pytest.mark.parametrize("family", KINDS)
def test_blanks_are_filled_by_whole_words_of_several_pieces(fillers, family):
    filler = fillers[family]
    (mask,) = filler.fill("The ___ treats the nurse.", max_pieces=3, top_k=400)
    counts = {candidate.num_pieces for candidate in mask}
    assert len(counts) > 1 and max(counts) <= 3
    rates = [candidate.log_prob / candidate.num_pieces for candidate in mask]
    assert rates == sorted(rates, reverse=True)
    for candidate in mask[:20]:
        assert candidate.word == candidate.token and candidate.token.replace("'", "").replace("-", "").isalnum(), candidate
        assert candidate.sequence == f"The {candidate.token} treats the nurse."
    # a mask token stays a mask
    assert all(candidate.num_pieces == 1 for candidate in filler.fill("The [MASK] treats the nurse.", max_pieces=3)[0])


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("text", ["The [MASK] treats the nurse.", "[MASK] treats the nurse.", "The doctor ([MASK]) follows."])
def test_only_whole_words(fillers, family, text):
    filler = fillers[family]
    everything = filler.fill(text, top_k=1000)[0]
    whole = filler.fill(text, top_k=1000, whole_words=True)[0]
    begins = filler.fill(text, top_k=1000, no_subwords=True)[0]
    assert 0 < len(whole) < len(begins) < len(everything)
    assert {one.token_id for one in whole} < {one.token_id for one in begins}
    before, after = text.split("[MASK]")
    for one in whole:
        assert one.token[0].isalnum() and one.word == one.token and one.sequence == f"{before}{one.token}{after}"
    scores = {one.token_id: one.score for one in everything}
    assert all(one.score == pytest.approx(scores[one.token_id], abs=1e-6) for one in whole)  # shares of the whole vocabulary


@pytest.mark.parametrize("family", KINDS)
def test_only_words_of_a_vocabulary(fillers, family):
    filler = fillers[family]
    words = ["nurse", "judge", "doctors", "lawyer"]
    result = filler.fill(["The [MASK] treats.", "no mask", "[MASK]"], vocabulary=words, top_k=3)
    assert result[1].error and len(result[0][0]) == 3
    targets = {one.token: one.log_prob for one in filler.fill("The [MASK] treats.", targets=words)[0]}
    for one in result[0][0]:
        assert one.token in words and one.log_prob == pytest.approx(targets[one.token], abs=1e-4)
    rates = [one.log_prob / one.num_pieces for one in result[0][0]]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(TaskError, match="does not know|holds"):
        fillers["bert"].fill("[MASK]", vocabulary=["\u2603"])


def test_pairs_of_sentences(fillers, folders):  # noqa: F811
    from transformers import AutoModelForMaskedLM

    for family in KINDS:
        filler = fillers[family]
        model = AutoModelForMaskedLM.from_pretrained(folders[family])
        for pair in itertools.permutations(("The [MASK] treats the nurse.", "A patient follows someone.")):
            encoded = filler.tokenizer(*pair, return_tensors="pt")
            place = encoded["input_ids"][0].tolist().index(filler.specials.mask)
            with torch.no_grad():
                row = model(**encoded).logits[0, place].softmax(-1)
            result = filler.fill(pair, top_k=3)
            assert [one.score for one in result[0]] == pytest.approx([float(row[one.token_id]) for one in result[0]], abs=1e-5)
            assert result[0][0].sequence.endswith("treats the nurse.") and (result.text, result.pair) == pair
    both = fillers["bert"].fill(("The [MASK] treats.", "A [MASK] follows."), top_k=2)
    assert len(both) == 2 and both.joint[0].sequence.count("\n") == 1
    long = "the doctor follows a patient and the judge calls someone " * 9
    assert fillers["bert"].fill((long, "A [MASK] follows."), top_k=2).truncated


def test_long_texts_are_filled_jointly_through_windows(fillers):
    words = "the doctor follows a patient and the judge calls someone " * 9
    result = fillers["bert"].fill(f"{words}[MASK] and [MASK] {words}", top_k=2)
    assert result.truncated and len(result.joint) == 2
    near = fillers["bert"].fill(f"{words}___ {words}", top_k=2, max_pieces=2)
    assert near.truncated and len(near[0]) == 2


def test_a_bulk_of_all_kinds_keeps_its_order(fillers):
    texts = ["The [MASK].", "[MASK] and [MASK]", "no mask", "a ___", ("a", "[MASK] b"), "The [MASK] [MASK] [MASK]"] * 30
    results = fillers["roberta"].fill(texts, top_k=2, max_pieces=2)
    assert [one.text for one in results] == [text if isinstance(text, str) else text[0] for text in texts]
    assert [bool(one.joint) for one in results[:6]] == [False, True, False, False, False, True] and results[2].error
    assert results[:6] == fillers["roberta"].fill(texts[:6], top_k=2, max_pieces=2) or all(
        one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        for a, b in zip(results[:6], fillers["roberta"].fill(texts[:6], top_k=2, max_pieces=2), strict=True)
        for one, other in zip(a.joint, b.joint, strict=True)
    )


def test_more_masks_than_are_filled_together_are_refused_and_said_to_be_filled_each_on_its_own(fillers, monkeypatch):
    filler = fillers["bert"]
    with pytest.raises(TaskError, match=r"300 masks in a text, and at most 64 are filled together; fill each on its own .*--independent"):
        filler.fill("[MASK] " * 300)
    assert len(filler.fill("[MASK] " * 300, top_k=1, independent=True)) == 300
    assert len(filler.fill("[MASK] " * 300, targets=["doctor"])) == 300
    monkeypatch.setattr("unmask.tasks.fill.MOST_MASKS", 2)
    few, many, last = filler.fill(["[MASK] [MASK]", "[MASK] [MASK] [MASK]", "a [MASK]"], top_k=1)
    assert few.joint and last.error is None and "there are 3 masks in a text, and at most 2" in many.error
    assert filler.fill("___ ___ ___", max_pieces=2, top_k=1).error is None  # blanks of several pieces are filled each on its own


def test_the_service_and_the_library_have_one_bound():
    from unmask.serve.limits import Limits
    from unmask.tasks.joint import MOST_MASKS

    assert Limits().max_masks == MOST_MASKS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "doctor"}, "give a list of words"),
        ({"targets": []}, "give a list of words"),
        ({"renormalize": True}, "give targets"),
        ({"max_pieces": 0}, "max_pieces = 0; at least 1"),
        ({"max_pieces": 10**30}, "max_pieces = 1000000000000000000000000000000; at most 64"),
        ({"targets": ["a"], "whole_words": True}, "do not go with them"),
        ({"vocabulary": ["a"], "no_subwords": True}, "does not go with it|do not go with it"),
        ({"topk": 3}, "no option 'topk' of filling; allowed: top_k"),
    ],
)
def test_options_that_cannot_be(fillers, options, says):
    with pytest.raises(TaskError, match=says):
        fillers["bert"].fill("[MASK]", **options)


def test_a_beam_has_a_bound():
    assert FillOptions(top_k=10**9).width == FillOptions(beam=1024).width == 1024
    with pytest.raises(TaskError, match="at most 1,024"):
        FillOptions(beam=1025)
