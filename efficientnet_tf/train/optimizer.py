"""The papers' optimizer and its companions: RMSprop as in TensorFlow 1, schedules, averages."""

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from efficientnet_tf.config import Config, TrainConfig


class _ClipAfterReduce:
    """Clips the gradients' sum over all replicas; Keras clips each replica's part on its own."""

    def _clip_gradients(self, grads):
        return grads

    def _all_reduce_sum_gradients(self, grads_and_vars):
        pairs = super()._all_reduce_sum_gradients(grads_and_vars)
        grads = super()._clip_gradients([grad for grad, _ in pairs])
        return list(zip(grads, [var for _, var in pairs], strict=True))


class RMSprop(_ClipAfterReduce, keras.optimizers.RMSprop):
    """RMSprop of TensorFlow 1 (`tf.compat.v1.train.RMSPropOptimizer`), which the papers use.

    It differs from Keras' in one point: the mean square starts at 1, not at 0. With 0 the first
    steps are tens of times longer.

    Args:
        learning_rate: number or schedule.
        **kwargs: of `keras.optimizers.RMSprop`.
    """

    def __init__(self, learning_rate=0.016, **kwargs):
        super().__init__(learning_rate, **kwargs)

    def add_optimizer_variables(self, trainable_variables, name, initializer="zeros"):
        """Adds slots; those of the mean square ("velocity") start at 1."""
        if name == "velocity":
            initializer = "ones"
        return super().add_optimizer_variables(trainable_variables, name, initializer)


class SGD(_ClipAfterReduce, keras.optimizers.SGD):
    """Stochastic gradient descent with momentum, clipping after the replicas' reduction."""


class AdamW(_ClipAfterReduce, keras.optimizers.Adam):
    """Adam with decay of the kernels themselves, clipping after the replicas' reduction."""


class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from zero, then follows a decay counted from step 0.

    As in the papers' code the decay's clock does not wait for the warmup, except for "cosine",
    whose half wave spans the steps after it.

    Args:
        config: `schedule`, `warmup_epochs`, `decay_epochs`, `decay_rate` and `epochs` are used.
        peak: highest learning rate.
        steps_per_epoch: steps.
    """

    def __init__(self, config: TrainConfig, peak: float, steps_per_epoch: int):
        self.config, self.peak, self.steps_per_epoch = config, peak, steps_per_epoch

    def __call__(self, step):
        """Learning rate of a step, counted from 0: float32 scalar."""
        config = self.config
        step = tf.cast(step, tf.float32)
        warmup = config.warmup_epochs * self.steps_per_epoch
        total = config.epochs * self.steps_per_epoch
        rate = tf.constant(self.peak, tf.float32)
        if config.schedule == "cosine":
            progress = tf.clip_by_value((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
            rate *= 0.5 * (1 + tf.cos(math.pi * progress))
        elif config.schedule == "exponential":
            stairs = tf.floor(step / (config.decay_epochs * self.steps_per_epoch))
            rate *= config.decay_rate**stairs
        if warmup:
            # The ramp is the peak's, not the decayed rate's, as in V1 `utils.py`.
            rate = tf.where(step < warmup, self.peak * step / warmup, rate)
        return rate

    def get_config(self):
        """Refuses: the schedule is made from the run's config.json, not from a saved optimizer."""
        raise NotImplementedError("Make the schedule from the run's configuration (config.json).")


def create(
    config: Config, variables: Sequence[keras.Variable], steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Makes the optimizer with its slots. Call it in the strategy's scope.

    Args:
        config: of the run.
        variables: trainable variables of the model.
        steps_per_epoch: for the schedule.

    Returns:
        A built optimizer.
    """
    train = config.train
    rate = WarmupSchedule(train, config.scaled_learning_rate, steps_per_epoch)
    common = {"global_clipnorm": train.clip_norm or None}
    if train.weight_decay and train.weight_decay_in == "update":
        common["weight_decay"] = train.weight_decay
    if train.optimizer == "rmsprop":
        # rho and epsilon of V1 `main.py` and V2 `hparams.py`.
        optimizer = RMSprop(rate, rho=0.9, momentum=train.momentum, epsilon=1e-3, **common)
    elif train.optimizer == "sgd":
        optimizer = SGD(rate, momentum=train.momentum, **common)
    else:
        optimizer = AdamW(rate, **common)
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not is_kernel(v)])
    optimizer.build(list(variables))
    return optimizer


def is_kernel(variable: keras.Variable) -> bool:
    """Whether weight decay applies: kernels, also depthwise ones, but no bias, gamma or beta."""
    return variable.path.endswith("kernel")


class MovingAverage(tf.Module):
    """Moving average of a model's weights and batch statistics, for evaluation.

    As `tf.compat.v1.train.ExponentialMovingAverage(decay, num_updates=step)`: early on the decay is
    (1 + step) / (10 + step), so that the first weights are soon forgotten. Keras' own average
    leaves the batch statistics out. Make it in the strategy's scope.

    Args:
        model: whose variables are averaged; they are the start.
        decay: of the average, in [0, 1).
    """

    def __init__(self, model: keras.Model, decay: float):
        super().__init__(name="moving_average")
        self.decay = decay
        self._sources = [v.value for v in averaged_variables(model)]
        self._averages = [tf.Variable(v, trainable=False) for v in self._sources]

    def update(self, step: tf.Tensor) -> None:
        """Moves the average; call it in the replica context after each step (from 1)."""
        step = tf.cast(step, tf.float32)
        rate = 1 - tf.minimum(self.decay, (1 + step) / (10 + step))
        for average, source in zip(self._averages, self._sources, strict=True):
            average.assign_sub(rate * (average - source))

    def swap(self) -> None:
        """Exchanges the model's values and the average; call it in the replica context."""
        for average, source in zip(self._averages, self._sources, strict=True):
            value = tf.identity(average)
            average.assign(source)
            source.assign(value)


def averaged_variables(model: keras.Model) -> list[keras.Variable]:
    """Variables that a moving average covers: trained ones and batch statistics."""
    return [*model.trainable_variables, *moving_statistics(model)]


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Batch normalization's moving mean and variance of every layer."""
    names = ("moving_mean", "moving_variance")
    return [v for v in model.non_trainable_variables if v.path.endswith(names)]
