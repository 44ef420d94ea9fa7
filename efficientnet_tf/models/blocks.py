"""The papers' blocks as functions on Keras tensors (NHWC), for the builder and for own models.

Layer names are those of `keras.applications`, so that weights can be addressed by name.
"""

import keras
from keras import layers

from efficientnet_tf.models.layers import Activation, BatchNormalization, Conv2D, Dropout


def conv_initializer() -> keras.initializers.Initializer:
    """Normal with variance 2 / fan_out, not truncated (V1 `efficientnet_model.py`).

    A new object for every layer: a shared one gives same-shaped layers equal weights.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def dense_initializer() -> keras.initializers.Initializer:
    """Uniform in +-1 / sqrt(units) (V1 `efficientnet_model.py`)."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform")


def conv_bn(
    inputs,
    filters: int,
    kernel_size: int,
    strides: int,
    name: str,
    *,
    activation: str | None = None,
    bn_momentum: float = 0.99,
    bn_epsilon: float = 1e-3,
):
    """Convolution without bias, batch normalization and, if named, an activation.

    Args:
        inputs: (batch, height, width, channels).
        filters: of the output.
        kernel_size: side of the kernel.
        strides: of the convolution; padding is "same".
        name: prefix of the layers' names: `{name}_conv`, `{name}_bn`, `{name}_activation`.
        activation: Keras name, or None for a linear output.
        bn_momentum: of the moving statistics.
        bn_epsilon: added to the variance.

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters).
    """
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        kernel_initializer=conv_initializer(),
        name=f"{name}_conv",
    )(inputs)
    x = BatchNormalization(momentum=bn_momentum, epsilon=bn_epsilon, name=f"{name}_bn")(x)
    if activation:
        x = Activation(activation, name=f"{name}_activation")(x)
    return x


def squeeze_excite(inputs, filters: int, name: str, *, activation: str = "silu"):
    """Scales every channel by a gate computed from all channels' means (arXiv 1709.01507).

    Args:
        inputs: (batch, height, width, channels).
        filters: of the bottleneck, usually a share of the block's input filters.
        name: prefix of the layers' names: `{name}_se_squeeze`, `_se_reduce`, …
        activation: of the bottleneck; the gate is a sigmoid.

    Returns:
        A tensor of the shape of `inputs`.
    """
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_se_squeeze")(inputs)
    for part, units, function in (
        ("reduce", filters, activation),
        ("expand", inputs.shape[-1], "sigmoid"),
    ):
        gate = Conv2D(
            units,
            1,
            padding="same",
            activation=function,
            kernel_initializer=conv_initializer(),
            name=f"{name}_se_{part}",
        )(gate)
    return layers.Multiply(name=f"{name}_se_excite")([inputs, gate])


def stochastic_depth(inputs, branch, rate: float, name: str):
    """Adds a branch to its input, or drops the branch for an example (arXiv 1603.09382).

    Args:
        inputs: (batch, height, width, channels), kept.
        branch: same shape; dropped as a whole for an example in training, and scaled by
            `1 / (1 - rate)` where it is kept.
        rate: probability of dropping, in [0, 1); 0 adds no dropout layer.
        name: prefix of the layers' names: `{name}_drop`, `{name}_add`.

    Returns:
        A tensor of the shape of `inputs`.
    """
    if rate:
        branch = Dropout(rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(branch)
    # Identity first: Keras walks first inputs recursively, and a deep chain of branches would
    # exceed Python's recursion limit.
    return layers.Add(name=f"{name}_add")([inputs, branch])


def mbconv(
    inputs,
    filters: int,
    name: str,
    *,
    expanded_filters: int | None = None,
    kernel_size: int = 3,
    strides: int = 1,
    se_filters: int = 0,
    skip: bool = True,
    drop_rate: float = 0.0,
    activation: str = "silu",
    bn_momentum: float = 0.99,
    bn_epsilon: float = 1e-3,
    depthwise_name: str = "dwconv",
):
    """Inverted bottleneck: 1x1 expand, depthwise, squeeze-excite, 1x1 project (V1 Sec. 4).

    Args:
        inputs: (batch, height, width, channels).
        filters: of the output.
        name: prefix of the layers' names.
        expanded_filters: inner channels; None for no expansion layer.
        kernel_size: of the depthwise convolution.
        strides: of the depthwise convolution.
        se_filters: squeeze-excite bottleneck; 0 for none.
        skip: whether to add the input, where strides are 1 and the channels stay.
        drop_rate: stochastic depth, probability of dropping the branch.
        activation: Keras name of the nonlinearity.
        bn_momentum: of the moving statistics.
        bn_epsilon: added to the variance.
        depthwise_name: suffix of the depthwise layer's name ("dwconv2" in V2).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters).
    """
    bn = {"bn_momentum": bn_momentum, "bn_epsilon": bn_epsilon}
    x = inputs
    if expanded_filters:
        x = conv_bn(x, expanded_filters, 1, 1, f"{name}_expand", activation=activation, **bn)
    x = layers.DepthwiseConv2D(
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=conv_initializer(),
        name=f"{name}_{depthwise_name}",
    )(x)
    x = BatchNormalization(momentum=bn_momentum, epsilon=bn_epsilon, name=f"{name}_bn")(x)
    x = Activation(activation, name=f"{name}_activation")(x)
    if se_filters:
        x = squeeze_excite(x, se_filters, name, activation=activation)
    x = conv_bn(x, filters, 1, 1, f"{name}_project", **bn)
    if skip and strides == 1 and inputs.shape[-1] == filters:
        x = stochastic_depth(inputs, x, drop_rate, name)
    return x


def fused_mbconv(
    inputs,
    filters: int,
    name: str,
    *,
    expanded_filters: int | None = None,
    kernel_size: int = 3,
    strides: int = 1,
    se_filters: int = 0,
    skip: bool = True,
    drop_rate: float = 0.0,
    activation: str = "silu",
    bn_momentum: float = 0.99,
    bn_epsilon: float = 1e-3,
):
    """One regular convolution in place of expansion and depthwise, then 1x1 project (V2 Sec. 3.3).

    Without expansion it is a single convolution with an activation, and no squeeze-excite.

    Args:
        inputs: (batch, height, width, channels).
        filters: of the output.
        name: prefix of the layers' names.
        expanded_filters: inner channels; None for a single convolution.
        kernel_size: of the regular convolution.
        strides: of the regular convolution.
        se_filters: squeeze-excite bottleneck; 0 for none.
        skip: whether to add the input, where strides are 1 and the channels stay.
        drop_rate: stochastic depth, probability of dropping the branch.
        activation: Keras name of the nonlinearity.
        bn_momentum: of the moving statistics.
        bn_epsilon: added to the variance.

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: squeeze-excite without expansion.
    """
    bn = {"bn_momentum": bn_momentum, "bn_epsilon": bn_epsilon}
    project = f"{name}_project"
    if expanded_filters:
        x = conv_bn(
            inputs,
            expanded_filters,
            kernel_size,
            strides,
            f"{name}_expand",
            activation=activation,
            **bn,
        )
        if se_filters:
            x = squeeze_excite(x, se_filters, name, activation=activation)
        x = conv_bn(x, filters, 1, 1, project, **bn)
    elif se_filters:
        raise ValueError(
            "fused_mbconv has squeeze-excite only with expanded_filters. Received:"
            f" se_filters={se_filters}, expanded_filters={expanded_filters}"
        )
    else:
        x = conv_bn(inputs, filters, kernel_size, strides, project, activation=activation, **bn)
    if skip and strides == 1 and inputs.shape[-1] == filters:
        x = stochastic_depth(inputs, x, drop_rate, name)
    return x
