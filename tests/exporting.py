"""A small classifier and pictures for it, for the tests of what is exported."""

import dataclasses
import hashlib

import keras
import numpy as np

from efficientnet_tf.arch import BlockArgs
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.classifier import Classifier, Origin
from efficientnet_tf.export.pictures import Picture, Pictures
from efficientnet_tf.labels import Label
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import v1_eval

NAMES = ("ant", "bee", "cow", "dog", "emu")
SIZE = 48
BLOCKS = ("r1_k3_s22_e1_i8_o8_se0.25", "r1_k3_s22_e2_i8_o16_se0.25")
ORIGIN = Origin("tiny", "tiny.keras", "0" * 64)
RULE = dataclasses.replace(v1_eval(SIZE, labels=None), name="tiny")


def network(activation="softmax", size=SIZE, top=True):
    """A net with squeeze-excite whose statistics are not the initial ones: their loss would show.

    It answers differently for different pictures.
    """
    keras.utils.set_random_seed(5)
    variant = dataclasses.replace(
        find("efficientnet-b0"),
        name="tiny",
        blocks=tuple(BlockArgs.parse(block) for block in BLOCKS),
        stem_filters=8,
        head_filters=32,
    )
    head = {"classes": len(NAMES), "classifier_activation": activation}
    if not top:
        head = {"include_top": False, "pooling": "avg"}
    model = build(variant, input_shape=(size, size, 3), **head)
    return perturbed(model, 4 if top else None)


def perturbed(model, spread=None):
    """Sets statistics and biases to values whose loss would show.

    Args:
        model: is changed.
        spread: standard deviation of the last layer's kernel, so that answers differ from picture
            to picture; None leaves it.

    Returns:
        The model.
    """
    random = np.random.default_rng(0)
    last = next((v for v in reversed(model.variables) if v.path.endswith("kernel")), None)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
        if variable.path.endswith(("beta", "bias", "moving_mean")):
            variable.assign(random.uniform(-0.2, 0.2, variable.shape))
        if spread is not None and variable is last:
            variable.assign(random.normal(0, spread, variable.shape))
    return model


def classifier(model):
    return Classifier(model, RULE, tuple(Label("", name) for name in NAMES))


def images(count=19, seed=1):
    """Pictures of several sizes, of smooth colours with some noise, uint8."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        height, width = random.integers(40, 90, 2)
        y, x = np.mgrid[:height, :width][..., np.newaxis]
        ramps = random.uniform(-3, 3, (2, 3))
        pixels = random.uniform(40, 215, 3) + y * ramps[0] + x * ramps[1]
        pixels = pixels + random.normal(0, 10, pixels.shape)
        made.append(np.clip(pixels, 0, 255).astype(np.uint8))
    return made


def pictures(labels=None, count=19):
    """The same as a set; `labels` are one for each, or None."""
    made = images(count)
    given = [None] * count if labels is None else labels
    return Pictures(
        "test pictures",
        lambda: (
            Picture(f"picture {i}", image, label)
            for i, (image, label) in enumerate(zip(made, given, strict=True))
        ),
    )


def prepared(count=19):
    """The pictures as the model takes them, float32 (count, SIZE, SIZE, 3)."""
    return np.concatenate([batch.images for batch in pictures(count=count).batches(RULE)])


def hashes(folder):
    """Relative path of every file to its hash."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
