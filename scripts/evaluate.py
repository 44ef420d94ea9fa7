"""Scores a model on labelled pictures, prepared the way its weights were evaluated.

python scripts/evaluate.py runs/flowers
python scripts/evaluate.py efficientnetv2-s --data=imagenet:/data/imagenet --report=page.html
python scripts/evaluate.py model.keras --data=folder:pictures --split=all --json

Exit code: 0 when every picture was scored, 1 when some could not be read (the others are scored all
the same), 2 when nothing could be done: wrong usage, no such model, classes that do not fit.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence

from absl import app, flags
from command_line import fail, parse_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "For the name of a network: tag of published weights, e.g. imagenet21k-ft1k, or path of a "
    'checkpoint in any published format; by default "imagenet".',
)
_LABELS = flags.DEFINE_string(
    "labels",
    None,
    "File of the model's class names in index order, `name` or `wnid<TAB>name` a line. By default "
    "labels.txt beside the model, or the names of the classes that the weights were trained on.",
)
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Pictures, as in scripts/train.py: folder:PATH, csv:PATH, tfds:NAME, imagenet:PATH, digits, … "
    "By default those that a run was trained with.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its files; its own default if not given."
)
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["train", "validation", "test", "all"],
    'Which pictures. What the data lacks is set apart from "train"; "all" has every picture.',
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures at a time.", lower_bound=1)
_REPORT = flags.DEFINE_string("report", None, "HTML page to write, e.g. page.html.")
_WORST = flags.DEFINE_integer("worst", 24, "Mistakes to show on the page.", lower_bound=0)
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object instead of text.")
_SHOWN = 10  # classes


def main(argv: Sequence[str]) -> int:
    """Scores the model named on the command line."""
    if len(argv) != 2:
        return fail("one model. Usage: evaluate.py RUN|FILE.keras|NAME --data=KIND:PATH")
    model, run = argv[1], None
    from efficientnet_tf import paths  # takes seconds: after the usage is known to be right

    try:
        folder = paths.of(model)
        if folder.is_dir():
            model, run = str(folder / "best.keras"), folder / "config.json"
            if not (folder / "best.keras").is_file():
                return fail(f"{argv[1]} is no run: it has no best.keras")
        if _DATA.value is None and not (run and run.is_file()):
            return fail("which pictures? Give --data, e.g. --data=folder:PATH")
        page = paths.of(_REPORT.value or ".")
        if not isinstance(page, paths.Remote) and not page.absolute().parent.is_dir():
            return fail(f"--report={_REPORT.value}: there is no such folder")
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    from efficientnet_tf.labels import printable
    from efficientnet_tf.page import document

    try:
        evaluation, settings = _evaluate(model, _data_config(run))
        if _REPORT.value:
            document.write(_REPORT.value, _page(evaluation, settings))
    except (ImportError, OSError, ValueError) as error:
        return fail(error)
    _print_json(evaluation, settings) if _JSON.value else _print_text(evaluation)
    for name in evaluation.unreadable:
        print(f"error: {printable(name)}: cannot be read, and was left out", file=sys.stderr)
    return 1 if evaluation.unreadable else 0


def _data_config(run):
    """The pictures that the flags name, or else the run's."""
    from efficientnet_tf import config

    if _DATA.value is not None:
        return config.DataConfig(source=_DATA.value, data_dir=_DATA_DIR.value)
    data = config.from_json(run.read_text(encoding="utf-8")).data
    return dataclasses.replace(data, data_dir=_DATA_DIR.value or data.data_dir)


def _evaluate(model: str, config):
    from efficientnet_tf import evaluate, predict
    from efficientnet_tf.data.sources import open_source

    classifier = predict.load(model, _weights(model), labels=_LABELS.value)
    if _SPLIT.value == evaluate.ALL:
        # With a holdout of 0 the test split would be the validation split too, and count twice.
        config = dataclasses.replace(config, holdout=config.holdout or 0.1)
        source = evaluate.together(open_source(config))
    else:
        source = open_source(config)
    evaluation = evaluate.evaluate(
        classifier.model,
        source,
        _SPLIT.value,
        classifier.preprocessing,
        _BATCH_SIZE.value,
        labels=classifier.labels,
        worst=_WORST.value if _REPORT.value else 0,
        max_bad=config.max_bad,
        progress=_show if sys.stderr.isatty() else None,
    )
    settings = {
        "model": model,
        "weights": _weights(model),
        "data": config.source,
        "split": _SPLIT.value,
        **dataclasses.asdict(classifier.preprocessing),
    }
    return evaluation, settings


def _show(done: int, count: int) -> None:
    print(f"\r{done:,} of {count:,} pictures", end="\n" if done == count else "", file=sys.stderr)


def _weights(model: str) -> str | None:
    from efficientnet_tf import classifier

    if _WEIGHTS.value is None and classifier.file_of(model) is None:
        return "imagenet"
    return _WEIGHTS.value


def _page(evaluation, settings) -> str:
    from efficientnet_tf.page import document
    from efficientnet_tf.page import evaluation as page

    return page.evaluation_page(
        title=f"{settings['model']} on {settings['data']}, {settings['split']}",
        evaluation=evaluation,
        settings=settings,
        environment=document.environment(),
    )


def _print_json(evaluation, settings) -> None:
    classes = [
        {"name": name, "count": int(count), "score": float(score)}
        for name, count, score in zip(
            evaluation.class_names, evaluation.class_counts, evaluation.class_scores, strict=True
        )
        if count and not math.isnan(score)
    ]
    names = ("count", "loss", "top1", "top5", "mean_average_precision", "unreadable")
    result = {name: getattr(evaluation, name) for name in names}
    print(json.dumps({**settings, **result, "classes": classes}))


def _print_text(evaluation) -> None:
    from efficientnet_tf.labels import printable
    from efficientnet_tf.page.evaluation import result_line, worst_classes

    print(result_line(evaluation))
    indices = worst_classes(evaluation)
    what = "average precision" if evaluation.multi_label else "accuracy"
    print(f"\nThe {min(_SHOWN, len(indices))} of {len(indices)} classes with the lowest {what}:")
    for index in indices[:_SHOWN]:
        score, count = evaluation.class_scores[index], evaluation.class_counts[index]
        print(f"  {score:7.2%}  of {count:6,}  {printable(evaluation.class_names[index])}")
    if _REPORT.value:
        print(f"\nThe page is {_REPORT.value}.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
