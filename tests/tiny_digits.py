"""Tiny networks trained on scikit-learn's digits, for tests that random weights would not fail."""

import dataclasses
import functools

import keras
import numpy as np

from efficientnet_tf.arch import BlockArgs
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build

_BLOCKS = ("r1_k3_s22_e4_i8_o16_se0.25", "r2_k3_s22_e4_i16_o24_se0.25")
TRAINING = 1280


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 pictures float32 (32, 32, 3) in [0, 255] in random order, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pictures = np.clip(found.images[order] * 16, 0, 255).astype(np.float32)
    large = keras.ops.image.resize(pictures[..., None], (32, 32))
    return np.repeat(np.asarray(large), 3, axis=-1), found.target[order]


@functools.cache
def trained(activation: str, use_se: bool) -> keras.Model:
    """Trains on the first 1,280 digits for a few seconds, to 95 % and more.

    It is made once: copy it to change it.
    """
    keras.utils.set_random_seed(0)
    variant = dataclasses.replace(
        find("efficientnet-b0"),
        name="tiny",
        blocks=tuple(BlockArgs.parse(block) for block in _BLOCKS),
        activation=activation,
        use_se=use_se,
        stem_filters=8,
        head_filters=64,
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        bn_momentum=0.9,
    )
    model = build(variant, classes=10, input_shape=(32, 32, 3))
    pictures, labels = digits()
    rate = keras.optimizers.schedules.CosineDecay(5e-3, 240)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(pictures[:TRAINING], labels[:TRAINING], 32, epochs=6, verbose=0)
    return model


def widen(model: keras.Model, first: str, second: str, channels: list[int], factor: float) -> None:
    """Multiplies output channels of one convolution, and divides them again in the next one.

    Where only what is linear in each channel (nothing, or a ReLU) stands between, the network
    computes what it computed before, and the tensor between them has a wide range.
    """
    layer = model.get_layer(first)
    kernel, bias = layer.get_weights()
    kernel[..., channels] *= factor
    bias[channels] *= factor
    layer.set_weights([kernel, bias])
    layer = model.get_layer(second)
    kernel, bias = layer.get_weights()
    kernel[:, :, channels] /= factor
    layer.set_weights([kernel, bias])


def make_rare(model: keras.Model, first: str, second: str, channel: int) -> None:
    """Makes one channel of a convolution with a ReLU behind it speak rarely and loudly.

    Its bias is lowered until it is above 0 in about one of 3,000 places, which changes the network
    a little. Then it is widened, which changes nothing, until its largest value is 300 times that
    of all others.
    """
    pictures = digits()[0][:TRAINING]
    layer = model.get_layer(first)
    values = keras.Model(model.inputs, layer.output).predict(pictures, verbose=0)
    kernel, bias = layer.get_weights()
    limit = np.quantile(values[..., channel], 1 - 1 / 3000)
    bias[channel] -= limit
    layer.set_weights([kernel, bias])
    widen(
        model, first, second, [channel], 300 * values.max() / (values[..., channel].max() - limit)
    )
