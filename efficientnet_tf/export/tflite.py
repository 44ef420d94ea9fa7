"""TFLite (LiteRT) files, for phones and small computers."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf import writing
from efficientnet_tf.export import graph, hollow, metadata, quantize, tflite_file
from efficientnet_tf.models import layers as fast
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.version import __version__

Kind = Literal["float32", "float16", "dynamic", "int8", "int16x8"]
KINDS: tuple[str, ...] = get_args(Kind)
SIGNATURE = "serving_default"
FEWEST_PICTURES = 10  # to calibrate with

Calibration = Callable[[], Iterable[np.ndarray]]

_CALIBRATED = ("int8", "int16x8")
_PLAIN = {  # the fast layers go around convolutions by reshaping, which is slower here
    fast.Activation: keras.layers.Activation,
    fast.BatchNormalization: keras.layers.BatchNormalization,
    fast.Conv2D: keras.layers.Conv2D,
    fast.Rescaling: keras.layers.Rescaling,
}


def write(
    model: graph.Parts | keras.Model,
    path: str | os.PathLike,
    *,
    kind: Kind = "float32",
    calibration: Calibration | None = None,
    io: Literal["uint8", "float32"] = "uint8",
    output: Literal["uint8", "float32"] = "float32",
    batch: int | None = None,
    class_names: Sequence[str] = (),
    rule: Preprocessing | None = None,
    description: str = "",
) -> None:
    """Writes a classifier as a TFLite file.

    The file takes `images` (batch, height, width, 3), RGB in [0, 255], and gives `probabilities`
    (batch, classes); its signature is "serving_default". Labels and a description are inside, for
    MediaPipe and Android. The same arguments give the same bytes.

    Args:
        model: parts, or a flat model with `FakeQuant` layers, whose ranges then become those of the
            int8 file. Any other classifier is taken apart first.
        path: of the file, which appears whole or not at all.
        kind: "float32"; "float16" (weights; half the size); "dynamic" (weights of 8 bits, a quarter
            of the size; activations are quantised while it runs; depthwise kernels stay float);
            "int8" (weights and activations: a quarter of the size, about twice as fast, and the
            only one for processors without floats); "int16x8" (activations of 16 bits).
        calibration: for "int8" without fake quantisation and for "int16x8": gives batches of
            pictures as the model takes them, float or uint8 (batch, height, width, 3) in
            [0, 255]. A few hundred real ones. Called once.
        io: of the input, with "int8" only. uint8 takes pixels as they are (scale 1, zero point 0).
        output: of the probabilities, with "int8" only. uint8 holds them times 256, which is 0 for
            most classes out of a thousand; float32 is computed from the logits, in float.
        batch: None for any (resize the input, or call the signature); a number fixes it, which the
            EdgeTPU needs.
        class_names: in the order of the outputs; none are written when empty.
        rule: how pictures are cropped and resized, kept inside; see `metadata.add`.
        description: for people.

    Raises:
        ValueError: arguments that do not fit each other, pictures that do not fit the model or are
            too few, or names that do not fit the outputs.
    """
    _check(kind, calibration, io, output, batch)
    parts = model if isinstance(model, graph.Parts) else _parts(model)
    metadata.check_names(class_names, parts.classes)
    simulated = _simulates(parts.model)
    if simulated and kind != "int8":
        raise ValueError(f'A model with fake quantisation needs kind="int8". Received: {kind!r}')
    if kind in _CALIBRATED and not simulated and calibration is None:
        raise ValueError(f"kind={kind!r} needs calibration: a few hundred real pictures.")
    if kind == "int16x8":
        warnings.warn(
            "XNNPACK does not run int16x8: the file is 12 to 27 times slower than float32 on"
            ' processors. kind="dynamic" is as small, and as exact.',
            stacklevel=2,
        )
    # 8 bits are too coarse for a softmax over many classes: it is done in float, behind the rest.
    in_float = kind in _CALIBRATED and output == "float32"
    name = graph.LOGITS if in_float else graph.PROBABILITIES
    outputs = parts.model.output[name]
    network = keras.Model(parts.model.inputs[0], outputs, name=parts.model.name)
    content = _convert(network, kind, None if simulated else calibration, io, output, batch)
    changed = tflite_file.read(content)
    if in_float:
        _append(changed, parts.activation)
    _rename(changed, [layer.name for layer in network.layers])
    if kind == "dynamic":
        _restore_depthwise(changed, network)
    files = metadata.describe(
        changed,
        class_names=class_names,
        name=parts.model.name,
        description=description or f"{parts.model.name}: classifier of {parts.classes} classes",
        version=__version__,
        rule=rule,
    )
    with writing.whole(path) as temporary:
        tflite_file.write(changed, temporary)
        metadata.append(temporary, files)


def _check(kind, calibration, io, output, batch) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}. Received: kind={kind!r}")
    for name, value in (("io", io), ("output", output)):
        if value not in ("uint8", "float32"):
            raise ValueError(f'{name} must be "uint8" or "float32". Received: {name}={value!r}')
    if output == "uint8" and (kind != "int8" or io != "uint8"):
        raise ValueError(
            f'output="uint8" needs kind="int8" and io="uint8". Received: kind={kind!r}, io={io!r}'
        )
    if calibration is not None and kind not in _CALIBRATED:
        raise ValueError(f"kind={kind!r} takes no calibration: leave it out.")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch must be None or a whole number above 0. Received: batch={batch!r}")


def _parts(model: keras.Model) -> graph.Parts:
    """Takes a model apart, unless that was done before fake quantisation was put in."""
    outputs = getattr(model, "output", None)
    if not isinstance(outputs, dict):
        return graph.parts(model)
    missing = {graph.LOGITS, graph.PROBABILITIES} - set(outputs)
    if missing:
        raise ValueError(
            f"{model.name!r} must have the outputs of graph.Parts. Missing: {sorted(missing)}"
        )
    last = outputs[graph.PROBABILITIES]._keras_history.operation
    sigmoid = getattr(last, "activation", None) is keras.activations.sigmoid
    classes = int(outputs[graph.LOGITS].shape[-1])
    return graph.Parts(model, "sigmoid" if sigmoid else "softmax", classes)


def _simulates(model: keras.Model) -> bool:
    return any(isinstance(layer, quantize.FakeQuant) for layer in model.layers)


def _plain(model: keras.Model) -> tuple[keras.Model, list[tuple[keras.Variable, Any]]]:
    """Copies a flat model with the layers that become the fewest and fastest TFLite operations.

    Returns:
        A model without weights, see `hollow.copy`, and the values of its variables: those of
        `model`, which are not copied.
    """

    def copy(layer):
        config = layer.get_config()
        if _is_affine(layer):
            return keras.layers.DepthwiseConv2D(1, name=layer.name)
        return _PLAIN.get(type(layer), type(layer)).from_config(config)

    plain = hollow.copy(model, copy)
    state: list[tuple[keras.Variable, Any]] = []
    for layer in model.layers:
        weights = layer.weights
        if _is_affine(layer):
            # One operation per channel, with weights that 8 bits hold exactly, in place of a
            # multiplication and an addition, which round twice.
            channels = layer.output.shape[-1]
            scale, offset = (
                np.broadcast_to(np.float32(values), channels)
                for values in (layer.scale, layer.offset)
            )
            weights = [scale.reshape(1, 1, channels, 1), offset]
        state += zip(plain.get_layer(layer.name).weights, weights, strict=True)
    return plain, state


def _is_affine(layer) -> bool:
    return isinstance(layer, keras.layers.Rescaling) and len(layer.output.shape) == 4


def _convert(model, kind, calibration, io, output, batch) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tflite-") as folder:
        _save(model, folder, batch)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        # Both are done in Python, with four copies of the weights: a note about the conversion, and
        # sharing of equal constants, which is all that is optimised in a float32 file.
        converter.exclude_conversion_metadata = True
        if kind == "float32":
            converter._optimize_tflite_model = lambda content, *args, **kwargs: content
        if kind != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if kind == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if calibration is not None:
            converter.target_spec.supported_ops = [_OPERATIONS[kind]]
        if kind == "int8":
            converter.inference_input_type = tf.dtypes.as_dtype(io)
            converter.inference_output_type = tf.dtypes.as_dtype(output)
        if calibration is not None:
            shape = model.inputs[0].shape[1:]
            converter.representative_dataset = lambda: (
                {graph.INPUT: images} for images in _pictures(calibration(), shape, batch)
            )
        with warnings.catch_warnings():
            # About statistics that fake quantisation holds, and about TensorFlow's own use of its
            # old interpreter.
            warnings.simplefilter("ignore", UserWarning)
            return converter.convert()


_OPERATIONS = {
    "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    "int16x8": tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
}


def _save(model: keras.Model, folder: str, batch: int | None) -> None:
    """Writes a SavedModel to convert, without the Keras model.

    A converter that is given a Keras 3 model can leave its variables out, and write a file that
    answers nan.
    """
    plain, state = _plain(model)
    module = tf.Module(name="classifier")
    module.variables_of_model = [variable.value for variable in model.variables]
    shape = (batch, *model.inputs[0].shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name=graph.INPUT)])
    def serve(images):
        with keras.StatelessScope(state):
            return {graph.PROBABILITIES: plain(images, training=False)}

    module.serve = serve
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, folder, signatures={SIGNATURE: serve}, options=options)


def _pictures(batches: Iterable[np.ndarray], shape, batch: int | None) -> Iterator[np.ndarray]:
    """Checked pictures to calibrate with: float32 (batch or 1, height, width, 3)."""
    count, brightest = 0, 0.0
    waiting: list[np.ndarray] = []
    for images in batches:
        images = np.asarray(images)
        fits = images.ndim == 4 and all(
            want in (None, got) for want, got in zip(shape, images.shape[1:], strict=True)
        )
        if not fits or images.dtype.kind not in "uif":
            wanted = ", ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(
                f"Pictures to calibrate with must be numbers of shape (batch, {wanted}). Received:"
                f" {images.dtype} {images.shape}"
            )
        for image in images.astype(np.float32):
            if not np.isfinite(image).all():
                raise ValueError(f"Picture {count} to calibrate with holds values not finite.")
            # Some filters overshoot a little at edges.
            image = np.clip(image, 0.0, 255.0)
            if not count:
                # The range of the input, whatever the others hold: uint8 pixels go in unchanged.
                image[0, 0], image[-1, -1] = 0.0, 255.0
            else:
                brightest = max(brightest, float(image.max()))
            count += 1
            waiting.append(image)
            if len(waiting) == (batch or 1):
                yield np.stack(waiting)
                waiting = []
    if count < FEWEST_PICTURES:
        raise ValueError(
            f"{count} pictures are too few to calibrate with: give at least {FEWEST_PICTURES},"
            " better a few hundred real ones."
        )
    if brightest <= 1.0:
        raise ValueError(
            "Pictures to calibrate with must be in [0, 255]. Received: none of them has a value"
            f" above {brightest}"
        )


def _append(model, activation: Literal["softmax", "sigmoid"]) -> None:
    """Puts a float activation behind the output of a file."""
    names = tflite_file.schema()
    subgraph = model.subgraphs[0]
    before = int(subgraph.outputs[0])
    tensor = names.TensorT()
    tensor.__dict__.update(subgraph.tensors[before].__dict__)
    model.buffers.append(names.BufferT())
    tensor.buffer = len(model.buffers) - 1
    after = len(subgraph.tensors)
    subgraph.tensors.append(tensor)
    subgraph.tensors[before].name = graph.LOGITS
    builtin = names.BuiltinOperator
    code = names.OperatorCodeT()
    code.version = 1
    code.builtinCode = builtin.SOFTMAX if activation == "softmax" else builtin.LOGISTIC
    code.deprecatedBuiltinCode = code.builtinCode
    operator = names.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes)
    operator.inputs, operator.outputs = [before], [after]
    if activation == "softmax":
        operator.builtinOptionsType = names.BuiltinOptions.SoftmaxOptions
        operator.builtinOptions = names.SoftmaxOptionsT()
        operator.builtinOptions.beta = 1.0
    model.operatorCodes.append(code)
    subgraph.operators.append(operator)
    subgraph.outputs = [after]
    for signature in model.signatureDefs:
        signature.outputs[0].tensorIndex = after


def _restore_depthwise(model, network: keras.Model) -> None:
    """Gives depthwise convolutions their float kernels back.

    XNNPACK has no depthwise convolution of float pictures with 8-bit kernels: each one would end a
    partition and run in a slow kernel. They are a few percent of the weights.
    """
    names = tflite_file.schema()
    subgraph = model.subgraphs[0]
    for operator in subgraph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        kernel = subgraph.tensors[int(operator.inputs[1])] if len(operator.inputs) > 1 else None
        if code != names.BuiltinOperator.DEPTHWISE_CONV_2D or kernel.type != names.TensorType.INT8:
            continue
        scale = np.asarray(kernel.quantization.scale, np.float32)
        rounded = model.buffers[kernel.buffer].data.view(np.int8).reshape(kernel.shape) * scale
        layer = tflite_file.text(kernel.name).split("/")[0]
        exact = next((x.get_weights()[0] for x in network.layers if x.name == layer), rounded)
        exact = exact.reshape((*exact.shape[:2], -1))[None]
        # A normalization that the converter folded itself is in the rounded kernel only.
        same = exact.shape == rounded.shape and (abs(exact - rounded) <= scale).all()
        values = np.ascontiguousarray(exact if same else rounded, np.float32)
        model.buffers[kernel.buffer].data = values.reshape(-1).view(np.uint8)
        kernel.type, kernel.quantization = names.TensorType.FLOAT32, None


def _rename(model, layers: Sequence[str]) -> None:
    """Calls tensors after their layers: "stem_conv/convolution", not a path through the graph."""
    known = set(layers)
    subgraph = model.subgraphs[0]
    for tensor in subgraph.tensors:
        first = tflite_file.text(tensor.name).split(";")[0]
        *scopes, operation = first.split("/")
        for scope in reversed(scopes):
            # TensorFlow counts repeated scopes: stem_conv_1 is where the copy's stem_conv is.
            found = {scope, scope.rpartition("_")[0]} & known
            if found:
                tensor.name = f"{max(found, key=len)}/{operation}"
                break
    subgraph.tensors[int(subgraph.inputs[0])].name = graph.INPUT
    subgraph.tensors[int(subgraph.outputs[0])].name = graph.PROBABILITIES
