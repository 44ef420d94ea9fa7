"""Learning rates: a rise from zero, then one of the decays of the papers' released code."""

import math

import keras
import tensorflow as tf

from efficientnet_tf.config import TrainConfig

_POWER = 2.0  # of the polynomial decay, V1 `utils.py`


class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly from zero to its peak, then follows a decay.

    As in the released code (V1 `utils.py`, V2 `utils.py`) the clock of "exponential", "cosine" and
    "linear" starts at step 0, not after the warm-up, so that the rate steps down from the peak to
    the decayed rate where the warm-up ends. "polynomial" starts after it. `min_learning_rate` is
    the end of "polynomial" and a floor for the others; the warm-up passes below it.

    Args:
        config: `schedule`, `warmup_epochs`, `decay_epochs`, `decay_rate` and `min_learning_rate`
            are used.
        peak: highest learning rate, with the batch size accounted for.
        steps_per_epoch: steps.
        epochs: that the run has, which may be more than `config.epochs` (`min_steps`).

    Raises:
        ValueError: `min_learning_rate` is above the peak.
    """

    def __init__(self, config: TrainConfig, peak: float, steps_per_epoch: int, epochs: int):
        if config.min_learning_rate > peak:
            raise ValueError(
                "train.min_learning_rate must not exceed the highest learning rate, which is"
                " train.learning_rate * data.batch_size / 256. Received: train.min_learning_rate="
                f"{config.min_learning_rate}, highest learning rate {peak:g}"
            )
        self.config, self.peak = config, peak
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs

    def __call__(self, step):
        """Learning rates of steps, which count from 0: any shape, returns float32."""
        step = tf.cast(step, tf.float32)
        warmup = int(self.config.warmup_epochs * self.steps_per_epoch)
        rate = tf.maximum(self._decayed(step, warmup), self.config.min_learning_rate)
        return tf.where(step < warmup, self.peak * step / max(warmup, 1), rate)

    def _decayed(self, step: tf.Tensor, warmup: int) -> tf.Tensor:
        config, peak = self.config, self.peak
        total = self.epochs * self.steps_per_epoch
        progress = tf.minimum(step / total, 1.0)
        if config.schedule == "exponential":
            stairs = tf.floor(step / (config.decay_epochs * self.steps_per_epoch))
            return peak * config.decay_rate**stairs
        if config.schedule == "cosine":
            return peak * 0.5 * (1 + tf.cos(math.pi * progress))
        if config.schedule == "linear":
            return peak * (1 - progress)
        if config.schedule == "polynomial":
            length = total - warmup + 1.0
            done = tf.clip_by_value(step - warmup, 1.0, length) / length
            end = config.min_learning_rate
            return (peak - end) * (1 - done) ** _POWER + end
        return tf.fill(tf.shape(step), tf.constant(peak, tf.float32))

    def get_config(self):
        """Refuses: the schedule is made from the run's config.json, not from a saved optimizer."""
        raise NotImplementedError("Make the schedule from the run's configuration (config.json).")
