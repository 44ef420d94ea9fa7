"""MobileNetV1, MobileNetV2 and ResNet-50 against keras.applications, layer by layer."""

import dataclasses
import math

import keras
import pytest

from efficientnet_tf.arch.baselines import BASELINES
from efficientnet_tf.arch.complexity import count

PEERS = {  # ours, of which width; constructor; published parameters
    "mobilenet-v1": ("mobilenet-v1", 1.0, keras.applications.MobileNet, 4_253_864),
    "mobilenet-v1 wide": ("mobilenet-v1", 2.0, keras.applications.MobileNet, None),
    "mobilenet-v2": ("mobilenet-v2", 1.0, keras.applications.MobileNetV2, 3_538_984),
    "mobilenet-v2 wide": ("mobilenet-v2", 1.4, keras.applications.MobileNetV2, None),
    "mobilenet-v2 thin": ("mobilenet-v2", 0.35, keras.applications.MobileNetV2, None),
    "resnet-50-v1": ("resnet-50-v1", 1.0, keras.applications.ResNet50, 25_636_712),
}
KINDS = {
    "Conv2D": "conv",
    "DepthwiseConv2D": "depthwise",
    "Dense": "dense",
    "BatchNormalization": "bn",
}


def parameters(layer):
    return sum(math.prod(weight.shape) for weight in layer.trainable_weights)


def macs(layer):
    if KINDS[type(layer).__name__] == "bn":
        return 0
    shape = layer.output.shape[1:-1]
    return math.prod(layer.kernel.shape) * math.prod(shape)


@pytest.mark.parametrize("which", PEERS)
def test_layers_are_those_of_keras(which):
    name, width, constructor, published = PEERS[which]
    arguments = {} if width == 1 else {"alpha": width}
    model = constructor(weights=None, input_shape=(224, 224, 3), **arguments)
    cost = count(dataclasses.replace(BASELINES[name], width=width))
    ours = {
        layer.name: (layer.kind, layer.shape, layer.trainable, layer.statistics, layer.macs)
        for layer in cost.layers
        if layer.trainable
    }
    theirs = {}
    for layer in model.layers:
        if type(layer).__name__ not in KINDS:
            continue
        kind, shape = KINDS[type(layer).__name__], tuple(layer.output.shape[1:])
        found = (parameters(layer), layer.count_params() - parameters(layer), macs(layer))
        if layer.name == "conv_preds":  # a convolution of one pixel
            theirs["predictions"] = ("dense", shape[-1:], *found)
        else:
            theirs[layer.name] = (kind, shape, *found)
    assert ours == theirs
    assert cost.total.params == model.count_params()
    assert published in (None, cost.total.params)


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [  # arXiv 1704.04861 Table 4, 1801.04381 Table 4, torchvision's record of its weights
        ("mobilenet-v1", 4.2, 0.569),
        ("mobilenet-v2", 3.5, 0.301),
        ("resnet-50", 25.557032, 4.089),
    ],
)
def test_published_numbers(name, params, gmacs):
    total = count(name).total
    digits = len(str(params).partition(".")[2])
    assert round(total.trainable / 1e6, digits) == params
    assert round(total.macs / 1e9, 3) == gmacs


def test_the_two_forms_of_resnet_differ_in_strides_and_biases_alone():
    plain, first = (count(name) for name in ("resnet-50", "resnet-50-v1"))
    biases = sum(layer.shape[-1] for layer in plain.layers if layer.kind == "conv")
    assert first.total.params - plain.total.params == biases
    other = dataclasses.replace(BASELINES["resnet-50-v1"], strides_in=2)
    assert count(other).total.macs == plain.total.macs
    assert plain.total.macs > first.total.macs


def test_blocks_that_keep_their_shape_add_their_input():
    for name, adds in (("mobilenet-v1", 0), ("mobilenet-v2", 10), ("resnet-50", 16)):
        found = [layer for layer in count(name, 64).layers if layer.kind == "add"]
        assert len(found) == adds
        shape = {layer.name: layer.shape for layer in count(name, 64).layers}
        assert all({shape[x] for x in layer.inputs} == {layer.shape} for layer in found)


def test_depth_adds_blocks_that_keep_their_shape():
    base = BASELINES["mobilenet-v1"]
    deeper = dataclasses.replace(base, depth=2.0)
    names = [layer.name for layer in count(deeper).layers if layer.kind == "depthwise"]
    assert names == [f"conv_dw_{number}" for number in range(1, 27)]
    assert count(deeper).layers[-2].shape == (1024,)
    assert count(deeper, classes=10).total.macs < count(deeper).total.macs
