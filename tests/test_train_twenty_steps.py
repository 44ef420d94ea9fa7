"""24 compiled steps against formulas of the gradients and TensorFlow 1's optimizer in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.train import loop
from efficientnet_tf.train import optimizer as optimizer_lib

STEPS, BATCH, CLASSES = 24, 8, 3
CLIP = 0.8  # some of the gradients are longer
CONFIG = override(
    Config(),
    f"data.batch_size={BATCH}",
    "train.optimizer=rmsprop",
    "train.learning_rate=3.2",  # for 256 pictures; 0.1 for 8
    "train.schedule=exponential",
    "train.decay_epochs=0.5",  # 6 of the 12 steps of an epoch
    "train.decay_rate=0.8",
    "train.warmup_epochs=0.25",
    "train.epochs=2",
    "train.weight_decay=0.05",
    "train.weight_decay_in=loss",
    f"train.clip_norm={CLIP}",
    "train.accumulate=2",
)
RATES = [0.1 * step / 3 for step in range(3)] + [0.1 * 0.8 ** (n // 6) for n in range(3, STEPS)]


def _pictures():
    """Pictures of all steps, and their mean pixels in float64."""
    images = np.random.default_rng(0).normal(1, 2, (STEPS, BATCH, 4, 4, 3)).astype(np.float32)
    return images, images.astype(np.float64).mean((2, 3))


def _found(config, images, targets):
    """Kernel and bias before the first step and after each, of logits of the mean pixels."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, outputs)
    optimizer = optimizer_lib.create(config, model.trainable_variables, 12, 2)
    one = tf.distribute.get_strategy()
    steps = loop.training_steps(one, loop.Trainee(model, optimizer), BATCH, config.train)
    batches = iter(tf.data.Dataset.from_tensor_slices((images, targets.astype(np.float32))))
    values = [model.get_weights()]
    for _ in range(STEPS):
        steps(batches, tf.constant(1))
        values.append(model.get_weights())
    return values


def _expected(start, features, slopes, decays_bias):
    """The same from formulas of the gradients and TensorFlow 1's optimizer.

    Args:
        start: kernel and bias.
        features: of all steps.
        slopes: gives, of a step and its logits, the gradient of the mean loss in the logits.
        decays_bias: whether the loss has the bias' squares too.

    Returns:
        Values as `_found` does, and the length of each step's gradient.
    """
    values, lengths = [[value.astype(np.float64) for value in start]], []
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=value)
            for name, value in zip(("kernel", "bias"), values[0], strict=True)
        ]
        given = [tf.compat.v1.placeholder(tf.float64, value.shape) for value in start]
        rate = tf.compat.v1.placeholder(tf.float64, ())
        optimizer = tf.compat.v1.train.RMSPropOptimizer(rate, 0.9, 0.9, 1e-3)
        update = optimizer.apply_gradients(zip(given, variables, strict=True))
        session.run(tf.compat.v1.global_variables_initializer())
        for step in range(STEPS):
            kernel, bias = values[-1]
            slope = slopes(step, features[step] @ kernel + bias)
            gradients = [features[step].T @ slope + 0.05 * kernel, slope.sum(0)]
            if decays_bias:
                gradients[1] += 0.05 * bias
            lengths.append(np.sqrt(sum((gradient**2).sum() for gradient in gradients)))
            factor = min(1, CLIP / lengths[-1])
            fed = {place: factor * value for place, value in zip(given, gradients, strict=True)}
            session.run(update, fed | {rate: RATES[step]})
            values.append(session.run(variables))
    return values, lengths


def _check(found, expected, lengths):
    assert 4 < np.greater(lengths, CLIP).sum() < STEPS - 4  # some steps are clipped, others not
    for values in zip(*expected, strict=True):
        assert np.ptp(values, axis=0).max() > 0.05  # of the kernel, and of the bias: they move
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        # Relative to the largest value: float32 gives no more of those that cross zero.
        allowed = 1e-6 * max(np.abs(value).max() for value in theirs)
        for value, wanted in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=0, atol=allowed, err_msg=f"step {step}")


@pytest.mark.parametrize("decay_on", ["kernels", "all_but_norm"])
def test_smoothed_cross_entropy_with_decay_and_clipping_in_parts(decay_on):
    images, features = _pictures()
    labels = np.eye(CLASSES)[np.random.default_rng(1).integers(0, CLASSES, (STEPS, BATCH))]
    config = override(CONFIG, "train.label_smoothing=0.3", f"train.weight_decay_on={decay_on}")

    def slopes(step, logits):
        powers = np.exp(logits)
        probabilities = powers / powers.sum(-1, keepdims=True)
        return (probabilities - (0.7 * labels[step] + 0.3 / 3)) / BATCH

    found = _found(config, images, labels)
    _check(found, *_expected(found[0], features, slopes, decay_on == "all_but_norm"))


def test_sigmoid_loss_with_decay_and_clipping_in_parts():
    images, features = _pictures()
    labels = np.random.default_rng(1).integers(0, 2, (STEPS, BATCH, CLASSES))

    def slopes(step, logits):
        return (1 / (1 + np.exp(-logits)) - labels[step]) / BATCH

    found = _found(override(CONFIG, "train.loss=sigmoid"), images, labels)
    _check(found, *_expected(found[0], features, slopes, decays_bias=False))
