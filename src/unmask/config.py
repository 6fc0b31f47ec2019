"""Configuration: TOML and `key=value` overrides become frozen dataclasses; a key that does not exist is an error."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")
SEAL = "# SHA-256 of what stands above: "  # the last line of a file that `dump` wrote


def load(cls: type[T], path: str | Path | None = None, overrides: Iterable[str] = (), base: Mapping[str, Any] | None = None) -> T:
    """Return `cls` built from a TOML file and `section.key=value` overrides, on top of `base` (a nested dict).

    Raises: ConfigError for a file that is not TOML, an unknown key (with the nearest right one) or a value of the wrong type.
    """
    data: dict[str, Any] = json.loads(json.dumps(dict(base or {})))
    where = "the settings"
    if path is not None:
        where = str(path)
        merge(data, read_toml(path))
    for item in overrides:
        key, value = parse_override(item)
        merge(data, nest(key, value))
    return from_dict(cls, data, where=where)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file; one that `dump` wrote must be as it was written.

    Raises: ConfigError.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        above, seal, digest = text.rpartition(SEAL)
        if seal and digest.strip() != _digest(above):
            raise ConfigError(
                f"'{path}' is not as Unmask wrote it (SHA-256 differs), so a run cannot go on with it as it was; take another copy of it, "
                "or, if you changed it on purpose, delete its last line"
            )
        return _parsed(text)
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe '{path}'; name a .toml file that exists") from None
    except OSError as error:
        raise ConfigError(f"the recipe '{path}' cannot be read ({error.strerror}); name a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _parsed(text: str) -> dict[str, Any]:
    """Return the tables of TOML text; what Python refuses in a way of its own is refused as TOML."""
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("brackets are nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # a number of thousands of digits, a date that is none
        raise tomllib.TOMLDecodeError(str(error)) from None
    _check_values(tables)
    return tables


def _check_values(value: Any) -> None:
    if isinstance(value, (datetime.date, datetime.time)):
        raise tomllib.TOMLDecodeError(f"no setting is a date or a time of day ({value}); if it is a name, put it in quotes")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise tomllib.TOMLDecodeError("a whole number has more than 64 bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_values(inner)


def parse_override(item: str) -> tuple[str, Any]:
    """Split `a.b=value`; the value is read as TOML, and as a plain string where it is not TOML."""
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {item!r} is not of the form section.key=value (for example optim.learning_rate=3e-4)")
    try:
        value = _parsed(f"v = {text.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return key.strip(), value


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return {"a": {"b": value}} for the key "a.b"."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return typing.cast(dict[str, Any], value)


def merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Lay `new` over `into`, table by table; `new` is left as it is by later merges."""
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "the settings", prefix: str = "") -> T:
    """Return the dataclass `cls` from a nested dict.

    A dataclass may name one of its fields in `__extra__`: a dict that takes the keys it does not know, to be checked by whoever does.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    extra = getattr(cls, "__extra__", None)
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key in fields and key != extra:
            values[key] = _convert(hints[key], value, name, where)
        elif extra is not None:
            if key == extra and not isinstance(value, Mapping):
                raise ConfigError(f"{where}: '{name}' is a table of settings, not {value!r}")
            if key == extra:
                values.setdefault(extra, {}).update(value)
            else:
                values.setdefault(extra, {})[key] = value
        else:
            raise ConfigError(unknown_key(name, [f"{prefix}{field}" for field in fields], where))
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {prefix.rstrip('.') or cls.__name__}: {error}") from None


def unknown_key(name: str, allowed: Iterable[str], where: str) -> str:
    """Return the message for a key that does not exist, with the nearest one that does."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(allowed)}"
    return f"{where}: unknown key '{name}'; {hint}"


def _convert(hint: Any, value: Any, name: str, where: str) -> Any:
    if isinstance(value, Path):
        value = str(value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        for option in options:
            try:
                return _convert(option, value, name, where)
            except ConfigError:
                if option is options[-1]:
                    raise
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: '{name}' is a table of settings, not {value!r}")
        return from_dict(typing.cast(type, hint), value, where=where, prefix=f"{name}.")
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}: {name} = {value!r}; allowed: {', '.join(map(str, args))}")
        return value
    if origin in (tuple, list):
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        return origin(_convert(args[0], item, name, where) for item in items)
    if origin is dict or hint in (dict, Any):
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if (hint is int and isinstance(value, bool)) or not isinstance(value, hint):
        raise ConfigError(f"{where}: {name} = {value!r} is not of type {hint.__name__}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Return a nested dict of a configuration, its `__extra__` keys laid flat again, unset (None) keys left out."""
    extra = getattr(type(config), "__extra__", None)
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        if field.name == extra:
            result.update(value)
        else:
            result[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return result


def dump(config: Any) -> str:
    """Return a configuration as TOML text; `load` of that text gives the same configuration. Its last line says what it must be."""
    lines: list[str] = []
    _dump_table(to_dict(config), "", lines)
    text = "\n".join(lines).strip() + "\n\n"
    return f"{text}{SEAL}{_digest(text)}\n"


def _dump_table(table: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if prefix and plain:
        lines += ["", f"[{prefix.rstrip('.')}]"]
    lines += [f"{key} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            _dump_table(value, f"{prefix}{key}.", lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text if any(mark in text for mark in ".enif") else f"{text}.0"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is and TOML forbids
