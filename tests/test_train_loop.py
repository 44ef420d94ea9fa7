"""The compiled steps: the loss that is descended, its gradients in parts, evaluation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.data import pipeline, sources
from efficientnet_tf.preprocessing import own
from efficientnet_tf.train import loop
from efficientnet_tf.train import optimizer as optimizer_lib

ONE = tf.distribute.get_strategy()
PLAIN = override(  # w -= gradient
    Config(),
    "train.optimizer=sgd",
    "train.momentum=0",
    "train.learning_rate=32",  # for 256 pictures; 1 for 8
    "train.schedule=constant",
    "data.batch_size=8",
)


def _linear(classes=3):
    """Logits are a linear function of the pixels' mean, which can be computed by hand."""
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes, name="dense"),
        ]
    )


def _softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def _pictures(count=8):
    """Pictures, their mean pixels in float64, and one-hot labels of 3 classes."""
    random = np.random.default_rng(0)
    images = random.normal(size=(count, 4, 4, 3)).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[random.integers(0, 3, count)]
    return images, images.astype(np.float64).mean((1, 2)), labels


def _step(config, images, targets):
    """One step of the linear model: (values before, values after, trainee)."""
    model = _linear()
    before = [v.numpy().astype(np.float64) for v in model.trainable_variables]
    optimizer = optimizer_lib.create(config, model.trainable_variables, 1, 1)
    trainee = loop.Trainee(model, optimizer)
    steps = loop.training_steps(ONE, trainee, len(images), config.train)
    steps(iter(tf.data.Dataset.from_tensors((images, targets))), tf.constant(1))
    return before, [v.numpy() for v in model.trainable_variables], trainee


@pytest.mark.parametrize("decay_on", ["kernels", "all_but_norm"])
def test_one_step_descends_smoothed_cross_entropy_and_half_squared_weights(decay_on):
    images, features, labels = _pictures()
    config = override(
        PLAIN,
        "train.label_smoothing=0.3",
        "train.weight_decay=0.01",
        f"train.weight_decay_on={decay_on}",
    )
    (kernel, bias), after, trainee = _step(config, images, labels)
    probabilities = _softmax(features @ kernel + bias)
    slope = (probabilities - (labels * 0.7 + 0.3 / 3)) / 8
    bias_decay = 0.01 * bias if decay_on == "all_but_norm" else 0.0
    expected = [kernel - (features.T @ slope + 0.01 * kernel), bias - slope.sum(0) - bias_decay]
    for variable, value in zip(after, expected, strict=True):
        np.testing.assert_allclose(variable, value, atol=1e-6)
    scores = trainee.scores()
    # What is reported has neither smoothing nor decay.
    assert scores.loss == pytest.approx(-(labels * np.log(probabilities)).sum(-1).mean(), rel=1e-5)
    assert scores.accuracy == (probabilities.argmax(-1) == labels.argmax(-1)).mean()
    assert (scores.top5, scores.count) == (1.0, 8)  # of 3 classes, one is always right


def test_sigmoid_loss_adds_the_classes_and_takes_several_labels():
    images, features, _ = _pictures()
    targets = np.float32([[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]] * 2)
    (kernel, bias), after, trainee = _step(override(PLAIN, "train.loss=sigmoid"), images, targets)
    logits = features @ kernel + bias
    slope = (_sigmoid(logits) - targets) / 8
    for variable, value in zip(
        after, [kernel - features.T @ slope, bias - slope.sum(0)], strict=True
    ):
        np.testing.assert_allclose(variable, value, atol=1e-6)
    entropies = -targets * np.log(_sigmoid(logits)) - (1 - targets) * np.log(_sigmoid(-logits))
    scores = trainee.scores()
    assert scores.loss == pytest.approx(entropies.sum(-1).mean(), rel=1e-5)
    # Right is one of the labels; a picture without labels is never right.
    assert scores.accuracy == targets[np.arange(8), logits.argmax(-1)].mean()
    assert scores.top5 == (targets.max(-1) > 0).mean()


def test_softmax_shares_the_weight_among_several_labels():
    images, features, _ = _pictures()
    targets = np.float32([[1, 1, 0], [0, 1, 0]] * 4)
    (kernel, bias), after, _ = _step(PLAIN, images, targets)
    slope = (_softmax(features @ kernel + bias) - targets / targets.sum(-1, keepdims=True)) / 8
    np.testing.assert_allclose(after[0], kernel - features.T @ slope, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    images, features, labels = _pictures()
    config = override(PLAIN, f"train.accumulate={parts}")
    (kernel, bias), after, trainee = _step(config, images, labels)
    slope = (_softmax(features @ kernel + bias) - labels) / 8
    np.testing.assert_allclose(after[0], kernel - features.T @ slope, atol=1e-6)
    assert trainee.scores().count == 8
    assert int(trainee.optimizer.iterations.numpy()) == 1  # one update, one step of the schedule


def test_only_layers_that_learn_are_changed():
    inputs = keras.Input((4, 4, 3))
    body = keras.layers.Dense(5, name="body")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(body))
    optimizer = optimizer_lib.create(PLAIN, model.trainable_variables, 1, 1)
    trainee = loop.Trainee(model, optimizer)
    images, _, labels = _pictures()
    batch = tf.data.Dataset.from_tensors((images, labels)).repeat()
    moved = []
    for body_learns in (False, True):
        model.get_layer("body").trainable = body_learns
        before = {v.path: v.numpy() for v in model.weights}
        loop.training_steps(ONE, trainee, 8, PLAIN.train)(iter(batch), tf.constant(2))
        moved.append({v.path for v in model.weights if (v.numpy() != before[v.path]).any()})
    assert moved == [{"head/kernel", "head/bias"}, {v.path for v in model.weights}]


def test_steps_in_one_call_are_the_same_as_one_by_one():
    weights = []
    for calls in ((5,), (1, 1, 2, 1)):
        config = override(Config(), "data.batch_size=16")
        model = _linear(10)
        optimizer = optimizer_lib.create(config, model.trainable_variables, 5, 10)
        steps = loop.training_steps(ONE, loop.Trainee(model, optimizer), 16, config.train)
        images = tf.random.stateless_normal((160, 4, 4, 3), (1, 2))
        labels = tf.one_hot(tf.range(160) % 10, 10)
        batches = iter(tf.data.Dataset.from_tensor_slices((images, labels)).batch(16))
        for count in calls:
            steps(batches, tf.constant(count))
        assert int(optimizer.iterations.numpy()) == 5
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch_size", [7, 64, 400])
def test_evaluation_equals_scoring_every_picture_by_hand(batch_size):
    source = sources.open_source(Config().data)
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    optimizer = optimizer_lib.create(Config(), model.trainable_variables, 1, 1)
    trainee = loop.Trainee(model, optimizer)
    trainee.add(tf.fill(5, 1e9), tf.eye(5, 10), tf.eye(5, 10), tf.ones(5))  # must be forgotten
    rule = own(32, [1, 1, 1], [0, 0, 0])
    batches = iter(pipeline.evaluation(source, "test", rule, batch_size))
    steps = pipeline.evaluation_steps(source, "test", batch_size)
    scores = loop.evaluator(ONE, trainee)(batches, steps)

    images, labels = zip(*pipeline.pictures(source, "test", rule, 359), strict=True)
    probabilities = _softmax(model.predict(images[0], verbose=0).astype(np.float64))
    assert scores.count == 359
    assert scores.accuracy == pytest.approx(
        (probabilities.argmax(-1) == labels[0]).mean(), abs=1e-7
    )
    ranks = (-probabilities).argsort(-1)[:, :5]
    assert scores.top5 == pytest.approx((ranks == labels[0][:, None]).any(-1).mean(), abs=1e-7)
    right = probabilities[np.arange(359), labels[0]]
    assert scores.loss == pytest.approx(-np.log(right).mean(), rel=1e-5)


def test_filling_that_gives_nan_does_not_count():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    trainee = loop.Trainee(model, optimizer_lib.create(Config(), model.trainable_variables, 1, 1))
    images = np.ones((3, 4, 4, 3), np.float32)
    images[2] = np.nan
    batch = (images, np.array([0, 0, 0]), np.array([1, 1, 0], np.float32))
    scores = loop.evaluator(ONE, trainee)(iter(tf.data.Dataset.from_tensors(batch)), 1)
    assert np.isfinite(scores.loss)
    assert scores.count == 2
    assert trainee.scores().count == 0  # nothing was added since


def test_a_gradient_that_is_not_finite_is_counted_though_the_loss_is():
    """The slope of the square root at 0."""
    images, _, labels = _pictures()
    root = keras.layers.Dense(3, keras.ops.sqrt, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D(), root])
    trainee = loop.Trainee(model, optimizer_lib.create(PLAIN, model.trainable_variables, 1, 1))
    steps = loop.training_steps(ONE, trainee, len(images), PLAIN.train)
    steps(iter(tf.data.Dataset.from_tensors((images, labels))), tf.constant(1))
    assert trainee.mean_loss() == pytest.approx(np.log(3))
    assert trainee.broken_steps(1) == 1
