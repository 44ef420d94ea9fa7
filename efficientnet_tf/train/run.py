"""One training run: a configuration and a folder in, a trained model and its record out."""

import dataclasses
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf import config as config_lib
from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.arch import BlockArgs, Variant
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.config import Config, ModelConfig
from efficientnet_tf.data import pipeline
from efficientnet_tf.data.sources import Source, open_source
from efficientnet_tf.models.blocks import dense_initializer
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.train import loop, report
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train import strategy as strategy_lib

CONFIG = "config.json"
BEST = "best.keras"
BEST_WEIGHTS = "best.weights.h5"
CURVES = "curves.png"
LABELS = "labels.txt"
PREPROCESSING = preprocessing_lib.FILE
EXPORT = "export"  # folder for what is made from the model afterwards
_RESULTS = (EXPORT, *report.METRICS, BEST, BEST_WEIGHTS, CURVES, LABELS, PREPROCESSING, CONFIG)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        model: the best one, from pictures in [0, 255] to probabilities, in float32.
        source: where the pictures came from.
        best_epoch: with the highest validation accuracy, counted from 1.
        validation: scores of that epoch's model on the validation split.
        history: metrics of every epoch.
        seconds: of training and evaluation.
    """

    model: keras.Model
    source: Source
    best_epoch: int
    validation: loop.Scores
    history: tuple[dict[str, float], ...]
    seconds: float


def train(
    config: Config,
    workdir: str | os.PathLike,
    *,
    strategy: tf.distribute.Strategy | None = None,
    source: Source | None = None,
    overwrite: bool = False,
) -> Result:
    """Trains a network, and keeps the one that is best on the validation split.

    The folder holds config.json, labels.txt and preprocessing.json from the start, metrics.jsonl
    and metrics.csv from the first epoch, and at all times the best model so far (best.keras and
    best.weights.h5), also when the run fails. curves.png is drawn at the end.

    Args:
        config: of the run.
        workdir: folder to write to.
        strategy: where to run; None is one device.
        source: instead of the one that the configuration names.
        overwrite: whether the results of an earlier run in the folder are removed.

    Returns:
        The best model and its record.

    Raises:
        FileExistsError: the folder holds a run, and `overwrite` is False; or it holds files with
            the names of a run's results, but no run.
        OSError: the folder cannot be written to.
        ValueError: the configuration or the data cannot be trained with.
        FloatingPointError: the loss is no longer finite, or was in no epoch for validation.
    """
    report.require_matplotlib()
    start = time.perf_counter()
    strategy = strategy or tf.distribute.get_strategy()
    workdir = Path(workdir)
    _check_free(workdir, overwrite)
    replica_batch = _replica_batch(config, strategy)
    variant = describe(config.model)
    source = source or open_source(config.data)
    steps_per_epoch = config.train.steps_per_epoch or max(
        1, source.num_examples["train"] // config.data.batch_size
    )
    trainee = _trainee(config, variant, source.num_classes, strategy, steps_per_epoch)
    # The model that is kept: float32 whatever trained it, with probabilities as its output.
    keeper = build_model(config.model, variant, source.num_classes, activation="softmax")

    _claim(workdir)
    (workdir / CONFIG).write_text(config_lib.to_json(config), encoding="utf-8")
    (workdir / LABELS).write_text("\n".join(source.class_names) + "\n", encoding="utf-8")
    (workdir / PREPROCESSING).write_text(_preprocessing(config, keeper), encoding="utf-8")

    run_steps = loop.training_steps(
        strategy,
        trainee,
        config.data.batch_size,
        label_smoothing=config.train.label_smoothing,
        loss_decay=config.train.weight_decay if config.train.weight_decay_in == "loss" else 0.0,
    )
    evaluate = loop.evaluator(strategy, trainee)
    swap = loop.average_swapper(strategy, trainee) if trainee.average else None
    batches = iter(_training_batches(config, source, strategy, replica_batch))
    validation = _evaluation_batches(config, source, "validation", strategy, replica_batch)
    validation_steps = pipeline.evaluation_steps(source, "validation", config.data.batch_size)

    history: list[dict[str, float]] = []
    best: tuple[int, loop.Scores] | None = None
    for epoch in range(1, config.train.epochs + 1):
        progress = report.Progress(
            f"epoch {epoch}/{config.train.epochs}", steps_per_epoch, config.data.batch_size
        )
        metrics = _train_epoch(config, trainee, run_steps, batches, progress)
        metrics = {"epoch": epoch, **metrics}
        scores = evaluate(iter(validation), validation_steps)
        metrics |= {"validation_loss": scores.loss, "validation_accuracy": scores.accuracy}
        if swap:
            swap()
            scores = evaluate(iter(validation), validation_steps)
            metrics |= {"ema_loss": scores.loss, "ema_accuracy": scores.accuracy}
        # With an average it is the average that is kept; it is in the model right now.
        # One that answers nan can still be right about some pictures, and look best.
        better = best is None or _rank(scores) > _rank(best[1])
        if math.isfinite(scores.loss) and better:
            best = epoch, scores
            keeper.set_weights(trainee.model.get_weights())
            _save(keeper, workdir)
        if swap:
            swap()
        metrics["seconds"] = round(time.perf_counter() - start, 3)
        history.append(metrics)
        report.append_metrics(workdir, metrics)
        progress.finish(metrics)
    report.draw_curves(history, workdir / CURVES)
    if best is None:
        raise FloatingPointError(
            "The validation loss was not finite after any epoch. Lower train.learning_rate,"
            " lengthen train.warmup_epochs or train for more steps."
        )
    keeper.load_weights(workdir / BEST_WEIGHTS)
    return Result(
        model=keeper,
        source=source,
        best_epoch=best[0],
        validation=best[1],
        history=tuple(history),
        seconds=time.perf_counter() - start,
    )


def describe(config: ModelConfig) -> Variant:
    """Makes the variant that a configuration asks for: a row of the table with changes.

    Raises:
        ValueError: unknown variant or wrong block string.
    """
    changes: dict[str, Any] = {
        name: getattr(config, name)
        for name in ("width", "depth", "stem_filters", "head_filters")
        if getattr(config, name) is not None
    }
    if config.blocks:
        changes["blocks"] = tuple(BlockArgs.parse(block) for block in config.blocks)
    variant = find(config.variant)
    if changes:
        changes["name"] = f"{variant.name}-custom"
    return dataclasses.replace(variant, **changes)


def build_model(
    config: ModelConfig, variant: Variant, classes: int, activation: str | None
) -> keras.Model:
    """Builds the configured network, whose classifier is always new.

    Args:
        config: `image_size`, `weights` and the rates are used.
        variant: from `describe`.
        classes: of the classifier.
        activation: of the classifier; None gives logits.
    """
    shape = (config.image_size, config.image_size, 3)
    rate = variant.dropout_rate if config.dropout_rate is None else config.dropout_rate
    if config.weights is None:
        return build(
            variant,
            classes=classes,
            classifier_activation=activation,
            input_shape=shape,
            dropout_rate=rate,
            drop_connect_rate=config.drop_connect_rate,
        )
    trunk = build(
        variant,
        include_top=False,
        pooling="avg",
        weights=config.weights,
        input_shape=shape,
        drop_connect_rate=config.drop_connect_rate,
    )
    x = keras.layers.Dropout(rate, name="top_dropout")(trunk.output)
    x = keras.layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=dense_initializer(),
        dtype=keras.config.dtype_policy().variable_dtype,
        name="predictions",
    )(x)
    return keras.Model(trunk.inputs, x, name=variant.name)


def _check_free(workdir: Path, overwrite: bool) -> None:
    """Refuses, before anything is read, a folder that the run could not or must not write to."""
    found = [name for name in _RESULTS if (workdir / name).exists()]
    if found and CONFIG not in found:
        # Without config.json it is no run of ours: "export" may be anything, and would be removed.
        raise FileExistsError(
            f"{workdir} holds {', '.join(found)}, but no {CONFIG}, and so no run that could be"
            " overwritten. Choose another workdir."
        )
    if found and not overwrite:
        raise FileExistsError(
            f"{workdir} holds a run already. Choose another workdir, or ask to overwrite it"
            " (--overwrite)."
        )
    nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"workdir must be a folder. {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"workdir must be a folder to write to. {nearest} is read-only.")


def _claim(workdir: Path) -> None:
    """Makes the folder, and removes what an earlier run left; other files stay."""
    workdir.mkdir(parents=True, exist_ok=True)
    if (workdir / EXPORT).exists():
        shutil.rmtree(workdir / EXPORT)
    for name in _RESULTS:  # config.json is the last, because it marks the folder as a run's
        if name != EXPORT:
            (workdir / name).unlink(missing_ok=True)


def _preprocessing(config: Config, model: keras.Model) -> str:
    """How `data.pipeline` prepares pictures, and the model's normalisation, for prediction."""
    layer = model.get_layer("rescaling")
    rule = preprocessing_lib.own(config.model.image_size, layer.scale, layer.offset)
    return json.dumps(rule.to_dict(), indent=2) + "\n"


def _replica_batch(config: Config, strategy: tf.distribute.Strategy) -> int:
    replicas = strategy.num_replicas_in_sync
    if config.data.batch_size % replicas:
        raise ValueError(
            f"data.batch_size must be a multiple of the number of replicas, {replicas}."
            f" Received: data.batch_size={config.data.batch_size}"
        )
    return config.data.batch_size // replicas


def _trainee(
    config: Config,
    variant: Variant,
    classes: int,
    strategy: tf.distribute.Strategy,
    steps_per_epoch: int,
) -> loop.Trainee:
    keras.utils.set_random_seed(config.train.seed)
    with strategy.scope():
        with strategy_lib.precision(config.train.precision):
            model = build_model(config.model, variant, classes, activation=None)
        optimizer = optimizer_lib.create(config, model.trainable_variables, steps_per_epoch)
        average = None
        if config.train.ema_decay:
            average = optimizer_lib.MovingAverage(model, config.train.ema_decay)
        trainee = loop.Trainee(model, optimizer, average)
    loop.separate_dropout(strategy, model)
    logging.info(
        "%s: %d parameters, %d px, %d steps of %d pictures per epoch",
        variant.name,
        model.count_params(),
        config.model.image_size,
        steps_per_epoch,
        config.data.batch_size,
    )
    return trainee


def _training_batches(config, source, strategy, replica_batch: int):
    return strategy.distribute_datasets_from_function(
        lambda context: pipeline.training(
            source,
            config.data,
            config.model.image_size,
            replica_batch,
            seed=config.train.seed,
            shard=_shard(context),
        )
    )


def _evaluation_batches(config, source, split: str, strategy, replica_batch: int):
    return strategy.distribute_datasets_from_function(
        lambda context: pipeline.evaluation(
            source,
            split,
            config.model.image_size,
            replica_batch,
            fill_to=config.data.batch_size,
            shard=_shard(context),
        )
    )


def _shard(context: tf.distribute.InputContext) -> pipeline.Shard:
    return pipeline.Shard(context.input_pipeline_id, context.num_input_pipelines)


def _train_epoch(
    config: Config, trainee: loop.Trainee, run_steps, batches, progress: report.Progress
) -> dict[str, float]:
    start = time.perf_counter()
    # The schedule's value before the epoch's first step; the optimizer counts steps.
    rate = float(trainee.optimizer.learning_rate)
    done = 0
    while done < progress.steps:
        count = min(config.train.steps_per_call, progress.steps - done)
        run_steps(batches, tf.constant(count))
        done += count
        loss = trainee.mean_loss()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} after {int(trainee.optimizer.iterations.numpy())} steps."
                " Lower train.learning_rate, lengthen train.warmup_epochs or set train.clip_norm."
                f" The best model so far, if any, is kept as {BEST}."
            )
        progress.update(done, loss)
    scores = trainee.scores()
    return {
        "step": int(trainee.optimizer.iterations.numpy()),
        "learning_rate": rate,
        "train_loss": scores.loss,
        "train_accuracy": scores.accuracy,
        "images_per_second": round(scores.count / (time.perf_counter() - start), 1),
    }


def _rank(scores: loop.Scores) -> tuple[float, float]:
    return scores.accuracy, -scores.loss


def _save(model: keras.Model, workdir: Path) -> None:
    """Writes the model under other names, then renames: what is there is always whole."""
    for name, write in ((BEST, model.save), (BEST_WEIGHTS, model.save_weights)):
        temporary = workdir / f".writing-{name}"  # Keras tells the format from the ending
        try:
            write(temporary)
            os.replace(temporary, workdir / name)
        finally:
            temporary.unlink(missing_ok=True)
