"""Layers as the profiler and the builder name them: what each computes, holds and costs."""

import dataclasses
from typing import Literal

from efficientnet_tf.arch.scaling import Block, Network

Kind = Literal[
    "input", "rescaling", "conv", "depthwise", "dense", "bn", "activation", "pool", "multiply",
    "add", "dropout", "concat",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a network, named as in the built model.

    Attributes:
        name: of the Keras layer.
        stage: "stem", "stage1", …, "head".
        kind: what it computes.
        inputs: names of the layers that it reads.
        shape: of its output for one example: (height, width, channels) or (channels,).
        trainable: number of trainable parameters.
        statistics: number of parameters that are not trained (moving mean and variance).
        macs: multiply-adds for one example.
    """

    name: str
    stage: str
    kind: Kind
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    trainable: int = 0
    statistics: int = 0
    macs: int = 0

    @property
    def size(self) -> int:
        """Elements of the output for one example."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def activations(self) -> int:
        """Elements of the output, for the layers that count (convolutions and dense layers)."""
        return self.size if self.kind in ("conv", "depthwise", "dense") else 0


class Walk:
    """Collects layers and follows the current tensor.

    Attributes:
        layers: so far.
        stage: of the layers that are added.
        name: of the layer whose output is the current tensor.
        shape: of that output.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.layers: list[Layer] = []
        self.stage = "stem"
        self.name = ""
        self.shape = shape

    def add(self, name: str, kind: Kind, shape=None, inputs=None, **costs: int) -> None:
        """Adds a layer that reads the current tensor, or what `inputs` names."""
        inputs = inputs if inputs is not None else ((self.name,) if self.name else ())
        self.shape = self.shape if shape is None else shape
        self.layers.append(Layer(name, self.stage, kind, tuple(inputs), self.shape, **costs))
        self.name = name

    def conv(self, name: str, filters: int, kernel: int = 1, strides: int = 1, bias: bool = False):
        """Adds a convolution, padded to "same"."""
        height, width, channels = self.shape
        height, width = -(-height // strides), -(-width // strides)
        weights = kernel * kernel * channels * filters
        self.add(
            name,
            "conv",
            (height, width, filters),
            trainable=weights + filters * bias,
            macs=weights * height * width,
        )

    def depthwise(self, name: str, kernel: int, strides: int):
        """Adds a depthwise convolution without bias, padded to "same"."""
        height, width, channels = self.shape
        height, width = -(-height // strides), -(-width // strides)
        weights = kernel * kernel * channels
        self.add(
            name,
            "depthwise",
            (height, width, channels),
            trainable=weights,
            macs=weights * height * width,
        )

    def dense(self, name: str, units: int):
        """Adds a dense layer with bias."""
        weights = self.shape[-1] * units
        self.add(name, "dense", (units,), trainable=weights + units, macs=weights)

    def bn(self, name: str):
        """Adds batch normalization."""
        self.add(name, "bn", trainable=2 * self.shape[-1], statistics=2 * self.shape[-1])


def layers(
    network: Network, shape: tuple[int, ...], classes: int, include_top: bool
) -> tuple[Layer, ...]:
    """Layers of a network.

    Args:
        network: from `resolve`.
        shape: (height, width, channels) of a picture.
        classes: of the classifier.
        include_top: whether the classifier (dropout and dense layer) is among them.
    """
    walk = Walk(shape)
    walk.add("input", "input")
    if shape[-1] == 1:
        walk.add("gray_to_rgb", "concat", (*shape[:2], 3))
    walk.add("rescaling", "rescaling")
    walk.conv("stem_conv", network.stem_filters, 3, 2)
    walk.bn("stem_bn")
    walk.add("stem_activation", "activation")
    for block in network.blocks:
        walk.stage = f"stage{block.stage}"
        _block(walk, block, network.variant.depthwise_name)
    walk.stage = "head"
    walk.conv("top_conv", network.head_filters)
    walk.bn("top_bn")
    walk.add("top_activation", "activation")
    if include_top:
        walk.add("avg_pool", "pool", (network.head_filters,))
        if network.variant.dropout_rate:
            walk.add("top_dropout", "dropout")
        walk.dense("predictions", classes)
    return tuple(walk.layers)


def _block(walk: Walk, block: Block, depthwise_name: str) -> None:
    name, start = block.name, walk.name
    if block.conv == "fused" and block.expand_ratio == 1:
        walk.conv(f"{name}_project_conv", block.output_filters, block.kernel_size, block.strides)
        walk.bn(f"{name}_project_bn")
        walk.add(f"{name}_project_activation", "activation")
    else:
        _inner(walk, block, depthwise_name)
        walk.conv(f"{name}_project_conv", block.output_filters)
        walk.bn(f"{name}_project_bn")
    if block.skip:
        if block.drop_rate:
            walk.add(f"{name}_drop", "dropout")
        walk.add(f"{name}_add", "add", inputs=(start, walk.name))


def _inner(walk: Walk, block: Block, depthwise_name: str) -> None:
    name = block.name
    if block.conv == "fused":
        walk.conv(f"{name}_expand_conv", block.expanded_filters, block.kernel_size, block.strides)
    elif block.expand_ratio != 1:
        walk.conv(f"{name}_expand_conv", block.expanded_filters)
    if block.conv == "fused" or block.expand_ratio != 1:
        walk.bn(f"{name}_expand_bn")
        walk.add(f"{name}_expand_activation", "activation")
    if block.conv == "mbconv":
        walk.depthwise(f"{name}_{depthwise_name}", block.kernel_size, block.strides)
        walk.bn(f"{name}_bn")
        walk.add(f"{name}_activation", "activation")
    if block.se_filters:
        shape, trunk = walk.shape, walk.name
        walk.add(f"{name}_se_squeeze", "pool", (1, 1, shape[-1]))
        walk.conv(f"{name}_se_reduce", block.se_filters, bias=True)
        walk.conv(f"{name}_se_expand", shape[-1], bias=True)
        walk.add(f"{name}_se_excite", "multiply", shape, inputs=(trunk, walk.name))
