"""Training steps as XLA sees them: what can be known about TPUs on a machine without one."""

import re

import keras
import pytest
import tensorflow as tf

from efficientnet_tf import stages
from efficientnet_tf.config import Config, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.train import average, loop, network
from efficientnet_tf.train import optimizer as optimizer_lib
from efficientnet_tf.train import strategy as strategy_lib


class _Given:
    """Stands for the iterator, from which XLA cannot read."""

    def __init__(self, *batch):
        self.batch = batch

    def __iter__(self):
        return self

    def __next__(self):
        return self.batch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_have_static_shapes_and_convolve_in_bfloat16(accumulate):
    config = override(
        Config(),
        "model.blocks=r1_k3_s22_e2_i8_o8_se0.25",
        "model.stem_filters=8",
        "model.head_filters=16",
        "model.image_size=32",
        "data.batch_size=8",
        "train.label_smoothing=0.1",
        "train.weight_decay=1e-5",
        "train.clip_norm=1",
        "train.ema_decay=0.99",
        f"train.accumulate={accumulate}",
    )
    keras.utils.set_random_seed(0)
    variant = describe(config.model)
    with strategy_lib.precision("mixed_bfloat16"):
        model = network.trained(config.model, variant, 5, stages.expand(config, 10))
    optimizer = optimizer_lib.create(config, model.trainable_variables, 10, 10)
    trainee = loop.Trainee(model, optimizer, average.MovingAverage(model, 0.99))
    steps = loop.training_steps(tf.distribute.get_strategy(), trainee, 8, config.train)
    compiled = tf.function(
        lambda *batch: steps(_Given(*batch), tf.constant(3)), jit_compile=True, autograph=False
    )
    specs = tf.TensorSpec((8, 32, 32, 3)), tf.TensorSpec((8, 5))
    code = compiled.experimental_get_compiler_ir(*specs)(stage="hlo", platform_name="CPU")
    assert "custom-call" not in code
    assert not re.findall(r"\[[^\]]*<=\d", code)  # a size that is only bounded
    assert set(re.findall(r"= (\w+)\[[^\]]*\]\S* convolution\(", code)) == {"bf16"}
