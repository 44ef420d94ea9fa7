"""A classifier taken apart for export: its network, flat and folded, with all outputs by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import keras
from keras import layers

from efficientnet_tf.export import flat
from efficientnet_tf.export.flat import INPUT, flatten, fold, resized, silu

__all__ = ["INPUT", "Parts", "flatten", "fold", "parts", "resized", "silu", "tail"]

MAPS, FEATURES, LOGITS, PROBABILITIES = "maps", "features", "logits", "probabilities"

_POOLING = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
_FUNCTIONS: dict[Any, Literal["softmax", "sigmoid", "linear"]] = {
    keras.activations.softmax: "softmax",
    keras.activations.sigmoid: "sigmoid",
    keras.activations.linear: "linear",
}
# Of keras.ops; the first is a layer too.
_OPERATIONS: dict[str, Literal["softmax", "sigmoid"]] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """A classifier taken apart.

    Attributes:
        model: flat functional float32 model. Its input is `images` (batch, height, width, 3), the
            pictures that the classifier takes: in [0, 255] where it normalises them itself. Its
            outputs are a dict of float32 tensors: "probabilities" and "logits" (batch, classes);
            "features" (batch, units), the input of the last dense layer; and "maps" (batch, height,
            width, channels), the last feature map before the global pooling. A network without such
            a layer has no "features", or no "maps".
        activation: turns logits into probabilities. A model that ends in logits is served through
            softmax.
        classes: of the classifier.
    """

    model: keras.Model
    activation: Literal["softmax", "sigmoid"]
    classes: int


def parts(model: keras.Model, *, fold: bool = True) -> Parts:
    """Takes a classifier apart for export.

    Args:
        model: any functional or sequential classifier of RGB pictures; see `flatten`. It ends in a
            layer with softmax, sigmoid or no activation, or in such an activation on its own; only
            activations that do nothing, and reshaping, may follow logits.
        fold: whether batch normalization goes into the convolutions before it; see `fold`.

    Raises:
        ValueError: the model is no such classifier.
    """
    network = flatten(model)
    if fold:
        network = flat.fold(network)
    logits, activation = _logits(network)
    if logits is not network.outputs[0]:
        network = keras.Model(network.inputs[0], logits, name=network.name)
    scores = layers.Activation(activation, dtype="float32", name=_free(network, PROBABILITIES))
    outputs = {LOGITS: logits, PROBABILITIES: scores(logits)}
    chain = list(_chain(logits))
    features = next((t for layer, t in chain if isinstance(layer, layers.Dense)), None)
    if features is not None and len(features.shape) == 2:
        outputs[FEATURES] = features
    maps = _maps(chain)
    if maps is not None:
        outputs[MAPS] = maps
    taken = keras.Model(network.inputs[0], outputs, name=network.name)
    return Parts(taken, activation, int(logits.shape[-1]))


def tail(taken: Parts) -> keras.Model | None:
    """The end of a network: from its "maps" to its "logits" and, where it has them, "features".

    Returns:
        A model that shares the network's layers; None where there are no maps, or where the outputs
        depend on the pictures in another way too.
    """
    outputs = taken.model.output
    if MAPS not in outputs:
        return None
    wanted = {name: outputs[name] for name in (LOGITS, FEATURES) if name in outputs}
    try:
        return keras.Model(outputs[MAPS], wanted, name="tail")
    except ValueError:  # Keras: the pictures are missing among the inputs
        return None


def _logits(model: keras.Model) -> tuple[Any, Literal["softmax", "sigmoid"]]:
    """The model's logits, and what turns them into probabilities.

    The model's last activation, where it has one, is taken off the layer that holds it.
    """
    tensor = model.outputs[0]
    layer = tensor._keras_history.operation
    while isinstance(layer, (layers.Flatten, layers.Reshape)) or (
        isinstance(layer, layers.Activation) and _function(layer) == "linear"
    ):
        layer = layer.input._keras_history.operation
    last = model.outputs[0]._keras_history.operation
    function = _function(layer)
    if function == "linear":
        return tensor, "softmax"
    if function is None or layer is not last:
        raise ValueError(
            "The model must end in softmax, sigmoid or logits. Received:"
            f" {type(last).__name__} {last.name!r} behind {type(layer).__name__} {layer.name!r}"
        )
    if isinstance(layer, layers.Activation) or type(layer).__name__ in _OPERATIONS:
        return layer.input, function
    layer.activation = keras.activations.linear
    return tensor, function


def _free(model: keras.Model, name: str) -> str:
    return flat.unused(name, {operation.name for operation in model.operations})


def _function(layer) -> Literal["softmax", "sigmoid", "linear"] | None:
    """The activation at the end of a layer or operation, None where it is another one or none."""
    name = type(layer).__name__
    if name in _OPERATIONS:
        axis = getattr(layer, "axis", -1)
        return _OPERATIONS[name] if axis in (-1, len(layer.input.shape) - 1) else None
    return _FUNCTIONS.get(getattr(layer, "activation", None))


def _chain(tensor) -> Iterator[tuple[Any, Any]]:
    """Each layer and its first input, from a tensor back to the pictures."""
    while True:
        layer, node, _ = tensor._keras_history
        inputs = layer._inbound_nodes[node].input_tensors
        if not inputs:
            return
        tensor = inputs[0]
        yield layer, tensor


def _maps(chain: list[tuple[Any, Any]]):
    for layer, tensor in chain:
        if isinstance(layer, _POOLING):
            return tensor
    for layer, tensor in chain:  # a head without global pooling
        if len(tensor.shape) == 4:
            return tensor if len(layer.output.shape) < 4 else None
    return None
