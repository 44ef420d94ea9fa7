"""The network of a run: rates and learning layers from stage to stage."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import stages
from efficientnet_tf.arch import resolve
from efficientnet_tf.config import Config, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.train import network

CONFIG = override(
    Config(),
    "model.blocks=r2_k3_s11_e1_i8_o8_c1,r2_k3_s22_e2_i8_o16_se0.25,r2_k3_s22_e2_i16_o16",
    "model.stem_filters=8",
    "model.head_filters=32",
    "model.image_size=32",
    "model.dropout_rate=0.5",
    "model.drop_connect_rate=0.3",
    "progressive.stages=3",
    "progressive.image_size=16",
    "progressive.dropout_rate=0",
    "progressive.drop_connect_rate=0.1",
)
VARIANT = describe(CONFIG.model)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return network.trained(CONFIG.model, VARIANT, 7, stages.expand(CONFIG, 10))


def _dropped(layer, shape):
    """Share of the examples' entries that a freshly traced layer drops."""
    run = tf.function(lambda x: layer(x, training=True))
    return float(np.mean(run(tf.ones(shape)).numpy() == 0))


def test_each_stage_drops_what_it_says(model):
    found = stages.expand(CONFIG, 10)
    assert [stage.dropout_rate for stage in found] == [0, 0.25, 0.5]
    for stage in found:
        network.set_rates(model, VARIANT, stage)
        share = _dropped(model.get_layer("top_dropout"), (200, 100))
        assert share == pytest.approx(stage.dropout_rate, abs=0.02)
        # Stochastic depth of block i of N is the stage's rate times i / N (V1's rule).
        blocks = resolve(VARIANT).blocks
        rates = {f"{b.name}_drop": stage.drop_connect_rate * i / 6 for i, b in enumerate(blocks)}
        layers = [layer for layer in model.layers if layer.name in rates]
        assert [layer.name for layer in layers] == ["block1b_drop", "block2b_drop", "block3b_drop"]
        for layer in layers:
            assert layer.rate == pytest.approx(rates[layer.name])
        share = _dropped(layers[-1], (20000, 1, 1, 1))
        assert share == pytest.approx(stage.drop_connect_rate * 5 / 6, abs=0.02)


def _learning(model):
    return {variable.path for variable in model.trainable_variables}


@pytest.mark.parametrize(
    ("unfreeze", "prefixes"),
    [
        ("head", ("predictions/",)),
        ("blocks:1", ("predictions/", "top_", "block3b_")),
        ("blocks:3", ("predictions/", "top_", "block3b_", "block3a_", "block2b_")),
        ("regex:^block1|^stem", ("predictions/", "block1", "stem_")),
        ("all", ("",)),
    ],
)
@pytest.mark.parametrize("freeze_batch_norm", [False, True])
def test_the_layers_that_learn_are_the_ones_asked_for(model, unfreeze, prefixes, freeze_batch_norm):
    network.set_trainable(model, VARIANT, unfreeze, freeze_batch_norm)
    weights = {
        variable.path
        for variable in model.weights
        if not variable.path.endswith(("moving_mean", "moving_variance"))
    }
    norm = ("_bn/gamma", "_bn/beta")
    expected = {
        path
        for path in weights
        if path.startswith(prefixes) and not (freeze_batch_norm and path.endswith(norm))
    }
    assert _learning(model) == expected
    assert len(expected) >= 2


def test_frozen_batch_norm_keeps_its_statistics_in_training(model):
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    network.set_trainable(model, VARIANT, "blocks:1", False)
    before = {v.path: v.numpy() for v in model.non_trainable_variables}
    tf.function(lambda x: model(x, training=True))(images)
    moved = {
        v.path.partition("/")[0]
        for v in model.non_trainable_variables
        if "moving" in v.path and not np.array_equal(v.numpy(), before[v.path])
    }
    assert moved == {"block3b_expand_bn", "block3b_bn", "block3b_project_bn", "top_bn"}


def test_what_cannot_be_unfrozen_is_explained(model):
    with pytest.raises(ValueError, match=r"has 6 blocks: block1a to block3b"):
        network.set_trainable(model, VARIANT, "blocks:7", False)
    with pytest.raises(ValueError, match=r"'regex:block9' is in no layer's name"):
        network.set_trainable(model, VARIANT, "regex:block9", False)


def test_learning_rates_fall_by_stages_towards_the_stem(model):
    factors = network.learning_rate_factors(model, VARIANT, 0.5)
    assert set(factors) == {variable.path for variable in model.weights}
    for path, expected in {
        "predictions/kernel": 1,
        "predictions/bias": 1,
        "top_conv/kernel": 0.5,
        "top_bn/gamma": 0.5,
        "block3b_project_conv/kernel": 0.25,
        "block3a_dwconv2/kernel": 0.25,
        "block2a_se_reduce/bias": 0.125,
        "block1a_project_conv/kernel": 0.0625,
        "stem_conv/kernel": 0.03125,
    }.items():
        assert factors[path] == expected


def test_the_kept_network_gives_the_trained_ones_probabilities(model):
    keeper = network.kept(CONFIG, VARIANT, model)
    keeper.set_weights(model.get_weights())
    images = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    logits = model(images, training=False).numpy().astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    expected = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(keeper(images, training=False), expected, atol=1e-6)
    assert keeper.input_shape == (None, 32, 32, 3)

    sigmoid = network.kept(override(CONFIG, "train.loss=sigmoid"), VARIANT, model)
    sigmoid.set_weights(model.get_weights())
    expected = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(sigmoid(images, training=False), expected, atol=1e-6)


def test_normalisation_is_the_configured_one():
    config = override(CONFIG, "model.normalization=torch", "data.eval_crop=pad32")
    model = network.trained(config.model, VARIANT, 7, stages.expand(config, 10))
    rule = network.evaluation_rule(config, model)
    assert (rule.crop, rule.size, rule.resize_method) == ("pad32", 32, "bilinear")
    np.testing.assert_allclose(rule.mean, (123.675, 116.28, 103.53), rtol=1e-6)
    np.testing.assert_allclose(rule.std, (58.395, 57.12, 57.375), rtol=1e-6)
    keeper = network.kept(config, VARIANT, model)
    assert list(keeper.get_layer("rescaling").scale) == list(model.get_layer("rescaling").scale)


def test_blocks_and_coefficients_of_the_configuration_make_the_network():
    assert [block.output_filters for block in VARIANT.blocks] == [8, 16, 16]
    assert VARIANT.stem_filters == 8
    narrow = dataclasses.replace(Config().model, width=0.5, depth=0.5)
    assert describe(narrow).width == 0.5
    assert describe(Config().model).name == "efficientnetv2-b0"
    with pytest.raises(ValueError, match=r"Did you mean 'efficientnet-b0'"):
        describe(dataclasses.replace(Config().model, variant="efficientnet_b0"))
    with pytest.raises(ValueError, match=r"Token 'x3'"):
        describe(dataclasses.replace(Config().model, blocks=("r1_x3",)))
