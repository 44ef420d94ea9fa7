"""Named training runs as data; nothing here imports TensorFlow.

Start from one and change it: `override(get("digits"), "train.epochs=3")`, or on the command line
`--recipe=digits --set=train.epochs=3`.
"""

import difflib

from efficientnet_tf.config import Config
from efficientnet_tf.recipes import imagenet, small, transfer

RECIPES: dict[str, Config] = {**small.RECIPES, **transfer.RECIPES, **imagenet.RECIPES}


def get(name: str) -> Config:
    """Returns the recipe of a name.

    >>> get("digits").data.source
    'digits'

    Raises:
        ValueError: there is none; the message has the nearest one, and all names.
    """
    if name in RECIPES:
        return RECIPES[name]
    typed = name.lower().replace("_", "-")
    close = [recipe for recipe in RECIPES if typed and recipe.startswith(typed)]
    close = close or difflib.get_close_matches(typed, RECIPES, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"No recipe {name!r}. {hint}Recipes: {', '.join(RECIPES)}.")


__all__ = ["RECIPES", "get"]
