"""Shows what networks look at: a row for each picture, a column for each model.

python scripts/explain.py cat.jpg dog.jpg --model=runs/pets --out=sheet.png
python scripts/explain.py cat.jpg --model=efficientnet-b0 --model=efficientnetv2-s --class=tabby

Colours say where the evidence for the most likely class, or for --class, is. Exit code: 0 when
every picture is shown, 1 when some files could not be read (the others are shown all the same), 2
when nothing could be done.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_MODEL = flags.DEFINE_multi_string(
    "model",
    ["efficientnetv2-s"],
    "A column: name of a network, e.g. efficientnet-b0, path of a .keras or .weights.h5 file, or"
    " folder of a run. Repeat it for more.",
)
_WEIGHTS = flags.DEFINE_multi_string(
    "weights",
    None,
    "For names of networks: tag of published weights, e.g. imagenet21k-ft1k, or path of a"
    ' checkpoint; by default "imagenet". "none" is random weights. Once for all names, or once for'
    " each of them, in their order.",
)
_LABELS = flags.DEFINE_string(
    "labels", None, "File of class names of all models; by default each model's own."
)
_CLASS = flags.DEFINE_string(
    "class", None, "The class to explain: name, wnid or number; by default the most likely one."
)
_METHOD = flags.DEFINE_enum(
    "method",
    "cam",
    ["cam", "gradcam", "gradcam++"],
    "cam is for networks that end in global average pooling and one dense layer; the others are for"
    " all, and for any --layer.",
)
_LAYER = flags.DEFINE_string(
    "layer", None, "Name of the layer whose maps are taken; by default the last one."
)
_OUT = flags.DEFINE_string("out", "sheet.png", "File to write: .png, .pdf or .svg.")


def main(argv: Sequence[str]) -> int:
    """Explains the files named on the command line."""
    if len(argv) < 2:
        return fail("no picture. Usage: explain.py IMAGE… [--model=NAME]… [--out=sheet.png]")
    from efficientnet_tf.figures import drawing, explanation  # takes seconds

    try:
        drawing.check_path(_OUT.value)
        sources = _sources()
        pictures, errors = _read(argv[1:])
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        if not pictures:
            return 2
        columns = [(_title(*source), _explain(source, pictures)) for source in sources]
        drawing.save(explanation.sheet(pictures, columns, _METHOD.value), _OUT.value)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    print(_OUT.value)
    return 1 if errors else 0


def _sources() -> list[tuple[str, str | None]]:
    """(model, weights) of each column."""
    from efficientnet_tf import classifier

    named = [model for model in _MODEL.value if classifier.file_of(model) is None]
    tags = _WEIGHTS.value or ["imagenet"]
    if len(tags) not in (1, len(named)) or (_WEIGHTS.value and not named):
        raise ValueError(
            "--weights is given once, or once for each of the networks given by name."
            f" Received: {len(tags)} for {len(named)} names"
        )
    if len(tags) == 1:
        tags = tags * len(named)
    if "none" in tags:
        print("WARNING: random weights: what is shown means nothing.", file=sys.stderr)
    of_name = iter(tags)
    return [(model, next(of_name) if model in named else None) for model in _MODEL.value]


def _title(model: str, weights: str | None) -> str:
    path = Path(model)
    name = path.parent.name if path.name == "best.keras" else path.name
    return name if weights in (None, "imagenet") else f"{name}, {Path(weights).name}"


def _read(paths: Sequence[str]):
    from efficientnet_tf.data.images import read_image

    pictures, errors = [], []
    for path in paths:
        try:
            pictures.append((Path(path).name, read_image(path)))
        except OSError as error:
            errors.append(f"{path}: {error.strerror or error}")
        except ValueError as error:
            errors.append(error)
    return pictures, errors


def _explain(source: tuple[str, str | None], pictures):
    from efficientnet_tf import classifier
    from efficientnet_tf.figures import explanation

    model, weights = source
    opened = classifier.load(model, None if weights == "none" else weights, labels=_LABELS.value)
    try:
        return explanation.explain(
            opened,
            [picture for _, picture in pictures],
            _CLASS.value,
            _LAYER.value,
            _METHOD.value,
        )
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from None


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
