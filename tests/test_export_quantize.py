"""Ranges: measured right, taken over by the int8 file, and what they are worth on a trained net."""

import dataclasses

import keras
import numpy as np
import pytest
import tiny_digits
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from efficientnet_tf.export import graph, points, quantize, tflite
from efficientnet_tf.models.layers import Activation

BIN = 4 / 2**15  # of the largest value: how exact a quantile is promised to be


@pytest.fixture(scope="module")
def swish():
    """A trained net with swish and squeeze-excite, taken apart."""
    return graph.parts(tiny_digits.trained("silu", True))


@pytest.fixture(scope="module")
def calibration():
    """200 digits in batches of 50."""
    pictures, _ = tiny_digits.digits()
    return [pictures[i : i + 50] for i in range(0, 200, 50)]


@pytest.fixture(scope="module")
def ranges(swish, calibration):
    return quantize.ranges(swish.model, calibration)


@pytest.mark.parametrize("percentile", [50.5, 99, 99.9, 99.99])
def test_histograms_have_numpys_quantiles_whatever_comes_first(percentile):
    random = np.random.default_rng(0)
    batches = [
        scale * random.standard_t(3, 40_000).astype(np.float32) + shift
        for scale, shift in ((0.01, 0), (1, 0.5), (30, -4), (1, 0), (3, 2))
    ]
    histogram = quantize.Histogram()
    for values in batches:
        counts, radius, low, high = (part.numpy() for part in quantize._count(values))
        assert counts.sum() == len(values)
        assert np.abs(values).max() < radius <= 2 * np.abs(values).max()
        histogram.add(float(radius), counts, float(low), float(high))
    everything = np.concatenate(batches)
    assert histogram.counts.sum() == len(everything)
    assert (histogram.low, histogram.high) == (everything.min(), everything.max())
    for share in (percentile / 100, 1 - percentile / 100):
        expected = np.quantile(everything.astype(np.float64), share)
        # One value more or less beyond the quantile: numpy interpolates between two values.
        rank = int(share * (len(everything) - 1))
        gap = np.ptp(np.sort(everything)[max(rank - 1, 0) : rank + 3])
        error = abs(histogram.quantile(share) - expected)
        assert error <= BIN * np.abs(everything).max() + gap


def test_histograms_of_zeros_and_of_one_value():
    histogram = quantize.Histogram()
    for values in (np.zeros(5, np.float32), np.full(5, 4, np.float32)):
        counts, radius, low, high = (part.numpy() for part in quantize._count(values))
        histogram.add(float(radius), counts, float(low), float(high))
    assert histogram.radius == 8
    assert histogram.quantile(0) == pytest.approx(0, abs=8 * BIN)
    assert histogram.quantile(1) == 4


def test_ranges_are_those_of_the_layers_values(swish, calibration, ranges):
    model = swish.model
    pictures = np.concatenate(calibration)
    for name in ("stem_conv", "block1a_activation", "block2b_add", "avg_pool", "predictions"):
        values = keras.Model(model.inputs, model.get_layer(name).output).predict(
            pictures, verbose=0
        )
        expected = np.quantile(values.astype(np.float64), [1e-4, 1 - 1e-4])
        expected = min(expected[0], 0), max(expected[1], 0)
        largest = float(np.abs(values).max())
        # Small tensors have few values beyond the percentile, with gaps between them.
        tolerance = BIN * largest + (0.1 * largest if values.size < 1e5 else 0.002 * largest)
        assert ranges[name] == pytest.approx(expected, abs=tolerance)
    assert ranges["images"] == (0, 255)
    # Inside the squeeze-excite layers: before their activations.
    layer = model.get_layer("block1a_se_reduce")
    inputs = keras.Model(model.inputs, layer.input).predict(pictures, verbose=0)
    kernel, bias = layer.get_weights()
    values = inputs @ kernel[0, 0] + bias
    found = quantize.ranges(model, calibration, percentile=100)
    expected = (min(values.min(), 0), max(values.max(), 0))
    assert found["block1a_se_reduce"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    values = values / (1 + np.exp(-values))
    expected = (min(values.min(), 0), max(values.max(), 0))
    assert found["block1a_se_reduce_silu"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_points_are_the_tensors_that_the_file_holds():
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Rescaling([1 / 255, 1 / 127, 1 / 200], -0.5, name="scale")(images)
    x = keras.layers.Conv2D(4, 3, name="fused_away")(x)
    x = keras.layers.ReLU(6, name="relu6")(x)
    x = keras.layers.Conv2D(4, 1, activation="relu", name="with_relu")(x)
    y = keras.layers.Conv2D(4, 1, name="read_twice")(x)
    z = keras.layers.Activation("relu", name="relu")(y)
    x = keras.layers.Add(name="sum")([y, z])
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.LeakyReLU(name="leaky")(x)
    x = keras.layers.Conv2D(4, 1, activation="gelu", name="with_gelu")(x)
    x = keras.layers.Conv2D(4, 1, activation="sigmoid", name="gate")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    x = keras.layers.Dense(3, activation="softmax", name="head")(x)
    model = keras.Model(images, x)
    assert points.names(model) == (
        "images", "scale", "relu6", "with_relu", "read_twice", "relu", "sum", "leaky", "with_gelu",
        "with_gelu_gelu", "gate", "mean", "head",
    )  # fmt: skip
    pictures = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    same = points.insert(model, lambda name, tensor: tensor)
    np.testing.assert_allclose(same(pictures), model(pictures), rtol=1e-5, atol=1e-6)


def test_normalization_by_constants_stays_what_it_is():
    images = keras.Input((8, 8, 3), name="images")
    layer = keras.layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 9.0, 0.25])
    model = keras.Model(images, keras.layers.Flatten()(layer(images)))
    copy = points.insert(model, lambda name, tensor: tensor)
    assert isinstance(copy.layers[1], keras.layers.DepthwiseConv2D)
    pictures = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    expected = (pictures - [1, 2, 3]) / [2, 3, 0.5]
    np.testing.assert_allclose(copy(pictures), expected.reshape(2, -1), rtol=1e-5, atol=1e-4)


def test_fake_quantisation_rounds_as_256_steps_do():
    layer = quantize.FakeQuant(-1.3, 2.7)
    values = np.linspace(-3, 4, 1001, dtype=np.float32)
    step = 4 / 255
    zero = np.round(1.3 / step)  # the bounds move so that 0 is one of the values
    expected = (np.clip(np.round(values / step), -zero, 255 - zero)) * step
    np.testing.assert_allclose(layer(values), expected, atol=1e-6)
    again = quantize.FakeQuant.from_config(layer.get_config())
    np.testing.assert_array_equal(again(values), layer(values))
    for low, high in ((0.5, 1), (-2, -1), (0, 0), (-np.inf, 1), (0, np.nan)):
        with pytest.raises(ValueError, match=r"low <= 0 <= high"):
            quantize.FakeQuant(low, high)


def test_wrong_ranges_and_pictures_are_refused(swish, calibration, ranges):
    short = {name: bounds for name, bounds in ranges.items() if name != "stem_conv"}
    with pytest.raises(ValueError, match=r"1 are missing, such as 'stem_conv'"):
        quantize.with_fake_quant(swish.model, short)
    with pytest.raises(ValueError, match=r"no pictures to calibrate"):
        quantize.ranges(swish.model, [])
    with pytest.raises(ValueError, match=r"must lie in \[0\.0, 255\.0\]. Received: \[-1\.0, "):
        quantize.ranges(swish.model, [calibration[0][:2] - 1])
    with pytest.raises(ValueError, match=r"percentile must be in"):
        quantize.ranges(swish.model, calibration, percentile=0.9999)
    with pytest.raises(ValueError, match=r"layer 'images' holds values that are not finite"):
        quantize.ranges(swish.model, [np.full((1, 32, 32, 3), np.nan, np.float32)])
    own = quantize.ranges(swish.model, [calibration[0][:2] / 2 - 50], pixels=None)
    assert own["images"] == pytest.approx((-50, calibration[0][:2].max() / 2 - 50))


def test_the_int8_file_has_these_ranges_and_one_partition(swish, ranges, tmp_path):
    """Scales and zero points are in the file; nothing but input and output is converted."""
    path = tmp_path / "model.tflite"
    model = quantize.with_fake_quant(swish.model, ranges)
    tflite.write(dataclasses.replace(swish, model=model), path, kind="int8", batch=1)
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (subgraph,) = file.subgraphs
    codes = [c.builtinCode for c in file.operatorCodes]
    kinds = [codes[operator.opcodeIndex] for operator in subgraph.operators]
    builtin = schema.BuiltinOperator
    # uint8 pixels to int8, and int8 logits to float for the softmax.
    assert kinds.count(builtin.QUANTIZE) == kinds.count(builtin.DEQUANTIZE) == 1
    assert kinds.index(builtin.QUANTIZE) == 0
    assert set(kinds[-2:]) == {builtin.DEQUANTIZE, builtin.SOFTMAX}
    scales = {
        float(t.quantization.scale[0])
        for t in subgraph.tensors
        if t.type == schema.TensorType.INT8 and t.quantization.scale is not None
    }
    for name, (low, high) in ranges.items():
        assert min(abs(scale / ((high - low) / 255) - 1) for scale in scales) < 1e-4, name
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    names = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert names.count("DELEGATE") == 1


def _agreement(parts: graph.Parts, reference: keras.Model, path, calibration) -> float:
    """Share of 400 unseen digits whose class an int8 file keeps."""
    simulated = any(isinstance(layer, quantize.FakeQuant) for layer in parts.model.layers)
    given = None if simulated else lambda: calibration
    tflite.write(parts, path, kind="int8", io="float32", calibration=given)
    pictures = tiny_digits.digits()[0][-400:]
    run = Interpreter(str(path)).get_signature_runner("serving_default")
    answers = run(images=pictures)["probabilities"]
    expected = reference.predict(pictures, verbose=0)["probabilities"]
    return float((answers.argmax(-1) == expected.argmax(-1)).mean())


def test_percentiles_save_a_network_with_rare_large_values(calibration, tmp_path):
    """One channel speaks rarely and loudly; what it says counts as little as before."""
    parts = graph.parts(tiny_digits.trained("relu", False))
    tiny_digits.make_rare(parts.model, "block1a_expand_conv", "block1a_dwconv", channel=0)
    plain = _agreement(parts, parts.model, tmp_path / "plain.tflite", calibration)
    bounds = quantize.ranges(parts.model, calibration)
    clipped = dataclasses.replace(parts, model=quantize.with_fake_quant(parts.model, bounds))
    saved = _agreement(clipped, parts.model, tmp_path / "clipped.tflite", calibration)
    assert plain < 0.9
    assert saved > 0.97


def test_activations_in_front_of_outputs_keep_their_points():
    """An output is read by the caller, not only by the ReLU behind it."""
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.Conv2D(4, 3, name="conv")(images)
    y = Activation("relu", name="relu")(x)
    assert points.names(keras.Model(images, y)) == ("images", "relu")
    assert points.names(keras.Model(images, {"x": x, "y": y})) == ("images", "conv", "relu")
