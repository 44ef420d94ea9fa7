"""The builder: structure, arguments, initial weights, shapes, blocks."""

import dataclasses
import sys

import keras
import numpy as np
import pytest

import efficientnet_tf as et
from efficientnet_tf.arch import VARIANTS, resolve
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.tables import ABLATIONS
from efficientnet_tf.preprocessing import NORMALIZATIONS

SMALL = ["efficientnet-b0", "efficientnet-lite0", "efficientnet-edgetpu-s", "efficientnetv2-b0"]


def _tiny(**kwargs):
    row = et.BlockArgs("fused", 1, 3, 2, 1, 8, 8)
    rows = (row, et.BlockArgs("mbconv", 3, 3, 2, 4, 8, 8, 0.25))
    variant = dataclasses.replace(
        VARIANTS["efficientnetv2-b0"], name="tiny", blocks=rows, stem_filters=8, head_filters=16
    )
    return et.build(variant, **kwargs)


@pytest.mark.parametrize("name", [*VARIANTS, *ABLATIONS])
def test_layers_shapes_and_parameters_are_those_of_the_analytic_count(name):
    size = 65
    model = et.build(name, input_shape=(size, size, 3), classes=7)
    layers = count(name, size, classes=7).layers
    built = {layer.name: layer for layer in model.layers}
    assert list(built) == [layer.name.replace("input", "images") for layer in layers]
    for layer in layers[1:]:
        keras_layer = built[layer.name]
        assert tuple(keras_layer.output.shape[1:]) == layer.shape, layer.name
        trainable = sum(np.prod(v.shape, dtype=int) for v in keras_layer.trainable_variables)
        assert (trainable, keras_layer.count_params()) == (
            layer.trainable,
            layer.trainable + layer.statistics,
        ), layer.name
    total = count(name, size, classes=7).total
    assert model.count_params() == total.params


@pytest.mark.parametrize("name", SMALL)
def test_analytic_memory_is_that_of_the_built_graph(name):
    # Walks Keras' own graph, with a count of readers for each tensor.
    model = et.build(name, input_shape=(65, 65, 3), classes=7)
    in_place = (
        keras.layers.BatchNormalization,
        keras.layers.Activation,
        keras.layers.Dropout,
        keras.layers.Rescaling,
    )
    sources = {
        layer.name: [tensor._keras_history.operation.name for tensor in node.input_tensors]
        for layer in model.layers
        for node in layer._inbound_nodes
    }
    buffers, readers, alive, live = {}, {}, {}, {}
    for layer in model.layers:
        is_same = isinstance(layer, in_place)
        buffers[layer.name] = buffers[sources[layer.name][0]] if is_same else layer.name
        for source in sources[layer.name]:
            readers[buffers[source]] = readers.get(buffers[source], 0) + 1
    for layer in model.layers:
        if buffers[layer.name] == layer.name:
            alive[layer.name] = int(np.prod(layer.output.shape[1:]))
        live[layer.name] = 4 * 3 * sum(alive.values())
        for source in sources[layer.name]:
            readers[buffers[source]] -= 1
            if not readers[buffers[source]]:
                del alive[buffers[source]]
    memory = count(name, 65, classes=7).memory(batch_size=3)
    assert [live[layer.name] for layer in model.layers] == list(memory.values())


@pytest.mark.parametrize(
    ("name", "trainable"), [("efficientnet-b0", 5_288_548), ("efficientnetv2-b0", 7_139_704)]
)
def test_built_parameters_are_the_published_ones(name, trainable):
    model = et.build(name)
    assert sum(np.prod(v.shape, dtype=int) for v in model.trainable_variables) == trainable
    assert model.input_shape == (None, 224, 224, 3)


@pytest.mark.parametrize("name", ["efficientnetv2-b1", "efficientnetv2-b2", "efficientnetv2-b3"])
def test_drop_rates_of_the_built_model_stay_below_the_papers(name):
    # keras#16144, tensorflow#45916, qubvel/efficientnet#135: stochastic depth was wrong.
    # keras.applications divides by unscaled repeats: 0.2476, 0.2571, 0.2952 at the end.
    model = et.build(name, include_top=False)
    rates = {y.name: y.rate for y in model.layers if y.name.endswith("_drop")}
    blocks = resolve(name).blocks
    for index, block in enumerate(blocks):
        if block.skip and index:
            assert rates.pop(f"{block.name}_drop") == pytest.approx(0.2 * index / len(blocks))
    assert not rates


def test_drop_connect_and_dropout_rates_can_be_set():
    model = et.build("efficientnetv2-b0", drop_connect_rate=0.4, dropout_rate=0.1)
    assert model.get_layer("block6h_drop").rate == pytest.approx(0.4 * 20 / 21)
    assert model.get_layer("top_dropout").rate == 0.1
    model = et.build("efficientnetv2-b0", drop_connect_rate=0.0, dropout_rate=0.0)
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    inputs = keras.Input((2, 2, 3))
    outputs = et.stochastic_depth(inputs, keras.layers.Identity()(inputs), 0.4, "b")
    y = np.array(keras.Model(inputs, outputs)(np.ones((4000, 2, 2, 3), "float32"), training=True))
    assert np.all(y == y[:, :1, :1, :1])
    dropped = y[:, 0, 0, 0] == 1
    assert dropped.mean() == pytest.approx(0.4, abs=0.04)
    np.testing.assert_allclose(y[~dropped], 1 + 1 / 0.6, rtol=1e-6)


def test_initial_weights_follow_the_papers_distributions():
    model = et.build("efficientnetv2-b0", input_shape=(32, 32, 3))
    kernel = model.get_layer("top_conv").kernel.numpy()
    std = np.sqrt(2 / kernel.shape[-1])
    assert kernel.std() == pytest.approx(std, rel=0.01)
    # A truncated normal ends at two standard deviations; 4.55 % of a normal lies beyond.
    assert (np.abs(kernel) > 2 * std).mean() == pytest.approx(0.0455, abs=0.003)
    depthwise = model.get_layer("block6h_dwconv2").kernel.numpy()
    assert depthwise.std() == pytest.approx(np.sqrt(2 / 9), rel=0.03)
    dense = model.get_layer("predictions").kernel.numpy()
    bound = 1 / np.sqrt(1000)
    assert np.abs(dense).max() <= bound
    assert dense.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)


def test_same_shaped_kernels_start_different():
    model = et.build("efficientnet-b0", input_shape=(32, 32, 3))
    seen: dict[tuple, list] = {}
    for variable in model.trainable_variables:
        if variable.path.endswith("kernel"):
            seen.setdefault(tuple(variable.shape), []).append(variable.numpy())
    pairs = [(a, b) for group in seen.values() for a in group for b in group if a is not b]
    assert len(pairs) > 30
    assert not any(np.array_equal(a, b) for a, b in pairs)


def test_xl_builds_at_the_default_recursion_limit():
    # sebastian-sz/efficientnet-v2-keras#11: XL needed a higher limit, and names went past z.
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1000)
        model = et.EfficientNetV2XL(weights=None, include_top=False)
    finally:
        sys.setrecursionlimit(limit)
    assert "block6af_add" in {layer.name for layer in model.layers}


@pytest.mark.parametrize("name", ["encoder", "efficientnetv2-b0", "efficientnetv2-s"])
def test_a_name_never_changes_the_network(name):
    # qubvel/efficientnet#127, #140: traps in names.
    # keras.applications: KeyError for the first, B0's blocks for the second.
    model = et.EfficientNetV2S(weights=None, include_top=False, name=name)
    assert model.name == name
    assert model.count_params() == count("efficientnetv2-s", include_top=False).total.params


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 64)])
def test_any_size_gives_the_same_answer_static_or_dynamic(name, size):
    # titu1994/keras-efficientnets#7, lukemelas/EfficientNet-PyTorch#14: odd and other sizes.
    dynamic = et.build(name, include_top=False)
    static = et.build(name, include_top=False, input_shape=(*size, 3))
    static.set_weights(dynamic.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype("uint8")
    a, b = np.array(dynamic(images)), np.array(static(images))
    assert a.shape[1:3] == tuple(-(-side // 32) for side in size)
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_preprocessing_is_part_of_the_network_whatever_the_weights():
    # tensorflow#48412, #44745, keras#14950: normalised twice, or wanted without.
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype("uint8")
    inside = et.build("efficientnet-b0", include_top=False, preprocessing="torch")
    outside = et.build("efficientnet-b0", include_top=False, include_preprocessing=False)
    outside.set_weights(inside.get_weights())
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = ((images / 255 - mean) / std).astype("float32")
    y = np.array(outside(normalised))
    np.testing.assert_allclose(inside(images), y, atol=1e-4 * np.abs(y).max())
    np.testing.assert_allclose(inside(images.astype("float32")), inside(images))
    assert [layer.name for layer in inside.layers][1] == "rescaling"


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_parameters_for_other_channels_are_those_of_the_analytic_count(channels):
    model = et.build("efficientnet-b0", input_shape=(32, 32, channels), classes=7)
    layers = count("efficientnet-b0", 32, classes=7, channels=channels).layers
    assert [layer.name.replace("input", "images") for layer in layers] == [
        layer.name for layer in model.layers
    ]
    assert model.count_params() == sum(layer.trainable + layer.statistics for layer in layers)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalization_is_the_published_formula(name):
    # tensorflow#49930, #47182, keras#16392: the variance was the standard deviation.
    mean, std = (np.array(values) for values in NORMALIZATIONS[name])
    model = _tiny(input_shape=(32, 32, 3), preprocessing=name)
    scaled = keras.Model(model.input, model.get_layer("rescaling").output)
    pixels = np.arange(3072).reshape(1, 32, 32, 3) * 7 % 256
    np.testing.assert_allclose(scaled(pixels.astype("uint8")), (pixels - mean) / std, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_stem_has_the_channels_of_the_input(channels):
    # keras#21529, #21692: a stem for one channel where the pretrained files have three.
    model = _tiny(input_shape=(None, None, channels))
    assert model.get_layer("stem_conv").kernel.shape == (3, 3, max(channels, 3), 8)
    assert model.input_shape == (None, None, None, channels)


def test_lite_has_the_official_sizes_stem_head_and_ends():
    # keras#16905, #16835, tensorflow#45091, keras-cv#630: Lite in Keras.
    sizes = [VARIANTS[f"efficientnet-lite{i}"].resolution for i in range(5)]
    assert sizes == [224, 240, 260, 280, 300]
    for i in range(5):
        model = et.build(f"efficientnet-lite{i}", input_shape=(32, 32, 3))
        names = [layer.name for layer in model.layers]
        assert model.get_layer("stem_conv").kernel.shape == (3, 3, 3, 32)
        assert model.get_layer("top_conv").kernel.shape[-1] == 1280
        # fix_head_stem: one block in the first and in the last stage, at any depth.
        for stage in (1, 7):
            assert [
                n for n in names if n.startswith(f"block{stage}") and n.endswith("_dwconv")
            ] == [f"block{stage}a_dwconv"]
        assert not [n for n in names if "_se_" in n]
        activations = {y.activation for y in model.layers if y.name.endswith("_activation")}
        assert activations == {keras.activations.relu6}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("efficientnet_b0", "efficientnet-b0"),
        ("EfficientNetB0", "efficientnet-b0"),
        ("EfficientNetV2S", "efficientnetv2-s"),
        ("efficientnetv2_rw_s", "efficientnetv2-s"),
        ("tf_efficientnet_lite3", "efficientnet-lite3"),
    ],
)
def test_names_of_other_packages_are_understood_as_a_question(name, meant):
    # qubvel/efficientnet#84, timm#638, google/automl#1018: `-` or `_`?
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        et.build(name)


def test_one_channel_gives_what_three_equal_channels_give():
    gray, rgb = (_tiny(input_shape=(32, 32, c), classes=5) for c in (1, 3))
    gray.set_weights(rgb.get_weights())
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype("uint8")
    np.testing.assert_allclose(gray(x), rgb(np.repeat(x, 3, axis=-1)), atol=1e-6)


def test_more_channels_are_normalised_in_turn():
    model = _tiny(input_shape=(32, 32, 5), classes=5)
    np.testing.assert_allclose(
        np.ravel(model.get_layer("rescaling").scale), 1 / np.array([58.395, 57.12, 57.375] * 2)[:5]
    )
    assert model.get_layer("stem_conv").kernel.shape == (3, 3, 5, 8)


def test_levels_are_the_last_block_outputs_by_stride():
    # keras#16708, keras-cv#2413, maskrcnn_tf2#6: which layers are C1 to C5; V2's P5 was the top.
    model = et.EfficientNetV2B0(weights=None, features_only=True, input_shape=(65, 64, 3))
    assert [tuple(y.shape[1:]) for y in model.outputs] == [
        (33, 32, 16), (17, 16, 32), (9, 8, 48), (5, 4, 112), (3, 2, 192),
    ]  # fmt: skip
    assert "top_conv" not in {layer.name for layer in model.layers}
    top = et.EfficientNetV2B0(weights=None, include_top=False, input_shape=(65, 64, 3))
    names = ["block1a_project_activation", "block2b_add", "block3b_add", "block5e_add"]
    for name, output in zip([*names, "block6h_add"], model.outputs, strict=True):
        wanted = keras.Model(top.input, top.get_layer(name).output)
        wanted.set_weights(model.get_weights()[: len(wanted.weights)])
        found = keras.Model(model.input, output)
        images = np.random.default_rng(0).integers(0, 256, (1, 65, 64, 3)).astype("uint8")
        np.testing.assert_allclose(found(images), wanted(images), rtol=1e-5, atol=1e-5)
    some = et.EfficientNetB0(weights=None, features_only=True, levels=(3, 4))
    assert [y.shape[-1] for y in some.outputs] == [40, 112]
    backbone = et.EfficientNetB0(weights=None, features_only=True)
    trainable = sum(np.prod(v.shape, dtype=int) for v in backbone.trainable_variables)
    assert trainable == 3_595_388  # efficientdet/backbone/efficientnet_builder_test.py


@pytest.mark.parametrize(
    ("pooling", "shape"), [(None, (None, 1, 1, 16)), ("avg", (None, 16)), ("max", (None, 16))]
)
def test_pooling(pooling, shape):
    model = _tiny(include_top=False, pooling=pooling, input_shape=(32, 32, 3))
    expected = (None, 4, 4, 16) if pooling is None else shape
    assert model.output_shape == expected


def test_builds_on_a_tensor_of_a_larger_model():
    inputs = keras.Input((40, 48, 3), name="camera")
    model = _tiny(input_tensor=keras.layers.Identity()(inputs), classes=3)
    assert model.inputs[0] is inputs
    assert model.output_shape == (None, 3)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_normalisation_and_classifier_stay_in_float32_under_mixed_precision(compute):
    keras.config.set_dtype_policy(f"mixed_{compute}")
    try:
        model = _tiny(input_shape=(32, 32, 3))
        first = keras.Model(model.input, model.get_layer("rescaling").output)
        # bfloat16 has 200 and 201, float16 200.375 and 200.5
        pixels = np.full((1, 32, 32, 3), 200.4, "float32")
        expected = (200.4 - 103.53) / 57.375
        assert np.asarray(first(pixels))[0, 0, 0, 2] == pytest.approx(expected, rel=1e-6)
        assert np.isfinite(model(pixels)).all()
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.output.dtype == "float32"
    assert model.get_layer("rescaling").compute_dtype == "float32"
    assert model.get_layer("stem_conv").compute_dtype == compute


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pooling": "avgg", "include_top": False}, 'pooling must be None, "avg" or "max"'),
        ({"pooling": "avg"}, "pooling needs include_top=False"),
        ({"classes": 0}, "classes must be an integer >= 1"),
        ({"classes": True}, "classes must be an integer >= 1"),
        ({"classes": 10, "include_top": False}, "classes is only used with a classifier"),
        ({"dropout_rate": 0.1, "include_top": False}, "dropout_rate is only used with a class"),
        ({"dropout_rate": 0.1, "features_only": True}, "dropout_rate is only used with a class"),
        (
            {"classifier_activation": "sigmoid", "include_top": False},
            "classifier_activation is only used with a classifier",
        ),
        ({"classifier_activation": "softmaxx", "include_top": False}, "name of a Keras activ"),
        ({"input_shape": 32}, r"input_shape must be \(height, width, channels\)"),
        ({"levels": 3, "features_only": True}, r"levels must be some of \(2, 3\)"),
        ({"input_shape": (32, 32)}, r"input_shape must be \(height, width, channels\)"),
        ({"input_shape": (None, 32, 32, 3)}, r"input_shape must be \(height, width, channels\)"),
        ({"input_shape": (31, 32, 3)}, "at least 32 pixels"),
        ({"input_shape": (32, 32, None)}, "number of channels"),
        ({"levels": (3,)}, "levels needs features_only=True"),
        ({"levels": (6,), "features_only": True}, r"levels must be some of \(2, 3\)"),
        ({"preprocessing": "caffe"}, "caffe"),
        ({"preprocessing": "torch", "include_preprocessing": False}, "preprocessing must be None"),
        ({"drop_connect_rate": 1.5}, r"drop_connect_rate must lie in \[0, 1\)"),
        ({"dropout_rate": -0.1}, r"dropout_rate must lie in \[0, 1\)"),
        ({"classifier_activation": "softmaxx"}, "classifier_activation"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "input_tensor must be a Keras tensor"),
    ],
)
def test_wrong_arguments_say_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        _tiny(**kwargs)


def test_the_default_size_is_the_weights_own(monkeypatch):
    # 21k and other checkpoints were not evaluated at the variant's resolution.
    monkeypatch.setattr(et.models.efficientnet.load, "load_weights", lambda *_, **__: None)
    sizes = {
        tag: et.build("efficientnetv2-b1", weights=tag).input_shape[1]
        for tag in ("imagenet", "imagenet21k", None)
    }
    assert sizes == {"imagenet": 240, "imagenet21k": 224, None: 240}


def test_classes_must_fit_the_weights_and_tags_are_listed():
    with pytest.raises(ValueError, match="classes=1000"):
        et.EfficientNetV2S(weights="imagenet", classes=10)
    with pytest.raises(ValueError, match="imagenet21k-ft1k"):
        et.EfficientNetV2S(weights="imagenet22k")


def test_channels_first_is_refused():
    # qubvel/efficientnet#75: channels_first.
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="Only channels_last is supported"):
            _tiny()
    finally:
        keras.config.set_image_data_format("channels_last")


def test_blocks_can_be_used_in_models_of_ones_own():
    inputs = keras.Input((16, 16, 8))
    x = et.fused_mbconv(inputs, 8, "first", expanded_filters=16, drop_rate=0.1)
    x = et.mbconv(x, 12, "second", expanded_filters=32, strides=2, se_filters=2)
    x = et.squeeze_excite(x, 3, "third")
    model = keras.Model(inputs, x)
    assert model.output_shape == (None, 8, 8, 12)
    expected = 9 * 8 * 16 + 32 + 16 * 8 + 16  # fused: 3x3, bn, 1x1, bn
    expected += 8 * 32 + 64 + 9 * 32 + 64 + (32 * 2 + 2) + (2 * 32 + 32) + 32 * 12 + 24
    expected += 12 * 3 + 3 + 3 * 12 + 12
    assert sum(np.prod(v.shape, dtype=int) for v in model.trainable_variables) == expected
    with pytest.raises(ValueError, match="squeeze-excite only with expanded_filters"):
        et.fused_mbconv(inputs, 8, "bad", se_filters=2)
