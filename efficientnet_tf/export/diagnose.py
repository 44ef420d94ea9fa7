"""Which layers 8 bits hurt, by how much, and what helps.

Everything is computed in Keras with the rounding of an int8 file (`quantize.FakeQuant`, kernels per
output channel), so that no file needs to be converted for it: first the whole network with each
remedy, then each point on its own.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf.export import graph, points, qat, quantize

PLAIN, PERCENTILE, QAT = "plain", "percentile", "qat"
REMEDIES = (PLAIN, PERCENTILE, QAT)  # the cheapest first
PERCENTILES = (99.99, 99.9)  # which one is better depends on the network
_WAY_OUT = (
    "Dynamic range (float activations, int8 kernels) keeps the accuracy of such a network at the"
    " same size; EfficientNet-Lite, without swish and squeeze-excite, is made for int8."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What 8 bits do at one point; see `quantize` for what a point is.

    Attributes:
        layer: whose output it is.
        low: smallest value.
        high: largest value.
        typical: range that holds almost all values: (low, high) by percentile.
        error: signal-to-noise ratio of this tensor, in dB, where 256 steps span all of its values.
        logit_error: root mean square of what rounding this layer alone (its output, and its kernel)
            changes in the logits, as a share of their standard deviation.
        agreement_cost: share of pictures that change their most likely class by it.
    """

    layer: str
    low: float
    high: float
    typical: tuple[float, float]
    error: float
    logit_error: float
    agreement_cost: float


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What 8 bits do to a network.

    Attributes:
        rows: of all points, in the order in which they are computed.
        plain: agreement of the most likely class with the float network, everything rounded, with
            each range from the smallest to the largest value.
        percentile: likewise, with ranges that hold almost all values.
        remedy: what to take: "plain", "percentile" or "qat".
        count: pictures.
    """

    rows: tuple[Row, ...]
    plain: float
    percentile: float
    remedy: str
    count: int

    @property
    def worst(self) -> Row:
        """The row whose rounding costs most."""
        return max(self.rows, key=lambda row: (row.agreement_cost, row.logit_error))

    def text(self, most: int | None = None) -> str:
        """A table for people, the costliest layers first, and the advice.

        Args:
            most: rows; None for all.
        """
        ranked = sorted(self.rows, key=lambda r: (-r.agreement_cost, -r.logit_error))[:most]
        width = max(len("layer"), *(len(row.layer) for row in ranked))
        lines = [
            f"{'layer':{width}}  {'range':>19}  {'typical':>19}  SNR dB  logits  classes changed"
        ]
        for row in ranked:
            spans = [f"{low:.3g} … {high:.3g}" for low, high in ((row.low, row.high), row.typical)]
            lines.append(
                f"{row.layer:{width}}  {spans[0]:>19}  {spans[1]:>19}  {row.error:6.1f}"
                f"  {row.logit_error:6.1%}  {row.agreement_cost:15.1%}"
            )
        return "\n".join([*lines, "", self.advice()])

    def advice(self) -> str:
        """The worst layer, how the whole network fares, and which remedy to take."""
        worst, share = self.worst, f"of {self.count} pictures keep their class in 8 bits"
        facts = (
            f"Worst: {worst.layer} ({worst.low:.3g} … {worst.high:.3g}, typically"
            f" {worst.typical[0]:.3g} … {worst.typical[1]:.3g}).\n"
            f"{self.plain:.1%} {share} with plain ranges, {self.percentile:.1%} with percentile"
            " ranges."
        )
        reasons = {
            PLAIN: "Take plain int8: nothing else is needed.",
            PERCENTILE: "Take percentile ranges: clipping the few values far outside is enough.",
            QAT: "Take quantisation-aware fine-tuning: ranges alone are not enough. Without"
            f" pictures to train on: {_WAY_OUT[0].lower()}{_WAY_OUT[1:]}",
        }
        return f"{facts}\n{reasons[self.remedy]}"


def diagnose(
    parts: graph.Parts,
    batches: Iterable[np.ndarray],
    *,
    percentiles: Sequence[float] = PERCENTILES,
    agreement: float = 0.97,
    pixels: tuple[float, float] | None = quantize.PIXELS,
) -> Diagnosis:
    """Finds out which layers 8 bits hurt, and what to do about it.

    Takes one run of the pictures for each point: a hundred pictures show what a percent costs.

    Args:
        parts: a float network, with batch normalization folded.
        batches: pictures, float32 (batch, height, width, 3) as the model takes them.
        percentiles: of ranges that hold almost all values; that with which most pictures keep
            their class counts. The typical ranges are those of the first.
        agreement: share of pictures that must keep their class for a remedy to be enough.
        pixels: as for `quantize.ranges`.

    Raises:
        ValueError: as `quantize.ranges`.
    """
    pictures = list(quantize.sliced(batches))
    found = quantize.histograms(parts.model, pictures)
    wide, *clipped = (
        quantize.bounds(found, parts.model.inputs[0].name, percentile=p, pixels=pixels)
        for p in (100.0, *percentiles)
    )
    trial = _Trial(parts, wide)
    float_logits = trial.logits(pictures, ())
    classes, spread = float_logits.argmax(-1), float_logits.std() or 1.0

    def same(logits):
        return float((logits.argmax(-1) == classes).mean())

    noise = trial.noise(pictures)
    rows = []
    for name in trial.names:
        logits = trial.logits(pictures, (name,))
        rows.append(
            Row(
                layer=name,
                low=found[name].low,
                high=found[name].high,
                typical=clipped[0][name],
                error=noise[name],
                logit_error=float(np.sqrt(np.mean((logits - float_logits) ** 2)) / spread),
                agreement_cost=1.0 - same(logits),
            )
        )
    plain = same(trial.logits(pictures, trial.names))
    best = max(same(_Trial(parts, r).logits(pictures, trial.names)) for r in clipped)
    remedy = PLAIN if plain >= agreement else PERCENTILE if best >= agreement else QAT
    return Diagnosis(tuple(rows), plain, best, remedy, len(classes))


def best_ranges(
    parts: graph.Parts,
    batches: Iterable[np.ndarray],
    percentiles: Sequence[float] = PERCENTILES,
    *,
    pixels: tuple[float, float] | None = quantize.PIXELS,
) -> dict[str, tuple[float, float]]:
    """The ranges of the percentile with which most pictures keep their class, in simulation.

    Args:
        parts: a float network, with batch normalization folded.
        batches: pictures, as for `quantize.ranges`.
        percentiles: to choose from.
        pixels: as for `quantize.ranges`.

    Raises:
        ValueError: as `quantize.ranges`.
    """
    pictures = list(quantize.sliced(batches))
    found = quantize.histograms(parts.model, pictures)
    source = parts.model.inputs[0].name
    choices = [
        quantize.bounds(found, source, percentile=percentile, pixels=pixels)
        for percentile in percentiles
    ]
    if len(choices) == 1:
        return choices[0]
    kept = []
    for ranges in choices:
        trial = _Trial(parts, ranges)
        classes = [trial.logits(pictures, names).argmax(-1) for names in ((), trial.names)]
        kept.append(float((classes[0] == classes[1]).mean()))
    best = int(np.argmax(kept))
    logging.info(
        "int8: %s of the pictures keep their class with percentiles %s; %g is taken.",
        ", ".join(f"{share:.1%}" for share in kept),
        ", ".join(f"{percentile:g}" for percentile in percentiles),
        percentiles[best],
    )
    return choices[best]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The remedy that was taken.

    Attributes:
        remedy: "plain", "percentile" or "qat".
        parts: the network to convert to int8.
        refused: of the cheaper remedies, why the gate did not let them pass.
    """

    remedy: str
    parts: graph.Parts
    refused: Mapping[str, str]


class NoRemedyError(RuntimeError):
    """No remedy passes the gate."""


def choose(
    parts: graph.Parts,
    calibration: Callable[[], Iterable[np.ndarray]],
    gate: Callable[[graph.Parts], str | None],
    *,
    tune: Callable[[graph.Parts, Mapping[str, tuple[float, float]]], graph.Parts] | None = None,
    remedies: Sequence[str] = REMEDIES,
    percentiles: Sequence[float] = PERCENTILES,
    pixels: tuple[float, float] | None = quantize.PIXELS,
) -> Choice:
    """Takes the cheapest remedy that passes a gate; never another format.

    Args:
        parts: a float network, with batch normalization folded.
        calibration: makes an iterable of pictures, as for `quantize.ranges`.
        gate: is given the network to convert to int8, and returns why the file is not good enough,
            or None where it is.
        tune: network and ranges to the fine-tuned network, such as `qat.fine_tune` with its other
            arguments; None where there are no pictures to train on, and "qat" is left out.
        remedies: which to try, in this order.
        percentiles: of "percentile" and "qat"; see `best_ranges`.
        pixels: as for `quantize.ranges`.

    Raises:
        NoRemedyError: none passes; the message has the reasons, and what else there is.
        ValueError: a remedy of another name.
    """
    unknown = [remedy for remedy in remedies if remedy not in REMEDIES]
    if unknown or not remedies:
        raise ValueError(f"remedies must be some of {REMEDIES}. Received: {tuple(remedies)}")
    refused: dict[str, str] = {}
    measured = None
    for remedy in remedies:
        if remedy == QAT and tune is None:
            refused[remedy] = "there are no pictures to train on"
            continue
        if remedy != PLAIN and measured is None:
            measured = best_ranges(parts, calibration(), percentiles, pixels=pixels)
        candidate = parts
        if remedy == PERCENTILE:
            model = quantize.with_fake_quant(parts.model, measured)
            candidate = dataclasses.replace(parts, model=model)
        elif remedy == QAT:
            candidate = tune(parts, measured)
        reason = gate(candidate)
        if reason is None:
            logging.info("int8: %s passes.", remedy)
            return Choice(remedy, candidate, refused)
        logging.warning("int8: %s does not pass: %s", remedy, reason)
        refused[remedy] = reason
    reasons = "\n".join(f"  {remedy}: {reason}" for remedy, reason in refused.items())
    raise NoRemedyError(f"No int8 file is good enough.\n{reasons}\n{_WAY_OUT}")


class _Switched(quantize.FakeQuant):
    """`FakeQuant` for one point of a network, on or off by a variable."""

    def __init__(self, low, high, switch: tf.Variable, **kwargs):
        super().__init__(low, high, **kwargs)
        self._switch = switch

    def call(self, inputs):
        return tf.cond(self._switch, lambda: super(_Switched, self).call(inputs), lambda: inputs)


class _Trial:
    """A network in which any set of points can be rounded."""

    def __init__(self, parts: graph.Parts, ranges: Mapping[str, tuple[float, float]]):
        self.names: list[str] = []
        self._switches: dict[str, tf.Variable] = {}
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}

        def at(name, tensor):
            self.names.append(name)
            self._switches[name] = tf.Variable(False, trainable=False)
            low, high = ranges[name]
            before[name] = tensor
            after[name] = _Switched(low, high, self._switches[name], name=f"{name}_range")(tensor)
            return after[name]

        model = points.insert(parts.model, at)
        self._kernels = {layer.name: list(qat.kernels(layer)) for layer in model.layers}
        head = keras.Model(model.inputs, model.output[graph.LOGITS])
        self._run = tf.function(lambda images: head(images, training=False), reduce_retracing=True)
        probe = keras.Model(model.inputs, before)

        @tf.function(reduce_retracing=True)
        def powers(images):
            """Sums of squares of each tensor, and of what rounding changes in it."""
            rows = []
            tensors = probe(images, training=False)
            for name in self.names:
                x, (low, high) = tensors[name], ranges[name]
                y = tf.quantization.fake_quant_with_min_max_args(x, low, high)
                rows.append([tf.reduce_sum(x**2), tf.reduce_sum((x - y) ** 2)])
            return rows

        self._powers = powers

    def logits(self, pictures: Sequence[np.ndarray], rounded: Sequence[str]) -> np.ndarray:
        """Runs the pictures with these points rounded, and the kernels of their layers."""
        kernels = [pair for name in rounded for pair in self._kernels.get(name, ())]
        learned = [kernel.numpy() for kernel, _ in kernels]
        for name in self.names:
            self._switches[name].assign(name in rounded)
        for kernel, axes in kernels:
            kernel.assign(qat.rounded(kernel.value, axes))
        answers = np.concatenate([self._run(tf.constant(x)).numpy() for x in pictures])
        for (kernel, _), value in zip(kernels, learned, strict=True):
            kernel.assign(value)
        return answers

    def noise(self, pictures: Sequence[np.ndarray]) -> dict[str, float]:
        """Signal-to-noise ratio of each point, in dB."""
        for switch in self._switches.values():
            switch.assign(False)
        sums = sum(np.asarray(self._powers(tf.constant(x)), np.float64) for x in pictures)
        signal, rounding = np.maximum(sums, 1e-30).T
        decibels = 10 * np.log10(signal / rounding)
        return dict(zip(self.names, map(float, decibels), strict=True))
