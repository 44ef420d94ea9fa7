"""ONNX and OpenVINO files: their own runtimes give Keras' answers, at every batch and size."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import preprocessing
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.export import graph, onnx, openvino
from efficientnet_tf.models.efficientnet import build

NAMES = ("ant", "bee", "café", "dog", "emu", "fox", "gnu")
FAMILIES = ("efficientnet-b0", "efficientnet-lite0", "efficientnet-edgetpu-s", "efficientnetv2-b0")
TOLERANCE = 1e-4  # of the logits' spread: what an export may differ


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the same weights without the last activation."""

    model: keras.Model
    raw: keras.Model
    parts: graph.Parts


def network(name: str, activation: str = "softmax") -> Network:
    """A narrow and shallow one for pictures of any size, with calibrated statistics."""
    keras.utils.set_random_seed(7)
    variant = dataclasses.replace(find(name), name="narrow", width=0.25, depth=0.1)
    arguments = {"classes": len(NAMES), "input_shape": (None, None, 3)}
    model = build(variant, classifier_activation=activation, **arguments)
    raw = build(variant, classifier_activation=None, **arguments)
    random = np.random.default_rng(8)
    for variable in model.variables:
        if variable.path.endswith("gamma"):
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
        elif variable.path.endswith(("beta", "bias")):
            variable.assign(random.uniform(-0.2, 0.2, variable.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.1
    for _ in range(4):
        model(pictures(8, 64, 64), training=True)
    raw.set_weights(model.get_weights())
    kernel = model.layers[-1].kernel
    kernel.assign(kernel * 2 / np.std(raw(pictures(8, 64, 64))))
    raw.set_weights(model.get_weights())
    return Network(model, raw, graph.parts(model))


def pictures(count: int, height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(count + height)
    coarse = random.uniform(0, 255, (count, 4, 4, 3))
    return tf.image.resize(coarse, (height, width)).numpy()


def check(answer, network: Network) -> None:
    """Compares a runtime with Keras on two batch sizes and two picture sizes."""
    for images in (pictures(1, 64, 64), pictures(3, 64, 64), pictures(2, 48, 80)):
        logits = network.raw(images).numpy()
        spread = np.ptp(logits)
        assert spread > 1
        answers = answer(images)
        np.testing.assert_allclose(answers["logits"], logits, rtol=0, atol=TOLERANCE * spread)
        expected = network.model(images).numpy()
        np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=TOLERANCE)


def onnx_runtime(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    assert names == ["probabilities", "logits"]
    return lambda images: dict(zip(names, session.run(None, {"images": images}), strict=True))


def openvino_runtime(folder):
    core = pytest.importorskip("openvino").Core()
    # Without the hint it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(folder / "model.xml", "CPU", settings)
    assert [port.get_names() for port in compiled.inputs] == [{"images"}]
    assert [port.get_names() for port in compiled.outputs] == [{"probabilities"}, {"logits"}]

    def answer(images):
        found = compiled({"images": images})
        return {name: found[name] for name in ("probabilities", "logits")}

    return answer


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return network(request.param)


@pytest.fixture(scope="module")
def rule():
    return preprocessing.v1_eval(64, labels=None)


@pytest.fixture(scope="module")
def written(family, rule, tmp_path_factory):
    pytest.importorskip("tf2onnx")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.write(family.parts, path, class_names=NAMES, rule=rule)
    return path


def test_onnx_runtime_gives_keras_answers(family, written):
    check(onnx_runtime(written), family)


def test_the_file_says_what_it_is(family, written, rule):
    import onnx as package

    model = package.load(written)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert tuple(properties["labels"]) == NAMES
    assert preprocessing.Preprocessing.from_dict(properties["preprocessing"]) == rule
    sides = {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    classes = ["batch", len(NAMES)]
    assert sides == {
        "images": ["batch", "height", "width", 3],
        "probabilities": classes,
        "logits": classes,
    }
    layers = {layer.name for layer in family.parts.model.layers} | {"images"}
    nodes = [node.name for node in model.graph.node]
    assert len(set(nodes)) == len(nodes)
    assert {name.split("/")[0] for name in nodes} <= layers
    tensors = {name for node in model.graph.node for name in (*node.input, *node.output)}
    assert not [name for name in tensors if name.split("/")[0] not in layers | set(sides)]


def test_pictures_are_normalised_and_averaged_in_channels_first_layout(written):
    """The same in channels-last layout costs ONNX Runtime 15 % of B0's time at 224 px."""
    import onnx as package

    nodes = package.load(written).graph.node
    assert [node.op_type for node in nodes[:4]] == ["Transpose", "Mul", "Add", "Conv"]
    kinds = [node.op_type for node in nodes]
    assert kinds.count("Transpose") == 1
    assert not {"ReduceMean", "Reshape"} & set(kinds)
    assert kinds.count("GlobalAveragePool") == 1 + sum("se_squeeze" in n.name for n in nodes)


def test_openvino_gives_keras_answers(family, tmp_path):
    pytest.importorskip("openvino")
    openvino.write(family.parts, tmp_path / "openvino")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model.bin", "model.xml", "openvino"]
    check(openvino_runtime(tmp_path / "openvino"), family)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    """Also from a file, in another process: with Keras' layers, other counters, other hashes."""
    pytest.importorskip("tf2onnx")
    pytest.importorskip("openvino")
    built = network("efficientnetv2-b0")
    built.model.save(tmp_path / "model.keras")
    code = """
import sys, keras
from efficientnet_tf.export import graph, onnx, openvino
parts = graph.parts(keras.saving.load_model(sys.argv[1]))
openvino.write(parts, sys.argv[2])
onnx.write(parts, sys.argv[2] + "/model.onnx", opset=17)
"""
    path = str(tmp_path / "model.keras")
    openvino.write(built.parts, tmp_path / "here")
    onnx.write(built.parts, tmp_path / "here" / "model.onnx", opset=17)
    subprocess.run(
        [sys.executable, "-c", code, path, str(tmp_path / "there")],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONHASHSEED": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    hashes = set()
    for name in ("here", "there"):
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == ["model.bin", "model.onnx", "model.xml"]
        hashes.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    assert len(hashes) == 1


def test_sigmoid_and_older_operators(tmp_path):
    pytest.importorskip("tf2onnx")
    several = network("efficientnet-b0", "sigmoid")
    onnx.write(several.parts, tmp_path / "model.onnx", opset=13)
    answers = onnx_runtime(tmp_path / "model.onnx")(pictures(3, 64, 64))
    expected = 1 / (1 + np.exp(-several.raw(pictures(3, 64, 64)).numpy()))
    np.testing.assert_allclose(answers["probabilities"], expected, atol=TOLERANCE)


def test_a_network_that_needs_its_size_keeps_it(tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("openvino")
    images = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, 2, activation="relu")(images)
    outputs = keras.layers.Dense(5, activation="softmax")(keras.layers.Flatten()(x))
    model = keras.Model(images, outputs)
    parts = graph.parts(model)
    onnx.write(parts, tmp_path / "model.onnx")
    openvino.write(parts, tmp_path / "openvino")
    batch = pictures(3, 16, 16) / 255
    for answer in (
        onnx_runtime(tmp_path / "model.onnx"),
        openvino_runtime(tmp_path / "openvino"),
    ):
        got = answer(batch)["probabilities"]
        np.testing.assert_allclose(got, model(batch).numpy(), atol=TOLERANCE)


@keras.saving.register_keras_serializable("test_export_onnx")
class Digamma(keras.layers.Layer):
    """An operation that ONNX does not have."""

    def call(self, inputs):
        return tf.math.digamma(inputs + 1.0)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    pytest.importorskip("tf2onnx")
    images = keras.Input((None, None, 3))
    x = Digamma()(keras.layers.GlobalAveragePooling2D()(images))
    parts = graph.parts(keras.Model(images, keras.layers.Dense(4, activation="softmax")(x)))
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"cannot be written as ONNX.* no operation for.* Digamma"):
        onnx.write(parts, path)
    with pytest.raises(ValueError, match=r"must name 4 classes. Received: 7 names"):
        onnx.write(parts, path, class_names=NAMES)
    for opset in (12, 19):
        with pytest.raises(
            ValueError, match=rf"opset must be in 13 to 18. Received: opset={opset}"
        ):
            onnx.write(parts, path, opset=opset)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match=r"there exists already"):
        openvino.write(parts, tmp_path / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("package", "write"),
    [("onnx", onnx.write), ("tf2onnx", onnx.write), ("openvino", openvino.write)],
)
def test_a_missing_package_is_named_with_its_remedy(package, write, tmp_path, monkeypatch):
    extra = package.removeprefix("tf2")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"{package}.*pip install \"efficientnet_tf\[{extra}\]\""
    ):
        write(None, tmp_path / "target")
    assert list(tmp_path.iterdir()) == []
