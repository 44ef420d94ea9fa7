"""Batches for every replica, from `data.pipeline`."""

import dataclasses

import tensorflow as tf

from efficientnet_tf.config import Config
from efficientnet_tf.data import pipeline
from efficientnet_tf.data.bad import BadRecords
from efficientnet_tf.data.records import Source
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.stages import Stage


def training_batches(
    config: Config,
    source: Source,
    strategy: tf.distribute.Strategy,
    stage: Stage,
    used: int = 0,
    bad: BadRecords | None = None,
):
    """Endless distributed batches with a stage's picture size and augmentation.

    Args:
        config: of the run.
        source: gives the pictures.
        strategy: whose replicas share a batch.
        stage: of the run.
        used: pictures of the run that earlier stages used.
        bad: takes note of unreadable pictures.
    """
    data = dataclasses.replace(
        config.data,
        mixup=stage.mixup,
        cutmix=stage.cutmix,
        magnitude=config.data.magnitude if stage.magnitude is None else stage.magnitude,
        shift=round(config.data.shift * stage.image_size / config.train_size),
        bug_compat=config.data.bug_compat and (stage.cutmix > 0 or config.data.has_own_augment),
    )
    return strategy.distribute_datasets_from_function(
        lambda context: pipeline.training(
            source,
            data,
            stage.image_size,
            config.batch_size // strategy.num_replicas_in_sync,
            seed=config.train.seed,
            start=used,
            shard=_shard(context),
            found=bad,
        )
    )


def evaluation_batches(
    config: Config,
    source: Source,
    split: str,
    strategy: tf.distribute.Strategy,
    rule: Preprocessing,
    bad: BadRecords | None = None,
):
    """Distributed batches with every picture of a split once; see `pipeline.evaluation`.

    They are as large as the parts that training takes at a time (`train.accumulate`).
    """
    batch_size = _evaluated(config)
    return strategy.distribute_datasets_from_function(
        lambda context: pipeline.evaluation(
            source,
            split,
            rule,
            batch_size // strategy.num_replicas_in_sync,
            fill_to=batch_size,
            shard=_shard(context),
            found=bad,
        )
    )


def evaluation_steps(config: Config, source: Source, split: str) -> int:
    """Batches of `evaluation_batches`."""
    return pipeline.evaluation_steps(source, split, _evaluated(config))


def _evaluated(config: Config) -> int:
    return config.batch_size // config.train.accumulate


def _shard(context: tf.distribute.InputContext) -> pipeline.Shard:
    return pipeline.Shard(context.input_pipeline_id, context.num_input_pipelines)
