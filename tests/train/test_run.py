"""Whole runs: what they leave behind, how they go on, and what they refuse."""

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import unmask
from unmask.errors import CheckpointError, ConfigError, DataError, RunError, StoreError, TokenizerError
from unmask.train.optim import OptimConfig

TINY = {"preset": "tiny", "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
SMALL = {"max_length": 32, "batch_tokens": 256, "held_out": 0.1, "device": "cpu", "precision": "fp32", "log_steps": 1}


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A run of 24 steps on a packed corpus."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return unmask.pretrain(output=folder, data=corpus, model=TINY, max_steps=24, eval_steps=12, save_steps=12, **SMALL)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_bit_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def test_a_run_leaves_everything_it_should(finished, corpus):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = finished.folder
    model, info = AutoModelForMaskedLM.from_pretrained(finished.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(finished.model)) == 122
    assert (finished.model / "README.md").read_text().startswith("---")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == finished.metrics
    for row in (metrics, metrics["unigram"], metrics["untrained"]):
        assert row["num_masked_tokens"] == metrics["num_masked_tokens"] > 20
        assert {"masked_loss", "masked_accuracy", "masked_perplexity"} <= row.keys()
    assert metrics["masked_loss"] < metrics["untrained"]["masked_loss"]
    assert len(metrics["masks_fingerprint"]) == 16
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000012", "step-00000024"]
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r and "event" not in r] == list(range(1, 25))
    assert (folder / "environment.json").is_file()
    assert str(corpus) in (folder / "config.toml").read_text()


def test_the_model_left_behind_gives_the_numbers_in_metrics(finished, corpus):
    from unmask.data.frozen import frozen_batches
    from unmask.data.masking import MaskingConfig
    from unmask.data.store import TokenStore
    from unmask.data.tokenizer import special_ids
    from unmask.model.load import load_model
    from unmask.train.heldout import heldout

    tokenizer = unmask.load_tokenizer(finished.model)
    batches = frozen_batches(
        TokenStore.open(corpus / "heldout"), special_ids(tokenizer), MaskingConfig(mlm_probability=0.15),
        vocab_size=len(tokenizer), seed=0, max_length=32, micro_tokens=64,
    )  # fmt: skip
    again = heldout(load_model(finished.model), batches)
    assert again["num_masked_tokens"] == finished.metrics["num_masked_tokens"]
    assert again["masked_loss"] == pytest.approx(finished.metrics["masked_loss"], rel=1e-5)


def test_a_run_depends_on_its_recipe_alone(finished, corpus, tmp_path):
    # neither evaluations, nor checkpoints, nor the state of torch's random numbers change what is learned
    torch.manual_seed(123)
    again = unmask.pretrain(output=tmp_path / "again", data=corpus, model=TINY, max_steps=24, eval_steps=0, save_steps=5, **SMALL)
    assert_bit_equal(weights(finished.folder), weights(again.folder))
    other = unmask.pretrain(output=tmp_path / "other", data=corpus, model=TINY, max_steps=24, eval_steps=0, save_steps=0, seed=1, **SMALL)
    assert not torch.equal(*(next(iter(weights(run.folder).values())) for run in (again, other)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_half_a_run_and_the_other_half_are_the_whole(corpus, tmp_path, precision):
    # dropout on, two micro-batches a step, a mask rate that moves: all of it must go on where it stood
    settings = {
        "model": {**TINY, "family": "bert", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
        **SMALL, "precision": precision, "micro_tokens": 128, "mlm_probability_end": 0.15, "max_steps": 20,
    }  # fmt: skip
    whole = unmask.pretrain(output=tmp_path / "whole", data=corpus, save_steps=0, keep="last", **settings)
    half = unmask.pretrain(output=tmp_path / "half", data=corpus, save_steps=10, keep="last", **settings)
    # as after a kill between the checkpoint of step 10 and the end
    shutil.rmtree(half.folder / "checkpoints" / "step-00000020")
    shutil.rmtree(half.model)
    (half.folder / "metrics.json").unlink()
    rest = unmask.resume(half.folder)
    assert_bit_equal(weights(whole.folder), weights(rest.folder))
    assert rest.metrics["tokens"] == whole.metrics["tokens"]
    steps = [json.loads(line) for line in (rest.folder / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in steps if "loss" in r and "event" not in r] == list(range(1, 21))


def test_a_torn_checkpoint_is_passed_over(finished, corpus, tmp_path):
    settings = {"max_steps": 24, "save_steps": 8, "keep": "last", "save_total_limit": 3, **SMALL}
    run = unmask.pretrain(output=tmp_path / "run", data=corpus, model=TINY, **settings)
    torn = run.folder / "checkpoints" / "step-00000024" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    again = unmask.resume(run.folder)
    assert_bit_equal(weights(again.folder), weights(finished.folder))


def test_a_new_budget_prolongs_a_finished_run(corpus, tmp_path):
    run = unmask.pretrain(output=tmp_path / "run", data=corpus, model=TINY, max_steps=6, schedule="constant", **SMALL)
    longer = unmask.resume(run.folder, max_steps=9)
    assert (longer.step, longer.metrics["last_step"]) == (9, 9)
    whole = unmask.pretrain(output=tmp_path / "whole", data=corpus, model=TINY, max_steps=9, schedule="constant", warmup_ratio=0.0, **SMALL)
    assert weights(longer.folder).keys() == weights(whole.folder).keys()


def test_steps_grow_where_that_is_asked_for(corpus, tmp_path):
    settings = {"batch_tokens_start": 64, "batch_ramp_steps": 6, "reference_batch_tokens": 64, "schedule": "constant", "warmup_ratio": 0.0}
    run = unmask.pretrain(output=tmp_path / "run", data=corpus, model=TINY, max_steps=9, **settings, **SMALL)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines() if '"event"' not in line]
    tokens = [after["tokens"] - before["tokens"] for before, after in itertools.pairwise([{"tokens": 0}, *lines])]
    assert all(0.6 * 64 * packs < one <= 64 * packs for one, packs in zip(tokens, [1, 2, 2, 2, 3, 4, 4, 4, 4], strict=True)), tokens
    assert {line["learning_rate"] for line in lines} == {2 * OptimConfig().learning_rate}


def test_what_was_computed_cannot_be_changed_on_resuming(finished):
    for change in ("optim.learning_rate=1", "data.max_length=16", "train.seed=2"):
        with pytest.raises(ConfigError, match="cannot change in the middle of a run"):
            unmask.resume(finished.folder, overrides=[change])


def test_an_interruption_before_the_first_step_stands_in_nobodys_way(text_file, tmp_path, monkeypatch, capsys):
    """Nothing done: the same command may be given again. A tokenizer trained, a corpus half packed: the run goes on with it."""
    from unmask.data import pack as packing
    from unmask.train import setup

    settings = {"data": text_file, "model": TINY, "vocab_size": 200, "max_steps": 2, **SMALL}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    for module, name in ((setup, "check_early"), (packing, "_second_pass")):
        assert not (tmp_path / "run").exists()
        monkeypatch.setattr(module, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            unmask.pretrain(output=tmp_path / "run", **settings)
        monkeypatch.undo()
    assert f"go on with: unmask resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.toml", "tokenizer"}
    assert unmask.resume(tmp_path / "run").step == 2


def test_of_two_runs_that_begin_in_one_folder_at_once_the_second_takes_nothing(corpus, tmp_path, monkeypatch):
    from unmask.train import run as module

    def claim(output):  # the first begins just after the second has looked
        folder = setup_claim(output)
        (folder / "config.toml").write_text("# of the first")
        return folder

    setup_claim = module.claim
    monkeypatch.setattr(module, "claim", claim)
    with pytest.raises(CheckpointError, match="another process has just begun a run"):
        unmask.pretrain(output=tmp_path / "run", data=corpus, model=TINY, max_steps=1, **SMALL)
    assert (tmp_path / "run" / "config.toml").read_text() == "# of the first"


def test_raw_text_is_packed_and_a_tokenizer_trained(text_file, tmp_path):
    run = unmask.pretrain(output=tmp_path / "run", data=text_file, model=TINY, vocab_size=200, max_steps=2, **SMALL)
    tokenizer = unmask.load_tokenizer(run.model)
    assert 100 <= len(tokenizer) <= 200 and tokenizer.mask_token
    assert (run.folder / "corpus" / "heldout.jsonl").is_file()


def test_adapting_starts_from_the_model_and_keeps_its_tokenizer(finished, text_file, tmp_path):
    run = unmask.adapt(finished.model, text_file, output=tmp_path / "adapted", max_steps=3, **SMALL)
    assert set(run.metrics) >= {"before", "unigram"} and "untrained" not in run.metrics
    assert run.metrics["before"]["masked_loss"] < run.metrics["unigram"]["masked_loss"] + 1
    assert len(unmask.load_tokenizer(run.model)) == 122
    for name, tensor in weights(run.folder).items():
        torch.testing.assert_close(tensor, weights(finished.folder)[name], rtol=0, atol=2e-3)


def test_three_sentences_are_enough(finished, tmp_path):
    (tmp_path / "three.txt").write_text("ban der fist\ngolo kumi laka\nmete nin por\n")
    settings = SMALL | {"held_out": 0.0, "batch_tokens": 4096}
    run = unmask.adapt(finished.model, tmp_path / "three.txt", output=tmp_path / "run", num_epochs=3, save_steps=10_000, **settings)
    assert run.step == 3 and "masked_loss" not in run.metrics
    assert (run.model / "model.safetensors").is_file()


def test_a_corpus_packed_with_another_tokenizer_is_refused(finished, text_file, tmp_path):
    other = unmask.train_tokenizer(text_file.read_text().splitlines(), kind="wordpiece", vocab_size=120)
    unmask.pack(text_file, tmp_path / "corpus", tokenizer=other, held_out=0.1, dedup="none")
    with pytest.raises(StoreError, match="built with the tokenizer"):
        unmask.adapt(finished.model, tmp_path / "corpus", output=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(finished, corpus, tmp_path):
    with pytest.raises(CheckpointError, match="already holds a run; go on with it"):
        unmask.pretrain(output=finished.folder, data=corpus, model=TINY)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        unmask.pretrain(output=tmp_path, data=corpus, model=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(CheckpointError, match="holds no run"):
        unmask.resume(tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": None}, ConfigError, "no text is named"),
        ({"batch_tokens": 16}, ConfigError, "data.batch_tokens = 16 is less than data.max_length = 32"),
        ({"micro_tokens": 100}, ConfigError, "data.micro_tokens = 100; allowed: a divisor of data.batch_tokens = 256"),
        ({"model": {"hidden_sise": 12}}, ConfigError, "did you mean 'model.hidden_size'"),
        ({"model": {**TINY, "max_position_embeddings": 16}}, ConfigError, "max_length = 32 is more than the 16 positions"),
        ({"parallel": "fsdp"}, ConfigError, 'optim.optimizer = "muon" needs them whole'),
        ({"batch_tokens_start": 128}, ConfigError, "data.batch_tokens_start = 128, data.batch_ramp_steps = 0: give both, or neither"),
        (
            {"batch_tokens_start": 16, "batch_ramp_steps": 2},
            ConfigError,
            "data.batch_tokens_start = 16; allowed: from data.max_length = 32",
        ),
        ({"batch_tokens_start": 64, "batch_ramp_steps": -1}, ConfigError, "data.batch_ramp_steps = -1; allowed: 0"),
        ({"batch_tokens_start": 64, "batch_ramp_steps": 2, "num_epochs": 1.0}, ConfigError, "give the budget in steps, tokens or minutes"),
        ({"device": "tpu"}, ConfigError, "train.device = 'tpu'"),
        ({"masking": {"strategy": "words"}}, ConfigError, "masking.strategy = 'words'"),
        ({"data": "nowhere.txt"}, DataError, "nowhere.txt"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(corpus, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        unmask.pretrain(output=tmp_path / "run", **{"data": corpus, "model": TINY, "max_steps": 1, **SMALL, **settings})
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_mask_is_refused(text_file, tmp_path, tokenizer_folder):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    for path in folder.iterdir():
        path.write_text(path.read_text().replace('"mask_token": "[MASK]"', '"model_max_length": 64').replace("[MASK]", "[HIDE]"))
    with pytest.raises(TokenizerError, match="mask"):
        unmask.pretrain(output=tmp_path / "run", data=text_file, tokenizer=folder, model=TINY, **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_corpus_that_took_long_to_pack_is_kept(text_file, tokenizer_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"16 positions.*\n.*the packed corpus is kept in"):
        unmask.pretrain(
            output=tmp_path / "run", data=text_file, tokenizer=tokenizer_folder, model={**TINY, "max_position_embeddings": 16}, **SMALL
        )
    again = unmask.pretrain(output=tmp_path / "again", data=tmp_path / "run" / "corpus", model=TINY, max_steps=1, **SMALL)
    assert again.step == 1


def test_a_run_that_fails_on_the_way_keeps_its_log(corpus, tmp_path):
    # a learning rate at which nothing stays finite
    with pytest.raises(RunError, match="3 steps in a row"):
        unmask.pretrain(
            output=tmp_path / "run", data=corpus, model={**TINY, "family": "bert"}, max_steps=40, optimizer="adamw", schedule="constant",
            learning_rate=1e38, warmup_ratio=0.0, save_steps=0, **SMALL,
        )  # fmt: skip
    skipped = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines() if '"skipped"' in line]
    assert len(skipped) == 3 and all(record["documents"][0].startswith("corpus.txt:") for record in skipped)


def test_resuming_needs_nothing_that_the_run_started_from(finished, corpus, tmp_path):
    base = shutil.copytree(finished.model, tmp_path / "base")
    run = unmask.adapt(base, corpus, output=tmp_path / "run", max_steps=2, **SMALL)
    shutil.rmtree(base)
    assert unmask.resume(run.folder, max_steps=4).step == 4


def test_a_corpus_whose_bytes_have_changed_is_refused(corpus, tmp_path):
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    (shard,) = (damaged / "train").glob("shard-*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=r"shard-00000\.arrow' is damaged"):
        unmask.pretrain(output=tmp_path / "run", data=damaged, model=TINY, max_steps=1, **SMALL)


def test_a_run_is_worked_on_by_one_process_at_a_time(finished):
    from unmask.data.whole import alone

    with alone(finished.folder), pytest.raises(CheckpointError, match="another process is at work on"):
        unmask.resume(finished.folder)
    assert unmask.resume(finished.folder).step == finished.step


def test_a_perplexity_beyond_all_bounds_is_null_in_files_and_named_for_people(finished, corpus, tmp_path):
    from safetensors.torch import save_file

    from unmask.evaluate.report import write

    wild = shutil.copytree(finished.model, tmp_path / "wild")
    tensors = load_file(wild / "model.safetensors")
    bias = next(name for name, tensor in tensors.items() if name.endswith("bias") and tensor.shape == (122,))
    tensors[bias][5] = 1e6  # one token is certain, and the loss of all others a million
    save_file(tensors, wild / "model.safetensors", metadata={"format": "pt"})
    (wild / "manifest.json").unlink()
    run = unmask.adapt(wild, corpus, output=tmp_path / "run", max_steps=1, learning_rate=0.0, **SMALL)

    def strict(text):
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    metrics = strict((run.folder / "metrics.json").read_text())
    assert metrics["masked_perplexity"] is None and metrics["masked_loss"] > 1e5
    records = [strict(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [record["masked_perplexity"] for record in records if record.get("event") == "heldout"] == [None, None]
    assert "| this model | 0" in (run.model / "README.md").read_text() and "| not finite |" in (run.model / "README.md").read_text()
    assert "not finite" in write(run.folder).read_text()
