"""Draws the papers' figures from this package's numbers, and what training did or will do.

python scripts/plots.py family --out=family.png
python scripts/plots.py curves runs/a runs/b --out=curves.png
python scripts/plots.py schedule imagenet-v2-s-paper --out=schedule.png

family: accuracy against parameters and multiply-adds. curves: of up to six runs, from their
metrics.jsonl. schedule: learning rate, moving average, picture size and regularisation of a recipe.
Exit code: 0, or 2 when nothing could be done.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_OUT = flags.DEFINE_string(
    "out", None, "File to write: .png, .pdf or .svg; by default the figure's name and .png."
)
_SET = flags.DEFINE_multi_string(
    "set", [], "schedule: a setting, as in scripts/train.py: --set=train.epochs=100"
)
_PICTURES = flags.DEFINE_integer(
    "pictures",
    None,
    "schedule: how many pictures are trained on; by default ImageNet's for its recipes, and as"
    " many as the recipe's data has for others.",
    lower_bound=1,
)
_USAGE = "Usage: plots.py family | curves RUN… | schedule RECIPE [--out=FILE]"
# Of the released code: all but minival (google/automl efficientnetv2/datasets.py).
_IMAGENET = {"imagenet": 1_256_144, "imagenet21k": 12_720_275}


def main(argv: Sequence[str]) -> int:
    """Draws one figure."""
    kind, *names = argv[1:] or [""]
    fits = {"family": not names, "curves": bool(names), "schedule": len(names) == 1}
    if not fits.get(kind, False):
        return fail(_USAGE)
    if kind != "schedule" and (_SET.value or _PICTURES.value):
        return fail("--set and --pictures are for schedule")
    from efficientnet_tf.figures import drawing

    out = _OUT.value or f"{kind}.png"
    try:
        drawing.check_path(out)
        drawing.save(_FIGURES[kind](names), out)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    print(out)
    return 0


def _family(_):
    from efficientnet_tf.figures import family

    return family.family()


def _curves(folders: Sequence[str]):
    from efficientnet_tf.figures import training

    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(folders)
    if len(set(names)) < len(names):
        raise ValueError("Each run is drawn once. Received one twice.")
    histories = [training.read_history(folder) for folder in folders]
    return training.curves(dict(zip(names, histories, strict=True)))


def _schedule(names: Sequence[str]):
    from efficientnet_tf import config as config_lib
    from efficientnet_tf import recipes
    from efficientnet_tf.data.sources import open_source
    from efficientnet_tf.figures import training

    config = config_lib.override(recipes.get(names[0]), *_SET.value)
    if config.data.batch_size is None:
        raise ValueError(
            f"{names[0]} chooses its batch size when it starts: give one, such as"
            " --set=data.batch_size=64"
        )
    pictures = _PICTURES.value or _IMAGENET.get(names[0].partition("-")[0])
    if pictures is None:
        pictures = open_source(config.data).num_examples["train"]
    return training.schedules(config, pictures)


_FIGURES = {"family": _family, "curves": _curves, "schedule": _schedule}


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
