"""One constructor per published variant, with the arguments of keras.applications."""

from collections.abc import Sequence

import keras

from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build


def _constructor(function_name: str, variant_name: str):
    variant = find(variant_name)

    def constructor(
        include_top: bool = True,
        weights: str | None = "imagenet",
        input_tensor=None,
        input_shape: Sequence[int | None] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: str | None = "softmax",
        include_preprocessing: bool = True,
        name: str | None = None,
        **kwargs,
    ) -> keras.Model:
        return build(
            variant,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            include_preprocessing=include_preprocessing,
            name=name,
            **kwargs,
        )

    constructor.__name__ = constructor.__qualname__ = function_name
    constructor.__doc__ = f"""Builds {variant_name}, for {variant.resolution} px and ImageNet.

    The arguments are those of `keras.applications` and, by keyword, the others of `build`.

    Args:
        include_top: see `build`, like all others.
        weights: "imagenet" by default; `list_weights({variant_name!r})` names the tags.
        input_tensor: a Keras tensor to build on.
        input_shape: (height, width, channels).
        pooling: None, "avg" or "max".
        classes: of the classifier.
        classifier_activation: None returns logits.
        include_preprocessing: whether pictures in [0, 255] are normalised inside the model.
        name: of the model.
        **kwargs: `drop_connect_rate`, `dropout_rate`, `features_only`, `levels`,
            `preprocessing`, `cache_dir`.

    Returns:
        A functional `keras.Model`.
    """
    return constructor


EfficientNetB0 = _constructor("EfficientNetB0", "efficientnet-b0")
EfficientNetB1 = _constructor("EfficientNetB1", "efficientnet-b1")
EfficientNetB2 = _constructor("EfficientNetB2", "efficientnet-b2")
EfficientNetB3 = _constructor("EfficientNetB3", "efficientnet-b3")
EfficientNetB4 = _constructor("EfficientNetB4", "efficientnet-b4")
EfficientNetB5 = _constructor("EfficientNetB5", "efficientnet-b5")
EfficientNetB6 = _constructor("EfficientNetB6", "efficientnet-b6")
EfficientNetB7 = _constructor("EfficientNetB7", "efficientnet-b7")
EfficientNetB8 = _constructor("EfficientNetB8", "efficientnet-b8")
EfficientNetL2 = _constructor("EfficientNetL2", "efficientnet-l2")
EfficientNetV2B0 = _constructor("EfficientNetV2B0", "efficientnetv2-b0")
EfficientNetV2B1 = _constructor("EfficientNetV2B1", "efficientnetv2-b1")
EfficientNetV2B2 = _constructor("EfficientNetV2B2", "efficientnetv2-b2")
EfficientNetV2B3 = _constructor("EfficientNetV2B3", "efficientnetv2-b3")
EfficientNetV2S = _constructor("EfficientNetV2S", "efficientnetv2-s")
EfficientNetV2M = _constructor("EfficientNetV2M", "efficientnetv2-m")
EfficientNetV2L = _constructor("EfficientNetV2L", "efficientnetv2-l")
EfficientNetV2XL = _constructor("EfficientNetV2XL", "efficientnetv2-xl")
EfficientNetLite0 = _constructor("EfficientNetLite0", "efficientnet-lite0")
EfficientNetLite1 = _constructor("EfficientNetLite1", "efficientnet-lite1")
EfficientNetLite2 = _constructor("EfficientNetLite2", "efficientnet-lite2")
EfficientNetLite3 = _constructor("EfficientNetLite3", "efficientnet-lite3")
EfficientNetLite4 = _constructor("EfficientNetLite4", "efficientnet-lite4")
EfficientNetEdgeTPUS = _constructor("EfficientNetEdgeTPUS", "efficientnet-edgetpu-s")
EfficientNetEdgeTPUM = _constructor("EfficientNetEdgeTPUM", "efficientnet-edgetpu-m")
EfficientNetEdgeTPUL = _constructor("EfficientNetEdgeTPUL", "efficientnet-edgetpu-l")
