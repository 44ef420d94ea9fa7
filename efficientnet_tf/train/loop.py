"""The compiled steps: one loop for one device, several replicas and (by design) TPUs.

`model.fit` is not used because under strategies Keras 3 clips each replica's gradients on its own,
never averages batch statistics, gives every replica the same dropout masks, and cannot run several
steps per call. Here the losses of a batch are summed and divided by the global batch size, and
gradients are summed over replicas, so that the number of replicas does not change the result.
"""

import dataclasses
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train.optimizer import MovingAverage


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model reaches on some pictures.

    Attributes:
        loss: mean cross-entropy, nats, without label smoothing and weight decay.
        accuracy: share of pictures whose most likely class is right.
        count: pictures.
    """

    loss: float
    accuracy: float
    count: int


class Trainee(tf.Module):
    """A model with all that changes while it trains. Make it in the strategy's scope.

    Args:
        model: from pictures to logits.
        optimizer: with its slots made.
        average: of the model, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        average: MovingAverage | None = None,
    ):
        super().__init__(name="trainee")
        self.model, self.optimizer, self.average = model, optimizer, average
        # Sums since the last `scores`: each replica adds its own, reading adds them up.
        self.sums = {
            name: tf.Variable(
                0.0,
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for name in ("loss", "correct", "weight")
        }

    def add(self, loss: tf.Tensor, correct: tf.Tensor, weight: tf.Tensor) -> None:
        """Adds the sums of one batch; call it in the replica context."""
        self.sums["loss"].assign_add(loss)
        self.sums["correct"].assign_add(correct)
        self.sums["weight"].assign_add(weight)

    def mean_loss(self) -> float:
        """Mean loss of what was added since the last `scores`, over all replicas."""
        return float(self.sums["loss"].read_value()) / max(
            float(self.sums["weight"].read_value()), 1.0
        )

    def scores(self) -> Scores:
        """Means of what was added since the last call, over all replicas; starts anew."""
        loss, correct, weight = (float(v.read_value()) for v in self.sums.values())
        for variable in self.sums.values():
            variable.assign(0.0)
        divisor = max(weight, 1.0)
        return Scores(loss / divisor, correct / divisor, int(weight))


def training_steps(
    strategy: tf.distribute.Strategy,
    trainee: Trainee,
    batch_size: int,
    *,
    label_smoothing: float = 0.0,
    loss_decay: float = 0.0,
) -> Callable[[Iterator, tf.Tensor], None]:
    """Compiles training.

    Args:
        strategy: that the trainee was made under.
        trainee: is changed by every step.
        batch_size: over all replicas.
        label_smoothing: share of each label that is spread over all classes.
        loss_decay: added to the loss times sum(kernel**2) / 2, over all kernels.

    Returns:
        A function of (iterator of (images, one-hot labels), number of steps as a tensor) that takes
        the steps in one call.
    """
    model, optimizer, average = trainee.model, trainee.optimizer, trainee.average
    cross_entropy = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=label_smoothing, reduction="none"
    )
    kernels = [v for v in model.trainable_variables if optimizer_lib.is_kernel(v)]
    replicas = strategy.num_replicas_in_sync

    def replica_step(images, labels):
        with tf.GradientTape() as tape:
            logits = tf.cast(model(images, training=True), tf.float32)
            losses = cross_entropy(labels, logits)
            loss = tf.reduce_sum(losses) / batch_size
            if loss_decay:
                # Gradients are summed over replicas, hence the division.
                norms = tf.add_n([tf.nn.l2_loss(kernel.value) for kernel in kernels])
                loss += loss_decay / replicas * norms
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        if average is not None:
            average.update(optimizer.iterations.value)
        hits = tf.argmax(logits, -1) == tf.argmax(labels, -1)
        # Reported without label smoothing, to compare with the validation loss.
        reported = tf.nn.softmax_cross_entropy_with_logits(labels, logits)
        trainee.add(
            tf.reduce_sum(reported),
            tf.reduce_sum(tf.cast(hits, tf.float32)),
            tf.cast(tf.shape(losses)[0], tf.float32),
        )

    @tf.function
    def steps(iterator, count):
        for _ in tf.range(count):
            strategy.run(replica_step, args=next(iterator))

    return steps


def evaluator(
    strategy: tf.distribute.Strategy, trainee: Trainee
) -> Callable[[Iterator, int], Scores]:
    """Compiles evaluation.

    Args:
        strategy: that the trainee was made under.
        trainee: its model is scored as it is.

    Returns:
        A function of (iterator of (images, labels, weights), number of steps) that returns scores.
        The replicas' batch statistics are averaged first; nothing else is changed.
    """
    average_statistics = statistics_averager(strategy, trainee.model)

    def replica_step(images, labels, weights):
        logits = tf.cast(trainee.model(images, training=False), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        hits = tf.cast(tf.argmax(logits, -1) == labels, tf.float32)
        # where, not only times weights: filling must not bring in a nan.
        trainee.add(
            tf.reduce_sum(tf.where(weights > 0, losses, 0.0)),
            tf.reduce_sum(hits * weights),
            tf.reduce_sum(weights),
        )

    @tf.function
    def steps(iterator, count):
        for _ in tf.range(count):
            strategy.run(replica_step, args=next(iterator))

    def evaluate(iterator: Iterator, count: int) -> Scores:
        average_statistics()
        trainee.scores()  # forget what was added before
        steps(iterator, tf.constant(count))
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
    variables = [v.value for v in optimizer_lib.moving_statistics(model)]
    if strategy.num_replicas_in_sync == 1 or not variables:
        return lambda: None

    def average():
        context = tf.distribute.get_replica_context()
        means = context.all_reduce("MEAN", [tf.convert_to_tensor(v) for v in variables])
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
