"""Optimizers against TensorFlow 1's own and closed forms, at rates that change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.train import optimizer as optimizer_lib

STEPS = 30
START = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


@pytest.fixture(scope="module")
def gradients():
    random = np.random.default_rng(1)
    scales = 10.0 ** random.uniform(-3, 0, (STEPS, 1, 1))
    return (random.normal(size=(STEPS, 4, 4)) * scales).astype(np.float32)


def _config(name, *settings):
    """A run of 30 steps of 256 pictures whose rate changes with every step."""
    return override(
        Config(),
        f"train.optimizer={name}",
        "train.schedule=linear",
        "train.learning_rate=0.05",
        "train.epochs=1",
        "train.min_learning_rate=0.001",
        "data.batch_size=256",
        *settings,
    )


RATES = np.maximum(0.05 * (1 - np.arange(STEPS) / STEPS), 0.001)


def _ours(config, gradients, start=START, name="kernel", **kwargs):
    """Values after each step."""
    variable = keras.Variable(start, name=name)
    optimizer = optimizer_lib.create(config, [variable], STEPS, 1, **kwargs)
    apply = tf.function(lambda gradient: optimizer.apply([gradient], [variable]))
    values = []
    for gradient in gradients:
        apply(tf.constant(gradient))
        values.append(variable.numpy())
    return np.array(values)


def _tensorflow_1s(make, gradients, rates=RATES, start=START):
    """Values after each step of an optimizer of TensorFlow 1, in a graph of its own."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("w", initializer=tf.constant(start))
        gradient = tf.compat.v1.placeholder(tf.float32, start.shape)
        rate = tf.compat.v1.placeholder(tf.float32, ())
        step = make(rate).apply_gradients([(gradient, variable)])
        session.run(tf.compat.v1.global_variables_initializer())
        values = []
        for value, now in zip(gradients, rates, strict=True):
            session.run(step, {gradient: value, rate: now})
            values.append(session.run(variable))
    return np.array(values)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_rmsprop_is_tensorflow_1s(gradients, momentum):
    expected = _tensorflow_1s(
        lambda rate: tf.compat.v1.train.RMSPropOptimizer(rate, 0.9, momentum, 1e-3), gradients
    )
    found = _ours(_config("rmsprop", f"train.momentum={momentum}"), gradients)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_keras_rmsprop_is_not(gradients):
    """The reason for the class: Keras' is far off from the first step on."""
    expected = _tensorflow_1s(
        lambda rate: tf.compat.v1.train.RMSPropOptimizer(rate, 0.9, 0.9, 1e-3), gradients
    )
    variable = keras.Variable(START, name="kernel")
    own = keras.optimizers.RMSprop(RATES[0], rho=0.9, momentum=0.9, epsilon=1e-3)
    own.apply([tf.constant(gradients[0])], [variable])
    assert np.abs(variable.numpy() - expected[0]).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_tensorflow_1s(gradients, momentum):
    def make(rate):
        if momentum:
            return tf.compat.v1.train.MomentumOptimizer(rate, momentum)
        return tf.compat.v1.train.GradientDescentOptimizer(rate)

    expected = _tensorflow_1s(make, gradients)
    found = _ours(_config("sgd", f"train.momentum={momentum}"), gradients)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_keras_sgd_is_not_where_the_rate_changes(gradients):
    rates = iter(RATES.astype(np.float32))
    variable = keras.Variable(START, name="kernel")
    own = keras.optimizers.SGD(lambda: next(rates), momentum=0.9)
    for gradient in gradients:
        own.apply([tf.constant(gradient)], [variable])
    assert np.abs(variable.numpy() - _ours(_config("sgd"), gradients)[-1]).max() > 1e-3


# A tenth of the other rates: 1 - 0.999**step costs float32 three digits of each Adam step.
ADAM = ("train.learning_rate=0.005", "train.min_learning_rate=0.0001")


@pytest.mark.parametrize("scale", [1, 1e-5])  # of the gradients; the small ones show epsilon
def test_adam_is_tensorflow_1s(scale, gradients):
    small = gradients * np.float32(scale)
    expected = _tensorflow_1s(tf.compat.v1.train.AdamOptimizer, small, RATES / 10)
    np.testing.assert_allclose(_ours(_config("adamw", *ADAM), small), expected, atol=1e-6)


def _adamw(gradients, decay):
    """Loshchilov & Hutter's Algorithm 2 as in Keras: the decay first, epsilon on the raw root."""
    value, mean, square = (x.astype(np.float64) for x in (START, 0 * START, 0 * START))
    values = []
    for step, (gradient, rate) in enumerate(zip(gradients, RATES / 10, strict=True), 1):
        value = value - rate * decay * value
        mean = 0.9 * mean + 0.1 * gradient.astype(np.float64)
        square = 0.999 * square + 0.001 * gradient.astype(np.float64) ** 2
        length = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        value = value - length * mean / (np.sqrt(square) + 1e-8)
        values.append(value)
    return np.array(values)


UPDATE = ("train.weight_decay=0.1", "train.weight_decay_in=update")


def test_adamw_is_the_closed_form(gradients):
    found = _ours(_config("adamw", *ADAM, *UPDATE), gradients)
    np.testing.assert_allclose(found, _adamw(gradients, 0.1), atol=1e-6)


def test_adamw_is_keras_own(gradients):
    values = []
    for make in (optimizer_lib.AdamW, keras.optimizers.AdamW):
        variable = keras.Variable(START, name="kernel")
        optimizer = make(0.01, weight_decay=0.1, beta_1=0.8)
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)], [variable])
        values.append(variable.numpy())
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "sgd"])
def test_decay_in_the_update_shrinks_before_the_step(name, gradients):
    """w -= rate * decay * w, then the step of the optimizer, which does not know of the decay."""
    free = np.concatenate([START[None], _ours(_config(name), gradients)]).astype(np.float64)
    value, expected = START.astype(np.float64), []
    for step, rate in zip(np.diff(free, axis=0), RATES, strict=True):
        value = value - rate * 0.1 * value + step
        expected.append(value)
    found = _ours(_config(name, *UPDATE), gradients)
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


def _lars(gradients, decay, in_gradients, rates=RATES, start=START, adapted=True):
    """Restates `tf.contrib.opt.LARSOptimizer`, and the decay of the paper's Algorithm 1."""
    value, total = start.astype(np.float64), 0.0
    values = []
    for gradient, rate in zip(gradients.astype(np.float64), rates, strict=True):
        weight, slope = np.linalg.norm(value), np.linalg.norm(gradient)
        if adapted and weight > 0 and slope > 0:
            rate = rate * 0.001 * weight / (slope + decay * weight)
        if not in_gradients:
            gradient = gradient + decay * value
        total = 0.9 * total + gradient
        value = value - rate * total
        values.append(value)
    return np.array(values)


@pytest.mark.parametrize("where", ["loss", "update"])
def test_lars_is_the_closed_form(where, gradients):
    settings = ("train.weight_decay=0.1", f"train.weight_decay_in={where}")
    found = _ours(_config("lars", "train.learning_rate=20", *settings), gradients)
    rates = np.maximum(RATES * 400, 0.001)
    expected = _lars(gradients, 0.1, where == "loss", rates)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found[-1] - START).max() > 0.05
    other = _lars(gradients, 0.1, where != "loss", rates)
    assert np.abs(other - expected).max() > 1e-3  # the two differ


def test_first_step_of_lars_is_the_papers_algorithm_1(gradients):
    found = _ours(_config("lars", "train.learning_rate=20", *UPDATE), gradients)[0]
    gradient = gradients[0]
    local = 0.001 * np.linalg.norm(START)
    local /= np.linalg.norm(gradient) + 0.1 * np.linalg.norm(START)
    np.testing.assert_allclose(
        found, START - 20 * local * (gradient + 0.1 * START), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["bias", "gamma", "beta"])
def test_lars_skips_biases_and_normalization(name, gradients):
    found = _ours(_config("lars", *UPDATE), gradients, name=name)
    np.testing.assert_allclose(found, _lars(gradients, 0.0, True, adapted=False), atol=1e-6)


def test_lars_decays_biases_where_asked(gradients):
    config = _config("lars", *UPDATE, "train.weight_decay_on=all_but_norm")
    found = _ours(config, gradients, name="bias")
    np.testing.assert_allclose(found, _lars(gradients, 0.1, False, adapted=False), atol=1e-6)


def test_lars_takes_the_plain_rate_where_a_length_is_zero(gradients):
    zero = np.zeros_like(START)
    found = _ours(_config("lars", *UPDATE), gradients, start=zero)
    np.testing.assert_allclose(found, _lars(gradients, 0.1, False, start=zero), atol=1e-6)
    np.testing.assert_allclose(found[0], -0.05 * gradients[0], rtol=1e-5)
    # No gradient in the first steps: neither nan nor a step.
    some = gradients * (np.arange(STEPS) >= 5)[:, None, None]
    found = _ours(_config("lars"), some)
    np.testing.assert_array_equal(found[4], START)
    np.testing.assert_allclose(found, _lars(some, 0.0, True), atol=1e-6)


@pytest.mark.parametrize("batch_size", [64, 2048])
def test_rate_scales_with_the_batch(batch_size, gradients):
    found = _ours(_config("sgd", "train.momentum=0", f"data.batch_size={batch_size}"), gradients)
    np.testing.assert_allclose(
        found[0], START - 0.05 * batch_size / 256 * gradients[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lars"])
def test_multipliers_scale_a_variables_rate_and_its_decay(name, gradients):
    """The same as a learning rate, and a floor, that are a tenth."""
    tenth = ("train.learning_rate=0.005", "train.min_learning_rate=0.0001")
    expected = _ours(_config(name, *UPDATE, *tenth), gradients)
    found = _ours(_config(name, *UPDATE), gradients, multipliers={"kernel": 0.1})
    np.testing.assert_allclose(found, expected, atol=1e-6)
    if name == "adamw":
        np.testing.assert_allclose(found, _adamw(gradients, 0.1), atol=1e-6)
    if name == "lars":
        np.testing.assert_allclose(found, _lars(gradients, 0.1, False, RATES * 0.1), atol=1e-6)
    untouched = _ours(_config(name, *UPDATE), gradients, multipliers={"other/kernel": 0.1})
    np.testing.assert_array_equal(untouched, _ours(_config(name, *UPDATE), gradients))
    assert np.abs(untouched - found).max() > 1e-4
