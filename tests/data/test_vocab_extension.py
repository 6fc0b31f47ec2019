"""Words that are added to a tokenizer: which, and that they are words like all others afterwards."""

import numpy as np
import pytest

from unmask.data.tokenizer import load_tokenizer, save_tokenizer, special_ids, tokenizer_hash, train_tokenizer, word_starts
from unmask.data.vocab_extension import Extension, extend, propose
from unmask.errors import DataError, TokenizerError

GENERAL = ["the cat sat on the mat and the dog ran to the door of the house in the rain"] * 40
DOMAIN = [
    "the carcinoma and the lymphoma in the liver (lymphoma) of 1234567 patients",
    "Carcinoma of the liver aaaabbbb and CARCINOMA of the skin zzqx1 1234567",
] * 12 + ["a metastasis " * 30]  # often enough, but in one text alone
KINDS = ["wordpiece", "bpe", "unigram"]


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer([*GENERAL, "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 ()."] * 3, kind=kind,
                                  vocab_size=400) for kind in KINDS}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_words_come_by_the_pieces_that_they_save(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    found = propose(tokenizer, DOMAIN, 100)
    counts = {"carcinoma": 36, "lymphoma": 24, "liver": 24, "patients": 12, "skin": 12}
    assert {word.word: word.count for word in found.words} == counts  # no number, nothing repeated, nothing of one text alone
    saved = [(len(tokenizer.tokenize(word.word)) - 1) * word.count for word in found.words]
    assert [word.saved for word in found.words] == saved == sorted(saved, reverse=True)
    assert [word.id for word in found.words] == list(range(len(tokenizer), len(tokenizer) + 5))
    assert found.saved == sum(saved) and found.num_eligible == 5 and found.num_documents == len(DOMAIN)
    ids = np.concatenate([tokenizer(text, add_special_tokens=False)["input_ids"] for text in DOMAIN])
    assert found.num_tokens == len(ids)
    for word in found.words:
        assert tuple(tokenizer.tokenize(word.word)) == word.pieces
        assert word.piece_counts == tuple(int((ids == piece).sum()) for piece in word.piece_ids)
    assert propose(tokenizer, DOMAIN, 2).words == found.words[:2]


def test_the_order_of_the_texts_changes_nothing(tokenizers, kind):
    assert propose(tokenizers[kind], DOMAIN, 3) == propose(tokenizers[kind], DOMAIN[::-1], 3)


def test_a_long_text_is_one_document(tokenizers):
    found = propose(tokenizers["wordpiece"], [" ".join(DOMAIN[:24]) * 80, *DOMAIN[:24]], 100)
    assert {word.word: word.num_documents for word in found.words}["skin"] == 13


def test_words_are_whole_after_saving_and_loading(tokenizers, kind, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tokenizers[kind]
    found = propose(tokenizer, DOMAIN, 50)
    extended = extend(tokenizer, found)
    save_tokenizer(extended, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_hash(loaded) == tokenizer_hash(extended) == tokenizer_hash(load_tokenizer(tmp_path))
    assert special_ids(loaded) == special_ids(tokenizer) and len(loaded) == len(tokenizer) + len(found.words)
    vocab = loaded.get_vocab()
    assert all(vocab[token] == number for token, number in tokenizer.get_vocab().items())
    known = {word.word for word in found.words}
    assert {"lymphoma", "liver"} <= known
    for text in (*DOMAIN, *GENERAL[:1], "The  lymphoma's LIVER, livers;lymphoma-like? 12 [MASK]"):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert loaded.decode(ids).replace(" ", "") == tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).replace(
            " ", ""
        )
    for word in found.words:
        if word.token[0] in "Ġ▁" or kind == "wordpiece":
            assert loaded.tokenize(f"a {word.word}")[-1] == word.token
    # in the middle of a word an entry is no whole word
    assert (
        vocab[next(word.token for word in found.words if word.word == "liver")]
        not in loaded("oliver", add_special_tokens=False)["input_ids"]
    )


def test_masking_sees_the_words_as_words_and_draws_them(tokenizers, kind):
    from unmask.data.masking import MaskingConfig, Vocabulary, mask_document

    tokenizer = tokenizers[kind]
    found = propose(tokenizer, DOMAIN, 50)
    extended = extend(tokenizer, found)
    text = "the liver and the lymphoma and the carcinoma of the skin"
    for one in (tokenizer, extended):
        (starts,) = word_starts(one, one.backend_tokenizer.encode_batch([text], add_special_tokens=False))
        assert starts.sum() == len(text.split())
    new = {word.id for word in found.words}
    ids = np.array(extended(text, add_special_tokens=False)["input_ids"] * 400)
    assert new & set(ids.tolist())
    vocabulary = Vocabulary(extended.mask_token_id, special_ids(extended).all, len(extended))
    policy = MaskingConfig(mlm_probability=1.0, mask_replace_prob=0.0, random_replace_prob=1.0)
    corrupted, _ = mask_document(ids, np.ones(len(ids), bool), document=0, config=policy, vocabulary=vocabulary, seed=0, epoch=0)
    assert new <= set(corrupted.tolist())


def test_a_tokenizer_s_own_added_tokens_keep_their_numbers(tokenizers, tmp_path):
    for kind in ("bpe", "unigram"):
        save_tokenizer(tokenizers[kind], tmp_path / kind)
        tokenizer = load_tokenizer(tmp_path / kind)
        tokenizer.add_tokens(["|||ID|||"])
        extended = extend(tokenizer, propose(tokenizer, DOMAIN, 3))
        save_tokenizer(extended, tmp_path / f"{kind}-more")
        loaded = load_tokenizer(tmp_path / f"{kind}-more")
        assert loaded.get_vocab()["|||ID|||"] == len(tokenizers[kind]) and "|||ID|||" in loaded.tokenize("the liver|||ID|||cat")


def test_what_was_found_is_read_as_it_was_written(tokenizers, tmp_path):
    found = propose(tokenizers["bpe"], DOMAIN, 4)
    found.save(tmp_path / "vocabulary.json")
    assert Extension.load(tmp_path / "vocabulary.json") == found
    text = (tmp_path / "vocabulary.json").read_text()
    for damaged in (text.replace('"num_documents": ', '"num_documents": 1'), text[:-20], "[]"):
        (tmp_path / "vocabulary.json").write_text(damaged)
        with pytest.raises(DataError, match="is not the list of words that the run began with"):
            Extension.load(tmp_path / "vocabulary.json")


def test_what_cannot_be_extended_is_refused(tokenizers):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    with pytest.raises(TokenizerError, match="extend_vocab = 0"):
        propose(tokenizers["bpe"], DOMAIN, 0)
    with pytest.raises(TokenizerError, match=r"of 2 different words of several pieces in 2 documents none occurs 10 times"):
        propose(tokenizers["wordpiece"], ["the liver", "the skin"], 5)
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1, "[PAD]": 2, "[CLS]": 3, "[SEP]": 4}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", mask_token="[MASK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    with pytest.raises(TokenizerError, match=r"\(WordLevel\) cannot be extended; allowed: WordPiece"):
        propose(words, DOMAIN, 5)
