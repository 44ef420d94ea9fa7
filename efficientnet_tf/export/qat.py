"""Quantisation-aware fine-tuning: a network learns to answer as it did, in 8 bits.

The network is run with the rounding of an int8 file: every point of `quantize` is rounded to 8
bits, and so is every kernel, per output channel. Gradients pass the rounding as if it were not
there (straight-through, arXiv 1712.05877), to kernels and biases, and to the ranges themselves.
What is learned is by default the float network's own answers (distillation), which needs pictures
but no labels, and is what an int8 file is compared with.

Keras 3 has no such training, and TensorFlow's tool for it works with Keras 2 only.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras import layers

from efficientnet_tf import writing
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import pipeline
from efficientnet_tf.data.records import Source
from efficientnet_tf.export import graph, quantize

STATE = "qat.npz"

Pictures = Callable[[int], Iterable[tuple[Any, Any]]]

_LARGEST = 127  # of an int8 kernel, whose values are -127 to 127 times the scale of their channel


class StateError(ValueError):
    """The state of a training is damaged, or of another one."""


def fine_tune(
    parts: graph.Parts,
    ranges: Mapping[str, tuple[float, float]],
    pictures: Pictures,
    folder: str | os.PathLike,
    *,
    steps: int,
    epochs: int = 1,
    learning_rate: float = 1e-4,
    label_share: float = 0.0,
) -> graph.Parts:
    """Trains a network for int8; afterwards it has the ranges that it learned.

    The learning rate falls to zero along a cosine. After each epoch the state is written to
    `folder`; called again with the same arguments, also after it was killed, training goes on from
    there, and a finished one is only read.

    Args:
        parts: the float network, with batch normalization folded.
        ranges: to begin with, from `quantize.ranges`.
        pictures: number of steps that were taken, to the batches from there on: (images float32
            (batch, height, width, 3) as the model takes them, targets float32 (batch, classes)).
            See `from_source` and `from_pictures`.
        folder: for the state; made where it is missing.
        steps: batches in an epoch.
        epochs: how often that many are taken.
        learning_rate: of Adam, at the beginning.
        label_share: in [0, 1]: the weight of the labels in the loss; that of the float network's
            answers is the rest. Targets are not read where it is 0.

    Returns:
        The network with `quantize.FakeQuant` layers, to be converted to int8.

    Raises:
        ValueError: an argument is out of range, or there are too few pictures.
        StateError: `folder` holds the state of another training, or a damaged one.
        FloatingPointError: the loss is no longer finite.
    """
    _check(steps, epochs, learning_rate, label_share)
    student = _Student(parts, ranges, label_share, learning_rate)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "network": _fingerprint(parts.model),
        "ranges": {name: list(bounds) for name, bounds in ranges.items()},
        "steps": steps,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "label_share": label_share,
    }
    begun = _restore(folder / STATE, student.state, settings)
    total = steps * epochs
    for epoch in range(begun, epochs):
        first = epoch * steps
        losses = []
        for number, batch in enumerate(itertools.islice(pictures(first), steps), first):
            rate = learning_rate * (1 + math.cos(math.pi * number / total)) / 2
            losses.append(float(student.step(batch, rate)))
        if len(losses) < steps:
            raise ValueError(
                f"pictures must give {steps} batches an epoch. Received: {len(losses)} in epoch"
                f" {epoch + 1}"
            )
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss of epoch {epoch + 1} is not finite. Lower learning_rate (it was"
                f" {learning_rate:g})."
            )
        _save(folder / STATE, student.state, {**settings, "done": epoch + 1})
        logging.info("Quantisation-aware epoch %d of %d: loss %.4f", epoch + 1, epochs, loss)
    return dataclasses.replace(parts, model=student.finished())


def from_source(
    source: Source, config: DataConfig, size: int, batch_size: int, *, seed: int = 0
) -> tuple[Pictures, int]:
    """The training pictures of a source, augmented as `config` says, for `fine_tune`.

    Args:
        source: see `data.sources`.
        config: of crops and augmentation.
        size: pixels, both sides, that the model takes.
        batch_size: pictures per step.
        seed: of order and augmentation.

    Returns:
        `pictures` and the number of steps that go through all of them once.
    """

    def pictures(step: int):
        start = step * batch_size
        return pipeline.training(source, config, size, batch_size, seed=seed, start=start)

    return pictures, max(source.num_examples["train"] // batch_size, 1)


def from_pictures(batches: Callable[[], Iterable[np.ndarray]]) -> Pictures:
    """Pictures without labels for `fine_tune`, again and again, every second time mirrored.

    Args:
        batches: makes an iterable of images float32 (batch, height, width, 3), always the same.

    Raises:
        ValueError: when read, and there are none.
    """

    def endless() -> Iterator[tuple[np.ndarray, None]]:
        for repetition in itertools.count():
            empty = True
            for images in batches():
                empty = False
                yield (images[:, :, ::-1] if repetition % 2 else images), None
            if empty:
                raise ValueError("There are no pictures to train with.")

    return lambda step: itertools.islice(endless(), step, None)


class _Student:
    """The network that learns, the one it learns from, and one step."""

    def __init__(self, parts: graph.Parts, ranges, label_share: float, learning_rate: float):
        self.model = quantize.with_fake_quant(parts.model, ranges, trainable=True)
        logits = self.model.output[graph.LOGITS]
        self._student = keras.Model(self.model.inputs, logits)
        self._teacher = keras.Model(parts.model.inputs, parts.model.output[graph.LOGITS])
        self._softmax = parts.activation == "softmax"
        self._label_share = label_share
        self._kernels = [(v, axes) for layer in self.model.layers for v, axes in kernels(layer)]
        self._optimizer = keras.optimizers.Adam(learning_rate)
        self._optimizer.build(self._student.trainable_variables)
        self.state = [*self.model.variables, *self._optimizer.variables]
        shape = (None, *parts.model.inputs[0].shape[1:])
        self._step = tf.function(
            self._traced,
            input_signature=[
                tf.TensorSpec(shape, tf.float32),
                tf.TensorSpec((None, parts.classes), tf.float32),
                tf.TensorSpec((), tf.float32),
            ],
        )
        self._classes = parts.classes

    def step(self, batch, learning_rate: float):
        images, targets = batch
        if not self._label_share:
            targets = np.zeros((len(images), self._classes), np.float32)
        elif targets is None:
            raise ValueError(
                f"label_share={self._label_share} needs pictures with labels; these have none."
            )
        return self._step(images, targets, learning_rate)

    def finished(self) -> keras.Model:
        for layer in self.model.layers:
            if isinstance(layer, quantize.FakeQuant):
                layer.trainable = False
        return self.model

    def _traced(self, images, targets, learning_rate):
        share = self._label_share
        answers = self._probabilities(self._teacher(images, training=False))
        targets = share * targets + (1 - share) * answers
        # The kernels are rounded in place for as long as the gradients are computed: these are then
        # straight-through, whatever the layer does with its kernel.
        learned = [tf.identity(kernel.value) for kernel, _ in self._kernels]
        for (kernel, axes), value in zip(self._kernels, learned, strict=True):
            kernel.value.assign(rounded(value, axes))
        variables = self._student.trainable_variables
        with tf.GradientTape() as tape:
            loss = self._loss(self._student(images, training=False), targets)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        with tf.control_dependencies(gradients):
            for (kernel, _), value in zip(self._kernels, learned, strict=True):
                kernel.value.assign(value)
        self._optimizer.learning_rate.assign(learning_rate)
        self._optimizer.apply(gradients, variables)
        return loss

    def _probabilities(self, logits):
        return tf.nn.softmax(logits) if self._softmax else tf.sigmoid(logits)

    def _loss(self, logits, targets):
        """Cross-entropy above that of the targets with themselves: zero for the same answers."""
        targets_or_tiny = tf.clip_by_value(targets, 1e-12, 1.0)
        if self._softmax:
            each = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            own = -tf.reduce_sum(targets * tf.math.log(targets_or_tiny), -1)
            return tf.reduce_mean(each - own)
        each = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
        rest = tf.clip_by_value(1 - targets, 1e-12, 1.0)
        own = -targets * tf.math.log(targets_or_tiny) - (1 - targets) * tf.math.log(rest)
        return tf.reduce_mean(tf.reduce_sum(each - own, -1))


def kernels(layer) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """Kernels that TFLite quantises per output channel, and the axes that share a scale."""
    if isinstance(layer, layers.DepthwiseConv2D):
        yield layer.kernel, (0, 1)
    elif isinstance(layer, (layers.Conv2D, layers.Dense)):
        yield layer.kernel, tuple(range(len(layer.kernel.shape) - 1))


def rounded(kernel, axes: tuple[int, ...]):
    """Rounds a kernel as an int8 file holds it: symmetrically, -127 to 127 times a scale.

    Args:
        kernel: float32, of any shape.
        axes: over which values share a scale, that of the largest of them.

    Returns:
        float32 of the same shape.
    """
    largest = tf.reduce_max(tf.abs(kernel), axes, keepdims=True)
    scale = tf.maximum(largest, 1e-30) / _LARGEST
    return tf.round(kernel / scale) * scale


def _check(steps: int, epochs: int, learning_rate: float, label_share: float) -> None:
    for name, value in (("steps", steps), ("epochs", epochs)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1. Received: {name}={value!r}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be > 0. Received: learning_rate={learning_rate}")
    if not 0 <= label_share <= 1:
        raise ValueError(f"label_share must be in [0, 1]. Received: label_share={label_share}")


def _fingerprint(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()


def _save(path: Path, state, settings: dict[str, Any]) -> None:
    """Writes the state whole or not at all."""
    content: dict[str, Any] = {f"v{n}": np.asarray(variable) for n, variable in enumerate(state)}
    content["settings"] = json.dumps(settings)
    with writing.whole(path) as temporary:
        np.savez(temporary, **content)


def _restore(path: Path, state, settings: dict[str, Any]) -> int:
    """Reads the state, where there is one, and returns the number of epochs that are done."""
    if not path.exists():
        return 0
    try:
        with np.load(path) as content:
            found = json.loads(str(content["settings"]))
            values = [content[f"v{number}"] for number in range(len(state))]
    except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise StateError(
            f"{path} is no state of a quantisation-aware training: {error}. Delete it, or choose"
            " another folder."
        ) from error
    done = found.pop("done")
    other = [name for name in settings if not _same(found.get(name), settings[name])]
    if other:
        raise StateError(
            f"{path} is of a training with another {', '.join(other)}. Delete it, or choose another"
            " folder."
        )
    for variable, value in zip(state, values, strict=True):
        variable.assign(value)
    logging.info("%s: %d of %d epochs are done.", path, done, settings["epochs"])
    return done


def _same(found: Any, setting: Any) -> bool:
    """Whether settings are equal; ranges measured again may differ in their last digits."""
    if not isinstance(setting, dict):
        return found == setting
    return found.keys() == setting.keys() and all(
        np.allclose(found[name], bounds, rtol=1e-3, atol=1e-3 * (bounds[1] - bounds[0]))
        for name, bounds in setting.items()
    )
