"""Records that cannot be used: found one by one, counted, named, and a reason to stop when many.

A record is bad when its picture cannot be decoded or its label is none of the classes. For sources
that were not checked beforehand, that is found out while it is read. Of a JPEG that is cropped only
the crop is decoded, so one that is cut off is bad where the crop reaches into what is missing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.data.records import Source, first_few, valid_labels
from efficientnet_tf.labels import printable

_NAMED = 10  # in warnings, one by one; after that, totals
_WINDOW = 10  # bad records that are tolerated early on, where few have been read


class BadRecords:
    """What was found bad, over all data sets that were given this object.

    Attributes:
        most: largest share of the records read so far that may be bad. Before `10 / most` records
            of a pass (or all, if that is less) have been read, it is the share of that many, so
            that two bad records among the first hundred of a million do not end a run.
    """

    def __init__(self, most: float = 0.01, before: tuple[int, int] = (0, 0)):
        """Begins to count; `before` are bad records and all of them, of the same pass so far."""
        self.most = most
        self._before = before
        self.error: str | None = None
        self._names: dict[str, None] = {}  # in the order in which they were found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bad records, each once, in the order in which they were found."""
        return tuple(self._names)

    def add(self, names: Sequence[str], bad: int, read: int, one_pass: int, first: int = 0) -> None:
        """Takes note of bad records.

        Args:
            names: of those that were found now.
            bad: how many there were since the data set was started, with these.
            read: how many records were read since then.
            one_pass: how many records there are.
            first: position, within its pass, of the first record that was read.

        Raises:
            ValueError: there are too many.
        """
        bad += self._before[0]
        read += self._before[1]
        one_pass += self._before[1]
        for name in names:
            if name not in self._names:
                self._names[name] = None
                total = len(self._names)
                if total <= _NAMED:
                    logging.warning(
                        "Left out, unreadable or without a valid label: %s", printable(name)
                    )
                elif total % _NAMED == 0 and (total // _NAMED).bit_count() == 1:
                    logging.warning("%d records are left out so far.", total)
        window = min(_WINDOW / self.most, one_pass) if self.most else 0
        begun = (first + read - 1) // one_pass * one_pass  # where the present pass begins
        # Each pass may have its bad records at its front, where few of its records have been read.
        counted = max(first + read, begun + round(window))
        if bad > self.most * counted:
            self.error = (
                f"{bad} of {read} records are unreadable or have no valid label, more than"
                f" data.max_bad={self.most:g} of {counted}:"
                f" {first_few(self.names)}. Repair or remove them, or raise data.max_bad."
            )
            raise ValueError(self.error)


def guard(source: Source, decode: Callable) -> Callable:
    """Makes decoding of a source's records go on where a record is bad.

    Args:
        source: of the records.
        decode: (position, *record) -> (image uint8 (height, width, 3), label), as `Source.decode`.

    Returns:
        (position, *record) -> (image, label, problem): problem is the name of the record where it
        is bad, and image is one black pixel then; otherwise "".
    """

    def checked(*record):
        return *decode(*record), tf.constant("")

    if source.checked:
        return checked
    vector = source.multi_label or source.soft
    label_spec = (
        tf.TensorSpec((source.num_classes,), tf.float32) if vector else tf.TensorSpec((), tf.int64)
    )

    def opened(*record):
        image, label, problem = checked(*record)
        if not vector:
            label = valid_labels(label, source.num_classes, source.describe(*record[1:]))
        return image, tf.ensure_shape(label, label_spec.shape), problem

    def failed(_, *record):
        label = tf.zeros(label_spec.shape, label_spec.dtype)
        return tf.zeros((1, 1, 3), tf.uint8), label, source.describe(*record)

    def guarded(*record):
        # TensorFlow has no way to catch an error but that a data set may leave out what raised it.
        one = tf.data.Dataset.from_tensors(record)
        either = one.map(opened).ignore_errors().concatenate(one.map(failed)).take(1)
        return either.get_single_element()

    return guarded


def report(
    batches: tf.data.Dataset,
    found: BadRecords,
    source: Source,
    one_pass: int,
    first: int | None = None,
) -> tf.data.Dataset:
    """Counts what is bad in batches, and fails where it is too much.

    Args:
        batches: data set of tuples of which the last is `guard`'s problems, string (batch,).
        found: takes the names.
        source: of the records.
        one_pass: records that the data set reads in one pass.
        first: position, within its pass, of the first record of an endless data set; None where
            there is one pass, and what follows it is filling.

    Returns:
        The same data set; reading it fails with an error that names the records.
    """
    if source.checked:
        return batches

    def note(problems: np.ndarray, bad: np.int64, read: np.int64) -> np.int64:
        names = [name.decode("utf-8", "backslashreplace") for name in problems]
        if first is None:
            found.add(names, int(bad), min(int(read), one_pass), one_pass)
        else:
            found.add(names, int(bad), int(read), one_pass, first)
        return np.int64(0)

    def count(state, batch):
        problems = tf.boolean_mask(batch[-1], batch[-1] != "")
        bad = state[0] + tf.size(problems, tf.int64)
        read = state[1] + tf.size(batch[-1], tf.int64)
        noted = tf.cond(
            tf.size(problems) > 0,
            lambda: tf.numpy_function(note, (problems, bad, read), tf.int64),
            lambda: tf.constant(0, tf.int64),
        )
        with tf.control_dependencies([noted]):
            return (tf.identity(bad), tf.identity(read)), batch

    zero = tf.constant(0, tf.int64)
    return batches.scan((zero, zero), count)


def readable(batches: Iterable, prefix: str = "") -> Iterator:
    """The batches; raises the ValueError of what reads them, not what TensorFlow makes of it.

    Args:
        batches: data set, or what reads one.
        prefix: goes before the reason.
    """
    try:
        yield from batches
    except tf.errors.OpError as error:
        _, stopped, reason = error.message.partition("ValueError: ")
        if not stopped:
            raise
        raise ValueError(prefix + reason.splitlines()[0]) from None


def replace(problems: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Puts good examples in the place of bad ones, so that batches stay whole.

    Args:
        problems: string (batch,), "" for good examples.
        *tensors: (batch, ...).

    Returns:
        The tensors with each bad row replaced by the good one before it in the batch; before the
        first comes the last. Zeros where none is good: black pictures of no class, so that every
        batch stays in its place, and a run that goes on takes the same ones.
    """

    def replaced():
        good = tf.where(problems == "")[:, 0]
        rows = tf.range(tf.size(problems, tf.int64))
        before = tf.searchsorted(good, rows, side="right") - 1
        return tuple(tf.gather(t, tf.gather(good, before % tf.size(good))) for t in tensors)

    return tf.case(
        [
            (tf.reduce_all(problems == ""), lambda: tensors),
            (tf.reduce_all(problems != ""), lambda: tuple(tf.zeros_like(t) for t in tensors)),
        ],
        default=replaced,
    )
