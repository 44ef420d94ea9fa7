"""Writes pictures as TFRecord files, which are read faster than single files.

python scripts/prepare_data.py --data=folder:flowers --to=flowers-records
python scripts/train.py --recipe=small --data=tfrecord:flowers-records

Every picture is checked; unreadable ones are listed in quarantine.csv. When it is stopped, the same
command goes on.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is imported

from absl import app, flags

from efficientnet_tf.data import prepare

_DATA = flags.DEFINE_string("data", None, "What to write: folder:PATH or csv:PATH.", required=True)
_TO = flags.DEFINE_string("to", None, "Folder to write to.", required=True)
_SHARDS = flags.DEFINE_integer(
    "shards", None, "Files of training pictures; files of about 128 MiB if not given.", 1
)
_WORKERS = flags.DEFINE_integer("workers", None, "Files at a time; one per core if not given.", 1)
_HOLDOUT = flags.DEFINE_float(
    "holdout", 0.1, "Share of the training pictures for each split that is missing.", 0.0, 0.5
)
_MAX_BAD = flags.DEFINE_float(
    "max_bad", 0.01, "Largest share of unreadable pictures to go on with.", 0.0, 1.0
)
_SEED = flags.DEFINE_integer("seed", 0, "Decides which picture comes into which file.", 0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Whether to replace other data in --to.")


def main(argv):
    """Runs the command line."""
    if len(argv) > 1:
        raise app.UsageError(f"Flags start with --. Received: {argv[1]!r}")
    try:
        manifest = prepare.prepare(
            _DATA.value,
            _TO.value,
            shards=_SHARDS.value,
            workers=_WORKERS.value,
            holdout=_HOLDOUT.value,
            max_bad=_MAX_BAD.value,
            seed=_SEED.value,
            overwrite=_OVERWRITE.value,
            progress=_show,
        )
    except (ValueError, OSError) as error:
        hint = " (--overwrite)" if isinstance(error, FileExistsError) else ""
        sys.exit(f"\nerror: {error}{hint}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from here.")
    counts = ", ".join(f"{count} {split}" for split, count in manifest["num_examples"].items())
    print(f"\n{_TO.value}: {len(manifest['class_names'])} classes, {counts}")
    if manifest["quarantined"]:
        print(f"{manifest['quarantined']} unreadable pictures: {_TO.value}/{prepare.QUARANTINE}")


def _show(progress):
    line = (
        f"{progress.pictures}/{progress.total} pictures, {progress.shards}/{progress.num_shards}"
        f" files, {progress.bad} unreadable, {progress.rate:.0f} pictures/s"
    )
    print(line, end="\r" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    app.run(main)
