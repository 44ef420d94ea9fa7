"""One version of a model: a SavedModel in TensorFlow's C++ session, without Keras.

The graph is fed and fetched by the tensor names of its signatures, which is what TensorFlow
Serving does, and takes any SavedModel with the tag "serve", of TensorFlow 1 or 2.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from efficientnet_tf.serve.errors import ServingError, invalid, name_of

DEFAULT_SIGNATURE = "serving_default"
PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor of a signature.

    Attributes:
        tensor: its name in the graph.
        dtype: TensorFlow's.
        shape: None where the rank is not known; -1 for a size that is not.
    """

    tensor: str
    dtype: tf.DType
    shape: tuple[int, ...] | None

    def check(self, name: str, array: np.ndarray) -> None:
        """Compares an array with the specification.

        Args:
            name: of the input, for the message.
            array: strings are objects of bytes.

        Raises:
            ServingError: INVALID_ARGUMENT, it does not fit.
        """
        wanted = np.dtype(self.dtype.as_numpy_dtype)
        fits = self.shape is None or (
            len(self.shape) == array.ndim
            and all(want in (-1, have) for want, have in zip(self.shape, array.shape, strict=True))
        )
        if array.dtype != wanted or not fits:
            got = "string" if array.dtype == object else array.dtype
            shape = "of any shape" if self.shape is None else _shape_text(self.shape)
            raise invalid(
                f'Input "{name}" expects {self.dtype.name} {shape}.'
                f" Received: {got} {_shape_text(array.shape)}"
            )


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function that can be called.

    Attributes:
        name: key in the SavedModel.
        method: such as "tensorflow/serving/predict".
        inputs: by name.
        outputs: by name.
    """

    name: str
    method: str
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]

    @property
    def merges(self) -> bool:
        """Whether requests may be laid together: everything starts with a batch of any size."""
        specs = (*self.inputs.values(), *self.outputs.values())
        return bool(self.inputs) and all(spec.shape and spec.shape[0] == -1 for spec in specs)


class Session:
    """A loaded SavedModel.

    Attributes:
        signatures: by name; those whose tensors are not dense are left out.
        signature_protos: SignatureDef messages by name, all of them.
        path: where it was loaded from.
    """

    def __init__(self, path: str | os.PathLike, *, threads: int = 0):
        """Loads a SavedModel.

        Args:
            path: folder that holds saved_model.pb.
            threads: of TensorFlow's pools for this session; 0 leaves it to TensorFlow.

        Raises:
            ServingError: it is not there, is broken, or lacks the tag "serve".
        """
        self.path = os.fspath(path)
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads,
            inter_op_parallelism_threads=threads,
            use_per_session_threads=threads > 0,
        )
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], self.path)
        except Exception as error:
            # Whatever is wrong with a folder that others write must not end the server.
            self._session.close()
            raise _translated(error, f"Could not load {self.path}: ") from None
        self.signature_protos: dict[str, meta_graph_pb2.SignatureDef] = dict(loaded.signature_def)
        self.signatures = {
            name: _signature(name, proto)
            for name, proto in sorted(self.signature_protos.items())
            if proto.method_name and _is_dense(proto)
        }

    def run(
        self,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str],
        *,
        timeout: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """Runs a signature; may be called from several threads at once.

        Args:
            signature: one of `signatures`.
            inputs: an array for each input.
            outputs: names of those that are wanted.
            timeout: seconds, after which TensorFlow gives up; 0 for none.

        Raises:
            ServingError: with TensorFlow's code and message.
        """
        options = tf.compat.v1.RunOptions(timeout_in_ms=round(timeout * 1000))
        try:
            values = self._session.run(
                [signature.outputs[name].tensor for name in outputs],
                {signature.inputs[name].tensor: array for name, array in inputs.items()},
                options=options,
            )
        except (tf.errors.OpError, ValueError, TypeError, RuntimeError) as error:
            raise _translated(error) from None
        return dict(zip(outputs, (_array(value) for value in values), strict=True))

    def find(self, name: str) -> Signature:
        """Returns a signature by name; an empty one is "serving_default".

        Raises:
            ServingError: FAILED_PRECONDITION, there is none.
        """
        name = name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise ServingError(
                "FAILED_PRECONDITION",
                f'Serving signature key "{name}" not found. The model has'
                f" {', '.join(self.signatures) or 'none'}.",
            )
        return self.signatures[name]

    def close(self) -> None:
        """Frees the session's variables and threads."""
        self._session.close()


def _is_dense(proto: meta_graph_pb2.SignatureDef) -> bool:
    infos = (*proto.inputs.values(), *proto.outputs.values())
    return all(info.WhichOneof("encoding") == "name" for info in infos)


def _signature(name: str, proto: meta_graph_pb2.SignatureDef) -> Signature:
    return Signature(
        name,
        proto.method_name,
        {key: _spec(info) for key, info in sorted(proto.inputs.items())},
        {key: _spec(info) for key, info in sorted(proto.outputs.items())},
    )


def _spec(info: meta_graph_pb2.TensorInfo) -> Spec:
    shape = info.tensor_shape
    sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
    return Spec(info.name, tf.as_dtype(info.dtype), sizes)


def _array(value) -> np.ndarray:
    """A fetched value as an array; a scalar string comes as bytes."""
    if isinstance(value, bytes):
        array = np.empty((), object)
        array[()] = value
        return array
    return np.asarray(value)


def _shape_text(shape: Sequence[int]) -> str:
    return f"({', '.join('any' if size == -1 else str(size) for size in shape)})"


def _translated(error: Exception, before: str = "") -> ServingError:
    """An error of TensorFlow's without what only its developers can use."""
    code = name_of(error.error_code) if isinstance(error, tf.errors.OpError) else "INTERNAL"
    if isinstance(error, OSError):
        code = "NOT_FOUND"
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    text = (text or type(error).__name__).split("\n\nOriginal stack trace", 1)[0]
    return ServingError(code, f"{before}{text.strip()}")
