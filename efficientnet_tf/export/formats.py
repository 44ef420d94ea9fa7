"""The formats that a model leaves Keras in: what they are called, and what they have to keep to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import keras

from efficientnet_tf.export.pictures import Pictures
from efficientnet_tf.export.verify import EXACT, Limits

LARGEST = 2**31 - 2**24  # bytes of weights that a file or message of 2 GiB has room for
_LIMITED = ("tflite", "openvino")  # runtimes whose files are that, or are made from it
FEWEST_CALIBRATION = 20  # pictures; a few hundred are better
SAVED_MODEL = "saved_model"
INT8 = "tflite-int8"
REMEDIES: Mapping[str, tuple[str, ...]] = {  # of int8: what is tried in turn, see `diagnose.choose`
    "none": ("plain",),
    "percentile": ("percentile",),
    "qat": ("qat",),
    "auto": ("plain", "percentile", "qat"),
}


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: on the command line.
        path: of the file or folder in the target folder; a SavedModel has its versions in there.
        runtime: key of `runtimes.PACKAGES`.
        limits: what it has to keep to, unless others are asked for. Those of quantised formats are
            wide enough for a network that quantises well, and too narrow for one that breaks.
        packages: modules that writing needs, each with the extra of this package that has it.
        calibrated: whether it needs pictures to find the ranges of activations.
    """

    name: str
    path: str
    runtime: str
    limits: Limits = EXACT
    packages: tuple[tuple[str, str], ...] = ()
    calibrated: bool = False


BFLOAT16 = Limits(min_agreement=0.97, max_error=0.05)
_ONNX = (("onnx", "onnx"), ("tf2onnx", "onnx"))
_16 = Limits(min_agreement=0.99, max_error=0.01)
_8 = Limits(min_agreement=0.97, max_error=0.05)
_INT8 = Limits(min_agreement=0.9, max_error=0.1)

# fmt: off
FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format(SAVED_MODEL,      "saved_model",          "saved_model"),
        Format("tflite",         "model.tflite",         "tflite"),
        Format("tflite-float16", "model-float16.tflite", "tflite", _16),
        Format("tflite-dynamic", "model-dynamic.tflite", "tflite", _8),
        Format(INT8,             "model-int8.tflite",    "tflite", _INT8, calibrated=True),
        Format("tflite-int16x8", "model-int16x8.tflite", "tflite", _8, calibrated=True),
        Format("onnx",           "model.onnx",           "onnx", packages=_ONNX),
        Format("openvino",       "openvino",             "openvino"),
        Format("keras",          "model.keras",          "keras"),
    )
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Options:
    """How formats are written and what decides about them.

    Attributes:
        tolerance: of formats that keep the network as it is; None is 1e-4. See `verify.Limits`.
        min_agreement: of quantised formats and bfloat16; None is each format's own.
        max_error: likewise.
        fold: whether batch normalization goes into the convolutions before it.
        frozen: whether a SavedModel's weights are constants: faster to run, and more memory.
        precision: of a SavedModel's convolutions.
        version: of the SavedModel; None is the next one.
        warm_up: batch sizes that a server runs before it takes requests; empty for no record.
        serving_name: of the model, in configuration files for TensorFlow Serving beside it; None
            for no such files.
        batch: of TFLite files; None for any.
        calibration: pictures for the ranges of int8 and int16x8.
        remedy: against what int8 costs: "none", "percentile", "qat", or "auto" for the cheapest one
            that passes.
        qat_epochs: passes through the pictures in quantisation-aware training.
        int8_input: type of the input of int8 files.
        int8_output: type of their output.
    """

    tolerance: float | None = None
    min_agreement: float | None = None
    max_error: float | None = None
    fold: bool = True
    frozen: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    version: int | None = None
    warm_up: tuple[int, ...] = ()
    serving_name: str | None = None
    batch: int | None = None
    calibration: Pictures | None = None
    remedy: Literal["none", "percentile", "qat", "auto"] = "none"
    qat_epochs: int = 1
    int8_input: Literal["uint8", "float32"] = "uint8"
    int8_output: Literal["uint8", "float32"] = "float32"

    def __post_init__(self) -> None:
        for limits in (EXACT, BFLOAT16):
            self._changed(limits)  # checks the numbers
        if self.version is not None and self.version < 1:
            raise ValueError(f"version must be at least 1. Received: version={self.version}")
        if self.remedy not in REMEDIES:
            raise ValueError(f"remedy must be one of {tuple(REMEDIES)}. Received: {self.remedy!r}")

    def limits(self, format_: Format) -> Limits:
        """What a format has to keep to."""
        lossy = format_.name == SAVED_MODEL and self.precision != "float32"
        return self._changed(BFLOAT16 if lossy else format_.limits)

    def constants(self) -> bool:
        """Whether a SavedModel's weights are constants of its graph."""
        return self.frozen or self.precision != "float32"

    def _changed(self, limits: Limits) -> Limits:
        names = (
            ("tolerance",) if math.isfinite(limits.tolerance) else ("min_agreement", "max_error")
        )
        changes = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(limits, **changes)


def check_size(chosen: Sequence[Format], options: Options, model: keras.Model) -> None:
    """Refuses, before any work is done, formats that cannot hold a model's weights.

    Raises:
        ValueError: one cannot.
    """
    size = 4 * model.count_params()  # float32, which quantised formats are converted from
    for each in chosen:
        constants = each.name == SAVED_MODEL and options.constants()
        if size > LARGEST and (constants or each.runtime in _LIMITED):
            raise ValueError(
                f"{each.name}{' with weights that are constants' if constants else ''} is written"
                f" from less than 2 GiB of weights, and {model.name!r} has {size / 2**30:.2f} GiB."
                " Formats without that limit are saved_model (without --frozen and"
                " --precision), onnx and keras."
            )
