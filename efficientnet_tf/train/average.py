"""The moving average of a network's weights, which the papers evaluate."""

import keras
import tensorflow as tf


class MovingAverage(tf.Module):
    """Moving average of a model's weights and batch statistics, for evaluation.

    As `tf.compat.v1.train.ExponentialMovingAverage(decay, num_updates=step)`: early on the decay is
    (1 + step) / (10 + step), so that the first weights are soon forgotten. Keras' own average has
    no such ramp and leaves the batch statistics out. Make it in the strategy's scope.

    Args:
        model: whose variables are averaged, those of frozen layers too; they are the start.
        decay: of the average, in [0, 1).

    Attributes:
        averages: a `tf.Variable` for each of `averaged_variables(model)`, in their order.
    """

    def __init__(self, model: keras.Model, decay: float):
        super().__init__(name="moving_average")
        self.decay = decay
        self._sources = [v.value for v in averaged_variables(model)]
        self.averages = [tf.Variable(v, trainable=False) for v in self._sources]

    def update(self, step: tf.Tensor, learns: tf.Tensor | None = None) -> None:
        """Moves the average; call it in the replica context after each step.

        Args:
            step: counted from 1.
            learns: bool (), False for a step that changed nothing; None is True.
        """
        rate = 1 - decay_at(self.decay, step)
        if learns is not None:
            rate = tf.where(learns, rate, 0.0)
        for average, source in zip(self.averages, self._sources, strict=True):
            average.assign_sub(rate * (average - source))

    def swap(self) -> None:
        """Exchanges the model's values and the average; call it in the replica context."""
        for average, source in zip(self.averages, self._sources, strict=True):
            value = tf.identity(average)
            average.assign(source)
            source.assign(value)


def decay_at(decay: float, step: tf.Tensor) -> tf.Tensor:
    """The decay of a step, counted from 1: float32 of any shape."""
    step = tf.cast(step, tf.float32)
    return tf.minimum(decay, (1 + step) / (10 + step))


def averaged_variables(model: keras.Model) -> list[keras.Variable]:
    """Variables that a moving average covers: all weights, batch statistics included.

    Whether a layer learns does not matter, because it may be unfrozen later.
    """
    return [v for v in model.weights if keras.backend.is_float_dtype(v.dtype)]


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Batch normalization's moving mean and variance of every layer."""
    names = ("moving_mean", "moving_variance")
    return [v for v in model.weights if v.path.endswith(names)]
