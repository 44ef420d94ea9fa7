"""Pipelines: shapes, completeness, and that only seed and position decide."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import preprocessing
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import images, pipeline, sources
from efficientnet_tf.preprocessing import Preprocessing

SHIFTED = DataConfig(shift=3, flip=True)
# Every stage whose result depends on random numbers.
EVERYTHING = DataConfig(
    crop="v2",
    resize="bilinear",
    flip=True,
    shift=2,
    augment="randaugment",
    magnitude=20 / 3,  # progressive ones need not be whole
    cutout=0.3,
    cutout_fill="noise",
    random_erasing=0.5,
    mixup=0.4,
    cutmix=0.4,
)
ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
RULE = Preprocessing("plain", ZEROS, ONES, 32, "bilinear", "squash")


@pytest.fixture(scope="module")
def digits():
    return sources.open_source(DataConfig())


def _batches(source, count=12, config=SHIFTED, **settings):
    dataset = pipeline.training(source, config, 32, 16, **settings)
    images_, labels = zip(*dataset.take(count), strict=True)
    return np.concatenate(images_), np.concatenate(labels)


@pytest.mark.parametrize("config", [SHIFTED, EVERYTHING])
def test_training_batches_have_static_shapes_and_pixel_range(digits, config):
    dataset = pipeline.training(digits, config, 32, 16)
    images_, labels = dataset.element_spec
    assert images_.shape == (16, 32, 32, 3)
    assert labels.shape == (16, 10)
    assert images_.dtype == labels.dtype == tf.float32
    pictures, classes = _batches(digits, config=config)
    assert pictures.min() >= 0
    assert 200 < pictures.max() <= 255
    np.testing.assert_allclose(classes.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("config", [SHIFTED, EVERYTHING])
def test_threads_do_not_change_what_is_trained_on(digits, config):
    one = _batches(digits, config=config, seed=3, num_parallel_calls=1)
    many = _batches(digits, config=config, seed=3, num_parallel_calls=8)
    other = _batches(digits, config=config, seed=4, num_parallel_calls=8)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])
    assert (one[0] != other[0]).any()


def test_a_run_that_goes_on_sees_what_it_would_have_seen(digits):
    used = digits.num_examples["train"] // 16 - 2  # batches: the next pass begins soon after
    whole = _batches(digits, used + 4, EVERYTHING, seed=3)
    rest = _batches(digits, 4, EVERYTHING, seed=3, start=used * 16)
    np.testing.assert_array_equal(rest[0], whole[0][used * 16 :])
    np.testing.assert_array_equal(rest[1], whole[1][used * 16 :])


def test_a_pass_has_every_picture_once(digits):
    count = digits.num_examples["train"]
    dataset = pipeline.training(digits, DataConfig(), 32, 1).take(2 * count)
    seen = [images_.numpy().tobytes() for images_, _ in dataset]
    assert sorted(seen[:count]) == sorted(seen[count:])
    assert len(set(seen[:count])) > count - 5  # the digits have a few twins
    assert seen[:count] != seen[count:]


def test_shards_are_the_whole_stream_dealt_out(digits):
    whole, labels = _batches(digits, 4)
    parts = [_batches(digits, 2, shard=pipeline.Shard(i, 2)) for i in range(2)]
    for index, (images_, classes) in enumerate(parts):
        np.testing.assert_array_equal(images_, whole[index::2])
        np.testing.assert_array_equal(classes, labels[index::2])


def test_shards_mix_by_shares_of_their_own(digits):
    config = DataConfig(mixup=0.4)
    parts = [_batches(digits, 4, config, shard=pipeline.Shard(i, 2))[1] for i in range(2)]
    shares = [{round(float(x), 5) for x in part.ravel() if 0 < x < 1} for part in parts]
    assert min(map(len, shares)) > 20
    assert len(shares[0] & shares[1]) < 3


def _distort(image, config, position):
    return pipeline.distort(tf.constant(image), config, 0, tf.constant(position, tf.int64)).numpy()


def test_a_picture_is_augmented_differently_in_the_next_pass():
    image = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    results = {_distort(image, SHIFTED, position).tobytes() for position in range(40)}
    assert len(results) > 20


def test_shift_moves_by_whole_pixels_and_repeats_the_border():
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    offsets = set()
    for position in range(300):
        moved = _distort(image, DataConfig(shift=2), position)
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
    image = np.arange(32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    flipped = 0
    for position in range(200):
        result = _distort(image, DataConfig(flip=True), position)
        mirrored = np.array_equal(result, image[:, ::-1])
        assert mirrored or np.array_equal(result, image)
        flipped += mirrored
    assert 70 < flipped < 130


def test_mirroring_does_not_depend_on_the_shift():
    # One picture whose columns and rows tell where they came from, under many seeds.
    size, most = 17, 4
    image = np.zeros((size, size, 3), np.float32)
    image[..., 0] = np.arange(size)
    image[..., 1] = np.arange(size)[:, None]
    config = DataConfig(flip=True, shift=most)
    shifts, flips = [], []
    for position in range(600):
        found = _distort(image, config, position)
        middle = size // 2
        flipped = found[0, 0, 0] > found[0, -1, 0]
        flips.append(flipped)
        shifts.append((found[middle, middle, 0] - middle, found[middle, middle, 1] - middle))
    assert 0.43 < np.mean(flips) < 0.57
    for axis in np.array(shifts).T:
        assert set(axis) == set(range(-most, most + 1))
        # 600 independent pairs: the standard deviation of the correlation is 0.04.
        assert abs(np.corrcoef(axis, flips)[0, 1]) < 0.16


def test_pixels_are_rounded_only_for_operations_on_whole_numbers():
    image = np.full((8, 8, 3), 99.5, np.float32)
    image[0, 0] = 255.0
    assert (_distort(image, DataConfig(flip=True), 0) == 99.5).any()
    rounded = _distort(image, DataConfig(service="grpc://localhost:1"), 0)
    assert rounded.dtype == np.uint8
    np.testing.assert_array_equal(rounded, np.where(image == 99.5, 100, 255))
    overshoot = np.array([[[-7.0, 3.0, 261.0]]], np.float32)
    clipped = _distort(overshoot, DataConfig(resize="bicubic_legacy"), 0)
    np.testing.assert_array_equal(clipped, [[[0.0, 3.0, 255.0]]])


@pytest.mark.parametrize("crop", ["none", "v1", "v2"])
def test_jpeg_and_png_of_the_same_pixels_take_the_same_crop(crop):
    y, x = np.mgrid[:90, :120]
    gray = (128 + 60 * np.sin(x / 30) + 60 * np.sin(y / 20)).astype(np.uint8)
    picture = np.repeat(gray[..., None], 3, -1)
    contents = {
        "jpeg": tf.io.encode_jpeg(picture, quality=100),
        "png": tf.io.encode_png(picture),
    }
    results = {}
    for kind, content in contents.items():
        source = sources.Source(
            name=kind,
            class_names=("a", "b"),
            num_examples={"train": 1},
            records=lambda split, seed, start=0, content=content: tf.data.Dataset.from_tensors(
                (content, tf.constant(1, tf.int64))
            ).repeat(),
            decode=lambda content, label: (images.decode(content), label),
            encoded=lambda content, label: (content, label),
            checked=True,
        )
        config = DataConfig(crop=crop, resize="bicubic")
        results[kind] = _batches(source, 2, config, seed=5)[0]
    # Neither file changes a pixel by more than a few levels.
    np.testing.assert_allclose(results["jpeg"], results["png"], atol=4)
    different = len({picture.tobytes() for picture in results["png"]})
    assert different == (1 if crop == "none" else 32)


def test_several_labels_become_zeros_and_ones_to_train_on(digits):
    pictures = np.zeros((6, 8, 8, 3), np.uint8)
    table = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    table[0, 2] = 1
    table[5] = 0  # a picture of nothing

    def records(split, seed, start=0):
        dataset = tf.data.Dataset.from_tensor_slices((pictures, table))
        return dataset if seed is None else dataset.repeat().skip(start)

    source = sources.Source(
        name="several",
        class_names=("a", "b", "c", "d"),
        num_examples=dict.fromkeys(sources.SPLITS, 6),
        records=records,
        decode=lambda picture, label: (picture, label),
        multi_label=True,
    )
    _, targets = next(iter(pipeline.training(source, DataConfig(), 32, 6)))
    np.testing.assert_array_equal(targets, table)
    (_, labels, weights), (_, rest, last) = pipeline.evaluation(source, "test", RULE, 4)
    np.testing.assert_array_equal(np.concatenate([labels, rest])[:6], table)
    np.testing.assert_array_equal(np.concatenate([weights, last]), [1, 1, 1, 1, 1, 1, 0, 0])
    assert labels.dtype == tf.float32


@pytest.mark.parametrize("batch_size", [1, 100, 359, 500])
def test_evaluation_has_every_picture_once(digits, batch_size):
    dataset = pipeline.evaluation(digits, "test", RULE, batch_size)
    assert dataset.element_spec[0].shape == (batch_size, 32, 32, 3)
    steps = pipeline.evaluation_steps(digits, "test", batch_size)
    images_, labels, weights = (np.concatenate(part) for part in zip(*dataset, strict=True))
    assert len(images_) == steps * batch_size
    assert weights.sum() == 359
    assert (images_[weights == 0] == 0).all()
    expected = np.array([int(label) for _, label, _ in digits.records("test", None)])
    np.testing.assert_array_equal(labels[weights == 1], expected)
    first = next(iter(digits.records("test", None)))[0]
    np.testing.assert_allclose(
        images_[0], tf.image.resize(tf.cast(first, tf.float32), (32, 32)).numpy(), atol=1e-3
    )


def test_evaluation_follows_the_rule_of_the_weights(digits):
    rules = [preprocessing.v1_eval(48), preprocessing.v2_eval(40), RULE]
    record = next(iter(digits.records("test", None)))
    image, _ = digits.decode(*record)
    for rule in rules:
        batch, _, _ = next(iter(pipeline.evaluation(digits, "test", rule, 2)))
        assert batch.shape == (2, rule.size, rule.size, 3)
        np.testing.assert_array_equal(batch[0], images.resize_and_crop(image, rule))


def test_evaluation_fills_up_to_all_replicas_batches(digits):
    # Two replicas of 50 each: 359 pictures need 4 steps of 100.
    dataset = pipeline.evaluation(digits, "test", RULE, 50, fill_to=100)
    assert len(list(dataset)) == 8
    shards = [
        pipeline.evaluation(digits, "test", RULE, 50, fill_to=100, shard=pipeline.Shard(i, 2))
        for i in range(2)
    ]
    weights = [np.concatenate([w for _, _, w in shard]) for shard in shards]
    assert [len(w) for w in weights] == [200, 200]
    assert sum(w.sum() for w in weights) == 359


def test_filling_that_would_lose_pictures_is_refused(digits):
    with pytest.raises(ValueError, match=r"multiple of 2 shards' batches of 50.*fill_to=150"):
        pipeline.evaluation(digits, "test", RULE, 50, fill_to=150, shard=pipeline.Shard(0, 2))


def test_a_shard_decodes_only_what_it_evaluates(digits):
    decoded = []

    def decode(*record):
        note = tf.py_function(lambda: decoded.append(1), (), ())
        with tf.control_dependencies([note]):
            picture, label = digits.decode(*record)
            return tf.identity(picture), label

    source = dataclasses.replace(digits, decode=decode)
    counts = []
    for index in range(2):
        list(pipeline.evaluation(source, "test", RULE, 50, shard=pipeline.Shard(index, 2)))
        counts.append(len(decoded))
        decoded.clear()
    assert counts == [180, 179]  # of 359


def test_pictures_leave_the_filling_out(digits):
    batches = list(pipeline.pictures(digits, "test", RULE, 100))
    assert [len(images_) for images_, _ in batches] == [100, 100, 100, 59]
    assert batches[0][0].dtype == np.float32


def test_an_unchecked_source_gives_the_same_pictures(digits):
    unchecked = dataclasses.replace(digits, checked=False)
    config = DataConfig(crop="v2", flip=True, mixup=0.2)
    for one, two in zip(_batches(digits, 3, config), _batches(unchecked, 3, config), strict=True):
        np.testing.assert_array_equal(one, two)
