"""Teachers: the network that a student learns from, and distillation.

Distillation: G. Hinton, O. Vinyals, J. Dean, 2015, arXiv:1503.02531. The teacher sees the very
pictures that the student sees, however they were augmented and mixed: L. Beyer et al., 2021,
arXiv:2106.05237 ("consistent teaching").
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf import classifier
from efficientnet_tf.config import StudentConfig
from efficientnet_tf.data import images as images_lib
from efficientnet_tf.data.records import Source
from efficientnet_tf.evaluate import class_map, output_of
from efficientnet_tf.preprocessing import Preprocessing

_SMALLEST = 1e-30  # a probability, before its logarithm is taken


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network that knows the classes of the labelled pictures.

    Attributes:
        name: as it was given.
        model: from pictures in [0, 255] to a score for each class; it does not learn.
        rule: how pictures are prepared for it.
        columns: int64 (classes,), of its output: where each class of the pictures is.
        sha256: of its weights' file.
    """

    name: str
    model: keras.Model
    rule: Preprocessing
    columns: np.ndarray
    sha256: str

    def logits(self, scores: tf.Tensor) -> tf.Tensor:
        """What its output says, as logits of the pictures' classes.

        Args:
            scores: (batch, its classes), the output.

        Returns:
            float32 (batch, classes), up to a constant per picture.
        """
        scores = tf.cast(scores, tf.float32)
        if output_of(self.model) == "softmax":
            scores = tf.math.log(tf.maximum(scores, _SMALLEST))
        return tf.gather(scores, self.columns, axis=-1)


def load(name: str, source: Source) -> Teacher:
    """Opens a teacher; in a strategy's scope, for use by its replicas.

    Args:
        name: as `StudentConfig.teacher`.
        source: the labelled pictures, whose classes must be the teacher's, in any order (see
            `evaluate.class_map`); but for a background class they must be all.

    Raises:
        ValueError: it cannot be opened, or cannot teach these classes.
        FileNotFoundError: there is no such file.
    """
    model, weights = _split(name)
    try:
        opened = classifier.load(model, weights)
        origin = classifier.origin(model, weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The teacher {name!r} cannot be opened: {error}") from error
    except ValueError as error:
        raise ValueError(f"The teacher {name!r} cannot be opened: {error}") from error
    if source.multi_label:
        raise ValueError(
            f"A teacher's probabilities are of classes that exclude each other, but {source.name}"
            " has several labels per picture."
        )
    if output_of(opened.model) == "sigmoid":
        raise ValueError(
            f"The teacher {name!r} gives each class a probability of its own (sigmoid). Expected"
            " one whose probabilities add up to 1 (softmax)."
        )
    try:
        columns = class_map(source.class_names, opened.labels)
    except ValueError as error:
        raise ValueError(f"The teacher {name!r} does not fit {source.name}. {error}") from None
    others = set(range(len(opened.labels))) - set(columns.tolist())
    if [opened.labels[index].name for index in others] not in ([], ["background"]):
        raise ValueError(
            f"The teacher {name!r} has {len(opened.labels):,} classes, of which {source.name} has"
            f" {source.num_classes:,}: its probabilities of the others mean nothing here. Train a"
            " teacher on these classes (--weights starts from the same weights)."
        )
    opened.model.trainable = False
    return Teacher(name, opened.model, opened.preprocessing, columns, origin.sha256 or "")


def _split(name: str) -> tuple[str, str | None]:
    """A source for `classifier.load`, and the tag of its weights."""
    variant, colon, weights = name.partition(":")
    if colon and not weights.startswith("//") and "/" not in variant:
        return variant, weights
    return name, None if classifier.file_of(name) is not None else "imagenet"


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A loss that has the student answer as a teacher does.

    Attributes:
        teacher: opened in the strategy's scope.
        temperature: that logits are divided by.
        alpha: weight of the teacher's answers; the labels' is 1 - alpha.
    """

    teacher: Teacher
    temperature: float
    alpha: float

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """The teacher's logits for the student's pictures.

        Args:
            images: float32 (batch, size, size, 3) in [0, 255], augmented. They are resized to the
                teacher's size by its method; cut, they have been.

        Returns:
            float32 (batch, classes).
        """
        rule = self.teacher.rule
        if images.shape[1:3] != (rule.size, rule.size):
            images = images_lib.resize(images, rule.size, rule.resize_method)
        return self.teacher.logits(self.teacher.model(images, training=False))

    def losses(self, labels_losses: tf.Tensor, taught: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Loss of each picture: (1 - alpha) * labels_losses + alpha * T^2 * KL(teacher, student).

        Both networks' logits are divided by T. The factor T^2 keeps the gradients' size, which
        falls with 1 / T^2 (Hinton, Sec. 2.1).

        Args:
            labels_losses: float32 (batch,), with the labels.
            taught: float32 (batch, classes), the teacher's logits.
            logits: float32 (batch, classes), the student's.

        Returns:
            float32 (batch,), nats.
        """
        expected = tf.nn.log_softmax(taught / self.temperature)
        answered = tf.nn.log_softmax(logits / self.temperature)
        divergence = tf.reduce_sum(tf.exp(expected) * (expected - answered), -1)
        return (1 - self.alpha) * labels_losses + self.alpha * self.temperature**2 * divergence


def distillation(
    config: StudentConfig, source: Source, strategy: tf.distribute.Strategy
) -> Distillation | None:
    """What `student.distill` asks for; None where it is not given.

    Args:
        config: of the run.
        source: the labelled pictures.
        strategy: that the student trains under.

    Raises:
        ValueError: the teacher does not fit.
        FileNotFoundError: there is no such file.
    """
    if config.distill is None:
        return None
    with strategy.scope():
        return Distillation(load(config.distill, source), config.temperature, config.alpha)
