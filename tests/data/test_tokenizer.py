"""Tokenizers: trained, saved, loaded by plain transformers, and where words begin."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.tokenizer import describe, load_tokenizer, save_tokenizer, special_ids, tokenizer_hash, train_tokenizer, word_starts
from unmask.errors import RunError, TokenizerError

KINDS = ["wordpiece", "bpe", "unigram"]
SUBJECTS = ["The doctor", "A patient", "The old court", "Our judge", "Ünsere Straße", "The function", "An array", "Каждый врач"]
VERBS = ["returns", "examined", "doesn't decide", "has read", "überprüft", "isn't writing", "прочитал"]
OBJECTS = ["the report (2017).", "3 new values, 40% of 1234!", "a list of arrays.", "naïve cafés."]
OBJECTS += ["「東京」の天気。", "ภาษาไทย 25.", "книгу\u200cздесь."]
TEXTS = [f"{s} {v} {o}" for s in SUBJECTS for v in VERBS for o in OBJECTS]
HARD = "The doctor, isn't  he (2017)? naïve-café 東京の天気 ภาษาไทย книгу здесь!! \t 😀 end."


@pytest.fixture(scope="module")
def trained():
    return {kind: train_tokenizer(TEXTS, kind=kind, vocab_size=300, special_tokens=["[DOC]"]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_loads_with_plain_autotokenizer(trained, kind, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = trained[kind]
    tokenizer.save_pretrained(tmp_path)
    for model_type in (None, "bert", "roberta", "modernbert"):
        if model_type:  # as it lies in a model folder, where transformers would like to choose a class of its own
            (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        plain = AutoTokenizer.from_pretrained(tmp_path)
        for text in (HARD, "The [MASK] returns [DOC] a list.", ""):
            assert plain(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert plain("The doctor", "a list").data == tokenizer("The doctor", "a list").data
        assert tokenizer_hash(plain) == tokenizer_hash(tokenizer)
        assert plain.model_max_length == 512
        assert plain.model_input_names == ["input_ids", "token_type_ids", "attention_mask"]
        assert special_ids(plain) == special_ids(tokenizer) == (4, 0, 2, 3, 1, (0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_post_processor_and_token_types(trained, kind):
    tokenizer = trained[kind]
    pair = tokenizer("The doctor", "a list")
    ids, types = pair["input_ids"], pair["token_type_ids"]
    ends = [place for place, token in enumerate(ids) if token == tokenizer.sep_token_id]
    assert ids[0] == tokenizer.cls_token_id and len(ends) == 2 and ends[1] == len(ids) - 1
    assert types == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_takes_the_place_of_a_word_with_its_space(trained, kind):
    tokenizer = trained[kind]

    def tokens(text):
        return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])

    whole, masked = tokens("A patient has read."), tokens("A patient [MASK] read.")
    place = masked.index("[MASK]")
    assert masked[:place] == tokens("A patient")
    assert masked[place + 1 :] == whole[-len(masked[place + 1 :]) :]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_of_the_size_asked_for_and_round_trips(trained, kind):
    tokenizer = trained[kind]
    assert len(tokenizer) == tokenizer.backend_tokenizer.get_vocab_size()
    assert len(tokenizer) == 300 or (kind == "unigram" and len(tokenizer) < 300)  # it finds no more worth having in so small a text
    report = describe(tokenizer, TEXTS)
    assert report["round_trip"] == 1.0 and report["unknown_rate"] == 0.0 and report["documents"] == len(TEXTS)
    assert report["words"] == sum(len(text.split()) for text in TEXTS)
    assert report["tokens"] == sum(len(tokenizer.tokenize(text)) for text in TEXTS)
    assert report["fertility"] == report["tokens"] / report["words"] and report["bytes"] == sum(len(text.encode()) for text in TEXTS)


def test_byte_level_gives_back_every_byte(trained):
    tokenizer = trained["bpe"]
    text = HARD + "\n\n  x\u0301\x07"  # normalised to NFC: x has no composed form
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_unknown_characters_are_counted(trained):
    report = describe(trained["wordpiece"], ["the ჯანმრთელობა list", "a list"])
    assert report["unknown"] == 1 and 0 < report["unknown_rate"] < 1 and report["round_trip"] == 0.5
    assert describe(trained["bpe"], ["the ჯანმრთელობა list"])["unknown"] == 0
    empty = describe(trained["bpe"], [])
    assert empty["documents"] == 0 and empty["fertility"] is None


def test_same_text_same_tokenizer():
    for kind in ("wordpiece", "bpe"):
        assert len({tokenizer_hash(train_tokenizer(TEXTS, kind=kind, vocab_size=300)) for _ in range(3)}) == 1


def test_options():
    cased = train_tokenizer(TEXTS, vocab_size=300, lowercase=False)
    assert "the" in train_tokenizer(TEXTS, vocab_size=300).tokenize("The")
    assert "The" in cased.tokenize("The")
    assert train_tokenizer(TEXTS, vocab_size=300, strip_accents=True).tokenize("naïve") == train_tokenizer(
        TEXTS, vocab_size=300, strip_accents=True
    ).tokenize("naive")
    for kind in KINDS:
        single = train_tokenizer(TEXTS, kind=kind, vocab_size=300, digits="single")
        digits = [token.strip("Ġ▁") for token in single.tokenize("in 2017 and 1234") if any(char.isdigit() for char in token)]
        assert digits == list("20171234"), kind
        whole = train_tokenizer(["in 2017 and", "2017 was after 2016", "20 and 17 and 2017"] * 9, kind=kind, vocab_size=300)
        assert sum(any(char.isdigit() for char in token) for token in whole.tokenize("in 2017")) < 4, kind


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "wordpeace"}, "allowed: wordpiece, bpe, unigram"),
        ({"digits": "none"}, "allowed: whole, single"),
        ({"vocab_size": 20}, "too small"),
        ({"vocab_size": -3}, "vocab_size = -3; allowed"),
        ({"min_frequency": -1}, "min_frequency = -1; allowed"),
        ({"vocab_size": 2**40}, "vocab_size = 1099511627776; allowed: a whole number from 1 to 10,000,000"),
        ({"min_frequency": 10**30}, "allowed: a whole number from 1 to 10,000,000"),
        ({"max_length": -1}, "max_length = -1; allowed"),
        ({"special_tokens": [""]}, "one of them is empty"),
        ({"kind": "bpe", "vocab_size": 200}, "too small"),
        ({"special_tokens": ["[MASK]"]}, "always there"),
    ],
)
def test_wrong_options_say_what_is_allowed(options, says):
    with pytest.raises(TokenizerError, match=says):
        train_tokenizer(TEXTS, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_and_little_text(kind, caplog):
    with pytest.raises(TokenizerError, match="no text"):
        train_tokenizer(["", "  \n"], kind=kind)
    with caplog.at_level(logging.WARNING):
        small = train_tokenizer(["one small text of a few words, of a few"], kind=kind, vocab_size=1000)
    assert len(small) < 1000 and "not 1,000" in caplog.text


def test_a_line_of_many_megabytes_and_errors_of_the_reader():
    assert len(train_tokenizer(["word " * 600_000 + "x" * 2_500_000], kind="wordpiece", vocab_size=60)) <= 60

    def broken():
        yield "some text"
        raise TokenizerError("from the reader")

    with pytest.raises(TokenizerError, match="from the reader"):
        train_tokenizer(broken())


# --- loading

PUBLISHED = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, "hello": 7592, "world": 2088, "##s": 2015, ",": 1010}


def write_vocab(path, tokens):
    lines = [f"[unused{number}]" for number in range(max(tokens.values()) + 1)]
    for token, number in tokens.items():
        lines[number] = token
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_bare_vocab_txt_gives_the_published_ids(tmp_path):
    from transformers import BertTokenizer

    write_vocab(tmp_path / "vocab.txt", PUBLISHED)
    for source in (tmp_path / "vocab.txt", tmp_path):
        tokenizer = load_tokenizer(source)
        assert tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]
        stock = BertTokenizer.from_pretrained(tmp_path)
        for text in ("Héllo, WORLDS [MASK]", "中hello\u00a0world\x00s", "hello" * 30):
            assert tokenizer(text)["input_ids"] == stock(text)["input_ids"]
    write_vocab(tmp_path / "cased.txt", PUBLISHED | {"Hello": 8667})
    assert load_tokenizer(tmp_path / "cased.txt")("Hello hello")["input_ids"] == [101, 8667, 7592, 102]


@pytest.fixture
def roberta_files(tmp_path, trained):
    """A vocab.json with merges.txt beside it, with RoBERTa's special tokens."""
    spec = json.loads(trained["bpe"].backend_tokenizer.to_str())
    rename = {"[PAD]": "<pad>", "[UNK]": "<unk>", "[CLS]": "<s>", "[SEP]": "</s>", "[MASK]": "<mask>"}
    vocab = {rename.get(token, token): number for token, number in spec["model"]["vocab"].items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(" ".join(merge) for merge in spec["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return tmp_path


def test_vocab_json_with_merges_is_roberta(roberta_files):
    from transformers import RobertaTokenizer

    stock = RobertaTokenizer.from_pretrained(roberta_files)
    for source in (roberta_files, roberta_files / "vocab.json", roberta_files / "merges.txt"):
        tokenizer = load_tokenizer(source)
        for text in ("The doctor has read, isn't it", HARD):
            assert tokenizer(text)["input_ids"] == stock(text)["input_ids"]
        assert tokenizer("a", "b")["input_ids"] == stock("a", "b")["input_ids"]
        assert special_ids(tokenizer).mask == 4
        # as in the published tokenizer.json, the mask swallows the space before it
        assert tokenizer("A patient <mask> read.")["input_ids"] == stock("A patient<mask> read.")["input_ids"]
    (roberta_files / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"merges\.txt"):
        load_tokenizer(roberta_files / "vocab.json")


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_json_alone_and_saved_truncation(trained, kind, tmp_path):
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(trained[kind].backend_tokenizer.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    for source in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(source)
        assert loaded.backend_tokenizer.truncation is None and loaded.backend_tokenizer.padding is None
        assert loaded.backend_tokenizer.encode(HARD).ids == loaded(HARD)["input_ids"] == trained[kind](HARD)["input_ids"]
        assert special_ids(loaded) == special_ids(trained[kind])
        assert tokenizer_hash(loaded) == tokenizer_hash(trained[kind])


def test_hash_tells_tokenizers_apart(trained):
    hashes = {tokenizer_hash(tokenizer) for tokenizer in trained.values()}
    hashes.add(tokenizer_hash(train_tokenizer(TEXTS, vocab_size=300, special_tokens=["[DOC]"], lowercase=False)))
    hashes.add(tokenizer_hash(train_tokenizer(TEXTS, vocab_size=299, special_tokens=["[DOC]"])))
    assert len(hashes) == 5 and all(len(one) == 16 for one in hashes)


def test_tokenizer_without_a_mask_says_what_to_do(roberta_files, trained, tmp_path):
    spec = json.loads(trained["bpe"].backend_tokenizer.to_str())
    text = json.dumps(spec).replace("[MASK]", "[GAP]").replace("[PAD]", "[FILL]")
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"no mask and no pad tokens.*train one with `unmask tokenizer`"):
        load_tokenizer(tmp_path / "gpt")
    vocab = (roberta_files / "vocab.json").read_text().replace("<mask>", "<gap>")
    (roberta_files / "vocab.json").write_text(vocab)
    with pytest.raises(TokenizerError, match="no <mask>"):
        load_tokenizer(roberta_files)


def test_what_is_no_tokenizer_says_so(tmp_path):
    (tmp_path / "vocab.txt").write_text("just\nwords\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "empty").mkdir()
    for source, says in [
        (tmp_path / "vocab.txt", r"no line \[UNK\]"),
        (tmp_path / "broken.json", "not a tokenizer file"),
        (tmp_path / "latin.txt", "not UTF-8 text \\(byte 3\\)"),
        (tmp_path / "empty", "holds no tokenizer"),
        (tmp_path / "nowhere", "no file or folder"),
    ]:
        with pytest.raises(TokenizerError, match=says):
            load_tokenizer(source)


def test_a_hub_name_offline_fails_at_once_and_says_so():
    code = "from unmask.data.tokenizer import load_tokenizer; load_tokenizer('no-such-name-of-a-model')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "TokenizerError" in done.stderr and "HF_HUB_OFFLINE" in done.stderr


def test_import_is_light():
    code = "import sys, unmask.data.tokenizer; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'tokenizers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- where words begin


def shown(tokenizer, text):
    """The words of a text as the starts cut it, special marks of the vocabulary removed."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    (starts,) = word_starts(tokenizer, [encoding])
    spans = [text[a:b] for a, b in encoding.offsets]
    words: list[str] = []
    for start, span in zip(starts, spans, strict=True):
        if start:
            words.append(span)
        else:
            words[-1] += span if span != words[-1][-len(span) :] or len(span) > 1 else ""
    return [word.strip() for word in words]


@pytest.mark.parametrize("kind", KINDS)
def test_words_of_plain_text(trained, kind):
    words = shown(trained[kind], "The doctor (2017) examined naïve patients, returns!")
    assert words == ["The", "doctor", "(", "2017", ")", "examined", "naïve", "patients", ",", "returns", "!"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_words_agree_with_the_pre_tokenizer(trained, kind, data):
    """The tables say from ids alone what the library's own word numbers say (apostrophes and scripts without spaces aside)."""
    alphabet = "abde iorstuvwÜéïaß КажВр,.!?()-%0123456789"
    # a corpus is normalised before it is tokenized: it has no runs of spaces, whose pieces the byte-level table takes one by one
    text = " ".join(data.draw(st.text(alphabet, max_size=40)).split())
    encoding = trained[kind].backend_tokenizer.encode(text, add_special_tokens=False)
    (starts,) = word_starts(trained[kind], [encoding])
    words = np.array([-1 if word is None else word for word in encoding.word_ids])
    expected = np.ones(len(words), dtype=bool)
    expected[1:] = words[1:] != words[:-1]
    unknown = np.array(encoding.ids) == trained[kind].unk_token_id
    if kind == "wordpiece" or not unknown.any():
        assert (starts == expected).all(), encoding.tokens


@pytest.mark.parametrize("kind", KINDS)
def test_scripts_without_spaces_have_no_word_of_a_whole_sentence(trained, kind):
    encoding = trained[kind].backend_tokenizer.encode("京東の天気 ไทยภาษา", add_special_tokens=False)
    (starts,) = word_starts(trained[kind], [encoding])
    assert starts.sum() >= 7
    for (begin, end), start in zip(encoding.offsets, starts, strict=True):
        assert start or end - begin <= 1, "a piece that holds characters of its own begins a word"


def test_bytes_of_one_character_are_one_word():
    tokenizer = train_tokenizer(["plain text only"] * 3, kind="bpe", vocab_size=270)
    encoding = tokenizer.backend_tokenizer.encode("é東😀 ш", add_special_tokens=False)
    (starts,) = word_starts(tokenizer, [encoding])
    assert "".join("|" if start else "." for start in starts) == "|.|..|...|.."  # é 東 😀 and " ш"


def test_every_text_begins_a_word_and_special_tokens_stand_alone(trained):
    for kind in KINDS:
        tokenizer = trained[kind]
        batch = tokenizer(["The doctor[SEP]examined", "", "patients"], add_special_tokens=False)
        starts = word_starts(tokenizer, batch)
        assert [len(one) for one in starts] == [len(ids) for ids in batch["input_ids"]]
        place = batch["input_ids"][0].index(tokenizer.sep_token_id)
        assert starts[0][place] and starts[0][place + 1] and starts[2][0] and len(starts[1]) == 0
        assert all((a == b).all() for a, b in zip(starts, word_starts(tokenizer, batch["input_ids"]), strict=True))
        assert word_starts(tokenizer, []) == []


def test_modernbert_style_spaces_and_untrimmed_offsets(trained):
    """ModernBERT keeps spaces inside offsets and holds runs of spaces as added tokens."""
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(trained["bpe"].backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)
    backend.add_tokens([AddedToken("   ", normalized=False), AddedToken("  ", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")
    encoding = backend.encode("The doctor   examined  a list\nof returns", add_special_tokens=False)
    (starts,) = word_starts(tokenizer, [encoding])
    begins = [encoding.tokens[place] for place in np.flatnonzero(starts)]
    text = "".join(("|" if start else "") + token for start, token in zip(starts, encoding.tokens, strict=True))
    assert text == "|The|Ġdoctor|   |examined|  |a|Ġlist|Ċ|of|Ġreturns", begins


def test_other_marks_of_words(trained):
    """A suffix that ends words (GPT-1, XLM, CLIP), and a kind that marks nothing at all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"[UNK]": 0, "wa": 1, "lk</w>": 2, "a</w>": 3, "lk": 4, "a": 5, "w": 6, "l": 7, "k": 8, "k</w>": 9}
    merges = [("w", "a"), ("l", "k</w>"), ("l", "k")]
    suffix = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token="[UNK]"))
    suffix.pre_tokenizer = pre_tokenizers.Whitespace()
    encoding = suffix.encode("walk a walk")
    assert encoding.tokens == ["wa", "lk</w>", "a</w>", "wa", "lk</w>"]
    (starts,) = word_starts(PreTrainedTokenizerFast(tokenizer_object=suffix), [encoding])
    assert starts.tolist() == [True, False, True, True, False]

    bare = Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare)
    encoding = bare.encode("walk a walk")
    (starts,) = word_starts(tokenizer, [encoding])
    assert starts.tolist() == [True, False, True, True, False]
    with pytest.raises(TypeError, match="encodings"):
        word_starts(tokenizer, [encoding.ids])


def test_a_disk_that_is_full_is_a_run_error(tmp_path):
    class Full:
        def save_pretrained(self, folder):
            raise Exception("No space left on device (os error 28)")  # as tokenizers does

    with pytest.raises(RunError, match="could not be written.*No space left.*make room"):
        save_tokenizer(Full(), tmp_path)


def test_wordpiece_is_full_though_the_text_has_many_rare_characters():
    rare = [chr(0x4E00 + number) for number in range(1500)]
    names = [f"na{a}me{b}ro{c}" for a in "bcdfghklmn" for b in "pqrstvwxyz" for c in "aeiouy"]
    texts = [" ".join([*names[start::7], rare[start]]) for start in range(1500)]
    tokenizer = train_tokenizer(texts, vocab_size=400, min_frequency=2)
    assert len(tokenizer) == 400
    assert max(len(token) for token in tokenizer.get_vocab()) > 4  # it is merges that fill it, not characters
