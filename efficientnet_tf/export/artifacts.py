"""From a classifier to files that are proved to answer as it does.

`export` writes every format aside, has each one answer pictures in its own runtime and a process of
its own, and puts nothing in place unless all of them pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths, writing
from efficientnet_tf.classifier import Classifier, Origin
from efficientnet_tf.export import (
    checks,
    diagnose,
    graph,
    keras_file,
    manifest,
    onnx_file,
    place,
    runtimes,
    verify,
)
from efficientnet_tf.export import int8 as int8_lib
from efficientnet_tf.export import onnx as onnx_lib
from efficientnet_tf.export import openvino as openvino_lib
from efficientnet_tf.export import saved_model as saved_model_lib
from efficientnet_tf.export import serving as serving_lib
from efficientnet_tf.export import tflite as tflite_lib
from efficientnet_tf.export.formats import (
    FEWEST_CALIBRATION,
    FORMATS,
    INT8,
    SAVED_MODEL,
    Format,
    Options,
    check_size,
)
from efficientnet_tf.export.pictures import Pictures
from efficientnet_tf.export.verify import GateError, Reference, Report
from efficientnet_tf.paths import AnyPath, Remote
from efficientnet_tf.preprocessing import Preprocessing

REPORT = "report.json"
DIAGNOSIS = "diagnosis.txt"
_SHOWN = 10  # layers


def export(
    classifier: Classifier,
    to: str | os.PathLike | Remote,
    formats: Sequence[str],
    pictures: Pictures,
    *,
    origin: Origin,
    options: Options | None = None,
) -> tuple[Report, ...]:
    """Writes a classifier in several formats, and checks each one against it.

    Everything is written and checked aside. Only when all formats pass are they renamed to
    `saved_model/<version>/`, `model.tflite`, … (see `formats.FORMATS`), each with its manifest, and
    what the check found, picture by picture, to `report.json`. Files that are there are replaced,
    versions of a SavedModel are not.

    Args:
        classifier: what leaves Keras.
        to: folder to write to; other files in it stay. May be a URL, see `paths`.
        formats: keys of `formats.FORMATS`.
        pictures: to check on, such as `pictures.samples()`.
        origin: of the weights, for the manifests.
        options: None is the defaults.

    Returns:
        A report of each format, in order.

    Raises:
        ValueError: the classifier cannot be exported like this, or the pictures do not do.
        FileExistsError: the version of the SavedModel is there already.
        ImportError: a package that a format needs is missing.
        OSError: the folder cannot be written to.
        GateError: a file does not give the model's answers; nothing is put in place, and
            `failed-<time>.json` in the folder has the reports.
    """
    to = paths.of(to)
    options = options or Options()
    chosen = _chosen(formats, options)
    check_size(chosen, options, classifier.model)
    _check_version(to, options.version)
    writing.check_writable(to)
    pictures.count()
    for each in chosen:
        if each.calibrated:
            _enough(each.name, options.calibration)
    with place.aside(to) as aside, _quiet(), _full_float32():
        job = Job(classifier, pictures, origin, options, aside, to)
        for each in chosen:
            job.make(each)
        reports = tuple(job.reports)
        manifest.write(aside / REPORT, [manifest.full(report) for report in reports])
        if any(report.failure for report in reports):
            _keep(aside / REPORT, to)
            raise GateError(reports)
        configs = job.serving_configs()
        with writing.lock(to, wait=True):
            moves = _moves(chosen, aside, to, options.version, configs)
            place.move(moves, aside)
            left = onnx_file.data_of(to / FORMATS["onnx"].path)  # of a file that was there before
            if FORMATS["onnx"] in chosen and left not in moves.values():
                left.unlink(missing_ok=True)
        if FORMATS["tflite-int8"] in chosen:
            paths.remove_tree(to / int8_lib.STATE)
    return reports


def diagnosis(
    classifier: Classifier, to: str | os.PathLike | Remote, calibration: Pictures | None
) -> str:
    """Finds out what int8 does to each layer, and what to do about it.

    Args:
        classifier: whose network it is about.
        to: folder, in which `diagnosis.txt` is written.
        calibration: pictures of the kind that the model was made for.

    Returns:
        The table and the advice, for people.

    Raises:
        ValueError: there are too few pictures.
    """
    calibration = _enough("a diagnosis", calibration)
    to = paths.of(to)
    with place.aside(to) as aside:
        found = diagnose.diagnose(
            _parts(classifier), _in_range(calibration, classifier.preprocessing)
        )
        (aside / DIAGNOSIS).write_text(found.text() + "\n", encoding="utf-8")
        writing.put(aside / DIAGNOSIS, to / DIAGNOSIS)
    return found.text(_SHOWN)


class Job:
    """One run of `export`: what all formats share, and the reports so far."""

    def __init__(self, classifier, pictures, origin, options, aside: Path, to: AnyPath):
        self.classifier, self.pictures = classifier, pictures
        self.origin, self.options, self.aside, self.to = origin, options, aside, to
        self.rule = classifier.preprocessing
        self.names = [label.name for label in classifier.labels]
        self.expected = Reference(classifier.model)
        self.parts = _parts(classifier, fold=options.fold)
        self.reports: list[Report] = []

    def folded(self) -> graph.Parts:
        """The network with batch normalization folded, whatever the options say."""
        return self.parts if self.options.fold else _parts(self.classifier)

    def make(self, format_: Format) -> None:
        """Writes one format aside and checks it."""
        logging.info("Writing %s", format_.path)
        path = self.aside / format_.path
        settings: dict[str, Any] = {"fold": self.options.fold}
        if format_.name == INT8:
            report, more = int8_lib.make(self, path, format_)
            settings |= more
            self.reports.append(report)
            signatures = report_signatures(format_, path) if not report.failure else {}
        else:
            try:
                settings |= self.write(format_, path)
            except tf.errors.OpError as error:  # what TensorFlow makes of a full disk
                raise OSError(f"{format_.path} cannot be written: {error.message}") from error
            report, signatures = self.gate(format_, path)
            self.reports.append(report)
        if self.reports[-1].failure:
            return
        content = manifest.make(
            path,
            artefact=format_.name,
            origin=self.origin,
            rule=self.rule,
            labels=self.classifier.labels,
            options=settings,
            signatures=signatures,
            report=self.reports[-1],
            pictures=self.pictures.name,
        )
        manifest.write(_manifest(path), content)

    def write(self, format_: Format, path: Path) -> dict[str, Any]:
        """Writes one format; returns the options that it was written with."""
        options, common = self.options, {"class_names": self.names, "rule": self.rule}
        if format_.name == SAVED_MODEL:
            settings = {"frozen": options.frozen, "precision": options.precision}
            saved_model_lib.write(self.parts, path, **common, **settings)
            if options.warm_up:
                sizes = options.warm_up
                serving_lib.warm_up(path, batch_sizes=sizes, size=self.rule.size)
                settings["warm_up"] = list(sizes)
            return settings
        if format_.runtime == "tflite":
            kind = format_.name.partition("-")[2] or "float32"
            calibration = self.calibration if format_.calibrated else None
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                tflite_lib.write(
                    self.parts,
                    path,
                    kind=kind,
                    calibration=calibration,
                    batch=options.batch,
                    **common,
                )
            for warning in told:
                if warning.category is UserWarning:
                    logging.warning("%s: %s", format_.path, warning.message)
            return {"batch": options.batch}
        if format_.name == "onnx":
            onnx_lib.write(self.parts, path, **common)
        elif format_.name == "openvino":
            openvino_lib.write(self.parts, path)
        else:
            keras_file.write(self.classifier.model, path)
            return {"fold": False}
        return {}

    def calibration(self) -> Iterator[np.ndarray]:
        """Batches of pictures for the ranges of activations, inside [0, 255]."""
        return _in_range(self.options.calibration, self.rule)

    def gate(self, format_: Format, path: Path) -> tuple[Report, runtimes.Specs]:
        """Compares a written file with the model; gives its signatures too."""
        limits = self.options.limits(format_)
        try:
            with runtimes.start(format_.runtime, path) as runtime:
                report = verify.compare(
                    path.name,
                    lambda images: runtime.ask({"images": images}),
                    self.expected,
                    self.pictures.batches(self.rule),
                    limits,
                )
                if format_.name == SAVED_MODEL and not report.failure:
                    found, wrong = checks.check(
                        runtime, self.pictures, self.rule, self.expected, self.names, limits
                    )
                    failure = f"{path.name}: {wrong}." if wrong else None
                    report = dataclasses.replace(report, checks=found, failure=failure)
                return report, runtime.signatures
        except runtimes.RuntimeFailure as error:
            return Report(path.name, limits=limits, failure=str(error)), {}

    def serving_configs(self) -> dict[Path, AnyPath]:
        """Writes configuration for TensorFlow Serving aside; what is to be moved where."""
        if self.options.serving_name is None:
            return {}
        files = serving_lib.configs(self.aside, self.options.serving_name)
        for file in files:
            there = self.to / file.name
            if there.exists() and there.read_bytes() != file.read_bytes():
                raise FileExistsError(
                    f"{there} is there with other content. Delete it to have it written anew."
                )
        return {file: self.to / file.name for file in files}


def report_signatures(format_: Format, path: Path) -> runtimes.Specs:
    """Inputs and outputs of a file, as its runtime tells them."""
    with runtimes.start(format_.runtime, path) as runtime:
        return runtime.signatures


def _chosen(formats: Sequence[str], options: Options) -> list[Format]:
    """The formats asked for, where everything that they need is there."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or len(set(formats)) != len(formats):
        raise ValueError(
            f"formats must be some of {', '.join(FORMATS)}, each once. Received:"
            f" {', '.join(formats) or 'none'}"
        )
    chosen = [FORMATS[name] for name in formats]
    for each in chosen:
        for module, extra in each.packages:
            if importlib.util.find_spec(module) is None:
                raise ImportError(
                    f'{each.name} needs {module}: pip install "efficientnet_tf[{extra}]"'
                )
        runtimes.require(each.runtime)
    return chosen


def _enough(what: str, calibration: Pictures | None) -> Pictures:
    """The pictures to calibrate with, where they are enough."""
    if calibration is None:
        raise ValueError(
            f"{what} needs pictures of the kind that the model was made for, to find the ranges of"
            f" its activations: --calibrate=folder:PATH with at least {FEWEST_CALIBRATION}, better"
            " a few hundred."
        )
    calibration.count(FEWEST_CALIBRATION)
    return calibration


def _in_range(pictures: Pictures, rule: Preprocessing) -> Iterator[np.ndarray]:
    for batch in pictures.batches(rule):
        yield np.clip(batch.images, 0.0, 255.0)  # some filters overshoot a little at edges


def _check_version(to: AnyPath, version: int | None) -> None:
    if version is not None:
        place.check_free(to / SAVED_MODEL / str(version))


def _parts(classifier: Classifier, *, fold: bool = True) -> graph.Parts:
    """The network taken apart, for pictures of one size."""
    parts = graph.parts(classifier.model, fold=fold)
    if parts.model.inputs[0].shape[1] is not None:
        return parts
    size = classifier.preprocessing.size
    return dataclasses.replace(parts, model=graph.resized(parts.model, size))


def _manifest(path: Path) -> Path:
    return path / manifest.NAME if path.is_dir() else path.with_name(f"{path.name}.{manifest.NAME}")


def _moves(
    chosen: Sequence[Format], aside: Path, to: AnyPath, version: int | None, configs
) -> Mapping[Path, AnyPath]:
    """What is renamed to what, in order: a version of a SavedModel, which ends it all, last."""
    moves: dict[Path, AnyPath] = {}
    last: dict[Path, AnyPath] = {}
    for each in chosen:
        finished = aside / each.path
        if each.name == SAVED_MODEL:
            newest = max([0, *place.versions(to / SAVED_MODEL)])
            last[finished] = to / SAVED_MODEL / str(version or newest + 1)
            continue
        if onnx_file.data_of(finished).exists():
            moves[onnx_file.data_of(finished)] = onnx_file.data_of(to / each.path)
        moves[finished] = to / each.path
        if finished.is_file():
            moves[_manifest(finished)] = (to / each.path).with_name(_manifest(finished).name)
    return {**moves, aside / REPORT: to / REPORT, **configs, **last}


def _keep(report: Path, to: AnyPath) -> None:
    """Keeps the report of a failed run under a name that is free."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(100):
        kept = to / (f"failed-{stamp}-{number}.json" if number else f"failed-{stamp}.json")
        if not kept.exists():
            writing.put(report, kept)
            logging.error("What failed is in %s", kept)
            return


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TensorFlow tells about each function, and each gradient that is left out on purpose."""

    def interesting(record) -> bool:
        ours = "efficientnet_tf" in record.pathname
        warns = record.levelno >= logging.converter.STANDARD_WARNING
        return ours or (warns and "unsaved custom gradients" not in record.getMessage())

    loggers = (logging.get_absl_logger(), tf.get_logger())
    for logger in loggers:
        logger.addFilter(interesting)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(interesting)


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """GPUs round factors to 10 bits in TensorFloat-32, which is coarser than the tolerance."""
    reduced = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(reduced)
