"""The network for export: flat, float32 and folded, with the answers of the model it came from."""

import dataclasses

import keras
import numpy as np
import pytest
from exporting import perturbed
from keras import layers

from efficientnet_tf.arch.scaling import find
from efficientnet_tf.export import graph
from efficientnet_tf.models.efficientnet import build

FAMILIES = ("efficientnet-b0", "efficientnetv2-b0", "efficientnet-lite0", "efficientnet-edgetpu-s")


def small(name, size=(64, 64), **kwargs):
    """The first stages of a network, with statistics that are not the initial ones."""
    variant = find(name)
    variant = dataclasses.replace(variant, name="small", width=0.5, blocks=variant.blocks[:4])
    keras.utils.set_random_seed(3)
    return perturbed(build(variant, input_shape=(*size, 3), **kwargs))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


def spread(got, want):
    """Largest difference, as a share of the spread of what is wanted."""
    want = np.asarray(want, np.float32)
    return np.abs(np.asarray(got) - want).max() / np.ptp(want)


def kinds(model):
    return {type(operation).__name__ for operation in model.operations}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_folded_without_changing_its_answers(family, images):
    model = small(family, classes=7)
    parts = graph.parts(model)
    assert "BatchNormalization" in kinds(model)
    assert not kinds(parts.model) & {"BatchNormalization", "Dropout"}
    assert parts.activation == "softmax"
    assert parts.classes == 7
    found = parts.model(images)
    features, maps = (np.asarray(found[name]) for name in ("features", "maps"))
    assert spread(found["probabilities"], model(images)) < 3e-6
    np.testing.assert_allclose(maps.mean((1, 2)), features, rtol=1e-5, atol=1e-6)
    kernel, bias = model.get_layer("predictions").get_weights()
    assert spread(found["logits"], features @ kernel + bias) < 1e-5
    names = [layer.name for layer in model.layers if "conv" in layer.name]
    assert set(names) <= {layer.name for layer in parts.model.layers}


def test_the_model_itself_stays_as_it_is(images):
    model = small("efficientnet-b0", classes=3, classifier_activation="sigmoid")
    before, weights = model.get_config(), model.get_weights()
    graph.parts(model)
    assert model.get_config() == before
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_folding_is_exact_where_it_applies_and_left_out_where_it_does_not(images):
    inputs = keras.Input((64, 64, 3))
    x = layers.BatchNormalization(name="first")(inputs)
    read_twice = layers.Conv2D(4, 3, name="read_twice")(x)
    x = layers.Add()([read_twice, layers.BatchNormalization(name="of_read_twice")(read_twice)])
    x = layers.Conv2D(4, 3, activation="relu", name="active")(x)
    x = layers.BatchNormalization(name="of_active")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization(center=False, name="of_depthwise")(x)
    x = layers.Conv2D(6, 3, groups=2, use_bias=False, name="grouped")(x)
    x = layers.BatchNormalization(scale=False, name="of_grouped")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(5, name="folded")(x)
    x = layers.BatchNormalization(epsilon=0.1, name="of_dense")(x)
    model = perturbed(keras.Model(inputs, layers.Dense(3, "softmax")(x)))
    folded = graph.fold(graph.flatten(model))
    left = {layer.name for layer in folded.layers if "BatchNorm" in type(layer).__name__}
    assert left == {"first", "of_read_twice", "of_active"}
    assert spread(folded(images), model(images)) < 3e-6


def test_nested_models_with_heads_of_their_own(images):
    trunk = small("efficientnet-b0", include_top=False, pooling="avg")
    model = keras.Sequential(
        [
            layers.RandomFlip(),
            trunk,
            layers.Dropout(0.3),
            layers.Dense(16, "relu"),
            layers.GaussianNoise(0.1),
            layers.Dense(5, "sigmoid"),
        ]
    )
    model.build((None, 64, 64, 3))
    perturbed(model)
    parts = graph.parts(model)
    assert not kinds(parts.model) & {"Functional", "Sequential", "Dropout", "GaussianNoise"}
    assert "RandomFlip" not in kinds(parts.model)
    assert parts.activation == "sigmoid"
    assert parts.model.output["features"].shape == (None, 16)
    assert parts.model.output["maps"].shape[1:3] == (4, 4)
    expected = keras.Sequential(model.layers[1:])(images, training=False)
    assert spread(parts.model(images)["probabilities"], expected) < 3e-6


def test_two_models_inside_with_the_same_layer_names(images):
    inputs = keras.Input((64, 64, 3))
    trunks = [small("efficientnet-lite0", include_top=False, pooling="avg") for _ in range(2)]
    trunks[0].name, trunks[1].name = "left", "right"
    trunks[1].get_layer("stem_conv").kernel.assign_add(
        np.full(trunks[1].get_layer("stem_conv").kernel.shape, 0.1)
    )
    x = keras.ops.concatenate([trunk(inputs, training=False) for trunk in trunks], -1)
    model = keras.Model(inputs, keras.ops.softmax(layers.Dense(4)(x)))
    parts = graph.parts(model)
    names = {layer.name for layer in parts.model.layers}
    assert {"stem_conv", "right_stem_conv"} <= names
    assert spread(parts.model(images)["probabilities"], model(images, training=False)) < 3e-6
    assert graph.tail(parts) is None  # no single map that all goes through


def test_mixed_precision_becomes_float32(images):
    plain = small("efficientnet-b0", classes=5)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = small("efficientnet-b0", classes=5)
        mixed.set_weights(plain.get_weights())
        parts = graph.parts(mixed)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in parts.model.layers} == {"float32"}
    assert spread(mixed(images), plain(images)) > 1e-4
    assert spread(parts.model(images)["probabilities"], plain(images)) < 3e-6


@pytest.mark.parametrize("end", ["logits", "layer", "operation", "activation", "convolution"])
def test_heads_that_end_in_other_ways(end, images):
    trunk = small("efficientnet-lite0", include_top=False)
    if end == "convolution":
        x = layers.GlobalAveragePooling2D(keepdims=True)(trunk.output)
        x = layers.Flatten()(layers.Conv2D(3, 1)(x))
    else:
        x = layers.Dense(3)(layers.Flatten()(trunk.output))
    want = keras.ops.softmax(x)
    if end == "layer":
        x = layers.Softmax()(x)
    if end == "operation":
        x = keras.ops.softmax(x)
    if end == "activation":
        x = layers.Activation("linear")(layers.Activation("softmax")(x))
    parts = graph.parts(keras.Model(trunk.input, x))
    assert parts.model.output["maps"].shape == trunk.output.shape
    expected = keras.Model(trunk.input, want)(images)
    assert spread(parts.model(images)["probabilities"], expected) < 3e-6
    tail = graph.tail(parts)
    found = parts.model(images)
    assert spread(tail(found["maps"])["logits"], found["logits"]) < 1e-6


def test_another_size(images):
    model = small("efficientnetv2-b0", classes=3)
    flexible = graph.resized(graph.parts(model).model, None)
    assert flexible.inputs[0].shape == (None, None, None, 3)
    other = small("efficientnetv2-b0", classes=3, size=(48, 80))
    other.set_weights(model.get_weights())
    crop = images[:, :48]
    wide = np.concatenate([crop, crop[:, :, :16]], axis=2)
    assert spread(flexible(wide)["probabilities"], other(wide)) < 3e-6


def test_what_is_no_classifier_of_pictures_is_refused():
    with pytest.raises(ValueError, match=r"one output \(batch, classes\).*\(None, 4, 4"):
        graph.parts(small("efficientnet-lite0", include_top=False))
    with pytest.raises(ValueError, match=r"not built"):
        graph.parts(keras.Sequential([layers.Flatten(), layers.Dense(3)]))
    gray = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"\(None, 8, 8, 1\)"):
        graph.parts(gray)

    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match=r"Own, whose layers cannot be told apart"):
        graph.parts(Own())


def test_an_unknown_end_and_random_answers_are_refused():
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(inputs)
    with pytest.raises(ValueError, match=r"must end in softmax, sigmoid or logits.*Dense"):
        graph.parts(keras.Model(inputs, layers.Dense(3, "relu")(x)))
    dropped = layers.BatchNormalization()(x, training=True)
    with pytest.raises(ValueError, match=r"training=True.*answers change"):
        graph.parts(keras.Model(inputs, layers.Dense(3)(dropped)))


def test_a_network_that_needs_its_size_says_so():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)), name="fixed")
    with pytest.raises(ValueError, match=r"'fixed' cannot take pictures of any size"):
        graph.resized(graph.parts(model).model, None)
