"""Picture files with labels, however they were listed: checked, split and made a source."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths as paths_lib
from efficientnet_tf import stores
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import images
from efficientnet_tf.data.records import (
    SPLITS,
    Source,
    complete,
    first_few,
    gather,
    multi_hot,
    warn_untrained,
)
from efficientnet_tf.paths import Remote


@dataclasses.dataclass(frozen=True)
class Listing:
    """Picture files and what is on them.

    Attributes:
        names: of the files, relative to where they were listed: these decide what is held out.
        paths: of the files.
        labels: of each picture, as indices; exactly one, but for `multi_label`.
        class_names: in the order of the labels.
        parts: rows of each split; of each of `SPLITS` after `split`.
        multi_label: whether a picture may have several labels.
    """

    names: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[tuple[int, ...]]
    class_names: tuple[str, ...]
    parts: Mapping[str, np.ndarray]
    multi_label: bool = False


def split(listing: Listing, holdout: float) -> Listing:
    """Adds the splits that a listing lacks, see `records.complete`.

    Pictures with one label are held out class by class, others altogether.

    Raises:
        ValueError: examples cannot be held out.
    """
    if listing.multi_label:
        classes = ["all classes"] * len(listing.names)
    else:
        classes = [listing.class_names[label] for (label,) in listing.labels]
    parts = complete(listing.parts, listing.names, classes, holdout)
    if listing.multi_label:
        trained = {label for row in parts["train"] for label in listing.labels[row]}
        warn_untrained([n for i, n in enumerate(listing.class_names) if i not in trained])
    return dataclasses.replace(listing, parts=parts)


def source(listing: Listing, config: DataConfig) -> Source:
    """A source of the files of a listing.

    Args:
        listing: what there is.
        config: `source`, `holdout`, `check_pictures` and `max_bad` are used.

    Raises:
        ValueError: too many pictures cannot be read, or too few are left.
    """
    listing = split(listing, config.holdout)
    bad: list[int] = []
    if config.check_pictures:
        bad = list(unreadable(listing.paths))
        listing = without(listing, bad, config.max_bad)
    num_classes = len(listing.class_names)
    # Bytes, because a path need not be valid UTF-8.
    paths = np.array([os.fsencode(path) for path in listing.paths], object)
    most = max(len(labels) for labels in listing.labels)
    table = np.full((len(paths), most), -1, np.int64)
    for row, labels in enumerate(listing.labels):
        table[row, : len(labels)] = labels
    if not listing.multi_label:
        table = table[:, 0]

    read = reader(listing.paths)

    def encoded(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if listing.multi_label:
            label = multi_hot(label, num_classes)
        return read(path), label

    def decode(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        content, label = encoded(path, label)
        return images.decode(content), label

    records, row = gather((paths, table), listing.parts)
    return Source(
        name=config.source,
        class_names=listing.class_names,
        num_examples={part: len(listing.parts[part]) for part in SPLITS},
        records=records,
        row=row,
        decode=decode,
        encoded=encoded,
        describe=lambda path, label: path,
        multi_label=listing.multi_label,
        checked=config.check_pictures,
        bad=tuple(listing.paths[row] for row in bad),
    )


def reader(paths: Sequence[str]) -> Callable[[tf.Tensor], tf.Tensor]:
    """What reads files in `tf.data`: TensorFlow, or Python where it does not know their scheme.

    Args:
        paths: of the files, which are in one place.

    Returns:
        Scalar string of a path to that of the content. Python's cannot be sent to the workers of a
        tf.data service.
    """
    first = paths_lib.of(paths[0])
    if not isinstance(first, Remote) or stores.read_by_tensorflow(first.scheme):
        return tf.io.read_file

    def in_python(url: bytes | np.ndarray) -> bytes:  # an array where it is run eagerly
        name = url.item() if isinstance(url, np.ndarray) else url
        return paths_lib.of(os.fsdecode(name)).read_bytes()

    def content(path: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(in_python, [path], tf.string), ())

    return content


def unreadable(paths: Sequence[str]) -> dict[int, str]:
    """Decodes every picture.

    Args:
        paths: of the files.

    Returns:
        Row to reason, of those that are empty, cut off, missing or no pictures.
    """
    logging.info("Checking %d pictures (data.check_pictures=false leaves this out).", len(paths))
    dataset = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in paths])
    read = reader(paths)
    sizes = iter(
        dataset.map(
            lambda path: tf.size(images.decode(read(path))),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    )
    bad = {}
    for row in range(len(paths)):
        try:
            next(sizes)  # an element that fails is used up: the next call gives the next one
        except tf.errors.OpError as error:
            bad[row] = reason(error)
    return bad


def reason(error: tf.errors.OpError) -> str:
    """What an error says, on one line, without the name of the operation that failed."""
    text = error.message.splitlines()[0].rpartition("}} ")[2]
    return text.partition(" [Op:")[0].strip() or type(error).__name__


def too_many(bad: Sequence[str], total: int, most: float) -> None:
    """Stops where the share of unreadable pictures is too large.

    Raises:
        ValueError: naming them.
    """
    if len(bad) > most * total:
        raise ValueError(
            f"{len(bad)} of {total} pictures are empty, cut off or no pictures: {first_few(bad)}."
            f" Repair or remove them, or allow more than {most:.2%} (data.max_bad)."
        )


def without(listing: Listing, bad: Sequence[int], most: float) -> Listing:
    """Takes unreadable pictures out of the splits, whose other members stay where they are.

    Args:
        listing: with all splits.
        bad: rows of the unreadable ones.
        most: largest share of them.

    Raises:
        ValueError: they are too many, or a split or a class has no other training pictures.
    """
    too_many([listing.paths[row] for row in bad], len(listing.paths), most)
    parts = {name: np.setdiff1d(rows, bad) for name, rows in listing.parts.items()}
    empty = [name for name, rows in parts.items() if not len(rows)]
    left = {label for row in parts["train"] for label in listing.labels[row]}
    trained = {label for row in listing.parts["train"] for label in listing.labels[row]}
    gone = [listing.class_names[label] for label in sorted(trained - left)]
    if empty or gone:
        raise ValueError(
            "Without the unreadable pictures nothing is left of"
            f" {first_few(empty + [f'class {name!r}' for name in gone])}."
        )
    return dataclasses.replace(listing, parts=parts)
