"""docs/book.md: every command and every line of Python on the page is run, in order, with a tiny BERT in the place of the named one."""

from __future__ import annotations

import os
import re
import shlex
import string
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

BOOK = Path(__file__).parents[1] / "docs" / "book.md"
NAMED = "bert-base-uncased"  # what the page's first two blocks set MODEL to


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", BOOK.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def run_shell(block: str, environment: dict[str, str]) -> list[list[str]]:
    """Run a block: `unmask` in this process, NAME=value into the environment, everything else by the shell; return unmask's arguments."""
    from unmask.cli import main

    commands = []
    rest = re.sub(r"\\\n\s*", "", block)
    while rest:
        line, _, rest = rest.partition("\n")
        if assignment := re.fullmatch(r"([A-Z_]+)=(\S+)", line):
            environment[assignment[1]] = assignment[2]
        elif line.startswith("unmask "):
            args = shlex.split(string.Template(line).substitute(environment))[1:]
            commands.append(args)
            with pytest.raises(SystemExit) as caught:
                main(args)
            assert not caught.value.code, line
        else:  # with the lines of a here-document, if it has one
            if end := re.search(r"<<'(\w+)'", line):
                body, _, rest = rest.partition(f"\n{end[1]}\n")
                line = f"{line}\n{body}\n{end[1]}"
            subprocess.run(["bash", "-euc", line], check=True)
    return commands


@pytest.fixture(scope="module")
def book(tmp_path_factory, tiny_bert, sentences_file):
    """Run the whole page in an empty folder; return the folder, unmask's arguments, and the names that its Python has made."""
    folder = tmp_path_factory.mktemp("book")
    (folder / "texts").mkdir()
    lines = sentences_file.read_text(encoding="utf-8").splitlines()
    (folder / "texts" / "one.txt").write_text("\n".join(lines[:60]), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        commands, environment, names = [], {}, {}
        for block in blocks("sh"):
            commands += run_shell(block.replace(NAMED, str(tiny_bert)), environment)
        for block in blocks("python"):
            exec(compile(block.replace(NAMED, str(tiny_bert)), str(BOOK), "exec"), names)
    finally:
        os.chdir(before)
    return folder, commands, names


def test_the_page_has_every_step_as_a_command_and_in_python(book):
    _, commands, _ = book
    assert [args[0] for args in commands] == ["fill", "adapt", "fill", "pretrain", "fill"]
    python = "\n".join(blocks("python"))
    assert all(f"unmask.{name}(" in python for name in ("fill", "adapt", "Filler.load", "pretrain"))
    assert BOOK.read_text(encoding="utf-8").count("```") == 2 * (len(blocks("sh")) + len(blocks("python")))


def test_the_model_is_named_in_one_place_for_each_language():
    for language in ("sh", "python"):
        assert "".join(blocks(language)).count(NAMED) == 1


@pytest.mark.parametrize("name", ["domain", "scratch"])
def test_the_command_and_its_python_form_give_the_same_weights(book, name):
    folder = book[0] / "runs"
    one, other = (load_file(folder / run / "model" / "model.safetensors") for run in (name, f"{name}-again"))
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


def test_fine_tuning_is_what_the_page_says(book, tiny_bert):
    from unmask.train import recipe as recipes

    folder = book[0] / "runs" / "domain"
    recipe = recipes.load(folder / "config.toml")
    assert (recipe.masking.mlm_probability, recipe.masking.strategy, recipe.train.num_epochs) == (0.15, "token", 3)
    assert (recipe.train.save_steps, recipe.train.save_total_limit, recipe.data.batch_tokens) == (10_000, 2, 256)
    # three sentences are one step an epoch, and the end is saved though save_steps is far away
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    before, after = load_file(tiny_bert / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert not all(before[key].equal(after[key]) for key in before)


def test_the_saved_model_is_what_transformers_loaded(book):
    model, tokenizer = book[2]["model"], book[2]["tokenizer"]
    assert type(model).__name__ == "BertForMaskedLM" and len(tokenizer) == model.config.vocab_size
    assert len(book[2]["filler"].fill("The patient was given [MASK].", top_k=3)[0]) == 3


def test_the_model_from_scratch_has_the_tutorial_s_shape(book):
    from transformers import AutoConfig

    made = AutoConfig.from_pretrained(book[0] / "runs" / "scratch" / "model")
    assert made.model_type == "bert"
    assert (made.hidden_size, made.num_hidden_layers, made.num_attention_heads) == (256, 4, 4)
    assert (made.max_position_embeddings, made.intermediate_size, made.hidden_dropout_prob) == (512, 1024, 0.0)


def test_the_tutorial_s_intermediate_size_gives_its_number_of_parameters(tiny_bert):
    import torch
    from transformers import AutoModelForMaskedLM

    from unmask.data.tokenizer import load_tokenizer
    from unmask.model.presets import ModelConfig, hf_config_for

    fields = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 3072, "vocab_size": 30_522}
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(
            hf_config_for(ModelConfig(family="bert", fields=fields), load_tokenizer(tiny_bert), max_length=512)
        )
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 15.4


def test_a_misspelt_setting_is_named():
    from unmask.errors import ConfigError
    from unmask.model.presets import hf_config_for
    from unmask.train import recipe as recipes

    with pytest.raises(ConfigError, match=r"did you mean 'model\.hidden_size'"):
        hf_config_for(recipes.load(overrides=["model.hidden_sise=256", "model.family=bert"]).model, None, max_length=512)
