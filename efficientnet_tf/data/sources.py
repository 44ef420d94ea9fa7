"""Where labelled pictures come from: scikit-learn's digits, folders, TensorFlow Datasets.

A source gives records, which are cheap to shuffle, cut into shards and repeat, and a function that
turns a record into a picture; `pipeline` puts them together. Every source has a train, a validation
and a test split. Those that it lacks are set apart from the training pictures, the same ones every
time: which ones depends on names and counts alone, never on a seed.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import images

SPLITS = ("train", "validation", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_SHUFFLE_BUFFER = 16384  # records of a stream, which cannot be shuffled whole
_MOST_NAMED = 10


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled pictures in three splits.

    Attributes:
        name: as in the configuration.
        class_names: in the order of the labels.
        num_examples: of each of `SPLITS`.
        records: (split, seed) to a `tf.data.Dataset` of records: with seed None every record once,
            in a fixed order; with a seed endlessly, every pass in another order.
        decode: record to (image uint8 (height, width, 3), label int64 scalar), in TensorFlow.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: Mapping[str, int]
    records: Callable[[str, int | None], tf.data.Dataset]
    decode: Callable[..., tuple[tf.Tensor, tf.Tensor]]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def open_source(config: DataConfig) -> Source:
    """Opens the source that a configuration names.

    Args:
        config: `source`, `data_dir`, `holdout` and `check_pictures` are used.

    Raises:
        ValueError: the pictures cannot be trained on; the message says why.
        ImportError: an optional package is missing; the message says how to install it.
    """
    kind, _, rest = config.source.partition(":")
    if kind == "digits":
        source = _digits(config)
    elif kind == "folder":
        source = _folder(config, Path(rest).expanduser())
    else:
        source = _tfds(config, rest)
    logging.info(
        "%s: %d classes, %s",
        source.name,
        source.num_classes,
        ", ".join(f"{source.num_examples[split]} {split}" for split in SPLITS),
    )
    return source


def hold_out(names: Sequence[str], classes: Sequence[str], share: float) -> np.ndarray:
    """Chooses a share of every class by the hash of the names.

    Args:
        names: of the examples, each different.
        classes: name of each example's class.
        share: of each class that is chosen, rounded, at least one example.

    Returns:
        bool (len(names),): whether an example is chosen. The same for the same names, whatever
        their order.

    Raises:
        ValueError: a class would keep no example.
    """
    by_class: dict[str, list[tuple[bytes, int]]] = {}
    for index, (name, class_name) in enumerate(zip(names, classes, strict=True)):
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        by_class.setdefault(class_name, []).append((digest, index))
    chosen = np.zeros(len(names), bool)
    for class_name, members in by_class.items():
        count = max(1, round(share * len(members)))
        if count >= len(members):
            raise ValueError(
                f"Class {class_name!r} has {len(members)} pictures left to train on, too few to"
                f" hold out {count}. Add pictures, or give the data a test and a validation split."
            )
        for _, index in sorted(members)[:count]:
            chosen[index] = True
    return chosen


def _digits(config: DataConfig) -> Source:
    """scikit-learn's handwritten digits (E. Alpaydin, C. Kaynak, 1998): 1,797 pictures of 8x8."""
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    digits = datasets.load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 in the file
    pictures = np.repeat(gray[..., None], 3, axis=-1)
    names = [f"digits/{index}" for index in range(len(pictures))]
    labels = digits.target.astype(np.int64)
    class_names = tuple(str(digit) for digit in range(10))
    classes = [class_names[label] for label in labels]
    test = hold_out(names, classes, 0.2)
    parts = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    parts = _complete(parts, names, classes, config.holdout)
    return _in_memory("digits", class_names, pictures, labels, parts)


def _in_memory(name, class_names, pictures, labels, parts: Mapping[str, np.ndarray]) -> Source:
    """A source whose records are gathered from arrays: `parts` holds the rows of each split."""

    def records(split: str, seed: int | None) -> tf.data.Dataset:
        return _gather((pictures, labels), parts[split], seed)

    return Source(
        name=name,
        class_names=class_names,
        num_examples={split: len(parts[split]) for split in SPLITS},
        records=records,
        decode=lambda picture, label: (picture, label),
    )


def _folder(config: DataConfig, root: Path) -> Source:
    """Class folders, either below the root or below its train, validation and test folders."""
    if not root.is_dir():
        raise ValueError(f"data.source: there is no folder {str(root)!r}.")
    found = {}
    for split, folders in {
        "train": ("train",),
        "validation": ("validation", "val", "valid"),
        "test": ("test",),
    }.items():
        present = [root / folder for folder in folders if (root / folder).is_dir()]
        if len(present) > 1:
            raise ValueError(
                f"{root} has more than one {split} folder: {', '.join(p.name for p in present)}."
            )
        if present:
            found[split] = _class_folders(present[0])
    if "train" not in found:
        if found:
            raise ValueError(f"{root} has {', '.join(found)} but no train folder.")
        found = {"train": _class_folders(root)}
    class_names = _same_classes(root, found)

    names: list[str] = []
    labels: list[int] = []
    parts: dict[str, np.ndarray] = {}
    for split, classes in found.items():
        first = len(names)
        for label, class_name in enumerate(class_names):
            names += classes[class_name]
            labels += [label] * len(classes[class_name])
        parts[split] = np.arange(first, len(names))
    if config.check_pictures:
        _raise_unreadable(names)
    relative = [os.path.relpath(name, root) for name in names]
    classes_ = [class_names[label] for label in labels]
    parts = _complete(parts, relative, classes_, config.holdout)
    # Bytes, because a path need not be valid UTF-8.
    paths = np.array([os.fsencode(name) for name in names], object)
    return dataclasses.replace(
        _in_memory(config.source, class_names, paths, np.array(labels, np.int64), parts),
        decode=lambda path, label: (images.decode(tf.io.read_file(path)), label),
    )


def _class_folders(root: Path) -> dict[str, list[str]]:
    """Class name to the sorted paths of its pictures; hidden files and folders do not count."""
    classes = {}
    ignored: list[str] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        if folder.name.startswith(".") or folder.name == "__MACOSX":  # the latter from archives
            continue
        files = sorted(_files(folder))
        classes[folder.name] = [f for f in files if f.lower().endswith(EXTENSIONS)]
        ignored += [f for f in files if not f.lower().endswith(EXTENSIONS)]
    if not classes:
        raise ValueError(
            f"{root} has no class folders. Expected {root}/<class>/<picture>, or the same below"
            " train/ and test/."
        )
    empty = [name for name, files in classes.items() if not files]
    if len(empty) == len(classes):
        raise ValueError(f"{root} has no pictures. Pictures end in {', '.join(EXTENSIONS)}.")
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(classes)} class folders of {root} have no pictures:"
            f" {_first(empty)}. Remove them or fill them."
        )
    if ignored:
        endings = ", ".join(EXTENSIONS)
        message = "%d files are ignored, because pictures end in %s: %s"
        logging.warning(message, len(ignored), endings, _first(ignored))
    return classes


def _files(folder: Path) -> Iterator[str]:
    """Paths of the files at any depth, but for hidden ones ("._a.jpg", ".ipynb_checkpoints")."""
    for directory, below, files in os.walk(folder, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (os.path.join(directory, name) for name in files if not name.startswith("."))


def _same_classes(root: Path, found: Mapping[str, Mapping[str, list[str]]]) -> tuple[str, ...]:
    expected = found["train"]
    for split, classes in found.items():
        missing = sorted(set(expected) - set(classes))
        extra = sorted(set(classes) - set(expected))
        if missing or extra:
            raise ValueError(
                f"The classes of {root} differ between train and {split}."
                f" Only in train: {_first(missing) or 'none'}."
                f" Only in {split}: {_first(extra) or 'none'}."
            )
    if len(expected) < 2:
        raise ValueError(f"{root} has one class, {next(iter(expected))!r}. Expected at least two.")
    return tuple(sorted(expected))


def _raise_unreadable(paths: Sequence[str]) -> None:
    """Decodes every picture, and names those that cannot be."""
    sizes = iter(
        tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths]).map(
            lambda path: tf.size(images.decode(tf.io.read_file(path))),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    )
    bad = []
    for path in paths:
        try:
            next(sizes)  # an element that fails is used up: the next call gives the next one
        except tf.errors.OpError:
            bad.append(path)
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(paths)} pictures are empty, cut off or no pictures: {_first(bad)}."
            " Repair or remove them."
        )


def _first(items: Sequence[str]) -> str:
    rest = len(items) - _MOST_NAMED
    return ", ".join(items[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _complete(
    parts: Mapping[str, np.ndarray], names: Sequence[str], classes: Sequence[str], share: float
) -> dict[str, np.ndarray]:
    """Adds the splits that are missing, by holding out training examples.

    A validation split without a test split is the test split, as for ImageNet.
    """
    parts = dict(parts)
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    for split in ("test", "validation"):
        if split in parts:
            continue
        if share == 0:
            if split == "test":
                raise ValueError("The data has no test split, and data.holdout is 0. Set it > 0.")
            parts[split] = parts["test"]
            continue
        train = parts["train"]
        chosen = hold_out([names[i] for i in train], [classes[i] for i in train], share)
        parts["train"], parts[split] = train[~chosen], train[chosen]
    return parts


def _gather(arrays: tuple[np.ndarray, ...], rows: np.ndarray, seed: int | None) -> tf.data.Dataset:
    """Rows of arrays, once in order (seed None) or endlessly, every pass in another order."""
    # Tensors made here are captured; made inside the map they would be copied into the graph.
    tensors = tuple(tf.constant(array[rows]) for array in arrays)
    count = len(rows)
    if seed is None:
        return tf.data.Dataset.range(count).map(lambda i: tuple(tf.gather(t, i) for t in tensors))

    def record(position: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # A pure function of (seed, position): any position can be started from, on any machine.
        row = tf.random.experimental.index_shuffle(
            position % count,
            seed=tf.stack([tf.constant(seed, tf.int64), position // count]),
            max_index=tf.constant(count - 1, tf.int64),
        )
        return tuple(tf.gather(tensor, row) for tensor in tensors)

    return tf.data.Dataset.range(tf.int64.max).map(record)


def _tfds(config: DataConfig, name: str) -> Source:
    """A data set of TensorFlow Datasets with the features `image` and `label`."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            f"data.source={config.source!r} needs TensorFlow Datasets, which is not installed:"
            " pip install tensorflow-datasets"
        ) from None
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
    parts = _tfds_parts(builder, config.holdout, lambda split: _first_label(builder, tfds, split))

    def records(split: str, seed: int | None) -> tf.data.Dataset:
        read = tfds.ReadConfig(
            shuffle_seed=seed, shuffle_reshuffle_each_iteration=True, try_autocache=False
        )
        dataset = builder.as_dataset(
            split=parts[split],
            shuffle_files=seed is not None,
            read_config=read,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        dataset = dataset.map(lambda example: (example["image"], example["label"]))
        if seed is None:
            return dataset
        return dataset.shuffle(_SHUFFLE_BUFFER, seed, reshuffle_each_iteration=True).repeat()

    return Source(
        name=config.source,
        class_names=tuple(label.names),
        num_examples={s: builder.info.splits[parts[s]].num_examples for s in SPLITS},
        records=records,
        decode=lambda encoded, label: (images.decode(encoded), label),
    )


def _first_label(builder: Any, tfds: Any, split: str) -> int:
    skip = {"image": tfds.decode.SkipDecoding()}
    example = next(iter(builder.as_dataset(split=split, decoders=skip).take(1)))
    return int(example["label"])


def _tfds_parts(builder: Any, share: float, first_label: Callable[[str], int]) -> dict[str, str]:
    """Our splits to TensorFlow Datasets' slices. Unlabelled splits (all -1) are not used."""
    splits = builder.info.splits
    found = {
        split: split
        for split in SPLITS
        if split in splits and splits[split].num_examples and first_label(split) >= 0
    }
    if "train" not in found:
        raise ValueError(f"{builder.name} has no train split. Splits: {', '.join(splits)}.")
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    end = splits["train"].num_examples
    for split in ("test", "validation"):
        if split in found:
            continue
        if share == 0:
            if split == "test":
                raise ValueError(f"{builder.name} has no test split: set data.holdout > 0.")
            found[split] = found["test"]
            continue
        start = end - max(1, round(share * end))
        found[split] = f"train[{start}:{end}]"
        end = start
    found["train"] = f"train[:{end}]"
    return found
