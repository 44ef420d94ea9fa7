"""ImageNet and ImageNet-21k in the TFRecord files that the released code reads.

The layouts and the parts that validate are those of `efficientnetv2/datasets.py` in google/automl:
of ImageNet's 1024 training files the first 20 are "minival", which is never trained on, and the
validation files are the test split. Of ImageNet-21k's 2048 files the first 16 are the test split,
and the next 4 minival. Where there are fewer files, the same share of them is taken, but at least
one.
"""

import dataclasses
import re

import tensorflow as tf
from absl import logging

from efficientnet_tf import labels as labels_lib
from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data.records import Source, first_few
from efficientnet_tf.data.tfrecord import count_all, parse_example, record_source
from efficientnet_tf.paths import AnyPath

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.tfrecord)?$")
_MINIVAL = 20 / 1024
_MINIVAL_21K, _TEST_21K = 4 / 2048, 16 / 2048


def open_imagenet(config: DataConfig) -> Source:
    """Opens files `train-00000-of-01024` and `validation-00000-of-00128`.

    Args:
        config: `source` is "imagenet:PATH"; `max_bad` is used too. With `holdout` 0 all training
            files are trained on, and the test split validates; its size does not count otherwise.

    Raises:
        ValueError: files are missing, or too many are cut off.
    """
    root = paths.of(config.source.partition(":")[2])
    train = _files(root, config.max_bad, "train-")
    test = _files(root, config.max_bad, "validation-")
    held = _share(_MINIVAL, train, root) if config.holdout else 0
    parts = {"train": train[held:], "validation": train[:held], "test": test}
    names = tuple(label.name for label in labels_lib.imagenet_labels())
    return _open(config, parts, names, parse_example, multi_label=False)


def open_imagenet21k(config: DataConfig) -> Source:
    """Opens files `imagenet21k-...-00000-of-02048`, or else `train-...`, with several labels.

    Args:
        config: `source` is "imagenet21k:PATH"; `holdout` and `max_bad` are used as for
            `open_imagenet`.

    Raises:
        ValueError: files are missing, or too many are cut off.
    """
    root = paths.of(config.source.partition(":")[2])
    files = _files(root, config.max_bad, "imagenet21k", "train-")
    tested = _share(_TEST_21K, files, root)
    held = tested + (_share(_MINIVAL_21K, files, root) if config.holdout else 0)
    parts = {"train": files[held:], "validation": files[tested:held], "test": files[:tested]}
    if not parts["train"]:
        raise ValueError(f"{root} has {len(files)} files, too few for three splits.")
    # Their names are read from a label file (see `efficientnet_tf.labels`), if anyone needs them.
    names = tuple(str(label) for label in range(labels_lib.NUM_IMAGENET21K))
    return _open(config, parts, names, _parse_21k, multi_label=True)


def _open(config, parts, class_names, parse, multi_label: bool) -> Source:
    paths = [path for part in parts.values() for path in part]
    files, cut = count_all(paths, config.max_bad)
    by_path = {file.path: file for file in files}
    found = {split: [by_path[path] for path in part] for split, part in parts.items()}
    found["validation"] = found["validation"] or found["test"]
    source = record_source(config.source, class_names, found, parse, multi_label)
    empty = [split for split, count in source.num_examples.items() if not count]
    if empty:
        raise ValueError(f"{config.source} has no records in {', '.join(empty)}.")
    return dataclasses.replace(source, bad=cut)


def _parse_21k(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Content and labels, from 0, of an example with the keys id, image and labels."""
    features = {
        "image": tf.io.FixedLenFeature((), tf.string),
        "labels": tf.io.VarLenFeature(tf.int64),
    }
    example = tf.io.parse_single_example(serialized, features)
    return example["image"], example["labels"].values


def _files(root: AnyPath, max_bad: float, *prefixes: str) -> list[str]:
    """The files NAME-00000-of-00100 of a split, in order; the first prefix that there is counts."""
    for prefix in prefixes:
        pattern = f"{prefix}*-of-*"
        found = sorted(filter(_NAME.fullmatch, map(str, root.glob(pattern))))
        if found:
            break
    else:
        raise ValueError(
            f"There are no files {root}/{pattern}, as train-00000-of-01024. What"
            " scripts/prepare_data.py wrote is tfrecord:PATH, class folders are folder:PATH."
        )
    totals = {_NAME.fullmatch(path)[3] for path in found}
    if len(totals) > 1:
        several = ", ".join(sorted(totals))
        raise ValueError(f"{root} has {prefix}* files of several sets: of {several}.")
    total = int(min(totals))
    present = {int(_NAME.fullmatch(path)[2]) for path in found}
    if len(present) != len(found):
        raise ValueError(f"{root} has {prefix}* files of the same number. Move one set away.")
    missing = [f"{number:05d}" for number in range(total) if number not in present]
    if missing:
        message = f"{root} lacks {len(missing)} of {total} {prefix}* files: {first_few(missing)}"
        if len(missing) > max_bad * total:
            raise ValueError(
                f"{message}. Copy them too, or allow more than {max_bad:.2%} (data.max_bad)."
            )
        logging.warning("%s", message)
    return found


def _share(share: float, files: list[str], root: AnyPath) -> int:
    if len(files) < 2:
        raise ValueError(
            f"{root} has one training file: none can be held out. Expected at least two."
        )
    return max(1, round(share * len(files)))
