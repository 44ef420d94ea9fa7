"""Networks in files: JSON with the stages in the official notation."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from efficientnet_tf.arch.blocks import BlockArgs
from efficientnet_tf.arch.tables import Variant
from efficientnet_tf.writing import whole

SUFFIX = ".json"
VERSION = 1
_FORMAT = "efficientnet_tf variant"


def write(variant: Variant, path: str | os.PathLike) -> None:
    """Writes a network that `build`, `count` and all commands take in place of a name.

    Args:
        variant: to write.
        path: of the file, which ends in ".json"; what is there is replaced.

    Raises:
        ValueError: the path has another ending.
        OSError: it cannot be written.
    """
    if not is_path(path):
        raise ValueError(f"The file of a variant ends in {SUFFIX}. Received: {os.fspath(path)!r}")
    with whole(pathlib.Path(path).expanduser()) as file:
        file.write_text(json.dumps(to_dict(variant), indent=2) + "\n", encoding="utf-8")


def read(path: str | os.PathLike) -> Variant:
    """Reads what `write` wrote.

    Args:
        path: of the file.

    Raises:
        ValueError: it is no such file, of a later version, or holds something that is no network.
        OSError: it cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:  # also of JSON and of UTF-8
        raise ValueError(f"{path}: {error}") from None


def is_path(variant: object) -> bool:
    """Whether something stands for a file of `write`, and is no name of a variant."""
    return isinstance(variant, (str, os.PathLike)) and os.fspath(variant).endswith(SUFFIX)


def to_dict(variant: Variant) -> dict[str, Any]:
    """Turns a variant into what JSON can hold; `from_dict` makes it a variant again."""
    values: dict[str, Any] = {"format": _FORMAT, "version": VERSION}
    for field in dataclasses.fields(variant):
        values[field.name] = getattr(variant, field.name)
    values["blocks"] = [block.encode() for block in variant.blocks]
    return values


def from_dict(values: Mapping[str, Any]) -> Variant:
    """Makes a variant of what `to_dict` returned. Fields that have a default may be missing.

    Raises:
        ValueError: a field that is missing, not known, or of the wrong type or value.
    """
    if not isinstance(values, Mapping) or values.get("format") != _FORMAT:
        raise ValueError(f'A variant is a JSON object with "format": "{_FORMAT}".')
    version = values.get("version")
    if version != VERSION:
        raise ValueError(f"Variants of version {VERSION} can be read. Received: {version!r}")
    kinds = get_type_hints(Variant)
    given = {name: value for name, value in values.items() if name not in ("format", "version")}
    for name in given:
        if name not in kinds:
            raise ValueError(f"A variant has no field {name!r}. Fields: {', '.join(kinds)}.")
    for field in dataclasses.fields(Variant):
        if field.name in given:
            given[field.name] = _value(field.name, kinds[field.name], given[field.name])
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"The variant has no {field.name!r}.")
    return Variant(**given)


def _value(name: str, kind: Any, value: Any) -> Any:
    if name == "blocks":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"blocks must be a list of block strings. Received: {value!r}")
        return tuple(BlockArgs.parse(item) for item in value)
    if choices := get_args(kind):
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}. Received: {name}={value!r}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    # bool is an int to isinstance; nan and inf would pass every later comparison or none.
    if type(value) is not kind or (kind is float and not abs(value) < float("inf")):
        raise ValueError(f"{name} must be {kind.__name__}. Received: {name}={value!r}")
    return value
