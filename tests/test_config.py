"""Settings: TOML and overrides in, frozen dataclasses out, and back; what is wrong is named with where and with what is right."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import string
import tomllib
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import dump, from_dict, load, merge, nest, parse_override, to_dict, unknown_key
from unmask.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    learning_rate: float = 1e-3
    num_steps: int | None = None
    name: str = "plain"
    shuffle: bool = True
    kind: Literal["linear", "cosine"] = "linear"


@dataclass(frozen=True)
class Open:
    preset: str = "mini"
    fields: dict[str, Any] = field(default_factory=dict)

    __extra__: ClassVar[str] = "fields"


@dataclass(frozen=True)
class Outer:
    title: str | None = None
    sources: tuple[str, ...] = ()
    betas: tuple[float, ...] = (0.9, 0.98)
    optim: Inner = field(default_factory=Inner)
    model: Open = field(default_factory=Open)


# U+007F is the one printable-looking character that JSON leaves as it is and TOML forbids
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=12)
numbers = st.floats(allow_nan=False)
bare_keys = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(lambda key: key not in ("preset", "fields"))
plain = st.one_of(texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), numbers)
extras = st.dictionaries(
    bare_keys, st.one_of(plain, st.lists(plain, max_size=3), st.dictionaries(bare_keys, plain, min_size=1, max_size=2)), max_size=3
)
inners = st.builds(
    Inner,
    learning_rate=numbers,
    num_steps=st.none() | st.integers(-(2**63), 2**63 - 1),
    name=texts,
    shuffle=st.booleans(),
    kind=st.sampled_from(["linear", "cosine"]),
)
outers = st.builds(
    Outer,
    title=st.none() | texts,
    sources=st.lists(texts, max_size=3).map(tuple),
    betas=st.lists(numbers, max_size=3).map(tuple),
    optim=inners,
    model=st.builds(Open, preset=texts, fields=extras),
)


@given(outers)
def test_what_is_dumped_loads_as_the_same(config):
    assert from_dict(Outer, tomllib.loads(dump(config))) == config


@given(outers)
def test_a_dump_loads_from_a_file_and_from_a_dict(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    assert load(Outer, path) == config == from_dict(Outer, to_dict(config))


@given(outers, st.data())
def test_a_file_that_was_dumped_and_has_changed_is_refused_or_says_the_same(tmp_path_factory, config, data):
    path = tmp_path_factory.getbasetemp() / "turned.toml"
    whole = dump(config).encode()
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
    with contextlib.suppress(ConfigError):
        assert load(Outer, path) == config  # it hit the mark of the last line


def test_a_recipe_that_is_edited_says_which_line_to_delete(tmp_path):
    path = tmp_path / "config.toml"
    text = dump(Outer(title="mine"))
    path.write_text(text.replace("mine", "yours"))
    with pytest.raises(ConfigError, match=r"config.toml' is not as Unmask wrote it .* delete its last line"):
        load(Outer, path)
    path.write_text("\n".join(text.replace("mine", "yours").splitlines()[:-1]))
    assert load(Outer, path).title == "yours"


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "0x" + "f" * 5000, str(2**63), "[[-1e5, 99999999999999999999]]", "2026-11-25"])
def test_what_no_recipe_can_hold_is_no_toml(tmp_path, value):
    path = tmp_path / "recipe.toml"
    path.write_text(f"title = {value}")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load(Outer, path)
    assert parse_override(f"x.y={value}") == ("x.y", value)  # a plain string then, as all that is no TOML


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e22, 5e-324, 3e-4, 1.0, -0.0])
def test_floats_of_any_size_stay_floats(value):
    text = dump(Inner(learning_rate=value))
    again = tomllib.loads(text)["learning_rate"]
    assert isinstance(again, float) and again == value and math.copysign(1, again) == math.copysign(1, value)


def test_the_file_then_the_overrides_in_their_order_lie_on_the_base(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('title = "file"\n[optim]\nname = "file"\nnum_steps = 5\n')
    config = load(
        Outer, path, ["optim.num_steps=6", "optim.num_steps=7"], base={"optim": {"name": "base", "shuffle": False}, "sources": ["a"]}
    )
    assert config == Outer(title="file", sources=("a",), optim=Inner(name="file", num_steps=7, shuffle=False))


def test_the_base_is_left_as_it_was():
    base = {"optim": {"name": "base"}}
    load(Outer, overrides=["optim.name=new"], base=base)
    assert base == {"optim": {"name": "base"}}


def test_merging_goes_table_by_table_and_replaces_lists():
    into = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    merge(into, {"a": {"c": [3]}, "d": {"e": 2}})
    assert into == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert nest("a.b.c", 1) == {"a": {"b": {"c": 1}}}


def test_what_was_merged_in_is_not_changed_by_what_comes_on_top():
    defaults, into = {"a": {"b": 1, "c": {"d": 2}}}, {}
    merge(into, defaults)
    merge(into, {"a": {"b": 3, "c": {"d": 4}}})
    assert into == {"a": {"b": 3, "c": {"d": 4}}}
    assert defaults == {"a": {"b": 1, "c": {"d": 2}}}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("optim.learning_rate=3e-4", ("optim.learning_rate", 3e-4)),
        ("optim.learning_rate=1", ("optim.learning_rate", 1)),
        ("a=1_000", ("a", 1000)),
        ("a=true", ("a", True)),
        ("a=True", ("a", "True")),
        ("a=bert", ("a", "bert")),
        ("a='quoted'", ("a", "quoted")),
        ('a="7"', ("a", "7")),
        ("a=", ("a", "")),
        ("a=b=c", ("a", "b=c")),
        (" a = 5 ", ("a", 5)),
        ('a=["x.txt", "y.txt"]', ("a", ["x.txt", "y.txt"])),
        ("a=[0.9, 0.98]", ("a", [0.9, 0.98])),
        ("a={b = 1}", ("a", {"b": 1})),
        ("a=/some/path.txt", ("a", "/some/path.txt")),
        ("a=cuda:1", ("a", "cuda:1")),
    ],
)
def test_overrides_are_read_as_toml_and_else_as_text(item, expected):
    key, value = parse_override(item)
    assert (key, value) == expected and type(value) is type(expected[1])


@pytest.mark.parametrize("item", ["optim.learning_rate", "=3", "", " =3"])
def test_an_override_without_a_key_or_a_value_shows_how_it_is_written(item):
    with pytest.raises(ConfigError, match=r"is not of the form section\.key=value"):
        parse_override(item)


@given(st.sampled_from(["optim.learning_rate", "optim.num_steps", "optim.name", "optim.shuffle", "sources", "model.preset"]), st.data())
def test_a_key_with_a_letter_gone_is_refused_and_the_right_one_named(key, data):
    at = data.draw(st.integers(key.index(".") + 1 if "." in key else 0, len(key) - 1))
    wrong = key[:at] + key[at + 1 :]
    if wrong == "model." or key == "model.preset":
        return
    with pytest.raises(ConfigError) as caught:
        load(Outer, overrides=[f"{wrong}=1"])
    assert f"unknown key '{wrong}'; did you mean '{key}'?" in str(caught.value)


def test_a_key_like_no_other_is_refused_with_all_that_are_allowed(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[optim]\nzzzzzzzzzzzzzzzz = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(Outer, path)
    assert str(path) in str(caught.value)
    assert "allowed: optim.kind, optim.learning_rate, optim.name, optim.num_steps, optim.shuffle" in str(caught.value)
    assert unknown_key("x", ["b", "a"], "here") == "here: unknown key 'x'; allowed: a, b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=fast", "optim.learning_rate = 'fast' is not of type float"),
        ("optim.learning_rate=true", "optim.learning_rate = True is not of type float"),
        ("optim.num_steps=1.5", "optim.num_steps = 1.5 is not of type int"),
        ("optim.num_steps=true", "optim.num_steps = True is not of type int"),
        ("optim.num_steps=[1]", r"optim.num_steps = \[1\] is not of type int"),
        ("optim.name=3", "optim.name = 3 is not of type str"),
        ("optim.shuffle=1", "optim.shuffle = 1 is not of type bool"),
        ("optim.kind=cosin", "optim.kind = 'cosin'; allowed: linear, cosine"),
        ("betas=[0.9, high]", r"betas = '\[0.9, high\]' is not of type float"),
        ("optim=3", "'optim' is a table of settings, not 3"),
    ],
)
def test_a_value_of_the_wrong_type_is_quoted(override, message):
    with pytest.raises(ConfigError, match=f"the settings: {message}"):
        load(Outer, overrides=[override])


def test_numbers_that_mean_the_same_are_taken():
    config = load(Outer, overrides=["optim.num_steps=1e4", "optim.learning_rate=1", "sources=only.txt", "betas=[1, 0.5]"])
    assert (config.optim.num_steps, config.optim.learning_rate, config.sources, config.betas) == (10_000, 1.0, ("only.txt",), (1.0, 0.5))
    assert type(config.optim.num_steps) is int and type(config.optim.learning_rate) is float


def test_keys_that_a_table_leaves_to_others_are_kept_for_them():
    config = load(Outer, overrides=["model.hidden_size=64", "model.rope.theta=1e4", "model.preset=tiny"])
    assert config.model == Open("tiny", {"hidden_size": 64, "rope": {"theta": 1e4}})
    assert to_dict(config)["model"] == {"preset": "tiny", "hidden_size": 64, "rope": {"theta": 1e4}}


def test_unset_keys_are_left_out_of_a_dump_and_tables_have_their_headings():
    text = dump(Outer(sources=("a b.txt",)))
    assert "title" not in text and "num_steps" not in text
    assert 'sources = ["a b.txt"]' in text.splitlines() and "[optim]" in text.splitlines()


def test_a_recipe_that_is_not_there_or_not_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no recipe '.*gone.toml'"):
        load(Outer, tmp_path / "gone.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[optim\n")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML: .*line 1"):
        load(Outer, bad)
    bad.write_bytes(b"title = '\xff'\n")
    with pytest.raises(ConfigError, match=r"bad.toml is not valid TOML"):
        load(Outer, bad)


def test_a_missing_field_is_an_error_of_the_settings():
    @dataclass(frozen=True)
    class Needs:
        output: str

    with pytest.raises(ConfigError, match=r"the settings: Needs: .*output"):
        from_dict(Needs, {})
    assert from_dict(Needs, {"output": "x"}).output == "x"


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load(Outer).optim.name = "x"
