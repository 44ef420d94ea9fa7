"""Distillation: its loss and gradients by hand, and what the teacher is shown."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.preprocessing import NORMALIZATIONS, Preprocessing
from efficientnet_tf.train import loop
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train.teacher import Distillation, Teacher

PLAIN = override(  # w -= gradient
    Config(),
    "train.optimizer=sgd",
    "train.momentum=0",
    "train.learning_rate=32",
    "train.schedule=constant",
    "data.batch_size=8",
)
RNG = np.random.default_rng(0)


def _linear(size, classes=3, activation=None):
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes, activation=activation),
        ]
    )


def _teacher(size=4, columns=(0, 1, 2), activation="softmax"):
    keras.utils.set_random_seed(1)
    model = _linear(size, len(columns), activation)
    rule = Preprocessing("own", *NORMALIZATIONS["v2"], size, "bilinear", "squash", labels=None)
    return Teacher("teacher", model, rule, np.array(columns), "")


def _softmax(logits, temperature=1.0):
    powers = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (0.5, 1.0)])
def test_loss_is_the_closed_form(temperature, alpha):
    taught, logits = RNG.normal(size=(2, 8, 5)) * 3
    labels = RNG.uniform(size=8)
    p, q = _softmax(taught, temperature), _softmax(logits, temperature)
    expected = (1 - alpha) * labels + alpha * temperature**2 * (p * np.log(p / q)).sum(-1)
    lesson = Distillation(_teacher(), temperature, alpha)
    found = lesson.losses(*(tf.constant(x, tf.float32) for x in (labels, taught, logits)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gradient_is_that_of_the_papers_and_its_size_does_not_fall_with_the_temperature():
    taught, logits = RNG.normal(size=(2, 8, 5)).astype(np.float32)
    sizes = []
    for temperature in (1.0, 20.0, 40.0):
        lesson = Distillation(_teacher(), temperature, 1.0)
        x = tf.Variable(logits)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(lesson.losses(tf.zeros(8), tf.constant(taught), x))
        gradient = tape.gradient(loss, x).numpy()
        # T^2 times (q - p) / T, Hinton's equation 2.
        difference = _softmax(logits, temperature) - _softmax(taught, temperature)
        np.testing.assert_allclose(gradient, temperature * difference, rtol=1e-3, atol=1e-5)
        sizes.append(np.abs(gradient).max())
    # For high temperatures it is (z - v) / N of logits whose mean is taken away: equation 4.
    centred = (logits - logits.mean(1, keepdims=True)) - (taught - taught.mean(1, keepdims=True))
    np.testing.assert_allclose(gradient, centred / 5, atol=0.03)
    assert max(sizes) < 3 * min(sizes)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_one_step_learns_from_labels_and_teacher_on_the_same_pictures(activation):
    temperature, alpha = 3.0, 0.7
    images = RNG.normal(size=(8, 4, 4, 3)).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 8)]
    teacher = _teacher(4, (2, 0, 1), activation)
    keras.utils.set_random_seed(2)
    student = _linear(4)
    kernel, bias = (v.numpy().astype(np.float64) for v in student.trainable_variables)
    before = [v.numpy() for v in teacher.model.variables]
    config = override(PLAIN, "train.label_smoothing=0.3")
    optimizer = optimizer_lib.create(config, student.trainable_variables, 1, 1)
    steps = loop.training_steps(
        tf.distribute.get_strategy(),
        loop.Trainee(student, optimizer),
        8,
        config.train,
        Distillation(teacher, temperature, alpha),
    )
    steps(iter(tf.data.Dataset.from_tensors((images, labels))), tf.constant(1))

    features = images.astype(np.float64).mean((1, 2))
    logits = features @ kernel + bias
    taught = (features @ before[0] + before[1])[:, [2, 0, 1]]  # in the order of the labels
    smoothed = labels * 0.7 + 0.1
    slope = (1 - alpha) * (_softmax(logits) - smoothed)
    slope += alpha * temperature * (_softmax(logits, temperature) - _softmax(taught, temperature))
    expected = kernel - features.T @ slope / 8, bias - slope.sum(0) / 8
    for variable, value in zip(student.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-5)
    for variable, value in zip(teacher.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_teacher_sees_pictures_of_its_own_size():
    images = RNG.uniform(0, 255, (2, 12, 12, 3)).astype(np.float32)
    teacher = _teacher(6, activation=None)
    lesson = Distillation(teacher, 1.0, 1.0)
    # Bilinear halving without antialiasing takes the mean of the two pixels beside each centre.
    halved = (images[:, ::2] + images[:, 1::2]) / 2
    halved = (halved[:, :, ::2] + halved[:, :, 1::2]) / 2
    np.testing.assert_allclose(lesson.logits(images), teacher.model(halved), rtol=1e-4)


_TWO_REPLICAS = """
import json, sys
import keras
import numpy as np
import tensorflow as tf
from efficientnet_tf.config import Config, StudentConfig, override
from efficientnet_tf.data import arrays
from efficientnet_tf.train import loop, optimizer, teacher

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
config = override(Config(), "train.optimizer=sgd", "data.batch_size=8")
random = np.random.default_rng(0)
pictures = random.integers(0, 256, (20, 8, 8, 3), np.uint8)
source = arrays.from_arrays(pictures, np.arange(20) % 2, class_names=("a", "b"))

def network(seed, activation=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 128, -1), keras.layers.Flatten(),
        keras.layers.Dense(2, activation=activation)])

folder = sys.argv[1]
network(1, "softmax").save(folder + "/teacher.keras")
open(folder + "/labels.txt", "w").write("b\\na\\n")
weights = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    lesson = teacher.distillation(
        StudentConfig(distill=folder + "/teacher.keras"), source, strategy)
    with strategy.scope():
        model = network(2)
        trainee = loop.Trainee(model, optimizer.create(config, model.trainable_variables, 1, 1))
    start = model.get_weights()
    steps = loop.training_steps(strategy, trainee, 8, config.train, lesson)
    batch = pictures[:8].astype("float32"), np.eye(2, dtype="float32")[np.arange(8) % 2]
    batches = tf.data.Dataset.from_tensors(batch).unbatch().repeat().batch(8, drop_remainder=True)
    steps(iter(strategy.experimental_distribute_dataset(batches)), tf.constant(5))
    weights.append(model.get_weights())
difference = [float(np.abs(a - b).max()) for a, b in zip(*weights)]
moved = [float(np.abs(a - b).max()) for a, b in zip(start, weights[0])]
print(json.dumps([max(difference), min(moved)]))
"""


def test_two_replicas_learn_what_one_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _TWO_REPLICAS, str(tmp_path)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    difference, moved = json.loads(done.stdout.splitlines()[-1])
    assert difference < 1e-5 < moved
