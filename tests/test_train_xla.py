"""Training steps as XLA sees them: what can be known about TPUs on a machine without one."""

import re

import keras
import pytest
import tensorflow as tf

from efficientnet_tf import stages
from efficientnet_tf.arch import complexity
from efficientnet_tf.config import Config, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.train import average, loop, network, precision
from efficientnet_tf.train import optimizer as optimizer_lib


class _Given:
    """Stands for the iterator, from which XLA cannot read."""

    def __init__(self, *batch):
        self.batch = batch

    def __iter__(self):
        return self

    def __next__(self):
        return self.batch


def _lowered(config, classes, batch):
    """XLA's code of three training steps, before it is compiled."""
    keras.utils.set_random_seed(0)
    variant = describe(config.model)
    size = config.model.image_size
    with precision.policy("mixed_bfloat16"):
        model = network.trained(config.model, variant, classes, stages.expand(config, 10))
    optimizer = optimizer_lib.create(config, model.trainable_variables, 10, 10)
    trainee = loop.Trainee(model, optimizer, average.MovingAverage(model, 0.99))
    steps = loop.training_steps(tf.distribute.get_strategy(), trainee, batch, config.train)
    compiled = tf.function(
        lambda *batch: steps(_Given(*batch), tf.constant(3)), jit_compile=True, autograph=False
    )
    specs = tf.TensorSpec((batch, size, size, 3)), tf.TensorSpec((batch, classes))
    return compiled.experimental_get_compiler_ir(*specs)(stage="hlo", platform_name="CPU")


SETTINGS = (
    "data.batch_size=8",
    "train.label_smoothing=0.1",
    "train.weight_decay=1e-5",
    "train.clip_norm=1",
    "train.ema_decay=0.99",
)
_BOUNDED = r"\[[^\]]*<=\d"  # a size that is only known to be at most so large
_CONVOLUTION = r"= (\w+)\[[^\]]*\]\S* convolution\("


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_have_static_shapes_and_convolve_in_bfloat16(accumulate):
    blocks = "model.blocks=r1_k3_s22_e2_i8_o8_se0.25"
    sizes = "model.stem_filters=8", "model.head_filters=16", "model.image_size=32"
    parts = f"train.accumulate={accumulate}"
    code = _lowered(override(Config(), blocks, *sizes, *SETTINGS, parts), 5, 8)
    assert "custom-call" not in code
    assert not re.findall(_BOUNDED, code)
    assert set(re.findall(_CONVOLUTION, code)) == {"bf16"}


@pytest.mark.slow
def test_steps_of_v2_s_are_fit_for_tpus():
    """The whole step of the recipe's optimizer: forward, backward, RMSprop, moving average."""
    chosen = "model.variant=efficientnetv2-s", "model.image_size=128"
    code = _lowered(override(Config(), *chosen, *SETTINGS), 1000, 8)
    assert "custom-call" not in code
    assert "dynamic" not in code
    assert not re.findall(_BOUNDED, code)
    layers = complexity.count("efficientnetv2-s", 128).layers
    once = [y for y in layers if y.kind in ("conv", "depthwise") and "_se_" not in y.name]
    found = re.findall(_CONVOLUTION, code)
    # Forward, and backward to input and kernel; the three steps are one loop's body.
    assert len(found) == 3 * len(once)
    assert set(found) == {"bf16"}
