"""Blocks that are computed again: the same training, in less memory."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf import stages
from efficientnet_tf.config import Config, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.train import loop, network, precision, rematerialise
from efficientnet_tf.train import optimizer as optimizer_lib

ONE = tf.distribute.get_strategy()
CONFIG = override(
    Config(),
    "model.blocks=r1_k3_s11_e1_i8_o8_c1,r2_k3_s22_e4_i8_o16_se0.25",
    "model.stem_filters=8",
    "model.head_filters=16",
    "model.dropout_rate=0.2",
    "model.drop_connect_rate=0.4",
    "model.image_size=32",
    "data.batch_size=8",
    "train.label_smoothing=0.1",
    "train.precision=float32",
)


def _trained(*settings, rematerialised):
    """Everything that three steps change."""
    config = override(CONFIG, *settings, f"train.rematerialise={rematerialised}")
    keras.utils.set_random_seed(1)
    variant = describe(config.model)
    with precision.policy(config.train.precision):
        model = network.trained(config.model, variant, 5, stages.expand(config, 10))
    optimizer = optimizer_lib.create(config, model.trainable_variables, 10, 10)
    learning = config.finetune
    network.set_trainable(model, variant, learning.unfreeze, learning.freeze_batch_norm)
    scale = precision.LossScale() if config.train.precision == "mixed_float16" else None
    trainee = loop.Trainee(model, optimizer, None, scale)
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (3, 8, 32, 32, 3)).astype(np.float32)
    targets = np.eye(5, dtype=np.float32)[random.integers(0, 5, (3, 8))]
    batches = iter(tf.data.Dataset.from_tensor_slices((images, targets)))
    loop.training_steps(ONE, trainee, 8, config.train)(batches, tf.constant(3))
    variables = (*model.variables, *optimizer.variables)
    return [(v.path, v.numpy()) for v in variables] + [("loss", trainee.scores().loss)]


@pytest.mark.parametrize(
    "settings",
    [
        ("train.accumulate=2",),
        ("finetune.unfreeze=blocks:1", "finetune.freeze_batch_norm=true"),
        ("train.precision=mixed_bfloat16",),
    ],
)
def test_training_is_the_same(settings):
    """Dropout's masks, batch statistics and the random numbers' states among it."""
    kept = _trained(*settings, rematerialised=False)
    again = _trained(*settings, rematerialised=True)
    assert any("seed_generator_state" in name for name, _ in kept)
    for (name, value), (_, other) in zip(kept, again, strict=True):
        np.testing.assert_allclose(other, value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_network_is_cut_between_its_blocks():
    variant = describe(CONFIG.model)
    model = network.trained(CONFIG.model, variant, 5, stages.expand(CONFIG, 10))
    parts = rematerialise.segments(model)
    names = [[y.name for y in part.layers if y.weights] for part in parts]
    assert [part[0].partition("_")[0] for part in names] == [
        "stem", "block1a", "block2a", "block2b", "top",
    ]  # fmt: skip
    assert [n for part in names for n in part] == [y.name for y in model.layers if y.weights]
    images = np.random.default_rng(0).uniform(0, 255, (2, 40, 40, 3)).astype(np.float32)
    x = images
    for part in parts:
        x = part(x)
    np.testing.assert_allclose(x, model(images), atol=1e-6)


@pytest.mark.slow
def test_less_memory_is_taken(root):
    environment = os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "-1"}
    peaks = []
    for value in ("false", "true"):
        script = str(root / "scripts/benchmark_memory.py")
        settings = ["efficientnetv2-b0", "128", "32", f"train.rematerialise={value}"]
        done = subprocess.run(
            [sys.executable, script, *settings],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=500,
        )
        peaks.append(json.loads(done.stdout.splitlines()[-1])[0])
    assert peaks[1] < 0.75 * peaks[0]
