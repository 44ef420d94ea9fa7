"""What a run needs before its first step: data, network, optimizer, stages."""

import dataclasses
import math

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf import stages as stages_lib
from efficientnet_tf.arch import Variant
from efficientnet_tf.config import Config
from efficientnet_tf.config.data import GIVEN
from efficientnet_tf.config.model import describe
from efficientnet_tf.data.bad import BadRecords
from efficientnet_tf.data.sources import Source, open_source
from efficientnet_tf.stages import Stage
from efficientnet_tf.train import average as average_lib
from efficientnet_tf.train import loop, memory, network
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train import strategy as strategy_lib


@dataclasses.dataclass(frozen=True)
class Run:
    """What is made before the first step.

    Attributes:
        config: with the batch size chosen.
        variant: of the network.
        source: of the pictures.
        strategy: where it trains.
        stages: of the run.
        steps_per_epoch: steps.
        trainee: the network with its optimizer and its moving average.
        bad: split to the unreadable pictures that are found while it is read.
    """

    config: Config
    variant: Variant
    source: Source
    strategy: tf.distribute.Strategy
    stages: tuple[Stage, ...]
    steps_per_epoch: int
    trainee: loop.Trainee
    bad: dict[str, BadRecords]

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.stages[-1].last_epoch


def of_source(config: Config, source: Source | None) -> Config:
    """Says in a configuration that its pictures are given, not opened by name."""
    if source is None or config.data.source == source.name:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=GIVEN))


def prepare(config: Config, strategy: tf.distribute.Strategy, source: Source | None) -> Run:
    """Opens the data, and builds the network and the optimizer under the strategy.

    Args:
        config: of the run.
        strategy: where to train.
        source: pictures instead of `config.data.source`.

    Raises:
        ValueError: the configuration or the data cannot be trained with.
    """
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    variant = describe(config.model)
    if config.data.batch_size is not None:
        _check_batch(config, strategy.num_replicas_in_sync)
    source = source or open_source(config.data)
    if source.multi_label and config.train.loss == "softmax":
        logging.warning(
            "%s has several labels per picture; train.loss=softmax shares the weight among them."
            " With train.loss=sigmoid each class is learnt on its own.",
            source.name,
        )
    if config.finetune.freeze_batch_norm and config.model.weights is None:
        logging.warning(
            "finetune.freeze_batch_norm keeps statistics that are not trained, because"
            " model.weights is none."
        )
    if config.data.batch_size is None:
        config = memory.choose_batch(config, variant, source, strategy)
    steps_per_epoch = config.train.steps_per_epoch or max(
        1, source.num_examples["train"] // config.batch_size
    )
    epochs = max(config.train.epochs, math.ceil(config.train.min_steps / steps_per_epoch))
    stages = stages_lib.expand(config, epochs)
    return Run(
        config=config,
        variant=variant,
        source=source,
        strategy=strategy,
        stages=stages,
        steps_per_epoch=steps_per_epoch,
        trainee=_trainee(config, variant, source.num_classes, strategy, stages, steps_per_epoch),
        bad={split: BadRecords(config.data.max_bad) for split in ("train", "validation")},
    )


def _check_batch(config: Config, replicas: int) -> None:
    parts = replicas * config.train.accumulate
    if config.batch_size % parts:
        raise ValueError(
            "data.batch_size must be a multiple of the number of replicas times train.accumulate,"
            f" {replicas} * {config.train.accumulate}."
            f" Received: data.batch_size={config.batch_size}"
        )


def _trainee(
    config: Config,
    variant: Variant,
    classes: int,
    strategy: tf.distribute.Strategy,
    stages: tuple[Stage, ...],
    steps_per_epoch: int,
) -> loop.Trainee:
    keras.utils.set_random_seed(config.train.seed)
    finetune = config.finetune
    with strategy.scope():
        with strategy_lib.precision(config.train.precision):
            model = network.trained(config.model, variant, classes, stages)
        # Slots for everything that learns in any stage.
        network.set_trainable(model, variant, finetune.unfreeze, finetune.freeze_batch_norm)
        factors = None
        if finetune.layer_decay < 1:
            factors = network.learning_rate_factors(model, variant, finetune.layer_decay)
        optimizer = optimizer_lib.create(
            config,
            model.trainable_variables,
            steps_per_epoch,
            epochs=stages[-1].last_epoch,
            multipliers=factors,
        )
        average = None
        if config.train.ema_decay:
            average = average_lib.MovingAverage(model, config.train.ema_decay)
        trainee = loop.Trainee(model, optimizer, average)
    loop.separate_dropout(strategy, model)
    return trainee
