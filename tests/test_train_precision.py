"""Precision by hardware, and float16 with a loss scale, against arithmetic by hand."""

import signal

import keras
import numpy as np
import pytest
import scripting
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import (
    average,
    checkpoint,
    interruption,
    loop,
    precision,
    run,
    workdir,
)
from efficientnet_tf.train import optimizer as optimizer_lib

ONE = tf.distribute.get_strategy()
CONFIG = override(
    Config(),
    "train.optimizer=sgd",
    "train.momentum=0.5",
    "train.learning_rate=32",  # for 256 pictures; 1 for 8
    "train.epochs=8",
    "data.batch_size=8",
)
SCALE = 2.0**20  # the slopes of 8 pictures reach 2**17 with it, beyond float16


def linear():
    """Logits are a linear function of the pixels' mean; their gradient passes through float16."""

    @tf.custom_gradient
    def narrow(x):
        return x, lambda upstream: tf.cast(tf.cast(upstream, tf.float16), tf.float32)

    keras.utils.set_random_seed(2)
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    x = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0, 0.1))(x)
    return keras.Model(inputs, keras.layers.Lambda(narrow)(x))


def batches():
    """Three: slopes that float16 holds at `SCALE`, slopes of the second half that it does not."""
    random = np.random.default_rng(0)
    images = random.normal(size=(8, 4, 4, 3)).astype(np.float32)
    unsure = np.full((8, 3), 1 / 3, np.float32)
    sure = unsure.copy()
    sure[4:] = np.eye(3)[random.integers(0, 3, 4)]
    return [(images, unsure), (images, sure), (images, sure)]


def trained(strategy, steps, scale=None, config=CONFIG, kernel=None):
    """A trainee after a step for each batch, all in one call."""
    with strategy.scope():
        model = linear()
        if kernel is not None:
            model.layers[2].set_weights(kernel)
        optimizer = optimizer_lib.create(config, model.trainable_variables, 1, 8)
        made = None if scale is None else precision.LossScale(**scale)
        trainee = loop.Trainee(model, optimizer, average.MovingAverage(model, 0.5), made)
    data = tf.data.Dataset.from_tensor_slices(tuple(np.stack(y) for y in zip(*steps, strict=True)))
    replicas = strategy.num_replicas_in_sync
    data = data.unbatch().batch(8 // replicas, drop_remainder=True)
    distributed = strategy.distribute_datasets_from_function(
        lambda context: data.shard(context.num_input_pipelines, context.input_pipeline_id)
    )
    function = loop.training_steps(strategy, trainee, 8, config.train)
    function(iter(distributed), tf.constant(len(steps)))
    return trainee


def by_hand(steps, iterations):
    """Weights and their average after steps of descent with momentum, in float64.

    Args:
        steps: the batches that are learnt from.
        iterations: the place of each in the schedule, from 0.
    """
    values = [v.astype(np.float64) for v in linear().get_weights()]
    sums, means = [np.zeros_like(v) for v in values], list(values)
    for (images, targets), step in zip(steps, iterations, strict=True):
        features = images.astype(np.float64).mean((1, 2))
        powers = np.exp(features @ values[0] + values[1])
        slope = (powers / powers.sum(-1, keepdims=True) - targets) / 8
        rate = 0.5 * (1 + np.cos(np.pi * step / 8))
        for i, gradient in enumerate((features.T @ slope, slope.sum(0))):
            sums[i] = 0.5 * sums[i] + gradient
            values[i] = values[i] - rate * sums[i]
            decay = min(0.5, (2 + step) / (11 + step))
            means[i] = decay * means[i] + (1 - decay) * values[i]
    return values + means


def found(trainee):
    return trainee.model.get_weights() + [v.numpy() for v in trainee.average.averages]


def assert_close(values, expected):
    for a, b in zip(values, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)  # float16 has 11 bits


@pytest.mark.parametrize("parts", [1, 2])
def test_scaled_steps_are_unscaled_ones(parts):
    config = override(CONFIG, f"train.accumulate={parts}")
    trainee = trained(ONE, batches(), {"initial": 2.0**10}, config)
    assert_close(found(trainee), by_hand(batches(), (0, 1, 2)))
    assert float(trainee.loss_scale.value) == 2.0**10
    assert float(trainee.loss_scale.good_steps) == 3


def test_clipping_and_decay_are_of_the_gradients_without_the_scale():
    settings = "train.clip_norm=0.05", "train.weight_decay=0.1"
    config = override(CONFIG, *settings)
    scaled = trained(ONE, batches(), {"initial": 2.0**10}, config)
    plain = trained(ONE, batches(), None, config)
    assert_close(found(scaled), found(plain))


def test_slopes_that_float16_rounds_to_nothing_are_learnt_from():
    images, targets = batches()[0]
    targets[:] = [1, 0, 0]
    sure = [np.zeros((3, 3), np.float32), np.float32([20, 0, 0])]  # slopes of exp(-20) / 8
    moved = [
        trained(ONE, [(images, targets)], scale, kernel=sure).optimizer.variables[-1].numpy()
        for scale in (None, {"initial": SCALE})
    ]
    assert not moved[0].any()
    np.testing.assert_allclose(moved[1][1:], np.exp(-20.0), rtol=5e-3)  # momentum of the bias


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_overflows_halves_the_scale_and_changes_nothing_else(parts):
    config = override(CONFIG, f"train.accumulate={parts}")
    trainee = trained(ONE, batches(), {"initial": SCALE}, config)
    first, _, third = batches()
    assert_close(found(trainee), by_hand([first, third], (0, 2)))  # the schedule counts all
    assert float(trainee.loss_scale.value) == SCALE / 2
    assert float(trainee.loss_scale.good_steps) == 1
    assert int(trainee.optimizer.iterations.numpy()) == 3
    assert trainee.broken_steps(1) == 0


@pytest.mark.parametrize("name", ["rmsprop", "adamw", "lars"])
def test_no_optimizer_moves_anything_where_gradients_overflow(name):
    config = override(CONFIG, f"train.optimizer={name}", "train.momentum=0.9")
    trainee = trained(ONE, batches()[1:2], {"initial": SCALE}, config)
    fresh = optimizer_lib.create(config, linear().trainable_variables, 1, 8)
    iterations, *slots = (v.numpy() for v in trainee.optimizer.variables)
    assert iterations == 1
    start = linear().get_weights()
    expected = [v.numpy() for v in fresh.variables[1:]] + start + start
    for value, before in zip(slots + found(trainee), expected, strict=True):
        np.testing.assert_array_equal(value, before)


def test_overflow_at_the_lowest_scale_is_an_error():
    trainee = trained(ONE, batches(), {"initial": SCALE, "lowest": SCALE})
    assert trainee.broken_steps(1) == 2  # the second of three, and all after it


def test_a_loss_that_is_not_finite_is_an_error_at_once():
    first, (images, targets), last = batches()
    images = images.copy()
    images[7] = np.nan
    trainee = trained(ONE, [first, (images, targets), last], {"initial": 2.0**10})
    assert trainee.broken_steps(1) == 2
    assert all(np.isfinite(value).all() for value in found(trainee))


def test_the_scale_grows_after_good_steps_and_stays_within_limits():
    scale = precision.LossScale(4.0, growth_steps=2, lowest=2.0)
    values = []
    for finite in (True, True, True, False, True, True, False, False, False, True):
        scale.update(tf.constant(finite))
        values.append(float(scale.value))
    assert values == [4, 8, 8, 4, 4, 8, 4, 2, 2, 2]
    highest = precision.LossScale(2.0**24, growth_steps=1)
    highest.update(tf.constant(True))
    assert float(highest.value) == 2.0**24


_TWO_REPLICAS = """
import json
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import test_train_precision as tests
from efficientnet_tf.train import strategy as strategy_lib
mirrored = strategy_lib.create("mirrored")
trainee = tests.trained(mirrored, tests.batches(), {"initial": tests.SCALE})
def local(variables):
    both = [mirrored.experimental_local_results(v) for v in variables]
    return [[value.numpy().tolist() for value in values] for values in both]
print("REPORT " + json.dumps({
    "weights": local([v.value for v in trainee.model.weights] + trainee.average.averages),
    "scale": local([trainee.loss_scale.value, trainee.loss_scale.good_steps]),
    "momentum": local([v.value for v in trainee.optimizer.variables[1:]]),
    "broken": trainee.broken_steps(2),
}))
"""


def test_two_replicas_decide_alike(root):
    """Only the second one's gradients overflow; the first learns nothing from that step either."""
    report = scripting.reported(root, _TWO_REPLICAS)
    for first, second in report["weights"] + report["momentum"]:
        assert first == second
    first, _, third = batches()
    assert_close([y[0] for y in report["weights"]], by_hand([first, third], (0, 2)))
    assert report["scale"] == [[SCALE / 2] * 2, [1.0] * 2]
    assert report["broken"] == 0


def test_checkpoints_hold_the_scale(tmp_path):
    trainee = trained(ONE, batches(), {"initial": SCALE})
    checkpoint.save(tmp_path, checkpoint.Progress(), ONE, trainee, 1)
    other = trained(ONE, batches()[:1], {})
    checkpoint.restore(tmp_path, ONE, other)
    assert float(other.loss_scale.value) == SCALE / 2
    assert float(other.loss_scale.good_steps) == 1


def test_a_run_in_float16_learns_and_goes_on_with_its_scale(tmp_path, monkeypatch):
    """Digits; the scale begins so high that the first steps overflow."""
    monkeypatch.setattr(precision.LossScale.__init__, "__defaults__", (2.0**24, 20, 1.0))
    settings = (
        "model.blocks=r1_k3_s22_e1_i8_o8_c1,r1_k3_s22_e2_i8_o16_se0.25",
        "model.stem_filters=8",
        "model.head_filters=32",
        "train.precision=mixed_float16",
        "train.learning_rate=0.08",
        "train.epochs=10",
        "train.warmup_epochs=1",
    )
    config = override(RECIPES["digits"], *settings)
    result = run.train(config, tmp_path / "whole")
    assert result.test.top1 > 0.8
    assert {layer.compute_dtype for layer in result.model.layers} == {"float32"}  # what is kept

    with monkeypatch.context() as patch:
        calls = []

        def save(*args, **kwargs):
            calls.append(None)
            if len(calls) == 4:
                signal.raise_signal(signal.SIGTERM)
            return saved(*args, **kwargs)

        saved = checkpoint.save
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(interruption.Interrupted):
            run.train(config, tmp_path / "stopped")
    run.train(config, tmp_path / "stopped")
    first, second = (
        np.load(max((tmp_path / name / workdir.CHECKPOINTS).glob("*.npz")))
        for name in ("whole", "stopped")
    )
    assert 2.0**4 < first["0/scale/0"] < 2.0**24
    for name in (name for name in first.files if name != "progress"):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize(
    ("capabilities", "flags", "expected", "reason"),
    [
        ([(9, 0), (8, 0)], (), "mixed_bfloat16", "capability 8.0"),
        ([(8, 0), (7, 5)], (), "mixed_float16", "capability 7.5"),
        ([(6, 1)], ("avx512_bf16",), "float32", "capability 6.1"),
        ([], ("fma", "avx512_bf16"), "mixed_bfloat16", "AVX512_BF16"),
        ([], ("amx_bf16",), "mixed_bfloat16", "AMX_BF16"),
        ([], ("avx512f",), "float32", "none of AVX512_BF16, AMX_BF16"),
    ],
)
def test_auto_is_chosen_by_hardware_and_said(
    monkeypatch, caplog, capabilities, flags, expected, reason
):
    monkeypatch.setattr(precision, "_compute_capabilities", lambda: capabilities)
    monkeypatch.setattr(precision, "_processor_flags", lambda: frozenset(flags))
    with caplog.at_level("INFO", logger="absl"):
        config = precision.resolved(override(CONFIG, "train.precision=auto"), ONE)
    assert config.train.precision == expected
    assert f"train.precision={expected}" in caplog.text
    assert reason in caplog.text


def test_tpus_compute_in_bfloat16(monkeypatch):
    monkeypatch.setattr(tf.distribute, "TPUStrategy", type(ONE))
    assert precision.resolve(ONE)[0] == "mixed_bfloat16"


def test_what_is_given_is_used_whatever_the_hardware(monkeypatch):
    monkeypatch.setattr(precision, "_compute_capabilities", lambda: [(9, 0)])
    config = override(CONFIG, "train.precision=float32")
    assert precision.resolved(config, ONE) == config


def test_policy_holds_inside_the_with_only():
    with precision.policy("mixed_float16"):
        assert keras.config.dtype_policy().name == "mixed_float16"
        inside = keras.layers.Dense(1)
    assert keras.config.dtype_policy().name == "float32"
    assert (inside.compute_dtype, inside.variable_dtype) == ("float16", "float32")
