"""Pictures without labels: which there are, which are chosen, and training on them with others.

Noisy Student (Q. Xie et al., 2019, arXiv:1911.04252, Sec. 3.1): a teacher says what is on the
pictures, those it is sure of are kept, and classes are balanced.
"""

import dataclasses

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import folder, listing, records
from efficientnet_tf.data.records import SPLITS, Source, first_few
from efficientnet_tf.data.sources import open_source


def open_unlabeled(config: DataConfig) -> Source:
    """Opens pictures whose labels are not looked at; all are in the training split.

    Of a folder these are the pictures at any depth, or those below its train folder where it has
    such; of other sources, those that are in no validation or test split of its own.

    Args:
        config: `source`, `data_dir` and `max_bad` are used.

    Raises:
        ValueError: there are none; the message says why.
        ImportError: an optional package is missing; the message says how to install it.
    """
    config = dataclasses.replace(config, check_pictures=False)  # they are all read once anyway
    kind, _, rest = config.source.partition(":")
    if kind == "folder":
        names = folder.list_pictures(paths.of(rest))
        nothing = np.arange(0)
        files = listing.Listing(
            names=names,
            paths=names,
            labels=[(0,)] * len(names),
            class_names=("unlabeled",),
            parts={"train": np.arange(len(names)), "validation": nothing, "test": nothing},
        )
        return listing.source(files, config)
    try:
        return open_source(dataclasses.replace(config, holdout=0.0))
    except ValueError:  # it has no test split of its own, or cannot be opened at all
        return _merged(open_source(dataclasses.replace(config, holdout=DataConfig.holdout)))


def _merged(source: Source) -> Source:
    """A source whose training split has the pictures of all three."""
    ends = np.cumsum([source.num_examples[split] for split in SPLITS])

    def merged(split: str, seed: int | None, start: int = 0) -> tf.data.Dataset:
        assert seed is None, "The order of unlabelled pictures is that of those chosen."
        first, *others = (source.records(part, None) for part in SPLITS)
        for other in others:
            first = first.concatenate(other)
        return first.skip(start) if split == "train" else first.take(0)

    def row(_: str, position: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def of(part: int):
            begin = ends[part - 1] if part else 0
            return lambda: source.row(SPLITS[part], position - begin)

        part = tf.searchsorted(tf.constant(ends, tf.int64), [position], side="right")[0]
        return tf.switch_case(part, [of(part) for part in range(len(SPLITS))])

    return dataclasses.replace(
        source,
        num_examples={"train": int(ends[-1]), "validation": 0, "test": 0},
        records=merged,
        row=row if source.row else None,
    )


def select(
    probabilities: np.ndarray,
    usable: np.ndarray,
    class_names: tuple[str, ...],
    *,
    threshold: float,
    per_class: int | None,
    seed: int,
) -> np.ndarray:
    """Chooses the pictures to train on.

    Args:
        probabilities: float32 (pictures, classes), the teacher's.
        usable: bool (pictures,), whether a picture may be chosen.
        class_names: for messages.
        threshold: lowest probability of the most likely class.
        per_class: pictures of each class: the most probable ones of a class with more; those of a
            class with fewer are there several times, as equally often as can be. None for each
            picture once.
        seed: of which pictures are there once more than others.

    Returns:
        int64 (chosen,), rows of `probabilities`, class by class.

    Raises:
        ValueError: there is none.
    """
    best, label = probabilities.max(1), probabilities.argmax(1)
    sure = usable & (best >= threshold)
    if not sure.any():
        highest = best[usable].max(initial=0)
        raise ValueError(
            f"The teacher is sure of none of the {usable.sum()} unlabelled pictures: the highest"
            f" probability is {highest:.3g}, and student.threshold is {threshold:g}. Lower it, or"
            " give other pictures."
        )
    chosen, without = [], []
    for index, name in enumerate(class_names):
        rows = np.flatnonzero(sure & (label == index))
        if not len(rows):
            without.append(name)
        elif per_class is not None:
            rows = rows[np.argsort(-best[rows], kind="stable")][:per_class]
            times, more = divmod(per_class, len(rows))
            again = np.random.default_rng([seed, index]).permutation(rows)[:more]
            rows = np.concatenate([np.tile(rows, times), again])
        chosen.append(rows)
    if without:
        logging.warning(
            "%d classes have no unlabelled pictures: %s", len(without), first_few(without)
        )
    return np.concatenate(chosen)


def join(
    labelled: Source,
    unlabelled: Source,
    rows: np.ndarray,
    targets: np.ndarray,
    *,
    ratio: int,
    label_smoothing: float = 0.0,
) -> Source:
    """A source to train on labelled and unlabelled pictures together.

    Every `1 + ratio` records in a row hold one labelled picture, at a place drawn anew each time,
    so that machines which read every n-th record get their share of both.

    Args:
        labelled: one label per picture. Its passes are those of training.
        unlabelled: from `open_unlabeled`.
        rows: int64 (chosen,), the pictures of the training split of `unlabelled` that are used, in
            its fixed order from 0; each may be there several times.
        targets: float32 (pictures, classes), what is learnt of each picture of that split.
        ratio: unlabelled pictures for each labelled one.
        label_smoothing: share of each of the labels of `labelled` that is spread over all classes.

    Returns:
        A source whose labels are soft, with a training split only.
    """
    classes, period = labelled.num_classes, 1 + ratio
    count = len(rows)
    with tf.device("CPU"):
        table, order = tf.constant(targets, tf.float32), tf.constant(rows, tf.int64)
        counts = np.bincount(rows, minlength=unlabelled.num_examples["train"])
        times = tf.constant(counts, tf.int64)

    def chosen(seed: int, start: int) -> tf.data.Dataset:
        """Endless (row, *record of `unlabelled`)."""
        seed += 2**40  # not the order of `labelled`, where both have as many pictures
        if unlabelled.row is not None:
            numbers = records.shuffled(count, seed, start)
            chosen_rows = numbers.map(lambda number: tf.gather(order, number))
            return chosen_rows.map(lambda row: (row, *unlabelled.row("train", row)))

        def one_pass(_) -> tf.data.Dataset:
            def repeated(row, record):
                one = tf.data.Dataset.from_tensors((row, *record))
                return one.repeat(tf.gather(times, row))

            return unlabelled.records("train", None).enumerate().flat_map(repeated)

        return records.passes(one_pass, count, seed, start)

    def joined(split: str, seed: int | None, start: int = 0) -> tf.data.Dataset:
        if split != "train" or seed is None:
            raise ValueError("Labelled and unlabelled pictures together are there to train on.")
        group = start // period
        first = labelled.records("train", seed, group)
        second = chosen(seed, group * ratio)
        nothing = [
            tf.nest.map_structure(
                lambda spec: tf.zeros([side or 0 for side in spec.shape], spec.dtype),
                dataset.element_spec,
            )
            for dataset in (first, second)
        ]
        first = first.map(lambda *record: (True, record, nothing[1]))
        second = second.map(lambda *record: (False, nothing[0], record))

        def which(position):
            key = tf.stack([tf.constant(seed, tf.int64), position // period])
            place = tf.random.stateless_uniform((), key, 0, period, tf.int64, alg="philox")
            return tf.cast(position % period != place, tf.int64)

        choices = tf.data.Dataset.range(group * period, tf.int64.max).map(which)
        both = tf.data.Dataset.choose_from_datasets([first, second], choices)
        return both.skip(start % period)

    def target(label, name):
        if not labelled.checked:
            label = records.valid_labels(label, classes, name)
        return tf.one_hot(label, classes) * (1 - label_smoothing) + label_smoothing / classes

    def opened(open_first, open_second):
        def open_(is_labelled, first, second):
            def labelled_picture():
                picture, label = open_first(*first)
                return picture, target(label, labelled.describe(*first))

            def unlabelled_picture():
                return open_second(*second[1:])[0], tf.gather(table, second[0])

            return tf.cond(is_labelled, labelled_picture, unlabelled_picture)

        return open_

    def describe(is_labelled, first, second):
        return tf.cond(
            is_labelled,
            lambda: labelled.describe(*first),
            lambda: unlabelled.describe(*second[1:]),
        )

    both_encoded = labelled.encoded is not None and unlabelled.encoded is not None
    return Source(
        name=f"{labelled.name} with {unlabelled.name}",
        class_names=labelled.class_names,
        num_examples={"train": labelled.num_examples["train"] * period},
        records=joined,
        decode=opened(labelled.decode, unlabelled.decode),
        encoded=opened(labelled.encoded, unlabelled.encoded) if both_encoded else None,
        describe=describe,
        soft=True,
        checked=labelled.checked,
        bad=(*labelled.bad, *unlabelled.bad),
    )
