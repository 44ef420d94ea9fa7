"""Class activation maps, against closed forms, and on networks whose answer is known."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from efficientnet_tf import cam
from efficientnet_tf.arch import BlockArgs
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build

SIZE = 64


def small(**kwargs):
    """Maps of 8 x 8, and of 16 x 16 a level before."""
    keras.utils.set_random_seed(2)
    blocks = ("r1_k3_s22_e2_i8_o8_se0.25", "r1_k3_s22_e2_i8_o12_se0.25")
    variant = dataclasses.replace(
        find("efficientnet-b0"),
        name="small",
        blocks=tuple(BlockArgs.parse(block) for block in blocks),
        stem_filters=8,
        head_filters=24,
    )
    return build(variant, input_shape=(SIZE, SIZE, 3), **kwargs)


@pytest.fixture(scope="module")
def model():
    return small(classes=5)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)


def headed(backbone, **dense):
    return keras.Sequential(
        [backbone, layers.GlobalAveragePooling2D(), layers.Dropout(0.3), layers.Dense(5, **dense)]
    )


def scaled(maps):
    positive = np.maximum(maps, 0)
    most = positive.max((1, 2), keepdims=True)
    return np.divide(positive, most, out=np.zeros_like(positive), where=most > 0)


def features(model, images, layer="top_activation"):
    """Keras' own values of a layer, and the classifier's kernel."""
    values = keras.Model(model.input, model.get_layer(layer).output)(images)
    return np.asarray(values, np.float64)


def patch_finder():
    """A net with hand-set weights: class 0 is a red patch, class 1 a green one."""
    inputs = keras.Input((96, 64, 3))
    x = layers.AveragePooling2D(8)(inputs)
    x = layers.Conv2D(2, 1, activation="relu", name="patches")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    kernel = np.array([[1.0, -1], [-1, 1], [0, 0]]).reshape(1, 1, 3, 2)
    model.get_layer("patches").set_weights([kernel, np.full(2, -100.0)])
    model.layers[-1].set_weights([np.array([[0.03, -0.01], [-0.02, 0.03]]), np.zeros(2)])
    return model


@pytest.mark.parametrize("method", cam.METHODS)
def test_maps_peak_at_the_planted_patch_and_move_with_it(method):
    model = patch_finder()
    places = [(0, 0), (5, 2), (11, 7)]  # of red patches, in cells of 8 pixels; green ones elsewhere
    images = np.full((3, 96, 64, 3), 50, np.float32)
    for image, (row, column) in zip(images, places, strict=True):
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = (250, 0, 0)
        green_row, green_column = 11 - row, 7 - column
        image[8 * green_row : 8 * green_row + 8, 8 * green_column :][:, :8] = (0, 250, 0)
    red = cam.cam(model, images, 0, method=method)
    green = cam.cam(model, images, [1, 1, 1], method=method)
    assert red.shape == (3, 12, 8)
    for map_, other, (row, column) in zip(red, green, places, strict=True):
        want = np.zeros((12, 8))
        want[row, column] = 1
        np.testing.assert_allclose(map_, want, atol=1e-6)  # and nothing where the green patch is
        np.testing.assert_allclose(other, want[::-1, ::-1], atol=1e-6)


def test_cam_is_the_sum_of_maps_by_the_dense_layers_weights(model, images):
    found = cam.cam(model, images, [4, 0, 2])
    assert found.dtype == np.float32
    kernel = model.get_layer("predictions").get_weights()[0]
    want = np.einsum("bhwc,cb->bhw", features(model, images), kernel[:, [4, 0, 2]])
    np.testing.assert_allclose(found, scaled(want), atol=1e-5)
    assert found.min() == 0
    np.testing.assert_allclose(found.max((1, 2)), 1)


def test_the_class_is_the_most_likely_one_of_each_picture(model, images):
    varied = np.concatenate([images, np.zeros_like(images[:1]), np.full_like(images[:1], 255)])
    likely = np.asarray(model(varied)).argmax(-1)
    for method in ("cam", "gradcam"):
        np.testing.assert_array_equal(
            cam.cam(model, varied, method=method), cam.cam(model, varied, likely, method=method)
        )


def test_batches_do_not_change_maps(model, images):
    for method in cam.METHODS:
        whole = cam.cam(model, images, [0, 1, 2], method=method)
        parts = cam.cam(model, images, [0, 1, 2], method=method, batch_size=2)
        np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_random_layers_do_nothing():
    finder = patch_finder()
    pictures = np.zeros((8, 96, 64, 3), np.uint8)
    pictures[:, 8:24, 8:24, 0] = 255  # in a corner, which a flip would move
    random = [layers.RandomFlip(), layers.RandomRotation(0.2)]
    inside = keras.Sequential([keras.Input((96, 64, 3)), *random])
    for wrapped in (
        keras.Sequential([keras.Input((96, 64, 3)), *random, finder]),
        keras.Sequential([inside, finder]),
        keras.Sequential([keras.Input((96, 64, 3), dtype="uint8"), *random, finder]),
    ):
        for method in cam.METHODS:
            want = cam.cam(finder, pictures, 0, method=method)
            assert want.max() == 1
            np.testing.assert_allclose(cam.cam(wrapped, pictures, 0, method=method), want)


def test_an_output_in_a_list_is_one_output(model, images):
    listed = keras.Model(model.inputs, model.outputs)
    np.testing.assert_array_equal(cam.cam(listed, images, 0), cam.cam(model, images, 0))


@pytest.mark.parametrize("end", ["softmax", "sigmoid", None, "apart", "cast", "operation"])
def test_gradcam_behind_pooling_and_a_dense_layer_is_cam(end, images):
    kind = end if end in ("softmax", "sigmoid", None) else None
    model = headed(small(include_top=False), activation=kind)
    if end == "apart":  # as mixed precision wants it
        model = keras.Sequential([*model.layers, layers.Activation("softmax", dtype="float32")])
    if end == "cast":  # the other way to float32
        cast = layers.Activation("linear", dtype="float32")
        model = keras.Sequential([*model.layers, cast, layers.Softmax()])
    if end == "operation":
        model = keras.Model(model.inputs, keras.ops.softmax(model.outputs[0]))
    want = features(model.layers[0] if end != "operation" else model.layers[1], images)
    kernel = next(w for w in model.get_weights()[::-1] if w.shape == (24, 5))
    want = scaled(want @ kernel[:, 3])
    np.testing.assert_allclose(cam.cam(model, images, 3), want, atol=1e-5)
    np.testing.assert_allclose(cam.cam(model, images, 3, method="gradcam"), want, atol=1e-4)


def test_gradcam_of_an_inner_layer_is_that_of_a_model_cut_there(model, images):
    import tensorflow as tf

    name = "block2a_expand_activation"
    kernel, _ = model.get_layer("predictions").get_weights()
    cut = [model.get_layer(each).output for each in (name, "avg_pool")]
    with tf.GradientTape() as tape:
        maps, pooled = keras.Model(model.input, cut)(tf.constant(images, tf.float32))
        score = pooled @ kernel[:, 1:2]
    derivatives = tape.gradient(score, maps).numpy()
    want = (derivatives.mean((1, 2), keepdims=True) * maps.numpy()).sum(-1)
    found = cam.cam(model, images, 1, name, "gradcam")
    assert found.shape == (3, 16, 16)
    np.testing.assert_allclose(found, scaled(want), atol=1e-4)


def test_gradcam_plus_plus_is_the_papers_equation():
    # Two dense layers behind flattened maps: derivatives that differ from place to place.
    random = np.random.default_rng(1)
    inputs = keras.Input((4, 4, 3))
    maps = layers.Conv2D(3, 1, use_bias=False, name="maps")(inputs)
    outputs = layers.Dense(2)(layers.Flatten()(maps))
    model = keras.Model(inputs, outputs)
    model.get_layer("maps").set_weights([np.eye(3).reshape(1, 1, 3, 3)])
    kernel = random.normal(0, 1, (48, 2))
    model.layers[-1].set_weights([kernel, np.zeros(2)])
    images = random.uniform(0, 1, (2, 4, 4, 3))
    found = cam.cam(model, images, [1, 0], "maps", "gradcam++")
    for image, index, got in zip(images, (1, 0), found, strict=True):
        first = kernel[:, index].reshape(4, 4, 3)
        power = np.exp(image.ravel() @ kernel[:, index])  # Y = exp(S): Eq. 19, 5 and 3
        second, third = power * first**2, power * first**3
        alpha = second / (2 * second + image.sum((0, 1)) * third)
        # Where derivatives are negative, alpha does not count: the ReLU of Eq. 5 is 0.
        weights = (alpha * np.maximum(power * first, 0)).sum((0, 1))
        want = np.maximum((weights * image).sum(-1), 0)
        np.testing.assert_allclose(got, want / want.max(), atol=1e-5)


def test_gradcam_plus_plus_counts_two_objects_alike():
    # The example of the paper's Sec. 3: one map per object, of different sizes, equal evidence.
    # Grad-CAM weighs both maps alike too, but only because pooling divides by one size for both.
    maps = np.zeros((1, 6, 6, 2), np.float32)
    maps[0, :4, :4, 0] = 1  # 16 places
    maps[0, 5, 5, 1] = 1  # 1 place
    inputs = keras.Input((6, 6, 2))
    passed = layers.Activation("relu", name="maps")(inputs)
    peaks = layers.GlobalAveragePooling2D()(passed)
    model = keras.Model(inputs, layers.Dense(1)(peaks))
    model.layers[-1].set_weights([np.array([[36 / 16], [36.0]]), np.zeros(1)])
    simple = cam.cam(model, maps, 0, "maps", "gradcam")[0]
    better = cam.cam(model, maps, 0, "maps", "gradcam++")[0]
    # w_k = sum over all 36 places of g / (2 + sum(A) g), with g = 1/16 and 1.
    want = (36 / 16 / (2 + 1)) / (36 / (2 + 1))
    np.testing.assert_allclose(simple[0, 0], 1 / 16, rtol=1e-5)
    np.testing.assert_allclose(better[0, 0], want, rtol=1e-5)


def test_nested_models_are_explained_as_flat_ones(images):
    backbone = small(include_top=False)
    pooled = layers.GlobalAveragePooling2D()(backbone.output)
    flat = keras.Model(backbone.input, layers.Dense(5, activation="softmax")(pooled))
    nested = headed(backbone, activation="softmax")
    deep = keras.Sequential([layers.Rescaling(1.0, name="as_it_is"), nested])
    deep.build((None, SIZE, SIZE, 3))
    nested.layers[-1].set_weights(flat.layers[-1].get_weights())
    before = [len(layer._inbound_nodes) for layer in backbone.layers]
    for method, layer in (("cam", None), ("gradcam", "block1a_project_bn"), ("gradcam++", None)):
        want = cam.cam(flat, images, 2, layer, method)
        assert want.max() == 1
        for other in (nested, deep):
            np.testing.assert_allclose(cam.cam(other, images, 2, layer, method), want, atol=1e-5)
    # A path, and the output of the model inside.
    want = cam.cam(nested, images, 2, method="gradcam")
    for name in ("small/top_activation", "small"):
        np.testing.assert_array_equal(cam.cam(nested, images, 2, name, "gradcam"), want)
    assert [len(layer._inbound_nodes) for layer in backbone.layers] == before
    assert "small/top_activation" in cam.layers(nested)


def test_feature_levels_with_a_head_of_ones_own(images):
    backbone = small(features_only=True, levels=(2, 3))
    inputs = keras.Input((SIZE, SIZE, 3))
    c2, c3 = backbone(inputs)
    pooled = [layers.GlobalAveragePooling2D()(c) for c in (c2, c3)]
    scores = layers.Dense(4)(layers.Dense(8, activation="relu")(layers.Concatenate()(pooled)))
    model = keras.Model(inputs, scores)
    assert cam.cam(model, images, 1, method="gradcam").shape == (3, 8, 8)  # the last maps
    assert cam.cam(model, images, 1, "block1a_project_bn", "gradcam++").shape == (3, 16, 16)
    with pytest.raises(ValueError, match='"gradcam" and "gradcam\\+\\+" do without'):
        cam.cam(model, images, 1)


def test_weights_that_change_are_seen(images):
    model = small(classes=5)
    before = cam.cam(model, images, 0)
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([-kernel, bias])
    after = cam.cam(model, images, 0)
    # What spoke against the class speaks for it now, and nothing else.
    assert not (np.minimum(before, after) > 0).any()
    assert after.max() == 1


def test_where_nothing_speaks_for_the_class_the_map_is_0(images):
    model = patch_finder()
    plain = np.full((1, 96, 64, 3), 50, np.float32)
    for method in cam.METHODS:
        np.testing.assert_array_equal(cam.cam(model, plain, 0, method=method), 0)


MISTAKES = [
    ({"classes": 5}, "from 0 to 4, as the model has 5 classes. Received: classes=5"),
    ({"classes": [0, 1, -1]}, "from 0 to 4"),
    ({"classes": [0, 1]}, "one for each of the 3 pictures"),
    ({"classes": 1.0}, "must be the number of a class"),
    ({"method": "grad"}, "method must be one of"),
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"layer": "top_activatio"}, "no layer 'top_activatio'. Did you mean 'top_activation'"),
    ({"layer": "avg_pool", "method": "gradcam"}, "'avg_pool' has no maps .* the last: .*top_conv"),
    ({"layer": 3}, "layer must be a name or None. Received: layer=3.* the last: .*top_conv"),
    ({"layer": "top_conv"}, "before the pooling, 'top_activation'"),
    ({"images": np.zeros((0, SIZE, SIZE, 3))}, "at least one picture"),
    ({"images": np.zeros((SIZE, SIZE, 3))}, r"pictures of shape \(any, 64, 64, 3\)"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:30])
def test_mistakes_say_what_is_possible(model, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        cam.cam(model, **{"images": images, **arguments})


def test_models_that_cannot_be_explained(images):
    backbone = small(include_top=False)
    with pytest.raises(ValueError, match="a backbone without a classifier has no classes"):
        cam.cam(backbone, images)
    vectors = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match="not made of maps"):
        cam.cam(vectors, images, method="gradcam")
    with pytest.raises(ValueError, match="not built: call it on a batch first"):
        cam.cam(keras.Sequential([layers.Conv2D(2, 3)]), images)
    pooled = layers.GlobalMaxPooling2D()(backbone.output)
    model = keras.Model(backbone.input, layers.Dense(2)(pooled))
    with pytest.raises(ValueError, match=r"GlobalMaxPooling2D .* before Dense"):
        cam.cam(model, images)
    assert cam.cam(model, images, method="gradcam").shape == (3, 8, 8)

    twice = keras.Sequential([small(include_top=False), layers.Conv2D(3, 1, name="top_conv")])
    twice = headed(twice)
    with pytest.raises(ValueError, match=r"give one of .*/small/top_conv, .*/top_conv"):
        cam.cam(twice, images, layer="top_conv", method="gradcam")


def test_a_layer_that_the_scores_do_not_depend_on(images):
    backbone = small(features_only=True, levels=(2, 3))
    c2, c3 = backbone.outputs
    aside = layers.Conv2D(2, 1, name="aside")(c2)
    scores = layers.Dense(2)(layers.GlobalAveragePooling2D()(c3))
    with_both = keras.Model(backbone.input, [scores, aside])
    with pytest.raises(ValueError, match="one output of scores"):
        cam.cam(with_both, images)
    inside = keras.Model(backbone.input, [c3, aside])
    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(inside(inputs)[0])
    model = keras.Model(inputs, layers.Dense(2)(pooled))
    with pytest.raises(ValueError, match=r"scores do not depend on layer '.*/aside'"):
        cam.cam(model, images, layer="aside", method="gradcam")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_half_precision_gives_nearly_the_same_maps(policy, images):
    plain = small(classes=5)
    keras.config.set_dtype_policy(policy)
    try:
        mixed = small(classes=5)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(plain.get_weights())
    for method in cam.METHODS:
        found = cam.cam(mixed, images, 1, method=method)
        assert found.dtype == np.float32
        want = cam.cam(plain, images, 1, method=method)
        assert np.abs(found - want).max() < 0.1  # 8 bits
