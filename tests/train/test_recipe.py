"""Recipes: what a file says, what comes on top, and what is refused."""

import dataclasses

import pytest

from unmask.errors import ConfigError
from unmask.train.loop import TrainConfig
from unmask.train.recipe import DataConfig, Recipe, absolute, load, nested


def test_defaults_are_a_pre_training_from_scratch():
    recipe = load()
    assert recipe == Recipe()
    assert (recipe.optim.optimizer, recipe.optim.muon_learning_rate, recipe.optim.learning_rate) == ("muon", 0.01, 3e-3)
    assert (recipe.optim.schedule, recipe.optim.decay_ratio, recipe.optim.weight_decay) == ("wsd", 0.6, 0.01)


def test_a_model_to_continue_changes_the_defaults_and_is_overruled_by_what_is_said(tmp_path):
    recipe = load(base_model="some/model", overrides=["optim.learning_rate=5e-5"])
    assert (recipe.optim.optimizer, recipe.optim.schedule, recipe.masking.mlm_probability) == ("adamw", "linear", 0.15)
    assert recipe.optim.learning_rate == 5e-5
    path = tmp_path / "recipe.toml"
    path.write_text('base_model = "some/model"\n[masking]\nmlm_probability = 0.3\n')
    assert load(path).masking.mlm_probability == 0.3
    over = load(path, settings={"masking": {"mlm_probability": 0.2}}, overrides=["masking.mlm_probability=0.4"])
    assert over.masking.mlm_probability == 0.4


@pytest.mark.parametrize("base_model", [None, "some/model"])
def test_a_recipe_written_out_and_read_again_is_the_same(tmp_path, base_model):
    recipe = load(
        base_model=base_model, overrides=["data.sources=[\"a.txt\", \"b.txt\"]", "train.max_minutes=2.5", "train.trackers=tensorboard"]
    )  # fmt: skip
    if base_model is None:
        recipe = dataclasses.replace(recipe, model=load(overrides=["model.num_hidden_layers=3"]).model)
    (tmp_path / "config.toml").write_text(recipe.to_toml())
    assert load(tmp_path / "config.toml") == recipe


def test_a_key_that_does_not_exist_is_refused_with_the_right_one(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[optim]\nlearning_rat = 1e-3\n")
    with pytest.raises(ConfigError, match=r"recipe.toml: unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'\?"):
        load(path)
    with pytest.raises(ConfigError, match=r"'max_minute'; did you mean 'max_minutes'\?"):
        nested({"max_minute": 5})


def test_a_model_from_scratch_and_one_to_continue_exclude_each_other():
    with pytest.raises(ConfigError, match="from scratch, but base_model = 'some/model'"):
        load(base_model="some/model", overrides=["model.preset=tiny"])


def test_settings_find_their_sections():
    made = nested({"max_minutes": 5, "mlm_probability": 0.2, "model": {"preset": "tiny"}, "data.max_length": 64, "data": {"seed": 1}})
    assert made.pop("data") == {"max_length": 64, "seed": 1}
    assert made == {"train": {"max_minutes": 5}, "masking": {"mlm_probability": 0.2}, "model": {"preset": "tiny"}}


def test_no_field_name_is_in_two_sections():
    sections = [section.default_factory for section in dataclasses.fields(Recipe) if section.name != "base_model"]
    names = [field.name for section in sections for field in dataclasses.fields(section)]
    assert len(names) == len(set(names))


def test_paths_are_made_absolute_and_names_left_alone(tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    recipe = absolute(Recipe(base_model="bert-base-uncased", data=DataConfig(sources=("corpus.txt", "python-docs", "hub:name"))))
    assert recipe.data.sources == (str(tmp_path / "corpus.txt"), "python-docs", "hub:name")
    assert recipe.base_model == "bert-base-uncased"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.held_out=1.5", "data.held_out = 1.5"),
        ("train.precision=fp16", "train.precision = 'fp16'; allowed: auto, fp32, bf16"),
        ("train.max_steps=0", "train.max_steps = 0"),
        ("data.batch_tokens=many", "data.batch_tokens = 'many' is not of type int"),
    ],
)
def test_values_that_cannot_be_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load(overrides=[override])


def test_every_field_of_the_loop_has_a_place_in_a_recipe():
    assert load(
        overrides=[f"train.{f.name}={str(f.default).lower()}" for f in dataclasses.fields(TrainConfig) if isinstance(f.default, int)]
    )
