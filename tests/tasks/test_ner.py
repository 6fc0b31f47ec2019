"""The tagger: words and pieces, legal tags, long texts, training, the report; tiny models that learn, nothing mocked."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import unmask
from unmask.errors import ConfigError, DataError, TaskError
from unmask.model.new_head import with_new_head
from unmask.tasks.ner import Tagger, pieces, windows
from unmask.tasks.ner_data import words_of
from unmask.tasks.ner_decode import Grammar, decode
from unmask.tasks.ner_scores import Entities, pair
from unmask.tasks.ner_tags import as_bio, chunks, labels_of, legal, parse

SMALL = {"device": "cpu", "precision": "fp32", "batch_size": 16, "max_length": 32, "learning_rate": 1e-2, "hide_prob": 0.0}
PEOPLE, PLACES = ["nurse", "doctor", "judge"], ["hospital", "court", "harbour"]


def sentences(number, seed=0):
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        words, tags = [], []
        for _ in range(int(generator.integers(1, 4))):
            a, b, c = (int(value) for value in generator.integers(3, size=3))
            lead = ["again"] * int(generator.integers(3))
            words += [*lead, *f"The {PEOPLE[a]} {['teacher', 'lawyer', 'farmer'][b]} helps the student in the {PLACES[c]} today .".split()]
            tags += ["O"] * len(lead) + ["O", "B-who", "I-who", "O", "O", "O", "O", "O", "B-where", "O", "O"]
        rows.append((words, tags))
    return rows


def write(path, rows):
    path.write_text("\n".join("".join(f"{word}\t{tag}\n" for word, tag in zip(*row, strict=True)) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ner")
    data = write(folder / "train.conll", sentences(200))
    return unmask.finetune("ner", tiny_bert, data, output=folder / "run", max_steps=80, **SMALL)


@pytest.fixture(scope="module")
def tagger(finished):
    return Tagger.load(finished.folder)


def spans(result):
    return [(one.start, one.end, one.label) for one in result]


def test_a_run_learns_and_leaves_a_plain_folder(finished):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    assert finished.metrics["best"] == "f1" and finished.metrics["f1"]["value"] > 0.95
    assert finished.metrics["training"]["untrained"]["f1"] < 0.5 and finished.metrics["f1"]["count"] > 0
    model, info = AutoModelForTokenClassification.from_pretrained(finished.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert list(model.config.id2label.values()) == ["O", "B-where", "I-where", "B-who", "I-who"]
    tagger, tokenizer = Tagger.load(finished.folder), AutoTokenizer.from_pretrained(finished.model)
    text = "The judge helps the student in the court today ."
    examples = tagger.encode([text])
    with torch.no_grad():
        want = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0].numpy()
    np.testing.assert_allclose(tagger.outputs(examples), want[examples.label_positions], atol=1e-5)
    page = (finished.folder / "report.html").read_text()
    assert "Type by type" in page and "Entities, right and wrong" in page and "<script" not in page
    assert "unmask.Tagger.load" in (finished.model / "README.md").read_text()


def test_entities_have_exact_places_and_whole_words(tagger):
    text = "  The nurse teacher helps\nthe\tstudent in the hospital today😀."
    result = tagger.predict(text)
    words = words_of(text)
    assert {one.text for one in result} >= {"nurse teacher", "hospital"}
    for one in result:
        assert text[one.start : one.end] == one.text and 0 < one.score <= 1
        assert any(start == one.start for start, _ in words) and any(stop == one.end for _, stop in words)
    given = tagger.predict(("The", "judge", "helps", "the", "student"))
    assert spans(given) == [(4, 9, "who")]
    with pytest.raises(TaskError, match="empty"):
        tagger.predict("  ")
    good, bad = tagger.predict(["The judge helps", " "])
    assert good.error is None and "empty" in bad.error
    assert tagger.predict("\u200b\u200b").error is None and len(tagger.predict("\u200b\u200b")) == 0


def test_a_text_of_20000_words_gives_what_its_pieces_give(tagger):
    parts = [" ".join(words) for words, _ in sentences(900, seed=5)]
    text = " ".join(parts)
    assert len(text.split()) > 20_000
    whole = tagger.predict(text)
    want, at = [], 0
    for part, result in zip(parts, tagger.predict(parts), strict=True):
        want += [(start + at, stop + at, kind) for start, stop, kind in spans(result)]
        at += len(part) + 1
    assert spans(whole) == want and whole.windows > 500 and len(want) > 3000


@pytest.mark.parametrize(("length", "capacity"), [(1, 6), (6, 6), (7, 6), (100, 6), (1000, 30), (31, 30), (5, 1)])
def test_every_token_is_owned_by_one_window(length, capacity):
    found = windows(length, capacity)
    owned = [place for start, stop, low, high in found for place in range(low, high)]
    assert owned == list(range(length))
    for start, stop, low, high in found:
        assert 0 <= start <= low <= high <= stop <= length and stop - start <= capacity
    for (_, stop, _, high), (start, *_) in itertools.pairwise(found):
        assert abs(high - (start + stop) / 2) < 1 and stop - start >= min(capacity // 4, capacity - 1)


def test_words_that_share_a_piece_are_one_and_invisible_ones_none():
    words = [(0, 1), (1, 2), (2, 3), (4, 5), (6, 9)]
    offsets = [(0, 4), (3, 4), (5, 8), (8, 9)]  # "U.S" with a space, a lone space, " ab", "c"; nothing of the word at 4
    assert pieces(words, offsets, 9) == [(0, 0, 3, 1), (2, 6, 9, 1), (3, 6, 9, 0)]


@pytest.mark.parametrize("scheme", ["bio", "bioes", "iob1", "io"])
def test_the_best_legal_tags_and_their_probabilities_are_those_of_trying_all(scheme):
    labels = [parse(label, bare=scheme == "io") for label in labels_of(["x", "y"], scheme)]
    grammar = Grammar.of(labels, scheme)
    generator = np.random.default_rng(0)
    lengths = np.array([3, 0, 1, 4])
    rows = generator.normal(size=(8, len(labels))) * 2
    found = decode(rows, lengths, grammar)
    assert found[1] == []
    for text, start, length in zip(found, [0, 3, 3, 4], lengths, strict=True):
        if not length:
            continue
        weights = {}
        for path in itertools.product(range(len(labels)), repeat=int(length)):
            tags = [("O", ""), *(labels[tag] for tag in path), ("O", "")]
            if all(legal(a, b, scheme) for a, b in itertools.pairwise(tags)):
                weights[path] = float(np.exp(sum(rows[start + n, tag] for n, tag in enumerate(path))))
        total = sum(weights.values())
        entities = {path: chunks(as_bio([labels[tag] for tag in path])) for path in weights}
        best = entities[max(weights, key=weights.get)]
        assert [span for span, _ in text] == best
        for span, score in text:
            assert score == pytest.approx(sum(weight for path, weight in weights.items() if span in entities[path]) / total)


def test_numbers_and_errors():
    gold = [[(0, 3, "a"), (5, 9, "b")], [(0, 4, "a")], [], [(10, 12, "a")]]
    said = [[(0, 3, "a"), (5, 9, "a")], [(0, 2, "a")], [(3, 5, "b")], [(9, 12, "b")]]
    found = [what for one, two in zip(gold, said, strict=True) for what, *_ in pair(one, two)]
    assert found == ["right", "wrong type", "wrong border", "invented", "wrong type and border"]
    assert [what for what, *_ in pair([(0, 3, "a")], [])] == ["missed"]
    scores = Entities(gold, said, [[(0, 3), (5, 9)], [(0, 2), (3, 4)], [(3, 5)], [(9, 12)]])
    values = {name: float(value[0]) for name, value in scores.of(np.ones((1, 4))).items()}
    assert values["f1"] == pytest.approx(2 / 9) and values["precision"] == 1 / 5 and values["recall"] == 1 / 4
    assert values["exact_f1"] == pytest.approx(4 / 9) and values["type_f1"] == pytest.approx(4 / 9)
    assert values["partial_f1"] == pytest.approx(2 * 3 / 9) and values["token_accuracy"] == pytest.approx(2 / 6)
    twice = scores.of(np.array([[2.0, 0, 0, 1]]))
    again = Entities([gold[0], gold[0], gold[3]], [said[0], said[0], said[3]], [[]] * 3).of(np.ones((1, 3)))
    assert twice["f1"] == pytest.approx(again["f1"])


@pytest.mark.parametrize("options", [{"token_loss": "all", "scheme": "bioes"}, {"loss": "focal", "class_weights": ["who=3", "O=0.5"]}])
def test_what_is_learnt_and_how_it_is_cut(tiny_bert, tmp_path, options):
    from unmask.tasks.finetune import make_recipe
    from unmask.tasks.kinds import task
    from unmask.train.loop import TrainState, accumulate

    rows = [(words * 2, tags * 2) for words, tags in sentences(12)]
    path = write(tmp_path / "a.conll", rows)
    found = []
    for tokens in (4096, 70):
        (tmp_path / str(tokens)).mkdir()
        objective = task("ner").make(
            make_recipe("ner", tiny_bert, path, **options, **SMALL, micro_tokens=tokens), tmp_path / str(tokens), say=print
        )
        objective.model.eval()
        batches = objective.loader.batch(0)
        state = TrainState(objective.model, [], halvings=0)
        loss = accumulate(state, batches, objective.loss_sum, sum(map(objective.count, batches)))
        found.append((loss, [p.grad.to_dense() for p in objective.model.parameters() if p.grad is not None], len(batches)))
    assert found[0][2] == 1 < found[1][2]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-6)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)
    if "loss" not in options:
        return
    batch = objective.loader.pack(np.arange(len(objective.loader.examples.lengths)))
    logits = torch.randn(len(batch.labels), 5, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    weights = torch.tensor([0.5, 1, 1, 3, 3])[batch.labels]
    torch.testing.assert_close(objective.loss_from(logits, batch), ((1 - (-plain).exp()) ** 2 * plain * weights).sum())
    assert objective.count(batch) == pytest.approx(float(weights.sum()))
    objective.options = type(objective.options)(class_weights=("nobody=2",))
    with pytest.raises(ConfigError, match="one of: O, where, who"):
        objective.tag_weights([])


def test_exported_models_find_the_same(finished, tagger, tmp_path):
    pytest.importorskip("onnxruntime")
    unmask.export(finished.model, tmp_path / "onnx", precision="fp32")
    exported = Tagger.load(tmp_path / "onnx")
    texts = [" ".join(words) for words, _ in sentences(20, seed=9)]
    for one, two in zip(tagger.predict(texts), exported.predict(texts), strict=True):
        assert spans(one) == spans(two)
        assert [a.score for a in one] == pytest.approx([b.score for b in two], abs=1e-4)


def test_evaluate_refuses_types_that_the_model_lacks(finished, tmp_path):
    path = write(tmp_path / "a.conll", [*sentences(5), (["The", "sea"], ["O", "B-water"])])
    with pytest.raises(DataError, match="'water', which is none of the model's: where, who"):
        unmask.evaluate_task(finished.folder, path)
    found = unmask.evaluate_task(finished.folder, path, on_bad="drop", output=tmp_path / "out")
    assert found.metrics["num_examples"] == 5 and found["f1"] > 0.9 and found.metrics["per_type"][0]["label"] == "where"
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert line["gold"][0]["text"] == line["entities"][0]["text"]


def test_text_is_escaped_in_the_report(finished, tmp_path):
    path = write(tmp_path / "a.conll", [(["<script>alert(1)</script>", "judge"], ["B-who", "O"])] * 3)
    unmask.evaluate_task(finished.folder, path, output=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_model_whose_labels_are_no_tags(tiny_bert):
    model = with_new_head(tiny_bert, "token_classification", labels=["O", "B-a", "what"], seed=0)
    with pytest.raises(TaskError, match="'what' is no tag"):
        Tagger(model, unmask.load_tokenizer(tiny_bert))


def test_entities_that_share_a_piece_are_counted(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    from unmask.tasks.finetune import make_recipe
    from unmask.tasks.kinds import task

    tokenizer = unmask.train_tokenizer(["東京大阪 京都"] * 20, kind="bpe", vocab_size=300)
    assert len(tokenizer.tokenize("東京大阪")) == 1  # one piece, of four words to us
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"text": "東京大阪", "spans": [[0, 2, "LOC"], [2, 4, "LOC"]]}, {"text": "京都", "spans": [[0, 2, "LOC"]]}] * 20
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = make_recipe("ner", tmp_path / "model", tmp_path / "a.jsonl", dev=tmp_path / "a.jsonl", **SMALL)
    objective = task("ner").make(recipe, tmp_path, say=print)
    found = {finding.code: finding.count for finding in objective.data.findings if finding.level == "warning"}
    assert found["shared_piece"] == 20 and objective.loader.examples.labels.tolist() == [1, 1, 2] * 20


def test_tags_as_numbers_are_those_of_the_training_files(tiny_bert, tmp_path):
    names = ["I-who", "B-where", "O", "B-who"]  # in an order that is not the model's
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    rows = [{"tokens": words, "ner_tags": [names.index(tag) for tag in tags]} for words, tags in sentences(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {**SMALL, "label_names": str(tmp_path / "names.txt"), "max_steps": 2}
    run = unmask.finetune("ner", tiny_bert, tmp_path / "a.jsonl", output=tmp_path / "run", **options)
    with_numbers = unmask.evaluate(run.folder, tmp_path / "a.jsonl")
    with_names = unmask.evaluate_task(run.folder, write(tmp_path / "a.conll", sentences(40)))
    assert with_numbers["f1"] == with_names["f1"] and with_numbers.metrics["per_type"] == with_names.metrics["per_type"]
    assert any("0 is I-who" in finding["text"] for finding in with_numbers.metrics["findings"])


def test_evaluate_takes_models_of_both_kinds(finished, tmp_path):
    path = write(tmp_path / "a.conll", sentences(5))
    assert unmask.evaluate(finished.folder, path).metrics == unmask.evaluate_task(finished.folder, path).metrics
    with pytest.raises(ConfigError, match="fine-tuned for a task, and measured on labelled data; policy, views: leave it out"):
        unmask.evaluate(finished.folder, path, policy="mask", views=2)
    with pytest.raises(ConfigError, match="labelled data; none is named"):
        unmask.evaluate(finished.folder)
