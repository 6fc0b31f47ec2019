"""Targets at a mask: the chain rule by hand over stock transformers, spaces as the vocabulary wants them, and what cannot be scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, ModernBertConfig, RobertaConfig

from unmask.data.tokenizer import load_tokenizer, special_ids, train_tokenizer
from unmask.errors import TaskError
from unmask.infer.backends.torch import TorchBackend
from unmask.infer.engine import Engine
from unmask.infer.load import load
from unmask.infer.targets import Question, score_targets
from unmask.tasks.fill import Filler

WORDS = ["doctor", "patient", "judge", "nurse", "lawyer", "calling", "follows", "treats"]
TEXTS = [f"A {word}, the {word}! Our {word}? (the {word})" for word in WORDS] * 4
TARGETS = ["doctor", "judge", "doctors", "the patient", "lawyer calling"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("models"), {}
    for family, kind, config_class in (
        ("bert", "wordpiece", BertConfig), ("roberta", "bpe", RobertaConfig), ("modernbert", "unigram", ModernBertConfig),
    ):  # fmt: skip
        tokenizer = train_tokenizer(TEXTS, kind=kind, vocab_size=300)
        pad, cls, sep = special_ids(tokenizer)[1:4]
        specials = {"pad_token_id": pad, "bos_token_id": cls, "eos_token_id": sep, "cls_token_id": cls, "sep_token_id": sep}
        torch.manual_seed(3)
        config = config_class(
            vocab_size=len(tokenizer) + 3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            max_position_embeddings=64, **specials,
        )  # fmt: skip
        model = AutoModelForMaskedLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(4)
        found[family] = root / family
        model.save_pretrained(found[family])
        tokenizer.save_pretrained(found[family])
    return found


def ask(folder, *questions, **options):
    model, tokenizer = load(folder, device="cpu")
    return list(score_targets(Engine(model), tokenizer, questions, **options))


def by_hand(folder, left, pieces, right):
    """The chain rule over the plain model: one sentence at a time, all positions."""
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    special = special_ids(tokenizer)
    log_probs, ranks = [], []
    for place, piece in enumerate(pieces):
        middle = [*pieces[:place], *[special.mask] * (len(pieces) - place)]
        ids = torch.tensor([[special.cls, *left, *middle, *right, special.sep]])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 1 + len(left) + place]
        log_probs.append(float(logits.log_softmax(-1)[piece]))
        ordinary = [number for number in range(len(tokenizer)) if number not in special.all]
        ranks.append(1 + sum(bool(logits[number] > logits[piece]) for number in ordinary))
    return log_probs, ranks


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_chain_rule(folders, family):
    texts = ["The [MASK] treats the nurse.", "___ follows", "(<mask>) judge"]
    tokenizer = load_tokenizer(folders[family])
    for answer in ask(folders[family], *(Question(text, TARGETS) for text in texts)):
        assert answer.error is None and not answer.truncated
        before, after = next(
            tuple(answer.question.text.split(mark)) for mark in ("[MASK]", "___", "<mask>") if mark in answer.question.text
        )
        for score in answer.targets:
            # the whole sentence's pieces, cut where the pieces of what stands before end
            left = tokenizer(before.rstrip(" "), add_special_tokens=False)["input_ids"]
            pieces = tokenizer(before + score.target, add_special_tokens=False)["input_ids"][len(left) :]
            right = tokenizer(f"a {tokenizer.mask_token}{after}", add_special_tokens=False)["input_ids"]
            right = right[right.index(tokenizer.mask_token_id) + 1 :]
            log_probs, ranks = by_hand(folders[family], left, pieces, right)
            assert list(score.piece_ids) == pieces
            assert score.log_probs == pytest.approx(log_probs, abs=1e-4)
            assert list(score.ranks) == ranks
            assert score.log_prob == pytest.approx(math.fsum(log_probs), abs=1e-4)
            assert score.rank == max(ranks)


def test_scores_and_ranks_of_single_pieces_are_those_of_fill(folders):
    model, tokenizer = load(folders["bert"], device="cpu")
    filled = Filler(model, tokenizer).fill("The [MASK] calls.", top_k=len(tokenizer))
    expected = {candidate.token: (candidate.score, rank) for rank, candidate in enumerate(filled[0], start=1) if not candidate.joined}
    (answer,) = score_targets(Engine(model), tokenizer, [Question("The [MASK] calls.", list(expected))])
    assert len(expected) > 20 and all(score.num_pieces == 1 for score in answer.targets)
    for score in answer.targets:
        assert (math.exp(score.log_prob), score.rank) == (pytest.approx(expected[score.target][0], abs=1e-6), expected[score.target][1])
        assert tokenizer.convert_tokens_to_string(list(score.predicted)) == filled[0][0].token or filled[0][0].joined


def test_byte_level_spaces(folders):
    first, middle, bracket, own = ask(
        folders["roberta"],
        Question("[MASK] calls.", ["doctor"]),
        Question("The [MASK] calls.", ["doctor", " doctor", "doctor "]),
        Question("The ([MASK]) calls.", ["doctor"]),
        Question("The judge,[MASK] calls.", [" doctor"]),
    )
    joined = {"".join(score.pieces) for score in (*middle.targets, *own.targets)}
    assert joined == {"Ġdoctor"} and len({score.log_prob for score in middle.targets}) == 1
    assert ["".join(score.pieces) for score in (*first.targets, *bracket.targets)] == ["doctor", "doctor"]


def test_what_cannot_be_scored_says_so_and_the_rest_goes_on(folders):
    text = "The [MASK] treats."
    results = ask(
        folders["bert"],
        Question("no mask here", ["judge"]),
        Question("[MASK] and [MASK]", ["judge"]),
        Question("[MASK] and [MASK]", ["judge"], mask=1),
        Question("[MASK] and [MASK]", ["judge"], mask=2),
        Question(text, ["☃", "", "  ", "judge", "[SEP]", "[MASK]"]),
        Question(text, []),
        Question(None, ["judge"]),
        Question(text, [7]),
    )
    assert "there is no mask" in results[0].error
    assert "2 masks" in results[1].error
    assert results[2].error is None and results[2].targets[0].num_pieces == 1
    assert "allowed: 0 to 1" in results[3].error
    errors = [score.error for score in results[4].targets]
    assert "[UNK]" in errors[0] and "empty" in errors[1] and "empty" in errors[2] and errors[3] is None
    assert "special token [SEP]" in errors[4] and "special token [MASK]" in errors[5]
    assert math.isnan(results[4].targets[0].log_prob) and results[4].targets[0].rank is None
    assert results[5].targets == ()
    assert "strings" in results[6].error and "strings" in results[7].error


def test_joined_to_what_stands_before(folders):
    (answer,) = ask(folders["roberta"], Question("The doc[MASK] calls.", ["tor", "s"]))
    assert "joins 'tor'" in answer.targets[0].error and "mask the whole word" in answer.targets[0].error
    (answer,) = ask(folders["bert"], Question("The judge[MASK] calls.", ["s"]))
    assert answer.targets[0].error is None and answer.targets[0].pieces == ("##s",)


def test_lowercase_makes_targets_equal(tmp_path, folders):
    tokenizer = train_tokenizer(TEXTS, kind="wordpiece", vocab_size=300, lowercase=True)
    model = AutoModelForMaskedLM.from_config(BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, pad_token_id=0,
    ))  # fmt: skip
    (answer,) = score_targets(Engine(model), tokenizer, [Question("The [MASK] calls.", ["Doctor", "doctor"])])
    assert answer.targets[0].log_probs == answer.targets[1].log_probs and answer.targets[0].pieces == ("doctor",)


def test_long_texts_see_a_window_around_the_mask(folders):
    tokenizer = load_tokenizer(folders["bert"])
    long = "judge " * 100
    both, left, right = ask(
        folders["bert"], *(Question(text, ["nurse"]) for text in (f"{long}[MASK] {long}", f"{long}the [MASK].", f"The [MASK] {long}"))
    )
    judge = tokenizer.convert_tokens_to_ids("judge")
    for answer, before, after in ((both, 30, 31), (left, None, None), (right, None, None)):
        assert answer.truncated and answer.targets[0].error is None
        if before:
            (expected,), _ = by_hand(folders["bert"], [judge] * before, answer.targets[0].piece_ids, [judge] * after)
            assert answer.targets[0].log_prob == pytest.approx(expected, abs=1e-4)
    words = " ".join(["nurse"] * 70)
    (answer,) = ask(folders["bert"], Question("The [MASK].", [words]))
    assert "there is room for 62" in answer.targets[0].error
    with pytest.raises(TaskError, match="no room"):
        ask(folders["bert"], Question("[MASK]", ["judge"]), max_length=2)
    with pytest.raises(TaskError, match="max_length = 65 is more than the 64"):
        ask(folders["bert"], Question("[MASK]", ["judge"]), max_length=65)


class OutOfMemory(TorchBackend):
    """A backend on which no two sequences fit at once, and whose logits are numpy's, as those of an export."""

    def forward(self, batch):
        if len(batch) > 1:
            raise MemoryError("two are too many")
        return super().forward(batch).numpy()

    def labels(self, batch):
        return np.asarray(batch.labels)

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)


def test_other_backends_and_halved_passes(folders):
    model, tokenizer = load(folders["bert"], device="cpu")
    questions = [Question("The [MASK] calls.", TARGETS), Question("A [MASK].", ["judge", "nurse", "☃"]), Question("[MASK] judge", ["a"])]
    expected = list(score_targets(Engine(model), tokenizer, questions))
    found = list(score_targets(Engine(OutOfMemory(model, "fp32")), tokenizer, questions))
    for one, other in zip(expected, found, strict=True):
        for score, again in zip(one.targets, other.targets, strict=True):
            assert score.log_probs == pytest.approx(again.log_probs, abs=1e-5) and score.ranks == again.ranks
            assert score.predicted == again.predicted and score.error == again.error


def test_batches_change_nothing(folders):
    model, tokenizer = load(folders["bert"], device="cpu")
    questions = [Question(f"The {word} {'and the judge ' * (number % 5)}[MASK] .", TARGETS) for number, word in enumerate(WORDS * 40)]
    alone = list(score_targets(Engine(model, max_tokens=1), tokenizer, questions[:10]))
    together = list(score_targets(Engine(model), tokenizer, iter(questions)))
    assert len(together) == len(questions) and [answer.question for answer in together] == questions
    for one, other in zip(alone, together, strict=False):
        for score, again in zip(one.targets, other.targets, strict=True):
            assert score.log_probs == pytest.approx(again.log_probs, abs=1e-5) and score.ranks == again.ranks
