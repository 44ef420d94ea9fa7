"""The papers' tables about structure and cost, as they are printed there.

V1 is arXiv 1905.11946, V2 is arXiv 2104.00298. Parameters are in millions, FLOPs (multiply-adds) in
billions, accuracies in percent on ImageNet.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reported:
    """One row of a table.

    Attributes:
        network: name in `VARIANTS`, `ABLATIONS` or `BASELINES`; of a peer, its own.
        params: millions.
        flops: billions.
        top1: percent.
        hours: of training, on 32 TPUv3 cores (V2 Table 7) or as V2 Table 10 says.
        milliseconds: of inference, 16 pictures on a V100 in float16.
        tpu: pictures per second and core in training.
        v100: pictures per second and GPU in training.
    """

    network: str
    params: float | None
    flops: float | None
    top1: float
    hours: float | None = None
    milliseconds: float | None = None
    tpu: float | None = None
    v100: float | None = None


@dataclasses.dataclass(frozen=True)
class Scaled:
    """One row of a table about scaling.

    Attributes:
        network: what is scaled.
        depth: its multiplier.
        width: its multiplier.
        resolution: its multiplier.
        flops: billions.
        top1: percent.
    """

    network: str
    depth: float
    width: float
    resolution: float
    flops: float
    top1: float


# fmt: off
V1_TABLE_2 = (  #               params flops  top-1
    Reported("efficientnet-b0",  5.3,  0.39,  77.1),
    Reported("efficientnet-b1",  7.8,  0.70,  79.1),
    Reported("efficientnet-b2",  9.2,  1.0,   80.1),
    Reported("efficientnet-b3", 12.0,  1.8,   81.6),
    Reported("efficientnet-b4", 19.0,  4.2,   82.9),
    Reported("efficientnet-b5", 30.0,  9.9,   83.6),
    Reported("efficientnet-b6", 43.0, 19.0,   84.0),
    Reported("efficientnet-b7", 66.0, 37.0,   84.3),
)
PEERS = (  # of V1 Table 2
    Reported("ResNet-50",            26.0,  4.1, 76.0),
    Reported("DenseNet-169",         14.0,  3.5, 76.2),
    Reported("ResNet-152",           60.0, 11.0, 77.8),
    Reported("DenseNet-264",         34.0,  6.0, 77.9),
    Reported("Inception-v3",         24.0,  5.7, 78.8),
    Reported("Xception",             23.0,  8.4, 79.0),
    Reported("Inception-v4",         48.0, 13.0, 80.0),
    Reported("Inception-ResNet-v2",  56.0, 13.0, 80.1),
    Reported("ResNeXt-101",          84.0, 32.0, 80.9),
    Reported("PolyNet",              92.0, 35.0, 81.3),
    Reported("SENet",               146.0, 42.0, 82.7),
    Reported("NASNet-A",             89.0, 24.0, 82.7),
    Reported("AmoebaNet-A",          87.0, 23.0, 82.8),
    Reported("PNASNet",              86.0, 23.0, 82.9),
    Reported("AmoebaNet-C",         155.0, 41.0, 83.5),
    Reported("GPipe",               557.0, None, 84.3),
)
# The compound factors of MobileNetV2 and ResNet-50 are taken to be those of MobileNetV1.
V1_TABLE_3 = (  #            depth width  px   flops top-1
    Scaled("mobilenet-v1",    1.0,  1.0,  1.0,  0.6, 70.6),
    Scaled("mobilenet-v1",    1.0,  2.0,  1.0,  2.2, 74.2),
    Scaled("mobilenet-v1",    1.0,  1.0,  2.0,  2.2, 72.7),
    Scaled("mobilenet-v1",    1.4,  1.2,  1.3,  2.3, 75.6),
    Scaled("mobilenet-v2",    1.0,  1.0,  1.0,  0.3, 72.0),
    Scaled("mobilenet-v2",    4.0,  1.0,  1.0,  1.2, 76.8),
    Scaled("mobilenet-v2",    1.0,  2.0,  1.0,  1.1, 76.4),
    Scaled("mobilenet-v2",    1.0,  1.0,  2.0,  1.2, 74.8),
    Scaled("mobilenet-v2",    1.4,  1.2,  1.3,  1.3, 77.4),
    Scaled("resnet-50",       1.0,  1.0,  1.0,  4.1, 76.0),
    Scaled("resnet-50",       4.0,  1.0,  1.0, 16.2, 78.1),
    Scaled("resnet-50",       1.0,  2.0,  1.0, 14.7, 77.7),
    Scaled("resnet-50",       1.0,  1.0,  2.0, 16.4, 77.5),
    Scaled("resnet-50",       1.4,  1.2,  1.3, 16.7, 78.8),
)
V1_TABLE_7 = (
    Scaled("efficientnet-b0", 1.0,  1.0,  1.0,  0.4, 77.3),
    Scaled("efficientnet-b0", 4.0,  1.0,  1.0,  1.8, 79.0),
    Scaled("efficientnet-b0", 1.0,  2.0,  1.0,  1.8, 78.9),
    Scaled("efficientnet-b0", 1.0,  1.0,  2.0,  1.9, 79.1),
    Scaled("efficientnet-b0", 1.4,  1.2,  1.3,  1.8, 81.1),
)
V2_TABLE_3 = (  #                        params  flops top-1  pictures per second: TPU, V100
    Reported("efficientnet-b4",            19.3,  4.5, 82.8, tpu=262, v100=155),
    Reported("efficientnet-b4-fused-1-3",  20.0,  7.5, 83.1, tpu=362, v100=216),
    Reported("efficientnet-b4-fused-1-5",  43.4, 21.3, 83.1, tpu=327, v100=223),
    Reported("efficientnet-b4-fused-1-7", 132.0, 34.4, 81.7, tpu=254, v100=206),
)
# S is the first version's, "efficientnetv2-s-first" here, but for its name.
V2_TABLE_7 = (  #              params flops top-1 hours ms
    Reported("efficientnet-b3",  12.0,  1.9, 81.5, 10.0,  19.0),
    Reported("efficientnet-b4",  19.0,  4.2, 82.9, 21.0,  30.0),
    Reported("efficientnet-b5",  30.0, 10.0, 83.7, 43.0,  60.0),
    Reported("efficientnet-b6",  43.0, 19.0, 84.3, 75.0,  97.0),
    Reported("efficientnet-b7",  66.0, 38.0, 84.7, 139.0, 170.0),
    Reported("efficientnetv2-s", 24.0,  8.8, 83.9,  7.1,  24.0),
    Reported("efficientnetv2-m", 55.0, 24.0, 85.1, 13.0,  57.0),
    Reported("efficientnetv2-l", 121.0, 53.0, 85.7, 24.0, 98.0),
)
V2_TABLE_10 = (
    Reported("efficientnet-b7",  66.0, 38.0, 85.0, 54.0, 170.0),
    Reported("efficientnetv2-m", 55.0, 24.0, 85.1, 13.0,  57.0),
)
# fmt: on

TABLES: dict[str, tuple[Reported, ...] | tuple[Scaled, ...]] = {
    "v1-2": V1_TABLE_2,
    "v1-3": V1_TABLE_3,
    "v1-7": V1_TABLE_7,
    "v2-3": V2_TABLE_3,
    "v2-7": V2_TABLE_7,
    "v2-10": V2_TABLE_10,
}
