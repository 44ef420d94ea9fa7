"""From records to batches: the order of operations on one page.

    training:    shuffle -> shard -> decode -> resize -> shift -> flip -> batch -> prefetch
    evaluation:  in order, each picture once -> shard -> decode -> resize -> pad -> batch

Every random choice is a pure function of the seed and of the picture's position in the run, so that
neither the number of threads nor a restart changes what the network sees. Shapes are static.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import images
from efficientnet_tf.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of the records an input pipeline reads: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1


def training(
    source: Source,
    config: DataConfig,
    image_size: int,
    batch_size: int,
    *,
    seed: int = 0,
    shard: Shard = Shard(),
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Endless batches to train on.

    Args:
        source: gives the pictures.
        config: says how they are augmented.
        image_size: pixels, square.
        batch_size: pictures per batch; the caller divides the global batch over replicas.
        seed: of order and augmentation.
        shard: part of the records to read, where several machines read.
        num_parallel_calls: pictures decoded at a time; does not change the result.

    Returns:
        A dataset of (images float32 (batch_size, image_size, image_size, 3) in [0, 255], labels
        float32 (batch_size, classes), one-hot).
    """

    def example(position, record):
        image, label = source.decode(*record)
        image = _resize(image, image_size)
        image = augment(image, config, seed=tf.stack([tf.constant(seed, tf.int64), position]))
        return image, tf.one_hot(label, source.num_classes)

    return (
        source.records("train", seed)
        .enumerate()
        .shard(shard.count, shard.index)
        .map(example, num_parallel_calls=num_parallel_calls)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation(
    source: Source,
    split: str,
    image_size: int,
    batch_size: int,
    *,
    fill_to: int | None = None,
    shard: Shard = Shard(),
    num_parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Every picture of a split once, in order, in batches of equal size.

    The last batches are filled with black pictures of weight 0, so that shapes are static and every
    replica takes the same number of steps.

    Args:
        source: gives the pictures.
        split: "train", "validation" or "test".
        image_size: pixels, square.
        batch_size: pictures per batch.
        fill_to: pictures that all replicas take in one step; None is one batch.
        shard: part of the pictures to read, where several machines read.
        num_parallel_calls: pictures decoded at a time; does not change the result.

    Returns:
        A finite dataset of (images float32 (batch_size, image_size, image_size, 3) in [0, 255],
        labels int64 (batch_size,), weights float32 (batch_size,), 0 for filling and otherwise 1).
    """

    def example(*record):
        image, label = source.decode(*record)
        return _resize(image, image_size), label, tf.constant(1.0)

    fill_to = fill_to or batch_size * shard.count
    missing = -source.num_examples[split] % fill_to
    filling = (
        tf.zeros((image_size, image_size, 3)),
        tf.constant(0, tf.int64),
        tf.constant(0.0),
    )
    return (
        source.records(split, None)
        .map(example, num_parallel_calls=num_parallel_calls)
        .concatenate(tf.data.Dataset.from_tensors(filling).repeat(missing))
        .shard(shard.count, shard.index)
        .batch(batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def pictures(
    source: Source, split: str, image_size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every picture of a split once, in order, as arrays; the last batch may be smaller.

    Args:
        source: gives the pictures.
        split: "train", "validation" or "test".
        image_size: pixels, square.
        batch_size: pictures per batch.

    Yields:
        (images float32 (batch, image_size, image_size, 3) in [0, 255], labels int64 (batch,)).
    """
    for images_, labels, weights in evaluation(source, split, image_size, batch_size):
        real = weights.numpy() > 0
        yield images_.numpy()[real], labels.numpy()[real]


def evaluation_steps(source: Source, split: str, batch_size: int) -> int:
    """Steps through a split, at this batch size over all replicas."""
    return -(-source.num_examples[split] // batch_size)


def augment(image: tf.Tensor, config: DataConfig, seed: tf.Tensor) -> tf.Tensor:
    """Shifts and mirrors one picture, as the configuration says.

    Args:
        image: float32 (height, width, 3).
        config: `shift` and `flip` are used.
        seed: int64 (2,); equal seeds give equal pictures.

    Returns:
        float32 (height, width, 3).
    """
    if config.shift:
        image = _shift(image, config.shift, seed)
    if config.flip:
        image = tf.image.stateless_random_flip_left_right(image, seed)
    return image


def _shift(image: tf.Tensor, most: int, seed: tf.Tensor) -> tf.Tensor:
    # Moving by clipped indices repeats the border, which is what pictures have there: black would
    # be a new edge. philox gives the same numbers on every device.
    offset = tf.random.stateless_uniform(
        (2,), seed, minval=-most, maxval=most + 1, dtype=tf.int32, alg="philox"
    )
    for axis in (0, 1):
        length = image.shape[axis]
        index = tf.clip_by_value(tf.range(length) + offset[axis], 0, length - 1)
        image = tf.gather(image, index, axis=axis)
    return image


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    return tf.ensure_shape(images.resize(image, size, "bilinear"), (size, size, 3))
