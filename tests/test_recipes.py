"""Every recipe is run for a few steps: on a CPU, on little text, with smaller models where the recipe's own would take minutes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from unmask import config
from unmask.train import recipe as recipes

FOLDER = Path(__file__).parents[1] / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
STEPS = 4
# what makes each affordable here and changes nothing that a recipe is about; {text} and {bert} are made on the spot
ALWAYS = ["train.device=cpu", f"train.max_steps={STEPS}", "train.log_steps=1", "data.held_out=0.1"]
NARROW = ["model.hidden_size=64", "model.num_hidden_layers=2", "data.vocab_size=300"]
OVERRIDES = {
    "box": [*NARROW, "data.batch_tokens=1024"],
    "tiny-cpu": ["model.preset=tiny", "data.batch_tokens=512"],
    "small-gpu": [*NARROW, "data.batch_tokens=1024"],
    "base-gpu": [*NARROW, "data.batch_tokens=2048", "data.micro_tokens=512"],
    "adapt": ["data.batch_tokens=512"],
}


def test_every_recipe_is_run_here():
    assert sorted(OVERRIDES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_why_and_holds_nothing_unknown(name):
    path = FOLDER / f"{name}.toml"
    recipes.load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and any(line.startswith("#   unmask ") for line in lines[:10])
    assert len(lines) < 60 and all(len(line) <= 140 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_s_token_counts_fit_each_other(name):
    from unmask.train.setup import check_early

    check_early(recipes.load(FOLDER / f"{name}.toml"))


@pytest.mark.parametrize(("name", "shape"), [("box", (4, 192)), ("tiny-cpu", (4, 256)), ("small-gpu", (6, 384)), ("base-gpu", (12, 768))])
def test_a_recipe_s_own_model_is_the_one_it_names(name, shape, tiny_bert):
    from unmask.data.tokenizer import load_tokenizer
    from unmask.model.presets import hf_config_for

    recipe = recipes.load(FOLDER / f"{name}.toml")
    made = hf_config_for(recipe.model, load_tokenizer(tiny_bert), max_length=recipe.data.max_length)
    assert (made.model_type, made.num_hidden_layers, made.hidden_size) == ("modernbert", *shape)
    assert made.max_position_embeddings == (recipe.model.fields.get("max_position_embeddings", recipe.data.max_length))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs(name, sentences_file, tiny_bert, tmp_path):
    import unmask

    path = FOLDER / f"{name}.toml"
    overrides = [*ALWAYS, *OVERRIDES[name]]
    options = {"output": tmp_path / "run", "data": sentences_file, "recipe": path, "overrides": overrides}
    run = unmask.adapt(tiny_bert, **options) if name == "adapt" else unmask.pretrain(**options)

    # the finished model is a plain Hugging Face folder
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, info = AutoModelForMaskedLM.from_pretrained(run.model, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert len(tokenizer) <= model.config.vocab_size and tokenizer.mask_token_id is not None

    # what the recipe says is what was done
    recipe = recipes.load(path)
    done = recipes.load(run.folder / "config.toml")
    changed = {item.split("=")[0] for item in overrides} | {"data.sources", "base_model"}
    said, found = flat(config.read_toml(path)), flat(config.to_dict(done))
    kept = {key: value for key, value in said.items() if key not in changed}
    assert kept and {key: list(v) if isinstance(v := found.get(key), tuple) else v for key in kept} == kept

    if name == "adapt":
        assert (model.config.model_type, model.config.hidden_size) == ("bert", 32)
        assert model.config.hidden_dropout_prob == 0.1  # its own
        assert run.metrics["before"]["num_masked_tokens"] == run.metrics["num_masked_tokens"]
    else:
        assert model.config.model_type == "modernbert"
        assert model.config.max_position_embeddings == (recipe.model.fields.get("max_position_embeddings", recipe.data.max_length))
        assert "untrained" in run.metrics

    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "event" not in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert steps[-1]["learning_rate"] < 0.9 * recipe.optim.learning_rate  # every schedule ends low
    assert max(line["learning_rate"] for line in steps) <= recipe.optim.learning_rate
    # the share of masked tokens follows the recipe: [CLS] and [SEP], which are never masked, are some of the tokens
    tokens = [line["tokens"] - before["tokens"] for before, line in itertools.pairwise(steps)]
    shares = [line["num_masked_tokens"] / number for line, number in zip(steps[1:], tokens, strict=True)]
    for step, share in enumerate(shares, start=1):
        expected = recipe.masking.probability_at(step / STEPS)
        assert 0.6 * expected < share < 1.3 * expected, (step, share)


def flat(tables: dict, prefix: str = "") -> dict:
    result = {}
    for key, value in tables.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def test_the_command_line_takes_what_the_recipes_say_it_takes(sentences_file, tiny_bert, tmp_path, capsys):
    from unmask.cli import main

    args = ["adapt", str(tiny_bert), "--recipe", str(FOLDER / "adapt.toml"), "--data", str(sentences_file), "-o", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as caught:
        main([*args, "--held-out", "0.1", "--steps", "1", "--set", "data.batch_tokens=512", "--set", "train.device=cpu", "--json"])
    assert not caught.value.code
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 1 and (Path(result["model"]) / "model.safetensors").is_file()
