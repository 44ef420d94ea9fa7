"""The papers' comparison of class activation maps (V1 Fig. 7): pictures down, models across."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from efficientnet_tf import cam
from efficientnet_tf.cam.maps import Method
from efficientnet_tf.cam.overlay import colors
from efficientnet_tf.classifier import Classifier
from efficientnet_tf.data import images as images_lib
from efficientnet_tf.figures import drawing
from efficientnet_tf.models.inference import check_shape, compiled
from efficientnet_tf.preprocessing import Preprocessing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL, _GAP, _CAPTION, _HEAD, _FOOT = 2.3, 0.12, 0.42, 0.42, 0.62  # inches
_TALLEST, _WIDEST = 1.5, 0.5  # height over width of a cell
_SMALL = 160  # pixels: smaller pictures are enlarged, or their maps would be of few pixels
_LETTERS = 30  # of a name that fit a cell


class Explanation(NamedTuple):
    """What a model sees in a picture.

    Attributes:
        heat: float32 (h, w) in [0, 1], the map of a class.
        name: of that class.
        score: of that class, 0 to 1.
        best: name of the most likely class, and its score.
        rule: how the picture was cropped and resized.
    """

    heat: np.ndarray
    name: str
    score: float
    best: tuple[str, float]
    rule: Preprocessing


def explain(
    classifier: Classifier,
    pictures: Sequence[np.ndarray],
    class_name: str | None = None,
    layer: str | None = None,
    method: Method = "cam",
    batch_size: int = 8,
) -> list[Explanation]:
    """Computes maps of pictures.

    Args:
        classifier: with its preprocessing and its labels.
        pictures: uint8 (height, width, 3), of any sizes.
        class_name: name, wnid or number of the class that is explained; None is the most likely one
            of each picture.
        layer: see `cam.cam`.
        method: see `cam.cam`.
        batch_size: pictures at a time.

    Raises:
        ValueError: there is no such class, layer or method, or nothing that it can be used on.
    """
    model, rule, labels = classifier
    check_shape(model, (1, rule.size, rule.size, 3))
    names = [label.name or label.wnid or str(index) for index, label in enumerate(labels)]
    wanted = None if class_name is None else find_class(class_name, labels)
    found = []
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        batch = np.stack([images_lib.resize_and_crop(picture, rule).numpy() for picture in part])
        scores = compiled(model)(batch)
        likely = scores.argmax(-1)
        chosen = likely if wanted is None else np.full(len(part), wanted)
        heats = cam.cam(model, batch, chosen, layer, method)
        for heat, row, index, best in zip(heats, scores, chosen, likely, strict=True):
            score, top = float(row[index]), (names[best], float(row[best]))
            found.append(Explanation(heat, names[index], score, top, rule))
    return found


def find_class(text: str, labels: Sequence[tuple[str, str]]) -> int:
    """Number of the class of a name (of any case), a wnid, or a number.

    Raises:
        ValueError: there is none; the message has the nearest names.
    """
    typed = text.strip().lower().replace("_", " ")
    for index, (wnid, name) in enumerate(labels):
        if typed in (wnid.lower(), name.lower().replace("_", " ")):
            return index
    if typed.isdecimal() and int(typed) < len(labels):
        return int(typed)
    known = {name.lower().replace("_", " "): name for _, name in labels}
    parts = [name for key, name in known.items() if typed and typed in key][:5]
    close = parts or [known[key] for key in difflib.get_close_matches(typed, known, n=5)]
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(
        f"The model has no class {text!r}.{hint} A class is a name, a wnid, or a number from 0 to"
        f" {len(labels) - 1}."
    )


def sheet(
    pictures: Sequence[tuple[str, np.ndarray]],
    columns: Sequence[tuple[str, Sequence[Explanation]]],
    method: str = "cam",
) -> Figure:
    """Draws the comparison.

    Args:
        pictures: (name, uint8 (height, width, 3)), a row each.
        columns: (name of the model, an explanation for each picture).
        method: told in the key.

    Raises:
        ImportError: matplotlib is not installed.
    """
    heights = [
        _CELL * min(max(picture.shape[0] / picture.shape[1], _WIDEST), _TALLEST)
        for _, picture in pictures
    ]
    width = (len(columns) + 1) * (_CELL + _GAP) + _GAP
    height = _HEAD + sum(heights) + len(heights) * _CAPTION + _FOOT
    figure = drawing.new(width, height)
    for column, title in enumerate(["picture", *(name for name, _ in columns)]):
        figure.text(
            (_GAP + column * (_CELL + _GAP) + _CELL / 2) / width,
            1 - _HEAD / 2 / height,
            drawing.shortened(title, _LETTERS),
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold",
            color=drawing.TEXT,
        )
    top = height - _HEAD
    cropped = False
    for row, (name, picture) in enumerate(pictures):
        top -= heights[row]
        for column in range(len(columns) + 1):
            left = _GAP + column * (_CELL + _GAP)
            axes = figure.add_axes(
                (left / width, top / height, _CELL / width, heights[row] / height)
            )
            axes.set_axis_off()
            large = _enlarged(picture)
            if column == 0:
                axes.imshow(large)
                caption = drawing.shortened(name, _LETTERS + 2)
            else:
                one = columns[column - 1][1][row]
                axes.imshow(cam.overlay(large, one.heat, one.rule))
                cropped |= _outline(axes, large.shape[:2], one.rule)
                caption = _caption(one)
            figure.text(
                (left + _CELL / 2) / width,
                (top - 0.05) / height,
                caption,
                ha="center",
                va="top",
                fontsize=8.5,
                color=drawing.TEXT if column else drawing.SOFT,
            )
        top -= _CAPTION
    _key(figure, width, height, method, cropped)
    return figure


def _caption(one: Explanation) -> str:
    text = f"{drawing.shortened(one.name, _LETTERS)}  {one.score:.1%}"
    if one.name != one.best[0]:
        text += f"\nmost likely: {drawing.shortened(one.best[0], 18)}  {one.best[1]:.1%}"
    return text


def _enlarged(picture: np.ndarray) -> np.ndarray:
    factor = math.ceil(_SMALL / min(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def _outline(axes, shape: tuple[int, int], rule: Preprocessing) -> bool:
    """Draws what the network saw, where that is not all; returns whether it is so."""
    from matplotlib.patches import Rectangle

    top, left, height, width = cam.covered(shape, rule)
    if (height, width) == tuple(shape):
        return False
    place = (left - 0.5, top - 0.5)
    for color, style in (("black", "-"), ("white", (0, (4, 4)))):
        axes.add_patch(
            Rectangle(place, width, height, fill=False, color=color, lw=1, linestyle=style)
        )
    return True


def _key(figure, width: float, height: float, method: str, cropped: bool) -> None:
    """The colours' meaning, at the foot."""
    length = min(2.6, width / 3)
    axes = figure.add_axes((_GAP / width, 0.36 / height, length / width, 0.12 / height))
    values = np.linspace(0, 1, 256)[None, :, None]
    shown = 255 * (1 - 0.75 * values) + colors(values[..., 0]) * 0.75 * values
    axes.imshow(shown.astype(np.uint8), aspect="auto")
    axes.set(xticks=[], yticks=[])
    names = {"cam": "CAM", "gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++"}
    told = f"evidence for the class ({names[method]}), from none to most"
    if cropped:
        told += "\ndashed: the part that the network sees"
    figure.text(
        _GAP / width, 0.3 / height, told, ha="left", va="top", fontsize=8, color=drawing.SOFT
    )
