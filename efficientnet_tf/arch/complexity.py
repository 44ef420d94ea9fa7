"""What a network costs at a resolution, layer by layer, without building it.

Conventions: multiply-adds are those of convolutions (squeeze-excite included) and dense layers,
as in the papers' "FLOPs"; activations are the outputs of the same layers (pycls, "Designing
Network Design Spaces"); parameters are split into trainable ones and moving statistics.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

from efficientnet_tf.arch.scaling import Block, Network, resolve
from efficientnet_tf.arch.tables import Variant

Kind = Literal[
    "input", "rescaling", "conv", "depthwise", "dense", "bn", "activation", "pool", "multiply",
    "add", "dropout", "concat",
]  # fmt: skip
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_IN_PLACE = ("bn", "activation", "dropout", "rescaling")


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


@dataclasses.dataclass(frozen=True)
class Cost:
    """Sums over some layers, for one example."""

    trainable: int
    statistics: int
    macs: int
    activations: int

    @property
    def params(self) -> int:
        """Trainable parameters and moving statistics."""
        return self.trainable + self.statistics


@dataclasses.dataclass(frozen=True)
class Complexity:
    """The layers of a network at a resolution, and their sums."""

    layers: tuple[Layer, ...]

    @property
    def total(self) -> Cost:
        """Sum over all layers."""
        return _sum(self.layers)

    @property
    def stages(self) -> dict[str, Cost]:
        """Sums over "stem", "stage1", …, "head"."""
        names = dict.fromkeys(layer.stage for layer in self.layers)
        return {name: _sum([y for y in self.layers if y.stage == name]) for name in names}

    def memory(
        self, batch_size: int = 1, dtype: str = "float32", training: bool = False
    ) -> dict[str, int]:
        """Bytes of activations that are held while each layer runs.

        Inference walks the layers in order: a tensor lives from its layer to its last reader, and
        batch normalization, activations, dropout and rescaling work in place (compilers fuse them
        into the convolution before). Training keeps every layer's output for the backward pass.
        Weights, gradients, optimizer slots and workspaces are not included.

        Args:
            batch_size: examples per batch.
            dtype: of the activations: "float32", "float16", "bfloat16" or "int8".
            training: whether gradients follow.

        Returns:
            Name of the layer to bytes, in order.

        Raises:
            ValueError: unknown dtype.
        """
        if dtype not in _BYTES:
            raise ValueError(f"dtype must be one of {', '.join(_BYTES)}. Received: dtype={dtype!r}")
        sizes = [layer.size for layer in self.layers]
        elements = itertools.accumulate(sizes) if training else _live(self.layers)
        scale = batch_size * _BYTES[dtype]
        return {layer.name: n * scale for layer, n in zip(self.layers, elements, strict=True)}

    def stage_memory(
        self, batch_size: int = 1, dtype: str = "float32", training: bool = False
    ) -> dict[str, int]:
        """Most bytes of activations at once within "stem", "stage1", …; see `memory`."""
        memory = self.memory(batch_size, dtype, training)
        peaks: dict[str, int] = {}
        for layer in self.layers:
            peaks[layer.stage] = max(peaks.get(layer.stage, 0), memory[layer.name])
        return peaks

    def peak_memory(
        self, batch_size: int = 1, dtype: str = "float32", training: bool = False
    ) -> int:
        """Most bytes of activations at once in the whole network; see `memory`."""
        return max(self.memory(batch_size, dtype, training).values())


def count(
    network: str | Variant | Network,
    resolution: int | tuple[int, int] | None = None,
    *,
    classes: int | None = None,
    include_top: bool = True,
    channels: int = 3,
) -> Complexity:
    """Counts parameters, multiply-adds and activations of a network.

    >>> count("efficientnet-b0").total.trainable
    5288548

    Args:
        network: a name in `VARIANTS`, a `Variant` or a resolved `Network`.
        resolution: side in pixels, or (height, width); None is the variant's.
        classes: of the classifier; None is the variant's.
        include_top: whether the classifier (dropout and dense layer) is counted.
        channels: of the pictures; 1 is repeated to 3.

    Returns:
        The `Complexity`, whose layers carry the names of the built model's.

    Raises:
        ValueError: unknown name, or a size, `classes` or `channels` below 1.
    """
    network = network if isinstance(network, Network) else resolve(network)
    variant = network.variant
    size = variant.resolution if resolution is None else resolution
    height, width = (size, size) if isinstance(size, int) else size
    classes = variant.classes if classes is None else classes
    if min(height, width, classes, channels) < 1:
        raise ValueError(
            f"resolution, classes and channels must be at least 1. Received: {(height, width)},"
            f" {classes}, {channels}"
        )
    layers = tuple(_layers(network, (height, width, channels), classes, include_top))
    return Complexity(layers)


def _sum(layers: Iterable[Layer]) -> Cost:
    fields = ("trainable", "statistics", "macs", "activations")
    return Cost(*(sum(getattr(layer, field) for layer in layers) for field in fields))


def _live(layers: tuple[Layer, ...]) -> Iterator[int]:
    # In-place layers share the buffer of their input: `owner` maps a layer to its buffer.
    owner: dict[str, str] = {}
    last_read: dict[str, int] = {}
    size = {layer.name: layer.size for layer in layers}
    for index, layer in enumerate(layers):
        shares = layer.kind in _IN_PLACE and layer.size == size[layer.inputs[0]]
        owner[layer.name] = owner[layer.inputs[0]] if shares else layer.name
        for name in (*layer.inputs, layer.name):
            last_read[owner[name]] = index
    live: set[str] = set()
    for index, layer in enumerate(layers):
        live.add(owner[layer.name])
        yield sum(size[name] for name in live)
        live = {name for name in live if last_read[name] > index}


class _Walk:
    """Collects layers and follows the shape of the current tensor."""

    def __init__(self, shape: tuple[int, ...]):
        self.layers: list[Layer] = []
        self.stage = "stem"
        self.name = ""
        self.shape = shape

    def add(self, name: str, kind: Kind, shape=None, inputs=None, **costs: int) -> None:
        inputs = inputs if inputs is not None else ((self.name,) if self.name else ())
        self.shape = self.shape if shape is None else shape
        self.layers.append(Layer(name, self.stage, kind, tuple(inputs), self.shape, **costs))
        self.name = name

    def conv(self, name: str, filters: int, kernel: int = 1, strides: int = 1, bias: bool = False):
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

    def bn(self, name: str):
        self.add(name, "bn", trainable=2 * self.shape[-1], statistics=2 * self.shape[-1])


def _layers(network: Network, shape, classes: int, include_top: bool) -> Iterator[Layer]:
    walk = _Walk(shape)
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
        weights = network.head_filters * classes
        walk.add("predictions", "dense", (classes,), trainable=weights + classes, macs=weights)
    return iter(walk.layers)


def _block(walk: _Walk, block: Block, depthwise_name: str) -> None:
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


def _inner(walk: _Walk, block: Block, depthwise_name: str) -> None:
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
