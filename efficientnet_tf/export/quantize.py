"""8 bits for every tensor: which range each one takes, and a model that says so to the converter.

TFLite's own calibration takes each tensor's smallest and largest value. In a trained network with
squeeze-excite and swish a few values lie far outside all others, and 256 steps over such a range
leave too few for the rest (tensorflow/tpu#549 reports 15 points of accuracy lost). `ranges`
measures where almost all values are, and `with_fake_quant` writes these ranges into the model as
`FakeQuant` layers, which the converter turns into the scales of the int8 file.

A point is a tensor that has a range of its own; see `points`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from efficientnet_tf.export import points

PERCENTILE = 99.99
PIXELS = (0.0, 255.0)

_BINS = 2**15  # of a histogram: a quantile is exact to 4 / _BINS of the largest value
_SLICE = 8  # pictures that are run at a time
_NARROWEST = 1e-5  # a range that is empty, of a tensor that is always 0, is widened to this


@keras.saving.register_keras_serializable(package="efficientnet_tf")
class FakeQuant(layers.Layer):
    """Rounds to the 256 values that 8 bits have between two bounds; what lies outside is clipped.

    The bounds are moved a little where that makes 0 one of the values, as TensorFlow's operation
    `FakeQuantWithMinMaxVars` does it. Gradients pass where values are not clipped; the bounds learn
    from those that are.

    Args:
        low: lower bound to begin with, at most 0.
        high: upper bound to begin with, at least 0 and above `low`.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        if not (low <= 0.0 <= high and low < high and np.isfinite([low, high]).all()):
            raise ValueError(
                "low and high must be finite with low <= 0 <= high and low < high. Received:"
                f" low={low}, high={high}"
            )
        self._bounds = float(low), float(high)

    def build(self, input_shape):
        """Makes the bounds, two scalars."""
        for name, value, constraint in zip(
            ("low", "high"), self._bounds, (_at_most_0, _at_least_0), strict=True
        ):
            start = keras.initializers.Constant(value)
            setattr(self, name, self.add_weight((), start, name=name, constraint=constraint))

    def call(self, inputs):
        """Rounds a float32 tensor of any shape."""
        return tf.quantization.fake_quant_with_min_max_vars(inputs, self.low, self.high, num_bits=8)

    def get_config(self):
        """Keras' config."""
        low, high = self._bounds
        return {**super().get_config(), "low": low, "high": high}


def _at_most_0(value):
    return keras.ops.minimum(value, 0.0)


def _at_least_0(value):
    return keras.ops.maximum(value, 0.0)


@dataclasses.dataclass
class Histogram:
    """How the values of a tensor are spread, over any number of batches, in fixed memory.

    Attributes:
        radius: a power of two above every absolute value so far.
        counts: int64 (_BINS,), of equal parts of [-radius, radius).
        low: smallest value.
        high: largest value.
    """

    radius: float = 2.0**-126
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(_BINS, np.int64))
    low: float = np.inf
    high: float = -np.inf

    def add(self, radius: float, counts: np.ndarray, low: float, high: float) -> None:
        """Adds a batch: what the attributes of these names would be for it alone."""
        if radius > self.radius:
            self.counts, self.radius = _widened(self.counts, self.radius, radius), radius
        self.counts = self.counts + _widened(counts, radius, self.radius)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def quantile(self, share: float) -> float:
        """The value that this share of all values does not exceed, interpolated in its bin.

        Args:
            share: in [0, 1].

        Returns:
            What `numpy.quantile` returns for all values, to 4 / 2**15 of the largest of them.
        """
        if share in (0, 1):
            return self.high if share else self.low
        before = np.concatenate([[0], np.cumsum(self.counts)])
        rank = share * (before[-1] - 1)
        index = min(int(np.searchsorted(before, rank, side="right")) - 1, _BINS - 1)
        inside = (rank - before[index] + 0.5) / max(self.counts[index], 1)
        width = 2.0 * self.radius / _BINS
        value = -self.radius + (index + inside) * width
        return float(np.clip(value, self.low, self.high))


def _widened(counts: np.ndarray, radius: float, wider: float) -> np.ndarray:
    """Counts of the bins of a wider histogram; both radii are powers of two."""
    if wider == radius:
        return counts
    bins = np.arange(_BINS) - _BINS // 2
    # Beyond 2**_BINS the exact factor makes no difference: all is in the two bins around 0.
    factor = int(min(wider / radius, 2.0 * _BINS))
    sums = np.bincount(bins // factor + _BINS // 2, counts, minlength=_BINS)
    return sums.astype(np.int64)


def ranges(
    model: keras.Model,
    batches: Iterable[np.ndarray],
    *,
    percentile: float = PERCENTILE,
    pixels: tuple[float, float] | None = PIXELS,
) -> dict[str, tuple[float, float]]:
    """Measures which range each point's values lie in.

    Args:
        model: flat functional model with batch normalization folded, such as that of `graph.parts`.
        batches: pictures to calibrate with, float32 (batch, height, width, 3) as the model takes
            them. A few hundred real ones; each is run once, and memory does not grow with them.
        percentile: in (50, 100]; this share of the values lies below the upper bound, and above the
            lower one. 100 takes the smallest and the largest value.
        pixels: range of the input; None for what the pictures have.

    Returns:
        Names of the points to (low, high), with low <= 0 <= high and low < high.

    Raises:
        ValueError: there are no pictures, they do not lie in `pixels`, or a value is not finite.
    """
    source = model.inputs[0].name
    return bounds(histograms(model, batches), source, percentile=percentile, pixels=pixels)


def bounds(
    found: Mapping[str, Histogram],
    source: str,
    *,
    percentile: float = PERCENTILE,
    pixels: tuple[float, float] | None = PIXELS,
) -> dict[str, tuple[float, float]]:
    """The ranges of points whose values were counted before; see `ranges`.

    Args:
        found: from `histograms`.
        source: name of the model's input.
        percentile: as for `ranges`.
        pixels: as for `ranges`.
    """
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile must be in (50, 100]. Received: percentile={percentile}")
    share = percentile / 100
    result = {
        name: _with_zero(histogram.quantile(1 - share), histogram.quantile(share))
        for name, histogram in found.items()
    }
    low, high = found[source].low, found[source].high
    if pixels is not None and (low < pixels[0] or high > pixels[1]):
        raise ValueError(
            f"Pictures to calibrate with must lie in {list(pixels)}. Received: [{low}, {high}]."
            " Where the model takes normalised pictures, give pixels=None."
        )
    result[source] = _with_zero(*(pixels or (low, high)))  # no pixel is clipped
    return result


def _with_zero(low: float, high: float) -> tuple[float, float]:
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    return low, max(high, low + _NARROWEST)


def histograms(model: keras.Model, batches: Iterable[np.ndarray]) -> dict[str, Histogram]:
    """Measures how the values of each point are spread; see `ranges`."""
    tensors: dict[str, Any] = {}

    def keep(name, tensor):
        tensors[name] = tensor
        return tensor

    copy = points.insert(model, keep)
    probe = keras.Model(copy.inputs, tensors)
    shape = (None, *model.inputs[0].shape[1:])

    # One graph: a tensor's memory is free again as soon as it is counted.
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
    def count(images):
        values = probe(images, training=False)
        parts = [_count(values[name]) for name in tensors]
        return [tf.stack(part) for part in zip(*parts, strict=True)]

    found = {name: Histogram() for name in tensors}
    for images in sliced(batches):
        measured = [part.numpy() for part in count(tf.constant(images, tf.float32))]
        for name, counts, radius, low, high in zip(tensors, *measured, strict=True):
            if not np.isfinite(radius) or not np.isfinite([low, high]).all():
                raise ValueError(
                    f"The output of layer {name!r} holds values that are not finite: a model that"
                    " answers nan or inf cannot be quantised."
                )
            found[name].add(float(radius), counts, float(low), float(high))
    if not found[model.inputs[0].name].counts.any():
        raise ValueError("There are no pictures to calibrate with. Give a few hundred real ones.")
    return found


def _count(tensor):
    """(int32 counts (_BINS,), radius, low, high) of a tensor; see `Histogram`."""
    values = tf.reshape(tensor, [-1])
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    # The power of two above: the exponent's bits plus one, and no mantissa.
    exponent = tf.bitwise.right_shift(
        tf.bitcast(tf.maximum(tf.abs(low), tf.abs(high)), tf.int32), 23
    )
    radius = tf.bitcast(tf.bitwise.left_shift(exponent + 1, 23), tf.float32)
    bins = tf.cast(tf.floor(values / radius * (_BINS / 2)), tf.int32) + _BINS // 2
    bins = tf.clip_by_value(bins, 0, _BINS - 1)  # nan and inf, which the caller refuses
    counts = tf.math.bincount(bins, minlength=_BINS, maxlength=_BINS, dtype=tf.int32)
    return counts, radius, low, high


def sliced(batches: Iterable[np.ndarray]):
    """Cuts batches of pictures into small ones, so that wide networks fit into memory."""
    for images in batches:
        for start in range(0, len(images), _SLICE):
            yield images[start : start + _SLICE]


def with_fake_quant(
    model: keras.Model, ranges: Mapping[str, tuple[float, float]], *, trainable: bool = False
) -> keras.Model:
    """Copies a model with a `FakeQuant` layer at each point, called "{point}_range".

    Given to the TFLite converter, the copy becomes an int8 file with these ranges. Kernels stay as
    they are: the converter takes the largest value of each output channel as its scale.

    Args:
        model: flat functional model with batch normalization folded.
        ranges: of all points, from `ranges` of the same model; there may be more.
        trainable: whether the bounds learn.

    Raises:
        ValueError: a point has no range.
    """
    missing = [name for name in points.names(model) if name not in ranges]
    if missing:
        raise ValueError(
            f"ranges must have every point of {model.name!r}; {len(missing)} are missing, such as"
            f" {missing[0]!r}. Measure them on the same model."
        )

    def quantised(name, tensor):
        low, high = ranges[name]
        return FakeQuant(low, high, name=f"{name}_range", trainable=trainable)(tensor)

    return points.insert(model, quantised)
