"""`tf.Example`s of Classify and Regress requests, and what is made of the outputs.

After TensorFlow Serving's classifier.cc, regressor.cc, servables/tensorflow/util.cc and
json_tensor.cc.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2

from efficientnet_tf.serve.errors import invalid
from efficientnet_tf.serve.json_tensor import to_bytes
from efficientnet_tf.serve.session import CLASSIFY, REGRESS, Signature


def from_json(document: Mapping[str, Any]) -> list[bytes]:
    """Serializes `examples`, and `context` into each, of a REST request.

    Raises:
        ServingError: INVALID_ARGUMENT, they are not there or a feature is not of one type.
    """
    listed = document.get("examples")
    if not isinstance(listed, list) or not listed:
        raise invalid("Expecting 'examples' to be a list of objects, at least one")
    context = _example(document["context"], "context") if "context" in document else b""
    # A later field of the same key replaces an earlier one.
    return [context + _example(item, f"examples[{i}]") for i, item in enumerate(listed)]


def from_proto(message) -> list[bytes]:
    """Serializes the examples of an Input message.

    Raises:
        ServingError: INVALID_ARGUMENT, there are none.
    """
    kind = message.WhichOneof("kind")
    context = b""
    if kind == "example_list_with_context":
        context = message.example_list_with_context.context.SerializeToString()
    listed = getattr(message, kind).examples if kind else ()
    if not listed:
        raise invalid("Input is empty.")
    return [context + example.SerializeToString() for example in listed]


def check_method(signature: Signature, method: str) -> None:
    """Refuses a signature that is not made for Classify, or Regress.

    Args:
        signature: the request's.
        method: `session.CLASSIFY` or `session.REGRESS`.

    Raises:
        ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words.
    """
    what = "classification" if method == CLASSIFY else "regression"
    if signature.method != method:
        raise invalid(
            f"Expected {what} signature method_name to be {method}. Was: {signature.method}"
        )
    if set(signature.inputs) != {"inputs"}:
        raise invalid(
            f"Expected one input Tensor named inputs. Received: {', '.join(signature.inputs)}"
        )
    wanted = {"classes", "scores"} if method == CLASSIFY else {"outputs"}
    if not signature.outputs or not set(signature.outputs) <= wanted:
        raise invalid(
            f"Expected {what} outputs among {', '.join(sorted(wanted))}."
            f" Received: {', '.join(signature.outputs)}"
        )


def classifications(
    outputs: Mapping[str, np.ndarray], count: int
) -> list[list[tuple[bytes, float]]]:
    """Pairs classes with scores.

    Args:
        outputs: `classes`, strings, and `scores`, floats, or one of them: (batch, classes) each.
        count: examples in the request.

    Returns:
        For each example (label, score) pairs, with an empty label or a score of 0 where the model
        gives none.

    Raises:
        ServingError: INVALID_ARGUMENT, the outputs are of other shapes.
    """
    shapes = {array.shape for array in outputs.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != count:
        found = ", ".join(f"{name} {array.shape}" for name, array in outputs.items())
        raise invalid(f"Expected outputs of one shape ({count}, classes). Received: {found}")
    labels = outputs.get("classes", np.full(shape, b"", object))
    scores = outputs.get("scores", np.zeros(shape))
    return [
        [(label, float(score)) for label, score in zip(*row, strict=True)]
        for row in zip(labels, scores, strict=True)
    ]


def regressions(outputs: Mapping[str, np.ndarray], count: int) -> list[float]:
    """Returns one value for each example.

    Raises:
        ServingError: INVALID_ARGUMENT, `outputs` is not (batch,) or (batch, 1).
    """
    array = outputs["outputs"]
    if array.shape not in ((count,), (count, 1)):
        raise invalid(
            f"Expected outputs of shape ({count},) for {REGRESS}. Received: {array.shape}"
        )
    return [float(value) for value in array.reshape(-1)]


def _example(value: Any, where: str) -> bytes:
    if not isinstance(value, dict):
        raise invalid(f"{where} must be an object of features")
    example = example_pb2.Example()
    for name, content in value.items():
        items = content if isinstance(content, list) else [content]
        feature = example.features.feature[name]
        kinds = {type(item) for item in items}
        try:
            if kinds <= {str, dict}:
                texts = [to_bytes(item) for item in items]
                if None in texts:
                    raise invalid(f'{where}: feature "{name}" may hold {{"b64": ...}} objects only')
                feature.bytes_list.value.extend(texts)
            elif kinds == {int}:
                feature.int64_list.value.extend(items)
            elif kinds == {float}:
                feature.float_list.value.extend(items)
            else:
                raise invalid(
                    f'{where}: feature "{name}" must hold numbers of one kind, or strings'
                )
        except (ValueError, OverflowError) as error:
            raise invalid(f'{where}: feature "{name}" cannot be read: {error}') from None
    return example.SerializeToString()
