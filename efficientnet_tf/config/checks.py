"""The checks that settings go through."""

import dataclasses
from collections.abc import Sequence
from typing import Any


def check(condition: bool, name: str, expected: str, value: object) -> None:
    """Raises ValueError unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}. Received: {name}={value!r}")


def within(section: str, config: Any, names: Sequence[str], low: float, high: float) -> None:
    """Checks low <= value < high of settings that may be None."""
    for name in names:
        value = getattr(config, name)
        expected = f"in [{low}, {high})" if high < float("inf") else f">= {low}"
        check(value is None or low <= value < high, f"{section}.{name}", expected, value)


def only_with(section: str, config: Any, used: bool, names: Sequence[str], when: str) -> None:
    """Refuses settings that would be ignored."""
    if used:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != defaults[name]:
            raise ValueError(
                f"{section}.{name} is used only with {when}. Received: {section}.{name}={value!r};"
                f" its default is {defaults[name]!r}"
            )
