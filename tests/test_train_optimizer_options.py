"""What weight decay covers, clipping, several replicas, and saving of optimizers."""

import json

import keras
import numpy as np
import pytest
import scripting
import tensorflow as tf

from efficientnet_tf.config import Config, override
from efficientnet_tf.models import blocks
from efficientnet_tf.train import optimizer as optimizer_lib

BASE = (
    "train.optimizer=sgd",
    "train.momentum=0",
    "train.schedule=constant",
    "train.learning_rate=1",
    "data.batch_size=256",
)
DECAY = (*BASE, "train.weight_decay=0.1", "train.weight_decay_in=update")


@pytest.fixture(scope="module")
def network():
    """One block with squeeze-and-excitation between stem and classifier, all values in [1, 2]."""
    inputs = keras.Input((8, 8, 3))
    x = blocks.conv_bn(inputs, 4, 3, 2, "stem", activation="silu")
    x = blocks.mbconv(x, 4, "block", expanded_filters=8, se_filters=2)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="predictions")(x))
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(1, 2, w.shape) for w in model.get_weights()])
    return model


KERNELS = {
    "stem_conv/kernel",
    "block_expand_conv/kernel",
    "block_dwconv/kernel",
    "block_se_reduce/kernel",
    "block_se_expand/kernel",
    "block_project_conv/kernel",
    "predictions/kernel",
}
BIASES = {"block_se_reduce/bias", "block_se_expand/bias", "predictions/bias"}
NORMS = {"stem_bn", "block_expand_bn", "block_bn", "block_project_bn"}
COVERED = {"kernels": KERNELS, "all_but_norm": KERNELS | BIASES}
EVERYTHING = KERNELS | BIASES | {f"{n}/{v}" for n in NORMS for v in ("gamma", "beta")}


@pytest.mark.parametrize("on", ["kernels", "all_but_norm"])
def test_l2_sums_what_the_released_code_does(on, network):
    """V2 leaves out biases, V1 only batch normalization: values of the loss's term."""
    by_path = {v.path: v for v in network.trainable_variables}
    assert set(by_path) == EVERYTHING
    expected = sum(
        (by_path[path].numpy().astype(np.float64) ** 2).sum() / 2 for path in COVERED[on]
    )
    found = sum(
        float(tf.nn.l2_loss(v.value))
        for v in network.trainable_variables
        if optimizer_lib.decayed(v, on)
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("on", ["kernels", "all_but_norm"])
@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw"])
def test_decay_in_the_update_shrinks_those_only(name, on, network):
    settings = (*DECAY[2:], f"train.optimizer={name}", f"train.weight_decay_on={on}")
    variables = network.trainable_variables
    start = [v.numpy() for v in variables]
    optimizer = optimizer_lib.create(override(Config(), *settings), variables, 10, 1)
    optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    for variable, before in zip(variables, start, strict=True):
        factor = 0.9 if variable.path in COVERED[on] else 1.0
        np.testing.assert_allclose(variable.numpy(), before * factor, rtol=1e-6)
        variable.assign(before)


def test_norm_is_told_by_its_variables_not_by_the_layers_name():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="gamma_beta_bias")(inputs)
    x = keras.layers.LayerNormalization(name="kernel")(x)
    model = keras.Model(inputs, x)
    for on, expected in (("kernels", [True, False]), ("all_but_norm", [True, True])):
        found = [optimizer_lib.decayed(v, on) for v in model.trainable_variables]
        assert found == [*expected, False, False]


def _clipped(*settings):
    """Steps of 1 against gradients of length 3 and 4 (5 together), and 0."""
    variables = [keras.Variable(np.zeros(2, np.float32), name=n) for n in ("a", "b", "c")]
    optimizer = optimizer_lib.create(override(Config(), *BASE, *settings), variables, 10, 1)
    gradients = [tf.constant([3.0, 0.0]), tf.constant([0.0, 4.0]), tf.zeros(2)]
    optimizer.apply(gradients, variables)
    return [-v.numpy() for v in variables]


@pytest.mark.parametrize(
    ("norm", "clip", "first", "second"),
    [
        (0.5, "global", 0.3, 0.4),
        (0.5, "variable", 0.5, 0.5),
        (0.5, "both", 0.5 / 2**0.5, 0.5 / 2**0.5),
        (3.5, "global", 2.1, 2.8),
        (3.5, "variable", 3.0, 3.5),
        (3.5, "both", 3.0 * 3.5 / 21.25**0.5, 3.5 * 3.5 / 21.25**0.5),
        (6, "global", 3.0, 4.0),
        (6, "variable", 3.0, 4.0),
        (6, "both", 3.0, 4.0),
    ],
)
def test_clipping(norm, clip, first, second):
    found = _clipped(f"train.clip_norm={norm}", f"train.clip={clip}")
    np.testing.assert_allclose(found, [[first, 0], [0, second], [0, 0]], rtol=1e-6)


def test_no_clipping_by_default():
    np.testing.assert_array_equal(_clipped(), [[3, 0], [0, 4], [0, 0]])


def test_some_of_the_variables_may_take_a_step():
    """As where the classifier learns first: the others keep values and slots."""
    variables = [keras.Variable([1.0, 2.0], name=n) for n in ("a", "b")]
    settings = (*DECAY, "train.optimizer=rmsprop", "train.momentum=0.9")
    multipliers = {"b": 0.5}
    optimizer = optimizer_lib.create(
        override(Config(), *settings), variables, 10, 1, multipliers=multipliers
    )
    before = [v.numpy() for v in optimizer.variables]
    optimizer.apply([tf.zeros(2)], variables[1:])
    np.testing.assert_array_equal(variables[0].numpy(), [1.0, 2.0])
    np.testing.assert_allclose(variables[1].numpy(), [0.95, 1.9], rtol=1e-6)
    changed = [
        v.path
        for v, old in zip(optimizer.variables, before, strict=True)
        if not np.array_equal(v.numpy(), old)
    ]
    assert changed == [f"{optimizer.name}/iteration", f"{optimizer.name}/b_velocity"]


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_wrong_multipliers_are_refused(factor):
    variable = keras.Variable([1.0], name="kernel")
    with pytest.raises(ValueError, match=r"finite and >= 0. Received: .* for 'kernel'"):
        optimizer_lib.create(
            override(Config(), *BASE), [variable], 10, 1, multipliers={"kernel": factor}
        )


@pytest.mark.parametrize("make", [optimizer_lib.SGD, optimizer_lib.LARS])
def test_nesterov_is_refused(make):
    with pytest.raises(ValueError, match=r"nesterov=True is not supported. Use keras"):
        make(0.1, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lars"])
def test_goes_on_from_a_checkpoint(name, tmp_path):
    config = override(
        Config(),
        f"train.optimizer={name}",
        "train.warmup_epochs=0.3",
        "data.batch_size=256",
        "train.weight_decay=0.1",
        "train.weight_decay_in=update",
        "train.clip_norm=1",
        "train.clip=both",
    )
    random = np.random.default_rng(0)
    gradients = [tf.constant(random.normal(size=(2, 2)).astype(np.float32)) for _ in range(8)]

    def make():
        variable = keras.Variable(np.ones((2, 2), np.float32), name="kernel")
        multipliers = {"kernel": 0.5}
        optimizer = optimizer_lib.create(config, [variable], 10, 10, multipliers=multipliers)
        return variable, optimizer

    variable, optimizer = make()
    for gradient in gradients[:4]:
        optimizer.apply([gradient], [variable])
    path = tf.train.Checkpoint(variable=variable.value, optimizer=optimizer).write(
        str(tmp_path / "checkpoint")
    )
    again, restored = make()
    tf.train.Checkpoint(variable=again.value, optimizer=restored).read(path).assert_consumed()
    for gradient in gradients[4:]:
        optimizer.apply([gradient], [variable])
        restored.apply([gradient], [again])
    np.testing.assert_array_equal(variable.numpy(), again.numpy())
    assert np.abs(variable.numpy() - 1).max() > 1e-6


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw"])
def test_a_variable_that_begins_late_starts_as_at_the_first_step(name):
    """Nothing but the classifier learns for 100 steps; then the other one does as it did."""
    config = override(Config(), f"train.optimizer={name}", "train.schedule=constant")
    gradients = np.random.default_rng(0).normal(size=(20, 3, 3)).astype(np.float32)
    head, late = (keras.Variable(np.ones((3, 3), np.float32), name="kernel") for _ in range(2))
    optimizer = optimizer_lib.create(config, [head, late], 1, 1)
    path = []
    for gradient in np.concatenate([gradients] * 5):
        optimizer.apply([gradient], [head])
        path.append(head.numpy())
    for step, gradient in enumerate(gradients):
        optimizer.apply([gradient, gradient], [head, late])
        np.testing.assert_allclose(late.numpy(), path[step], atol=1e-5)
    assert np.abs(path[19] - 1).max() > 1e-3


# One process, because logical devices are set once. Two replicas get the halves of what one gets.
_TWO_REPLICAS = """
import json
import keras
import numpy as np
import tensorflow as tf
from efficientnet_tf.config import Config, override
from efficientnet_tf.train import average as average_lib, optimizer as optimizer_lib

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
parts = np.random.default_rng(0).normal(size=(20, 2, 6)).astype(np.float32)

def fit(strategy, name, clip):
    config = override(
        Config(), f"train.optimizer={name}", f"train.clip={clip}", "train.clip_norm=0.5",
        "train.learning_rate=0.01", "train.warmup_epochs=0.5", "train.epochs=1",
        "data.batch_size=256", "train.weight_decay=0.1", "train.weight_decay_in=update")
    with strategy.scope():
        dense = keras.layers.Dense(2)
        model = keras.Sequential([keras.Input((2,)), dense])
        model.set_weights([np.ones((2, 2)), np.ones(2)])
        variables = model.trainable_variables
        optimizer = optimizer_lib.create(
            config, variables, 20, 1, multipliers={variables[0].path: 0.5})
        average = average_lib.MovingAverage(model, 0.9)

    def replica_step(part):
        optimizer.apply([tf.reshape(part[:4], (2, 2)), part[4:]], variables)
        average.update(optimizer.iterations.value)

    step = tf.function(lambda part: strategy.run(replica_step, args=(part,)))
    for both in parts:
        if strategy.num_replicas_in_sync == 2:
            step(strategy.experimental_distribute_values_from_function(
                lambda context: tf.constant(both[context.replica_id_in_sync_group])))
        else:
            step(tf.constant(both.sum(0)))
    weights = model.get_weights()
    tf.function(lambda: strategy.run(average.swap))()
    return [w.tolist() for w in (*weights, *model.get_weights())]

report = {}
for name in ("rmsprop", "sgd", "adamw", "lars"):
    for clip in ("global", "variable", "both"):
        report[f"{name} {clip}"] = [
            fit(tf.distribute.get_strategy(), name, clip), fit(mirrored, name, clip)]
print("REPORT " + json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(root):
    """What the two-replica process found."""
    return scripting.reported(root, _TWO_REPLICAS)


@pytest.mark.parametrize("clip", ["global", "variable", "both"])
@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lars"])
def test_two_replicas_step_as_one_does(name, clip, report):
    """20 steps with clipping, decay, multipliers, a warm-up and the moving average."""
    one, two = report[f"{name} {clip}"]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert np.abs(np.array(one[1]) - 1).max() > 1e-3  # training did something
    others = [report[f"{name} {other}"][0] for other in ("global", "variable", "both")]
    if name == "sgd":  # the rules differ, so agreement means something
        assert len({json.dumps(other) for other in others}) == 3
