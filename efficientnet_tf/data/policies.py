"""What AutoAugment and RandAugment apply: the names of the operations, their levels, policy v0.

Pure Python. `data.augment` applies it. Numbers as in the released code of both papers
(tensorflow/tpu `models/official/efficientnet/autoaugment.py`, google/automl
`efficientnetv2/autoaugment.py`).
"""

from typing import NamedTuple

MAX_LEVEL = 10  # of AutoAugment; RandAugment goes beyond it, up to 30

# In the order of the released RandAugment.
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
    "SolarizeAdd",
)

# Operations whose argument gets a random sign.
SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"})


class Sizes(NamedTuple):
    """What level 10 means for the two operations that count in pixels, whatever the picture's size.

    Attributes:
        cutout: half the side of Cutout's square.
        translate: pixels that TranslateX and TranslateY move by.
    """

    cutout: int
    translate: int

    def scaled(self, share: float) -> "Sizes":
        """The same, in whole pixels, for pictures that are `share` times as large."""
        return Sizes(round(self.cutout * share), round(self.translate * share))


AUTOAUGMENT_SIZES = Sizes(cutout=100, translate=250)
RANDAUGMENT_SIZES = Sizes(cutout=40, translate=100)


class Step(NamedTuple):
    """One step of a sub-policy.

    Attributes:
        operation: one of `OPERATIONS`.
        probability: with which it is applied, 0 to 1.
        level: 0 to 10.
    """

    operation: str
    probability: float
    level: float


# AutoAugment v0 (https://arxiv.org/abs/1805.09501), found on ImageNet: one row is drawn uniformly,
# then its two steps are taken one after the other.
# fmt: off
V0 = (
    (Step("Equalize",  0.8, 1), Step("ShearY",       0.8, 4)),
    (Step("Color",     0.4, 9), Step("Equalize",     0.6, 3)),
    (Step("Color",     0.4, 1), Step("Rotate",       0.6, 8)),
    (Step("Solarize",  0.8, 3), Step("Equalize",     0.4, 7)),
    (Step("Solarize",  0.4, 2), Step("Solarize",     0.6, 2)),
    (Step("Color",     0.2, 0), Step("Equalize",     0.8, 8)),
    (Step("Equalize",  0.4, 8), Step("SolarizeAdd",  0.8, 3)),
    (Step("ShearX",    0.2, 9), Step("Rotate",       0.6, 8)),
    (Step("Color",     0.6, 1), Step("Equalize",     1.0, 2)),
    (Step("Invert",    0.4, 9), Step("Rotate",       0.6, 0)),
    (Step("Equalize",  1.0, 9), Step("ShearY",       0.6, 3)),
    (Step("Color",     0.4, 7), Step("Equalize",     0.6, 0)),
    (Step("Posterize", 0.4, 6), Step("AutoContrast", 0.4, 7)),
    (Step("Solarize",  0.6, 8), Step("Color",        0.6, 9)),
    (Step("Solarize",  0.2, 4), Step("Rotate",       0.8, 9)),
    (Step("Rotate",    1.0, 7), Step("TranslateY",   0.8, 9)),
    (Step("ShearX",    0.0, 0), Step("Solarize",     0.8, 4)),
    (Step("ShearY",    0.8, 0), Step("Color",        0.6, 4)),
    (Step("Color",     1.0, 0), Step("Rotate",       0.6, 2)),
    (Step("Equalize",  0.8, 4), Step("Equalize",     0.0, 8)),
    (Step("Equalize",  1.0, 4), Step("AutoContrast", 0.6, 2)),
    (Step("ShearY",    0.4, 7), Step("SolarizeAdd",  0.6, 7)),
    (Step("Posterize", 0.8, 2), Step("Solarize",     0.6, 10)),
    (Step("Solarize",  0.6, 8), Step("Equalize",     0.6, 1)),
    (Step("Color",     0.8, 6), Step("Rotate",       0.4, 5)),
)
# fmt: on


def argument(operation: str, level: float, sizes: Sizes) -> float:
    """Argument that the released code gives an operation at a level, before its random sign.

    Not every operation gets stronger with the level: Posterize keeps more bits and Solarize
    inverts fewer pixels the higher it is (neither does anything from level 20 and 10 on), and
    Color, Contrast, Brightness and Sharpness do nothing at level 5, where their factor is 1.

    Args:
        operation: one of `OPERATIONS`.
        level: from 0; 10 is AutoAugment's highest, RandAugment calls it magnitude.
        sizes: `AUTOAUGMENT_SIZES`, `RANDAUGMENT_SIZES` or others.

    Returns:
        Degrees (Rotate), bits (Posterize), threshold (Solarize), levels added (SolarizeAdd),
        factor (Color, Contrast, Brightness, Sharpness), pixels per pixel (ShearX, ShearY), pixels
        (TranslateX, TranslateY), half a side in pixels (Cutout); 0 for those without an argument.
    """
    share = level / MAX_LEVEL
    match operation:
        case "AutoContrast" | "Equalize" | "Invert":
            return 0
        case "Rotate":
            return share * 30
        case "Posterize":
            return int(share * 4)
        case "Solarize":
            return int(share * 256)
        case "SolarizeAdd":
            return int(share * 110)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return share * 1.8 + 0.1
        case "ShearX" | "ShearY":
            return share * 0.3
        case "TranslateX" | "TranslateY":
            return share * sizes.translate
        case "Cutout":
            return int(share * sizes.cutout)
    raise ValueError(f"Expected one of {', '.join(OPERATIONS)}. Received: operation={operation!r}")
