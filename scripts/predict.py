"""Says what pictures show: `python scripts/predict.py cat.jpg --model=efficientnetv2-s`.

Exit code: 0 when every picture got its answer, 1 when some files could not be read (the others are
answered all the same), 2 when nothing could be done: wrong usage, no such model, bad weights.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_MODEL = flags.DEFINE_string(
    "model",
    "efficientnetv2-s",
    "Name of the network, e.g. efficientnet-b0, path of a .keras file, or folder of a run.",
)
_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Tag of published weights, e.g. imagenet21k-ft1k, or path of a checkpoint in any published "
    'format; by default "imagenet". "none" is random weights, whose answers mean nothing.',
)
_LABELS = flags.DEFINE_string(
    "labels",
    None,
    "File of class names in index order, `name` or `wnid<TAB>name` a line. By default labels.txt "
    "beside a .keras file, or ImageNet's names; ImageNet-21k needs its published file.",
)
_TOP = flags.DEFINE_integer("top", 5, "How many classes to name for each picture.", lower_bound=1)
_JSON = flags.DEFINE_boolean(
    "json",
    False,
    'Print one JSON object per picture and line: {"file": "a.jpg", "classes": [{"index": 281, '
    '"wnid": "n02123045", "name": "tabby", "score": 0.9}], "error": null}.',
)


def main(argv: Sequence[str]) -> int:
    """Classifies the files named on the command line."""
    if len(argv) < 2:
        return fail("no picture. Usage: predict.py IMAGE… [--model=NAME] [--weights=TAG]")
    from efficientnet_tf import classifier, predict  # seconds: after the usage is known to be right

    weights = _WEIGHTS.value
    failures = 0
    try:
        if weights is None and classifier.file_of(_MODEL.value) is None:
            weights = "imagenet"
        elif weights == "none":
            weights = None
            print("WARNING: random weights: the answers below mean nothing.", file=sys.stderr)
        model, preprocessing, labels = predict.load(_MODEL.value, weights, labels=_LABELS.value)
        answers = predict.classify_files(argv[1:], model, preprocessing, _TOP.value, labels=labels)
        for answer in answers:
            failures += answer.error is not None
            _print_json(answer) if _JSON.value else _print_text(answer)
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    return 1 if failures else 0


def _print_json(answer) -> None:
    classes = [dataclasses.asdict(scored) for scored in answer.classes]
    print(json.dumps({"file": answer.path, "classes": classes, "error": answer.error}), flush=True)


def _print_text(answer) -> None:
    from efficientnet_tf.labels import printable

    if answer.error:
        print(f"error: {printable(answer.error)}", file=sys.stderr)
        return
    print(printable(answer.path))
    for scored in answer.classes:
        names = map(printable, filter(None, [scored.wnid, scored.name]))
        print("", f"{scored.score:7.2%}", *names, sep="  ")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
