"""Pictures in memory: arrays, NumPy files, scikit-learn's digits, generated pictures."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data.records import (
    SPLITS,
    Source,
    complete,
    first_few,
    gather,
    hold_out,
    warn_untrained,
)

_FAKE = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")
_FAKE_POOL = 16  # different pictures
_FAKE_COUNT = 10_000


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    holdout: float = 0.1,
    name: str = "arrays",
) -> Source:
    """Makes a source of arrays, to be given to `train.run.train`.

    Args:
        images: uint8 (n, height, width, 3), or gray (n, height, width) or (n, height, width, 1).
        labels: integers (n,) or (n, 1), from 0; or zeros and ones (n, classes), where a row may
            have any number of ones (then `multi_label`, unless every row has exactly one).
        class_names: in the order of the labels; None for "0", "1", ...
        validation: images of the same shape and labels; None to hold training pictures out.
        test: likewise.
        holdout: share of the training pictures for each split that is missing. 0: the test split
            validates.
        name: of the source, for messages.

    Raises:
        ValueError: a type, a shape or a label does not fit.
    """
    given = {"train": (images, labels), "validation": validation, "test": test}
    pairs = {split: pair for split, pair in given.items() if pair is not None}
    pictures = {split: _pictures(pair[0], split, name) for split, pair in pairs.items()}
    shapes = {split: part.shape[1:] for split, part in pictures.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{name}: pictures must have one shape in all splits. Received: {shapes}")
    marks = {
        split: _labels(pair[1], len(pictures[split]), split, name) for split, pair in pairs.items()
    }
    if len({part.shape[1:] for part in marks.values()}) > 1:
        raise ValueError(
            f"{name}: labels must have one shape in all splits. Received:"
            f" { {split: part.shape for split, part in marks.items()} }"
        )
    everything = np.concatenate(list(marks.values()))
    multi_label = everything.ndim == 2 and bool((everything.sum(axis=1) != 1).any())
    if everything.ndim == 2:
        num_classes = everything.shape[1]
        if not multi_label:
            marks = {split: part.argmax(axis=1) for split, part in marks.items()}
            everything = everything.argmax(axis=1)
    else:
        num_classes = len(class_names) if class_names is not None else int(everything.max()) + 1
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
    _check_classes(names, num_classes, marks["train"], everything, class_names is None, name)

    starts = np.cumsum([0, *(len(part) for part in marks.values())])
    parts = {s: np.arange(starts[i], starts[i + 1]) for i, s in enumerate(marks)}
    if multi_label:
        classes = ["all classes"] * len(everything)
    else:
        classes = [names[label] for label in everything]
    rows = [f"{name}/{row}" for row in range(len(everything))]
    parts = complete(parts, rows, classes, holdout)
    if multi_label:
        before, after = (marks["train"].any(axis=0), everything[parts["train"]].any(axis=0))
        warn_untrained([names[label] for label in np.flatnonzero(before & ~after)])
    joined = np.concatenate(list(pictures.values())) if len(pictures) > 1 else pictures["train"]
    numbers = np.concatenate([np.arange(len(part)) for part in marks.values()])
    return _in_memory(name, names, joined, everything, numbers, parts, multi_label)


def open_npz(config: DataConfig) -> Source:
    """Opens a NumPy file of arrays, see `from_arrays` for their types and shapes.

    They are called x_train and y_train and, where there are such, x_test, y_test, x_validation,
    y_validation and class_names.

    Args:
        config: `source` is "npz:PATH"; `holdout` is used too.

    Raises:
        ValueError: the file or what is in it does not fit.
    """
    path = paths.of(config.source.partition(":")[2])
    if not path.is_file():
        raise ValueError(f"data.source: there is no file {str(path)!r}.")
    try:
        with paths.fetched(path) as local, np.load(local, allow_pickle=False) as file:
            content = {key: file[key] for key in file.files}
    except (ValueError, OSError, AttributeError) as error:
        raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from None
    keys = [f"{axis}_{split}" for split in SPLITS for axis in "xy"]
    unknown = sorted(set(content) - {*keys, "class_names"})
    pairs = {}
    for split in SPLITS:
        pair = [content.get(f"{axis}_{split}") for axis in "xy"]
        if (pair[0] is None) != (pair[1] is None) or (split == "train" and pair[0] is None):
            raise ValueError(
                f"{path}: expected x_{split} and y_{split}. Received: {', '.join(content)}"
            )
        pairs[split] = None if pair[0] is None else tuple(pair)
    if unknown:
        raise ValueError(f"{path}: expected {', '.join(keys)}, class_names. Received: {unknown}")
    names = content.get("class_names")
    return from_arrays(
        *pairs["train"],
        class_names=None if names is None else [str(each) for each in names],
        validation=pairs["validation"],
        test=pairs["test"],
        holdout=config.holdout,
        name=config.source,
    )


def open_digits(config: DataConfig) -> Source:
    """scikit-learn's handwritten digits (E. Alpaydin, C. Kaynak, 1998): 1,797 pictures of 8x8.

    Args:
        config: `holdout` is used.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise ImportError(
            "The digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    digits = datasets.load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 0..16 in the file
    names = [f"digits/{index}" for index in range(len(gray))]
    labels = digits.target.astype(np.int64)
    class_names = tuple(str(digit) for digit in range(10))
    classes = [class_names[label] for label in labels]
    test = hold_out(names, classes, 0.2)
    parts = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    parts = complete(parts, names, classes, config.holdout)
    pictures = np.repeat(gray[..., None], 3, axis=-1)
    return _in_memory("digits", class_names, pictures, labels, np.arange(len(labels)), parts)


def open_fake(config: DataConfig) -> Source:
    """Generated pictures of noise, the same ones every time, that cost next to nothing to read.

    Args:
        config: `source` is "fake" or "fake:CLASSESxPIXELS" or "fake:CLASSESxPIXELSxPICTURES". The
            default is 1000 classes, 224 pixels, 10,000 pictures to train on; a tenth as many
            validate, and test. Up to 16 classes look different.

    Raises:
        ValueError: the name does not fit.
    """
    text = config.source.partition(":")[2] or "1000x224"
    match = _FAKE.fullmatch(text)
    classes, size, count = (int(n or _FAKE_COUNT) for n in match.groups()) if match else (0, 0, 0)
    if classes < 2 or size < 1 or count < 1:
        raise ValueError(
            "data.source must be fake, fake:CLASSESxPIXELS or fake:CLASSESxPIXELSxPICTURES, with at"
            f" least 2 classes. Received: {config.source!r}"
        )
    noise = np.random.default_rng(0).integers(0, 256, (_FAKE_POOL, size, size, 3), np.uint8)
    with tf.device("CPU"):
        pool = tf.constant(noise)
    fewer = max(1, count // 10)
    numbers = np.arange(count + 2 * fewer)
    parts = np.split(numbers, (count, count + fewer))
    records, row = gather((numbers % classes, numbers), dict(zip(SPLITS, parts, strict=True)))
    return Source(
        name=config.source,
        class_names=tuple(map(str, range(classes))),
        num_examples={"train": count, "validation": fewer, "test": fewer},
        records=records,
        row=row,
        decode=lambda label, number: (tf.gather(pool, label % _FAKE_POOL), label),
        describe=lambda label, number: tf.strings.format("fake/{}, class {}", (number, label)),
        checked=True,
    )


def _in_memory(
    name: str,
    class_names: tuple[str, ...],
    pictures: np.ndarray,
    labels: np.ndarray,
    numbers: np.ndarray,
    parts: Mapping[str, np.ndarray],
    multi_label: bool = False,
) -> Source:
    """A source whose records are rows of arrays: `parts` holds those of each split.

    `numbers` tell people which picture it is: its row where it was given.
    """

    def decode(
        picture: tf.Tensor, label: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if pictures.shape[-1] == 1:  # grows here, so that memory holds one channel
            picture = tf.repeat(picture, 3, axis=-1)
        return picture, tf.cast(label, tf.float32) if multi_label else label

    def describe(picture: tf.Tensor, label: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        return tf.strings.format(name + "/{}, class {}", (number, label))

    records, row = gather((pictures, labels, numbers), parts)
    return Source(
        name=name,
        class_names=class_names,
        num_examples={split: len(parts[split]) for split in SPLITS},
        records=records,
        row=row,
        decode=decode,
        describe=describe,
        multi_label=multi_label,
        checked=True,
    )


def _pictures(images: np.ndarray, split: str, name: str) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    fits = images.ndim == 4 and images.shape[-1] in (1, 3) and images.size > 0
    if images.dtype != np.uint8 or not fits:
        raise ValueError(
            f"{name}: {split} pictures must be uint8 (n, height, width, 3), or gray with one or no"
            f" channel, in [0, 255]. Received: {images.dtype} {images.shape}"
        )
    return images


def _labels(labels: np.ndarray, count: int, split: str, name: str) -> np.ndarray:
    """int64 (n,), or uint8 (n, classes) of zeros and ones."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise ValueError(
            f"{name}: {split} labels must be ({count},) or ({count}, classes), one row a picture."
            f" Received: {labels.shape}"
        )
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(f"{name}: {split} labels of several columns must be zeros and ones.")
        return labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name}: {split} labels must be integers. Received: {labels.dtype}")
    return labels.astype(np.int64)


def _check_classes(
    names: tuple[str, ...],
    num_classes: int,
    train: np.ndarray,
    everything: np.ndarray,
    counted: bool,
    name: str,
) -> None:
    """Labels in range, classes with pictures. `counted`: the names came from the labels."""
    if len(names) != num_classes or len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(
            f"{name}: expected {max(num_classes, 2)} different class names. Received {len(names)}:"
            f" {first_few(names)}"
        )
    if everything.ndim == 1 and (everything.min() < 0 or everything.max() >= num_classes):
        wrong = np.unique(everything[(everything < 0) | (everything >= num_classes)])
        raise ValueError(
            f"{name}: expected labels from 0 to {num_classes - 1}. Received:"
            f" {first_few([str(label) for label in wrong])}"
        )
    if train.ndim == 1:
        present = np.bincount(train, minlength=num_classes) > 0
    else:
        present = train.any(axis=0)
    empty = [names[label] for label in np.flatnonzero(~present)]
    if not empty:
        return
    if counted:
        raise ValueError(
            f"{name}: {len(empty)} of {num_classes} classes have no training pictures:"
            f" {first_few(empty)}. Labels count from 0; give class_names if this is meant."
        )
    logging.warning("%s: classes without training pictures: %s", name, first_few(empty))
