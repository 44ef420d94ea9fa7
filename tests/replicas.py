"""The same steps on one device, on two of one process, or on two workers, for tests to compare.

As a program: `python replicas.py STRATEGY FILE` writes what `report` finds to FILE, by worker.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf import stages
from efficientnet_tf.config import Config, override
from efficientnet_tf.data import sources
from efficientnet_tf.preprocessing import own
from efficientnet_tf.train import feed, loop, network, setup, workers
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train import strategy as strategy_lib
from efficientnet_tf.train.average import MovingAverage

BATCH = 16
STEPS = (1, 5, 6)  # steps of each call
CONFIG = override(
    Config(),
    "model.image_size=32",
    f"data.batch_size={BATCH}",
    "data.shift=2",
    "train.optimizer=sgd",
    "train.learning_rate=0.1",
    "train.warmup_epochs=1",
    "train.label_smoothing=0.1",
    "train.clip_norm=0.05",
    "train.clip=both",
    "train.ema_decay=0.9",
    "train.weight_decay=0.01",
)
# Steps of plain gradient descent at a rate of 1, which show each variable's factor.
FINETUNING = override(
    Config(),
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r2_k3_s22_e2_i8_o16_se0.25,r1_k3_s11_e2_i16_o16",
    "model.stem_filters=8",
    "model.head_filters=16",
    "model.image_size=32",
    "model.dropout_rate=0.5",
    "model.drop_connect_rate=0.3",
    "data.batch_size=256",
    "train.optimizer=sgd",
    "train.momentum=0",
    "train.learning_rate=1",
    "train.schedule=constant",
    "finetune.layer_decay=0.5",
)


def net(norm: bool, dropout: float = 0.0) -> keras.Model:
    """Makes a small network, always with the same weights."""
    keras.utils.set_random_seed(1)
    norms = [keras.layers.BatchNormalization(momentum=0.5)] if norm else []
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 128, -1),
            keras.layers.Conv2D(8, 3, strides=4),
            *norms,
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(dropout),
            keras.layers.Dense(10),
        ]
    )


def fit(strategy: tf.distribute.Strategy, norm: bool) -> dict:
    """Trains on the digits and scores the test split, whose 359 pictures no batch divides."""
    (stage,) = stages.expand(CONFIG, 10)
    source = sources.open_source(CONFIG.data)
    with strategy.scope():
        model = net(norm)
        if norm:
            network.synchronize(model)
        optimizer = optimizer_lib.create(CONFIG, model.trainable_variables, 4, 10)
        trainee = loop.Trainee(model, optimizer, MovingAverage(model, 0.9))
    start = model.get_weights()
    batches = iter(feed.training_batches(CONFIG, source, strategy, stage))
    steps = loop.training_steps(strategy, trainee, BATCH, CONFIG.train)
    for count in STEPS:
        steps(batches, tf.constant(count))
    trained = trainee.scores()
    weights = model.get_weights()  # before the statistics are averaged
    scores = evaluate(strategy, trainee)
    loop.average_swapper(strategy, trainee)()
    found = [*weights, *model.get_weights()]
    return {
        "weights": [weight.ravel().tolist() for weight in found],
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(weights, start, strict=True)),
        "trained": [trained.count, trained.loss, trained.accuracy],
        "scores": [scores.count, scores.loss, scores.accuracy],
    }


def evaluate(strategy: tf.distribute.Strategy, trainee: loop.Trainee) -> loop.Scores:
    """Scores the test split."""
    source, rule = sources.open_source(CONFIG.data), own(32, [1, 1, 1], [0, 0, 0])
    test = iter(feed.evaluation_batches(CONFIG, source, "test", strategy, rule))
    count = feed.evaluation_steps(CONFIG, source, "test")
    return loop.evaluator(strategy, trainee)(test, count)


def prepared(strategy: tf.distribute.Strategy) -> dict:
    """What a run starts with: seeds of dropout by replica, factors of the rates by variable."""
    trainee = setup.prepare(FINETUNING, strategy, None, pathlib.Path()).trainee
    seeds = [v.value for v in trainee.model.variables if "seed_generator_state" in v.path]
    local = [strategy.experimental_local_results(seed) for seed in seeds]
    variables = trainee.model.trainable_variables
    before = {v.path: v.numpy() for v in variables}

    def step():  # with the replica's part of a gradient of ones
        share = 1 / strategy.num_replicas_in_sync
        trainee.optimizer.apply([tf.fill(v.shape, share) for v in variables], variables)

    strategy.run(tf.function(step))
    return {
        "seeds": np.swapaxes(local, 0, 1).tolist(),
        "factors": {v.path: float((before[v.path] - v.numpy()).mean()) for v in variables},
    }


def report(strategy: tf.distribute.Strategy) -> dict:
    """All that tests ask about."""
    found = {"plain": fit(strategy, norm=False), "synchronized": fit(strategy, norm=True)}
    found["prepared"] = prepared(strategy)
    with strategy.scope():
        model = net(norm=True, dropout=0.5)
        trainee = loop.Trainee(model, optimizer_lib.create(CONFIG, model.trainable_variables, 4, 1))
    # Batch statistics: each replica has its own until the model is evaluated.
    mean = next(v for v in model.variables if v.path.endswith("moving_mean")).value

    def set_mean():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        mean.assign(tf.ones(8) * tf.cast(replica, tf.float32))

    def means():
        return [float(v[0]) for v in strategy.experimental_local_results(mean)]

    strategy.run(tf.function(set_mean))
    found["means"] = [means()]
    found["losses"] = [evaluate(strategy, trainee).loss]
    found["means"].append(means())
    found["losses"].append(evaluate(strategy, trainee).loss)
    # Dropout: replicas draw different masks, the first one as without a strategy.
    loop.separate_dropout(strategy, model)
    drop = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))
    masks = strategy.run(tf.function(lambda: drop(tf.ones((1, 64)), training=True)))
    found["masks"] = [v.numpy().tolist() for v in strategy.experimental_local_results(masks)]
    return found


def tell(strategy: tf.distribute.Strategy) -> dict:
    """What workers tell each other."""
    index = strategy_lib.worker(strategy).index
    found = {
        "texts": workers.exchange(strategy, ["", "é\udcff"][index]),
        "empty": workers.exchange(strategy, ""),
        "any": [workers.any_of(strategy, index == 1), workers.any_of(strategy, False)],
        "chief": strategy_lib.is_chief(strategy),
    }
    workers.check_same(strategy, "text", "settings")
    try:
        workers.check_same(strategy, f"text {index}", "settings")
    except ValueError as error:
        found["differ"] = str(error)
    return found


def main(name: str, file: str) -> None:
    """Writes the report of this process."""
    if name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, devices)
    strategy = strategy_lib.create(name, start_timeout=300)
    assert strategy.num_replicas_in_sync == 2
    found = report(strategy)
    if name == "multiworker":
        found["told"] = tell(strategy)
    index = strategy_lib.worker(strategy).index
    pathlib.Path(f"{file}.{index}").write_text(json.dumps(found))
    workers.wait(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
