"""TensorProtos, as gRPC and warm-up records hold them, to arrays and back."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from efficientnet_tf.serve.errors import invalid
from efficientnet_tf.serve.session import Signature

_TYPES = frozenset(types_pb2.DataType.values())


def read_inputs(
    protos: Mapping[str, tensor_pb2.TensorProto], signature: Signature, max_bytes: int
) -> dict[str, np.ndarray]:
    """Reads the inputs of a signature.

    Args:
        protos: by input name.
        signature: says which are expected.
        max_bytes: of one array; a TensorProto of twenty bytes may stand for any number of equal
            values.

    Raises:
        ServingError: INVALID_ARGUMENT, they do not fit.
    """
    check_names(protos, signature)
    arrays = {}
    for name, spec in signature.inputs.items():
        proto = protos[name]
        if proto.dtype != spec.dtype.as_datatype_enum:
            received = (
                types_pb2.DataType.Name(proto.dtype) if proto.dtype in _TYPES else proto.dtype
            )
            raise invalid(f'Input "{name}" expects {spec.dtype.name}. Received: {received}')
        arrays[name] = _read(name, proto, spec.dtype, max_bytes)
        spec.check(name, arrays[name])
    return arrays


def check_names(names: Iterable[str], signature: Signature) -> None:
    """Compares the names of a request's inputs with those of a signature.

    Raises:
        ServingError: INVALID_ARGUMENT, in the words of TensorFlow Serving's predict_util.cc.
    """
    sent, wanted = set(names), set(signature.inputs)
    if sent == wanted:
        return

    def text(which: Iterable[str]) -> str:
        return "{" + ",".join(sorted(which)) + "}"

    if len(sent) == len(wanted):
        alias = min(sent - wanted)
        raise invalid(
            f"input tensor alias not found in signature: {alias}."
            f" Inputs expected to be in the set {text(wanted)}."
        )
    raise invalid(
        f"input size does not match signature: {len(sent)}!={len(wanted)}"
        f" len({text(sent)}) != len({text(wanted)}). Sent extra: {text(sent - wanted)}."
        f" Missing but required: {text(wanted - sent)}."
    )


def write(array: np.ndarray, dtype: tf.DType) -> tensor_pb2.TensorProto:
    """Returns an array as a TensorProto; strings are objects of bytes."""
    return tf.make_tensor_proto(array, dtype=dtype, shape=array.shape)


def _read(name: str, proto: tensor_pb2.TensorProto, dtype: tf.DType, max_bytes: int) -> np.ndarray:
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in sizes):
        raise invalid(f'Input "{name}" must have a known shape. Received: {sizes}')
    if len(sizes) > 32:
        raise invalid(f'Input "{name}" has {len(sizes)} dimensions; 32 are allowed')
    if math.prod(sizes) * np.dtype(dtype.as_numpy_dtype).itemsize > max_bytes:
        raise invalid(
            f'Input "{name}" of shape {tuple(sizes)} is larger than the {max_bytes} bytes that are'
            " allowed"
        )
    try:
        return tf.make_ndarray(proto)
    except Exception as error:  # of many kinds: numpy's, and those of the message's content
        raise invalid(f'Input "{name}" cannot be read: {error}') from None


def check_outputs(names: Iterable[str], signature: Signature) -> tuple[str, ...]:
    """Checks which outputs a request asks for; none asks for all.

    Raises:
        ServingError: INVALID_ARGUMENT, one is not there or is named twice.
    """
    names = tuple(names)
    for name in names:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the"
                f" set {{{','.join(signature.outputs)}}}."
            )
    if len(set(names)) != len(names):
        raise invalid(f"duplicate output tensor alias among {', '.join(names)}")
    return names or tuple(signature.outputs)
