"""Contact sheets of augmentation: every operation, and what each stage of a run is trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from efficientnet_tf import stages as stages_lib
from efficientnet_tf.config import Config
from efficientnet_tf.data import augment, images, policies
from efficientnet_tf.data.records import Source
from efficientnet_tf.figures import drawing
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.stages import Stage
from efficientnet_tf.train import feed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAGNITUDES = (0, 2, 4, 6, 8, 10, 15, 20, 28)
_CELL, _GAP, _CAPTION, _NAME = 0.95, 0.06, 0.2, 1.25  # inches
_LARGEST, _TELL = 1.3, 2.35  # of a stage's pictures, and of the text before them
_CENTER = (0.45, 0.55)  # of Cutout's square: row and column, as shares
_FULL_SIZE = 224  # pixels that the published numbers of pixels are for


def operations(
    picture: np.ndarray,
    magnitudes: Sequence[float] = MAGNITUDES,
    *,
    image_size: int = _FULL_SIZE,
    relative: bool = False,
    bug_compat: bool = False,
) -> Figure:
    """Draws one picture under each operation of RandAugment, a row each, by magnitude.

    Where an operation has a random sign or place, one of them is shown.

    Args:
        picture: uint8 (height, width, 3); its central square is taken.
        magnitudes: the columns.
        image_size: pixels, square, of the pictures that are augmented.
        relative: whether translations and Cutout are of the same share of the picture at any size
            (`data.augment_pixels`).
        bug_compat: whether the operations have the released code's errors.

    Raises:
        ImportError: matplotlib is not installed.
    """
    for magnitude in magnitudes:
        if not 0 <= magnitude <= 30:
            raise ValueError(f"Magnitudes must lie in [0, 30]. Received: {magnitude}")
    rule = Preprocessing(
        "plain", (0, 0, 0), (1, 1, 1), image_size, crop="fraction", crop_fraction=1
    )
    square = tf.cast(tf.round(images.resize_and_crop(picture, rule)), tf.uint8)
    share = image_size / _FULL_SIZE if relative else 1.0
    sizes = policies.RANDAUGMENT_SIZES.scaled(share)
    rows = len(policies.OPERATIONS)
    width = _NAME + (len(magnitudes) + 1) * (_CELL + _GAP) + _GAP
    head, foot = 0.5, 0.1
    height = head + rows * (_CELL + _CAPTION) + foot
    figure = drawing.new(width, height)
    sheet = _Sheet(figure, width, height)
    for column, magnitude in enumerate(magnitudes, 1):
        left = _NAME + column * (_CELL + _GAP) + _CELL / 2
        sheet.write(left, 0.3, f"{magnitude:g}", weight="bold", align="center", size=10)
    sheet.write(_NAME + _CELL / 2, 0.3, "picture", weight="bold", align="center", size=9)
    sheet.write(_GAP, 0.3, "magnitude:", weight="bold", size=9)
    for row, name in enumerate(policies.OPERATIONS):
        top = head + row * (_CELL + _CAPTION)
        sheet.write(_GAP, top + _CELL / 2, name, weight="bold", size=10)
        sheet.show(_NAME, top, _CELL, square.numpy())
        has_argument = name not in ("AutoContrast", "Equalize", "Invert")
        for column, magnitude in enumerate(magnitudes if has_argument else (0,), 1):
            left = _NAME + column * (_CELL + _GAP)
            argument = policies.argument(name, magnitude, sizes)
            changed = augment.apply(name, square, argument, _CENTER, bug_compat=bug_compat)
            sheet.show(left, top, _CELL, changed.numpy())
            told = _told(name, argument, bug_compat)
            sheet.write(left + _CELL / 2, top + _CELL + 0.08, told, align="center", size=7)
        if not has_argument:
            left = _NAME + 2 * (_CELL + _GAP) + 0.1
            sheet.write(left, top + _CELL / 2, "has no magnitude", size=8, color=drawing.SOFT)
    return figure


def _told(name: str, argument: float, bug_compat: bool) -> str:
    """An operation's argument with its unit."""
    match name:
        case "Rotate":
            return f"{argument:.0f}°"
        case "Posterize":
            bits = argument if bug_compat else min(max(argument, 1), 8)
            return f"{bits} bit{'s' if bits != 1 else ''}"
        case "Solarize":
            return f"inverts ≥ {argument}" if argument < 256 or bug_compat else "inverts nothing"
        case "SolarizeAdd":
            return f"below 128: + {argument}"
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return f"× {argument:.2f}"
        case "ShearX" | "ShearY":
            return f"{argument:.2f} px/px"
        case "TranslateX" | "TranslateY":
            return f"{argument:.0f} px"
        case "Cutout":
            return f"{2 * argument:.0f} px square"
    return ""


def stages(config: Config, source: Source, count: int = 8, used: int = 0) -> Figure:
    """Draws what the network is given in each stage of a run, through the training's own code.

    Pictures are drawn in proportion to their size in pixels. Where targets are mixed, the classes'
    shares stand below.

    Args:
        config: of the run; its batch size is not used.
        source: gives the pictures.
        count: pictures of a batch; they are a whole batch to mixup and cutmix.
        used: pictures of the run that are left out at the front.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"There must be at least one picture. Received: count={count}")
    data = dataclasses.replace(config.data, batch_size=count)
    config = dataclasses.replace(config, data=data)
    found = stages_lib.expand(config, config.train.epochs)
    largest = max(stage.image_size for stage in found)
    sides = [_LARGEST * stage.image_size / largest for stage in found]
    width = _TELL + count * (_LARGEST + _GAP) + _GAP
    heights = [max(side, 0.95) + 0.36 for side in sides]
    figure = drawing.new(width, sum(heights) + 0.1)
    sheet = _Sheet(figure, width, sum(heights) + 0.1)
    top = 0.08
    for number, (stage, side, height) in enumerate(zip(found, sides, heights, strict=True), 1):
        pictures, targets = _batch(config, source, stage, used)
        title = f"stage {number} of {len(found)}" if len(found) > 1 else "all epochs"
        sheet.write(_GAP, top + 0.12, title, weight="bold", size=10)
        sheet.write(_GAP, top + 0.3, _settings(config, stage), size=8, up="top")
        for column, (picture, target) in enumerate(zip(pictures, targets, strict=True)):
            left = _TELL + column * (side + _GAP)
            sheet.show(left, top, side, np.rint(picture.clip(0, 255)).astype(np.uint8))
            told = _shares(target, source.class_names, round(13 * side))
            sheet.write(left + side / 2, top + side + 0.04, told, align="center", size=7, up="top")
        top += height
    return figure


def from_pictures(names: Sequence[str], pictures: Sequence[np.ndarray]) -> Source:
    """A source of a few pictures, which come in turn, each of a class of its own.

    Args:
        names: of the pictures; they are the classes.
        pictures: uint8 (height, width, 3), of any sizes.
    """
    encoded = [tf.io.encode_png(picture) for picture in pictures]

    def records(split: str, seed: int | None, start: int = 0) -> tf.data.Dataset:
        rows = (tf.stack(encoded), tf.range(len(encoded), dtype=tf.int64))
        dataset = tf.data.Dataset.from_tensor_slices(rows)
        return dataset if seed is None else dataset.repeat().skip(start)

    return Source(
        name="pictures",
        class_names=tuple(names),
        num_examples=dict.fromkeys(("train", "validation", "test"), len(encoded)),
        records=records,
        decode=lambda content, label: (images.decode(content), label),
        encoded=lambda content, label: (content, label),
        checked=True,
    )


def _batch(config: Config, source: Source, stage: Stage, used: int):
    batches = feed.training_batches(config, source, tf.distribute.get_strategy(), stage, used)
    pictures, targets = next(iter(batches))
    return pictures.numpy(), targets.numpy()


def _settings(config: Config, stage: Stage) -> str:
    data = config.data
    augmented = {"none": "", "randaugment": f"RandAugment, {data.num_layers} operations"}
    name = augmented.get(data.augment, data.augment.replace("autoaugment", "AutoAugment"))
    if stage.magnitude is not None:
        name += f" at {stage.magnitude:.3g}"
    lines = [
        f"epochs {stage.first_epoch}–{stage.last_epoch}, {stage.image_size} px",
        name,
        _nonzero({"mixup": stage.mixup, "cutmix": stage.cutmix}),
        _nonzero({"dropout": stage.dropout_rate, "drop connect": stage.drop_connect_rate}),
    ]
    return "\n".join(filter(None, lines))


def _nonzero(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items() if value)


def _shares(target: np.ndarray, names: Sequence[str], letters: int) -> str:
    order = [index for index in np.argsort(-target)[:2] if target[index] > 0.005]
    if not order:
        return ""
    if target[order[0]] > 0.995:
        return drawing.shortened(names[order[0]], letters)
    return "\n".join(
        f"{target[index]:.0%} {drawing.shortened(names[index], letters - 4)}" for index in order
    )


@dataclasses.dataclass(frozen=True)
class _Sheet:
    """Paper that is measured in inches from the upper left corner."""

    figure: Figure
    width: float
    height: float

    def show(self, left: float, top: float, side: float, picture: np.ndarray) -> None:
        place = (left / self.width, 1 - (top + side) / self.height)
        axes = self.figure.add_axes((*place, side / self.width, side / self.height))
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=drawing.SOFT, linewidth=0.4)
        axes.imshow(picture)

    def write(
        self, left, top, text, *, size, weight="normal", align="left", up="center", color=None
    ) -> None:
        self.figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            ha=align,
            va=up,
            fontsize=size,
            fontweight=weight,
            color=color or drawing.TEXT,
            linespacing=1.35,
        )
