"""ONNX files, for ONNX Runtime and everything else that reads them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.export import hollow, onnx_file
from efficientnet_tf.export.graph import INPUT, LOGITS, PROBABILITIES, Parts
from efficientnet_tf.models import layers as fast
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.version import __version__

OPSETS = range(13, 19)  # what tf2onnx writes and `_use_global_pooling` reads
LABELS, PREPROCESSING = "labels", "preprocessing"  # keys of the file's metadata_props

OUTPUTS = (PROBABILITIES, LOGITS)

_PLAIN = {
    fast.Activation: keras.layers.Activation,
    fast.BatchNormalization: keras.layers.BatchNormalization,
    fast.Conv2D: keras.layers.Conv2D,
    fast.Rescaling: keras.layers.Rescaling,
}


def write(
    parts: Parts,
    path: str | os.PathLike,
    *,
    opset: int = 18,
    class_names: Sequence[str] = (),
    rule: Preprocessing | None = None,
) -> None:
    """Writes a classifier as an ONNX file.

    It takes `images`, float32 (batch, height, width, 3) as `parts.model` does, and gives
    `probabilities` and `logits`, float32 (batch, classes). The batch is free, and so are height and
    width unless a layer of the network needs its own size, such as a Flatten before a Dense layer.
    Nodes are named after the network's layers. The same network gives the same bytes.

    Args:
        parts: from `graph.parts`.
        path: of the file; it appears whole or not at all.
        opset: version of ONNX's operators, in `OPSETS`.
        class_names: in the order of the outputs; the file's metadata "labels" has them as a JSON
            list. None are written when empty.
        rule: how pictures are cropped and resized before they get here; the file's metadata
            "preprocessing" has its fields as a JSON object.

    Raises:
        ImportError: onnx or tf2onnx is not installed.
        ValueError: the names do not fit the outputs, the opset is not supported, or the network has
            an operation that ONNX does not know.
    """
    onnx, _ = _packages()
    if class_names and len(class_names) != parts.classes:
        raise ValueError(
            f"class_names must name {parts.classes} classes. Received: {len(class_names)} names"
        )
    if opset not in OPSETS:
        raise ValueError(
            f"opset must be in {OPSETS.start} to {OPSETS.stop - 1}. Received: opset={opset!r}"
        )
    function, large = traced(parts, hollow.LARGE)
    model, weights = _convert(function, opset, large)
    graph = model.graph
    unknown = {node.op_type for node in graph.node if not onnx.defs.has(node.op_type, node.domain)}
    if unknown:
        raise ValueError(
            f"{parts.model.name!r} cannot be written as ONNX, which has no operation for"
            f" TensorFlow's {', '.join(sorted(unknown))}."
        )
    _transpose_first(graph)
    _use_global_pooling(graph)
    _drop_idle(model)
    _sort(graph)
    graph.name = parts.model.name
    names = _rename(graph, [layer.name for layer in parts.model.layers], weights)
    weights = {names[name]: value for name, value in weights.items()}
    for value in (*graph.input, *graph.output):
        if value.name in weights:
            continue
        axes = ("batch", "height", "width") if value.name == INPUT else ("batch",)
        for axis, dim in zip(axes, value.type.tensor_type.shape.dim, strict=False):
            if not dim.dim_value:
                dim.dim_param = axis
    model.producer_name, model.producer_version = "efficientnet_tf", __version__
    model.doc_string = ""
    properties = {}
    if class_names:
        properties[LABELS] = json.dumps(list(class_names), ensure_ascii=False)
    if rule is not None:
        properties[PREPROCESSING] = json.dumps(rule.to_dict())
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model, full_check=True)
    onnx_file.write(model, weights, path)


def traced(parts: Parts, large: float = math.inf):
    """The network as a function without variables, for pictures of any size where it can be.

    Args:
        parts: from `graph.parts`.
        large: numbers that a weight has at least to be an input of the function.

    Returns:
        See `hollow.function`; the outputs are the probabilities and the logits.
    """
    try:
        plain = hollow.copy(parts.model, _plain, dynamic_size=True)
    except ValueError:
        plain = hollow.copy(parts.model, _plain)
    return hollow.function(plain, parts.model.weights, OUTPUTS, large)


def _plain(layer):
    """Copies a layer, in Keras' own form, which it has already where the model came from a file."""
    return _PLAIN.get(type(layer), type(layer)).from_config(layer.get_config())


def _packages():
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise ImportError(
            f"ONNX files are written with the packages onnx and tf2onnx ({error}). Install them:"
            ' pip install "efficientnet_tf[onnx]"'
        ) from error
    return onnx, tf2onnx


def _convert(function, opset: int, large: Sequence[keras.Variable]):
    """The function as an ONNX model whose input and outputs have their names, and its weights."""
    _, tf2onnx = _packages()
    weights = {f"{i}/{variable.path}": variable.numpy for i, variable in enumerate(large)}
    inputs = [tensor.name for tensor in function.inputs]
    outputs = [tensor.name for tensor in function.outputs]
    new_names = dict(zip((*inputs, *outputs), (INPUT, *weights, *OUTPUTS), strict=True))
    log = logging.getLogger("tf2onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # What tf2onnx.convert.from_graph_def does, without freezing a frozen graph again and
        # without a copy of all weights for each of a hundred optimisation passes.
        with tf.Graph().as_default() as frozen:
            tf.import_graph_def(function.graph.as_graph_def(), name="")
            converted = tf2onnx.tfonnx.process_tf_graph(
                frozen,
                opset=opset,
                input_names=inputs,
                output_names=outputs,
                tensors_to_rename=new_names,
            )
            # Every pass would write all weights anew and keep the old ones: 36 times their size.
            converted.update_proto = lambda *_: None
            tf2onnx.optimizer.optimize_graph(converted, catch_errors=False)
            del converted.update_proto  # `make_model` calls it once, at the end
    finally:
        log.setLevel(level)
    model = converted.make_model("")
    return model, onnx_file.settle(model, weights)


def _transpose_first(graph) -> None:
    """Normalises the pictures behind the transposition to channels first, not before it.

    Constants per channel are slow in the last axis: in ONNX Runtime the normalisation of 224 px
    takes a tenth of EfficientNet-B0's time there, and a hundredth in channels-first layout.
    """
    from onnx import helper, numpy_helper

    constants = _constants(graph)
    chain = []
    for node in _only_readers(graph, INPUT):
        if node.op_type == "Transpose":
            break
        others = [constants.get(name) for name in node.input if name in constants]
        is_arithmetic = node.op_type in ("Add", "Sub", "Mul", "Div")
        if not is_arithmetic or len(others) != 1 or others[0].size not in (1, 3):
            return
        chain.append(node)
    else:
        return
    if not chain or list(_attribute(node, "perm")) != [0, 3, 1, 2]:
        return
    result = node.output[0]
    first = f"{INPUT}/channels_first"
    transpose = helper.make_node("Transpose", [INPUT], [first], name=first, perm=[0, 3, 1, 2])
    graph.node.remove(node)
    graph.node.insert(0, transpose)
    tensor = INPUT
    for step in chain:
        for position, name in enumerate(step.input):
            if name == tensor:
                step.input[position] = first
            else:
                step.input[position] = f"{name}/channels_first"
                moved = constants[name].reshape(-1, 1, 1)
                graph.initializer.append(numpy_helper.from_array(moved, step.input[position]))
        tensor, first = step.output[0], f"{step.output[0]}/channels_first"
        step.output[0] = result if step is chain[-1] else first


def _only_readers(graph, tensor: str) -> Iterator[Any]:
    """The node that reads a tensor, the one that reads its output, …, while there is only one."""
    while True:
        readers = [node for node in graph.node if tensor in node.input]
        if len(readers) != 1 or len(readers[0].output) != 1:
            return
        yield readers[0]
        tensor = readers[0].output[0]


def _use_global_pooling(graph) -> None:
    """Replaces means over height and width by GlobalAveragePool, which ONNX Runtime runs faster."""
    from onnx import helper

    constants = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "ReduceMean":
            continue
        axes = constants[node.input[1]] if len(node.input) > 1 else _attribute(node, "axes")
        axes = sorted(int(axis) % 4 for axis in axes)
        before = makers.get(node.input[0])
        keepdims = _attribute(node, "keepdims", 1)
        if axes == [2, 3]:
            source = node.input[0]
        elif axes == [1, 2] and not keepdims and _attribute(before, "perm") == [0, 2, 3, 1]:
            source = before.input[0]
        else:
            continue
        pooled = node.output[0] if keepdims else f"{node.output[0]}/pooled"
        nodes[-1] = helper.make_node("GlobalAveragePool", [source], [pooled], name=node.name)
        if not keepdims:
            name = f"{node.name}/flatten"
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=name))
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_idle(model) -> None:
    """Drops what changes nothing: factors of one, and reshaping to the shape that is there.

    TensorFlow's swish has a factor, and tf2onnx makes transpositions of single pixels reshapes.
    """
    from onnx import shape_inference

    graph = model.graph
    constants = _constants(graph)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in shape_inference.infer_shapes(model).graph.value_info
    }
    same: dict[str, str] = {}
    for node in list(graph.node):
        source = None
        if node.op_type == "Mul":
            ones = [
                n in constants and constants[n].shape == () and constants[n] == 1
                for n in node.input
            ]
            source = node.input[1 - ones.index(True)] if any(ones) else None
        elif node.op_type == "Reshape" and node.input[1] in constants:
            shape = list(constants[node.input[1]])
            before = shapes.get(node.input[0], [])
            if shape[0] == -1 and 0 not in shape and shape[1:] == before[1:]:
                source = node.input[0]
        if source is not None and node.output[0] not in {value.name for value in graph.output}:
            same[node.output[0]] = source
            graph.node.remove(node)
    for node in graph.node:
        for position, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[position] = name


def _constants(graph) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _attribute(node, name: str, default=None):
    """Value of a node's attribute; the default where it, or the node, is missing."""
    from onnx import helper

    for attribute in node.attribute if node is not None else ():
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _sort(graph) -> None:
    """Orders nodes and constants by use, from the outputs back, and drops what nothing uses.

    tf2onnx's order depends on the hashes of names, which are new in every process.
    """
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    done: set[str] = set()
    stack = [value.name for value in reversed(graph.output)]
    while stack:
        node = makers.get(stack[-1])
        if node is None or node.output[0] in done:
            stack.pop()
            continue
        missing = [name for name in node.input if name in makers]
        missing = [name for name in missing if makers[name].output[0] not in done]
        if missing:
            stack.extend(reversed(missing))
        else:
            done.add(node.output[0])
            nodes.append(node)
    used = dict.fromkeys(name for node in nodes for name in node.input)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tensors = [constants[name] for name in used if name in constants]
    for field, values in ((graph.node, nodes), (graph.initializer, tensors)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]


def _rename(graph, layers: Sequence[str], inputs: Collection[str]) -> dict[str, str]:
    """Names nodes LAYER/OPERATION, and constants after the first node that reads them.

    Args:
        graph: of the file, sorted.
        layers: names of the network's layers.
        inputs: of the graph, which are constants too.

    Returns:
        The names before, to the new ones.
    """
    known, counts = set(layers), Counter[str]()
    values = (*graph.input, *graph.output)
    constants = {tensor.name for tensor in graph.initializer} | set(inputs)
    names = {value.name: value.name for value in values if value.name not in constants}

    def unused(name: str) -> str:
        counts[name] += 1
        return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"

    layer = graph.name
    for node in graph.node:
        weights = [name for name in node.input if name in constants]
        hints = (node.name, *node.output, *weights, *node.input)
        layer = next(filter(None, (_layer(hint, known) for hint in hints)), layer)
        node.name = unused(f"{layer}/{node.op_type}")
        has_weights = node.op_type in ("Conv", "MatMul", "Gemm")
        for position, name in enumerate(node.input):
            if name in constants and name not in names:
                role = {1: "weight", 2: "bias"}.get(position) if has_weights else "constant"
                names[name] = unused(f"{node.name}/{role}")
        for position, name in enumerate(node.output):
            suffix = f"/{position}" if position else ""
            names.setdefault(name, f"{node.name}{suffix}")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for tensor in (*graph.initializer, *values):
        tensor.name = names[tensor.name]
    return names


def _layer(name: str, known: set[str]) -> str | None:
    """The layer in a path such as "functional_1/stem_conv_1/convolution", or None."""
    for part in name.split("/"):
        for candidate in (part, re.sub(r"_\d+$", "", part)):
            if candidate in known:
                return candidate
    return None
