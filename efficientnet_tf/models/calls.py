"""Models taken apart into the calls of their layers, those of models inside them included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import layers

_TRAINING_ONLY = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
)
_AUGMENTING = ("AugMix", "CutMix", "MixUp", "RandAugment")


class Call(NamedTuple):
    """One call of a layer (or operation) in a model.

    Attributes:
        path: name of the layer, after those of the models that it is in: "backbone/top_conv".
        layer: that is called.
        inputs: symbolic tensors among its arguments.
        output: symbolic tensor, or a structure of them.
    """

    path: str
    layer: Any
    inputs: tuple[Any, ...]
    output: Any


class Calls(NamedTuple):
    """What a model does, in order.

    Attributes:
        calls: of layers that are no models.
        models: path of each model inside to its symbolic output.
        output: of the whole, a symbolic tensor, or a structure of them.
    """

    calls: list[Call]
    models: dict[str, Any]
    output: Any

    def producer(self, tensor) -> int | None:
        """Number of the call that made a tensor; None for the pictures."""
        for number, call in enumerate(self.calls):
            if any(tensor is made for made in keras.tree.flatten(call.output)):
                return number
        return None


def is_graph(layer) -> bool:
    """Whether a layer is a model whose layers can be told apart: functional or sequential."""
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "_run_through_graph")
    )


def replay(model: keras.Model, inputs, call: Callable):
    """Calls `call(layer, *args, **kwargs)` for each layer of a model, in the order of its graph.

    Args:
        model: functional or sequential. Models inside it count as layers.
        inputs: what takes the place of the model's inputs.
        call: returns what takes the place of the layer's output.

    Returns:
        What takes the place of the model's output.
    """
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            inputs = call(layer, inputs)
        return inputs
    # What keras.models.clone_model does; that one cannot go into a model inside the model.
    return model._run_through_graph(inputs, operation_fn=lambda op: op, call_fn=call)


def does_nothing(layer) -> bool:
    """Whether inference returns the layer's input: dropout, noise, random augmentation."""
    if type(layer).__module__.partition(".")[0] != "keras":
        return False  # of someone's own, whatever its base
    name = type(layer).__name__
    return (
        isinstance(layer, _TRAINING_ONLY)
        or name == "Identity"
        or (name == "Activation" and layer.activation is keras.activations.linear)
        or name in _AUGMENTING
        or (name.startswith("Random") and name != "RandomCrop")  # crops the centre at inference
    )


def trace(model: keras.Model) -> Calls:
    """Lists the calls of a model without running it.

    Args:
        model: functional or sequential, built, with one input.

    Raises:
        ValueError: the model is no such model.
    """
    expected = "The model must be a built functional or sequential keras.Model. Received: "
    if not is_graph(model):
        raise ValueError(f"{expected}{type(model).__name__}, whose layers cannot be told apart")
    try:
        inputs = model.inputs
    except (AttributeError, ValueError):
        inputs = None
    if not inputs:
        raise ValueError(f"{expected}{model.name!r}, which is not built: call it on a batch first")
    if len(inputs) != 1:
        raise ValueError(
            f"The model must have one input of pictures. Received: {model.name!r} with"
            f" {len(inputs)} inputs"
        )
    found: list[Call] = []
    models: dict[str, Any] = {}

    def spec(path, layer, *args, **kwargs):
        output = layer.compute_output_spec(*args, **kwargs)
        tensors = tuple(
            t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)
        )
        found.append(Call(path, layer, tensors, output))
        return output

    images = keras.KerasTensor(inputs[0].shape, inputs[0].dtype)
    output = _through(model, images, spec, models)
    return Calls(found, models, output)


def run(model: keras.Model, images, each: Callable[[int, Any], Any]):
    """Runs a model for inference, layer by layer.

    Unlike a copy of the model it has the present weights, and the model stays as it is.

    Args:
        model: that `trace` takes.
        images: tensor of the model's input.
        each: (number of the call as in `trace`, its arguments, its output) to what goes on in the
            place of the output.

    Returns:
        The model's output.
    """
    count = iter(range(2**62))

    def call(_, layer, *args, **kwargs):
        # Random layers augment unless they are told not to: Keras' default there is True.
        if "training" in kwargs or getattr(layer, "_call_has_training_arg", False):
            kwargs["training"] = False
        return each(next(count), args, layer(*args, **kwargs))

    return _through(model, images, call, {})


def _through(model, inputs, call: Callable, models: dict[str, Any], prefix: str = ""):
    """`replay` through the models inside too: call(path, layer, *args, **kwargs)."""

    def one(layer, *args, **kwargs):
        path = f"{prefix}{layer.name}"
        if not is_graph(layer):
            return call(path, layer, *args, **kwargs)
        models[path] = _through(layer, args[0], call, models, f"{path}/")
        return models[path]

    output = replay(model, inputs, one)
    # As Keras does: a model's only output may have been given as a list.
    return output[0] if isinstance(output, (list, tuple)) and len(output) == 1 else output
