"""Trains a network, exports it, and proves that the exported files give its answers.

python scripts/train.py
python scripts/train.py --recipe=small --data=folder:flowers --set=train.epochs=20
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported

from absl import app, flags, logging

from efficientnet_tf import config as config_lib
from efficientnet_tf import recipes
from efficientnet_tf.data import pipeline
from efficientnet_tf.export import artifacts
from efficientnet_tf.train import run
from efficientnet_tf.train import strategy as strategy_lib

_RECIPE = flags.DEFINE_enum("recipe", "digits", list(recipes.RECIPES), "Run to start from.")
_DATA = flags.DEFINE_string(
    "data", None, "Pictures instead of the recipe's: digits, folder:PATH or tfds:NAME."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its files; its own default if not given."
)
_SET = flags.DEFINE_multi_string(
    "set", [], "Change a setting, e.g. --set=train.epochs=3 --set=data.flip=true."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder to write to; runs/<recipe>-<time> if not given."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether --workdir may hold an earlier run.")
_STRATEGY = flags.DEFINE_enum(
    "strategy", "auto", ["auto", "cpu", "mirrored", "tpu"], "Devices to train on."
)
_TPU = flags.DEFINE_bool("tpu", False, "Whether to train on a TPU; the same as --strategy=tpu.")
_TPU_NAME = flags.DEFINE_string(
    "tpu_name", "", "Name or address of the TPU; empty for a local one."
)


def main(argv):
    """Trains, exports, verifies, prints."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags start with --. Received: {argv[1]!r}")
    if _TPU.value and _STRATEGY.value not in ("auto", "tpu"):
        raise app.UsageError(f"--tpu contradicts --strategy={_STRATEGY.value}.")
    settings = list(_SET.value)
    if _DATA.value is not None:
        settings.insert(0, f"data.source={_DATA.value}")
    if _DATA_DIR.value is not None:
        settings.insert(0, f"data.data_dir={_DATA_DIR.value}")
    try:
        config = config_lib.override(recipes.RECIPES[_RECIPE.value], *settings)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    workdir = _WORKDIR.value or f"runs/{_RECIPE.value}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        _run(config, workdir)
    except (ValueError, ImportError, OSError, RuntimeError, FloatingPointError) as error:
        logging.debug("Where it happened:", exc_info=True)
        sys.exit(f"error: {error}\n(--verbosity=1 shows where in the code.)")
    except KeyboardInterrupt:
        print(f"\nInterrupted. What was finished, if anything, is in {workdir}.")
        sys.exit(130)


def _run(config, workdir):
    strategy = strategy_lib.create("tpu" if _TPU.value else _STRATEGY.value, _TPU_NAME.value)
    result = run.train(config, workdir, strategy=strategy, overwrite=_OVERWRITE.value)
    reports = artifacts.export(
        result.model,
        Path(workdir) / run.EXPORT,
        result.source.class_names,
        lambda: pipeline.pictures(
            result.source, "test", config.model.image_size, config.data.batch_size
        ),
    )
    print(
        f"\nBest of {config.train.epochs} epochs: {result.best_epoch}"
        f" (validation accuracy {result.validation.accuracy:.2%}), {result.seconds:.0f} s."
        f" On {reports[0].count} test pictures:\n\n{artifacts.table(reports)}\n\n"
        f"Everything is in {workdir}."
    )


if __name__ == "__main__":
    app.run(main)
