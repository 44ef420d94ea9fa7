"""What has to happen to a picture before a set of weights sees it, as data.

A `Preprocessing` belongs to weights, not to an architecture: the same network was published with
three normalisations and two crop rules. Prediction, evaluation, export and serving all read it.
`efficientnet_tf.data.images.resize_and_crop` carries out the crop and the resize, and the model's
first layer the normalisation, from `rescaling`.

This module imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

ResizeMethod = Literal["bicubic_legacy", "bilinear_legacy", "bilinear", "bicubic"]
CropRule = Literal["pad32", "pad32_floor", "fraction", "squash"]
LabelMap = Literal["imagenet", "imagenet-background", "imagenet21k"]

RESIZE_METHODS: tuple[str, ...] = get_args(ResizeMethod)
CROP_RULES: tuple[str, ...] = get_args(CropRule)
LABEL_MAPS: tuple[str, ...] = get_args(LabelMap)

FILE = "preprocessing.json"  # `Preprocessing.to_dict`, beside a saved model that it belongs to

# Normalisation constants on pixels in [0, 255]: name -> (mean, std) of red, green and blue.
# fmt: off
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    # V1 but for AdvProp (tpu efficientnet_builder.py); V2-B0..B3 on ImageNet-1k
    "torch":     ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    # AdvProp: x * 2 / 255 - 1 (tpu eval_ckpt_main.py)
    "inception": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    # Lite and EdgeTPU (tpu efficientnet_lite_builder.py, efficientnet_edgetpu_builder.py)
    "lite":      ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    # V2-S/M/L/XL and every ImageNet-21k checkpoint (automl efficientnetv2/preprocessing.py)
    "v2":        ((128.0, 128.0, 128.0), (128.0, 128.0, 128.0)),
}
# fmt: on


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pictures were prepared when a set of weights was published.

    Attributes:
        name: what the normalisation is called, e.g. "torch" or "v2"; shown to people.
        mean: per channel (red, green, blue), in units of pixels in [0, 255].
        std: per channel, same units, greater than 0. The network sees `(x - mean) / std`.
        size: pixels, side of the square picture that the network gets.
        resize_method: "bicubic_legacy" and "bilinear_legacy" use TensorFlow 1's grid
            (half_pixel_centers=False, no antialias), "bilinear" is the default of
            `tf.image.resize` (half-pixel centres, no antialias), "bicubic" has half-pixel centres
            and antialias, as PIL and timm do.
        crop: which part of the picture is resized. "pad32": the centre square of side
            `int(size / (size + 32) * min(height, width))` with the offset rounded up (V1);
            "pad32_floor": the same, offset rounded down (V2 below 320 px); "fraction": as "pad32"
            with `round(size * (1 / crop_fraction - 1))` in place of 32; "squash": the whole
            picture, without keeping its aspect ratio (V2 from 320 px).
        crop_fraction: only with crop="fraction", in (0, 1].
        labels: what the classes of the weights are: "imagenet" (1000), "imagenet-background" (1001,
            class 0 is the background), "imagenet21k" (21,843), or None for something else.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    resize_method: ResizeMethod = "bilinear"
    crop: CropRule = "squash"
    crop_fraction: float | None = None
    labels: LabelMap | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty string. Received: name={self.name!r}")
        object.__setattr__(self, "mean", _channels("mean", self.mean))
        object.__setattr__(self, "std", _channels("std", self.std))
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0. Received: std={self.std}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(
                f"size must be a positive whole number of pixels. Received: size={self.size!r}"
            )
        _one_of("resize_method", self.resize_method, RESIZE_METHODS)
        _one_of("crop", self.crop, CROP_RULES)
        if self.labels is not None:
            _one_of("labels", self.labels, (*LABEL_MAPS, None))
        if self.crop == "fraction":
            fraction = self.crop_fraction
            if not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
                raise ValueError(
                    'crop="fraction" needs crop_fraction in (0, 1]. '
                    f"Received: crop_fraction={fraction!r}"
                )
        elif self.crop_fraction is not None:
            raise ValueError(
                f'crop_fraction is used only with crop="fraction". Received: crop={self.crop!r}, '
                f"crop_fraction={self.crop_fraction!r}"
            )

    @property
    def crop_ratio(self) -> float | None:
        """Side of the centre crop over the picture's shorter side; None for crop="squash"."""
        if self.crop == "squash":
            return None
        padding = 32
        if self.crop_fraction is not None:
            padding = round(self.size * (1 / self.crop_fraction - 1))
        return self.size / (self.size + padding)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values that `json.dumps` takes; see `from_dict`."""
        fields = dataclasses.asdict(self)
        fields["mean"], fields["std"] = list(self.mean), list(self.std)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Makes a `Preprocessing` from what `to_dict` gave, also after a trip through JSON.

        Raises:
            ValueError: for a field that is missing, unknown or out of range.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"Not a Preprocessing: expected its fields. Received: {fields!r}")
        known = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        missing = sorted(
            name
            for name, field in known.items()
            if field.default is dataclasses.MISSING and name not in fields
        )
        if unknown or missing:
            raise ValueError(
                f"Not a Preprocessing: unknown fields {unknown}, missing fields {missing}. "
                f"Its fields are {sorted(known)}."
            )
        return cls(**fields)


def rescaling(preprocessing: Preprocessing) -> tuple[list[float], list[float]]:
    """Scale and offset per channel, so that `x * scale + offset` is `(x - mean) / std`.

    Returns:
        (scale, offset), three Python floats each: the arguments of `keras.layers.Rescaling`.
    """
    scale = [1 / std for std in preprocessing.std]
    offset = [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
    return scale, offset


def v1_eval(
    size: int, normalization: str = "torch", labels: LabelMap | None = "imagenet"
) -> Preprocessing:
    """The V1 rule: centre crop with 32 px of padding, bicubic on TensorFlow 1's grid.

    The padding is fixed (automl preprocess_legacy.py and every independent evaluation); the present
    tpu repository uses crop="fraction" with 0.875 instead, which is the same at 224 px only.

    Args:
        size: pixels, square.
        normalization: a key of `NORMALIZATIONS`; AdvProp weights need "inception".
        labels: see `Preprocessing`.
    """
    return _rule(normalization, size, "bicubic_legacy", "pad32", labels)


def lite_eval(
    size: int, normalization: str = "lite", labels: LabelMap | None = "imagenet"
) -> Preprocessing:
    """The rule of Lite and EdgeTPU: the V1 crop, bilinear on TensorFlow 1's grid.

    Args:
        size: pixels, square.
        normalization: a key of `NORMALIZATIONS`.
        labels: see `Preprocessing`; EdgeTPU's are "imagenet-background".
    """
    return _rule(normalization, size, "bilinear_legacy", "pad32", labels)


def v2_eval(
    size: int, normalization: str = "v2", labels: LabelMap | None = "imagenet"
) -> Preprocessing:
    """The V2 rule (automl preprocessing.py): bilinear; below 320 px a centre crop, else squashed.

    Args:
        size: pixels, square.
        normalization: a key of `NORMALIZATIONS`.
        labels: see `Preprocessing`.
    """
    crop: CropRule = "pad32_floor" if size < 320 else "squash"
    return _rule(normalization, size, "bilinear", crop, labels)


def default(normalization: str, size: int, labels: LabelMap | None = "imagenet") -> Preprocessing:
    """The evaluation rule of the family that uses a normalisation, for models without a record.

    Args:
        normalization: a key of `NORMALIZATIONS` (`Variant.preprocessing`).
        size: pixels, square.
        labels: see `Preprocessing`; None for classes of one's own.
    """
    rule = {"v2": v2_eval, "lite": lite_eval}.get(normalization, v1_eval)
    return rule(size, normalization=normalization, labels=labels)


def own(
    size: int, scale: Sequence[float], offset: Sequence[float], labels: LabelMap | None = None
) -> Preprocessing:
    """The rule of networks of one's own, as `scripts/train.py` feeds them: squashed, bilinear.

    Args:
        size: pixels, square.
        scale: of the model's rescaling, three numbers greater than 0; see `rescaling`.
        offset: of the model's rescaling, three numbers.
        labels: see `Preprocessing`; None for classes of one's own.
    """
    mean = _channels("mean", [-o / s for s, o in zip(scale, offset, strict=True)])
    std = _channels("std", [1 / s for s in scale])
    return Preprocessing("own", mean, std, size, "bilinear", "squash", labels=labels)


def _rule(
    normalization: str,
    size: int,
    resize_method: ResizeMethod,
    crop: CropRule,
    labels: LabelMap | None,
) -> Preprocessing:
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {sorted(NORMALIZATIONS)}. Received: {normalization!r}"
        )
    mean, std = NORMALIZATIONS[normalization]
    return Preprocessing(normalization, mean, std, size, resize_method, crop, labels=labels)


def _channels(name: str, values: Any) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be three numbers. Received: {name}={values!r}") from None
    if not all(math.isfinite(value) for value in (red, green, blue)):
        raise ValueError(f"{name} must be finite. Received: {name}={values!r}")
    return red, green, blue


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}. Received: {name}={value!r}")
