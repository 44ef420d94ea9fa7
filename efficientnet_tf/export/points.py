"""Which tensors an int8 file holds, and copies of a network with something at each of them.

A point is a tensor that the int8 file holds with a range of its own. It is named after the layer
whose output it is. Three kinds of tensor are none: what a ReLU reads that TFLite fuses into the
operation before it; the outputs of sigmoid, tanh and softmax, whose scale TFLite fixes; and what
comes out of operations that only move, select or average values, which keep their input's scale.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from efficientnet_tf.models.layers import Activation

_FIXED = (
    keras.activations.sigmoid,
    keras.activations.softmax,
    keras.activations.tanh,
)
_FUSED = (keras.activations.relu, keras.activations.relu6)
_MOVING = (
    layers.Concatenate,
    layers.Cropping2D,
    layers.AveragePooling2D,
    layers.Flatten,
    layers.GlobalMaxPooling2D,
    layers.MaxPooling2D,
    layers.Permute,
    layers.RepeatVector,
    layers.Reshape,
    layers.UpSampling2D,
    layers.ZeroPadding2D,
)
_LINEAR = keras.activations.linear


def names(model: keras.Model) -> tuple[str, ...]:
    """Names of the points of a flat functional model, in the order in which they are computed."""
    found: list[str] = []

    def note(name, tensor):
        found.append(name)
        return tensor

    insert(model, note)
    return tuple(found)


def insert(model: keras.Model, at: Callable[[str, Any], Any]) -> keras.Model:
    """Copies a model with something at each point.

    Activations that are part of another layer and that TFLite computes on their own become layers,
    called "{layer}_{activation}". A normalisation of pictures by constants becomes a depthwise
    convolution of one pixel: multiplied and added one after the other, pixels would be rounded to 8
    bits twice.

    Args:
        model: flat functional model.
        at: name of a point and its tensor, to the tensor that takes its place.

    Returns:
        A model with the same weights, not compiled.
    """
    originals = {operation.name: operation for operation in model.operations}
    fused = _read_by_fused_only(model)
    normalising = {layer.name: found for layer in model.layers if (found := _affine(layer))}

    def copy(layer):
        if layer.name in normalising:
            return layers.DepthwiseConv2D(1, name=layer.name)
        config = layer.get_config()
        if _holds_activation(layer):
            config = {**config, "activation": "linear"}
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        original = originals[layer.name]
        tensor = layer(*args, **kwargs)
        if not _is_float(tensor):
            return tensor
        if _holds_activation(original):
            tensor = at(layer.name, tensor)
            function = original.activation
            activation = Activation(function, name=f"{layer.name}_{function.__name__}")
            tensor = activation(tensor)
            return tensor if function in _FIXED else at(activation.name, tensor)
        if layer.name in fused or isinstance(layer, _MOVING) or _function(layer) in _FIXED:
            return tensor
        return at(layer.name, tensor)

    images = keras.Input(model.inputs[0].shape[1:], name=model.inputs[0].name)
    # As keras.models.clone_model does it, which can put nothing behind the input.
    outputs = model._run_through_graph(
        at(images.name, images), operation_fn=functools.cache(copy), call_fn=call
    )
    copied = keras.Model(images, outputs, name=model.name)
    for layer in model.layers:
        weights = normalising.get(layer.name) or layer.get_weights()
        if weights:
            copied.get_layer(layer.name).set_weights(weights)
    return copied


def _affine(layer) -> list[np.ndarray] | None:
    """Kernel and bias of the depthwise convolution that does what a normalising layer does."""
    if isinstance(layer, layers.Rescaling):
        scale, offset = np.asarray(layer.scale), np.asarray(layer.offset)
    elif isinstance(layer, layers.Normalization) and not layer.invert:
        mean, variance = np.asarray(layer.mean, np.float64), np.asarray(layer.variance, np.float64)
        deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
        scale, offset = 1 / deviation, -mean / deviation
    else:
        return None
    channels = layer.input.shape[-1] if len(layer.input.shape) == 4 else None
    if channels is None or scale.size not in (1, channels) or offset.size not in (1, channels):
        return None
    scale, offset = (np.broadcast_to(v.ravel(), channels).astype("f") for v in (scale, offset))
    return [scale.reshape(1, 1, channels, 1), offset]


def _function(layer):
    """The activation that a layer is, or None."""
    if isinstance(layer, layers.Softmax):
        return keras.activations.softmax
    if isinstance(layer, layers.ReLU):
        plain = not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6)
        return keras.activations.relu if plain else None
    return layer.activation if isinstance(layer, layers.Activation) else None


def _holds_activation(layer) -> bool:
    """Whether a layer computes something, and then an activation that TFLite does not fuse."""
    function = getattr(layer, "activation", _LINEAR)
    return not isinstance(layer, layers.Activation) and function not in (_LINEAR, None, *_FUSED)


def _is_float(tensor) -> bool:
    return keras.backend.is_keras_tensor(tensor) and "float" in tensor.dtype


def _read_by_fused_only(model: keras.Model) -> set[str]:
    """Names of the layers whose output nothing reads but ReLUs that TFLite fuses into them."""
    outputs = {id(tensor) for tensor in model.outputs}
    readers: dict[int, list[Any]] = {}
    for operation in model.operations:
        for node in operation._inbound_nodes:
            for tensor in node.input_tensors:
                readers.setdefault(id(tensor), []).append(operation)
    return {
        operation.name
        for operation in model.operations
        for node in operation._inbound_nodes
        for tensor in node.output_tensors
        if id(tensor) not in outputs
        and readers.get(id(tensor))
        and all(_function(reader) in _FUSED for reader in readers[id(tensor)])
    }
