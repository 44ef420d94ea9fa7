"""Fast layers against the Keras layers that they stand for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import efficientnet_tf as et
from efficientnet_tf.models import layers


def _pair(**kwargs):
    """The fast batch normalization and Keras', with the same uneven weights."""
    rng = np.random.default_rng(0)
    pair = [cls(**kwargs) for cls in (layers.BatchNormalization, keras.layers.BatchNormalization)]
    weights = [rng.uniform(0.5, 1.5, 5).astype("float32") for _ in range(4)]
    for layer in pair:
        layer.build((None, 4, 6, 5))
        layer.set_weights(weights)
    return pair


def _uses_fused_kernel(layer, training):
    function = tf.function(lambda x: layer(x, training=training))
    graph = function.get_concrete_function(tf.TensorSpec((2, 4, 6, 5))).graph
    return "FusedBatchNormV3" in {op.type for op in graph.get_operations()}


@pytest.mark.parametrize("training", [False, True])
def test_batch_normalization_equals_keras_forward_backward_and_statistics(training):
    fused, plain = _pair(momentum=0.9, epsilon=1e-3)
    assert _uses_fused_kernel(fused, training)
    assert not _uses_fused_kernel(plain, training)
    x = tf.constant(np.random.default_rng(1).normal(2, 3, (3, 4, 6, 5)).astype("float32"))
    results = []
    for layer in (fused, plain):
        layer.set_weights(plain.get_weights())
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=training)
                loss = tf.reduce_sum(y**2 * tf.cast(tf.reshape(tf.range(360), y.shape), y.dtype))
            gradients = tape.gradient(loss, [x, layer.gamma, layer.beta])
            penalty = tf.reduce_sum(gradients[0] ** 2)
        second = outer.gradient(penalty, x)
        results.append(
            [y, *gradients, second, layer.moving_mean.value, layer.moving_variance.value]
        )
    for ours, theirs in zip(*results, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5 * scale)


def test_moving_variance_is_the_populations_even_for_two_values():
    layer = layers.BatchNormalization(momentum=0.0)
    layer.build((None, 1, 1, 1))
    layer(np.array([0.0, 2.0], "float32").reshape(2, 1, 1, 1), training=True)
    assert layer.moving_variance.numpy() == pytest.approx(1.0)  # the sample variance would be 2


def test_a_frozen_layer_normalises_with_its_moving_statistics():
    layer, _ = _pair()
    layer.trainable = False
    x = np.random.default_rng(1).normal(size=(2, 4, 6, 5)).astype("float32")
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_statistics_in_float32(policy):
    fused, plain = _pair(dtype=policy)
    x = tf.cast(np.random.default_rng(1).normal(1, 2, (3, 4, 6, 5)), fused.compute_dtype)
    outputs = [layer(x, training=True) for layer in (fused, plain)]
    assert outputs[0].dtype == outputs[1].dtype == fused.compute_dtype
    np.testing.assert_allclose(
        *(tf.cast(y, "float32") for y in outputs), rtol=2e-2, atol=2e-2
    )  # bfloat16 has 8 bits
    assert fused.moving_variance.dtype == "float32"
    np.testing.assert_allclose(fused.moving_variance, plain.moving_variance, rtol=1e-3)


@pytest.mark.parametrize("kwargs", [{"synchronized": True}, {"scale": False}, {"axis": 1}])
def test_what_has_no_fused_kernel_is_left_to_keras(kwargs):
    layer = layers.BatchNormalization(**kwargs)
    layer.build((2, 4, 6, 5))
    assert not _uses_fused_kernel(layer, training=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dropout_has_the_rate_that_was_asked_for(dtype):
    """Of 128 numbers in [0, 1) that bfloat16 has, the lowest would be below any rate > 0."""
    keras.utils.set_random_seed(0)
    ones = tf.ones((2000, 500), dtype)
    rare = layers.Dropout(1e-6, dtype=dtype)(ones, training=True)
    assert rare.dtype == dtype
    assert np.sum(tf.cast(rare, "float32").numpy() == 0) <= 10  # one is expected
    some = layers.Dropout(0.005, noise_shape=(None, 1), dtype=dtype)
    kept = tf.cast(tf.concat([some(ones, training=True)[:, :2] for _ in range(50)], 0), "float32")
    np.testing.assert_array_equal(kept[:, 0], kept[:, 1])
    assert abs(np.mean(kept[:, 0] == 0) - 0.005) < 5 * (0.005 / 100_000) ** 0.5
    np.testing.assert_array_equal(some(ones, training=False), ones)


def test_dropout_scales_in_float32():
    """1 / (1 - 0.0025) is 1 in bfloat16: a stage's branches would be smaller in training."""
    keras.utils.set_random_seed(0)
    values = tf.cast(tf.random.stateless_uniform((1000, 1000), (0, 0), 1.0, 2.0), "bfloat16")
    dropped = layers.Dropout(0.0025, dtype="bfloat16")(values, training=True)
    means = [tf.reduce_mean(tf.cast(x, "float32")) for x in (values, dropped)]
    assert abs(means[1] / means[0] - 1) < 5 * (0.0025 / 1e6) ** 0.5


@pytest.mark.parametrize("activation", [None, "silu", "sigmoid"])
def test_convolution_of_single_pixels_equals_keras(activation):
    ours, theirs = (
        cls(3, 1, padding="same", activation=activation, bias_initializer="random_normal")
        for cls in (layers.Conv2D, keras.layers.Conv2D)
    )
    x = np.random.default_rng(0).normal(size=(4, 1, 1, 7)).astype("float32")
    ours(x), theirs(x)
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)
    wide = np.random.default_rng(0).normal(size=(4, 5, 6, 7)).astype("float32")
    np.testing.assert_allclose(ours(wide), theirs(wide), atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (None, None), (5, None)])
@pytest.mark.parametrize("scale", [[0.5, 0.25, 2.0], 0.5])
def test_rescaling_equals_the_formula(size, scale):
    layer = layers.Rescaling(scale, [1.0, 2.0, -3.0] if isinstance(scale, list) else 1.0)
    model = keras.Sequential([keras.Input((*size, 3)), layer])
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype("uint8")
    np.testing.assert_allclose(
        model(x), x * np.float32(scale) + np.float32(layer.offset), rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(3,), (4, 3), (5, 7, 3), (5, 6, 7, 3)])
def test_rescaling_takes_any_rank_and_one_offset_for_all_channels(shape):
    x = np.random.default_rng(0).integers(0, 256, (2, *shape)).astype("float32")
    ours = layers.Rescaling([0.5, 0.25, 2.0])(x)
    np.testing.assert_allclose(ours, x * np.float32([0.5, 0.25, 2.0]), rtol=1e-6)


def test_fast_layers_return_to_a_model_from_a_file(tmp_path):
    inner = et.build("efficientnetv2-b0", input_shape=(64, 64, 3), classes=4)
    images = keras.Input((64, 64, 3))
    keras.Model(images, keras.layers.Dense(3)(inner(images))).save(tmp_path / "m.keras")
    plain = keras.saving.load_model(tmp_path / "m.keras")
    fast = layers.with_fast_layers(plain)
    kinds = {
        name: type(fast.layers[1].get_layer(name))
        for name in ("stem_bn", "rescaling", "block4a_se_reduce", "stem_conv")
    }
    assert kinds["stem_bn"] is layers.BatchNormalization
    assert kinds["rescaling"] is layers.Rescaling
    assert kinds["block4a_se_reduce"] is layers.Conv2D
    assert [layer.name for layer in fast.layers] == [layer.name for layer in plain.layers]
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    expected = np.asarray(plain(x))
    np.testing.assert_allclose(fast(x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_normalisation_behind_a_depthwise_convolution_equals_keras(strides, training):
    inputs = keras.Input((9, 8, 5))
    depthwise = keras.layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(inputs)
    ours, theirs = _pair(epsilon=1e-2)
    fast, plain = (keras.Model(inputs, [depthwise, y(depthwise)]) for y in (ours, theirs))
    x = tf.constant(np.random.default_rng(0).normal(size=(3, 9, 8, 5)).astype("float32"))
    answers = []
    for model in (fast, plain):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = tf.function(lambda x, model=model: model(x, training=training))(x)
            loss = tf.reduce_sum(outputs[1] ** 2)
        answers.append([*outputs, *tape.gradient(loss, [x, *model.trainable_variables])])
    for a, b in zip(*answers, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
    function = tf.function(lambda x: fast(x, training=False)[1]).get_concrete_function(x)
    assert "FusedBatchNormV3" not in {op.type for op in function.graph.get_operations()}


@pytest.mark.parametrize("name", ["silu", "relu", "relu6"])
def test_activation_equals_keras_to_the_second_derivative(name):
    x = tf.constant(np.linspace(-30, 30, 401).astype("float32"))
    results = []
    for layer in (layers.Activation(name), keras.layers.Activation(name)):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
            first = tape.gradient(y, x)
        second = outer.gradient(first, x)
        results.append([y, first] if second is None else [y, first, second])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["Activation", "BatchNormalization", "Conv2D", "Rescaling"])
def test_layers_are_saved_as_keras_own(name):
    arguments = {
        "Activation": {"activation": "silu"},
        "Conv2D": {"filters": 3, "kernel_size": 1},
        "Rescaling": {"scale": 2.0},
    }
    kwargs = arguments.get(name, {})
    layer = getattr(layers, name)(**kwargs)
    config = keras.saving.serialize_keras_object(layer)
    assert (config["module"], config["class_name"]) == ("keras.layers", name)
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is getattr(keras.layers, name)
    assert restored.get_config() == layer.get_config()
