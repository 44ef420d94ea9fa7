"""What a run needs before its first step: data, network, optimizer, stages."""

import dataclasses
import math
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf import config as config_lib
from efficientnet_tf import stages as stages_lib
from efficientnet_tf.arch import Variant
from efficientnet_tf.config import Config
from efficientnet_tf.config.data import GIVEN
from efficientnet_tf.config.model import describe
from efficientnet_tf.data.bad import BadRecords
from efficientnet_tf.data.sources import Source, open_source
from efficientnet_tf.paths import AnyPath
from efficientnet_tf.stages import Stage
from efficientnet_tf.train import average as average_lib
from efficientnet_tf.train import loop, memory, network, pseudo, workers
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train import precision as precision_lib
from efficientnet_tf.train import teacher as teacher_lib
from efficientnet_tf.train.strategy import worker


@dataclasses.dataclass(frozen=True)
class Run:
    """What is made before the first step.

    Attributes:
        config: with the batch size and the precision chosen.
        variant: of the network.
        source: of the pictures.
        lessons: what the network is trained on: `source`, or that with unlabelled pictures.
        distillation: from a teacher; None without one.
        taught: hash of what a teacher gives; None without one.
        strategy: where it trains.
        stages: of the run.
        steps_per_epoch: steps.
        trainee: the network with its optimizer and its moving average.
        bad: split to the unreadable pictures that are found while it is read.
    """

    config: Config
    variant: Variant
    source: Source
    lessons: Source
    distillation: teacher_lib.Distillation | None
    taught: str | None
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


def prepare(
    config: Config,
    strategy: tf.distribute.Strategy,
    source: Source | None,
    folder: AnyPath,
    *,
    overwrite: bool = False,
) -> Run:
    """Opens the data, and builds the network and the optimizer under the strategy.

    Args:
        config: of the run.
        strategy: where to train.
        source: pictures instead of `config.data.source`.
        folder: of the run, for what a teacher says about unlabelled pictures.
        overwrite: whether what another teacher said may be removed.

    Raises:
        ValueError: the configuration or the data cannot be trained with.
        FileNotFoundError: there is no such teacher.
    """
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    config = precision_lib.resolved(config, strategy)
    if config.train.rematerialise and isinstance(strategy, tf.distribute.TPUStrategy):
        raise ValueError(
            "train.rematerialise is for processors and GPUs: XLA, which compiles for TPUs, finds"
            " that the activations are there already, and keeps them. Raise train.accumulate."
        )
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
    with workers.chief_first(strategy):
        lessons, taught = pseudo.with_unlabeled(
            config, source, folder / pseudo.FOLDER, overwrite=overwrite
        )
    distillation = teacher_lib.distillation(config.student, source, strategy)
    if config.data.batch_size is None:
        config = memory.choose_batch(config, variant, lessons, strategy)
    if worker(strategy).count > 1:  # and their hardware could lead them to choose differently
        config = config_lib.from_json(workers.exchange(strategy, config_lib.to_json(config))[0])
    steps_per_epoch, epochs = length(config, lessons.num_examples["train"])
    stages = stages_lib.expand(config, epochs)
    _check_mixing(config, stages, strategy.num_replicas_in_sync)
    return Run(
        config=config,
        variant=variant,
        source=source,
        lessons=lessons,
        distillation=distillation,
        taught=distillation.teacher.sha256[:16] if distillation else taught,
        strategy=strategy,
        stages=stages,
        steps_per_epoch=steps_per_epoch,
        trainee=_trainee(config, variant, source.num_classes, strategy, stages, steps_per_epoch),
        bad={split: BadRecords(config.data.max_bad) for split in ("train", "validation")},
    )


def length(config: Config, pictures: int) -> tuple[int, int]:
    """Steps per epoch, and epochs, of a run with so many training pictures."""
    steps = config.train.steps_per_epoch or max(1, pictures // config.batch_size)
    return steps, max(config.train.epochs, math.ceil(config.train.min_steps / steps))


def _check_batch(config: Config, replicas: int) -> None:
    parts = replicas * config.train.accumulate
    if config.batch_size % parts:
        raise ValueError(
            "data.batch_size must be a multiple of the number of replicas times train.accumulate,"
            f" {replicas} * {config.train.accumulate}."
            f" Received: data.batch_size={config.batch_size}"
        )


def _check_mixing(config: Config, stages: Sequence[Stage], replicas: int) -> None:
    """Each replica mixes its own pictures: there must be two at least for each of the ways."""
    share = config.batch_size // replicas
    fewest = max(2 * ((stage.mixup > 0) + (stage.cutmix > 0)) for stage in stages)
    if share < fewest:
        raise ValueError(
            f"data.mixup and data.cutmix mix the pictures of a replica, at least {fewest} here."
            f" Received: data.batch_size={config.batch_size} for {replicas} replicas"
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
        with precision_lib.policy(config.train.precision):
            model = network.trained(config.model, variant, classes, stages)
        if config.model.sync_batch_norm and strategy.num_replicas_in_sync > 1:
            network.synchronize(model)
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
        scale = None
        if config.train.precision == "mixed_float16":
            scale = precision_lib.LossScale()
        trainee = loop.Trainee(model, optimizer, average, scale)
    loop.separate_dropout(strategy, model)
    return trainee
