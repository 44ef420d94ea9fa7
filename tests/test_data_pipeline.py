"""Pipelines: shapes, completeness, and that only seed and position decide."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import pipeline, sources

AUGMENTED = DataConfig(shift=3, flip=True)


@pytest.fixture(scope="module")
def digits():
    return sources.open_source(DataConfig())


def _batches(source, count=12, config=AUGMENTED, **settings):
    dataset = pipeline.training(source, config, 32, 16, **settings)
    images, labels = zip(*dataset.take(count), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_training_batches_have_static_shapes_and_pixel_range(digits):
    dataset = pipeline.training(digits, AUGMENTED, 32, 16)
    images, labels = dataset.element_spec
    assert images.shape == (16, 32, 32, 3)
    assert labels.shape == (16, 10)
    assert images.dtype == labels.dtype == tf.float32
    pictures, classes = _batches(digits)
    assert pictures.min() >= 0
    assert 200 < pictures.max() <= 255
    np.testing.assert_array_equal(classes.sum(-1), 1)


def test_threads_do_not_change_what_is_trained_on(digits):
    one = _batches(digits, seed=3, num_parallel_calls=1)
    many = _batches(digits, seed=3, num_parallel_calls=8)
    other = _batches(digits, seed=4, num_parallel_calls=8)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])
    assert (one[0] != other[0]).any()


def test_shards_are_the_whole_stream_dealt_out(digits):
    whole, labels = _batches(digits, 4)
    parts = [_batches(digits, 2, shard=pipeline.Shard(i, 2)) for i in range(2)]
    for index, (images, classes) in enumerate(parts):
        np.testing.assert_array_equal(images, whole[index::2])
        np.testing.assert_array_equal(classes, labels[index::2])


def test_a_picture_is_augmented_differently_in_the_next_pass():
    image = tf.random.stateless_uniform((32, 32, 3), (0, 1), maxval=255.0)
    seeds = [tf.constant([0, position], tf.int64) for position in range(40)]
    results = {pipeline.augment(image, AUGMENTED, seed).numpy().tobytes() for seed in seeds}
    assert len(results) > 20


def test_shift_moves_by_whole_pixels_and_repeats_the_border():
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    offsets = set()
    for position in range(300):
        seed = tf.constant([0, position], tf.int64)
        moved = pipeline.augment(tf.constant(image), DataConfig(shift=2), seed).numpy()
        matches = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(
                moved,
                image[np.clip(np.arange(32) + dy, 0, 31)][:, np.clip(np.arange(32) + dx, 0, 31)],
            )
        ]
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) == 25  # every direction, both ends included


def test_flip_mirrors_about_half_of_the_pictures():
    image = tf.constant(np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3))
    flipped = 0
    for position in range(200):
        result = pipeline.augment(
            image, DataConfig(flip=True), tf.constant([0, position], tf.int64)
        )
        mirrored = bool(tf.reduce_all(result == image[:, ::-1]))
        assert mirrored or bool(tf.reduce_all(result == image))
        flipped += mirrored
    assert 70 < flipped < 130


@pytest.mark.parametrize("batch_size", [1, 100, 359, 500])
def test_evaluation_has_every_picture_once(digits, batch_size):
    dataset = pipeline.evaluation(digits, "test", 32, batch_size)
    assert dataset.element_spec[0].shape == (batch_size, 32, 32, 3)
    steps = pipeline.evaluation_steps(digits, "test", batch_size)
    images, labels, weights = (np.concatenate(part) for part in zip(*dataset, strict=True))
    assert len(images) == steps * batch_size
    assert weights.sum() == 359
    assert (images[weights == 0] == 0).all()
    expected = np.array([int(label) for _, label in digits.records("test", None)])
    np.testing.assert_array_equal(labels[weights == 1], expected)
    first = next(iter(digits.records("test", None)))[0]
    np.testing.assert_allclose(
        images[0], tf.image.resize(tf.cast(first, tf.float32), (32, 32)).numpy(), atol=1e-3
    )


def test_evaluation_fills_up_to_all_replicas_batches(digits):
    # Two replicas of 50 each: 359 pictures need 4 steps of 100.
    dataset = pipeline.evaluation(digits, "test", 32, 50, fill_to=100)
    assert len(list(dataset)) == 8
    shards = [
        pipeline.evaluation(digits, "test", 32, 50, fill_to=100, shard=pipeline.Shard(i, 2))
        for i in range(2)
    ]
    weights = [np.concatenate([w for _, _, w in shard]) for shard in shards]
    assert [len(w) for w in weights] == [200, 200]
    assert sum(w.sum() for w in weights) == 359


def test_pictures_leave_the_filling_out(digits):
    batches = list(pipeline.pictures(digits, "test", 32, 100))
    assert [len(images) for images, _ in batches] == [100, 100, 100, 59]
    assert batches[0][0].dtype == np.float32


def test_mirroring_does_not_depend_on_the_shift():
    # One picture whose columns and rows tell where they came from, under many seeds.
    size, most = 17, 4
    image = np.zeros((size, size, 3), np.float32)
    image[..., 0] = np.arange(size)
    image[..., 1] = np.arange(size)[:, None]
    config = DataConfig(flip=True, shift=most)
    shifts, flips = [], []
    for position in range(600):
        seed = tf.constant([0, position], tf.int64)
        found = pipeline.augment(tf.constant(image), config, seed).numpy()
        middle = size // 2
        flipped = found[0, 0, 0] > found[0, -1, 0]
        flips.append(flipped)
        shifts.append((found[middle, middle, 0] - middle, found[middle, middle, 1] - middle))
    assert 0.43 < np.mean(flips) < 0.57
    for axis in np.array(shifts).T:
        assert set(axis) == set(range(-most, most + 1))
        # 600 independent pairs: the standard deviation of the correlation is 0.04.
        assert abs(np.corrcoef(axis, flips)[0, 1]) < 0.16
