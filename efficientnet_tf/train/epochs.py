"""The epochs of a run, one after the other, through its stages."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.config import TrainConfig
from efficientnet_tf.data.records import first_few
from efficientnet_tf.paths import AnyPath
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.train import checkpoint, feed, loop, network, report, workdir
from efficientnet_tf.train.checkpoint import Progress
from efficientnet_tf.train.interruption import Interrupted
from efficientnet_tf.train.schedule import WarmupSchedule
from efficientnet_tf.train.setup import Run
from efficientnet_tf.train.strategy import is_chief

_PATIENCE = 30.0  # seconds, which Kubernetes gives by default


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


def epochs(
    run: Run,
    rule: Preprocessing,
    folder: AnyPath,
    begun: Progress,
    save: Callable[[Progress], None],
    stopping: Callable[[], bool],
) -> Iterator[Epoch]:
    """Trains epoch by epoch.

    Args:
        run: its trainee is changed.
        rule: how pictures are prepared for validation.
        folder: of the run, for the names of a batch that breaks it.
        begun: how far the trainee has come.
        save: writes a checkpoint, of which it gets `epoch`, `done` and `epoch_seconds`.
        stopping: whether the run has been asked to stop; called, and so answered, by all workers
            at the same moments.

    Yields:
        Each epoch that was not finished before.

    Raises:
        Interrupted: it has been asked to; what was learnt is saved.
        FloatingPointError: the loss or the gradients are not finite.
    """
    config, trainee = run.config, run.trainee
    evaluate = _evaluator(run, rule, stopping)
    swap = loop.average_swapper(run.strategy, trainee) if trainee.average else None
    stage_of = [number for number, stage in enumerate(run.stages) for _ in range(stage.epochs)]
    for epoch, number in enumerate(stage_of, 1):
        if epoch < begun.epoch:
            continue
        stage = run.stages[number]
        done = begun.done if epoch == begun.epoch else 0
        new_stage = epoch == max(stage.first_epoch, begun.epoch)
        if new_stage:
            network.set_rates(trainee.model, run.variant, stage)
            freeze = config.finetune.freeze_batch_norm
            network.set_trainable(trainee.model, run.variant, stage.unfreeze, freeze)
            # A fresh function: static shapes, this stage's rates and layers, one trace.
            steps = loop.training_steps(
                run.strategy, trainee, config.batch_size, _loss(run), run.distillation
            )
            used = ((epoch - 1) * run.steps_per_epoch + done) * config.batch_size
            batches = iter(
                feed.training_batches(
                    config, run.lessons, run.strategy, stage, used, run.bad["train"]
                )
            )
        position = Progress(epoch, done, begun.epoch_seconds if done else 0.0)
        progress = _progress(run, epoch, number)
        metrics = {"epoch": epoch, "stage": number + 1, "image_size": stage.image_size}
        with _explaining_errors(run):
            metrics |= _train_epoch(
                run, folder, new_stage, steps, batches, progress, position, save, stopping
            )
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


def _evaluator(
    run: Run, rule: Preprocessing, stopping: Callable[[], bool]
) -> Callable[[], loop.Scores]:
    """Returns a function that scores the model, as it is, on the validation split."""

    def between():
        if stopping():
            raise Interrupted  # the checkpoint was written before evaluation began

    evaluate = loop.evaluator(
        run.strategy,
        run.trainee,
        run.config.train.loss,
        steps_per_call=run.config.train.steps_per_call,
        between=between,
    )
    batches = feed.evaluation_batches(
        run.config, run.source, "validation", run.strategy, rule, run.bad["validation"]
    )
    steps = feed.evaluation_steps(run.config, run.source, "validation")
    return lambda: evaluate(iter(batches), steps)


def _train_epoch(
    run: Run,
    folder: AnyPath,
    new_stage: bool,
    run_steps,
    batches,
    progress: report.Progress,
    position: Progress,
    save: Callable[[Progress], None],
    stopping: Callable[[], bool],
) -> dict[str, float]:
    config, trainee = run.config.train, run.trainee
    start, done = time.perf_counter() - position.epoch_seconds, position.done
    seconds, calls = position.epoch_seconds, 0
    while done < progress.steps:
        count = min(config.steps_per_call, progress.steps - done)
        before, calls = time.perf_counter(), calls + 1
        run_steps(batches, tf.constant(count))
        _check_finite(run, folder, position.epoch, done, count)
        due = (done + count) // config.checkpoint_steps > done // config.checkpoint_steps
        done += count
        seconds = time.perf_counter() - start
        loss = trainee.mean_loss()  # all workers read it together
        if new_stage and calls == 2:  # the first one traces
            _say_how_soon(time.perf_counter() - before, count)
        if is_chief(run.strategy):
            progress.update(done, loss)
        stop = stopping()
        if due or stop or done == progress.steps:
            save(dataclasses.replace(position, done=done, epoch_seconds=seconds))
        if stop:
            raise Interrupted
    scores = trainee.scores()
    return {
        "step": int(trainee.optimizer.iterations.numpy()),
        # Before the epoch's first step.
        "learning_rate": float(_schedule(run)((position.epoch - 1) * run.steps_per_epoch)),
        "train_loss": scores.loss,
        "train_accuracy": scores.accuracy,
        "images_per_second": round(scores.count / seconds, 1),
    }


def _say_how_soon(seconds: float, steps: int) -> None:
    """Says when a run that is asked to stop does so, at the latest but for writing a checkpoint."""
    tell = logging.warning if seconds > _PATIENCE else logging.info
    tell(
        "SIGTERM is answered within %s, after the %d steps of a call (train.steps_per_call). See"
        " that this is less than a shared machine waits.",
        report.duration(seconds),
        steps,
    )


def _names(run: Run, step: int) -> list[str]:
    """Names of a step's pictures."""
    first, size = step * run.config.batch_size, run.config.batch_size
    records = run.lessons.records("train", run.config.train.seed, first).take(size)
    return [
        str(name.numpy(), "utf-8", "backslashreplace") for name in records.map(run.lessons.describe)
    ]


def _check_finite(run: Run, folder: AnyPath, epoch: int, done: int, count: int) -> None:
    """Raises, with all that is known, where one of the last `count` steps went wrong."""
    broken = run.trainee.broken_steps(run.strategy.num_replicas_in_sync)
    if not broken:
        return
    step = (epoch - 1) * run.steps_per_epoch + done + max(count - broken, 0)  # from 0
    had = ""
    if not run.config.data.service:
        names = _names(run, step)
        had = f" The batch had {first_few(names)} (all: {folder / workdir.BROKEN_BATCH})."
        if is_chief(run.strategy):
            workdir.save_names(folder / workdir.BROKEN_BATCH, names)
    last = checkpoint.last(folder / workdir.CHECKPOINTS)
    rate = float(_schedule(run)(step))
    narrow = run.config.train.precision == "mixed_float16"
    raise FloatingPointError(
        f"The loss or its gradient is not finite in step {step + 1} (epoch {epoch}), at the"
        f" learning rate {rate:.4g}.{had} Lower train.learning_rate,"
        " lengthen train.warmup_epochs or set train.clip_norm"
        f"{', or train.precision=float32, as float16 ends at 65504' if narrow else ''}."
        f" The last good checkpoint is {last or 'none: the first was not due yet'}"
        f"; the best model so far, if any, is {workdir.BEST}."
    )


def _loss(run: Run) -> TrainConfig:
    """Settings of the loss. Soft labels come smoothed where they are to be."""
    config = run.config.train
    return dataclasses.replace(config, label_smoothing=0.0) if run.lessons.soft else config


def _schedule(run: Run) -> WarmupSchedule:
    config = run.config
    return WarmupSchedule(
        config.train, config.scaled_learning_rate, run.steps_per_epoch, run.epochs
    )


def _named(prefix: str, scores: loop.Scores, classes: int) -> dict[str, float]:
    named = {f"{prefix}_loss": scores.loss, f"{prefix}_accuracy": scores.accuracy}
    if classes > 5:  # otherwise all would be right
        named[f"{prefix}_top5"] = scores.top5
    return named
