"""`unmask.compare` and `unmask compare`: the same masks, the numbers of an evaluation, words where tokenizers differ, bad input."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import text as text_of
from transformers import BertConfig, BertForMaskedLM

import unmask
from unmask.cli import dispatch
from unmask.data.tokenizer import train_tokenizer
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.evaluate.shared import encoded, find_words
from unmask.evaluate.stats import expanded, weights

from ..conftest import sentences


def expecting(folder, target, token):
    """Copy a model so that it mostly expects one token, and is not sure of it."""
    model, tokenizer = BertForMaskedLM.from_pretrained(folder), unmask.load_tokenizer(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids(token)] += 3.5
    shutil.copytree(folder, target)
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def dot(tiny_bert, folder):
    return expecting(tiny_bert, folder / "dot", ".")


@pytest.fixture(scope="module")
def other(tiny_bert, folder):
    """A better one: there are two of what it expects in every sentence."""
    return expecting(tiny_bert, folder / "other", "the")


@pytest.fixture(scope="module")
def cased(folder):
    """A model with another tokenizer, which cuts otherwise and sees capitals."""
    tokenizer = train_tokenizer(sentences(200, seed=5), kind="bpe", vocab_size=420)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        BertForMaskedLM(config).save_pretrained(folder / "cased")
    tokenizer.save_pretrained(folder / "cased")
    return folder / "cased"


@pytest.fixture(scope="module")
def text(folder):
    path = folder / "texts.jsonl"
    rows = [{"text": line, "id": f"d{number}", "part": "ab"[number % 2]} for number, line in enumerate(sentences(40, seed=7))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def found(dot, other, text):
    return unmask.compare(dot, other, text, slice_by="part", resamples=200, id_column="id")


def test_both_sides_are_their_evaluations(found, dot, other, text):
    for model, side in ((dot, "a"), (other, "b")):
        alone = unmask.evaluate(model, text, resamples=0)
        assert alone["masks_fingerprint"] == found.info["masks_fingerprint"]
        for name, row in found.metrics.items():
            assert getattr(row, side) == pytest.approx(alone[name], rel=1e-6), name
            assert row.count == len(alone.records)


def test_the_interval_of_a_plain_loop(found, dot, other, text):
    records = [unmask.evaluate(model, text, resamples=0).records for model in (dot, other)]
    documents = records[0].num_documents
    sums = [np.bincount(one.document, -one.log_prob.astype(float), minlength=documents) for one in records]
    counts = np.bincount(records[0].document, minlength=documents)
    draws = []
    for chunk in weights(documents, 200, 0):
        for weight in chunk:
            loss = [sum(times * value for times, value in zip(weight, summed, strict=True)) for summed in sums]
            draws.append((loss[1] - loss[0]) / sum(times * count for times, count in zip(weight, counts, strict=True)))
    tail = (1 - expanded(documents)) / 2
    assert found.metrics["masked_loss"].interval == pytest.approx(tuple(np.quantile(draws, [tail, 1 - tail])), abs=1e-9)


def test_a_better_model_is_called_better_and_the_other_way_round_worse(found, dot, other, text):
    assert found.verdict == "better" and "leaves out zero" in found.reason and found.metric == "masked_loss"
    back = unmask.compare(other, dot, text, resamples=200)
    assert back.verdict == "worse"
    one, two = found.metrics["masked_loss"], back.metrics["masked_loss"]
    assert one.difference == -two.difference and one.interval == pytest.approx((-two.interval[1], -two.interval[0]))
    assert back.num_flips == {"right_to_wrong": found.num_flips["wrong_to_right"], "wrong_to_right": found.num_flips["right_to_wrong"]}


def test_a_model_against_itself(dot, text):
    same = unmask.compare(dot, dot, text, margin=0, resamples=50)
    assert same.verdict == "equivalent"
    assert all(one.difference == 0 and one.interval == (0, 0) for one in same.metrics.values())
    assert list(same.flips()) == [] and same.mcnemar["p_value"] == 1.0 and same.num_flips == {"right_to_wrong": 0, "wrong_to_right": 0}


def test_a_precision_for_each_model(dot, text, tmp_path, capsys):
    args = ["compare", str(dot), str(dot), "--data", str(text), "--resamples", "50", "-o", str(tmp_path / "out")]
    assert dispatch([*args, "--precision", "fp32,bf16"]) == 0
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["settings"]["precision"] == ["fp32", "bf16"]
    said = capsys.readouterr().out
    assert f"A  {dot}, fp32\nB  {dot}, bf16\n" in said and f"{dot}, bf16</p>" in (tmp_path / "out" / "report.html").read_text()
    one = written["metrics"]["masked_loss"]
    for side, precision in (("a", "fp32"), ("b", "bf16")):
        alone = unmask.evaluate(dot, text, resamples=0, precision=precision)
        assert one[side] == pytest.approx(alone["masked_loss"], rel=1e-6)
    assert one["difference"] != 0
    for wrong, says in (("fp32,bf16,fp32", "one for both models, or two"), ("fp32,fp8", "precision = 'fp8'")):
        with pytest.raises(ConfigError, match=says):
            unmask.compare(dot, dot, text, precision=wrong)


def test_order_of_documents_and_batches_change_nothing(found, dot, other, text, tmp_path):
    lines = text.read_text().splitlines()
    (tmp_path / "back.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    back = unmask.compare(dot, other, tmp_path / "back.jsonl", slice_by="part", resamples=200, batch_tokens=40)
    for name, one in found.metrics.items():
        two = back.metrics[name]
        assert (two.a, two.b) == pytest.approx((one.a, one.b), rel=1e-5) and two.interval == pytest.approx(one.interval, abs=1e-5)
    assert back.verdict == found.verdict and back.mcnemar == found.mcnemar


def test_flips_are_the_tokens_on_which_the_models_part(found, dot, other, text):
    flips = list(found.flips())
    assert len(flips) == found.mcnemar["num_only_a"] + found.mcnemar["num_only_b"] > 0
    texts = {json.loads(line)["id"]: json.loads(line)["text"].lower() for line in text.read_text().splitlines()}
    for flip in flips:
        right, wrong = ("a", "b") if flip["kind"] == "right_to_wrong" else ("b", "a")
        assert flip[right]["predicted"] == flip["token"] != flip[wrong]["predicted"]
        assert flip[right]["probability"] == pytest.approx(flip[right]["confidence"])
        assert flip[wrong]["probability"] <= flip[wrong]["confidence"]
        whole = f"{flip['before']}{flip['token']}{flip['after']}"
        assert "".join(whole.split()) in "".join(texts[flip["document"]].split())
        assert whole.count(".") == 1  # its sentence, and no other
    few = list(found.flips(limit=3))
    change = [abs(np.log(flip["b"]["probability"] / flip["a"]["probability"])) for flip in flips]
    assert sorted(change)[-3:] == pytest.approx(sorted(abs(np.log(flip["b"]["probability"] / flip["a"]["probability"])) for flip in few))
    assert {flip["kind"] for flip in found.flips("wrong_to_right")} <= {"wrong_to_right"}


def test_slices_add_up(found):
    rows = dict(found.slices["part"])
    assert set(rows) == {"a", "b"} and set(found.slices) >= {"frequency", "word_pieces", "word", "position", "action"}
    whole = found.metrics["masked_loss"]
    for values in found.slices.values():
        counts = [one["masked_loss"].count for _, one in values]
        mean = np.average([one["masked_loss"].difference for _, one in values], weights=counts)
        assert sum(counts) == whole.count and mean == pytest.approx(whole.difference)


def test_one_document_cannot_tell(dot, other, cased, tmp_path):
    (tmp_path / "one.txt").write_text("The nurse watches the judge in the court today.\n")
    for model in (other, cased):
        one = unmask.compare(dot, model, tmp_path / "one.txt")
        assert one.verdict == "cannot tell" and "one document" in one.reason
        written = one.to_dict()["metrics"][one.metric]
        assert written["low"] is None and written["high"] is None and "one document" in written["why"] and written["difference"] != 0


def test_the_metric_and_the_margin_decide(dot, other, text):
    assert unmask.compare(dot, other, text, margin=100, resamples=50).verdict == "equivalent"
    shares = unmask.compare(dot, other, text, metric="top_10_accuracy", resamples=50)
    assert shares.metric == "top_10_accuracy" and shares.margin == 0.005 and "top_10_accuracy of B minus" in shares.reason
    ppl = unmask.compare(dot, other, text, metric="masked_perplexity", resamples=50)
    assert ppl.margin == pytest.approx(0.01 * ppl.metrics["masked_perplexity"].a)


# different tokenizers


@pytest.fixture(scope="module")
def across(dot, cased, text):
    return unmask.compare(dot, cased, text, slice_by="part", resamples=100)


def test_words_where_the_tokenizers_differ(across, text):
    assert across.unit == "word" and across.metric == "masked_word_loss"
    assert set(across.metrics) == {"masked_word_loss", "masked_word_perplexity", "masked_word_accuracy", "bits_per_byte"}
    loss, bits = across.metrics["masked_word_loss"], across.metrics["bits_per_byte"]
    assert bits.a / bits.b == pytest.approx(loss.a / loss.b)  # the same bytes on both sides
    share = loss.count / sum(len(json.loads(line)["text"].replace(".", "").split()) for line in text.read_text().splitlines())
    assert 0.1 < share < 0.2 and loss.num_documents == 40
    assert any("tokenizers differ" in note for note in across.notes)


def test_another_case_is_said(across):
    (note,) = [note for note in across.notes if "capitals" in note]
    assert note.startswith("A makes capitals small and B does not") and "accuracy is counted without regard to capitals" in note


def test_words_are_the_same_from_either_side(across, dot, cased, text):
    back = unmask.compare(cased, dot, text, slice_by="part", resamples=100)
    assert back.info["masks_fingerprint"] == across.info["masks_fingerprint"]
    for name, one in across.metrics.items():
        two = back.metrics[name]
        assert (one.a, one.b) == (two.b, two.a) and one.interval == pytest.approx((-two.interval[1], -two.interval[0])), name
    assert {across.verdict, back.verdict} in ({"better", "worse"}, {"equivalent"}, {"cannot tell"})


def test_the_order_of_documents_changes_no_word(across, dot, cased, text, tmp_path):
    (tmp_path / "back.jsonl").write_text("\n".join(reversed(text.read_text().splitlines())) + "\n")
    back = unmask.compare(dot, cased, tmp_path / "back.jsonl", slice_by="part", resamples=100, batch_tokens=30)
    assert back.info["masks_fingerprint"] == across.info["masks_fingerprint"] and back.mcnemar == across.mcnemar
    assert back.metrics["masked_word_loss"].interval == pytest.approx(across.metrics["masked_word_loss"].interval, abs=1e-5)


def test_a_long_document_is_read_in_windows_that_fit_both(dot, cased, tmp_path):
    (tmp_path / "long.txt").write_text("\n".join(" ".join(sentences(20, seed=seed)) for seed in range(6)) + "\n")
    found = unmask.compare(dot, cased, tmp_path / "long.txt", resamples=50, layout="line")
    assert found.info["num_windows"] > 6 * 5 and found.info["num_words_unscored"] == 0  # B has 64 positions
    assert found.metrics["masked_word_loss"].num_documents == 6


def test_words_that_a_tokenizer_does_not_know_are_counted(dot, cased, tmp_path):
    rows = [f"{line} 🙂x ☃☃y" for line in sentences(8, seed=9)] + ["☃☃☃ !!", "..."]
    (tmp_path / "odd.txt").write_text("\n".join(rows) + "\n")
    found = unmask.compare(dot, cased, tmp_path / "odd.txt", resamples=50, layout="line")
    assert found.info["num_words_unscored"] >= 8 and found.info["num_documents_without_words"] == 2
    (tmp_path / "none.txt").write_text("...\n!!\n")
    with pytest.raises(DataError, match="there is no word that both models can be asked for: 2 documents"):
        unmask.compare(dot, cased, tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("The nurse's  3.14 mg\n\ttoday.", ["The", "nurse", "'", "s", "3", ".", "14", "mg", "today", "."]),
        ("日本 x", ["日", "本", "x"]),
        ("", []),
    ],
)
def test_words_begin_where_all_tokenizers_cut(dot, line, words):
    tokenizer = unmask.load_tokenizer(dot)
    cut = encoded(line, tokenizer.backend_tokenizer.encode(line, add_special_tokens=False))
    found = find_words(line, (cut, cut))
    assert [line[start:stop] for start, stop in zip(found.starts, found.stops, strict=True)] == words
    assert sum(found.pieces[0]) == len(cut.ids)


def test_no_piece_reaches_out_of_its_word(dot, cased):
    line = "The surgeon's naïve café  isn't 日本語 ok🙂👍🏽 x\n\n [MASK] y."
    both = []
    for folder in (dot, cased):
        backend = unmask.load_tokenizer(folder).backend_tokenizer
        both.append(encoded(line, backend.encode(line, add_special_tokens=False)))
    found = find_words(line, tuple(both))
    for side, one in enumerate(both):
        for word, (start, stop) in enumerate(zip(found.starts, found.stops, strict=True)):
            first, count = found.firsts[side][word], found.pieces[side][word]
            assert all(
                start <= begin and end <= stop
                for begin, end in zip(one.starts[first : first + count], one.stops[first : first + count], strict=True)
            )


@pytest.fixture(scope="module")
def backends(tiny_bert):
    """A tokenizer of each kind, two of them of one alphabet and none that knows all of it."""
    made = [train_tokenizer(sentences(100, seed=5), kind=kind, vocab_size=400) for kind in ("bpe", "unigram", "wordpiece")]
    return [tokenizer.backend_tokenizer for tokenizer in made]


@given(line=text_of(alphabet="the nurse'sA1.,-\n\t é\u0301日本テ\u0e01🙂👍🏽\u200dسلام[MASK]", max_size=40))
def test_words_hold_their_pieces_whatever_the_text(backends, line):
    both = tuple(encoded(line, backend.encode(line, add_special_tokens=False)) for backend in backends)
    found = find_words(line, both)
    assert (found.starts < found.stops).all() and (found.stops[:-1] <= found.starts[1:]).all()
    for one, firsts, pieces in zip(both, found.firsts, found.pieces, strict=True):
        assert (pieces >= 0).all() and (firsts[:-1] + pieces <= firsts[1:]).all()
        for start, stop, first, count in zip(found.starts, found.stops, firsts, pieces, strict=False):
            mine = slice(first, first + count)
            assert (one.starts[mine] >= start).all() and (one.stops[mine] <= stop).all()


# bad input, and the command line


def test_what_cannot_be_is_refused(dot, other, cased, text, tmp_path):
    with pytest.raises(ConfigError, match="margin = -1"):
        unmask.compare(dot, other, text, margin=-1)
    with pytest.raises(ConfigError, match="resamples = 1000001; allowed: 0"):
        unmask.compare(dot, other, text, resamples=1_000_001)
    with pytest.raises(ConfigError, match=r"metric = 'loss'; allowed: masked_loss"):
        unmask.compare(dot, other, text, metric="loss")
    with pytest.raises(ConfigError, match=r"whole words are compared\): masked_word_loss"):
        unmask.compare(dot, cased, text, metric="masked_loss")
    with pytest.raises(ConfigError, match="policy = 'corrupt', and the tokenizers"):
        unmask.compare(dot, cased, text, policy="corrupt")
    with pytest.raises(DataError, match="no document has a field 'topic'.*part"):
        unmask.compare(dot, cased, text, slice_by="topic")
    rows = [{"text": line, "name": f"n{number}"} for number, line in enumerate(sentences(210))]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for model in (other, cased):
        with pytest.raises(DataError, match="'name' has .* values"):
            unmask.compare(dot, model, tmp_path / "many.jsonl", slice_by="name")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="holds something that is no comparison"):
        unmask.compare(dot, other, text, output=tmp_path / "mine")


def test_a_comparison_that_ended_early_is_begun_anew(dot, other, text, tmp_path):
    output = tmp_path / "found"
    unmask.compare(dot, other, text, resamples=20, output=output)
    with pytest.raises(DataError):
        unmask.compare(dot, other, tmp_path / "nothing.txt", resamples=20, output=output)
    assert not (output / "metrics.json").exists() and not (output / "report.html").exists()
    assert unmask.compare(dot, other, text, resamples=20, output=output).verdict == "better" and (output / "report.html").is_file()


def test_a_packed_corpus(dot, other, cased, sentences_file, tmp_path):
    unmask.pack(sentences_file, tmp_path / "corpus", tokenizer=dot, held_out=0.1)
    tokens = unmask.compare(dot, other, tmp_path / "corpus", resamples=50)
    words = unmask.compare(dot, cased, tmp_path / "corpus", resamples=50)
    held_out = len((tmp_path / "corpus" / "heldout.jsonl").read_text().splitlines())
    assert tokens.metrics["masked_loss"].num_documents == words.metrics["masked_word_loss"].num_documents == held_out
    (tmp_path / "corpus" / "heldout.jsonl").unlink()
    with pytest.raises(DataError, match="holds tokens of one tokenizer and no text"):
        unmask.compare(dot, cased, tmp_path / "corpus")


def test_the_command(dot, other, cased, text, tmp_path, capsys):
    output = tmp_path / "found"
    assert dispatch(["compare", str(dot), str(other), "--data", str(text), "-o", str(output), "--resamples", "50", "--show", "2"]) == 0
    said = capsys.readouterr().out
    assert "masked_loss by frequency" in said and "\nbetter: masked_loss of B minus that of A" in said and "McNemar" in said
    assert {file.name for file in output.iterdir()} == {"a", "b", "manifest.json", "metrics.json", "flips.jsonl", "report.html"}
    written = json.loads((output / "metrics.json").read_text())
    assert written["verdict"] == "better" and written["kind"] == "comparison"
    assert len((output / "flips.jsonl").read_text().splitlines()) == sum(written["num_flips"].values())
    assert dispatch(["compare", str(dot), str(other), "--data", str(text), "-o", str(output), "--resamples", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    assert dispatch(["compare", str(dot), str(cased), "--data", str(text), "--resamples", "50"]) == 0
    found = capsys.readouterr()
    assert "masked words of 40 documents" in found.out and "note: The tokenizers differ" in found.err


def test_of_two_into_one_folder_the_second_is_refused_and_takes_nothing(tiny_bert, dot, sentences_file, tmp_path):
    from unmask.data.whole import alone

    unmask.compare(tiny_bert, dot, sentences_file, output=tmp_path / "out", resamples=0)
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    with alone(tmp_path / "out"), pytest.raises(CheckpointError, match="another process is at work on"):
        unmask.compare(dot, tiny_bert, sentences_file, output=tmp_path / "out", resamples=0)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before
