"""Where labelled pictures come from: one name in the configuration for every kind of source.

    digits                    scikit-learn's handwritten digits               data.arrays
    npz:PATH                  arrays in a NumPy file                          data.arrays
    fake, fake:1000x224       generated pictures, to measure and try out      data.arrays
    folder:PATH               class folders                                   data.folder
    csv:PATH                  a table of paths and labels                     data.tables
    tfds:NAME                 TensorFlow Datasets                             data.tfds
    tfrecord:PATH             what `scripts/prepare_data.py` writes           data.tfrecord
    imagenet:PATH             ImageNet's official TFRecord files              data.imagenet
    imagenet21k:PATH          ImageNet-21k's, with several labels a picture   data.imagenet

Every source has a train, a validation and a test split. Those that it lacks are set apart from the
training pictures, the same ones every time: which ones depends on names and counts alone, never on
a seed. Python arrays become a source by `data.arrays.from_arrays`.
"""

from collections.abc import Callable

from absl import logging

from efficientnet_tf.config import DataConfig
from efficientnet_tf.config.data import GIVEN
from efficientnet_tf.data import arrays, folder, imagenet, tables, tfds, tfrecord
from efficientnet_tf.data.records import SPLITS, Source, first_few, hold_out

__all__ = ["SPLITS", "Source", "hold_out", "open_source"]

_OPEN: dict[str, Callable[[DataConfig], Source]] = {
    "digits": arrays.open_digits,
    "npz": arrays.open_npz,
    "fake": arrays.open_fake,
    "folder": folder.open_folder,
    "csv": tables.open_csv,
    "tfds": tfds.open_tfds,
    "tfrecord": tfrecord.open_tfrecord,
    "imagenet": imagenet.open_imagenet,
    "imagenet21k": imagenet.open_imagenet21k,
}


def open_source(config: DataConfig) -> Source:
    """Opens the source that a configuration names.

    Args:
        config: `source`, `data_dir`, `train_split`, `validation_split`, `test_split`, `holdout`,
            `check_pictures` and `max_bad` are used.

    Raises:
        ValueError: the pictures cannot be trained on; the message says why.
        ImportError: an optional package is missing; the message says how to install it.
    """
    if config.source == GIVEN:
        raise ValueError(
            "These pictures were given in Python. Give them again (source=), or name another source"
            " (--data=folder:PATH)."
        )
    source = _OPEN[config.source.partition(":")[0]](config)
    logging.info(
        "%s: %d classes, %s",
        source.name,
        source.num_classes,
        ", ".join(f"{source.num_examples[split]} {split}" for split in SPLITS),
    )
    if source.bad:
        logging.warning(
            "%s: %d unreadable ones are left out: %s",
            source.name,
            len(source.bad),
            first_few(source.bad),
        )
    return source
