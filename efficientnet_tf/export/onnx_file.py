"""ONNX files whose large weights are put in last, one at a time.

Until then they are inputs of the graph: it can be converted, checked and renamed in little memory,
and its weights may be more than the 2 GiB that protobuf can hold. Those of a larger file are in a
second one beside it, which ONNX calls external data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from efficientnet_tf import writing
from efficientnet_tf.paths import Remote

DATA = ".data"  # behind the name of a file: the name of the one with its weights
LARGEST = 2**31 - 1  # bytes that protobuf can parse
_PAGE = 4096  # bytes; runtimes map weights into memory that begin at a page
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # fields of ModelProto, GraphProto and TensorProto

_Path = TypeVar("_Path", Path, Remote)
Weights = Mapping[str, Callable[[], np.ndarray]]


def data_of(path: _Path) -> _Path:
    """The file beside another one that has its weights, where it is too large to have them."""
    return path.with_name(path.name + DATA)


def settle(model, weights: Weights) -> dict[str, Callable[[], np.ndarray]]:
    """Takes what only depends on weights out of a graph, such as the transposition of a kernel.

    Args:
        model: whose inputs `weights` are among; changed. New inputs take the place of the nodes.
        weights: name to what gives the value, called each time.

    Returns:
        The inputs that are weights now; what gives one computes it.
    """
    from onnx import numpy_helper, shape_inference

    graph = model.graph
    known = dict(weights)
    constants = {t.name: t for t in graph.initializer}
    inferred = {v.name: v for v in shape_inference.infer_shapes(model).graph.value_info}
    nodes = []
    for node in graph.node:
        names = [name for name in node.input if name]
        fixed = all(name in known or name in constants for name in names)
        if not fixed or not any(name in known for name in names) or len(node.output) != 1:
            nodes.append(node)
            continue
        fixed_values = {n: numpy_helper.to_array(constants[n]) for n in names if n in constants}
        given = {n: known[n] for n in names if n in known}
        known[node.output[0]] = _result(model, node, fixed_values, given)
        graph.input.append(inferred[node.output[0]])
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    unused = [value for value in graph.input if value.name in known and value.name not in used]
    for value in unused:
        graph.input.remove(value)
    return {value.name: known[value.name] for value in graph.input if value.name in known}


def _result(model, node, constants, given: Weights) -> Callable[[], np.ndarray]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    inputs, outputs = (
        [helper.make_empty_tensor_value_info(name) for name in names]
        for names in ((*given, *constants), node.output)
    )
    alone = helper.make_graph([node], "", inputs, outputs)
    evaluator = ReferenceEvaluator(helper.make_model(alone, opset_imports=model.opset_import))

    def value() -> np.ndarray:
        return evaluator.run(None, {**{n: get() for n, get in given.items()}, **constants})[0]

    return value


def write(model, weights: Weights, path: str | os.PathLike) -> None:
    """Writes a graph with its weights.

    Args:
        model: whose inputs `weights` are among; changed: they become constants of the file.
        weights: name to what gives the value, called once, when it is written.
        path: of the file, which appears whole or not at all. Where it would have more than
            `LARGEST` bytes, the weights go into `path` + ".data", which appears before it.
    """
    from onnx import TensorProto

    graph = model.graph
    tensors = []
    for value in [value for value in graph.input if value.name in weights]:
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        tensors.append(TensorProto(name=value.name, data_type=kind.elem_type, dims=dims))
        graph.input.remove(value)
    path = Path(path)
    size = sum(map(_size, tensors))
    if size + model.ByteSize() + 64 * len(tensors) > LARGEST:
        _write_data(tensors, weights, data_of(path))
        graph.initializer.extend(tensors)
        tensors = []
    with writing.whole(path) as temporary, open(temporary, "wb") as file:
        for part in _message(model, tensors, weights):
            file.write(part)


def _size(tensor) -> int:
    from onnx import helper

    return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _write_data(tensors, weights: Weights, path: Path) -> None:
    """Writes a file of weights, and where in it they are into their tensors."""
    from onnx import TensorProto

    with writing.whole(path) as temporary, open(temporary, "wb") as file:
        for tensor in tensors:
            file.write(bytes(-file.tell() % _PAGE))
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.name, "offset": file.tell(), "length": _size(tensor)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(_value(tensor, weights))


def _value(tensor, weights: Weights) -> Any:
    """The bytes of a weight, little-endian."""
    value = weights[tensor.name]()
    if value.shape != tuple(tensor.dims):
        raise ValueError(f"{tensor.name} must be of shape {tuple(tensor.dims)}: {value.shape}")
    return np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False)).data


def _message(model, tensors, weights: Weights) -> Iterator[Any]:
    """A model with its weights as protobuf writes it, in parts: protobuf would copy them twice.

    Fields of a message may stand in any order.
    """
    begun = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    heads = [tensor.SerializeToString(deterministic=True) for tensor in tensors]
    openings = []
    for tensor, head in zip(tensors, heads, strict=True):
        raw = _field(_RAW_DATA, _size(tensor))
        openings.append(_field(_INITIALIZER, len(head) + len(raw) + _size(tensor)) + head + raw)
    total = len(begun) + sum(map(len, openings)) + sum(map(_size, tensors))
    yield model.SerializeToString(deterministic=True)
    yield _field(_GRAPH, total)
    yield begun
    for tensor, opening in zip(tensors, openings, strict=True):
        yield opening
        yield _value(tensor, weights)


def _field(number: int, length: int) -> bytes:
    """What stands before the bytes of a field: its number and their length, as varints."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
