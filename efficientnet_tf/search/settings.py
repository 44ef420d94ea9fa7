"""What a search is asked for, beside what it was begun with."""

import json
from collections.abc import Mapping
from typing import Any


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they are read back from JSON."""
    return json.loads(json.dumps(settings))


def changes(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """What differs, by name, in words.

    >>> changes({"seed": 0, "trials": 5}, {"seed": 1, "trials": 5})
    {'seed': 'seed 0, now 1'}
    """
    return {
        name: f"{name} {saved.get(name)!r}, now {settings.get(name)!r}"
        for name in {**saved, **settings}
        if saved.get(name) != settings.get(name)
    }
