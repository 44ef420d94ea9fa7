"""TFLite files as objects: read, change, write.

A TFLite file is a flatbuffer, which may be followed by a zip archive of associated files. The
classes are those that TensorFlow generates from its schema.
"""

import os
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np

IDENTIFIER = b"TFL3"
LARGEST = 2**31 - 1  # bytes: places in a flatbuffer are numbers of 32 bits
_ALIGNMENT = 16  # bytes, of every buffer; schema.fbs: `data:[ubyte] (force_align: 16)`


def schema():
    """TensorFlow's generated module of the TFLite schema."""
    from tensorflow.lite.python import schema_py_generated

    return schema_py_generated


def read(content: bytes):
    """Reads a file into a `ModelT`, whose fields can be changed.

    Args:
        content: of the file; an archive behind the flatbuffer is left out.

    Raises:
        ValueError: this is no TFLite file.
    """
    if content[4:8] != IDENTIFIER:
        raise ValueError(
            "Not a TFLite file: bytes 4 to 8 must be b'TFL3'. Received:"
            f" {len(content):,} bytes with {bytes(content[4:8])!r}"
        )
    names = schema()
    model = names.ModelT.InitFromObj(names.Model.GetRootAsModel(content, 0))
    for buffer in model.buffers or ():
        if buffer.offset > 1:  # behind the flatbuffer, where the converter puts them near 2 GiB
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def dump(model) -> bytes:
    """Writes a `ModelT` as a flatbuffer."""
    return bytes(_packed(model))


def write(model, path: str | os.PathLike) -> None:
    """Writes a `ModelT` as a file, with one copy less of it in memory."""
    Path(path).write_bytes(_packed(model))


def text(value: bytes | str | None) -> str:
    """A string field, which the generated classes give as bytes."""
    return value.decode() if isinstance(value, bytes) else value or ""


def _packed(model) -> memoryview:
    parts = sum(len(graph.tensors) + len(graph.operators) for graph in model.subgraphs)
    # A builder that has to grow copies what it has.
    room = 2**16 + 2**12 * parts + sum(_size(buffer) + 64 for buffer in model.buffers)
    builder = _AlignedBuilder(min(room, LARGEST))
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return memoryview(builder.Bytes)[builder.Head() :]


def _size(buffer) -> int:
    return 0 if buffer.data is None else len(buffer.data)


class _AlignedBuilder(flatbuffers.Builder):
    """Aligns arrays as the schema asks for, which generated Python code does not.

    Kernels read weights in place; an unaligned buffer is slower, or is copied when it is loaded.
    """

    def CreateNumpyVector(self, x: np.ndarray) -> Any:
        self.Prep(_ALIGNMENT, x.nbytes)
        return super().CreateNumpyVector(x)
