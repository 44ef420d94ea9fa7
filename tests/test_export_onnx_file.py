"""ONNX files whose weights are kept out of the conversion: the same network, in less memory."""

import dataclasses
import json

import exporting
import keras
import numpy as np
import pytest

from efficientnet_tf.arch.scaling import find
from efficientnet_tf.export import artifacts, formats, graph, hollow, onnx, onnx_file
from efficientnet_tf.export import tflite as tflite_lib
from efficientnet_tf.models.efficientnet import build

package = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")


@pytest.fixture(scope="module", params=["efficientnet-b0", "efficientnetv2-b0"])
def narrow(request):
    """Depthwise and full convolutions, squeeze-excite, and a dense layer."""
    keras.utils.set_random_seed(7)
    variant = dataclasses.replace(find(request.param), name="narrow", width=0.25, depth=0.1)
    model = build(variant, classes=7, input_shape=(None, None, 3))
    return exporting.perturbed(model, 1)


def nodes_and_values(path):
    """What a file computes: its nodes in order, and its constants by name."""
    model = package.load(path)
    nodes = [node.SerializeToString(deterministic=True) for node in model.graph.node]
    values = {t.name: package.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert not [v.name for v in model.graph.input if v.name != "images"]
    return nodes, values


def session(path):
    runtime = pytest.importorskip("onnxruntime")
    opened = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: opened.run(["probabilities"], {"images": images})[0]


def test_weights_put_in_last_are_those_that_are_converted(narrow, tmp_path, monkeypatch):
    """Whether tf2onnx transposes a kernel or it is done when the file is written."""
    parts = graph.parts(narrow)
    monkeypatch.setattr(hollow, "LARGE", 10**9)
    onnx.write(parts, tmp_path / "converted.onnx")
    monkeypatch.setattr(hollow, "LARGE", 100)
    onnx.write(parts, tmp_path / "last.onnx")
    nodes, values = nodes_and_values(tmp_path / "converted.onnx")
    last_nodes, last_values = nodes_and_values(tmp_path / "last.onnx")
    assert last_nodes == nodes
    assert last_values.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(last_values[name], value, err_msg=name)
    kernels = [value for value in values.values() if value.size >= 100 and value.ndim == 4]
    assert len(kernels) > 10


def test_with_batch_normalization_behind_them(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(hollow, "LARGE", 100)
    onnx.write(graph.parts(narrow, fold=False), tmp_path / "model.onnx")
    images = exporting.prepared(3)
    answers = session(tmp_path / "model.onnx")(images)
    np.testing.assert_allclose(answers, narrow(images).numpy(), atol=1e-5)


def test_weights_of_a_large_file_are_beside_it(narrow, tmp_path, monkeypatch):
    parts = graph.parts(narrow)
    monkeypatch.setattr(hollow, "LARGE", 100)
    onnx.write(parts, tmp_path / "one.onnx")
    monkeypatch.setattr(onnx_file, "LARGEST", 100_000)
    onnx.write(parts, tmp_path / "two.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    data = tmp_path / "two.onnx.data"
    assert (tmp_path / "two.onnx").stat().st_size < 100_000 < data.stat().st_size
    package.checker.check_model(str(tmp_path / "two.onnx"), full_check=True)
    found = [nodes_and_values(tmp_path / name) for name in ("one.onnx", "two.onnx")]
    np.testing.assert_equal(found[1], found[0])
    images = exporting.prepared(3)
    answers = [session(tmp_path / name)(images) for name in ("one.onnx", "two.onnx")]
    np.testing.assert_array_equal(answers[1], answers[0])
    np.testing.assert_allclose(answers[0], narrow(images).numpy(), atol=1e-5)


def test_a_hollow_copy_has_no_weights_and_leaves_none_for_later(narrow):
    """Keras gives variables of other scopes their values when the next layer is made."""
    model = graph.parts(narrow).model
    copied = hollow.copy(model, lambda layer: type(layer).from_config(layer.get_config()))
    keras.layers.Dense(3)(keras.Input((2,)))
    assert [w.shape for w in copied.weights] == [w.shape for w in model.weights]
    assert all(w._value is None for w in copied.weights)


def test_both_files_are_put_in_place_and_named_in_the_manifest(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(hollow, "LARGE", 100)
    monkeypatch.setattr(onnx_file, "LARGEST", 2000)

    def export():
        given = exporting.classifier(exporting.network())
        pictures = exporting.pictures(count=4)
        artifacts.export(given, tmp_path, ["onnx"], pictures, origin=exporting.ORIGIN)
        manifest = json.loads((tmp_path / "model.onnx.manifest.json").read_text())
        named = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        found = exporting.hashes(tmp_path)
        assert sorted(found) == sorted([*named, "model.onnx.manifest.json", "report.json"])
        assert all(found[name] == sha256 for name, sha256 in named.items())
        return sorted(named)

    assert export() == ["model.onnx", "model.onnx.data"]
    monkeypatch.setattr(onnx_file, "LARGEST", 10**6)
    assert export() == ["model.onnx"]  # and the weights of the file before are gone


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tflite", {}),
        ("tflite-dynamic", {}),
        ("openvino", {}),
        ("saved_model", {"frozen": True}),
        ("saved_model", {"precision": "bfloat16"}),
    ],
)
def test_weights_beyond_two_gigabytes_are_refused_at_once(name, options, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 1000)

    def never(*args, **kwargs):
        raise AssertionError("it was begun")

    monkeypatch.setattr(artifacts, "Job", never)
    given = exporting.classifier(exporting.network())
    with pytest.raises(ValueError, match=rf"{name}.* is written from less than 2 GiB of weights"):
        artifacts.export(
            given,
            tmp_path / "to",
            [name],
            exporting.pictures(count=2),
            origin=exporting.ORIGIN,
            options=artifacts.Options(**options),
        )
    assert not (tmp_path / "to").exists()


def test_formats_that_hold_any_weights_are_not_refused(monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 1000)
    chosen = [formats.FORMATS[name] for name in ("saved_model", "onnx", "keras")]
    formats.check_size(chosen, formats.Options(), exporting.network())


def test_a_tflite_file_is_converted_without_a_copy_of_the_weights(narrow, monkeypatch):
    """The variables that are written for the converter are the network's own."""
    model = graph.parts(narrow).model
    _, state = tflite_lib._plain(model)
    own = {id(weight) for weight in model.weights}
    assert {id(value) for _, value in state if isinstance(value, keras.Variable)} == own


@pytest.mark.parametrize(("size", "sizes"), [(48, [8, 3]), (320, [8, 3]), (600, [2] * 5 + [1])])
def test_large_pictures_come_in_small_batches(size, sizes):
    """A batch takes the memory of eight with 320 px, however large the pictures are."""
    rule = dataclasses.replace(exporting.RULE, size=size)
    batches = list(exporting.pictures(count=11).batches(rule))
    assert [len(batch.images) for batch in batches] == sizes
    assert sum((batch.names for batch in batches), ()) == tuple(f"picture {i}" for i in range(11))
