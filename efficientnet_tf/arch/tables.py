"""The papers' tables: the stages of every network and the coefficients of every variant.

Sources: V1 is arXiv 1905.11946 and `tensorflow/tpu` `models/official/efficientnet` (with its
`lite` and `edgetpu` folders); V2 is arXiv 2104.00298 and `google/automl` `efficientnetv2`. Where
the paper and the released code differ, the row follows the released code, because the published
weights do; the differences are in the comments.
"""

import dataclasses
from typing import Literal

from efficientnet_tf.arch.blocks import BlockArgs

_POSITIVE = (
    "width",
    "depth",
    "resolution",
    "train_resolution",
    "stem_filters",
    "head_filters",
    "classes",
    "filters_divisor",
    "bn_epsilon",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network as the papers describe it: stages, coefficients, and its family's conventions.

    Attributes:
        name: key in `VARIANTS`, or any name for a network of your own. Carries no behaviour.
        blocks: the stages, before scaling.
        width: multiplier of filters.
        depth: multiplier of repeats.
        resolution: evaluation size, pixels, square.
        train_resolution: largest training size, pixels, square.
        dropout_rate: probability of dropping a pooled feature before the classifier.
        drop_connect_rate: stochastic depth; block i of N is dropped with this rate times i / N.
        stem_filters: of the first convolution, before scaling.
        head_filters: of the last convolution, before scaling.
        activation: Keras name of the nonlinearity.
        use_se: whether `se_ratio` of the stages is used.
        classes: of the classifier, where neither the caller nor the weights say.
        preprocessing: name of the default input normalisation.
        bn_momentum: of the moving statistics.
        bn_epsilon: added to the variance.
        filters_divisor: scaled filters are multiples of it, and at least it.
        rounding_limit: rounding down below this share of the scaled filters goes up instead.
        scale_stem_and_head: whether width applies to stem and head.
        scale_outer_repeats: whether depth applies to the first and last stage.
        depthwise_name: suffix of the depthwise layers' names, as in keras.applications.
    """

    name: str
    blocks: tuple[BlockArgs, ...]
    width: float
    depth: float
    resolution: int
    train_resolution: int
    dropout_rate: float
    drop_connect_rate: float = 0.2
    stem_filters: int = 32
    head_filters: int = 1280
    activation: Literal["silu", "relu6", "relu"] = "silu"
    use_se: bool = True
    classes: int = 1000
    preprocessing: str = "torch"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    filters_divisor: int = 8
    rounding_limit: float = 0.9
    scale_stem_and_head: bool = True
    scale_outer_repeats: bool = True
    depthwise_name: str = "dwconv"

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError(f"Variant {self.name!r} must have at least one stage in `blocks`.")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0. Received: {name}={getattr(self, name)!r}")
        for name in ("dropout_rate", "drop_connect_rate", "bn_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must lie in [0, 1). Received: {name}={getattr(self, name)!r}"
                )


# fmt: off
_V1_BLOCKS = (  # V1 Table 1        conv   r  k  s  e    i    o    se
    BlockArgs("mbconv", 1, 3, 1, 1,  32,  16, 0.25),
    BlockArgs("mbconv", 2, 3, 2, 6,  16,  24, 0.25),
    BlockArgs("mbconv", 2, 5, 2, 6,  24,  40, 0.25),
    BlockArgs("mbconv", 3, 3, 2, 6,  40,  80, 0.25),
    BlockArgs("mbconv", 3, 5, 1, 6,  80, 112, 0.25),
    BlockArgs("mbconv", 4, 5, 2, 6, 112, 192, 0.25),
    BlockArgs("mbconv", 1, 3, 1, 6, 192, 320, 0.25),
)
_EDGETPU_BLOCKS = (  # edgetpu/efficientnet_edgetpu_builder.py; 24 is nominal, the stem gives 32
    BlockArgs("fused",  1, 3, 1, 4,  24,  24, skip=False),
    BlockArgs("fused",  2, 3, 2, 8,  24,  32),
    BlockArgs("fused",  4, 3, 2, 8,  32,  48),
    BlockArgs("mbconv", 5, 5, 2, 8,  48,  96),
    BlockArgs("mbconv", 4, 5, 1, 8,  96, 144),
    BlockArgs("mbconv", 2, 5, 2, 8, 144, 192),
)
_V2_BASE_BLOCKS = (  # effnetv2_configs.py v2_base_block
    BlockArgs("fused",  1, 3, 1, 1,  32,  16),
    BlockArgs("fused",  2, 3, 2, 4,  16,  32),
    BlockArgs("fused",  2, 3, 2, 4,  32,  48),
    BlockArgs("mbconv", 3, 3, 2, 4,  48,  96, 0.25),
    BlockArgs("mbconv", 5, 3, 1, 6,  96, 112, 0.25),
    BlockArgs("mbconv", 8, 3, 2, 6, 112, 192, 0.25),
)
_V2_S_BLOCKS = (  # V2 Table 4, later version; the first version ends in 272 filters and head 1792
    BlockArgs("fused",  2, 3, 1, 1,  24,  24),
    BlockArgs("fused",  4, 3, 2, 4,  24,  48),
    BlockArgs("fused",  4, 3, 2, 4,  48,  64),
    BlockArgs("mbconv", 6, 3, 2, 4,  64, 128, 0.25),
    BlockArgs("mbconv", 9, 3, 1, 6, 128, 160, 0.25),
    BlockArgs("mbconv", 15, 3, 2, 6, 160, 256, 0.25),
)
_V2_S_FIRST_BLOCKS = (
    *_V2_S_BLOCKS[:-1],
    BlockArgs("mbconv", 15, 3, 2, 6, 160, 272, 0.25),
)
_V2_M_BLOCKS = (
    BlockArgs("fused",  3, 3, 1, 1,  24,  24),
    BlockArgs("fused",  5, 3, 2, 4,  24,  48),
    BlockArgs("fused",  5, 3, 2, 4,  48,  80),
    BlockArgs("mbconv", 7, 3, 2, 4,  80, 160, 0.25),
    BlockArgs("mbconv", 14, 3, 1, 6, 160, 176, 0.25),
    BlockArgs("mbconv", 18, 3, 2, 6, 176, 304, 0.25),
    BlockArgs("mbconv", 5, 3, 1, 6, 304, 512, 0.25),
)
_V2_L_BLOCKS = (
    BlockArgs("fused",  4, 3, 1, 1,  32,  32),
    BlockArgs("fused",  7, 3, 2, 4,  32,  64),
    BlockArgs("fused",  7, 3, 2, 4,  64,  96),
    BlockArgs("mbconv", 10, 3, 2, 4,  96, 192, 0.25),
    BlockArgs("mbconv", 19, 3, 1, 6, 192, 224, 0.25),
    BlockArgs("mbconv", 25, 3, 2, 6, 224, 384, 0.25),
    BlockArgs("mbconv", 7, 3, 1, 6, 384, 640, 0.25),
)
_V2_XL_BLOCKS = (
    BlockArgs("fused",  4, 3, 1, 1,  32,  32),
    BlockArgs("fused",  8, 3, 2, 4,  32,  64),
    BlockArgs("fused",  8, 3, 2, 4,  64,  96),
    BlockArgs("mbconv", 16, 3, 2, 4,  96, 192, 0.25),
    BlockArgs("mbconv", 24, 3, 1, 6, 192, 256, 0.25),
    BlockArgs("mbconv", 32, 3, 2, 6, 256, 512, 0.25),
    BlockArgs("mbconv", 8, 3, 1, 6, 512, 640, 0.25),
)


def _v1(name, width, depth, resolution, dropout_rate):
    return Variant(name, _V1_BLOCKS, width, depth, resolution, resolution, dropout_rate)


def _lite(name, width, depth, resolution, dropout_rate):  # lite/efficientnet_lite_builder.py
    return Variant(
        name, _V1_BLOCKS, width, depth, resolution, resolution, dropout_rate,
        activation="relu6", use_se=False, preprocessing="lite",
        scale_stem_and_head=False, scale_outer_repeats=False,
    )


def _edgetpu(name, width, depth, resolution, dropout_rate):
    return Variant(
        name, _EDGETPU_BLOCKS, width, depth, resolution, resolution, dropout_rate,
        activation="relu", classes=1001, preprocessing="lite",
    )


def _v2(name, blocks, width, depth, resolution, train_resolution, dropout_rate,
        head_filters=1280, preprocessing="v2"):
    # The code's momentum is 0.9 where the paper says 0.99; the code does not have the 0.9 rounding
    # rule of V1: the first stage of B3 has 16 filters, not 24.
    return Variant(
        name, blocks, width, depth, resolution, train_resolution, dropout_rate,
        stem_filters=blocks[0].input_filters, head_filters=head_filters,
        bn_momentum=0.9, rounding_limit=0.0, depthwise_name="dwconv2", preprocessing=preprocessing,
    )


def _fused(variant: Variant, stages: int, kernel_sizes: dict[int, int], se_stages: int) -> Variant:
    # The first stages as Fused-MBConv: `kernel_sizes` by stage, counted from 1, instead of the
    # variant's; the first `se_stages` keep squeeze-excite, which there is not without expansion.
    rows = list(variant.blocks)
    for index in range(stages):
        row = rows[index]
        keeps = index < se_stages and row.expand_ratio > 1
        rows[index] = dataclasses.replace(
            row,
            conv="fused",
            kernel_size=kernel_sizes.get(index + 1, row.kernel_size),
            se_ratio=row.se_ratio if keeps else 0.0,
        )
    name = f"{variant.name}-fused-1-{stages}"
    return dataclasses.replace(variant, name=name, blocks=tuple(rows))


_ROWS = (
    #                        width depth  res  dropout        V1 Sec. 3.3, efficientnet_builder.py
    _v1("efficientnet-b0",    1.0,  1.0,  224,  0.2),
    _v1("efficientnet-b1",    1.0,  1.1,  240,  0.2),
    _v1("efficientnet-b2",    1.1,  1.2,  260,  0.3),
    _v1("efficientnet-b3",    1.2,  1.4,  300,  0.3),
    _v1("efficientnet-b4",    1.4,  1.8,  380,  0.4),
    _v1("efficientnet-b5",    1.6,  2.2,  456,  0.4),
    _v1("efficientnet-b6",    1.8,  2.6,  528,  0.5),
    _v1("efficientnet-b7",    2.0,  3.1,  600,  0.5),
    _v1("efficientnet-b8",    2.2,  3.6,  672,  0.5),
    _v1("efficientnet-l2",    4.3,  5.3,  800,  0.5),
    _lite("efficientnet-lite0", 1.0, 1.0, 224,  0.2),
    _lite("efficientnet-lite1", 1.0, 1.1, 240,  0.2),
    _lite("efficientnet-lite2", 1.1, 1.2, 260,  0.3),
    _lite("efficientnet-lite3", 1.2, 1.4, 280,  0.3),
    _lite("efficientnet-lite4", 1.4, 1.8, 300,  0.3),
    _edgetpu("efficientnet-edgetpu-s", 1.0, 1.0, 224, 0.2),
    _edgetpu("efficientnet-edgetpu-m", 1.0, 1.1, 240, 0.2),
    _edgetpu("efficientnet-edgetpu-l", 1.2, 1.4, 300, 0.3),
    #                                      width depth  res  train dropout    effnetv2_configs.py
    _v2("efficientnetv2-b0", _V2_BASE_BLOCKS, 1.0, 1.0, 224, 192, 0.2, preprocessing="torch"),
    _v2("efficientnetv2-b1", _V2_BASE_BLOCKS, 1.0, 1.1, 240, 192, 0.2, preprocessing="torch"),
    _v2("efficientnetv2-b2", _V2_BASE_BLOCKS, 1.1, 1.2, 260, 208, 0.3, preprocessing="torch"),
    _v2("efficientnetv2-b3", _V2_BASE_BLOCKS, 1.2, 1.4, 300, 240, 0.3, preprocessing="torch"),
    _v2("efficientnetv2-s",  _V2_S_BLOCKS,    1.0, 1.0, 384, 300, 0.2),
    _v2("efficientnetv2-m",  _V2_M_BLOCKS,    1.0, 1.0, 480, 384, 0.3),
    _v2("efficientnetv2-l",  _V2_L_BLOCKS,    1.0, 1.0, 480, 384, 0.4),
    _v2("efficientnetv2-xl", _V2_XL_BLOCKS,   1.0, 1.0, 512, 384, 0.4),
    _v2("efficientnetv2-s-first", _V2_S_FIRST_BLOCKS, 1.0, 1.0, 384, 300, 0.2, head_filters=1792),
)
# fmt: on

VARIANTS: dict[str, Variant] = {row.name: row for row in _ROWS}


# V2 Table 3 says neither kernels nor squeeze-excite. With these the parameters are within 0.5 % of
# its numbers, and the multiply-adds, over those of B4, within 0.6 %: the best fit of 30 choices.
_FUSED = (
    _fused(VARIANTS["efficientnet-b4"], 3, {3: 3}, 3),
    _fused(VARIANTS["efficientnet-b4"], 5, {3: 3}, 5),
    _fused(VARIANTS["efficientnet-b4"], 7, {3: 3}, 5),
)
ABLATIONS: dict[str, Variant] = {row.name: row for row in _FUSED}
