"""Augmentation layers of Keras and KerasCV, plugged in by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import arrays, pipeline, plugged, sources


@pytest.fixture(scope="module")
def digits():
    return sources.open_source(DataConfig())


def _batch(count=4, size=16):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (count, size, size, 3)).astype(np.float32)
    return tf.constant(images), tf.one_hot(np.arange(count), 5)


def _config(name, **settings):
    return DataConfig(augment=name, **settings)


def test_a_layer_does_what_it_does_by_hand():
    images, targets = _batch()
    augment = plugged.layer(_config("keras:AutoContrast"), seed=0)
    expected = keras.layers.AutoContrast(value_range=(0, 255))(images)
    augmented, same = augment(images, targets)
    np.testing.assert_allclose(augmented, np.clip(expected, 0, 255), atol=1e-4)
    np.testing.assert_array_equal(same, targets)


def test_magnitude_is_the_layers_strength():
    # Brightness moves by up to the factor times the range.
    for magnitude in (0, 6):
        augment = plugged.layer(_config("keras:RandomBrightness", magnitude=magnitude), seed=1)
        gray = tf.fill((64, 4, 4, 3), 127.5)
        moved = np.abs(augment(gray, tf.zeros((64, 5)))[0] - 127.5).max()
        most = magnitude / 30 * 255
        assert 0.8 * most <= moved <= most + 1e-3
    with pytest.raises(ValueError, match="AutoContrast has no such setting"):
        plugged.layer(_config("keras:AutoContrast", magnitude=15), seed=0)
    with pytest.raises(ValueError, match="MixUp has no such setting"):
        plugged.layer(_config("keras:MixUp", magnitude=15), seed=0)


@pytest.mark.parametrize("name", ["keras:RandAugment", "keras:MixUp", "keras:CutMix"])
def test_the_same_seed_gives_the_same_batches(digits, name):
    def batches(seed):
        dataset = pipeline.training(digits, _config(name), 32, 16, seed=seed)
        assert dataset.element_spec[0].shape == (16, 32, 32, 3)
        return [(images.numpy(), targets.numpy()) for images, targets in dataset.take(3)]

    one, again, other = batches(1), batches(1), batches(2)
    plain = next(iter(pipeline.training(digits, DataConfig(), 32, 16, seed=1)))
    for (images, targets), (images_, targets_) in zip(one, again, strict=True):
        np.testing.assert_array_equal(images, images_)
        np.testing.assert_array_equal(targets, targets_)
        assert images.dtype == targets.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 255
        np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-5)
    assert (one[0][0] != other[0][0]).any()
    assert (one[0][0] != plain[0].numpy()).any()
    changed = (one[0][1] != plain[1].numpy()).any()
    assert changed == (name != "keras:RandAugment")


def test_workers_do_not_draw_the_same():
    gray = arrays.from_arrays(np.full((64, 8, 8, 3), 128, np.uint8), np.arange(64) % 2)
    config = _config("keras:RandomBrightness")
    one, two = (
        next(iter(pipeline.training(gray, config, 8, 16, shard=pipeline.Shard(index, 2))))[0]
        for index in range(2)
    )
    assert (one.numpy() != two.numpy()).any()


def test_pixels_are_float32_whatever_the_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        images, _ = plugged.layer(_config("keras:RandAugment"), seed=0)(*_batch())
    finally:
        keras.config.set_dtype_policy("float32")
    assert images.dtype == tf.float32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("keras:RandAugmentt", "Did you mean RandAugment"),
        ("keras:Dense", "keras has no augmentation layer 'Dense'"),
        ("keras:CenterCrop", "it needs height, width"),
    ],
)
def test_names_that_cannot_be_used(name, message):
    with pytest.raises(ValueError, match=message):
        plugged.layer(_config(name), seed=0)


def test_a_missing_keras_cv_is_explained(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(ImportError, match="pip install keras-cv"):
        plugged.layer(_config("keras_cv:RandAugment"), seed=0)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["RandAugment", "AugMix", "MixUp", "CutMix", "GridMask"])
def test_keras_cv(digits, name):
    pytest.importorskip("keras_cv")
    strength = {"magnitude": 15} if name in ("RandAugment", "AugMix") else {}
    config = _config(f"keras_cv:{name}", **strength)
    plain = pipeline.training(digits, DataConfig(), 32, 8, seed=1).take(2)
    batches = pipeline.training(digits, config, 32, 8, seed=1).take(2)
    for (images, targets), (before, _) in zip(batches, plain, strict=True):
        assert images.shape == (8, 32, 32, 3)
        assert 0 <= images.numpy().min() < images.numpy().max() <= 255
        assert (images != before).numpy().any()
        np.testing.assert_allclose(tf.reduce_sum(targets, -1), 1, atol=1e-5)
