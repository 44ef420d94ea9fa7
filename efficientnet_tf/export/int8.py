"""int8 files that are good enough: the remedies in turn, and training that can go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.export import diagnose, graph, qat
from efficientnet_tf.export import tflite as tflite_lib
from efficientnet_tf.export.formats import REMEDIES, Format
from efficientnet_tf.export.verify import Report
from efficientnet_tf.paths import Remote

if TYPE_CHECKING:
    from efficientnet_tf.export.artifacts import Job

STATE = ".qat"  # folder of a training that was interrupted
_BATCH = 32  # pictures in a step of training


def make(job: Job, path: Path, format_: Format) -> tuple[Report, dict[str, Any]]:
    """Writes an int8 file with the remedy that was asked for, and checks it.

    Args:
        job: of the export.
        path: of the file.
        format_: int8.

    Returns:
        The report of the file, or of the last one where none passes; and how it was written.
    """
    options = job.options
    settings: dict[str, Any] = {
        "fold": True,  # whatever the option: ranges are measured on the folded network
        "batch": options.batch,
        "input": options.int8_input,
        "output": options.int8_output,
    }
    tried: list[Report] = []

    def gate(candidate: graph.Parts) -> str | None:
        tflite_lib.write(
            candidate,
            path,
            kind="int8",
            calibration=job.calibration,
            io=options.int8_input,
            output=options.int8_output,
            batch=options.batch,
            class_names=job.names,
            rule=job.rule,
        )
        report, _ = job.gate(format_, path)
        tried.append(report)
        return report.failure

    try:
        choice = diagnose.choose(
            job.folded(),
            job.calibration,
            gate,
            tune=lambda network, ranges: _tuned(job, network, ranges),
            remedies=REMEDIES[options.remedy],
        )
    except diagnose.NoRemedyError as error:
        paths.remove_tree(job.to / STATE)  # it is finished, and of no use
        last = tried[-1]
        return dataclasses.replace(last, failure=f"{last.name}: {error}"), settings
    settings |= {"remedy": choice.remedy, "refused": dict(choice.refused)}
    if choice.remedy == "qat":
        settings["qat_epochs"] = options.qat_epochs
    return tried[-1], settings


def _tuned(job: Job, parts: graph.Parts, ranges) -> graph.Parts:
    """Trains on the pictures that `--calibrate` names: all of them, where they are a data set."""
    size = parts.model.inputs[0].shape[1]
    pictures = job.options.calibration
    if pictures.source is not None:
        config = DataConfig(resize=job.rule.resize_method)
        feed, steps = qat.from_source(pictures.source, config, size, _BATCH)
    else:
        feed = qat.from_pictures(job.calibration)
        steps = max(1, sum(1 for _ in job.calibration()))
    # A store takes no state to go on from: there tuning that is killed begins anew.
    folder = (job.aside if isinstance(job.to, Remote) else job.to) / STATE
    settings = {"steps": steps, "epochs": job.options.qat_epochs}
    try:
        return qat.fine_tune(parts, ranges, feed, folder, **settings)
    except qat.StateError as error:
        logging.warning("%s It is left by an export that was killed, and removed.", error)
        paths.remove_tree(folder)
        return qat.fine_tune(parts, ranges, feed, folder, **settings)
