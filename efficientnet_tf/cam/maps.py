"""Class activation maps of a model."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import layers as keras_layers
from keras import ops

from efficientnet_tf.cam import evidence
from efficientnet_tf.models import calls as calls_lib
from efficientnet_tf.models.calls import Calls
from efficientnet_tf.models.inference import check_shape

Method = Literal["cam", "gradcam", "gradcam++"]
METHODS: tuple[str, ...] = get_args(Method)

_POOLING = (keras_layers.GlobalAveragePooling2D, keras_layers.GlobalMaxPooling2D)
_RESHAPING = (keras_layers.Flatten, keras_layers.Reshape)
_FUNCTIONS = (keras.activations.softmax, keras.activations.sigmoid)
_OPERATIONS = ("Softmax", "Sigmoid")  # of keras.ops; the first is a layer too
_TOLD = 8  # names of layers in a message


def cam(
    model: keras.Model,
    images: np.ndarray,
    classes: int | Sequence[int] | np.ndarray | None = None,
    layer: str | None = None,
    method: Method = "cam",
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Says where in pictures the evidence for a class is.

    All methods sum the feature maps of one layer, weighted, and leave out what is negative:

    * "cam" (arXiv 1512.04150): by the weights of the dense layer behind global average pooling. It
      is exact: the mean of the sum is the class's score, but for what is negative and the bias.
    * "gradcam" (arXiv 1610.02391): by the mean derivative of the class's score, for any layer
      that the score depends on. Behind pooling and one dense layer it equals "cam".
    * "gradcam++" (arXiv 1710.11063): by its positive derivatives, weighted so that several objects
      of the class count alike.

    Scores are those before a softmax or sigmoid at the model's end. The model may be nested, such
    as `keras.Sequential([backbone, head])`, and stays as it is.

    Args:
        model: functional or sequential, with one input of pictures and one output of scores (batch,
            classes).
        images: (batch, height, width, channels), as the model takes them: in [0, 255] where it
            normalises them itself, as `build` makes it.
        classes: the class, or one for each picture; None is the most likely one of each.
        layer: name of the layer whose maps are taken, see `layers`; the path ("backbone/top_conv")
            where several have the name. The name of a model inside means its output. None is the
            last layer with maps, before the pooling.
        method: one of `METHODS`. "cam" is for that layer only, on any backend; the others for Keras
            on TensorFlow.
        batch_size: pictures at a time.

    Returns:
        float32 (batch, h, w) of the layer's height and width, in [0, 1]: each picture's map is
        divided by its largest value, which is then 1, or all are 0 where nothing speaks for the
        class. `overlay` puts it onto the picture.

    Raises:
        ValueError: an argument, or the model, that does not fit; the message says what does.
        NotImplementedError: a method with derivatives on another backend.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}. Received: method={method!r}")
    if method != "cam" and keras.backend.backend() != "tensorflow":
        raise NotImplementedError(
            f'method={method!r} takes derivatives on TensorFlow only; method="cam" runs everywhere.'
            f" Received: Keras on {keras.backend.backend()}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
    network = _network(model)
    images = np.asarray(images)
    check_shape(model, images.shape)
    if len(images) == 0:
        raise ValueError("images must hold at least one picture. Received: none")
    chosen = _check_classes(classes, len(images), network.classes)
    target = _find(network, layer)
    if method == "cam":
        head = _head(network, target, layer)
        explain = _exact(model, network, target, head)
    else:
        explain = _with_derivatives(model, network, target, method)
    dtype = model.inputs[0].dtype
    starts = range(0, len(images), batch_size)
    found = [
        explain(
            ops.convert_to_tensor(images[start : start + batch_size], dtype),
            None if chosen is None else chosen[start : start + batch_size],
        )
        for start in starts
    ]
    return np.concatenate([np.asarray(ops.convert_to_numpy(part), np.float32) for part in found])


def layers(model: keras.Model) -> tuple[str, ...]:
    """Paths of the layers with maps, in the order in which they run.

    Args:
        model: as for `cam`.
    """
    return tuple(_with_maps(_network(model).calls))


@dataclasses.dataclass(frozen=True)
class _Network:
    """A classifier as its calls.

    Attributes:
        calls: all of them.
        scores: number of the call that gives the scores, or takes what they are made of.
        dense: whether that call is a dense layer with a softmax or sigmoid in it.
        classes: number of them.
    """

    calls: Calls
    scores: int
    dense: bool
    classes: int


def _network(model: keras.Model) -> _Network:
    calls = calls_lib.trace(model)
    output = calls.output
    if not isinstance(output, keras.KerasTensor) or len(output.shape) != 2:
        shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(output)]
        raise ValueError(
            "The model must have one output of scores (batch, classes): a backbone without a"
            " classifier has no classes to explain. Put one behind it, such as"
            f" GlobalAveragePooling2D and Dense. Received: {model.name!r} with outputs {shapes}"
        )
    number = _before(calls, output)
    layer = calls.calls[number].layer
    classes = output.shape[1]
    if getattr(layer, "activation", None) in _FUNCTIONS and isinstance(layer, keras_layers.Dense):
        return _Network(calls, number, True, classes)
    if (isinstance(layer, keras_layers.Activation) and layer.activation in _FUNCTIONS) or type(
        layer
    ).__name__ in _OPERATIONS:
        return _Network(calls, _before(calls, calls.calls[number].inputs[0]), False, classes)
    if getattr(layer, "activation", None) in _FUNCTIONS:
        raise ValueError(
            "A softmax or sigmoid at the model's end must be in a Dense layer or on its own."
            f" Received: {type(layer).__name__} {layer.name!r}"
        )
    return _Network(calls, number, False, classes)


def _made(calls: Calls, tensor) -> int:
    number = calls.producer(tensor)
    if number is None:
        raise ValueError("The model must have layers between its pictures and its scores")
    return number


def _before(calls: Calls, tensor) -> int:
    """Number of the call that made a tensor, but for what only passes it on or reshapes it."""
    while True:
        number = _made(calls, tensor)
        call = calls.calls[number]
        if not (calls_lib.does_nothing(call.layer) or isinstance(call.layer, _RESHAPING)):
            return number
        tensor = call.inputs[0]


def _check_classes(classes, count: int, num_classes: int) -> np.ndarray | None:
    if classes is None:
        return None
    chosen = np.asarray(classes)
    if chosen.dtype.kind not in "iu" or chosen.ndim > 1 or chosen.shape not in ((), (count,)):
        raise ValueError(
            f"classes must be the number of a class, or one for each of the {count} pictures."
            f" Received: classes={classes!r}"
        )
    if chosen.min() < 0 or chosen.max() >= num_classes:
        raise ValueError(
            f"classes must be from 0 to {num_classes - 1}, as the model has {num_classes} classes."
            f" Received: classes={classes!r}"
        )
    return np.broadcast_to(chosen, (count,)).astype(np.int32)


def _is_map(tensor) -> bool:
    return isinstance(tensor, keras.KerasTensor) and len(tensor.shape) == 4


def _is_wide(tensor) -> bool:
    return _is_map(tensor) and tuple(tensor.shape[1:3]) != (1, 1)


def _with_maps(calls: Calls) -> dict[str, int]:
    """Path of each layer or model with maps to the number of the (last) call that makes them."""
    found = {call.path: n for n, call in enumerate(calls.calls) if _is_wide(call.output)}
    for path, output in calls.models.items():
        number = calls.producer(output) if _is_wide(output) else None
        if number is not None:
            found[path] = number
    return found


def _find(network: _Network, name: str | None) -> int:
    """Number of the call whose output is explained."""
    if name is None:
        return _last_maps(network)
    calls, wide = network.calls, _with_maps(network.calls)
    last = f"{len(wide)} layers have maps (cam.layers lists them); the last: "
    last += ", ".join(list(wide)[-_TOLD:])
    if not isinstance(name, str):
        raise ValueError(f"layer must be a name or None. Received: layer={name!r}. {last}")
    everything = [call.path for call in calls.calls] + list(calls.models)
    if name in wide:
        return wide[name]
    paths = sorted({path for path in everything if path == name or path.endswith(f"/{name}")})
    if len(paths) == 1 and paths[0] in wide:
        return wide[paths[0]]
    if len(paths) > 1:
        raise ValueError(f"Several layers are called {name!r}: give one of {', '.join(paths)}")
    if paths:
        reason = f"Layer {name!r} has no maps (batch, height, width, channels)."
    else:
        reason = f"The model has no layer {name!r}."
    short = {path.rpartition("/")[2]: path for path in wide}
    close = difflib.get_close_matches(name, [*wide, *short], n=3, cutoff=0.7)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"{reason}{hint} {last}")


def _last_maps(network: _Network) -> int:
    """Number of the last call with maps that the scores are made of.

    That is what goes into global pooling, or into another layer behind which there are no maps.
    """
    calls = network.calls
    found: set[int] = set()
    waiting, seen = [network.scores], set()
    while waiting:
        number = waiting.pop()
        if number in seen:
            continue
        seen.add(number)
        call = calls.calls[number]
        pools = isinstance(call.layer, _POOLING)
        for tensor in call.inputs:
            producer = calls.producer(tensor)
            if producer is None:
                continue
            if _is_map(tensor) and (pools or (_is_wide(tensor) and not _is_wide(call.output))):
                found.add(producer)
            else:
                waiting.append(producer)
    if not found:
        raise ValueError(
            "The model's scores are not made of maps (batch, height, width, channels):"
            " there is nothing to show on a picture"
        )
    return max(found)


def _head(network: _Network, target: int, name: str | None) -> Any:
    """The dense layer behind the global average pooling of the maps."""
    calls = network.calls
    dense = calls.calls[network.scores]
    pooling = None
    if isinstance(dense.layer, keras_layers.Dense):
        pooling = calls.calls[_before(calls, dense.inputs[0])]
    if pooling is None or not isinstance(pooling.layer, keras_layers.GlobalAveragePooling2D):
        found = type(dense.layer).__name__
        if pooling is not None:
            found = f"{type(pooling.layer).__name__} {pooling.layer.name!r} before {found}"
        raise ValueError(
            'method="cam" needs global average pooling and one dense layer at the model\'s end;'
            f' method="gradcam" and "gradcam++" do without. Received: {found}'
            f" {dense.layer.name!r}"
        )
    pooled = calls.producer(pooling.inputs[0])
    if pooled is None or pooled != target:
        before = None if pooled is None else calls.calls[pooled].path
        raise ValueError(
            f'method="cam" is about the layer before the pooling, {before!r}; method="gradcam" and'
            f' "gradcam++" are for others too. Received: layer={name!r}'
        )
    return dense.layer


def _scores(network: _Network, args, output):
    """Scores (batch, classes) before the softmax, from the call `network.scores`."""
    if network.dense:
        layer = network.calls.calls[network.scores].layer
        output = ops.matmul(ops.cast(args[0], "float32"), ops.cast(layer.kernel, "float32"))
        if layer.use_bias:
            output = output + ops.cast(layer.bias, "float32")
    return ops.reshape(ops.cast(output, "float32"), (-1, network.classes))


def _forward(model, network: _Network, target: int, images, use=lambda output: output):
    """Maps of the call `target`, through `use`, and the scores that follow from them."""
    found = {}

    def each(number, args, output):
        if number == target:
            found["maps"] = output = use(output)
        if number == network.scores:
            found["scores"] = _scores(network, args, output)
        return output

    calls_lib.run(model, images, each)
    return found["maps"], found["scores"]


def _exact(model, network: _Network, target: int, dense):
    """(images, classes) to maps by the weights of a dense layer."""

    def explain(images, classes):
        maps, scores = _forward(model, network, target, images)
        if classes is None:
            classes = ops.argmax(scores, -1)
        weights = ops.take(ops.transpose(dense.kernel), ops.convert_to_tensor(classes), 0)
        weights = ops.cast(weights, "float32")[:, None, None, :]
        return evidence.shown(ops.cast(maps, "float32"), weights)

    return explain


def _with_derivatives(model, network: _Network, target: int, method: Method):
    """(images, classes) to maps by the derivatives of the scores, on TensorFlow."""
    import tensorflow as tf

    def explain(images, classes):
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def watched(output):
                output = tf.identity(output)
                tape.watch(output)
                return output

            maps, scores = _forward(model, network, target, images, watched)
            if classes is None:
                classes = tf.argmax(scores, -1)
            chosen = tf.gather(scores, classes, batch_dims=1)
        derivatives = tape.gradient(chosen, maps)
        if derivatives is None:
            path = network.calls.calls[target].path
            raise ValueError(f"The scores do not depend on layer {path!r}: choose one before them")
        maps, derivatives = (tf.cast(t, tf.float32) for t in (maps, derivatives))
        if method == "gradcam":
            weights = evidence.gradcam(derivatives)
        else:
            weights = evidence.gradcam_plus_plus(maps, derivatives)
        return evidence.shown(maps, weights)

    return explain
