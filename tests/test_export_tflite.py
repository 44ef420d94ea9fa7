"""TFLite files: the operations, types and sizes they should have, and the model's answers."""

import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from efficientnet_tf.arch.scaling import find
from efficientnet_tf.export import edgetpu, graph, metadata, quantize, tflite, tflite_file
from efficientnet_tf.models.efficientnet import build

SIZE, CLASSES = 48, 7
FAMILIES = ("efficientnet-b0", "efficientnetv2-b0", "efficientnet-lite0", "efficientnet-edgetpu-s")
# What dynamic shapes and badly laid out layers leave behind, and what splits a graph.
UNWANTED = {"SHAPE", "STRIDED_SLICE", "PACK", "RESHAPE", "TRANSPOSE", "PAD", "GATHER"}
NAMES = tuple(f"class number {index}" for index in range(CLASSES))


def _network(name, stages=None, **options):
    """A family's blocks, one of each stage and narrow, with weights as spread as trained ones."""
    keras.utils.set_random_seed(7)
    variant = find(name)
    variant = dataclasses.replace(variant, width=0.25, depth=0.1, blocks=variant.blocks[:stages])
    model = build(variant, classes=CLASSES, input_shape=(SIZE, SIZE, 3), **options)
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
        if variable.path.endswith(("beta", "moving_mean", "bias")):
            variable.assign(random.uniform(-0.3, 0.3, variable.shape))
    head = model.layers[-1].kernel
    head.assign(random.normal(0, 0.5, head.shape))
    return model


def _pictures(count, seed=1):
    """Blotches of colour: pictures that differ, as noise does not."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (count, 6, 6, 3))
    return np.kron(coarse, np.ones((1, SIZE // 6, SIZE // 6, 1))).astype(np.float32)


CALIBRATION = [_pictures(8, seed) for seed in (2, 3)]


class _File:
    """A written file: its operations by themselves and as XNNPACK takes them, and its answers."""

    def __init__(self, path):
        self.content = path.read_bytes()
        self.model = tflite_file.read(self.content)
        self.names = [op.name for op in edgetpu._operations(self.model)]
        self.interpreter = Interpreter(model_content=self.content, num_threads=1)
        self.interpreter.allocate_tensors()
        self.input, self.output = (
            getattr(self.interpreter, f"get_{end}_details")()[0] for end in ("input", "output")
        )

    def tensors(self):
        return [t for op in edgetpu._operations(self.model) for t in (*op.inputs, *op.outputs)]

    def partitions(self):
        """How many pieces XNNPACK takes, and what it leaves to others."""
        operations = self.interpreter._get_ops_details()
        taken = {int(t) for o in operations if o["op_name"] == "DELEGATE" for t in o["outputs"]}
        inner = set()
        for operation in reversed(operations):  # what a taken tensor is computed from is taken too
            if operation["op_name"] != "DELEGATE" and {int(t) for t in operation["outputs"]} & (
                taken | inner
            ):
                inner |= {int(t) for t in operation["inputs"]}
        left = [
            operation["op_name"]
            for operation in operations
            if operation["op_name"] != "DELEGATE"
            and not {int(t) for t in operation["outputs"]} & (taken | inner)
        ]
        return sum(o["op_name"] == "DELEGATE" for o in operations), left

    def __call__(self, images):
        self.interpreter.resize_tensor_input(self.input["index"], images.shape, strict=True)
        self.interpreter.allocate_tensors()
        self.interpreter.set_tensor(self.input["index"], images.astype(self.input["dtype"]))
        self.interpreter.invoke()
        return self.interpreter.get_tensor(self.output["index"])


@pytest.fixture(scope="module")
def model():
    return _network("efficientnet-b0", stages=3)


@pytest.fixture(scope="module")
def parts(model):
    return graph.parts(model)


@pytest.fixture(scope="module")
def float32(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("float32") / "model.tflite"
    tflite.write(parts, path, class_names=NAMES)
    return _File(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_one_partition_with_any_batch_size(family, tmp_path):
    model = _network(family)
    tflite.write(graph.parts(model), tmp_path / "model.tflite")
    file = _File(tmp_path / "model.tflite")
    assert not UNWANTED & set(file.names)
    assert file.input["shape_signature"].tolist() == [-1, SIZE, SIZE, 3]
    for count in (1, 5, 2):
        images = _pictures(count, seed=count)
        answers = file(images)
        np.testing.assert_allclose(answers, model(images).numpy(), atol=2e-6)
        assert file.partitions() == (1, [])


def test_names_are_those_of_the_model(float32, model):
    assert float32.interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}
    }
    assert float32.input["name"] == "images"
    assert float32.output["name"] == "probabilities"
    layers = {layer.name for layer in model.layers}
    computed = [tflite_file.text(t.name) for t in float32.tensors() if t.shape is not None]
    named = [name for name in computed if name.split("/")[0] in layers]
    assert len(named) > 0.8 * len(computed)
    assert "stem_conv/BiasAdd" in named
    value, labels = metadata.read(float32.content)
    assert labels == NAMES
    assert value["name"] == model.name
    runner = float32.interpreter.get_signature_runner("serving_default")
    images = _pictures(3)
    np.testing.assert_allclose(
        runner(images=images)["probabilities"], model(images).numpy(), atol=2e-6
    )


def test_weights_are_aligned_for_kernels_that_read_them_in_place(float32):
    array = np.frombuffer(float32.content, np.uint8)
    buffers = [b.data for b in float32.model.buffers if b.data is not None]
    assert len(buffers) > 20
    for data in buffers:
        start = data.__array_interface__["data"][0] - array.__array_interface__["data"][0]
        assert start % 16 == 0


def test_half_floats_save_half_of_the_weights(parts, model, float32, tmp_path):
    tflite.write(parts, tmp_path / "model.tflite", kind="float16", class_names=NAMES)
    file = _File(tmp_path / "model.tflite")
    saved = len(float32.content) - len(file.content)
    weights = 4 * parts.model.count_params()
    assert 0.45 * weights - 10_000 < saved < 0.5 * weights  # less what names the conversions
    images = _pictures(6)
    np.testing.assert_allclose(file(images), model(images).numpy(), atol=2e-3)
    assert file.partitions() == (1, [])


@pytest.mark.parametrize("fold", [True, False])
def test_dynamic_range_leaves_depthwise_kernels_in_float(fold, model, float32, tmp_path):
    parts = graph.parts(model, fold=fold)
    tflite.write(parts, tmp_path / "model.tflite", kind="dynamic", class_names=NAMES)
    file = _File(tmp_path / "model.tflite")
    types = tflite_file.schema().TensorType
    kinds = {"CONV_2D": set(), "DEPTHWISE_CONV_2D": set()}
    exact = {layer.name: layer.get_weights() for layer in parts.model.layers}
    for op in edgetpu._operations(file.model):
        if op.name in kinds:
            kinds[op.name].add(op.inputs[1].type)
        name = tflite_file.text(op.inputs[1].name).split("/")[0] if len(op.inputs) > 1 else ""
        if fold and op.name == "DEPTHWISE_CONV_2D" and name != "rescaling":
            kernel = file.model.buffers[op.inputs[1].buffer].data.view(np.float32)
            assert np.array_equal(kernel, exact[name][0].ravel())
    assert types.INT8 in kinds["CONV_2D"]
    assert kinds["DEPTHWISE_CONV_2D"] == {types.FLOAT32}
    kernels = [layer.kernel.shape for layer in parts.model.layers if hasattr(layer, "kernel")]
    depthwise = [shape for shape in kernels if len(shape) == 4 and shape[3] == 1]
    assert max(map(np.prod, depthwise)) >= 1024
    # TFLite leaves kernels below 1024 numbers as they are.
    large = sum(np.prod(s) for s in kernels if s not in depthwise and np.prod(s) >= 1024)
    assert len(float32.content) - len(file.content) > 0.75 * 3 * large  # less scales
    images = _pictures(6)
    answers, expected = file(images), model(images).numpy()
    np.testing.assert_allclose(answers, expected, atol=0.05)
    assert (answers.argmax(-1) == expected.argmax(-1)).all()
    assert file.partitions() == (1, [])


@pytest.fixture(scope="module")
def int8(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.tflite"
    tflite.write(parts, path, kind="int8", calibration=lambda: CALIBRATION, class_names=NAMES)
    return _File(path)


def test_int8_computes_in_8_bits_from_pixels_to_logits(int8, model):
    types = tflite_file.schema().TensorType
    *inner, dequantize, softmax = edgetpu._operations(int8.model)
    assert [dequantize.name, softmax.name] == ["DEQUANTIZE", "SOFTMAX"]
    assert inner[0].name == "QUANTIZE"  # uint8 to int8, the same numbers less 128
    assert inner[0].inputs[0].type == types.UINT8
    assert inner[0].outputs[0].quantization.scale.tolist() == [1.0]
    assert inner[0].outputs[0].quantization.zeroPoint.tolist() == [-128]
    assert inner[1].name == "DEPTHWISE_CONV_2D"  # the normalisation
    assert "QUANTIZE" not in [op.name for op in inner[1:]]
    for op in inner:
        assert op.outputs[0].type == types.INT8, op.name
    assert int8.input["dtype"] is np.uint8
    assert int8.input["quantization"] == (1.0, 0)
    assert int8.output["dtype"] is np.float32
    images = _pictures(12, seed=4).round()
    answers, expected = int8(images), model(images).numpy()
    assert int8.partitions() == (1, [])
    np.testing.assert_allclose(answers.sum(-1), 1.0, atol=1e-5)
    logits = np.log(answers) - np.log(answers).mean(-1, keepdims=True)
    wanted = np.log(expected) - np.log(expected).mean(-1, keepdims=True)
    assert np.abs(logits - wanted).max() < 0.15 * np.ptp(wanted)
    sure = np.sort(expected)[:, -1] - np.sort(expected)[:, -2] > 0.2
    assert sure.sum() >= 4
    assert (answers.argmax(-1) == expected.argmax(-1))[sure].all()


def test_int8_takes_floats_where_asked(parts, int8, tmp_path):
    tflite.write(
        parts,
        tmp_path / "model.tflite",
        kind="int8",
        calibration=lambda: CALIBRATION,
        io="float32",
    )
    file = _File(tmp_path / "model.tflite")
    assert file.input["dtype"] is np.float32
    images = _pictures(4, seed=5).round()
    np.testing.assert_allclose(file(images), int8(images), atol=1e-6)


def test_int8_for_the_edge_tpu(tmp_path):
    parts = graph.parts(_network("efficientnet-edgetpu-s", stages=4))
    tflite.write(
        parts,
        tmp_path / "model.tflite",
        kind="int8",
        calibration=lambda: CALIBRATION,
        output="uint8",
        batch=1,
    )
    file = _File(tmp_path / "model.tflite")
    assert edgetpu.check(file.content) == ()
    assert file.input["shape_signature"].tolist() == [1, SIZE, SIZE, 3]
    assert file.output["dtype"] is np.uint8
    assert file.output["quantization"] == (1 / 256, 0)
    image = _pictures(1, seed=6).round()
    expected = parts.model(image)["probabilities"].numpy()
    np.testing.assert_allclose(file(image) / 256, expected, atol=0.1)


def test_fake_quantisation_sets_the_ranges_of_the_file(parts, tmp_path):
    ranges = dict(quantize.ranges(parts.model, CALIBRATION))
    ranges["top_activation"] = (-1.0, 6.5)
    simulated = quantize.with_fake_quant(parts.model, ranges)
    tflite.write(simulated, tmp_path / "model.tflite", kind="int8", class_names=NAMES)
    file = _File(tmp_path / "model.tflite")
    assert file.partitions() == (1, [])
    assert {file.names.count(name) for name in ("QUANTIZE", "DEQUANTIZE")} == {1}
    types = tflite_file.schema().TensorType
    operations = list(edgetpu._operations(file.model))
    for op in operations[:-2]:
        assert op.outputs[0].type == types.INT8
    mean = [op for op in operations if op.name == "MEAN"][-1]  # what reads top_activation
    scale, zero = (getattr(mean.inputs[0].quantization, n)[0] for n in ("scale", "zeroPoint"))
    assert scale == pytest.approx(7.5 / 255)
    assert zero == round(-128 + 1.0 / scale)
    images = _pictures(12, seed=4).round()
    expected = simulated(images)["probabilities"].numpy()
    np.testing.assert_allclose(file(images), expected, atol=0.06)
    with pytest.raises(ValueError, match=r'needs kind="int8"'):
        tflite.write(simulated, tmp_path / "model.tflite", kind="float32")


def test_16_bit_activations_are_exact_and_said_to_be_slow(parts, model, tmp_path):
    with pytest.warns(UserWarning, match=r"XNNPACK does not run int16x8"):
        tflite.write(
            parts, tmp_path / "model.tflite", kind="int16x8", calibration=lambda: CALIBRATION
        )
    file = _File(tmp_path / "model.tflite")
    types = tflite_file.schema().TensorType
    convolved = [op for op in edgetpu._operations(file.model) if op.name == "CONV_2D"]
    assert {(op.inputs[0].type, op.inputs[1].type) for op in convolved} == {
        (types.INT16, types.INT8)
    }
    images = _pictures(4)
    np.testing.assert_allclose(file(images), model(images).numpy(), atol=0.03)


def test_sigmoid_heads_stay_sigmoid_and_other_models_are_taken_apart(tmp_path):
    model = _network("efficientnet-lite0", stages=1, classifier_activation="sigmoid")
    tflite.write(
        keras.Sequential([keras.Input((SIZE, SIZE, 3)), model]),
        tmp_path / "model.tflite",
        kind="int8",
        calibration=lambda: CALIBRATION,
    )
    file = _File(tmp_path / "model.tflite")
    assert file.names[-2:] == ["DEQUANTIZE", "LOGISTIC"]
    images = _pictures(6, seed=8).round()
    np.testing.assert_allclose(file(images), model(images).numpy(), atol=0.1)


def test_the_same_model_gives_the_same_bytes_in_another_process(model, int8, tmp_path):
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "pictures.npy", np.concatenate(CALIBRATION))
    code = """
import sys
import keras, numpy as np
from efficientnet_tf.export import graph, tflite
folder = sys.argv[1]
parts = graph.parts(keras.saving.load_model(folder + "/model.keras"))
pictures = np.load(folder + "/pictures.npy")
tflite.write(parts, folder + "/model.tflite", kind="int8", calibration=lambda: [pictures],
             class_names=[f"class number {index}" for index in range(7)])
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (tmp_path / "model.tflite").read_bytes() == int8.content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "int4"}, r"kind must be one of .* Received: kind='int4'"),
        ({"kind": "int8"}, r"needs calibration: a few hundred real pictures"),
        ({"calibration": lambda: CALIBRATION}, r"takes no calibration"),
        ({"io": "int8"}, r'io must be "uint8" or "float32". Received: io=\'int8\''),
        ({"output": "uint8"}, r'output="uint8" needs kind="int8"'),
        ({"batch": 0}, r"whole number above 0"),
        ({"class_names": NAMES[:3]}, r"must name 7 classes. Received: 3 names"),
        ({"class_names": (*NAMES[:6], "two\nlines")}, r"one line each.*class 6"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_done(options, message, parts, tmp_path):
    with pytest.raises(ValueError, match=message):
        tflite.write(parts, tmp_path / "model.tflite", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], r"0 pictures are too few"),
        ([CALIBRATION[0]], r"8 pictures are too few"),
        ([np.zeros((12, 20, 20, 3))], r"shape \(batch, 48, 48, 3\). Received: float64 \(12, 20"),
        ([CALIBRATION[0], np.full((4, SIZE, SIZE, 3), np.nan)], r"Picture 8 to calibrate"),
        ([_pictures(12) / 255], r"must be in \[0, 255\]"),
    ],
)
def test_wrong_pictures_to_calibrate_with_are_refused(batches, message, tmp_path):
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    small = keras.Model(images, keras.layers.Dense(3)(x))
    with pytest.raises(ValueError, match=message):
        tflite.write(small, tmp_path / "model.tflite", kind="int8", calibration=lambda: batches)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_without_a_buffer_that_grows(int8, float32, tmp_path, monkeypatch):
    """Growing one copies it."""

    def never(self):
        raise AssertionError("the buffer grows")

    monkeypatch.setattr(tflite_file._AlignedBuilder, "GrowByteBuffer", never)
    for file in (int8, float32):
        tflite_file.write(file.model, tmp_path / "model.tflite")
        assert tflite_file.dump(file.model) == (tmp_path / "model.tflite").read_bytes()
