"""The epochs of a run, one after the other, through its stages."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from efficientnet_tf.config import Config
from efficientnet_tf.data import pipeline
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.train import feed, loop, network, report, workdir
from efficientnet_tf.train.setup import Run


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What an epoch gave.

    Attributes:
        metrics: by name.
        scores: on the validation split, of the weights that count: the moving average where there
            is one.
        weights: those, as `model.get_weights()` gives them.
        raw: what the average is made of; None without one.
        progress: to finish when everything is saved.
    """

    metrics: dict[str, float]
    scores: loop.Scores
    weights: list[np.ndarray]
    raw: list[np.ndarray] | None
    progress: report.Progress


def epochs(run: Run, rule: Preprocessing) -> Iterator[Epoch]:
    """Trains epoch by epoch.

    Args:
        run: its trainee is changed.
        rule: how pictures are prepared for validation.

    Yields:
        Each epoch.
    """
    config, trainee = run.config, run.trainee
    evaluate = _evaluator(run, rule)
    swap = loop.average_swapper(run.strategy, trainee) if trainee.average else None
    stage_of = [number for number, stage in enumerate(run.stages) for _ in range(stage.epochs)]
    for epoch, number in enumerate(stage_of, 1):
        stage = run.stages[number]
        if epoch == stage.first_epoch:
            network.set_rates(trainee.model, run.variant, stage)
            freeze = config.finetune.freeze_batch_norm
            network.set_trainable(trainee.model, run.variant, stage.unfreeze, freeze)
            # A fresh function: static shapes, this stage's rates and layers, one trace.
            steps = loop.training_steps(run.strategy, trainee, config.batch_size, config.train)
            used = (epoch - 1) * run.steps_per_epoch * config.batch_size
            batches = iter(
                feed.training_batches(
                    config, run.source, run.strategy, stage, used, run.bad["train"]
                )
            )
        progress = _progress(run, epoch, number)
        metrics = {"epoch": epoch, "stage": number + 1, "image_size": stage.image_size}
        with _explaining_errors(run):
            metrics |= _train_epoch(config, trainee, steps, batches, progress)
            scores = evaluate()
        metrics |= _named("validation", scores, run.source.num_classes)
        weights, raw = trainee.model.get_weights(), None
        if swap:
            swap()
            scores = evaluate()
            metrics |= _named("ema", scores, run.source.num_classes)
            weights, raw = trainee.model.get_weights(), weights
            swap()
        yield Epoch(metrics, scores, weights, raw, progress)


@contextlib.contextmanager
def _explaining_errors(run: Run) -> Iterator[None]:
    """Raises what stopped the run in place of TensorFlow's account of it."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise RuntimeError(
            f"The memory does not suffice for data.batch_size={run.config.batch_size}. Lower it, or"
            " raise train.accumulate, which cuts a batch into parts."
        ) from error
    except tf.errors.OpError:
        for bad in run.bad.values():
            if bad.error:
                raise ValueError(bad.error) from None
        raise


def _progress(run: Run, epoch: int, number: int) -> report.Progress:
    label = f"epoch {epoch}/{run.epochs}"
    if len(run.stages) > 1:
        size = run.stages[number].image_size
        label += f", stage {number + 1}/{len(run.stages)}, {size} px"
    left = (run.epochs - epoch) * run.steps_per_epoch
    return report.Progress(label, run.steps_per_epoch, run.config.batch_size, steps_left=left)


def _evaluator(run: Run, rule: Preprocessing) -> Callable[[], loop.Scores]:
    """Returns a function that scores the model, as it is, on the validation split."""
    evaluate = loop.evaluator(run.strategy, run.trainee, run.config.train.loss)
    batches = feed.evaluation_batches(
        run.config, run.source, "validation", run.strategy, rule, run.bad["validation"]
    )
    steps = pipeline.evaluation_steps(run.source, "validation", run.config.batch_size)
    return lambda: evaluate(iter(batches), steps)


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
                f" The best model so far, if any, is kept as {workdir.BEST}."
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


def _named(prefix: str, scores: loop.Scores, classes: int) -> dict[str, float]:
    named = {f"{prefix}_loss": scores.loss, f"{prefix}_accuracy": scores.accuracy}
    if classes > 5:  # otherwise all would be right
        named[f"{prefix}_top5"] = scores.top5
    return named
