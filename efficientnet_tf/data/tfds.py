"""Data sets of TensorFlow Datasets."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import tfrecord
from efficientnet_tf.data.records import SPLITS, Source


def open_tfds(config: DataConfig) -> Source:
    """Opens a data set of TensorFlow Datasets with the features `image` and `label`.

    Args:
        config: `source` is "tfds:NAME"; `data_dir`, `train_split`, `validation_split`,
            `test_split` and `holdout` are used too.

    Raises:
        ImportError: TensorFlow Datasets is not installed.
        ValueError: there is no such data set, it has no classes of pictures, or splits share
            pictures.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            f"data.source={config.source!r} needs TensorFlow Datasets, which is not installed:"
            " pip install tensorflow-datasets"
        ) from None
    name = config.source.partition(":")[2]
    try:
        builder = tfds.builder(name, data_dir=config.data_dir)
    except tfds.core.DatasetNotFoundError as reason:
        raise ValueError(
            f"TensorFlow Datasets has no data set {name!r} in"
            f" data_dir={config.data_dir or tfds.core.constants.DATA_DIR!r}:"
            f" {str(reason).strip().splitlines()[0]}"
        ) from None
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    label = features.get("label")
    if "image" not in features or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} must have the features image and label (a class)."
            f" Received: {', '.join(features)}"
        )
    builder.download_and_prepare()
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"{name!r} is kept as {builder.info.file_format.value}, which tf.data does not read."
            ' Prepare it again with file_format="tfrecord".'
        )
    skip = {"image": tfds.decode.SkipDecoding()}

    def first_label(split: str) -> int:
        dataset = builder.as_dataset(split=split, decoders=skip)
        return int(next(iter(dataset.take(1)))["label"])

    parts = _parts(builder, config, first_label)
    infos = {split: builder.info.splits[spec] for split, spec in parts.items()}
    _check_disjoint(parts, infos)

    files = {
        split: [
            tfrecord.RecordFile(part.filename, part.take, part.skip)
            for part in info.file_instructions
        ]
        for split, info in infos.items()
    }

    def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = builder.info.features.deserialize_example(serialized, decoders=skip)
        return example["image"], example["label"][tf.newaxis]

    names = tuple(label.names)
    return tfrecord.record_source(config.source, names, files, parse, multi_label=False)


def _parts(builder: Any, config: DataConfig, first_label: Callable[[str], int]) -> dict[str, str]:
    """Our splits to slices: those that are asked for, else those that there are, else held out.

    Unlabelled splits, whose labels are all -1, are not used.
    """
    splits = builder.info.splits
    asked = {split: getattr(config, f"{split}_split") for split in SPLITS}
    asked = {split: spec for split, spec in asked.items() if spec is not None}
    for split, spec in asked.items():
        try:
            count = splits[spec].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            raise ValueError(
                f"data.{split}_split={spec!r} is no part of {builder.name}. Splits:"
                f" {', '.join(f'{key} ({splits[key].num_examples})' for key in splits)}."
                f" {str(error).strip().splitlines()[0]}"
            ) from None
        if not count:
            raise ValueError(f"data.{split}_split={spec!r} has no pictures.")
    found = {
        split: split
        for split in SPLITS
        if split in splits and splits[split].num_examples and first_label(split) >= 0
    }
    found.update(asked)
    if "validation" not in asked and found.get("validation") == found.get("test"):
        found.pop("validation", None)  # only the test split was asked for: validate on another
    if "train" not in found:
        raise ValueError(
            f"{builder.name} has no train split. Splits: {', '.join(splits)}. Set data.train_split."
        )
    if "test" not in found and "validation" in found and "validation" not in asked:
        found["test"] = found.pop("validation")
    held_out = [split for split in ("test", "validation") if split not in found]
    if not held_out:
        return found
    share = config.holdout
    if share == 0 and "test" in held_out:
        raise ValueError(f"{builder.name} has no test split: set data.holdout > 0.")
    if share == 0:
        return {**found, "validation": found["test"]}
    if found["train"] != "train":
        raise ValueError(
            f"With data.train_split={found['train']!r}, set data.{held_out[0]}_split too:"
            f" {builder.name} has no {held_out[0]} split of its own."
        )
    end = splits["train"].num_examples
    for split in held_out:
        start = end - max(1, round(share * end))
        found[split] = f"train[{start}:{end}]"
        end = start
    found["train"] = f"train[:{end}]"
    return found


def _check_disjoint(parts: Mapping[str, str], infos: Mapping[str, Any]) -> None:
    """Refuses splits that share pictures.

    The released code trains tf_flowers on train[:70%] and evaluates it on train[30%:], and
    ImageNet's "minival" there is 98 % of the training pictures (`efficientnetv2/datasets.py`).
    """
    ranges = {
        split: [
            (each.filename, each.skip, each.skip + each.take) for each in info.file_instructions
        ]
        for split, info in infos.items()
    }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if one == "validation" and parts[one] == parts[other]:
            continue  # asked for: validate on the test split
        shared = sum(
            max(0, min(end, last) - max(start, first))
            for file, start, end in ranges[one]
            for name, first, last in ranges[other]
            if file == name
        )
        if shared:
            raise ValueError(
                f"{shared} pictures are in {one} ({parts[one]}) and in {other} ({parts[other]})."
                f" Set data.{one}_split and data.{other}_split to parts that do not overlap."
            )
