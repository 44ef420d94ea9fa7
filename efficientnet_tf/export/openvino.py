"""OpenVINO's own files, which its runtimes on Intel processors open without a conversion."""

from __future__ import annotations

import os
import shutil
import tempfile

from efficientnet_tf import writing
from efficientnet_tf.export import onnx
from efficientnet_tf.export.graph import INPUT, Parts

MODEL = "model.xml"  # the weights are in model.bin beside it


def write(parts: Parts, folder: str | os.PathLike) -> None:
    """Writes a classifier as `model.xml` and `model.bin`.

    It takes `images`, float32 (batch, height, width, 3) as `parts.model` does, and gives
    `probabilities` and `logits`, float32 (batch, classes). The batch is free, and so are height and
    width unless a layer of the network needs its own size.

    The weights are float32. OpenVINO computes in bfloat16 on processors that can, and its answers
    then differ by 0.3 % (B0) to 6 % (Lite0) from the model's; to get those exactly:

        core.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    Args:
        parts: from `graph.parts`.
        folder: does not exist yet; it appears whole or not at all.

    Raises:
        ImportError: openvino is not installed.
        FileExistsError: `folder` exists.
    """
    openvino = _package()
    folder = os.fspath(folder)
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists already. Give a new folder.")
    parent = os.path.dirname(folder) or "."
    os.makedirs(parent, exist_ok=True)
    aside = tempfile.mkdtemp(prefix=writing.ASIDE, dir=parent)
    try:
        source, target = os.path.join(aside, "frozen.pb"), os.path.join(aside, "files")
        with open(source, "wb") as file:
            file.write(onnx.traced(parts)[0].graph.as_graph_def().SerializeToString())
        # Not openvino.convert_model: that one reports its use over the network.
        model = openvino.Core().read_model(source)
        _rename(model, parts.model.name)
        openvino.save_model(model, os.path.join(target, MODEL), compress_to_fp16=False)
        os.rename(target, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _package():
    try:
        import openvino
    except ImportError as error:
        raise ImportError(
            f"OpenVINO files are written with the package openvino ({error}). Install it:"
            ' pip install "efficientnet_tf[openvino]"'
        ) from error
    return openvino


def _rename(model, name: str) -> None:
    """Gives the input and the outputs their names, and nodes inside new numbers.

    Both TensorFlow and OpenVINO number on through the life of a process, and two files would never
    be the same.
    """
    model.set_friendly_name(name)
    for index, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{index}")
        for port in node.outputs():
            port.get_tensor().set_names(set())
    for port, name in zip((*model.inputs, *model.outputs), (INPUT, *onnx.OUTPUTS), strict=True):
        port.get_tensor().set_names({name})
    model.inputs[0].get_node().set_friendly_name(INPUT)
