"""Augmentation layers of Keras and KerasCV, plugged in by name.

    --set=data.augment=keras:RandAugment        --set=data.augment=keras_cv:AugMix

They work on whole batches. Keras' layers draw random numbers one after the other, not from a
picture's position: the same seed gives the same pictures from the start of a run, but a run that
goes on from a checkpoint sees others than one that was not interrupted. KerasCV's (0.9) do not
repeat at all: the pictures of a batch race for the numbers of one generator.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType

import tensorflow as tf

from efficientnet_tf.config import DataConfig

_STRENGTH = ("magnitude", "severity", "factor")  # how layers call it; in [0, 1]
_DEFAULT = DataConfig.magnitude
_MIXING = ("CutMix", "FourierMix", "MixUp", "Mosaic")  # `factor` and `alpha` mean other things


def layer(config: DataConfig, seed: int) -> Callable:
    """Makes the layer that `data.augment` names.

    Args:
        config: `augment` is "keras:NAME" or "keras_cv:NAME". `magnitude / 30` becomes the layer's
            `magnitude`, `severity` or `factor`, which are in [0, 1].
        seed: of its random numbers.

    Returns:
        (images float32 (batch, size, size, 3) in [0, 255], targets float32 (batch, classes)) -> the
        same after augmentation. To be mapped without `num_parallel_calls`, because parallel calls
        would draw from one generator in an order that is not fixed.

    Raises:
        ImportError: KerasCV is not installed.
        ValueError: there is no such layer, it needs settings of its own, or it has no strength to
            which `magnitude` could apply.
    """
    library, _, name = config.augment.partition(":")
    layers = _layers(library)
    candidates = [other for other in dir(layers) if _augments(getattr(layers, other))]
    if name not in candidates:
        close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.4) or candidates
        raise ValueError(
            f"data.augment={config.augment!r}: {library} has no augmentation layer {name!r}. Did"
            f" you mean {', '.join(close)}?"
        )
    kind = getattr(layers, name)
    parameters = inspect.signature(kind.__init__).parameters
    settings: dict = {"dtype": "float32"}
    for key, value in {"value_range": (0, 255), "seed": seed}.items():
        if key in parameters:
            settings[key] = value
    strength = [key for key in _STRENGTH if key in parameters and name not in _MIXING]
    if strength:
        settings[strength[0]] = config.magnitude / 30
    elif config.magnitude != _DEFAULT:
        raise ValueError(
            f"data.magnitude={config.magnitude:g}: {config.augment} has no such setting. Leave it"
            f" at its default, {_DEFAULT:g}."
        )
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and key not in ("self", *settings)
    ]
    if missing:
        raise ValueError(
            f"data.augment={config.augment!r}: the layer cannot be plugged in by name, because it"
            f" needs {', '.join(missing)}."
        )
    made = kind(**settings)

    def augment(images: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        result = made({"images": images, "labels": targets}, training=True)
        augmented = tf.ensure_shape(tf.cast(result["images"], tf.float32), images.shape)
        mixed = tf.ensure_shape(tf.cast(result["labels"], tf.float32), targets.shape)
        return tf.clip_by_value(augmented, 0.0, 255.0), mixed

    return augment


def _layers(library: str) -> ModuleType:
    try:
        return importlib.import_module(f"{library}.layers")
    except ImportError as error:
        raise ImportError(
            f"data.augment={library}:... needs {library}, which cannot be imported:"
            f" pip install {library.replace('_', '-')} ({error})"
        ) from error


def _augments(kind: object) -> bool:
    """Whether this is a layer that changes pictures: Keras' and KerasCV's base classes show it."""
    methods = ("transform_images", "augment_image", "augment_images")
    return inspect.isclass(kind) and any(hasattr(kind, method) for method in methods)
