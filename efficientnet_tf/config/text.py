"""Reads and writes configurations: settings as text, JSON, a table for people.

Nothing here imports TensorFlow.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from efficientnet_tf.arch import Variant, files
from efficientnet_tf.config.model import SHAPE, ModelConfig
from efficientnet_tf.config.run import Config

_WORDS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def override(config: Config, *settings: str) -> Config:
    """Changes settings given as text, all at once, so that they may depend on each other.

    >>> override(Config(), "train.epochs=3", "model.weights=none").train.epochs
    3

    Args:
        config: to start from.
        *settings: "section.name=value". Tuples are separated by commas, None is "none". Another
            model.variant takes the place of the whole network, also of the recipe's model.blocks.

    Returns:
        The changed configuration.

    Raises:
        ValueError: unknown setting, a value of the wrong type or out of range.
    """
    changes: dict[str, dict[str, Any]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"A setting is written section.name=value. Received: {setting!r}")
        section, field = _find(path)
        changes.setdefault(section, {})[field] = _parse(path, _field_type(section, field), text)
    if "variant" in changes.get("model", {}):  # what was changed was another one
        own = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
        changes["model"] = {name: own[name] for name in SHAPE} | changes["model"]
    return _replace(config, changes)


def to_json(config: Config) -> str:
    """Writes a configuration as indented JSON; `from_json` reads it back."""
    values = dataclasses.asdict(config)
    if isinstance(config.model.variant, Variant):
        values["model"]["variant"] = files.to_dict(config.model.variant)
    return json.dumps(values, indent=2) + "\n"


def from_json(text: str) -> Config:
    """Reads what `to_json` wrote. Settings that are not in the text have their defaults.

    Raises:
        ValueError: unknown setting, a value of the wrong type or out of range.
    """
    changes: dict[str, dict[str, Any]] = {}
    sections = json.loads(text)
    if not isinstance(sections, dict):
        raise ValueError(f"A configuration is a JSON object of sections. Received: {sections!r}")
    for section, values in sections.items():
        if section not in _names(Config):
            raise ValueError(_unknown(section, section, _names(Config)))
        if not isinstance(values, dict):
            raise ValueError(f"{section} expects a JSON object of settings. Received: {values!r}")
        for field, value in values.items():
            path = f"{section}.{field}"
            _find(path)
            kind = _field_type(section, field)
            changes.setdefault(section, {})[field] = _convert(path, kind, value)
    return _replace(Config(), changes)


def to_table(config: Config) -> str:
    """Lays a configuration out for people, a setting per line, changed ones with their default."""
    lines = []
    for section in _names(Config):
        values = getattr(config, section)
        for field in dataclasses.fields(values):
            value = getattr(values, field.name)
            text = to_text(value)
            note = "" if value == field.default else f"  (default {field.default})"
            lines.append((f"{section}.{field.name}", text + note))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def differences(config: Config, other: Config) -> list[str]:
    """Settings in which two configurations differ, as "section.name=value (other value)".

    >>> differences(Config(), override(Config(), "train.epochs=3"))
    ['train.epochs=10 (3)']
    """
    found = []
    for section in _names(Config):
        values, others = getattr(config, section), getattr(other, section)
        for name in _names(type(values)):
            value, its = getattr(values, name), getattr(others, name)
            if value != its:
                found.append(f"{section}.{name}={to_text(value)} ({to_text(its)})")
    return found


def to_text(value: Any) -> str:
    """Writes the value of a setting for people.

    >>> to_text(("a", "b"))
    'a b'
    """
    if isinstance(value, Variant):
        return json.dumps(files.to_dict(value))
    return " ".join(value) if isinstance(value, tuple) else str(value)


def _replace(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    sections = {
        section: dataclasses.replace(getattr(config, section), **values)
        for section, values in changes.items()
    }
    return dataclasses.replace(config, **sections)


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _section_type(section: str) -> type:
    return typing.get_type_hints(Config)[section]


def _field_type(section: str, field: str) -> Any:
    return typing.get_type_hints(_section_type(section))[field]


def _find(path: str) -> tuple[str, str]:
    section, dot, field = path.partition(".")
    sections = _names(Config)
    if dot and section in sections:
        if field in _names(_section_type(section)):
            return section, field
        raise ValueError(_unknown(path, field, _names(_section_type(section))))
    if dot:
        raise ValueError(_unknown(path, section, sections))
    everything = {name: f"{s}.{name}" for s in sections for name in _names(_section_type(s))}
    close = difflib.get_close_matches(path, everything, n=1)
    raise ValueError(_unknown(path, "", sections, everything[close[0]] if close else ""))


def _unknown(path: str, part: str, known: Sequence[str], close: str = "") -> str:
    close = close or next(iter(difflib.get_close_matches(part, known, n=1)), "")
    hint = f"Did you mean {close!r}?" if close else f"Known: {', '.join(known)}."
    return f"No setting {path!r}. {hint}"


def _parse(path: str, kind: Any, text: str) -> Any:
    """Turns text from the command line into a value of the setting's type."""
    optional, kind = _strip_none(kind)
    if optional and text.lower() == "none":
        return None
    if typing.get_origin(kind) is tuple:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if kind is bool and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if kind in (int, float):
        try:
            return _convert(path, kind, kind(text))
        except ValueError:
            raise ValueError(f"{path} expects {kind.__name__}. Received: {text!r}") from None
    return _convert(path, kind, text)


def _convert(path: str, kind: Any, value: Any) -> Any:
    """Checks that a value has the setting's type; JSON's lists become tuples."""
    optional, kind = _strip_none(kind)
    if optional and value is None:
        return None
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"{path} is one of {choices}. Received: {value!r}")
        return value
    if kind == str | Variant:
        if isinstance(value, dict):
            return files.from_dict(value)
        kind = str
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{path} expects a list of strings. Received: {value!r}")
    if kind is float and type(value) is int:
        value = float(value)
    # bool is an int to isinstance; nan and inf would pass every later comparison or none.
    if type(value) is not kind or (kind is float and not abs(value) < float("inf")):
        raise ValueError(f"{path} expects {kind.__name__}. Received: {value!r}")
    return value


def _strip_none(kind: Any) -> tuple[bool, Any]:
    if isinstance(kind, types.UnionType):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        if len(inner) == 1:
            return True, inner[0]
    return False, kind
