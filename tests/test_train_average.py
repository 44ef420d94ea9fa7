"""The moving average against TensorFlow 1's and a closed form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.train.average import MovingAverage, averaged_variables, moving_statistics


def _model():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="dense")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dropout(0.5)(x))


def _names(variables):
    return sorted(v.path for v in variables)


def test_covers_weights_and_batch_statistics_of_frozen_layers_too():
    model = _model()
    names = ["beta", "gamma", "moving_mean", "moving_variance"]
    expected = ["dense/bias", "dense/kernel", *(f"norm/{name}" for name in names)]
    assert _names(averaged_variables(model)) == expected
    model.get_layer("dense").trainable = False
    model.get_layer("norm").trainable = False
    assert _names(averaged_variables(model)) == expected
    assert _names(moving_statistics(model)) == expected[-2:]


@pytest.mark.parametrize("decay", [0.7, 0.9999])
def test_equals_tensorflow_1s(decay):
    """Weights and batch statistics that jump about, for 40 steps."""
    model = _model()
    covered = averaged_variables(model)
    average = MovingAverage(model, decay)
    random = np.random.default_rng(0)
    starts = [v.numpy() for v in covered]
    values = [[random.normal(size=v.shape).astype(np.float32) for v in covered] for _ in range(40)]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(f"v{i}", initializer=start) for i, start in enumerate(starts)
        ]
        inputs = [tf.compat.v1.placeholder(tf.float32, v.shape) for v in variables]
        load = [v.assign(value) for v, value in zip(variables, inputs, strict=True)]
        step = tf.compat.v1.placeholder(tf.float32, ())
        shadow = tf.compat.v1.train.ExponentialMovingAverage(decay, num_updates=step)
        update = shadow.apply(variables)
        session.run(tf.compat.v1.global_variables_initializer())
        for number, row in enumerate(values, 1):
            session.run(load, dict(zip(inputs, row, strict=True)))
            session.run(update, {step: number})
        expected = session.run([shadow.average(v) for v in variables])
    for number, row in enumerate(values, 1):
        for variable, value in zip(covered, row, strict=True):
            variable.assign(value)
        average.update(tf.constant(number))
    average.swap()
    for variable, value in zip(covered, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)
    average.swap()
    for variable, value in zip(covered, values[-1], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_ramp_forgets_the_first_weights():
    """`w = t` for 200 steps with decay 0.9999: a constant decay would give about 2."""
    model = _model()
    average = MovingAverage(model, decay=0.9999)
    bias = model.get_layer("dense").bias
    expected = 0.0
    for step in range(1, 201):
        bias.assign(np.full(3, step, np.float32))
        average.update(tf.constant(step))
        decay = min(0.9999, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    average.swap()
    np.testing.assert_allclose(bias.numpy(), expected, rtol=1e-5)
    assert 175 < expected < 185


def test_steps_in_a_graph_equal_eager_ones():
    eager, graph = (_model() for _ in range(2))
    graph.set_weights(eager.get_weights())
    averages = [MovingAverage(model, 0.9) for model in (eager, graph)]
    update = tf.function(averages[1].update)
    for step in range(1, 6):
        for model in (eager, graph):
            model.get_layer("norm").moving_mean.assign(np.full(3, step, np.float32))
        averages[0].update(tf.constant(step))
        update(tf.constant(step))
    for average in averages:
        average.swap()
    for a, b in zip(eager.get_weights(), graph.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
