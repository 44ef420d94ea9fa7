"""Classifiers copied into flat float32 networks for inference, layer by layer.

The model that is given stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from efficientnet_tf.models.calls import does_nothing, is_graph, replay

INPUT = "images"

_FLOATS = ("float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16")


def flatten(model: keras.Model) -> keras.Model:
    """Copies a classifier into one flat functional model for inference.

    Functional and sequential models inside it are dissolved; their layers keep their names, with
    the name of the model that they were in before it where two would be the same. Layers that do
    nothing at inference (dropout, stochastic depth, noise, random augmentation) are left out.
    Everything computes in float32, whatever the dtype policy was. All other layers are kept.

    Args:
        model: one input of pictures (batch, height, width, 3), one output (batch, classes).

    Returns:
        A model, not compiled, with the same weights and answers; its input is called "images".

    Raises:
        ValueError: the model is not as described, or cannot be copied layer by layer.
    """
    _check(model)
    used: set[str] = set()
    copies: dict[int, Any] = {}

    def call(prefix: str) -> Callable:
        def one(layer, *args, **kwargs):
            if does_nothing(layer):
                return args[0]
            if kwargs.pop("training", None):
                raise ValueError(
                    f"Layer {layer.name!r} was called with training=True when the model was built:"
                    " its answers change from call to call. Build the model without it."
                )
            if is_graph(layer):
                return replay(layer, args[0], call(f"{prefix}{layer.name}_"))
            if id(layer) not in copies:
                name = layer.name if layer.name not in used else f"{prefix}{layer.name}"
                copies[id(layer)] = copy = _copy(layer, name=unused(name, used))
                result = copy(*args, **kwargs)
                if isinstance(layer, layers.Layer):
                    copy.set_weights([_float32(w) for w in layer.get_weights()])
                return result
            return copies[id(layer)](*args, **kwargs)

        return one

    with _float32_policy():
        images = keras.Input(model.inputs[0].shape[1:], name=INPUT)
        outputs = replay(model, images, call(""))
        return keras.Model(images, outputs, name=model.name)


def fold(model: keras.Model) -> keras.Model:
    """Copies a flat model with batch normalization folded into the layers before it.

    Folded is what stands directly behind a Conv2D, DepthwiseConv2D or Dense layer that has no
    activation and that nothing else reads. That layer keeps its name and gets a bias; the other
    disappears. The arithmetic is done in float64.

    Args:
        model: from `flatten`.
    """
    folded = _foldable(model)
    dropped = {id(normalization) for normalization in folded.values()}

    def change(layer, config):
        if id(layer) in dropped:
            return None
        return {**config, "use_bias": True} if id(layer) in folded else config

    def weights(layer):
        return (
            _folded_weights(layer, folded[id(layer)])
            if id(layer) in folded
            else layer.get_weights()
        )

    return _rewrite(model, change, weights)


def resized(model: keras.Model, size: int | None) -> keras.Model:
    """Copies a flat model for pictures of another size.

    Args:
        model: flat, with any structure of outputs.
        size: pixels, both sides; None for any size.

    Raises:
        ValueError: a layer of the model needs its own size, such as a Flatten before a Dense layer.
    """
    try:
        return _rewrite(model, lambda _, config: config, lambda layer: layer.get_weights(), size)
    except ValueError as error:
        wanted = "any size" if size is None else f"{size} px"
        raise ValueError(f"{model.name!r} cannot take pictures of {wanted}: {error}") from error


@keras.saving.register_keras_serializable("efficientnet_tf")
def silu(x):
    """`keras.activations.silu` without a gradient of its own.

    The node that carries such a gradient keeps TensorFlow from computing the activation together
    with the convolution before it, and is one more output of the network to OpenVINO.
    """
    return x * keras.ops.sigmoid(x)


def _rewrite(model, change: Callable, weights: Callable, size: int | str | None = "same"):
    """Copies a flat model layer by layer, with other configs (None: without the layer)."""
    copies: dict[int, Any] = {}

    def call(layer, *args, **kwargs):
        if id(layer) in copies:
            return copies[id(layer)](*args, **kwargs)
        config = change(layer, layer.get_config())
        if config is None:
            return args[0]
        copies[id(layer)] = copy = _made(layer, config)
        result = copy(*args, **kwargs)
        if isinstance(layer, layers.Layer):
            copy.set_weights(weights(layer))
        return result

    height, width, channels = model.inputs[0].shape[1:]
    shape = (height, width, channels) if size == "same" else (size, size, channels)
    with _float32_policy():
        images = keras.Input(shape, name=model.inputs[0].name)
        return keras.Model(images, replay(model, images, call), name=model.name)


def _check(model: keras.Model) -> None:
    expected = (
        "The model must be a built functional or sequential keras.Model with one input of pictures"
        " (batch, height, width, 3) and one output (batch, classes). Received: "
    )
    if not is_graph(model):
        raise ValueError(f"{expected}{type(model).__name__}, whose layers cannot be told apart")
    try:
        inputs, outputs = model.inputs, model.outputs
    except (AttributeError, ValueError):
        inputs = None
    if not inputs:
        raise ValueError(f"{expected}{model.name!r}, which is not built: call it on a batch first")
    shapes = [tuple(t.shape) for t in (*inputs, *outputs)]
    if (
        len(inputs) != 1
        or len(outputs) != 1
        or len(shapes[0]) != 4
        or shapes[0][3] != 3
        or len(shapes[1]) != 2
        or not isinstance(shapes[1][1], int)
    ):
        raise ValueError(
            f"{expected}{model.name!r} with inputs {shapes[: len(inputs)]} and outputs"
            f" {shapes[len(inputs) :]}"
        )


def _copy(layer, name: str):
    """A new, unbuilt layer (or operation) of the same kind that computes in float32."""
    try:
        config = {**_in_float32(layer.get_config()), "name": name}
        if getattr(layer, "activation", None) is keras.activations.silu:
            config["activation"] = silu
        return _made(layer, config)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) cannot be copied: {error}. A layer of"
            " your own needs get_config()."
        ) from error


def _made(layer, config: dict[str, Any]):
    """A layer from its config; without drawing random weights, as it gets others."""
    if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)):
        config = {
            key: "zeros" if key.endswith(("kernel_initializer", "depthwise_initializer")) else value
            for key, value in config.items()
        }
    return type(layer).from_config(config)


def _in_float32(config: Any) -> Any:
    """A layer's config with the dtype policies of all layers in it set to float32."""
    if isinstance(config, dict):
        is_policy = config.get("class_name") in ("DTypePolicy", "Policy")
        if is_policy and config.get("config", {}).get("name") in _FLOATS:
            return "float32"
        return {
            key: "float32"
            if key == "dtype" and value in _FLOATS
            else _in_float32(value)
            if isinstance(value, (dict, list, tuple))
            else value
            for key, value in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float32(value) for value in config)
    return config


def _float32(weights: np.ndarray) -> np.ndarray:
    floating = weights.dtype.kind == "f" or weights.dtype.name == "bfloat16"
    return weights.astype(np.float32) if floating else weights


@contextlib.contextmanager
def _float32_policy() -> Iterator[None]:
    """Layers that make layers of their own take the policy that is set while they are made."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def unused(name: str, used: set[str]) -> str:
    """Makes a name different from those that are used, and adds it to them."""
    candidate, number = name, 1
    while candidate in used:
        candidate, number = f"{name}_{number}", number + 1
    used.add(candidate)
    return candidate


def _foldable(model: keras.Model) -> dict[int, layers.Layer]:
    """Ids of the layers that take up a normalization, and which."""
    readers: dict[int, int] = {id(t): 1 for t in model.outputs}
    for operation in model.operations:
        for node in operation._inbound_nodes:
            for tensor in node.input_tensors:
                readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    found = {}
    for layer in model.layers:
        if not isinstance(layer, layers.BatchNormalization) or len(layer._inbound_nodes) != 1:
            continue
        before = layer.input._keras_history.operation
        if (
            isinstance(before, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense))
            and not isinstance(before, layers.Conv2DTranspose)
            and len(before._inbound_nodes) == 1
            and readers[id(layer.input)] == 1
            and before.activation is keras.activations.linear
            and getattr(before, "data_format", "channels_last") == "channels_last"
            and layer.axis in (-1, len(layer.input.shape) - 1)
        ):
            found[id(before)] = layer
    return found


def _folded_weights(layer, normalization) -> list[np.ndarray]:
    kernel, *bias = (w.astype(np.float64) for w in layer.get_weights())
    mean, variance = (
        np.asarray(v, np.float64)
        for v in (normalization.moving_mean, normalization.moving_variance)
    )
    scale = 1.0 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        scale *= np.asarray(normalization.gamma, np.float64)
    offset = ((bias[0] if bias else 0.0) - mean) * scale
    if normalization.center:
        offset += np.asarray(normalization.beta, np.float64)
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return [kernel.astype(np.float32), offset.astype(np.float32)]
