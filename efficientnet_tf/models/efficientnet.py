"""The builder: a variant in, a flat functional Keras model out."""

import dataclasses
import os
import warnings
from collections.abc import Sequence

import keras
from keras import layers

from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.arch import Block, Network, Variant, resolve
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models import blocks
from efficientnet_tf.models.layers import Dropout, Rescaling
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.weights import load, registry

MIN_SIZE = 32  # pixels: the network's total stride


def build(
    variant: str | os.PathLike | Variant,
    *,
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int | None] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    include_preprocessing: bool = True,
    name: str | None = None,
    drop_connect_rate: float | None = None,
    dropout_rate: float | None = None,
    features_only: bool = False,
    levels: Sequence[int] | None = None,
    preprocessing: str | Preprocessing | None = None,
    cache_dir: str | None = None,
) -> keras.Model:
    """Builds a network.

    Args:
        variant: a name in `VARIANTS`, a `Variant` of your own, or the path of a file of one
            (`arch.files`).
        include_top: whether the classifier is part of the model.
        weights: None for random weights, a tag (see `list_weights`), or the path of a checkpoint.
        input_tensor: a Keras tensor (batch, height, width, channels) to build on.
        input_shape: (height, width, channels); height and width may be None for any size from
            32 px. None is, with a classifier, the resolution of published weights or the variant,
            and any size without one. A single channel is repeated to three; the pretrained stem is
            spread over more.
        pooling: without a classifier: None (a feature map), "avg" or "max".
        classes: of the classifier; None is what published weights have, or the variant's.
        classifier_activation: Keras name; None returns logits.
        include_preprocessing: whether pictures in [0, 255] (uint8 or float) are normalised inside
            the model. Without it the model expects normalised floats.
        name: of the model. Has no other effect.
        drop_connect_rate: stochastic depth at the end of the ramp; None is the variant's.
        dropout_rate: before the classifier, which must be there; None is the variant's.
        features_only: return the feature maps of `levels` instead of one output.
        levels: with `features_only`: which of the levels 1 to 5, each the last block's output at
            stride 2**level; None is all.
        preprocessing: the normalisation: a `Preprocessing` or the name of one ("torch",
            "inception", "lite", "v2"). None is what the weights were trained with: as recorded
            for a tag, as a file says itself, or as recorded for the published name of a file; and
            the variant's default where nothing says it.
        cache_dir: where downloaded weights are kept; None is the default cache.

    Returns:
        A functional `keras.Model`, whose output is (batch, classes), (batch, features),
        (batch, height / 32, width / 32, features), or a list of feature maps.

    Raises:
        ValueError: an argument that is not allowed or does not fit the others or the weights.
    """
    variant = find(variant)
    if dropout_rate is not None:
        variant = dataclasses.replace(variant, dropout_rate=dropout_rate)
    network = resolve(variant, drop_connect_rate=drop_connect_rate)
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "Only channels_last is supported. Received image_data_format="
            f"{keras.config.image_data_format()!r}: call"
            ' keras.config.set_image_data_format("channels_last") first.'
        )
    wanted = _check_levels(network, features_only, levels)
    include_top = include_top and not features_only
    _check_pooling(include_top, features_only, pooling)
    activation = _activation(classifier_activation)
    if not include_top:
        own_activation = None if classifier_activation == "softmax" else classifier_activation
        _check_unused(
            classes=classes, classifier_activation=own_activation, dropout_rate=dropout_rate
        )
    record = None if weights is None else registry.published(variant.name, weights)
    if include_top:
        classes = _check_classes(variant, record, classes)
    resolution = record.resolution if record is not None else variant.resolution
    inputs = _inputs(input_tensor, input_shape, resolution if include_top else None)

    x = inputs
    if x.shape[-1] == 1:
        x = layers.Concatenate(name="gray_to_rgb")([x, x, x])
    if include_preprocessing:
        x = _normalise(x, _constants(variant, record, weights, preprocessing))
    elif preprocessing is not None:
        raise ValueError("preprocessing must be None when include_preprocessing is False.")
    x, outputs = _trunk(x, network)
    if features_only:
        x = [outputs[level] for level in wanted]
    else:
        x = _head(x, network, include_top, pooling, classes, activation)
    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(input_tensor)
    model = keras.Model(inputs, x, name=name or variant.name)
    if weights is not None:
        load.load_weights(
            model, network, weights, include_top=include_top, classes=classes, cache_dir=cache_dir
        )
    return model


def _check_levels(network: Network, features_only: bool, levels) -> tuple[int, ...]:
    if not features_only:
        if levels is not None:
            raise ValueError(f"levels needs features_only=True. Received: levels={levels!r}")
        return ()
    available = tuple(network.levels)
    wanted = available if levels is None else levels
    known = isinstance(wanted, Sequence) and all(level in available for level in wanted)
    if not known or not wanted:
        raise ValueError(f"levels must be some of {available}. Received: levels={levels!r}")
    return tuple(wanted)


def _check_pooling(include_top: bool, features_only: bool, pooling) -> None:
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'pooling must be None, "avg" or "max". Received: pooling={pooling!r}')
    if pooling and (include_top or features_only):
        raise ValueError(
            "pooling needs include_top=False and features_only=False. Received:"
            f" pooling={pooling!r}, include_top={include_top}, features_only={features_only}"
        )


def _check_unused(**arguments) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{name} is only used with a classifier (include_top=True, features_only=False)."
                f" Received: {name}={value!r}"
            )


def _check_classes(variant: Variant, record: registry.WeightsRecord | None, classes) -> int:
    if classes is None:
        return record.classes if record is not None else variant.classes
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise ValueError(f"classes must be an integer >= 1. Received: classes={classes!r}")
    if record is not None:
        load.check_classes(record.classes, classes, f"weights={record.tag!r}")
    return classes


def _inputs(input_tensor, input_shape, resolution: int | None):
    if input_shape is not None:
        shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
        if len(shape) != 3:
            raise ValueError(
                "input_shape must be (height, width, channels) without the batch. Received:"
                f" input_shape={input_shape!r}"
            )
    else:
        shape = (resolution, resolution, 3)
    if input_tensor is not None:
        if not keras.backend.is_keras_tensor(input_tensor):
            raise ValueError(
                "input_tensor must be a Keras tensor such as keras.Input(...) returns. Received:"
                f" {type(input_tensor).__name__}"
            )
        found = tuple(input_tensor.shape)
        if len(found) != 4 or (input_shape is not None and found[1:] != shape):
            expected = shape if input_shape is not None else ("height", "width", "channels")
            raise ValueError(
                f"input_tensor must have shape (batch, {', '.join(map(str, expected))})."
                f" Received: shape={found}"
            )
        shape = found[1:]
    for side in shape[:2]:
        if side is not None and (not isinstance(side, int) or side < MIN_SIZE):
            raise ValueError(
                f"Height and width must be None or at least {MIN_SIZE} pixels. Received: {shape}"
            )
    if not isinstance(shape[2], int) or shape[2] < 1:
        raise ValueError(f"The number of channels must be an integer >= 1. Received: {shape}")
    return keras.Input(shape, name="images") if input_tensor is None else input_tensor


def _constants(
    variant: Variant, record: registry.WeightsRecord | None, weights, preprocessing
) -> Preprocessing:
    if isinstance(preprocessing, Preprocessing):
        return preprocessing
    size = variant.resolution
    if preprocessing is None and weights is not None:
        is_path = registry.lookup(variant.name, weights) is None
        stored = load.stored_normalization(weights) if is_path else None
        if stored is not None:
            return Preprocessing("stored", stored.mean, stored.std, size)
        if record is not None:
            return record.preprocessing
        choices = registry.recognise(variant.name, weights)
        if choices:
            names = ", ".join(f"{r.tag} with {r.preprocessing.name!r}" for r in choices)
            warnings.warn(
                f"{weights}: files of this name were published with different normalisations"
                f" ({names}). The variant's, {variant.preprocessing!r}, is taken; pass"
                " preprocessing= to say which it is.",
                stacklevel=3,
            )
    return preprocessing_lib.default(preprocessing or variant.preprocessing, size)


def _normalise(x, constants: Preprocessing):
    scale, offset = preprocessing_lib.rescaling(constants)
    channels = x.shape[-1]
    if channels != 3:
        scale = [scale[c % 3] for c in range(channels)]
        offset = [offset[c % 3] for c in range(channels)]
    # In the variables' dtype: pixel values and their normalisation do not fit into bfloat16.
    dtype = keras.config.dtype_policy().variable_dtype
    return Rescaling(scale, offset, dtype=dtype, name="rescaling")(x)


def _trunk(x, network: Network):
    variant = network.variant
    bn = {"bn_momentum": variant.bn_momentum, "bn_epsilon": variant.bn_epsilon}
    x = blocks.conv_bn(x, network.stem_filters, 3, 2, "stem", activation=variant.activation, **bn)
    levels = {index: level for level, index in network.levels.items()}
    outputs = {}
    for index, block in enumerate(network.blocks):
        x = _block(x, block, variant)
        if index in levels:
            outputs[levels[index]] = x
    return x, outputs


def _block(x, block: Block, variant: Variant):
    kwargs = {
        "expanded_filters": block.expanded_filters if block.expand_ratio != 1 else None,
        "kernel_size": block.kernel_size,
        "strides": block.strides,
        "se_filters": block.se_filters,
        "skip": block.skip,
        "drop_rate": block.drop_rate,
        "activation": variant.activation,
        "bn_momentum": variant.bn_momentum,
        "bn_epsilon": variant.bn_epsilon,
    }
    if block.conv == "fused":
        return blocks.fused_mbconv(x, block.output_filters, block.name, **kwargs)
    return blocks.mbconv(
        x, block.output_filters, block.name, depthwise_name=variant.depthwise_name, **kwargs
    )


def _head(x, network: Network, include_top, pooling, classes, activation):
    variant = network.variant
    x = blocks.conv_bn(
        x,
        network.head_filters,
        1,
        1,
        "top",
        activation=variant.activation,
        bn_momentum=variant.bn_momentum,
        bn_epsilon=variant.bn_epsilon,
    )
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if include_top:
        if variant.dropout_rate:
            x = Dropout(variant.dropout_rate, name="top_dropout")(x)
        x = layers.Dense(
            classes,
            activation=activation,
            kernel_initializer=blocks.dense_initializer(),
            dtype=keras.config.dtype_policy().variable_dtype,  # softmax needs float32
            name="predictions",
        )(x)
    return x


def _activation(classifier_activation):
    try:
        return keras.activations.get(classifier_activation)
    except ValueError as error:
        raise ValueError(
            "classifier_activation must be None or the name of a Keras activation such as"
            f' "softmax" or "sigmoid". Received: {classifier_activation!r}'
        ) from error
