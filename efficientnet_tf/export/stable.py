"""A SavedModel's bytes made the same in every process; methods named for TensorFlow Serving.

TensorFlow numbers functions through the life of a process, stores them in the order of a hash
table, and draws a random id for the folder: the same model gives other bytes each time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from google.protobuf.message import Message
from tensorflow.core.protobuf import fingerprint_pb2, saved_model_pb2
from tensorflow.python.saved_model.pywrap_saved_model import fingerprinting

_SHAPES = "_output_shapes"
_USER_NAME = "_user_specified_name"
_GRADIENT = "_gradient_op_type"
_FINGERPRINT = "fingerprint.pb"


def settle(path: str | os.PathLike, methods: Mapping[str, str]) -> None:
    """Rewrites a SavedModel that was just saved.

    Args:
        path: its folder.
        methods: the method names of signatures, which TensorFlow always writes as
            "tensorflow/serving/predict".
    """
    file = os.path.join(path, "saved_model.pb")
    saved = saved_model_pb2.SavedModel()
    with open(file, "rb") as content:
        saved.ParseFromString(content.read())
    for meta_graph in saved.meta_graphs:
        for name, method in methods.items():
            meta_graph.signature_def[name].method_name = method
        functions = meta_graph.graph_def.library.function
        ordered = sorted(functions, key=lambda function: _number(function.signature.name))
        names = {
            function.signature.name: f"{_number(function.signature.name)[1]}_{index}"
            for index, function in enumerate(ordered)
        }
        copies = [type(function).FromString(function.SerializeToString()) for function in ordered]
        del functions[:]
        functions.extend(copies)
        for function in functions:
            for attributes in function.arg_attr.values():
                _drop_numbers(attributes.attr)
            for node in function.node_def:
                _drop_numbers(node.attr)
                if _SHAPES in node.attr:  # inferred again; 15 MiB of B0 once loaded
                    del node.attr[_SHAPES]
                if node.op == "Const":
                    _pack(node.attr["value"].tensor)
        _rename(meta_graph, names)
    with open(file, "wb") as content:
        content.write(saved.SerializeToString(deterministic=True))
    fingerprint = fingerprint_pb2.FingerprintDef.FromString(
        fingerprinting.CreateFingerprintDef(os.fspath(path))
    )
    fingerprint.uuid = str(fingerprint.saved_model_checksum)
    with open(os.path.join(path, _FINGERPRINT), "wb") as content:
        content.write(fingerprint.SerializeToString(deterministic=True))


def _number(name: str) -> tuple[int, str]:
    """The number that TensorFlow gave to a function, and the name without it."""
    match = re.fullmatch(r"(.*?)_(\d+)", name)
    return (int(match[2]), match[1]) if match else (-1, name)


def _drop_numbers(attributes: Any) -> None:
    """Drops the names that TensorFlow makes of numbers: of captured variables, and of gradients.

    Custom gradients are not saved. Without their name, an operation has its own gradient.
    """
    if _USER_NAME in attributes and attributes[_USER_NAME].s.isdigit():
        del attributes[_USER_NAME]
    if _GRADIENT in attributes:
        del attributes[_GRADIENT]


def _pack(tensor: Any) -> None:
    """Stores bfloat16 values in two bytes each, not as numbers of up to three."""
    if tensor.dtype == tf.bfloat16.as_datatype_enum and len(tensor.half_val) > 1:
        values = tf.make_ndarray(tensor)
        tensor.ClearField("half_val")
        tensor.tensor_content = values.tobytes()


def _rename(message: Message, names: Mapping[str, str]) -> None:
    """Replaces every string in a message that is one of `names`, keys of maps too."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _rename_map(value, field.message_type.fields_by_name["value"], names)
        elif field.type == field.TYPE_MESSAGE:
            for one in value if field.is_repeated else (value,):
                _rename(one, names)
        elif field.type == field.TYPE_STRING:
            if field.is_repeated:
                value[:] = [names.get(one, one) for one in value]
            elif value in names:
                setattr(message, field.name, names[value])


def _rename_map(entries: Any, value_field: Any, names: Mapping[str, str]) -> None:
    holds_messages = value_field.type == value_field.TYPE_MESSAGE
    for key in list(entries):
        if holds_messages:
            _rename(entries[key], names)
        elif value_field.type == value_field.TYPE_STRING:
            entries[key] = names.get(entries[key], entries[key])
    moved = {key: entries[key] for key in entries if key in names}
    if not moved:
        return
    if holds_messages:
        copies = {names[key]: value.SerializeToString() for key, value in moved.items()}
        for key in moved:
            del entries[key]
        for key, content in copies.items():
            entries[key].ParseFromString(content)
    else:
        for key in moved:
            del entries[key]
        for key, value in moved.items():
            entries[names[key]] = value
