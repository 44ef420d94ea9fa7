"""What stands in the way of the EdgeTPU compiler: named with operation, layer and remedy."""

import keras
import numpy as np
import pytest

from efficientnet_tf.export import edgetpu, tflite

PICTURES = np.random.default_rng(0).uniform(0, 255, (12, 8, 8, 3))


@pytest.fixture(scope="module")
def model():
    """A convolution, an operation that the EdgeTPU does not have, and a dense layer per pixel."""
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, dilation_rate=2, name="first")(images)
    x = keras.layers.Activation("hard_silu", name="gate")(x)
    x = keras.layers.Conv2D(3, 1, name="second")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, keras.layers.Dense(2, activation="softmax", name="end")(x))


def _check(model, folder, **options):
    if options.get("kind") == "int8":
        options["calibration"] = lambda: [PICTURES]
    tflite.write(model, folder / "model.tflite", **options)
    return edgetpu.check((folder / "model.tflite").read_bytes())


def test_an_operation_that_it_does_not_have(model, tmp_path):
    (finding,) = _check(model, tmp_path, kind="int8", output="uint8", batch=1)
    assert finding.op == "HARD_SWISH"
    assert finding.layer.split("/")[0] in ("gate", "first")
    assert (finding.count, finding.blocks) == (1, False)
    assert str(finding).startswith(f"HARD_SWISH ({finding.layer}): the EdgeTPU does not have this")
    assert "It runs on the processor" in str(finding)
    assert 'activation="relu6"' in str(finding)


def test_float_ends(model, tmp_path):
    findings = _check(model, tmp_path, kind="int8", io="float32", batch=1)
    assert [f.op for f in findings] == ["QUANTIZE", "HARD_SWISH", "DEQUANTIZE", "SOFTMAX"]
    assert not any(finding.blocks for finding in findings)
    first, _, dequantize, softmax = findings
    assert 'io="uint8"' in first.remedy
    assert dequantize.layer == "logits"
    assert 'output="uint8"' in dequantize.remedy
    assert 'output="uint8"' in softmax.remedy


def test_several_pictures_at_a_time(model, tmp_path):
    findings = _check(model, tmp_path, kind="int8", output="uint8", batch=3)
    maps = next(f for f in findings if f.op == "CONV_2D")
    assert "a dimension above 1 before the last three" in maps.problem
    assert (maps.count, maps.blocks, maps.remedy) == (2, True, "Export with batch=1.")
    assert any("its output must have one dimension" in f.problem for f in findings)
    (first, *_) = findings = _check(model, tmp_path, kind="int8", output="uint8")
    assert (first.op, first.layer, first.blocks) == ("INPUT", "images", True)
    assert "its size (any, 8, 8, 3) is not constant" in first.problem
    assert "CONV_2D" not in [finding.op for finding in findings]


def test_float_models(model, tmp_path):
    findings = {finding.op: finding for finding in _check(model, tmp_path, batch=1)}
    convolution = findings["CONV_2D"]
    assert convolution.layer.startswith("first/")
    assert (convolution.count, convolution.blocks) == (2, True)
    assert convolution.problem == "its tensors are FLOAT32, not of 8 bits"
    assert convolution.remedy == 'Export with kind="int8".'
    assert "and 1 more" in str(convolution)
    assert "The compiler refuses the file" in str(convolution)


def test_a_softmax_over_too_many_classes(tmp_path):
    images = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    model = keras.Model(images, keras.layers.Dense(16_001, activation="softmax")(x))
    (finding,) = _check(model, tmp_path, kind="int8", output="uint8", batch=1)
    assert finding.op == "SOFTMAX"
    assert "16,001 elements are more than the 16,000" in finding.problem


def test_other_files_are_refused():
    with pytest.raises(ValueError, match=r"Not a TFLite file"):
        edgetpu.check(b"something else")
