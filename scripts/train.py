"""Trains a network, exports it, and proves that the exported files give its answers.

python scripts/train.py
python scripts/train.py --recipe=finetune --data=folder:flowers --weights=imagenet
python scripts/train.py --recipe=small --data=folder:flowers --set=train.epochs=20

A run that was stopped goes on when it is started again with the same settings and --workdir. Exit
code: 0 when all is done, 1 after an error, 75 when SIGTERM stopped it and it was saved. On several
machines it is started once on each, see `scripts/launch.py` and --strategy=multiworker.
"""

import os
import sys
import time
from typing import get_args

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported

from absl import app, flags, logging
from command_line import end_at_once

from efficientnet_tf import config as config_lib
from efficientnet_tf import paths, recipes
from efficientnet_tf.classifier import Classifier, origin
from efficientnet_tf.export import artifacts, pictures, verify
from efficientnet_tf.labels import Label
from efficientnet_tf.train import run, workdir, workers
from efficientnet_tf.train import strategy as strategy_lib
from efficientnet_tf.train.interruption import Interrupted, at_once

_RECIPE = flags.DEFINE_string("recipe", "digits", "Run to start from; see --list.")
_LIST = flags.DEFINE_bool("list", False, "Whether to print the recipes' names and stop.")
_DATA = flags.DEFINE_string(
    "data",
    None,
    "Pictures instead of the recipe's: digits, folder:PATH, csv:PATH, tfds:NAME, imagenet:PATH,"
    " tfrecord:PATH, npz:PATH or fake.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its files; its own default if not given."
)
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Weights to start from instead of the recipe's: a tag or the path of a file."
)
_AUGMENT = flags.DEFINE_string(
    "augment",
    None,
    "Augmentation instead of the recipe's: none, autoaugment, randaugment, or a layer of Keras"
    " (keras:RandAugment) or KerasCV (keras_cv:RandAugment).",
)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Whether two runs give the same bits, which is slower on GPUs."
)
_TEACHER = flags.DEFINE_string(
    "teacher",
    None,
    "Noisy Student: a run's folder, a file, or VARIANT:WEIGHTS that labels --unlabeled.",
)
_UNLABELED = flags.DEFINE_string(
    "unlabeled", None, "Noisy Student: pictures to learn from besides, named as for --data."
)
_DISTILL = flags.DEFINE_string(
    "distill", None, "Distillation: a teacher, as for --teacher, to answer like."
)
_SET = flags.DEFINE_multi_string(
    "set", [], "Change a setting, e.g. --set=train.epochs=3 --set=data.flip=true."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder to write to; runs/<recipe>-<time> if not given."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether --workdir may hold an earlier run.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Whether to write scalars for TensorBoard.")
_STRATEGY = flags.DEFINE_enum(
    "strategy", "auto", get_args(strategy_lib.StrategyName), "Devices to train on."
)
_START_TIMEOUT = flags.DEFINE_float(
    "start_timeout", 300.0, "Seconds that --strategy=multiworker waits for all workers.", 1.0
)
_TPU = flags.DEFINE_bool("tpu", False, "Whether to train on a TPU; the same as --strategy=tpu.")
_TPU_NAME = flags.DEFINE_string(
    "tpu_name", "", "Name or address of the TPU; empty for a local one."
)
_TPU_ZONE = flags.DEFINE_string("tpu_zone", None, "Google Cloud zone of a TPU that is named.")
_TPU_PROJECT = flags.DEFINE_string(
    "tpu_project", None, "Google Cloud project of a TPU that is named."
)


def main(argv):
    """Trains, exports, verifies, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags start with --. Received: {argv[1]!r}")
    if _LIST.value:
        print("\n".join(recipes.RECIPES))
        return
    if _TPU.value and _STRATEGY.value not in ("auto", "tpu"):
        raise app.UsageError(f"--tpu contradicts --strategy={_STRATEGY.value}.")
    named = {
        "data.source": _DATA.value,
        "data.data_dir": _DATA_DIR.value,
        "model.weights": _WEIGHTS.value,
        "data.augment": _AUGMENT.value,
        "student.teacher": _TEACHER.value,
        "student.unlabeled": _UNLABELED.value,
        "student.distill": _DISTILL.value,
        "train.deterministic": "true" if _DETERMINISTIC.value else None,
    }
    settings = [f"{name}={value}" for name, value in named.items() if value is not None]
    try:
        config = config_lib.override(recipes.get(_RECIPE.value), *settings, *_SET.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    folder = _WORKDIR.value or f"runs/{_RECIPE.value}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        with at_once():  # what is trained is saved first
            _run(config, folder)
    except Interrupted:
        without = ", without --overwrite," if _OVERWRITE.value else ""
        end_at_once(
            f"\nStopped and saved. The same command with --workdir={folder}{without} goes on.",
            os.EX_TEMPFAIL,
        )
    except (ValueError, ImportError, OSError, RuntimeError, FloatingPointError) as error:
        logging.debug("Where it happened:", exc_info=True)
        sys.exit(f"error: {error}\n(--verbosity=1 shows where in the code.)")
    except KeyboardInterrupt:
        end_at_once(f"\nInterrupted. The same command with --workdir={folder} goes on.", 130)


def _run(config, folder):
    strategy = strategy_lib.create(
        "tpu" if _TPU.value else _STRATEGY.value,
        _TPU_NAME.value,
        tpu_zone=_TPU_ZONE.value,
        tpu_project=_TPU_PROJECT.value,
        start_timeout=_START_TIMEOUT.value,
    )
    if strategy_lib.worker(strategy).count > 1 and not _WORKDIR.value:
        raise ValueError("Several workers need --workdir: all must use the same folder.")
    result = run.train(
        config,
        folder,
        strategy=strategy,
        overwrite=_OVERWRITE.value,
        tensorboard=_TENSORBOARD.value,
    )
    if result is not None:
        _export(result, folder)
    with workers.explained(strategy):
        workers.wait(strategy)  # so that all end well or none, and can be started again together


def _export(result, folder):
    exported = paths.of(folder) / workdir.EXPORT
    paths.remove_tree(exported)  # of a run that was started again after its end
    labels = tuple(Label("", name) for name in result.source.class_names)
    reports = artifacts.export(
        Classifier(result.model, result.rule, labels),
        exported,
        ("saved_model", "tflite"),
        pictures.from_source(result.source, "test", None, max_bad=result.config.data.max_bad),
        origin=origin(folder),
    )
    print(
        f"\nBest of {len(result.history)} epochs: {result.best_epoch}"
        f" (validation accuracy {result.validation.accuracy:.2%}), {result.seconds:.0f} s."
        f" On {reports[0].count} test pictures:\n\n{verify.table(reports)}\n\n"
        f"Everything is in {folder}; {workdir.SUMMARY} shows it."
    )


if __name__ == "__main__":
    app.run(main)
