"""Shows what networks are trained on.

python scripts/show_augmentation.py cat.jpg --out=operations.png
python scripts/show_augmentation.py cat.jpg dog.jpg --recipe=imagenet-v2-s-paper --out=stages.png
python scripts/show_augmentation.py --recipe=small-progressive --data=folder:flowers

Without --recipe, a picture under each operation of AutoAugment and RandAugment, by magnitude. With
it, a batch of each stage of the run, from the pictures, from --data, or from scikit-learn's two
photographs. Exit code: 0, or 2 when nothing could be done.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_OUT = flags.DEFINE_string("out", "augmentation.png", "File to write: .png, .pdf or .svg.")
_RECIPE = flags.DEFINE_string("recipe", None, "Recipe of scripts/train.py whose stages are shown.")
_SET = flags.DEFINE_multi_string(
    "set", [], "Setting of the recipe, as in scripts/train.py: --set=data.magnitude=15"
)
_DATA = flags.DEFINE_string(
    "data", None, "With --recipe: pictures as in scripts/train.py, e.g. folder:PATH or digits."
)
_COUNT = flags.DEFINE_integer("count", 8, "With --recipe: pictures of a batch.", lower_bound=1)
_MAGNITUDES = flags.DEFINE_list(
    "magnitudes", None, "Without --recipe: the columns, by default 0,2,4,6,8,10,15,20,28."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Without --recipe: pixels of the picture; 224 if not given.", lower_bound=16
)
_BUG_COMPAT = flags.DEFINE_boolean(
    "bug_compat", None, "Without --recipe: operations with the released code's errors."
)


def main(argv: Sequence[str]) -> int:
    """Draws the sheet."""
    alone = {
        "set": _SET.value,
        "data": _DATA.value,
        "count": flags.FLAGS["count"].present,
    }
    other = {
        "magnitudes": _MAGNITUDES.value,
        "image_size": _IMAGE_SIZE.value,
        "bug_compat": _BUG_COMPAT.value,
    }
    for name, value in (other if _RECIPE.value else alone).items():
        if value:
            return fail(f"--{name} is used only {'without' if _RECIPE.value else 'with'} --recipe")
    if _DATA.value and len(argv) > 1:
        return fail("either pictures or --data")
    if not _RECIPE.value and len(argv) > 2:
        return fail("one picture, or --recipe. Usage: show_augmentation.py IMAGE [--out=FILE]")
    from efficientnet_tf.figures import drawing  # takes seconds

    try:
        drawing.check_path(_OUT.value)
        figure = _stages(argv[1:]) if _RECIPE.value else _operations(argv[1:])
        drawing.save(figure, _OUT.value)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    print(_OUT.value)
    return 0


def _operations(paths: Sequence[str]):
    from efficientnet_tf.figures import augmentation

    _, pictures = _pictures(paths)
    magnitudes = augmentation.MAGNITUDES
    if _MAGNITUDES.value:
        magnitudes = tuple(float(text) for text in _MAGNITUDES.value)
    return augmentation.operations(
        pictures[-1],
        magnitudes,
        image_size=_IMAGE_SIZE.value or 224,
        bug_compat=bool(_BUG_COMPAT.value),
    )


def _stages(paths: Sequence[str]):
    from efficientnet_tf import config as config_lib
    from efficientnet_tf import recipes
    from efficientnet_tf.data.sources import open_source
    from efficientnet_tf.figures import augmentation

    config = config_lib.override(recipes.get(_RECIPE.value), *_SET.value)
    if _DATA.value:
        config = config_lib.override(config, f"data.source={_DATA.value}")
        source = open_source(config.data)
    else:
        source = augmentation.from_pictures(*_pictures(paths))
    return augmentation.stages(config, source, _COUNT.value)


def _pictures(paths: Sequence[str]):
    """Names and pixels of picture files, or of scikit-learn's photographs."""
    if paths:
        from efficientnet_tf.data.images import read_image

        return [Path(path).stem for path in paths], [read_image(path) for path in paths]
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise ImportError(
            "Name a picture; without one, scikit-learn's photographs are shown:"
            ' pip install "efficientnet_tf[train]"'
        ) from None
    return ["china", "flower"], [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
