"""The compiled steps: one loop for one device, several replicas and (by design) TPUs.

`model.fit` is not used because under strategies Keras 3 clips each replica's gradients on its own,
never averages batch statistics, gives every replica the same dropout masks, and cannot run several
steps per call. Here the losses of a batch are summed and divided by the global batch size, and
gradients are summed over replicas, so that the number of replicas does not change the result.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Literal

import keras
import tensorflow as tf

from efficientnet_tf.config import TrainConfig
from efficientnet_tf.train import average as average_lib
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train import precision as precision_lib
from efficientnet_tf.train import rematerialise
from efficientnet_tf.train.average import MovingAverage
from efficientnet_tf.train.precision import LossScale
from efficientnet_tf.train.teacher import Distillation


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model reaches on some pictures.

    Attributes:
        loss: mean loss, nats, without label smoothing and weight decay.
        accuracy: share of pictures whose most likely class is right (one of the right ones).
        top5: share of pictures with a right class among the five most likely ones.
        count: pictures.
    """

    loss: float
    accuracy: float
    top5: float
    count: int


class Trainee(tf.Module):
    """A model with all that changes while it trains. Make it in the strategy's scope.

    Args:
        model: from pictures to logits.
        optimizer: with its slots made.
        average: of the model, or None.
        loss_scale: for layers that compute in float16; the optimizer is then one of `optimizer`'s.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        average: MovingAverage | None = None,
        loss_scale: LossScale | None = None,
    ):
        super().__init__(name="trainee")
        self.model, self.optimizer, self.average = model, optimizer, average
        self.loss_scale = loss_scale
        # Sums since the last `scores`: each replica adds its own, reading adds them up.
        self.sums = {
            name: tf.Variable(
                0.0,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for name in ("loss", "correct", "top5", "weight", "broken")
        }

    def add(self, losses: tf.Tensor, logits: tf.Tensor, targets: tf.Tensor, weights) -> None:
        """Adds a batch to the sums; call it in the replica context.

        Args:
            losses: float32 (batch,).
            logits: float32 (batch, classes).
            targets: float32 (batch, classes); the largest are the right classes.
            weights: float32 (batch,), 0 for pictures that do not count.
        """
        largest = tf.reduce_max(targets, -1, keepdims=True)
        right = tf.cast((targets >= largest) & (targets > 0), tf.float32)
        _, best = tf.math.top_k(logits, min(5, logits.shape[-1]))
        hits = tf.gather(right, best, batch_dims=1)  # (batch, 5), the most likely class first
        # where, not only times weights: pictures that do not count must not bring in a nan.
        self.sums["loss"].assign_add(tf.reduce_sum(tf.where(weights > 0, losses * weights, 0.0)))
        self.sums["correct"].assign_add(tf.reduce_sum(hits[:, 0] * weights))
        self.sums["top5"].assign_add(tf.reduce_sum(tf.reduce_max(hits, -1) * weights))
        self.sums["weight"].assign_add(tf.reduce_sum(weights))

    def mean_loss(self) -> float:
        """Mean loss of what was added since the last `scores`, over all replicas."""
        return float(self.sums["loss"].read_value()) / max(
            float(self.sums["weight"].read_value()), 1.0
        )

    def broken_steps(self, replicas: int) -> int:
        """Steps since the last `scores` whose loss or gradients were not finite.

        Gradients that overflow under a loss scale that can still be lowered do not count.

        Once one is, so are all that follow on every replica: it is the first of them.
        """
        return math.ceil(float(self.sums["broken"].read_value()) / replicas)

    def scores(self) -> Scores:
        """Means of what was added since the last call, over all replicas; starts anew."""
        loss, correct, top5, weight, _ = (float(v.read_value()) for v in self.sums.values())
        for variable in self.sums.values():
            variable.assign(0.0)
        divisor = max(weight, 1.0)
        return Scores(loss / divisor, correct / divisor, top5 / divisor, int(weight))


def losses(
    targets: tf.Tensor,
    logits: tf.Tensor,
    kind: Literal["softmax", "sigmoid"],
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Loss of each picture.

    "softmax" is the cross-entropy with the targets' distribution: several right classes share the
    weight equally, as in V2 `main.py`. "sigmoid" adds the classes' binary cross-entropies, as in
    V2's `custom` loss, with which the released ImageNet-21k weights were trained.

    Args:
        targets: float32 (batch, classes).
        logits: float32 (batch, classes).
        kind: of the loss.
        label_smoothing: share of each label that is spread over all classes; "softmax" only.

    Returns:
        float32 (batch,), nats.
    """
    if kind == "sigmoid":
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), -1)
    targets = tf.math.divide_no_nan(targets, tf.reduce_sum(targets, -1, keepdims=True))
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def training_steps(
    strategy: tf.distribute.Strategy,
    trainee: Trainee,
    batch_size: int,
    config: TrainConfig,
    distillation: Distillation | None = None,
) -> Callable[[Iterator, tf.Tensor], None]:
    """Compiles training of the variables that are trainable now, at the present dropout rates.

    Compile anew for another picture size, other rates or other layers that learn: each function has
    one static trace, and everything that is learnt is in the trainee.

    Args:
        strategy: that the trainee was made under.
        trainee: is changed by every step.
        batch_size: over all replicas.
        config: `loss`, `label_smoothing`, the weight decay in the loss, `accumulate` and
            `rematerialise` are used.
        distillation: makes the loss also one of a teacher's answers.

    Returns:
        A function of (iterator of (images, targets), number of steps as a tensor) that takes the
        steps in one call.
    """
    model, optimizer, average = trainee.model, trainee.optimizer, trainee.average
    scale = trainee.loss_scale
    variables = model.trainable_variables
    parts = rematerialise.segments(model) if config.rematerialise else []
    replicas = strategy.num_replicas_in_sync
    decay = config.weight_decay if config.weight_decay_in == "loss" else 0.0

    def gradients_of(images, targets):
        taught = None if distillation is None else distillation.logits(images)

        def loss_of(logits):
            logits = tf.cast(logits, tf.float32)
            each = losses(targets, logits, config.loss, config.label_smoothing)
            if distillation is not None:
                each = distillation.losses(each, taught, logits)
            loss = tf.reduce_sum(each) / batch_size
            return loss if scale is None else loss * scale.value

        if parts:
            logits, found = rematerialise.gradients(parts, images, loss_of, variables)
        else:
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                loss = loss_of(logits)
            values = [v.value for v in variables]
            found = tape.gradient(loss, values, unconnected_gradients="zero")
        logits = tf.cast(logits, tf.float32)
        # Reported without label smoothing, to compare with the validation loss.
        reported = losses(targets, logits, config.loss)
        trainee.add(reported, logits, targets, tf.ones_like(reported))
        return found

    def accumulated(images, targets):
        """Sums the gradients of parts of the batch, one part after the other."""
        # Parts are rows of a tensor: XLA, and so TPUs, cannot slice between bounds that vary.
        images, targets = (
            tf.reshape(batch, (config.accumulate, -1, *batch.shape[1:]))
            for batch in (images, targets)
        )

        def add(part, sums):
            found = gradients_of(images[part], targets[part])
            return part + 1, [total + gradient for total, gradient in zip(sums, found, strict=True)]

        zeros = [tf.zeros(v.shape, v.dtype) for v in variables]
        _, sums = tf.while_loop(
            lambda part, sums: part < config.accumulate, add, (0, zeros), parallel_iterations=1
        )
        return sums

    def replica_step(images, targets):
        compute = accumulated if config.accumulate > 1 else gradients_of
        gradients = compute(images, targets)
        # A sum is finite where all its terms are, but for overflow, which is as bad.
        finite = tf.reduce_all([tf.math.is_finite(tf.reduce_sum(each)) for each in gradients])
        learns = None
        if scale is None:
            trainee.sums["broken"].assign_add(tf.where(finite, 0.0, 1.0))
        else:
            gradients = [gradient / scale.value for gradient in gradients]
            learns = _within_scale(trainee, scale, finite)
        if decay:
            # The gradient of decay * sum(value**2) / 2; summed over replicas, hence the division.
            gradients = [
                gradient + (decay / replicas) * variable.value
                if optimizer_lib.decayed(variable, config.weight_decay_on)
                else gradient
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        if learns is None:
            optimizer.apply(gradients, variables)
        else:
            optimizer.apply(gradients, variables, learns=learns)
        if average is not None:
            average.update(optimizer.iterations.value, learns)

    @tf.function
    def steps(iterator, count):
        for _ in tf.range(count):
            strategy.run(replica_step, args=next(iterator))

    return steps


def _within_scale(trainee: Trainee, scale: LossScale, finite: tf.Tensor) -> tf.Tensor:
    """Whether a step may be learnt from: no replica's gradients overflowed. Adapts the scale."""
    broken = trainee.sums["broken"]
    # Losses are float32 and not scaled: where they are not finite, no scale helps.
    lost = tf.math.logical_not(tf.math.is_finite(trainee.sums["loss"].read_value()))
    overflowed, lost = precision_lib.agreed(tf.math.logical_not(finite), lost)
    # The weights stay what they were, and later steps can be in order again: one is enough.
    lost |= overflowed & (scale.value <= scale.lowest) | (broken.read_value() > 0)
    broken.assign_add(tf.where(lost, 1.0, 0.0))
    learns = tf.math.logical_not(overflowed)
    scale.update(learns)
    return learns


def evaluator(
    strategy: tf.distribute.Strategy,
    trainee: Trainee,
    loss: Literal["softmax", "sigmoid"] = "softmax",
    *,
    steps_per_call: int = 10,
    between: Callable[[], None] = lambda: None,
) -> Callable[[Iterator, int], Scores]:
    """Compiles evaluation.

    Args:
        strategy: that the trainee was made under.
        trainee: its model is scored as it is.
        loss: kind of the loss.
        steps_per_call: steps in one call into TensorFlow.
        between: called after each of these.

    Returns:
        A function of (iterator of (images, labels, weights), number of steps) that returns scores.
        The replicas' batch statistics are averaged first; nothing else is changed.
    """
    average_statistics = statistics_averager(strategy, trainee.model)

    def replica_step(images, labels, weights):
        logits = tf.cast(trainee.model(images, training=False), tf.float32)
        several = labels.shape.rank == 2
        targets = labels if several else tf.one_hot(labels, logits.shape[-1])
        trainee.add(losses(targets, logits, loss), logits, targets, weights)

    @tf.function
    def steps(iterator, count):
        for _ in tf.range(count):
            strategy.run(replica_step, args=next(iterator))

    def evaluate(iterator: Iterator, count: int) -> Scores:
        average_statistics()
        trainee.scores()  # forget what was added before
        for done in range(0, count, steps_per_call):
            steps(iterator, tf.constant(min(steps_per_call, count - done)))
            between()
        return trainee.scores()

    return evaluate


def average_swapper(strategy: tf.distribute.Strategy, trainee: Trainee) -> Callable[[], None]:
    """Compiles exchanging the model's values with their moving average; twice undoes it."""
    return tf.function(lambda: strategy.run(trainee.average.swap))


def statistics_averager(strategy: tf.distribute.Strategy, model: keras.Model) -> Callable[[], None]:
    """Compiles giving all replicas the mean of their batch normalization's moving statistics.

    Every replica normalises with its own batch and keeps its own statistics; Keras would save the
    first one's.
    """
    variables = [v.value for v in average_lib.moving_statistics(model)]
    if strategy.num_replicas_in_sync == 1 or not variables:
        return lambda: None

    def average():
        context = tf.distribute.get_replica_context()
        means = context.all_reduce("MEAN", [tf.identity(v) for v in variables])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    return tf.function(lambda: strategy.run(average))


def separate_dropout(strategy: tf.distribute.Strategy, model: keras.Model) -> None:
    """Gives every replica dropout masks of its own; Keras would give all the same.

    Replica 0 keeps its seeds, so that one replica trains as without a strategy.
    """
    seeds = [v.value for v in model.variables if "seed_generator_state" in v.path]
    if strategy.num_replicas_in_sync == 1 or not seeds:
        return

    def separate():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for seed in seeds:
            offset = tf.stack([tf.cast(replica, seed.dtype) * 7919, tf.zeros((), seed.dtype)])
            seed.assign(tf.convert_to_tensor(seed) + offset)

    strategy.run(tf.function(separate))
