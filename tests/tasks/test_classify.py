"""The classifier: pairs, long texts in windows, several labels, numbers; and what label words say without any training."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import unmask
from unmask.errors import ConfigError, DataError, TaskError
from unmask.model.new_head import with_new_head
from unmask.tasks.classify import Classifier
from unmask.tasks.classify_training import ClassifyObjective, ClassifyOptions
from unmask.tasks.encode import Frame

SMALL = {"device": "cpu", "precision": "fp32", "batch_size": 16, "max_length": 32, "learning_rate": 1e-2, "hide_prob": 0.0}
LONG = "The nurse helps the doctor in the hospital today . " * 40


@pytest.fixture(scope="module")
def classifier(tiny_bert):
    """A classifier of three labels with a head that knows nothing, in a window of 32."""
    model = with_new_head(tiny_bert, "sequence_classification", labels=["a", "b", "c"], seed=3)
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return Classifier(model, unmask.load_tokenizer(tiny_bert), max_length=32)


def stock(classifier, *texts):
    encoded = classifier.tokenizer(*texts, return_tensors="pt")
    with torch.no_grad():
        return classifier.engine.model(**encoded).logits[0].numpy()


def test_what_it_says_is_what_the_stock_model_says(classifier):
    texts = ["The nurse calls the judge.", ("The judge warns the sailor.", "The sailor thanks the judge again."), "The court"]
    found = classifier.predict(texts)
    for text, result in zip(texts, found, strict=True):
        want = stock(classifier, *((text,) if isinstance(text, str) else text))
        np.testing.assert_allclose(result.logits, want, atol=1e-5)
        assert result.label == "abc"[int(want.argmax())] and sum(result.scores.values()) == pytest.approx(1) and result.windows == 1
    assert classifier.predict(texts[0]).scores == pytest.approx(found[0].scores)


def test_a_pair_is_framed_as_the_tokenizer_frames_it(tiny_bert):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "c"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    for tokenizer in (unmask.load_tokenizer(tiny_bert), PreTrainedTokenizerFast(tokenizer_object=backend, **names)):
        frame = Frame(tokenizer)
        first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "c"))
        want = tokenizer("a b", "c", return_token_type_ids=True)
        assert frame.two(first, second) == (want["input_ids"], want["token_type_ids"])
        assert frame.one(first) == tokenizer("a b")["input_ids"]
        ids, _ = frame.two(first, second)
        assert ids[frame.first_start] == first[0] and ids[frame.second_start(len(first))] == second[0]


def test_a_long_text_is_read_whole_in_windows(classifier):
    examples = classifier.encode([LONG])
    ids = classifier.tokenizer(LONG, add_special_tokens=False)["input_ids"]
    inside = [examples.input_ids[low + 1 : high - 1] for low, high in zip(examples.bounds[:-1], examples.bounds[1:], strict=True)]
    assert np.concatenate(inside).tolist() == ids and max(map(len, inside)) <= 30 and np.ptp([len(part) for part in inside]) <= 1
    result = classifier.predict(LONG)
    texts = [classifier.tokenizer.decode(part) for part in inside]
    np.testing.assert_allclose(result.logits, np.mean([one.logits for one in classifier.predict(texts)], axis=0), atol=1e-5)
    assert result.windows == len(inside) > 10


@pytest.mark.parametrize(("first", "second"), [("The nurse", LONG), (LONG, "The nurse"), (LONG, LONG + "again")])
def test_long_pairs_are_read_whole(classifier, first, second):
    examples = classifier.encode([(first, second)])
    assert examples.lengths.max() <= 32 and examples.token_type_ids is not None
    special = {classifier.tokenizer.cls_token_id, classifier.tokenizer.sep_token_id}
    parts = {0: [], 1: []}  # of each text, what every window holds
    for low, high in itertools.pairwise(examples.bounds.tolist()):
        ids, types = examples.input_ids[low:high], examples.token_type_ids[low:high]
        for which, found in parts.items():
            found.append([number for number in ids[types == which].tolist() if number not in special])
    for which, text in ((0, first), (1, second)):
        ids = classifier.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) < 16:  # the short one stands in every window
            assert all(part == ids for part in parts[which])
        else:
            assert list(itertools.chain.from_iterable(parts[which])) == ids


def test_an_empty_text_is_refused(classifier):
    with pytest.raises(TaskError, match="the text is empty; give a text"):
        classifier.predict("  ")
    good, bad, last = classifier.predict(["The nurse", ("The nurse", " "), "The court"])
    assert bad.error == "the text is empty; give a text" and bad.to_dict() == {"error": bad.error} and bad.label is None
    assert good.scores == pytest.approx(classifier.predict("The nurse").scores) and last.error is None


@pytest.fixture(scope="module")
def multi_label(tiny_bert, labelled, write_jsonl, tmp_path_factory):
    """A run in which what is of the sea is of the law, too, and some texts are of nothing."""
    folder = tmp_path_factory.mktemp("multi")
    labels = {"health": ["health"], "law": ["law"], "sea": ["law", "sea"]}

    def write(name, number, seed):
        rows = [{"text": row["text"], "labels": labels[row["label"]]} for row in labelled(number, seed=seed)]
        rows += [{"text": f"The teacher meets the student in the school number {n} .", "labels": []} for n in range(number // 5)]
        return write_jsonl(folder / f"{name}.jsonl", rows)

    train, dev = write("texts", 200, 0), write("dev", 50, 1)
    return unmask.finetune("classify", tiny_bert, train, dev=dev, output=folder / "run", max_steps=100, **SMALL)


def test_several_labels_have_thresholds_that_are_kept(multi_label):
    metrics = multi_label.metrics
    assert metrics["best"] == "macro_average_precision" and metrics["settings"]["problem"] == "multi"
    records = [json.loads(line) for line in (multi_label.folder / "log.jsonl").read_text().splitlines()]
    seen = [record["macro_average_precision"] for record in records if record.get("event") == "heldout"]
    assert max(seen) > 0.8 and metrics["macro_average_precision"]["value"] == pytest.approx(max(seen))  # what is tuned moves no order
    config = json.loads((multi_label.model / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and len(config["unmask"]["thresholds"]) == 3
    classifier = Classifier.load(multi_label.folder)
    assert classifier.thresholds.tolist() == config["unmask"]["thresholds"] and classifier.temperature == config["unmask"]["temperature"]
    result = classifier.predict("The judge meets the student in the court number 4 .")
    cuts = zip(classifier.labels, classifier.thresholds, strict=True)
    assert result.labels == tuple(label for label, cut in cuts if result.scores[label] >= cut)
    found = unmask.evaluate_task(multi_label.folder, multi_label.folder.parent / "texts.jsonl")
    assert found.metrics["num_examples"] == 240 and found["micro_f1"] > 0.5


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_what_is_held_out_is_too_little_to_fit_on(tiny_bert, labelled, write_csv, tmp_path, problem):
    train, dev = (write_csv(tmp_path / f"{n}.csv", labelled(n, seed=n)) for n in (60, 49))
    run = unmask.finetune("classify", tiny_bert, train, dev=dev, output=tmp_path / "run", max_steps=1, problem=problem, **SMALL)
    why = "49 held-out examples, and at least 50 are wanted"
    settings = json.loads((run.model / "config.json").read_text())["unmask"]
    assert settings["uncalibrated"] == why and not {"temperature", "thresholds"} & set(settings)
    assert run.metrics["settings"]["uncalibrated"] == why
    (said,) = [one["text"] for one in run.metrics["findings"] if one["code"] == "uncalibrated"]
    assert said.startswith("no temperature") and ("thresholds" in said) == (problem == "multi") and why in said
    found = Classifier.load(run.model)
    result = found.predict("The judge meets the student .")
    scores = np.array(list(result.scores.values()))
    logits = torch.tensor(result.logits)
    np.testing.assert_allclose(scores, logits.softmax(0) if problem == "single" else logits.sigmoid(), atol=1e-6)
    records = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert records[0]["scores"] == pytest.approx(found.predict(records[0]["text"]).scores, abs=1e-5)


def test_labels_that_nothing_is_measured_on_are_named(tiny_bert, labelled, write_csv, tmp_path):
    train = write_csv(tmp_path / "train.csv", labelled(90))
    dev = write_csv(tmp_path / "dev.csv", [row for row in labelled(90, seed=1) if row["label"] == "law"])
    report = unmask.doctor("classify", [str(train)], [str(dev)])
    counts = report.facts["labels"]
    said = next(str(one) for one in report.findings if one.code == "absent_label")
    assert said.startswith("warning: 2 x label of the training data stands in no held-out example, so the numbers do not say")
    assert all(f"'{label}' ({counts[label]} to train on)" in said for label in ("health", "sea")) and "law" not in said
    assert not report.is_fatal and "uncalibrated" in report.findings.kinds
    run = unmask.finetune("classify", tiny_bert, train, output=tmp_path / "run", max_steps=1, dev_share=0.3, **SMALL)
    assert "absent_label" not in {one["code"] for one in run.metrics["findings"]}
    found = unmask.evaluate_task(run.folder, dev)
    (said,) = [one for one in found.metrics["findings"] if one["level"] == "warning"]
    assert said["count"] == 2 and said["text"].endswith("how well it is found: 'health', 'sea'")


def test_numbers_are_learnt(tiny_bert, labelled, write_csv, tmp_path):
    value = {"health": 0.5, "law": 1.5, "sea": 2.5}
    path = write_csv(tmp_path / "a.csv", [{"text": row["text"], "score": value[row["label"]]} for row in labelled(160)])
    run = unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", max_steps=60, **SMALL)
    assert run.metrics["best"] == "root_mean_squared_error" and run.metrics["pearson"]["value"] > 0.8
    result = Classifier.load(run.model).predict("The judge meets the student in the court number 4 .")
    assert result.value == pytest.approx(1.5, abs=0.6) and result.label is None and set(result.to_dict()) == {"value", "windows"}


def losses(options, labels, logits, gold, problem="single"):
    objective = ClassifyObjective.__new__(ClassifyObjective)
    objective.options = options
    objective.predictor = type("P", (), {"problem": problem, "labels": labels})()
    objective.weights = objective.label_weights([]) if options.class_weights and options.class_weights != ("balanced",) else None
    return objective.losses(torch.tensor(logits), torch.tensor(gold))


def test_losses_are_those_of_torch_and_focal_loss_is_its_formula():
    rng = np.random.default_rng(0)
    logits, gold = rng.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 2, 2, 1, 0])
    plain = losses(ClassifyOptions(), list("abc"), logits, gold)
    want = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(gold), reduction="none")
    torch.testing.assert_close(plain, want)
    weighted = losses(ClassifyOptions(class_weights=("b=2.5", "c=0")), list("abc"), logits, gold)
    torch.testing.assert_close(weighted, want * torch.tensor([1, 2.5, 0, 0, 2.5, 1]))
    focal = losses(ClassifyOptions(loss="focal", focal_gamma=2.0), list("abc"), logits, gold)
    torch.testing.assert_close(focal, want * (1 - torch.exp(-want)) ** 2)
    with pytest.raises(ConfigError, match="options.focal_gamma = inf"):
        ClassifyOptions(loss="focal", focal_gamma=float("inf"))
    many = rng.integers(0, 2, size=(6, 3)).astype(np.float32)
    binary = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(many), reduction="none")
    torch.testing.assert_close(losses(ClassifyOptions(), list("abc"), logits, many, "multi"), binary.mean(1))
    found = losses(ClassifyOptions(loss="focal", focal_gamma=1.0), list("abc"), logits, many, "multi")
    torch.testing.assert_close(found, (binary * (1 - torch.exp(-binary))).mean(1))
    with pytest.raises(ConfigError, match="class_weights = 'd=1'; allowed: balanced, or label=weight.*a, b, c"):
        losses(ClassifyOptions(class_weights=("d=1",)), list("abc"), logits, gold)


def test_labels_that_training_lacks_are_errors_in_dev(tiny_bert, labelled, write_csv, tmp_path):
    train = write_csv(tmp_path / "train.csv", labelled(60))
    dev = write_csv(tmp_path / "dev.csv", [*labelled(20, seed=1), {"text": "Something else", "label": "new"}])
    with pytest.raises(DataError, match=r"(?s)held-out example has the label 'new', which no training example has \(.*dev.csv:22\)"):
        unmask.finetune("classify", tiny_bert, train, dev=dev, output=tmp_path / "run", max_steps=1, **SMALL)
    run = unmask.finetune("classify", tiny_bert, train, dev=dev, output=tmp_path / "run", max_steps=1, on_bad="drop", **SMALL)
    assert run.metrics["num_examples"] == 20
    assert [finding["count"] for finding in run.metrics["findings"] if finding["code"] == "unknown_label:new"] == [1]
    with pytest.raises(DataError, match="label 'new' is none of the model's: health, law, sea"):
        unmask.evaluate_task(run.folder, dev)


def test_five_hundred_labels(tiny_bert, tmp_path, write_jsonl):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"number {n} of {n % 7}", "label": n % 500} for n in range(1000)])
    run = unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", max_steps=1, **SMALL)
    assert len(run.metrics["labels"]) == 500 and run.metrics["labels"][10] == "10"
    assert "Most confused" in (run.folder / "report.html").read_text() or run.metrics["accuracy"]["value"] == 1


def test_text_is_escaped_in_the_report(tiny_bert, labelled, write_csv, tmp_path):
    rows = [{"text": f"<script>alert({n})</script> & <b>bold</b>", "label": f"<i>{n % 2}</i>"} for n in range(60)]
    run = unmask.finetune("classify", tiny_bert, write_csv(tmp_path / "a.csv", rows), output=tmp_path / "run", max_steps=1, **SMALL)
    page = (run.folder / "report.html").read_text()
    assert "<script>" not in page and "<b>bold" not in page and "<i>0" not in page and "&lt;i&gt;0&lt;/i&gt;" in page


def test_label_words_without_any_training(tiny_bert):
    words = {"health": ["hospital", "doctor"], "law": ["court"]}
    texts = ["The nurse treats the patient in the hospital.", "The lawyer asks the witness in the court."]
    found = unmask.LabelWords.load(tiny_bert, words, template="{text} The [MASK]", device="cpu")
    results = found.predict(texts)
    assert [sum(result.scores.values()) for result in results] == pytest.approx([1, 1])
    assert found.predict(texts[0]).scores == pytest.approx(results[0].scores)
    filler = unmask.Filler.load(tiny_bert, device="cpu")
    (mask,) = filler.fill(f"{texts[1]} The [MASK]", targets=["hospital", "doctor", "court"])
    raw = found.features(texts)[1] + found.prior
    assert np.exp(raw) == pytest.approx([candidate.score for candidate in mask], rel=1e-4)
    empty = [filler.fill(text, targets=["hospital", "doctor", "court"])[0] for text in ("The [MASK]", "N/A The [MASK]")]
    empty = [[candidate.score for candidate in mask] for mask in empty]
    assert np.exp(found.prior) == pytest.approx(np.mean(empty, axis=0), rel=1e-4)
    assert found.predict(LONG * 12).windows > 1
    few = found.fit([*texts] * 3, ["health", "law"] * 3)
    assert [result.label for result in few.predict(texts)] == ["health", "law"]
    with pytest.raises(TaskError, match="it has to hold {text} and one mask"):
        unmask.LabelWords.load(tiny_bert, words, template="{text}", device="cpu")
    with pytest.raises(TaskError, match="give two labels or more"):
        unmask.LabelWords.load(tiny_bert, {"a": ["b"]}, device="cpu")
