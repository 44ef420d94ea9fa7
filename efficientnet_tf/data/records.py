"""What a source of labelled pictures is, and how its records are ordered, split and checked.

A source gives records, which are cheap to shuffle, cut into shards and repeat, and functions that
turn a record into a picture. Training goes through the records pass after pass without an end. The
order of each pass is a pure function of the seed and of the pass's number, so that a run can go on
from any position, and the number of threads changes nothing.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.labels import check_class_name, printable

SPLITS = ("train", "validation", "test")
_MOST_NAMED = 10
_SHUFFLE_BUFFER = 16384  # records of a stream, which cannot be shuffled whole
_GRAPH_SEED = 1  # any number that never changes


@dataclasses.dataclass(frozen=True)
class Source:
    """Labelled pictures in three splits.

    Attributes:
        name: as in the configuration.
        class_names: in the order of the labels.
        num_examples: of each of `SPLITS`.
        records: (split, seed, start=0) to a `tf.data.Dataset` of records, each a tuple: with seed
            None every record once, in a fixed order; with a seed endlessly, every pass in another
            order. `start` is the number of records that are left out at the front, as those that a
            run has already used.
        decode: record to (image uint8 (height, width, 3), label), in TensorFlow; label is an int64
            scalar, or with `multi_label` float32 (classes,) of zeros and ones. A record that is no
            complete picture or has no valid label raises `tf.errors.InvalidArgumentError`.
        encoded: record to (content of a picture file as scalar string, label), for those who decode
            only a part of the picture; None where pictures are not kept as files.
        describe: record to a scalar string that names it to people, in TensorFlow.
        multi_label: whether a picture may have several labels, or none.
        soft: whether the label of a training picture is its probability of each class instead,
            float32 (classes,). Such a source is there to be trained on only.
        row: (split, position in its fixed order as int64 scalar) to the record there, in
            TensorFlow, which may be used several times; None where records can only be read one
            after the other.
        checked: whether every record is known to decode and to have a valid label.
        bad: names of the pictures that were found unreadable and left out.

    Raises:
        ValueError: a class has a name that cannot be used.
    """

    name: str
    class_names: tuple[str, ...]
    num_examples: Mapping[str, int]
    records: Callable[..., tf.data.Dataset]
    decode: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    encoded: Callable[..., tuple[tf.Tensor, tf.Tensor]] | None = None
    describe: Callable[..., tf.Tensor] = lambda *_: tf.constant("a picture")
    multi_label: bool = False
    soft: bool = False
    row: Callable[[str, tf.Tensor], tuple[tf.Tensor, ...]] | None = None
    checked: bool = False
    bad: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks the names of the classes, which go into files of labels and pages."""
        for name in self.class_names:
            check_class_name(name, f"{self.name}: a class")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


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


def complete(
    parts: Mapping[str, np.ndarray], names: Sequence[str], classes: Sequence[str], share: float
) -> dict[str, np.ndarray]:
    """Adds the splits that are missing, by holding out training examples.

    A validation split without a test split is the test split, as for ImageNet.

    Args:
        parts: rows of each split that there is, "train" among them.
        names: of all examples.
        classes: name of each example's class.
        share: of the training examples for each missing split. 0: the test split validates.

    Returns:
        Rows of each of `SPLITS`.

    Raises:
        ValueError: examples cannot be held out.
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


def warn_untrained(classes: Sequence[str]) -> None:
    """Names the classes of which every picture was held out, if there are any.

    Where pictures have several labels, no share of each class can be held out.
    """
    if classes:
        logging.warning(
            "%d classes have no training pictures, because all were held out: %s. Choose the splits"
            " yourself, or another data.holdout.",
            len(classes),
            first_few(classes),
        )


def gather(
    arrays: tuple[np.ndarray, ...], parts: Mapping[str, np.ndarray]
) -> tuple[Callable[..., tf.data.Dataset], Callable[[str, tf.Tensor], tuple[tf.Tensor, ...]]]:
    """Records out of arrays in memory, any of which can be reached at once.

    Args:
        arrays: of equal length; a record is one row of each.
        parts: rows of each split.

    Returns:
        (`Source.records`, `Source.row`).
    """
    # Tensors made here are captured; made inside a map they would be copied into the graph. On the
    # CPU, where tf.data runs.
    with tf.device("CPU"):
        tensors = tuple(tf.constant(array) for array in arrays)
        rows = {split: tf.constant(part, tf.int64) for split, part in parts.items()}

    def row(split: str, position: tf.Tensor) -> tuple[tf.Tensor, ...]:
        index = tf.gather(rows[split], position)
        return tuple(tf.gather(tensor, index) for tensor in tensors)

    def records(split: str, seed: int | None, start: int = 0) -> tf.data.Dataset:
        count = len(parts[split])
        if seed is None:
            return tf.data.Dataset.range(start, count).map(lambda position: row(split, position))
        return shuffled(count, seed, start).map(lambda position: row(split, position))

    return records, row


def shuffled(count: int, seed: int, start: int = 0) -> tf.data.Dataset:
    """Numbers from 0 to count - 1, pass after pass without an end, every pass in another order.

    Args:
        count: numbers of a pass.
        seed: of the order.
        start: how many are left out at the front.

    Returns:
        A dataset of int64 scalars.
    """

    def number(position: tf.Tensor) -> tf.Tensor:
        return tf.random.experimental.index_shuffle(
            position % count,
            seed=tf.stack([tf.constant(seed, tf.int64), position // count]),
            max_index=tf.constant(count - 1, tf.int64),
        )

    return tf.data.Dataset.range(start, tf.int64.max).map(number)


def passes(
    one_pass: Callable[[tf.Tensor | None], tf.data.Dataset],
    count: int,
    seed: int | None,
    start: int = 0,
) -> tf.data.Dataset:
    """Records that can only be read one after the other: once, or shuffled and without an end.

    Args:
        one_pass: int64 (2,) seed of a pass, or None for the fixed order, to its `count` records.
        count: records of a pass.
        seed: of the order; None for one pass in order.
        start: records to leave out at the front. Whole passes cost nothing, and the rest as much as
            reading them.

    Returns:
        A dataset of what `one_pass` gives.
    """
    if seed is None:
        return one_pass(None).skip(start)

    def shuffled(number: tf.Tensor) -> tf.data.Dataset:
        if not tf.executing_eagerly():
            # Of this function alone: else the program's global seed would have a say in the order.
            tf.random.set_seed(_GRAPH_SEED)
        key = tf.stack([tf.constant(seed, tf.int64), number])
        own = tf.random.stateless_uniform((), key, None, None, tf.int64, alg="philox")
        return one_pass(key).shuffle(_SHUFFLE_BUFFER, own, reshuffle_each_iteration=False)

    numbers = tf.data.Dataset.range(start // count, tf.int64.max)
    return numbers.flat_map(shuffled).skip(start % count)


def multi_hot(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Zeros and ones for a set of labels.

    Args:
        labels: int (any number of them,); -1 is none.
        num_classes: number of classes.

    Returns:
        float32 (num_classes,).
    """
    return tf.reduce_max(
        tf.concat([tf.one_hot(labels, num_classes), tf.zeros((1, num_classes))], axis=0), axis=0
    )


def valid_labels(labels: tf.Tensor, num_classes: int, name: tf.Tensor) -> tf.Tensor:
    """Passes labels on, or fails where one is not in [0, num_classes).

    Args:
        labels: int64 of any shape.
        num_classes: number of classes.
        name: of the record, for the message.

    Returns:
        The same.

    Raises:
        tf.errors.InvalidArgumentError: when run.
    """
    valid = tf.reduce_all((labels >= 0) & (labels < num_classes))
    message = f"Expected labels from 0 to {num_classes - 1}. Received (record, labels, from 0):"
    with tf.control_dependencies([tf.debugging.Assert(valid, [message, name, labels])]):
        return tf.identity(labels)


def first_few(items: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    rest = len(items) - _MOST_NAMED
    named = [printable(item) for item in items[:_MOST_NAMED]]
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")
