"""How long a training step takes, beside one of the base network on the same machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable

import tensorflow as tf

from efficientnet_tf import paths
from efficientnet_tf.config import Config
from efficientnet_tf.data.sources import Source
from efficientnet_tf.train import loop
from efficientnet_tf.train.setup import prepare

_WARM_UP = 2  # calls that are not counted: tracing, and choosing of algorithms
_ROUNDS = 5, 31  # the fewest and the most turns
_SECONDS = 6.0  # that all turns together should take


def measure(
    config: Config,
    base: Callable[[], float],
    source: Source,
    strategy: tf.distribute.Strategy,
) -> tuple[float, float]:
    """Measures a training step of a network, without the input pipeline.

    The network and the base take turns, so that what else the machine does slows both: the ratio
    can be compared between trials, and between machines of a kind.

    Args:
        config: of the network, without a teacher; its steps are those of the last stage.
        base: from `stepper`.
        source: for the number of classes.
        strategy: where it trains.

    Returns:
        Median of the seconds of a step, and of the ratios to the base's step of the same turn.
    """
    steps = stepper(config, source, strategy)
    start = time.perf_counter()
    pairs = []
    while len(pairs) < _ROUNDS[0] or (
        len(pairs) < _ROUNDS[1] and time.perf_counter() - start < _SECONDS
    ):
        pairs.append((steps(), base()))
    return (
        statistics.median(own for own, _ in pairs),
        statistics.median(own / other for own, other in pairs),
    )


def stepper(
    config: Config, source: Source, strategy: tf.distribute.Strategy
) -> Callable[[], float]:
    """Builds and warms up a network.

    Args:
        config: of the network.
        source: for the number of classes.
        strategy: where it trains.

    Returns:
        A function that takes some steps on the same batch and returns seconds per step.
    """
    run = prepare(config, strategy, source, paths.of(tempfile.gettempdir()))  # writes nothing there
    function = loop.training_steps(strategy, run.trainee, run.config.batch_size, run.config.train)
    size = run.stages[-1].image_size
    number = run.config.batch_size // strategy.num_replicas_in_sync
    images = tf.random.stateless_uniform((number, size, size, 3), (0, 0), 0.0, 255.0)
    targets = tf.one_hot(tf.range(number) % source.num_classes, source.num_classes)
    batches = iter(
        strategy.distribute_datasets_from_function(
            lambda _: tf.data.Dataset.from_tensors((images, targets)).repeat()
        )
    )

    count = run.config.train.steps_per_call  # as in training

    def take() -> float:
        start = time.perf_counter()
        function(batches, tf.constant(count))
        run.trainee.mean_loss()  # waits for accelerators
        return (time.perf_counter() - start) / count

    for _ in range(_WARM_UP):
        take()
    return take
