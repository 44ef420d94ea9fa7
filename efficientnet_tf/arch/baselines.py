"""The networks that V1 Table 3 scales beside its own: MobileNetV1, MobileNetV2 and ResNet-50.

They can be counted and scaled (`complexity.count`, `compound.scale`) as a `Variant` can, not built.
Their layers have the names of keras.applications; padding is "same" everywhere.
"""

import dataclasses
from typing import Literal

from efficientnet_tf.arch.layers import Layer, Walk
from efficientnet_tf.arch.scaling import round_filters, round_repeats

Conv = Literal["separable", "inverted", "bottleneck"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Blocks of the same kind, before scaling.

    Attributes:
        conv: "separable" (depthwise, 1x1), "inverted" (1x1 expand, depthwise, 1x1 project) or
            "bottleneck" (1x1, 3x3, 1x1 expand).
        repeats: number of blocks.
        strides: of the first block; the others have 1.
        filters: that leave the block; of a "bottleneck", of its 3x3 convolution.
        expand_ratio: widest filters of a block over those that enter ("inverted") or over `filters`
            ("bottleneck").
    """

    conv: Conv
    repeats: int
    strides: int
    filters: int
    expand_ratio: int = 1


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A network of another paper, to be scaled as V1 Table 3 does.

    Attributes:
        name: key in `BASELINES`, or any other.
        blocks: the stages, before scaling.
        width: multiplier of filters.
        depth: multiplier of repeats.
        resolution: pixels, square.
        classes: of the classifier.
        stem_filters: of the first convolution, before scaling.
        stem_kernel_size: of the same.
        stem_pool: whether max pooling follows it.
        head_filters: of the last 1x1 convolution, before scaling; 0 for none. Not scaled down.
        conv_bias: whether convolutions have biases beside their batch normalization.
        strides_in: which convolution of a "bottleneck" has the strides, 1 or 2.
        filters_divisor: scaled filters are multiples of it.
        rounding_limit: see `scaling.round_filters`.
    """

    name: str
    blocks: tuple[Stage, ...]
    width: float = 1.0
    depth: float = 1.0
    resolution: int = 224
    classes: int = 1000
    stem_filters: int = 32
    stem_kernel_size: int = 3
    stem_pool: bool = False
    head_filters: int = 0
    conv_bias: bool = False
    strides_in: Literal[1, 2] = 2
    filters_divisor: int = 8
    rounding_limit: float = 0.9

    def scaled(self, filters: int) -> int:
        """Filters after scaling."""
        return round_filters(filters, self.width, self.filters_divisor, self.rounding_limit)

    def repeats(self, stage: int) -> int:
        """Blocks of a stage, counted from 0, after scaling."""
        return round_repeats(self.blocks[stage].repeats, self.depth)


# fmt: off
_MOBILENET_V1 = (  # arXiv 1704.04861 Table 1
    Stage("separable", 1, 1,   64),
    Stage("separable", 2, 2,  128),
    Stage("separable", 2, 2,  256),
    Stage("separable", 6, 2,  512),
    Stage("separable", 2, 2, 1024),
)
_MOBILENET_V2 = (  # arXiv 1801.04381 Table 2
    Stage("inverted", 1, 1,  16, 1),
    Stage("inverted", 2, 2,  24, 6),
    Stage("inverted", 3, 2,  32, 6),
    Stage("inverted", 4, 2,  64, 6),
    Stage("inverted", 3, 1,  96, 6),
    Stage("inverted", 3, 2, 160, 6),
    Stage("inverted", 1, 1, 320, 6),
)
_RESNET_50 = (  # arXiv 1512.03385 Table 1
    Stage("bottleneck", 3, 1,  64, 4),
    Stage("bottleneck", 4, 2, 128, 4),
    Stage("bottleneck", 6, 2, 256, 4),
    Stage("bottleneck", 3, 2, 512, 4),
)
# fmt: on

_RESNET = Baseline("resnet-50", _RESNET_50, stem_filters=64, stem_kernel_size=7, stem_pool=True)
_ROWS = (
    Baseline("mobilenet-v1", _MOBILENET_V1),
    Baseline("mobilenet-v2", _MOBILENET_V2, head_filters=1280),
    # V1 Table 3's 4.1B are those of the widespread form, with the strides in the 3x3 convolutions.
    # The first paper's, which keras.applications has, takes 3.8B.
    _RESNET,
    dataclasses.replace(_RESNET, name="resnet-50-v1", strides_in=1, conv_bias=True),
)
BASELINES: dict[str, Baseline] = {row.name: row for row in _ROWS}


def layers(
    baseline: Baseline, shape: tuple[int, ...], classes: int, include_top: bool
) -> tuple[Layer, ...]:
    """Layers of a baseline.

    Args:
        baseline: with its width and depth.
        shape: (height, width, channels) of a picture.
        classes: of the classifier.
        include_top: whether the classifier is among them.
    """
    walk = Walk(shape)
    walk.add("input", "input")
    conv = baseline.blocks[0].conv
    stem, stem_bn = ("Conv1", "bn_Conv1") if conv == "inverted" else ("conv1", "conv1_bn")
    if conv == "bottleneck":
        stem = "conv1_conv"
    walk.conv(
        stem, baseline.scaled(baseline.stem_filters), baseline.stem_kernel_size, 2,
        baseline.conv_bias,
    )  # fmt: skip
    walk.bn(stem_bn)
    walk.add(f"{stem.removesuffix('_conv')}_relu", "activation")
    if baseline.stem_pool:
        height, width, filters = walk.shape
        walk.add("pool1_pool", "pool", (-(-height // 2), -(-width // 2), filters))
    number = 0
    for index, stage in enumerate(baseline.blocks):
        walk.stage = f"stage{index + 1}"
        for place in range(baseline.repeats(index)):
            strides = stage.strides if place == 0 else 1
            if stage.conv == "separable":
                _separable(walk, baseline, stage, strides, number + 1)
            elif stage.conv == "inverted":
                _inverted(walk, baseline, stage, strides, number)
            else:
                name = f"conv{index + 2}_block{place + 1}"
                _bottleneck(walk, baseline, stage, strides, name, first=place == 0)
            number += 1
    walk.stage = "head"
    if baseline.head_filters:
        grown = dataclasses.replace(baseline, width=max(1.0, baseline.width))
        walk.conv("Conv_1", grown.scaled(baseline.head_filters))
        walk.bn("Conv_1_bn")
        walk.add("out_relu", "activation")
    if include_top:
        walk.add("avg_pool", "pool", walk.shape[-1:])
        walk.dense("predictions", classes)
    return tuple(walk.layers)


def _separable(walk: Walk, baseline: Baseline, stage: Stage, strides: int, number: int) -> None:
    walk.depthwise(f"conv_dw_{number}", 3, strides)
    walk.bn(f"conv_dw_{number}_bn")
    walk.add(f"conv_dw_{number}_relu", "activation")
    walk.conv(f"conv_pw_{number}", baseline.scaled(stage.filters))
    walk.bn(f"conv_pw_{number}_bn")
    walk.add(f"conv_pw_{number}_relu", "activation")


def _inverted(walk: Walk, baseline: Baseline, stage: Stage, strides: int, number: int) -> None:
    name = f"block_{number}" if number else "expanded_conv"
    start, shape, filters = walk.name, walk.shape, baseline.scaled(stage.filters)
    if stage.expand_ratio != 1:
        walk.conv(f"{name}_expand", shape[-1] * stage.expand_ratio)
        walk.bn(f"{name}_expand_BN")
        walk.add(f"{name}_expand_relu", "activation")
    walk.depthwise(f"{name}_depthwise", 3, strides)
    walk.bn(f"{name}_depthwise_BN")
    walk.add(f"{name}_depthwise_relu", "activation")
    walk.conv(f"{name}_project", filters)
    walk.bn(f"{name}_project_BN")
    if walk.shape == shape:
        walk.add(f"{name}_add", "add", inputs=(start, walk.name))


def _bottleneck(
    walk: Walk, baseline: Baseline, stage: Stage, strides: int, name: str, *, first: bool
) -> None:
    start, shape, bias = walk.name, walk.shape, baseline.conv_bias
    filters = baseline.scaled(stage.filters)
    shortcut = start
    if first:
        walk.conv(f"{name}_0_conv", filters * stage.expand_ratio, 1, strides, bias)
        walk.bn(f"{name}_0_bn")
        shortcut = walk.name
        walk.name, walk.shape = start, shape
    for place, (width, kernel_size) in enumerate(
        ((filters, 1), (filters, 3), (filters * stage.expand_ratio, 1)), start=1
    ):
        own = strides if place == baseline.strides_in else 1
        walk.conv(f"{name}_{place}_conv", width, kernel_size, own, bias)
        walk.bn(f"{name}_{place}_bn")
        if place < 3:
            walk.add(f"{name}_{place}_relu", "activation")
    walk.add(f"{name}_add", "add", inputs=(shortcut, walk.name))
    walk.add(f"{name}_out", "activation")
