"""What a network costs at a resolution, layer by layer, without building it.

Conventions: multiply-adds are those of convolutions (squeeze-excite included) and dense layers,
as in the papers' "FLOPs"; activations are the outputs of the same layers (pycls, "Designing
Network Design Spaces"); parameters are split into trainable ones and moving statistics.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

from efficientnet_tf.arch import baselines
from efficientnet_tf.arch import layers as layers_lib
from efficientnet_tf.arch.baselines import BASELINES, Baseline
from efficientnet_tf.arch.layers import Layer
from efficientnet_tf.arch.scaling import Network, resolve
from efficientnet_tf.arch.tables import Variant

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_IN_PLACE = ("bn", "activation", "dropout", "rescaling")


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
    network: str | os.PathLike | Variant | Network | Baseline,
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
        network: a name in `VARIANTS` or `baselines.BASELINES`, the path of a file (see `files`), a
            `Variant`, a resolved `Network` or a `Baseline`.
        resolution: side in pixels, or (height, width); None is the variant's.
        classes: of the classifier; None is the variant's.
        include_top: whether the classifier (dropout and dense layer) is counted.
        channels: of the pictures; 1 is repeated to 3.

    Returns:
        The `Complexity`, whose layers carry the names of the built model's.

    Raises:
        ValueError: unknown name, or a size, `classes` or `channels` below 1.
    """
    if isinstance(network, str):
        network = BASELINES.get(network, network)
    if not isinstance(network, (Network, Baseline)):
        network = resolve(network)
    base = network.variant if isinstance(network, Network) else network
    size = base.resolution if resolution is None else resolution
    height, width = (size, size) if isinstance(size, int) else size
    classes = base.classes if classes is None else classes
    if min(height, width, classes, channels) < 1:
        raise ValueError(
            f"resolution, classes and channels must be at least 1. Received: {(height, width)},"
            f" {classes}, {channels}"
        )
    shape = height, width, channels
    if isinstance(network, Baseline):
        return Complexity(baselines.layers(network, shape, classes, include_top))
    return Complexity(layers_lib.layers(network, shape, classes, include_top))


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
