"""The gate: whether an exported file answers as the model does, picture by picture."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf import classifier as classifier_lib
from efficientnet_tf import columns
from efficientnet_tf.evaluate import output_of
from efficientnet_tf.export import graph
from efficientnet_tf.export.graph import FEATURES, LOGITS, PROBABILITIES
from efficientnet_tf.export.pictures import Batch

TOLERANCE = 1e-4  # of the spread of the model's outputs; float32 reordering stays far below
_COMPARED = (LOGITS, PROBABILITIES)
_KEPT_BYTES = 2**28

Answer = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an artefact has to keep to.

    A difference is a share of the spread (largest minus smallest) of what the model answers to all
    pictures: of its logits where the artefact gives them, otherwise of its probabilities.

    Attributes:
        tolerance: the largest difference of any output for any picture; of every format in which
            the network stays what it is.
        min_agreement: share of pictures with the same most likely class as the model's.
        max_error: mean over the pictures of the largest difference of an output.
    """

    tolerance: float = math.inf
    min_agreement: float = 0.0
    max_error: float = math.inf

    def __post_init__(self) -> None:
        for name in ("tolerance", "max_error"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0. Received: {getattr(self, name)}")
        if not 0 <= self.min_agreement <= 1:
            raise ValueError(
                f"min_agreement must be in [0, 1]. Received: min_agreement={self.min_agreement}"
            )


EXACT = Limits(tolerance=TOLERANCE)


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one picture.

    Attributes:
        name: of the picture.
        model: the model's most likely class, as an index.
        artefact: the artefact's.
        model_probability: of the model's class, by the model.
        probability: of the model's class, by the artefact.
        difference: see `Limits`.
        label: index of the right class; None where there is none, or several.
    """

    name: str
    model: int
    artefact: int
    model_probability: float
    probability: float
    difference: float
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """How one artefact compares with the model.

    Attributes:
        name: of the artefact.
        count: pictures.
        agreement: share of pictures with the same most likely class as the model's.
        difference: the largest of any output; see `Limits`.
        error: mean over the pictures of the largest difference of an output.
        accuracy: of its answers, as a share; None where the pictures have no labels.
        model_accuracy: of the model's, on the same pictures.
        compared: the output that `error` and the rows are about.
        limits: what it had to keep to.
        checks: of a SavedModel's other signatures: name to difference, in the same units.
        failure: why it may not be used; None where it may.
        rows: of the pictures.
    """

    name: str
    count: int = 0
    agreement: float = 0.0
    difference: float = math.inf
    error: float = math.inf
    accuracy: float | None = None
    model_accuracy: float | None = None
    compared: str = PROBABILITIES
    limits: Limits = EXACT
    checks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failure: str | None = None
    rows: tuple[Row, ...] = ()


class GateError(RuntimeError):
    """An artefact does not give the model's answers; nothing is put in place.

    Attributes:
        reports: of all artefacts, those that passed too.
    """

    def __init__(self, reports: Sequence[Report]):
        self.reports = tuple(reports)
        failed = [report.failure for report in reports if report.failure]
        super().__init__("\n".join(failed))


def compare(
    name: str,
    answer: Answer,
    expected: Answer,
    batches: Iterable[Batch],
    limits: Limits = EXACT,
) -> Report:
    """Compares an artefact with the model it came from.

    Args:
        name: of the artefact, for messages.
        answer: the artefact: images to its outputs by name, "probabilities" among them.
        expected: the model, with both "probabilities" and "logits".
        batches: of pictures.
        limits: what decides.

    Returns:
        The comparison; its `failure` is set where an output is not finite, has another shape, or is
        beyond the limits.

    Raises:
        ValueError: there are no pictures.
    """
    rows: list[Row] = []
    hits: list[tuple[float, float]] = []
    worst: dict[str, float] = {}
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    compared = PROBABILITIES
    for batch in batches:
        got, want = answer(batch.images), expected(batch.images)
        failure = _unusable(name, got, want)
        if failure:
            return Report(name, len(rows), limits=limits, failure=failure, rows=tuple(rows))
        compared = LOGITS if LOGITS in got else PROBABILITIES
        differences = {key: np.abs(got[key] - want[key]).max(-1) for key in _COMPARED if key in got}
        for key, value in differences.items():
            worst[key] = max(worst.get(key, 0.0), float(value.max()))
            low[key] = min(low.get(key, math.inf), float(want[key].min()))
            high[key] = max(high.get(key, -math.inf), float(want[key].max()))
        rows += _rows(batch, got[PROBABILITIES], want[PROBABILITIES], differences[compared])
        if batch.labels is not None:
            pairs = (_hits(o[PROBABILITIES].argmax(-1), batch.labels) for o in (got, want))
            hits += zip(*pairs, strict=True)
    if not rows:
        raise ValueError(f"{name}: there are no pictures to compare on.")
    # An untrained model's outputs may all be equal; then the difference counts as it is.
    spread = {key: (high[key] - low[key]) or 1.0 for key in worst}
    own = [dataclasses.replace(row, difference=row.difference / spread[compared]) for row in rows]
    accuracy, model_accuracy = np.mean(hits, axis=0).tolist() if hits else (None, None)
    report = Report(
        name=name,
        count=len(rows),
        agreement=float(np.mean([row.model == row.artefact for row in rows])),
        difference=max(worst[key] / spread[key] for key in worst),
        error=float(np.mean([row.difference for row in own])),
        accuracy=accuracy,
        model_accuracy=model_accuracy,
        compared=compared,
        limits=limits,
        rows=tuple(own),
    )
    return dataclasses.replace(report, failure=_beyond(report))


def _unusable(name: str, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]):
    """Why a batch of answers is none, or None."""
    if PROBABILITIES not in got:
        return f"{name} gives no {PROBABILITIES}, but {', '.join(got) or 'nothing'}."
    for key in _COMPARED:
        if key not in got:
            continue
        if got[key].shape != want[key].shape:
            return f"{name}: {key} has shape {got[key].shape}, the model's {want[key].shape}."
        if not np.isfinite(got[key]).all():
            return f"{name}: {key} holds values that are not finite."
        if not np.isfinite(want[key]).all():
            return f"{name}: the model's own {key} hold values that are not finite."
    return None


def _rows(batch: Batch, got: np.ndarray, want: np.ndarray, differences) -> Iterable[Row]:
    single = batch.labels is not None and batch.labels.ndim == 1
    for i, name in enumerate(batch.names):
        best = int(want[i].argmax())
        yield Row(
            name=name,
            model=best,
            artefact=int(got[i].argmax()),
            model_probability=float(want[i, best]),
            probability=float(got[i, best]),
            difference=float(differences[i]),
            label=int(batch.labels[i]) if single else None,
        )


def _hits(classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2:
        return labels[np.arange(len(classes)), classes].astype(float)
    return (classes == labels).astype(float)


def _beyond(report: Report) -> str | None:
    """Which limits an artefact goes beyond, or None."""
    limits, what = report.limits, []
    if not report.difference <= limits.tolerance:
        what.append(
            f"its {report.compared} differ by up to {report.difference:.2g} of their spread"
            f" (allowed: {limits.tolerance:g})"
        )
    if not report.agreement >= limits.min_agreement:
        what.append(
            f"its most likely class is the model's for {report.agreement:.1%} of them (at least"
            f" {limits.min_agreement:.1%})"
        )
    if not report.error <= limits.max_error:
        what.append(
            f"its {report.compared} differ by {report.error:.2g} of their spread on average"
            f" (allowed: {limits.max_error:g})"
        )
    if not what:
        return None
    return (
        f"{report.name} does not give the model's answers on {report.count} pictures:"
        f" {'; '.join(what)}."
    )


class Reference:
    """The model's own answers, computed by Keras in float32.

    Probabilities are those of the model as it is, unless it computes in fewer bits or ends in
    logits: then, and for logits and features, of its flat float32 copy, in which nothing is folded.
    Answers are kept for the next artefact, which is asked about the same pictures.
    """

    def __init__(self, model: keras.Model):
        self._kept: dict[bytes, dict[str, np.ndarray]] = {}
        self._room = _KEPT_BYTES
        self.parts = graph.parts(model, fold=False)
        self._flat = tf.function(
            lambda images: self.parts.model(images, training=False), reduce_retracing=True
        )
        exact = all(layer.compute_dtype == "float32" for layer in classifier_lib.layers(model))
        try:
            exact = exact and output_of(model) != "linear"
        except ValueError:
            exact = False
        self._own = None
        if exact:
            self._own = tf.function(
                lambda images: model(images, training=False), reduce_retracing=True
            )

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Answers to pictures.

        Args:
            images: float32 (batch, size, size, 3), as the model takes them.

        Returns:
            "probabilities", "logits" (batch, classes) and, where the network has them, "features"
            (batch, units), all float32.
        """
        key = hashlib.sha256(np.ascontiguousarray(images)).digest()
        if key not in self._kept:
            answers = self._answers(tf.constant(images))
            self._room -= sum(array.nbytes for array in answers.values())
            if self._room < 0:
                return answers
            self._kept[key] = answers
        return self._kept[key]

    def _answers(self, images) -> dict[str, np.ndarray]:
        found = self._flat(images)
        names = (PROBABILITIES, LOGITS, FEATURES)
        answers = {name: found[name].numpy() for name in names if name in found}
        if self._own is not None:
            answers[PROBABILITIES] = self._own(images).numpy()
        return answers


def table(reports: Sequence[Report]) -> str:
    """Lays reports out as a table for people, the model itself in the first row.

    >>> print(table([Report("model.tflite", 9, 1.0, 3e-7, 1e-7)]))
    artefact      accuracy  difference  same class
    keras         -
    model.tflite  -         3.0e-07     100.00%
    """

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    rows = [("artefact", "accuracy", "difference", "same class")]
    rows.append(("keras", share(reports[0].model_accuracy if reports else None), "", ""))
    for report in reports:
        # Of what is quantised, the mean says more than the worst picture.
        exact = math.isfinite(report.limits.tolerance)
        difference = report.difference if exact else report.error
        rows.append(
            (report.name, share(report.accuracy), f"{difference:.1e}", share(report.agreement))
        )
    return columns.align(rows)
