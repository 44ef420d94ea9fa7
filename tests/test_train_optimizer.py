"""Optimizer, schedule and moving average against independent computations."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import Config, TrainConfig, override
from efficientnet_tf.train import optimizer as optimizer_lib


def _tf1_rmsprop(start, gradients, rate):
    """Weights after each step of TensorFlow 1's optimizer, in a graph of its own."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("w", initializer=tf.constant(start))
        gradient = tf.compat.v1.placeholder(tf.float32, start.shape)
        optimizer = tf.compat.v1.train.RMSPropOptimizer(rate, 0.9, 0.9, 1e-3)
        step = optimizer.apply_gradients([(gradient, variable)])
        session.run(tf.compat.v1.global_variables_initializer())
        weights = []
        for value in gradients:
            session.run(step, {gradient: value})
            weights.append(session.run(variable))
    return weights


def _our_weights(optimizer, start, gradients):
    variable = keras.Variable(start, name="kernel")
    optimizer.build([variable])
    weights = []
    for value in gradients:
        optimizer.apply([tf.constant(value)], [variable])
        weights.append(variable.numpy())
    return weights


@pytest.fixture(scope="module")
def gradients():
    random = np.random.default_rng(1)
    scales = 10.0 ** random.uniform(-3, 0, (30, 1))
    return list((random.normal(size=(30, 16)) * scales).astype(np.float32))


def test_rmsprop_is_tensorflow_1s(gradients):
    start = np.linspace(-1, 1, 16, dtype=np.float32)
    expected = _tf1_rmsprop(start, gradients, 0.01)
    ours = optimizer_lib.RMSprop(0.01, rho=0.9, momentum=0.9, epsilon=1e-3)
    np.testing.assert_allclose(_our_weights(ours, start, gradients), expected, atol=1e-6)
    # The reason for the class: Keras' own is far off from the first step on.
    keras_own = keras.optimizers.RMSprop(0.01, rho=0.9, momentum=0.9, epsilon=1e-3)
    assert np.abs(_our_weights(keras_own, start, gradients)[0] - expected[0]).max() > 1e-3


def test_created_rmsprop_has_the_papers_settings(gradients):
    config = override(
        Config(), "data.batch_size=256", "train.learning_rate=0.01", "train.schedule=constant"
    )
    start = np.linspace(-1, 1, 16, dtype=np.float32)
    variable = keras.Variable(start, name="kernel")
    optimizer = optimizer_lib.create(config, [variable], steps_per_epoch=10)
    for value in gradients:
        optimizer.apply([tf.constant(value)], [variable])
    expected = _tf1_rmsprop(start, gradients, 0.01)[-1]
    np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)


def test_decay_in_the_update_shrinks_kernels_only():
    config = override(
        Config(),
        "train.optimizer=adamw",
        "train.schedule=constant",
        "train.learning_rate=0.5",
        "data.batch_size=256",
        "train.weight_decay=0.1",
        "train.weight_decay_in=update",
    )
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    kernel, bias = model.trainable_variables
    before = kernel.numpy()
    bias.assign([1.0, 2.0, 3.0])
    optimizer = optimizer_lib.create(config, model.trainable_variables, steps_per_epoch=10)
    optimizer.apply([tf.zeros((4, 3)), tf.zeros(3)], model.trainable_variables)
    np.testing.assert_allclose(kernel.numpy(), before * (1 - 0.5 * 0.1), rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), [1.0, 2.0, 3.0])


def test_clipping_limits_the_length_over_all_variables():
    config = override(
        Config(),
        "train.optimizer=sgd",
        "train.momentum=0",
        "train.schedule=constant",
        "train.learning_rate=1",
        "data.batch_size=256",
        "train.clip_norm=0.5",
    )
    variables = [keras.Variable(np.zeros(2, np.float32), name=n) for n in ("a", "b")]
    optimizer = optimizer_lib.create(config, variables, steps_per_epoch=10)
    optimizer.apply([tf.constant([3.0, 0.0]), tf.constant([0.0, 4.0])], variables)
    np.testing.assert_allclose(variables[0].numpy(), [-0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(variables[1].numpy(), [0.0, -0.4], rtol=1e-6)


def _rate(step, **settings):
    config = TrainConfig(epochs=350, **settings)
    return float(optimizer_lib.WarmupSchedule(config, 0.256, steps_per_epoch=100)(step))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.0), (2.5, 0.128), (5, 0.24087), (10, 0.22664), (100, 0.07343), (349.99, 0.00309)],
)
def test_exponential_schedule_has_the_papers_values(epoch, expected):
    # 0.256 * 0.97 ** floor(epoch / 2.4), the stairs counted from step 0, a ramp of 5 epochs.
    rate = _rate(
        round(epoch * 100),
        schedule="exponential",
        warmup_epochs=5,
        decay_epochs=2.4,
        decay_rate=0.97,
    )
    assert rate == pytest.approx(expected, rel=2e-3, abs=1e-9)


@pytest.mark.parametrize("step", [0, 123, 500, 501, 20000, 34999, 35000, 36000])
def test_cosine_schedule_is_a_half_wave_after_the_warmup(step):
    done = min(max((step - 500) / (35000 - 500), 0), 1)
    expected = 0.256 * step / 500 if step < 500 else 0.256 * 0.5 * (1 + math.cos(math.pi * done))
    assert _rate(step, schedule="cosine", warmup_epochs=5) == pytest.approx(expected, abs=1e-7)


def test_constant_schedule_without_warmup_starts_at_the_peak():
    assert _rate(0, schedule="constant") == pytest.approx(0.256)


def test_moving_average_covers_statistics_and_ramps_up():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    )
    covered = optimizer_lib.averaged_variables(model)
    assert len(covered) == 6  # kernel, bias, gamma, beta, moving mean and variance
    average = optimizer_lib.MovingAverage(model, decay=0.7)
    expected = [v.numpy().astype(np.float64) for v in covered]
    random = np.random.default_rng(0)
    for step in range(1, 41):
        for variable in covered:
            variable.assign(random.normal(size=variable.shape))
        average.update(tf.constant(step))
        decay = min(0.7, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * v.numpy() for e, v in zip(expected, covered, strict=True)
        ]
    latest = [v.numpy() for v in covered]
    average.swap()
    for variable, value in zip(covered, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)
    average.swap()
    for variable, value in zip(covered, latest, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_moving_average_equals_tensorflow_1s():
    """`w = t` for 200 steps with decay 0.9999: mostly the ramp counts."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), layer])
    average = optimizer_lib.MovingAverage(model, decay=0.9999)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("w", initializer=0.0)
        step = tf.compat.v1.placeholder(tf.float32, ())
        shadow = tf.compat.v1.train.ExponentialMovingAverage(0.9999, num_updates=step)
        update = shadow.apply([variable])
        session.run(tf.compat.v1.global_variables_initializer())
        for value in range(1, 201):
            variable.load(float(value), session)
            session.run(update, {step: value})
        expected = session.run(shadow.average(variable))
    for value in range(1, 201):
        layer.kernel.assign([[float(value)]])
        average.update(tf.constant(value))
    average.swap()
    assert float(layer.kernel.numpy()[0, 0]) == pytest.approx(float(expected), rel=1e-5)
    assert expected > 150  # a constant decay would give about 2
