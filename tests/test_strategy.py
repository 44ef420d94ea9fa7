"""Strategies: which one is made, and that two replicas train as one does."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import scripting
import tensorflow as tf

from efficientnet_tf.train import strategy as strategy_lib

# One process, because logical devices are set once: the same steps on one device and on two.
_TWO_REPLICAS = """
import json
import keras
import numpy as np
import tensorflow as tf
from efficientnet_tf.config import Config, override
from efficientnet_tf import stages
from efficientnet_tf.data import pipeline, sources
from efficientnet_tf.preprocessing import own
from efficientnet_tf.train import feed, loop, optimizer as optimizer_lib, strategy as strategy_lib
from efficientnet_tf.train.average import MovingAverage

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = strategy_lib.create("mirrored")
assert mirrored.num_replicas_in_sync == 2
config = override(
    Config(), "model.image_size=32", "data.batch_size=16", "data.shift=2",
    "train.learning_rate=0.1", "train.warmup_epochs=1", "train.label_smoothing=0.1",
    "train.clip_norm=0.05", "train.clip=both", "train.ema_decay=0.9", "train.weight_decay=0.01",
    "train.accumulate=2",
)
(stage,) = stages.expand(config, 10)
rule = own(32, [1, 1, 1], [0, 0, 0])
source = sources.open_source(config.data)

def net(bn, dropout):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(8, 3, strides=4), keras.layers.ReLU()]
    if bn:
        layers.append(keras.layers.BatchNormalization(momentum=0.5))
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(dropout)]
    return keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 128, -1), *layers,
         keras.layers.Dense(10)])

def fit(strategy, optimizer, bn=False):
    settings = override(config, f"train.optimizer={optimizer}")
    with strategy.scope():
        model = net(bn, 0.0)
        trainee = loop.Trainee(
            model, optimizer_lib.create(settings, model.trainable_variables, 4, 10),
            MovingAverage(model, 0.9))
    batches = iter(feed.training_batches(settings, source, strategy, stage))
    steps = loop.training_steps(strategy, trainee, 16, settings.train)
    for count in (1, 5, 6):
        steps(batches, tf.constant(count))
    trained = trainee.scores()
    test = iter(feed.evaluation_batches(settings, source, "test", strategy, rule))
    count = feed.evaluation_steps(settings, source, "test")
    scores = loop.evaluator(strategy, trainee)(test, count)
    weights = model.get_weights()
    loop.average_swapper(strategy, trainee)()
    return weights + model.get_weights(), trained, scores, model, trainee

report = {}
for optimizer in ("rmsprop", "sgd", "adamw", "lars"):
    one, trained_one, scores_one, *_ = fit(tf.distribute.get_strategy(), optimizer)
    two, trained_two, scores_two, *_ = fit(mirrored, optimizer)
    start = net(False, 0.0).get_weights()
    report[optimizer] = {
        "difference": max(float(np.abs(a - b).max()) for a, b in zip(one, two)),
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(one, start)),
        "trained": [trained_one.count, trained_two.count, trained_one.loss - trained_two.loss],
        "counts": [scores_one.count, scores_two.count],
        "losses": [scores_one.loss, scores_two.loss],
    }

# Batch statistics: each replica has its own until they are averaged.
_, _, _, model, trainee = fit(mirrored, "sgd", bn=True)
mean = next(v for v in model.variables if v.path.endswith("moving_mean")).value
def set_mean():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    mean.assign(tf.ones(8) * tf.cast(replica, tf.float32))

mirrored.run(tf.function(set_mean))
loop.statistics_averager(mirrored, model)()
report["means"] = [float(v[0]) for v in mirrored.experimental_local_results(mean)]

# Dropout: replicas draw different masks, the first one as without a strategy.
def masks(strategy, separate):
    with strategy.scope():
        model = net(False, 0.5)
    if separate:
        loop.separate_dropout(strategy, model)
    drop = next(y for y in model.layers if isinstance(y, keras.layers.Dropout))
    out = strategy.run(tf.function(lambda: drop(tf.ones((1, 64)), training=True)))
    return [v.numpy().tolist() for v in strategy.experimental_local_results(out)]

alone = masks(tf.distribute.get_strategy(), True)
shared, apart = masks(mirrored, False), masks(mirrored, True)
report["masks"] = [shared[0] == shared[1], apart[0] != apart[1], apart[0] == alone[0]]
print("REPORT " + json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(root):
    """What the two-replica process found."""
    return scripting.reported(root, _TWO_REPLICAS)


@pytest.mark.parametrize("optimizer", ["rmsprop", "sgd", "adamw", "lars"])
def test_two_replicas_train_as_one_does(report, optimizer):
    """12 steps in parts with L2, smoothing, clipping, warmup and moving average."""
    found = report[optimizer]
    # Adam divides by gradients that can be tiny, which enlarges float32's rounding.
    assert found["difference"] <= 1e-5
    assert found["moved"] > 1e-3  # training did something
    assert found["trained"][:2] == [192, 192]
    assert abs(found["trained"][2]) < 1e-5


@pytest.mark.parametrize("optimizer", ["rmsprop", "sgd", "adamw", "lars"])
def test_two_replicas_evaluate_every_picture_once(report, optimizer):
    found = report[optimizer]
    assert found["counts"] == [359, 359]  # 16 does not divide 359
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-5)


def test_batch_statistics_of_replicas_are_averaged(report):
    assert report["means"] == [0.5, 0.5]


def test_replicas_draw_their_own_dropout_masks(report):
    same_before, different_after, first_unchanged = report["masks"]
    assert same_before  # Keras' behaviour, the reason for the function
    assert different_after
    assert first_unchanged


def test_auto_is_one_device_without_several_gpus():
    if len(tf.config.list_physical_devices("GPU")) > 1:
        pytest.skip("there are several GPUs")
    assert strategy_lib.create("auto").num_replicas_in_sync == 1


def test_unknown_strategy_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"mirrored, multiworker, tpu. Received: 'gpu'"):
        strategy_lib.create("gpu")


def test_tpus_are_found_by_name_zone_and_project(monkeypatch):
    """With a fake in place of Google Cloud: what is called, in this order, and with what."""
    calls = []

    def fake(name):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return tf.distribute.get_strategy() if name == "TPUStrategy" else name

        return call

    resolvers = tf.distribute.cluster_resolver
    monkeypatch.setattr(resolvers, "TPUClusterResolver", fake("resolver"))
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", fake("connect"))
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", fake("initialize"))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", fake("TPUStrategy"))
    made = strategy_lib.create("tpu", "node-1", tpu_zone="us-central2-b", tpu_project="flowers")
    assert made is tf.distribute.get_strategy()
    assert calls == [
        ("resolver", (), {"tpu": "node-1", "zone": "us-central2-b", "project": "flowers"}),
        ("connect", ("resolver",), {}),
        ("initialize", ("resolver",), {}),
        ("TPUStrategy", ("resolver",), {}),
    ]
    calls.clear()
    strategy_lib.create("tpu")
    assert calls[0] == ("resolver", (), {"tpu": "", "zone": None, "project": None})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--tpu", "--tpu_name=node-1", "--tpu_zone=us-central2-b", "--tpu_project=flowers"],
            ["tpu", "node-1", "us-central2-b", "flowers"],
        ),
        (["--strategy=cpu"], ["cpu", "", None, None]),
    ],
)
def test_the_script_passes_its_flags_on(root, tmp_path, flags, expected):
    program = """
import json, runpy, sys
from efficientnet_tf.train import strategy
def create(name, tpu_name, *, tpu_zone, tpu_project, **_):
    raise ValueError(json.dumps([name, tpu_name, tpu_zone, tpu_project]))
strategy.create = create
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(root / "scripts/train.py"), *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "scripts")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    (line,) = (y for y in done.stderr.splitlines() if y.startswith("error: "))
    assert json.loads(line.removeprefix("error: ")) == expected


def test_a_named_tpu_without_googles_client_is_explained():
    if importlib.util.find_spec("googleapiclient"):
        pytest.skip("Google's API client is installed, and would ask for the TPU")
    with pytest.raises(RuntimeError, match=r"efficientnet_tf\[tpu\].*the Google API client"):
        strategy_lib.create("tpu", "node-1", tpu_zone="us-central2-b", tpu_project="flowers")


def test_a_tpu_that_is_named_for_nothing_is_refused():
    with pytest.raises(ValueError, match=r"used only with --tpu. Received: 'cpu'"):
        strategy_lib.create("cpu", tpu_zone="us-central2-b")


def test_no_tpu_is_explained():
    if tf.config.list_physical_devices("TPU"):
        pytest.skip("there is a TPU")
    # An address on this machine, because an empty name asks Google's metadata server for a TPU.
    with pytest.raises(RuntimeError, match=r"No TPU was found .*pip install tensorflow-tpu"):
        strategy_lib.create("tpu", "local")
