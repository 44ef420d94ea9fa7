"""One training run: a configuration and a folder in, a trained model and its record out."""

import contextlib
import dataclasses
import json
import math
import os
import time

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf import config as config_lib
from efficientnet_tf import paths, writing
from efficientnet_tf import stages as stages_lib
from efficientnet_tf.config import Config
from efficientnet_tf.data import fingerprint
from efficientnet_tf.data.sources import Source
from efficientnet_tf.evaluate import evaluate
from efficientnet_tf.page import document
from efficientnet_tf.page.evaluation import evaluation_sections, result_line
from efficientnet_tf.page.run import run_page
from efficientnet_tf.paths import AnyPath, Remote
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.scores import Evaluation
from efficientnet_tf.stages import Stage
from efficientnet_tf.train import (
    checkpoint,
    interruption,
    loop,
    network,
    record,
    report,
    workdir,
    workers,
)
from efficientnet_tf.train.checkpoint import Progress
from efficientnet_tf.train.epochs import Epoch, epochs
from efficientnet_tf.train.interruption import Interrupted
from efficientnet_tf.train.setup import Run, of_source, prepare
from efficientnet_tf.train.strategy import is_chief

_WORST = 12  # mistakes that the summary shows as pictures


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives.

    Attributes:
        config: of the run, with everything resolved.
        model: the best one, from pictures in [0, 255] to probabilities, in float32.
        rule: how pictures are prepared for the model.
        source: where the pictures came from.
        stages: of the run.
        best_epoch: with the highest validation accuracy, counted from 1.
        validation: scores of that epoch's model on the validation split.
        test: scores on the test split.
        history: metrics of every epoch.
        seconds: of training and validation.
    """

    config: Config
    model: keras.Model
    rule: Preprocessing
    source: Source
    stages: tuple[Stage, ...]
    best_epoch: int
    validation: loop.Scores
    test: Evaluation
    history: tuple[dict[str, float], ...]
    seconds: float


def train(
    config: Config,
    folder: str | os.PathLike | Remote,
    *,
    strategy: tf.distribute.Strategy | None = None,
    source: Source | None = None,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> Result | None:
    """Trains a network, and keeps the one that is best on the validation split.

    The folder holds config.json, labels.txt and preprocessing.json from the start, metrics.jsonl
    and metrics.csv from the first epoch, and at all times the best model so far (best.keras and
    best.weights.h5: the moving average where there is one; best-raw.weights.h5: what it is made
    of), also when the run fails. summary.html shows the run so far; at the end also how good the
    model is on the test split, class by class, with its worst mistakes.

    A run in the folder with the same settings that was stopped, however, goes on from its last
    checkpoint; on the same hardware to the same bits as without the stop.

    Where several processes train together, each calls this with the same arguments. The folder must
    be one that they share: the chief writes to it, the others only their parts of checkpoints.

    Args:
        config: of the run.
        folder: to write to; made where it is missing. May be a URL, see `paths`.
        strategy: where to train; None is one device.
        source: pictures instead of `config.data.source`, for example from arrays.
        overwrite: whether the folder may hold an earlier run, whose files are then removed.
        tensorboard: whether scalars are written for TensorBoard too.

    Returns:
        The best model and its record; None for workers that are not the chief. They return when
        training is done, while the chief scores the model on the test split.

    Raises:
        FileExistsError: the folder holds another run, and `overwrite` is False; or it holds files
            with the names of a run's results, but no run.
        BlockingIOError: a run is going on in the folder.
        Interrupted: SIGTERM came, to any worker; the run is saved.
        OSError: the folder cannot be written to.
        ValueError: the configuration or the data cannot be trained with.
        FloatingPointError: the loss or its gradient is no longer finite, or the validation loss was
            so in no epoch.
        RuntimeError: another worker ended, or the memory does not suffice.
    """
    report.require_matplotlib()
    strategy = strategy or tf.distribute.get_strategy()
    folder, config = paths.of(folder), of_source(config, source)
    writing.check_writable(folder)
    chief = is_chief(strategy)
    lock = workdir.locked(folder) if chief else contextlib.nullcontext()
    with lock, interruption.at_once(), workers.explained(strategy):
        workers.check_same(strategy, config_lib.to_json(config), "settings")
        saved = workdir.begun(folder, config, overwrite) if chief else None
        text = config_lib.to_json(saved) if saved else ""
        text = workers.exchange(strategy, text)[0]
        saved = config_lib.from_json(text) if text else None
        run = prepare(saved or config, strategy, source, folder, overwrite=overwrite)
        # The model that is kept: float32 whatever trained it, with probabilities as its output.
        keeper = network.kept(run.config, run.variant, run.trainee.model)
        rule = network.evaluation_rule(run.config, run.trainee.model)
        begun = _begin(run, rule, folder, resumed=saved is not None)
        workers.check_shared(strategy, folder / workdir.CONFIG)
        return _train(run, keeper, rule, folder, begun, tensorboard)


def _train(
    run: Run,
    keeper: keras.Model,
    rule: Preprocessing,
    folder: AnyPath,
    begun: Progress,
    tensorboard: bool,
) -> Result | None:
    config, source = run.config, run.source
    chief = is_chief(run.strategy)
    start = time.perf_counter() - begun.seconds
    writer = report.TensorBoard(folder / workdir.TENSORBOARD) if tensorboard and chief else None
    history, best = list(begun.history), begun.best

    def save(position: Progress) -> None:
        progress = dataclasses.replace(
            position,
            seconds=time.perf_counter() - start,
            history=tuple(history),
            best=best,
            bad=(*begun.bad, *_bad(run)),
            data=_identity(run),
        )
        checkpoint.save(
            folder / workdir.CHECKPOINTS,
            progress,
            run.strategy,
            run.trainee,
            config.train.keep_checkpoints,
        )

    def stopping() -> bool:
        return workers.any_of(run.strategy, asked())

    try:
        with interruption.asked() as asked:
            for epoch in epochs(run, rule, folder, begun, save, stopping):
                number, metrics, scores = len(history) + 1, epoch.metrics, epoch.scores
                # One that answers nan can still be right about some pictures, and look best.
                if math.isfinite(scores.loss) and (best is None or _rank(scores) > _rank(best[1])):
                    best = number, scores
                    if chief:
                        _save(keeper, epoch, folder)
                metrics["seconds"] = round(time.perf_counter() - start, 3)
                history.append(metrics)
                if chief:
                    report.append_metrics(folder, metrics)
                    _write_page(run, history, folder)
                    if writer:
                        writer.write(metrics)
                    epoch.progress.finish(metrics)
                # Smaller pictures and the classifier alone are not what the run is for.
                reference = max(best[0] if best else 0, run.stages[-1].first_epoch - 1)
                if config.train.patience and number - reference >= config.train.patience:
                    logging.info(
                        "No better validation accuracy for %d epochs.", config.train.patience
                    )
                    break
            if stopping():
                raise Interrupted
    finally:
        bad = (*source.bad, *begun.bad, *_bad(run))
        if chief:
            workdir.save_names(folder / workdir.BAD_PICTURES, bad)
    # Each worker found those in its share of the pictures.
    told = workers.exchange(run.strategy, json.dumps(bad))
    if chief:
        bad = [name for text in told for name in json.loads(text)]
        workdir.save_names(folder / workdir.BAD_PICTURES, bad)
        report.draw_curves(history, folder / report.CURVES)
    if writer:
        writer.close()
    if best is None:
        raise FloatingPointError(
            "The validation loss was not finite after any epoch. Lower train.learning_rate,"
            " lengthen train.warmup_epochs or train for more steps."
        )
    if not chief:
        return None
    seconds = time.perf_counter() - start
    with paths.fetched(folder / workdir.BEST_WEIGHTS) as best_weights:
        keeper.load_weights(best_weights)
    test = evaluate(
        keeper,
        source,
        "test",
        rule,
        # On the chief's first device alone, what it took at a time in training.
        config.batch_size // (run.strategy.num_replicas_in_sync * config.train.accumulate),
        worst=_WORST,
        max_bad=config.data.max_bad,
    )
    _write_page(run, history, folder, test)
    return Result(
        config=config,
        model=keeper,
        rule=rule,
        source=source,
        stages=run.stages,
        best_epoch=best[0],
        validation=best[1],
        test=test,
        history=tuple(history),
        seconds=seconds,
    )


def _begin(run: Run, rule: Preprocessing, folder: AnyPath, resumed: bool) -> Progress:
    """Writes what is known before training, or takes up the run where it stopped."""
    chief, begun, after = is_chief(run.strategy), None, None
    if resumed:
        begun = checkpoint.restore(folder / workdir.CHECKPOINTS, run.strategy, run.trainee)
    if begun is None:
        begun = Progress()
        if chief:
            _write_start(run, rule, folder)
    elif begun.data != _identity(run):
        raise ValueError(
            f"The pictures of {run.source.name}, or the teacher, are not those that the run in"
            f" {folder} began with: {_identity(run)}, then {begun.data}. Bring them back, or start"
            " anew (--overwrite)."
        )
    else:
        if chief:
            writing.sweep(folder)
            report.write_metrics(folder, begun.history)
        after = {"epoch": begun.epoch, "step": begun.done}
        logging.info(
            "The run in %s goes on after step %d of epoch %d.", folder, begun.done, begun.epoch
        )
        if ":" in run.config.data.augment or run.config.data.service:
            logging.warning(
                "data.augment with a layer of Keras or KerasCV, and data.service, do not repeat"
                " themselves: the run goes on, but not to the same bits."
            )
    logging.info(
        "%s: %d parameters, %d steps of %d pictures per epoch\n%s",
        run.variant.name,
        run.trainee.model.count_params(),
        run.steps_per_epoch,
        run.config.batch_size,
        stages_lib.table(run.stages),
    )
    if chief:
        record.begin(run, folder, after)
    return begun


def _bad(run: Run) -> tuple[str, ...]:
    return (*run.bad["train"].names, *run.bad["validation"].names)


def _identity(run: Run) -> dict[str, object]:
    """What tells pictures from others, but for what they show; and a teacher from others."""
    source = run.source
    return {
        "examples": dict(source.num_examples),
        "class_names": fingerprint.of_classes(source),
        **({"taught": run.taught} if run.taught else {}),
    }


def _write_start(run: Run, rule: Preprocessing, folder: AnyPath) -> None:
    """Claims the folder, writes what is known before training, and says what will happen."""
    workdir.claim(folder)
    texts = {
        workdir.CONFIG: config_lib.to_json(run.config),  # first: it marks the folder as a run's
        workdir.LABELS: "\n".join(run.source.class_names) + "\n",
        workdir.PREPROCESSING: json.dumps(rule.to_dict(), indent=2) + "\n",
    }
    for name, text in texts.items():
        workdir.write_text(folder / name, text)
    workdir.save_names(folder / workdir.BAD_PICTURES, run.source.bad)
    logging.info("settings:\n%s", config_lib.to_table(run.config))


def _save(keeper: keras.Model, epoch: Epoch, folder: AnyPath) -> None:
    if epoch.raw is not None:
        keeper.set_weights(epoch.raw)
        workdir.save_raw(keeper, folder)
    keeper.set_weights(epoch.weights)
    workdir.save(keeper, folder)


def _write_page(run: Run, history, folder: AnyPath, test: Evaluation | None = None) -> None:
    last = history[-1]
    result = f"Epoch {last['epoch']}: validation accuracy {last['validation_accuracy']:.2%}"
    if test is not None:
        result = f"Test: {result_line(test)}"
    page = run_page(
        title=f"{run.source.name}, {run.variant.name}",
        result=f"{result}, {report.duration(last['seconds'])}",
        history=history,
        stages=run.stages,
        config=run.config,
        environment=record.shown(folder),
        sections=() if test is None else evaluation_sections(test),
    )
    document.write(folder / workdir.SUMMARY, page)


def _rank(scores: loop.Scores) -> tuple[float, float]:
    return scores.accuracy, -scores.loss
