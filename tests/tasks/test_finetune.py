"""Fine-tuning runs: what they leave behind, how they go on, what they refuse; the loop and the session are those of pre-training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.errors import CheckpointError, ConfigError, DataError
from unmask.tasks.finetune import make_recipe
from unmask.tasks.kinds import task

SMALL = {"device": "cpu", "precision": "fp32", "log_steps": 1, "batch_size": 16, "max_length": 32, "learning_rate": 1e-2, "hide_prob": 0.0}
WHOLE = {**SMALL, "max_steps": 40, "eval_steps": 20, "save_steps": 20, "seed": 5}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture(scope="module")
def finished(tiny_bert, labelled_file, tmp_path_factory):
    """A run of 40 steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return unmask.finetune("classify", tiny_bert, labelled_file, output=folder, **WHOLE)


def test_a_run_leaves_everything_it_should(finished, labelled_file):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = finished.folder
    model, info = AutoModelForSequenceClassification.from_pretrained(finished.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == torch.float32
    assert model.config.id2label == {0: "health", 1: "law", 2: "sea"} and model.config.problem_type == "single_label_classification"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == finished.metrics
    assert metrics["task"] == "classify" and metrics["best"] == "macro_f1" and metrics["labels"] == ["health", "law", "sea"]
    assert metrics["accuracy"]["value"] > metrics["training"]["untrained"]["accuracy"] + 0.3  # it learns
    assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]
    assert metrics["num_examples"] == metrics["training"]["num_dev"] == len((folder / "predictions.jsonl").read_text().splitlines())
    assert metrics["training"]["num_dev"] + metrics["training"]["num_train"] == 160
    assert metrics["settings"]["max_length"] == 32 and "temperature" not in metrics["settings"]
    assert metrics["settings"]["uncalibrated"].startswith(f"{metrics['num_examples']} held-out examples, and")
    card = (finished.model / "README.md").read_text()
    assert card.startswith("---\n") and "pipeline_tag: text-classification" in card and "| accuracy |" in card
    assert str(labelled_file.parent) not in card
    page = (folder / "report.html").read_text()
    assert "Confusions" in page and "<script" not in page
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "event" not in record]
    assert [record["step"] for record in steps] == list(range(1, 41)) and all(record["num_examples"] <= 16 for record in steps)
    # the stock model says what Unmask says
    texts = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(finished.model)
    with torch.no_grad():
        logits = model.eval()(**tokenizer([line["text"] for line in texts], padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits.numpy(), [line["logits"] for line in texts], atol=1e-5)


def test_a_run_depends_on_its_recipe_alone(finished, tiny_bert, labelled_file, tmp_path):
    again = unmask.finetune("classify", tiny_bert, labelled_file, output=tmp_path / "again", **WHOLE)
    assert_bit_equal(weights(finished.folder), weights(again.folder))


def test_two_halves_equal_the_whole(finished, tiny_bert, labelled_file, tmp_path):
    """k + k steps are 2k steps, to the bit."""
    half = tmp_path / "half"
    shutil.copytree(finished.folder, half)
    for name in ("model", "checkpoints/step-00000040"):
        shutil.rmtree(half / name)
    (half / "metrics.json").unlink()
    whole = unmask.resume(half)
    assert_bit_equal(weights(finished.folder), weights(half))
    same = {key: value for key, value in finished.metrics.items() if key != "training"}
    assert same == {key: value for key, value in whole.metrics.items() if key != "training"}


def test_data_that_has_changed_is_not_gone_on_with(finished, labelled, write_csv, labelled_file, tmp_path, tiny_bert):
    path = tmp_path / "texts.csv"
    shutil.copyfile(labelled_file, path)
    run = unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", max_steps=2, **SMALL)
    write_csv(path, labelled(150))
    with pytest.raises(DataError, match="is not what it was when the run began"):
        unmask.resume(run.folder, max_steps=4)


@pytest.mark.parametrize("options", [{}, {"class_weights": "balanced"}, {"problem": "multi", "loss": "focal"}])
def test_how_a_step_is_cut_changes_nothing(tiny_bert, labelled, write_csv, tmp_path, check_cuts, options):
    """The same gradient in one pack, in several, and in halves of those: of texts in several windows, too."""
    rows = [{**row, "text": row["text"] * (1 + number % 4)} for number, row in enumerate(labelled(40))]
    path = write_csv(tmp_path / "a.csv", rows)

    def make(micro_tokens, folder):
        recipe = make_recipe("classify", tiny_bert, path, **options, **SMALL, micro_tokens=micro_tokens)
        return task("classify").make(recipe, folder, say=print)

    check_cuts(make, ((4096, 0), (100, 0), (64, 0), (4096, 2)), least=4)


def test_early_stopping_keeps_the_best(tiny_bert, labelled_file, tmp_path, capsys):
    run = unmask.finetune(
        "classify", tiny_bert, labelled_file, output=tmp_path / "run", max_steps=400, eval_steps=4, patience=2, best="log_loss",
        **{**SMALL, "learning_rate": 0.5},
    )  # fmt: skip
    training = run.metrics["training"]
    assert training["last_step"] < 400 and training["step"] <= training["last_step"] - 8
    records = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["log_loss"] for record in records if record.get("event") == "heldout"}
    del losses[0]
    assert training["step"] == min(losses, key=losses.get)
    assert any(record.get("event") == "stopped" for record in records)
    capsys.readouterr()
    again = unmask.resume(run.folder)  # it is over: nothing more is trained
    assert again.metrics["training"]["last_step"] == training["last_step"]
    assert "2 evaluations in a row were no better; to go on: --set train.patience=3" in capsys.readouterr().err


def test_seeds_are_an_axis(tiny_bert, labelled_file, tmp_path):
    folder = tmp_path / "seeds"
    run = unmask.finetune("classify", tiny_bert, labelled_file, output=folder, seeds=3, max_steps=3, **SMALL)
    values = [json.loads((folder / f"seed-{seed}" / "metrics.json").read_text())["macro_f1"]["value"] for seed in range(3)]
    seeds = run.metrics["seeds"]
    assert seeds["numbers"]["macro_f1"]["mean"] == pytest.approx(np.mean(values)) and seeds["numbers"]["macro_f1"]["count"] == 3
    assert seeds["best_seed"] == int(np.argmax(values)) and run.metrics["macro_f1"]["value"] == max(values)
    assert_bit_equal(weights(folder), weights(folder / f"seed-{seeds['best_seed']}"))
    measured = unmask.evaluate_task(folder, labelled_file, resamples=0, output=tmp_path / "measured")
    each = [unmask.evaluate_task(folder / f"seed-{seed}", labelled_file, resamples=0).metrics["macro_f1"]["value"] for seed in range(3)]
    assert list(measured.metrics["seeds"]["values"].values()) == each and measured.metrics["seeds"]["metric"] == "macro_f1"
    assert measured["macro_f1"] == each[seeds["best_seed"]]
    assert "chosen on other examples" in (tmp_path / "measured" / "report.html").read_text()
    (folder / "seed-0" / "model").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="run of 3 seeds"):
        unmask.evaluate_task(folder, labelled_file)
    (tmp_path / "gone").rename(folder / "seed-0" / "model")
    known = (folder / "metrics.json").read_text()
    for wrong in ({}, None, {"values": {"x": 1}, "best_seed": 0}, {"values": {"0": 1}}):
        (folder / "metrics.json").write_text(json.dumps({**json.loads(known), "seeds": wrong}))
        with pytest.raises(CheckpointError, match="not what the run wrote"):
            unmask.evaluate_task(folder, labelled_file)
    (folder / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=f"several seeds that has not ended; go on with it: `unmask resume {folder}`"):
        unmask.evaluate_task(folder, labelled_file)
    # what the run compared by is not among the numbers of these items
    (folder / "metrics.json").write_text(json.dumps({**json.loads(known), "best": "mse", "mse": {"value": 1.0}}))
    measured = unmask.evaluate_task(folder, labelled_file, resamples=0)
    assert measured.metrics["seeds"]["metric"] == "macro_f1" and "num_examples" not in measured.metrics["seeds"]["numbers"]
    (folder / "metrics.json").write_text(known)
    shutil.rmtree(folder / "model")
    with pytest.raises(ConfigError, match="holds no model yet; it is an unfinished run: `unmask resume"):
        unmask.evaluate_task(folder, labelled_file)
    assert not torch.equal(weights(folder / "seed-0")["classifier.weight"], weights(folder / "seed-1")["classifier.weight"])
    shutil.rmtree(folder / "seed-2")
    again = unmask.resume(folder)
    assert again.metrics["seeds"] == seeds and "Over seeds" in (folder / "report.html").read_text()
    for text in ('{"train', '{"training": {"step": 3}}', "[1]"):
        (folder / "seed-1" / "metrics.json").write_text(text)
        with pytest.raises(CheckpointError, match="remove it, and resume"):
            unmask.resume(folder)
    (folder / "seed-1" / "metrics.json").unlink()
    assert unmask.resume(folder).metrics["seeds"] == seeds
    # a number that could not be had is never the best
    path = folder / f"seed-{seeds['best_seed']}" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps({**metrics, "training": {**metrics["training"], "rank": None}}))
    assert unmask.resume(folder).metrics["seeds"]["best_seed"] == int(np.argsort(values, kind="stable")[-2])


def test_seeds_that_cannot_be_compared_are_not_trained_and_leave_nothing(tiny_bert, labelled_file, tmp_path, monkeypatch):
    monkeypatch.setattr("unmask.train.session.train", None)
    for options, error, message in (
        ({"dev_share": 1e-9}, ConfigError, "several seeds are compared on held-out examples"),
        ({"text_column": "nothing"}, DataError, "nothing"),
    ):
        with pytest.raises(error, match=message):
            unmask.finetune("classify", tiny_bert, labelled_file, output=tmp_path / "run", seeds=2, max_steps=2, **options, **SMALL)
        assert not (tmp_path / "run").exists()


def test_frozen_layers_stay_and_lower_layers_learn_less(tiny_bert, labelled_file, tmp_path):
    from unmask.model.new_head import with_new_head

    run = unmask.finetune("classify", tiny_bert, labelled_file, output=tmp_path / "frozen", max_steps=3, freeze=1, **SMALL)
    before, after = load_file(tiny_bert / "model.safetensors"), weights(run.folder)
    for name, tensor in after.items():
        if name.startswith("bert.embeddings") or ".layer.0." in name:
            assert torch.equal(tensor, before[name]), name
        elif name in before and tensor.ndim > 1:
            assert not torch.equal(tensor, before[name]), name
    with pytest.raises(ConfigError, match="freeze = 3, and the model has 2 layers"):
        unmask.finetune("classify", tiny_bert, labelled_file, output=tmp_path / "more", max_steps=3, freeze=3, **SMALL)
    from unmask.train.optim import OptimConfig, build

    model = with_new_head(tiny_bert, "sequence_classification", labels=["a", "b"], seed=0)
    (optimizer,) = build(model, OptimConfig(optimizer="adamw", learning_rate=1.0, layer_decay=0.5))
    rates = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert named["classifier.weight"] == named["bert.pooler.dense.weight"] == 1.0
    assert named["bert.encoder.layer.1.output.dense.weight"] == 0.5 and named["bert.encoder.layer.0.output.dense.bias"] == 0.25
    assert named["bert.embeddings.word_embeddings.weight"] == 0.125


def test_lora_trains_the_head_whole_and_is_merged(tiny_bert, labelled_file, tmp_path):
    pytest.importorskip("peft")
    run = unmask.finetune("classify", tiny_bert, labelled_file, output=tmp_path / "lora", max_steps=6, save_steps=3, r=4, **SMALL)
    before, after = load_file(tiny_bert / "model.safetensors"), weights(run.folder)
    assert not any("lora" in name for name in after)
    moved = "bert.encoder.layer.0.attention.self.query.weight"
    assert np.linalg.matrix_rank((after[moved] - before[moved]).numpy(), tol=1e-6) <= 4 and not torch.equal(after[moved], before[moved])
    assert torch.equal(after["bert.embeddings.word_embeddings.weight"], before["bert.embeddings.word_embeddings.weight"])
    whole = after
    shutil.rmtree(run.folder / "checkpoints" / "step-00000006")
    unmask.resume(run.folder)
    assert_bit_equal(whole, weights(run.folder))


def test_a_run_that_cannot_begin_leaves_nothing(tiny_bert, tmp_path, labelled, write_csv, write_jsonl):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "one", "label": "x"}, {"text": "two", "label": "x"}])
    with pytest.raises(DataError, match="the same label, 'x': there is nothing to learn"):
        unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="unknown key 'clasify'; did you mean 'classify'"):
        unmask.finetune("clasify", tiny_bert, path, output=tmp_path / "run")
    with pytest.raises(ConfigError, match="unknown key 'learning_rat'"):
        unmask.finetune("classify", tiny_bert, path, output=tmp_path / "run", learning_rat=1)
    with pytest.raises(CheckpointError, match="there is no folder"):
        unmask.finetune("classify", "./nothing", write_csv(tmp_path / "b.csv", labelled(20)), output=tmp_path / "run")


@pytest.mark.parametrize(("problem", "labels"), [("single", None), ("multi", None), ("regression", [0.5, 1.5, 2.5])])
def test_training_is_what_the_stock_model_with_its_own_loss_does(tiny_bert, labelled, write_csv, tmp_path, problem, labels):
    """The same steps, by hand: the stock class, padded batches, its own loss, torch's AdamW, a linear schedule."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    config = json.loads((base / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(config))
    names = ["health", "law", "sea"]
    rows = labelled(64)
    if labels:
        rows = [{"text": row["text"], "label": labels[names.index(row["label"])]} for row in rows]
    path = write_csv(tmp_path / "a.csv", rows)
    settings = {**SMALL, "learning_rate": 1e-3, "max_steps": 6, "weight_decay": 0.1, "max_grad_norm": 0.5, "problem": problem}
    run = unmask.finetune("classify", base, path, output=tmp_path / "run", eval_steps=0, warmup_ratio=0.0, **settings)

    objective = task("classify").make(make_recipe("classify", base, path, **settings), tmp_path, say=print)
    objective.model.save_pretrained(tmp_path / "start")
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "start").train(), AutoTokenizer.from_pretrained(base)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    items = objective.data.train
    targets = torch.from_numpy(objective.predictor.targets(items))
    losses = []
    for step in range(6):
        epoch, inside = divmod(step, objective.loader.steps_per_epoch())
        chosen = objective.loader.order(epoch)[inside * 16 : (inside + 1) * 16]
        batch = tokenizer([items[number].text for number in chosen], padding=True, return_tensors="pt")
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - (step + 0.5) / 6)
        loss = model(**batch, labels=targets[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    records = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [record["loss"] for record in records if "event" not in record] == pytest.approx(losses, rel=1e-3, abs=1e-5)


def test_a_share_of_the_tokens_is_masked_unless_it_is_said_otherwise(tiny_bert, labelled_file, tmp_path):
    """Never the special ones; as in pre-training where nothing is said."""
    kept = {**SMALL}
    del kept["hide_prob"]
    for given, want in (({}, 0.15), ({"hide_prob": 0.5}, 0.5), ({"hide_prob": 0.0}, 0.0)):
        folder = tmp_path / str(want)
        folder.mkdir()
        objective = task("classify").make(make_recipe("classify", tiny_bert, labelled_file, **kept, **given), folder, say=print)
        batches = [batch for step in range(objective.loader.steps_per_epoch()) for batch in objective.loader.batch(step)]
        ids = torch.cat([batch.input_ids[0, : batch.num_tokens] for batch in batches])
        special = torch.isin(ids, torch.tensor([objective.tokenizer.cls_token_id, objective.tokenizer.sep_token_id]))
        assert special.sum() == 2 * len(objective.data.train)
        share = (ids[~special] == objective.tokenizer.mask_token_id).float().mean().item()
        assert share == pytest.approx(want, abs=0.05)


def test_a_checkpoint_says_how_texts_are_pooled(labelled_file, tmp_path):
    """A pass changes the pooling in the model's config for a moment, while a thread may be writing the checkpoint of the step before."""
    settings = {**SMALL, "learning_rate": 1e-3, "save_steps": 1, "save_total_limit": 20, "eval_steps": 0, "batch_size": 64}
    run = unmask.finetune("classify", unmask.box_model(), labelled_file, output=tmp_path / "run", max_steps=12, pooling="mean", **settings)
    configs = [*(run.folder / "checkpoints").glob("*/config.json"), run.model / "config.json"]
    assert len(configs) == 13
    assert [json.loads(path.read_text())["classifier_pooling"] for path in configs] == ["mean"] * 13
