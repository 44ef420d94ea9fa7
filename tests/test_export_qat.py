"""Quantisation-aware fine-tuning: it saves what ranges cannot, and goes on where it was killed."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import arrays
from efficientnet_tf.export import graph, qat, quantize


@pytest.fixture(scope="module")
def tiny():
    """An untrained net of two layers, and ranges of its own."""
    keras.utils.set_random_seed(1)
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Rescaling(1 / 127.5, -1, name="scale")(images)
    x = keras.layers.Conv2D(6, 3, strides=2, activation="silu", name="conv")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(4, activation="softmax", name="head")(x)
    parts = graph.parts(keras.Model(images, x))
    return parts, quantize.ranges(parts.model, [_noise(0)])


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (6, 8, 8, 3)).astype(np.float32)


def _noises():
    return [_noise(seed) for seed in range(5)]


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tiny, tmp_path):
    parts, ranges = tiny
    settings = {"steps": 3, "epochs": 3, "learning_rate": 1e-2}
    whole = qat.fine_tune(parts, ranges, qat.from_pictures(_noises), tmp_path / "a", **settings)

    asked = []

    def killed(step):
        asked.append(step)
        if step >= 6:
            raise KeyboardInterrupt
        return qat.from_pictures(_noises)(step)

    with pytest.raises(KeyboardInterrupt):
        qat.fine_tune(parts, ranges, killed, tmp_path / "b", **settings)
    assert [p.name for p in (tmp_path / "b").iterdir()] == [qat.STATE]

    def again(step):
        asked.append(step)
        return qat.from_pictures(_noises)(step)

    resumed = qat.fine_tune(parts, ranges, again, tmp_path / "b", **settings)
    assert asked == [0, 3, 6, 6]
    for one, other in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    # What was finished is read, and no picture is asked for.
    finished = qat.fine_tune(parts, ranges, again, tmp_path / "b", **settings)
    assert asked == [0, 3, 6, 6]
    np.testing.assert_array_equal(
        finished.model(_noise(9))["logits"], resumed.model(_noise(9))["logits"]
    )


def test_the_state_of_another_training_is_refused(tiny, tmp_path):
    parts, ranges = tiny
    pictures = qat.from_pictures(_noises)
    qat.fine_tune(parts, ranges, pictures, tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"training with another epochs, learning_rate\. Delete"):
        qat.fine_tune(parts, ranges, pictures, tmp_path, steps=1, epochs=2, learning_rate=0.1)
    other = {**ranges, "mean": (-9.0, 9.0)}
    with pytest.raises(ValueError, match=r"training with another ranges\."):
        qat.fine_tune(parts, other, pictures, tmp_path, steps=1)
    close = {name: (low * 1.00001, high * 1.00001) for name, (low, high) in ranges.items()}
    qat.fine_tune(parts, close, pictures, tmp_path, steps=1)  # measured again
    changed = dataclasses.replace(parts, model=keras.models.clone_model(parts.model))
    with pytest.raises(ValueError, match=r"training with another network"):
        qat.fine_tune(changed, ranges, pictures, tmp_path, steps=1)
    for content in (b"", b"cut off"):
        (tmp_path / qat.STATE).write_bytes(content)
        with pytest.raises(ValueError, match=r"is no state of a quantisation-aware training"):
            qat.fine_tune(parts, ranges, pictures, tmp_path, steps=1)


def test_ranges_kernels_and_biases_learn(tiny, tmp_path):
    parts, ranges = tiny
    ranges = {name: (low / 2, high / 2) for name, (low, high) in ranges.items()}  # clips
    tuned = qat.fine_tune(
        parts, ranges, qat.from_pictures(_noises), tmp_path, steps=5, learning_rate=0.01
    )
    for name in ("conv", "head"):
        for before, after in zip(
            parts.model.get_layer(name).get_weights(),
            tuned.model.get_layer(name).get_weights(),
            strict=True,
        ):
            assert np.abs(before - after).max() > 1e-3
    learned = {name: tuned.model.get_layer(f"{name}_range") for name in ranges}
    assert abs(float(learned["conv"].high) - ranges["conv"][1]) > 1e-3
    assert all(float(layer.low) <= 0 <= float(layer.high) for layer in learned.values())
    assert all(not layer.trainable for layer in tuned.model.layers if "_range" in layer.name)


def test_gradients_pass_the_rounding_of_kernels_and_tensors(tmp_path):
    """Against gradients written out for one dense layer; Adam's first step has their sign alone."""
    keras.utils.set_random_seed(2)
    images = keras.Input((2, 2, 3), name="images")
    x = keras.layers.GlobalAveragePooling2D(name="mean")(images)
    x = keras.layers.Dense(4, activation="softmax", name="head")(x)
    parts = graph.parts(keras.Model(images, x))
    pictures = np.random.default_rng(0).uniform(0, 255, (6, 2, 2, 3)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(scale=0.01, size=(3, 4)).astype(np.float32)
    bias = np.zeros(4, np.float32)
    parts.model.get_layer("head").set_weights([kernel, bias])
    bounds = {"images": (0.0, 255.0), "mean": (0.0, 255.0), "head": (-8.0, 8.0)}

    feed = lambda step: [(pictures, None)]  # noqa: E731
    tuned = qat.fine_tune(parts, bounds, feed, tmp_path, steps=1, learning_rate=1e-5)

    def softmax(logits):
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    means = np.floor(np.rint(pictures).mean((1, 2), dtype=np.float64) + 0.5)
    scale = np.abs(kernel).max(0) / 127
    logits = means @ (np.rint(kernel / scale) * scale)
    logits = np.rint(logits / (16 / 255)) * (16 / 255)
    wanted = softmax(pictures.mean((1, 2), dtype=np.float64) @ kernel)
    error = softmax(logits) - wanted
    expected = [-1e-5 * np.sign(means.T @ error), -1e-5 * np.sign(error.sum(0))]
    found = [
        after - before
        for after, before in zip(
            tuned.model.get_layer("head").get_weights(), (kernel, bias), strict=True
        )
    ]
    np.testing.assert_allclose(found[0], expected[0], atol=2e-7)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-7)


def test_kernels_are_rounded_as_int8_files_hold_them():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[..., 2] = 0
    scale = np.abs(kernel).max((0, 1, 2)) / 127
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.rint(kernel / scale) * scale)
    found = qat.rounded(tf.constant(kernel), (0, 1, 2)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(np.rint(found[..., 0] / scale[0]))) > 20


def test_labels_count_where_they_are_asked_for(tiny, tmp_path):
    """With labels alone, the network learns the class that they name."""
    parts, ranges = tiny
    targets = np.zeros((6, 4), np.float32)
    targets[:, 2] = 1

    def pictures(step):
        return ((_noise(seed), targets) for seed in range(step, 1000))

    settings = {"steps": 40, "learning_rate": 0.05}
    taught = qat.fine_tune(parts, ranges, pictures, tmp_path / "a", label_share=1.0, **settings)
    probabilities = taught.model(_noise(99))["probabilities"].numpy()
    assert (probabilities.argmax(-1) == 2).all()
    distilled = qat.fine_tune(parts, ranges, pictures, tmp_path / "b", **settings)
    expected = parts.model(_noise(99))["probabilities"].numpy()
    found = distilled.model(_noise(99))["probabilities"].numpy()
    np.testing.assert_allclose(found, expected, atol=0.05)
    unlabelled = qat.from_pictures(_noises)
    with pytest.raises(ValueError, match=r"label_share=0\.5 needs pictures with labels"):
        qat.fine_tune(parts, ranges, unlabelled, tmp_path / "c", steps=1, label_share=0.5)


def test_sigmoid_networks_learn_each_class_on_its_own(tiny, tmp_path):
    parts, ranges = tiny
    images = parts.model.input
    head = keras.layers.Activation("sigmoid", name="each")(parts.model.output["logits"])
    several = graph.parts(keras.Model(images, head))
    assert several.activation == "sigmoid"
    tuned = qat.fine_tune(
        several, ranges, qat.from_pictures(_noises), tmp_path, steps=5, learning_rate=1e-3
    )
    expected = several.model(_noise(99))["probabilities"].numpy()
    np.testing.assert_allclose(tuned.model(_noise(99))["probabilities"], expected, atol=0.05)


def test_pictures_come_from_sources_and_from_arrays_at_any_step(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    labels = np.arange(20) % 4
    source = arrays.from_arrays(images, labels)
    pictures, steps = qat.from_source(source, DataConfig(source="given", flip=True), 8, 3)
    assert steps == source.num_examples["train"] // 3
    first = [next(iter(pictures(step))) for step in (0, 1)]
    both = [batch for batch, _ in zip(pictures(0), range(2), strict=False)]
    for (one, targets), (other, _) in zip(first, both, strict=True):
        assert one.shape == (3, 8, 8, 3)
        assert targets.shape == (3, 4)
        np.testing.assert_array_equal(one, other)
    feed = qat.from_pictures(_noises)
    batches = [batch for (batch, _), _ in zip(feed(3), range(4), strict=False)]
    np.testing.assert_array_equal(batches[1], _noise(4))
    np.testing.assert_array_equal(batches[2], _noise(0)[:, :, ::-1])
    with pytest.raises(ValueError, match=r"no pictures to train with"):
        next(iter(qat.from_pictures(list)(0)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 0}, r"steps must be an integer >= 1"),
        ({"epochs": 1.5}, r"epochs must be an integer >= 1"),
        ({"learning_rate": 0}, r"learning_rate must be > 0"),
        ({"label_share": 1.5}, r"label_share must be in \[0, 1\]"),
        ({"pictures": lambda step: iter([(_noise(0), None)])}, r"must give 2 batches an epoch"),
    ],
)
def test_wrong_settings_are_refused(tiny, tmp_path, setting, message):
    parts, ranges = tiny
    settings = {"pictures": qat.from_pictures(_noises), "steps": 2, **setting}
    with pytest.raises(ValueError, match=message):
        qat.fine_tune(parts, ranges, folder=tmp_path, **settings)


def test_a_training_that_blows_up_says_so(tiny, tmp_path):
    parts, ranges = tiny
    nan = np.full((6, 8, 8, 3), np.nan, np.float32)
    with pytest.raises(FloatingPointError, match=r"epoch 1 is not finite"):
        qat.fine_tune(parts, ranges, lambda step: [(nan, None)], tmp_path, steps=1)
    assert not list(tmp_path.iterdir())
