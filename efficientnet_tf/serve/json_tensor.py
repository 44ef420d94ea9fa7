"""The JSON of TensorFlow Serving's REST API: to arrays and back.

A request has `instances`, a list with one item for each row, or `inputs`, columns that hold all
rows. A single input needs no name. Bytes are {"b64": "..."}. An answer has the same form:
`predictions` or `outputs`. As TensorFlow Serving's json_tensor.cc does, NaN and Infinity are read
and written, and of strings in answers only those whose output's name ends in `_bytes` are base64.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from efficientnet_tf.serve.errors import ServingError, invalid
from efficientnet_tf.serve.session import Signature, Spec
from efficientnet_tf.serve.tensors import check_names

_SHOWN = 80  # characters of a wrong value that an error repeats


def parse(body: bytes, *, max_containers: int) -> dict[str, Any]:
    """Parses a request.

    Args:
        body: JSON, UTF-8.
        max_containers: lists and objects that it may hold.

    Raises:
        ServingError: INVALID_ARGUMENT, it is no JSON object, or too deep or too large.
    """
    if body.count(b"[") + body.count(b"{") > max_containers:
        raise invalid(f"The JSON has more than {max_containers} lists and objects")
    try:
        document = json.loads(body.decode("utf-8"))
    except RecursionError:
        raise invalid("JSON Parse error: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: not UTF-8 at offset: {error.start}") from None
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except ValueError as error:  # a number with more digits than Python reads
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise invalid("The JSON must be an object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """Returns the signature that a request names, or an empty string.

    Raises:
        ServingError: INVALID_ARGUMENT, it is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    return name


def read_inputs(document: Mapping[str, Any], signature: Signature) -> dict[str, np.ndarray]:
    """Reads the inputs of a signature, in row or column form.

    Raises:
        ServingError: INVALID_ARGUMENT, they are not there, or do not fit.
    """
    if ("instances" in document) == ("inputs" in document):
        if "inputs" in document:
            raise invalid(
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to"
                " exist"
            )
        raise invalid("Missing 'inputs' or 'instances' key")
    if is_row(document):
        columns = _columns(document["instances"], signature)
    else:
        columns = _named(document["inputs"], signature)
    arrays = {}
    for name, spec in signature.inputs.items():
        arrays[name] = _array(name, columns[name], spec)
        spec.check(name, arrays[name])
    return arrays


def is_row(document: Mapping[str, Any]) -> bool:
    """Whether a request is in row form, and its answer has to be."""
    return "instances" in document


def write(outputs: Mapping[str, np.ndarray], *, row: bool) -> bytes:
    """Writes an answer.

    Args:
        outputs: by name; strings are objects of bytes.
        row: whether the request was in row form.

    Raises:
        ServingError: INVALID_ARGUMENT, the outputs have no common batch to make rows of;
            UNIMPLEMENTED, JSON has no form for a dtype.
    """
    if row:
        batch = None
        for name, array in outputs.items():
            if not array.ndim:
                raise invalid(
                    f"Tensor name: {name} has no batch, and cannot be given row by row. Use"
                    " 'inputs' instead of 'instances'."
                )
            if batch not in (None, len(array)):
                raise invalid(
                    f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting:"
                    f" {batch}"
                )
            batch = len(array)
    values = {name: _values(name, array) for name, array in outputs.items()}
    single = len(values) == 1
    if not row:
        return _dump({"outputs": next(iter(values.values())) if single else values})
    if single:
        return _dump({"predictions": next(iter(values.values()))})
    rows = [dict(zip(values, items, strict=True)) for items in zip(*values.values(), strict=True)]
    return _dump({"predictions": rows})


def write_error(message: str) -> bytes:
    """Writes an error."""
    return _dump({"error": message})


def to_bytes(value: Any) -> bytes | None:
    """Returns the content of a string or {"b64": ...}; None for anything else.

    Raises:
        ServingError: INVALID_ARGUMENT, the base64 is broken.
    """
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError:
            raise invalid("A string holds half of a surrogate pair; send bytes as b64") from None
    if not _is_base64(value):
        return None
    text = "".join(value["b64"].split())
    try:
        # As absl::Base64Unescape: padding may be missing.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"Unable to base64 decode: {_shown(text)}") from None


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _named(value: Any, signature: Signature) -> Mapping[str, Any]:
    """Values by input name."""
    if _is_object(value):
        check_names(value, signature)
        return value
    if len(signature.inputs) != 1:
        raise invalid(
            "inputs is a plain value/list, but expecting an object as multiple input tensors"
            f" required: {', '.join(signature.inputs)}"
        )
    return dict.fromkeys(signature.inputs, value)


def _columns(rows: Any, signature: Signature) -> dict[str, list[Any]]:
    """Lists of the rows' values by input name."""
    if not isinstance(rows, list):
        raise invalid("Expecting 'instances' to be a list/array")
    if not rows:
        raise invalid("'instances' is empty; no values to make a batch of")
    named = _is_object(rows[0])
    columns: dict[str, list[Any]] = {name: [] for name in signature.inputs}
    if not named and len(columns) != 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors"
            f" required: {', '.join(columns)}"
        )
    for index, row in enumerate(rows):
        if _is_object(row) != named:
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. Expecting"
                f" {'an object' if named else 'a value or list'} as in the first element"
            )
        if not named:
            next(iter(columns.values())).append(row)
            continue
        if row.keys() != columns.keys():
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object keys must be"
                f" equal to: {','.join(columns)}. Received: {_shown(','.join(row))}"
            )
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _array(name: str, value: Any, spec: Spec) -> np.ndarray:
    """Nested lists as an array of the specification's dtype."""
    shape, values = _flat(name, value)
    if spec.dtype.name == "string":
        array = np.empty(len(values), object)
        for index, item in enumerate(values):
            content = to_bytes(item)
            if content is None:
                raise _wrong_type(name, item, 'a string or {"b64": ...}')
            array[index] = content
        return array.reshape(shape)
    types = set(map(type, values))
    if spec.dtype.is_bool:
        allowed = {bool}
    elif spec.dtype.is_integer:
        allowed = {int}
    elif spec.dtype.is_floating:
        allowed = {int, float}
    else:
        raise ServingError("UNIMPLEMENTED", f'JSON cannot hold input "{name}", {spec.dtype.name}')
    if not types <= allowed:
        wrong = next(item for item in values if type(item) not in allowed)
        raise _wrong_type(name, wrong, spec.dtype.name)
    if spec.dtype.is_integer and values:
        for extreme in (min(values), max(values)):
            if not spec.dtype.min <= extreme <= spec.dtype.max:
                raise _wrong_type(name, extreme, spec.dtype.name)
    try:
        with np.errstate(over="ignore"):  # a number that is too large is infinite, as in C++
            wanted = spec.dtype.as_numpy_dtype
            array = np.array(values, np.float64 if spec.dtype.is_floating else wanted)
            return array.astype(wanted).reshape(shape)
    except OverflowError:
        raise invalid(f'Input "{name}" holds a number too large for {spec.dtype.name}') from None


def _flat(name: str, value: Any) -> tuple[tuple[int, ...], Sequence[Any]]:
    """Shape of nested lists, and what is in them."""
    shape = []
    values = [value]
    while values and isinstance(values[0], list):
        length = len(values[0])
        if not all(isinstance(item, list) and len(item) == length for item in values):
            raise invalid(
                f'Input "{name}" must have lists of one length along dimension {len(shape)}.'
                f" The first has {length} items"
            )
        shape.append(length)
        values = [item for items in values for item in items]
        if len(shape) > 32:
            raise invalid(f'Input "{name}" has more than 32 dimensions')
    return tuple(shape), values


def _wrong_type(name: str, value: Any, expected: str) -> ServingError:
    return invalid(
        f'Input "{name}": JSON value {_shown(value)} is not of expected type: {expected}'
    )


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = str(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _values(name: str, array: np.ndarray) -> Any:
    """An array as nested lists."""
    if array.dtype == object:
        flat = [_string(name, item) for item in array.reshape(-1)]
        for size in reversed(array.shape[1:]):
            # Zero sizes leave nothing to group.
            flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
        return flat if array.ndim else flat[0]
    if array.dtype.kind in "biuf":
        return array.tolist()
    if array.dtype.kind == "V" or array.dtype.name == "bfloat16":
        return array.astype(np.float32).tolist()
    raise ServingError("UNIMPLEMENTED", f'JSON cannot hold output "{name}", {array.dtype}')


def _string(name: str, content: bytes) -> Any:
    if name.endswith("_bytes"):
        return {"b64": base64.b64encode(content).decode("ascii")}
    return content.decode("utf-8", errors="replace")


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": ")).encode("utf-8")
