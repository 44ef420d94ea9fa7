"""Labels and a description inside a TFLite file, where Android and MediaPipe look for them.

The description is a flatbuffer of TFLite's metadata schema (tflite-support,
`metadata_schema.fbs` 1.5.0), in the file's buffer "TFLITE_METADATA". The files that it names,
`labels.txt` among them, stand in a zip archive behind the model, stored without compression, so
that Android reads them in place. Google's writer, tflite-support, needs a protobuf that TensorFlow
2.21 does not run with, and MediaPipe's cannot be imported (tflite-support#998); the schema is small
enough to be written out here, as data.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from flatbuffers import number_types
from flatbuffers.table import Table

from efficientnet_tf.export import tflite_file
from efficientnet_tf.preprocessing import FILE as RULE_FILE
from efficientnet_tf.preprocessing import Preprocessing

BUFFER = "TFLITE_METADATA"
IDENTIFIER = b"M001"
LABELS_FILE = "labels.txt"
PARSER_VERSION = "1.0.0"  # of the schema; what is used here was there from the beginning

_LABELS, _OTHER_FILE = 2, 0  # AssociatedFileType.TENSOR_AXIS_LABELS, UNKNOWN
_RGB = 1  # ColorSpaceType

# Tables of the schema: their fields in order, each with its type. "?" is a union, of what follows
# it in order; its type number takes a field of its own. Only what is used is named.
_SCHEMA: dict[str, tuple[tuple[str, str], ...]] = {
    "ModelMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("version", "string"),
        ("subgraph_metadata", "[SubGraphMetadata]"),
        ("author", "string"),
        ("license", "string"),
        ("associated_files", "[AssociatedFile]"),
        ("min_parser_version", "string"),
    ),
    "SubGraphMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("input_tensor_metadata", "[TensorMetadata]"),
        ("output_tensor_metadata", "[TensorMetadata]"),
    ),
    "TensorMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("dimension_names", "[string]"),
        ("content", "Content"),
        ("process_units", "[ProcessUnit]"),
        ("stats", "Stats"),
        ("associated_files", "[AssociatedFile]"),
    ),
    "Content": (("properties", "?FeatureProperties,ImageProperties"),),
    "FeatureProperties": (),
    "ImageProperties": (("color_space", "byte"), ("default_size", "ImageSize")),
    "ImageSize": (("width", "uint"), ("height", "uint")),
    "ProcessUnit": (("options", "?NormalizationOptions"),),
    "NormalizationOptions": (("mean", "[float]"), ("std", "[float]")),
    "Stats": (("max", "[float]"), ("min", "[float]")),
    "AssociatedFile": (("name", "string"), ("description", "string"), ("type", "byte")),
}
_NUMBERS = {"byte": number_types.Int8Flags, "uint": number_types.Uint32Flags}


def add(
    content: bytes,
    *,
    class_names: Sequence[str] = (),
    name: str = "",
    description: str = "",
    version: str = "",
    rule: Preprocessing | None = None,
) -> bytes:
    """Adds metadata to a TFLite image classifier, in place of any that it has.

    It says that the input is RGB in [0, 255], normalised by the model itself (mean 0, deviation 1),
    and that the outputs are scores in [0, 1], with these names.

    Args:
        content: of the file: one input (batch, height, width, 3), one output (batch, classes).
        class_names: in the order of the outputs; none are written when empty.
        name: of the model, for people.
        description: for people.
        version: of the model, for people.
        rule: how pictures are cropped and resized, kept as `preprocessing.json`. MediaPipe and
            Android do not read it: they stretch the whole picture to the input's size.

    Returns:
        The new file. The same arguments give the same bytes.

    Raises:
        ValueError: the names are not as many as the outputs or not one line each, or this is no
            such classifier.
    """
    model = tflite_file.read(content)
    files = describe(
        model,
        class_names=class_names,
        name=name,
        description=description,
        version=version,
        rule=rule,
    )
    stream = io.BytesIO(tflite_file.dump(model))
    append(stream, files)
    return stream.getvalue()


def describe(
    model,
    *,
    class_names: Sequence[str] = (),
    name: str = "",
    description: str = "",
    version: str = "",
    rule: Preprocessing | None = None,
) -> dict[str, str]:
    """Puts metadata into a `ModelT`; see `add`.

    Returns:
        The texts of the files that belong behind the model, by name, for `append`.

    Raises:
        ValueError: see `add`.
    """
    images, scores = _ends(model)
    check_names(class_names, int(scores.shape[-1]))
    files = {}
    if class_names:
        files[LABELS_FILE] = "\n".join(class_names) + "\n"
    if rule is not None:
        files[RULE_FILE] = json.dumps(rule.to_dict(), indent=2) + "\n"
    value = _describe(images, scores, files, name, description, version)
    buffers = [m.buffer for m in model.metadata or () if tflite_file.text(m.name) == BUFFER]
    if not buffers:
        names = tflite_file.schema()
        entry = names.MetadataT()
        entry.name, entry.buffer = BUFFER, len(model.buffers)
        model.buffers.append(names.BufferT())
        model.metadata = [*(model.metadata or ()), entry]
        buffers = [entry.buffer]
    model.buffers[buffers[0]].data = np.frombuffer(_pack(value), np.uint8)
    return files


def append(file: str | os.PathLike | BinaryIO, files: Mapping[str, str]) -> None:
    """Puts an archive of texts behind a model.

    Args:
        file: that holds the model only; its path, or open.
        files: texts by name.
    """
    if not files:
        return
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, text in files.items():
            # Without the time of writing, and the same from every system.
            entry = zipfile.ZipInfo(name)
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text)


def read(content: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Reads the metadata of a TFLite file, whoever wrote it.

    Args:
        content: of the file.

    Returns:
        The fields of the schema's `ModelMetadata` that are set, tables as dicts and lists, with the
        texts of the associated files as "files"; and the class names, empty where there are none.

    Raises:
        ValueError: this is no TFLite file, or it has no metadata.
    """
    model = tflite_file.read(content)
    found = [m.buffer for m in model.metadata or () if tflite_file.text(m.name) == BUFFER]
    if not found:
        raise ValueError(f"This TFLite file has no metadata: its buffer {BUFFER} is missing.")
    data = bytearray(model.buffers[found[0]].data)
    start = int.from_bytes(data[:4], "little")
    value = _unpack("ModelMetadata", Table(data, start))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            value["files"] = {n: archive.read(n).decode() for n in archive.namelist()}
    except zipfile.BadZipFile:
        value["files"] = {}
    labels = [
        file["name"]
        for subgraph in value.get("subgraph_metadata", ())
        for tensor in subgraph.get("output_tensor_metadata", ())
        for file in tensor.get("associated_files", ())
        if file.get("type") == _LABELS
    ]
    return value, tuple(value["files"][labels[0]].splitlines()) if labels else ()


def check_names(class_names: Sequence[str], classes: int) -> None:
    """Raises unless there are no names, or one for each class, of one line each.

    Raises:
        ValueError: says which name is wrong, or how many there are.
    """
    if not class_names:
        return
    if len(class_names) != classes:
        raise ValueError(
            f"class_names must name {classes} classes. Received: {len(class_names)} names. A file"
            " with the wrong number of labels fails only on the phone."
        )
    for index, label in enumerate(class_names):
        if not label.strip() or len(label.splitlines()) != 1:
            raise ValueError(
                "Class names must be one line each, and not empty. Received for class"
                f" {index}: {label!r}"
            )


def _ends(model):
    """The input and the output tensor of a classifier."""
    graph = model.subgraphs[0]
    inputs, outputs = ([graph.tensors[i] for i in ends] for ends in (graph.inputs, graph.outputs))
    shapes = [tuple(map(int, t.shape)) for t in (*inputs, *outputs)]
    right = len(inputs) == len(outputs) == 1 and len(shapes[0]) == 4 and len(shapes[1]) == 2
    if not right or shapes[0][3] != 3:
        raise ValueError(
            "The file must have one input (batch, height, width, 3) and one output (batch,"
            f" classes). Received: inputs and outputs of shapes {shapes}"
        )
    return inputs[0], outputs[0]


def _describe(images, scores, files, name, description, version) -> dict[str, Any]:
    signature = images.shape if images.shapeSignature is None else images.shapeSignature
    height, width = (int(side) for side in signature[1:3])
    picture: dict[str, Any] = {"color_space": _RGB}
    if min(height, width) > 0:
        picture["default_size"] = {"width": width, "height": height}
    described = {
        LABELS_FILE: ("Names of the classes, one a line, in the order of the scores.", _LABELS),
        RULE_FILE: ("How pictures are cropped and resized before they go in.", _OTHER_FILE),
    }
    entries = {
        file: {"name": file, "description": described[file][0], "type": described[file][1]}
        for file in files
    }
    subgraph = {
        "name": "classifier",
        "input_tensor_metadata": [
            {
                "name": "images",
                "description": "RGB pictures in [0, 255]; the model normalises them itself.",
                "content": {"properties": ("ImageProperties", picture)},
                "process_units": [
                    {"options": ("NormalizationOptions", {"mean": [0.0], "std": [1.0]})}
                ],
                "stats": {"max": [255.0], "min": [0.0]},
            }
        ],
        "output_tensor_metadata": [
            {
                "name": "probabilities",
                "description": "Score of each class, in [0, 1].",
                "content": {"properties": ("FeatureProperties", {})},
                "stats": {"max": [1.0], "min": [0.0]},
                "associated_files": [entries[LABELS_FILE]] if LABELS_FILE in entries else [],
            }
        ],
    }
    return {
        "name": name,
        "description": description,
        "version": version,
        "subgraph_metadata": [subgraph],
        "associated_files": [entries[RULE_FILE]] if RULE_FILE in entries else [],
        "min_parser_version": PARSER_VERSION,
    }


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    kind: str
    slot: int


def _fields(table: str) -> list[_Field]:
    fields, slot = [], 0
    for name, kind in _SCHEMA[table]:
        fields.append(_Field(name, kind, slot))
        slot += 2 if kind.startswith("?") else 1
    return fields


def _pack(value: Mapping[str, Any]) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, "ModelMetadata", value), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _write(builder, table: str, value: Mapping[str, Any]) -> int:
    """Writes a table; what it refers to has to be written before."""
    offsets = {
        field.slot: _write_field(builder, field.kind, value[field.name])
        for field in _fields(table)
        if value.get(field.name) not in (None, "", []) and field.kind not in _NUMBERS
    }
    builder.StartObject(sum(2 if kind.startswith("?") else 1 for _, kind in _SCHEMA[table]))
    for field in _fields(table):
        if field.slot in offsets:
            slot = field.slot
            if field.kind.startswith("?"):
                number = field.kind[1:].split(",").index(value[field.name][0]) + 1
                builder.PrependUint8Slot(slot, number, 0)
                slot += 1
            builder.PrependUOffsetTRelativeSlot(slot, offsets[field.slot], 0)
        elif field.kind == "byte":
            builder.PrependInt8Slot(field.slot, value.get(field.name, 0), 0)
        elif field.kind == "uint":
            builder.PrependUint32Slot(field.slot, value.get(field.name, 0), 0)
    return builder.EndObject()


def _write_field(builder, kind: str, value) -> int:
    if kind == "string":
        return builder.CreateString(value)
    if kind == "[float]":
        return builder.CreateNumpyVector(np.asarray(value, np.float32))
    if kind.startswith("?"):
        return _write(builder, *value)
    if kind.startswith("["):
        items = [_write_field(builder, kind[1:-1], item) for item in value]
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()
    return _write(builder, kind, value)


def _unpack(name: str, table: Table) -> dict[str, Any]:
    value = {}
    for field in _fields(name):
        slot, kind = field.slot, field.kind
        if kind.startswith("?"):
            known = kind[1:].split(",")
            number = table.GetSlot(4 + 2 * slot, 0, number_types.Uint8Flags)
            if not 1 <= number <= len(known):
                continue
            kind, slot = known[number - 1], slot + 1
        offset = table.Offset(4 + 2 * slot)
        if offset:
            value[field.name] = _unpack_field(kind, table, table.Pos + offset)
    return value


def _unpack_field(kind: str, table: Table, position: int):
    if kind in _NUMBERS:
        return table.Get(_NUMBERS[kind], position)
    if kind == "string":
        return table.String(position).decode()
    if not kind.startswith("["):
        return _unpack(kind, Table(table.Bytes, table.Indirect(position)))
    start = table.Vector(position - table.Pos)
    count = table.VectorLen(position - table.Pos)
    if kind == "[float]":
        return np.frombuffer(table.Bytes, np.float32, count, start).tolist()
    return [_unpack_field(kind[1:-1], table, start + 4 * index) for index in range(count)]
