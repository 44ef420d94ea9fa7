"""What the classes are called, without a network.

The 1000 ImageNet classes come with the package. The ImageNet-21k names are read from a label file
such as the published `efficientnet/v2/imagenet21k_labels.txt`.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from efficientnet_tf import paths

NUM_IMAGENET21K = 21_843  # logits of the ImageNet-21k checkpoints


class Label(NamedTuple):
    """A class: its WordNet id, e.g. "n01440764" ("" where it has none), and its name."""

    wnid: str
    name: str


BACKGROUND = Label("", "background")
# What can change how the text around it is shown: "Bidi_Control" of Unicode.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@functools.cache
def imagenet_labels(background: bool = False) -> tuple[Label, ...]:
    """The ImageNet-1k classes in index order.

    Args:
        background: whether class 0 is the background, as in the EdgeTPU checkpoints.

    Returns:
        1000 labels, or 1001.
    """
    table = importlib.resources.files("efficientnet_tf") / "data" / "imagenet_classes.tsv"
    labels = _parse(table.read_text(encoding="utf-8"))
    return (BACKGROUND, *labels) if background else labels


def read_labels(path: str | os.PathLike) -> tuple[Label, ...]:
    """Reads a label file: one class a line in index order, `name` or `wnid<TAB>name`.

    Raises:
        OSError: where the file cannot be read.
        ValueError: naming the file, where a line is empty or the file is.
    """
    try:
        labels = _parse(paths.of(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a label file: {error}") from None
    if not labels:
        raise ValueError(f"{path}: not a label file: it is empty")
    return labels


def imagenet21k_labels(path: str | os.PathLike) -> tuple[Label, ...]:
    """Reads the published ImageNet-21k label file, and makes it fit the 21,843 logits.

    The published file counts 21,842 lines, one less than there are logits. ImageNet-21k has no
    background class, so the names are taken to start at class 0; the last class is then called
    "class 21842", and a warning says so.

    Raises:
        OSError: where the file cannot be read.
        ValueError: for any other number of lines.
    """
    labels = read_labels(path)
    if len(labels) == NUM_IMAGENET21K - 1:
        warnings.warn(
            f"{path} names {len(labels):,} of the {NUM_IMAGENET21K:,} ImageNet-21k "
            "classes; they are taken as the first ones, and the last one has no name.",
            stacklevel=2,
        )
        labels = (*labels, Label("", f"class {NUM_IMAGENET21K - 1}"))
    if len(labels) != NUM_IMAGENET21K:
        raise ValueError(
            f"An ImageNet-21k label file has {NUM_IMAGENET21K:,} lines, or {NUM_IMAGENET21K - 1:,} "
            f"as published. Received: {path} with {len(labels):,}"
        )
    return labels


def labels_for(
    label_map: str | None, num_classes: int, path: str | os.PathLike | None = None
) -> tuple[Label, ...]:
    """The labels of a classifier.

    Args:
        label_map: `Preprocessing.labels`: "imagenet", "imagenet-background", "imagenet21k" or None.
        num_classes: how many scores the classifier gives.
        path: a label file, which then counts instead of what comes with the package.

    Returns:
        `num_classes` labels; "class 0", "class 1", … where neither argument gives names.

    Raises:
        ValueError: where the labels are not `num_classes`, or ImageNet-21k names are asked for
            without a file.
    """
    if label_map == "imagenet21k":
        if path is None:
            raise ValueError(
                "The ImageNet-21k names do not come with the package: give a label file, such as "
                "the published efficientnet/v2/imagenet21k_labels.txt."
            )
        labels = imagenet21k_labels(path)
    elif path is not None:
        labels = read_labels(path)
    elif label_map is None:
        labels = tuple(Label("", f"class {index}") for index in range(num_classes))
    else:
        labels = imagenet_labels(background=label_map == "imagenet-background")
    _check_width(num_classes, labels)
    return labels


def decode_predictions(
    preds: Any, top: int = 5, labels: Sequence[tuple[str, str]] | None = None
) -> list[list[tuple[str, str, float]]]:
    """Names the best classes of every picture, as `keras.applications` does, but offline.

    Args:
        preds: (batch, classes), an array or something that NumPy can make one of; probabilities or
            logits, which are returned as they are.
        top: how many classes for each picture; all, where there are fewer.
        labels: (wnid, name) of every class. None means ImageNet: 1000 classes, or 1001 with the
            background first. For others see `imagenet21k_labels` and `read_labels`.

    Returns:
        For every picture, (wnid, name, score) by falling score; equal scores in index order.

    Raises:
        ValueError: for another shape, scores that are not numbers, or a wrong number of labels.
    """
    scores = np.asarray(preds)
    if scores.ndim != 2:
        raise ValueError(
            "preds must have shape (batch, classes): one row of scores for every picture. "
            f"Received: shape {scores.shape}"
        )
    if labels is None:
        if scores.shape[1] == NUM_IMAGENET21K:
            raise ValueError(
                f"{NUM_IMAGENET21K:,} scores are ImageNet-21k's, whose names do not come with the "
                "package: pass labels=imagenet21k_labels(path)."
            )
        labels = imagenet_labels(background=scores.shape[1] == 1001)
    _check_width(scores.shape[1], labels)
    return [
        [(*labels[index], float(row[index])) for index in indices]
        for row, indices in zip(scores, top_classes(scores, top), strict=True)
    ]


def top_classes(scores: np.ndarray, top: int) -> np.ndarray:
    """Indices of the best classes.

    Args:
        scores: (batch, classes).
        top: how many; all, where there are fewer.

    Returns:
        whole numbers (batch, min(top, classes)), best first; equal scores in index order.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1. Received: top={top}")
    scores = np.asarray(scores, np.float64)
    if np.isnan(scores).any():
        raise ValueError("The scores contain NaN: the model has broken weights or inputs.")
    return np.argsort(-scores, axis=1, kind="stable")[:, :top]


def check_class_name(name: str, where: str) -> None:
    """Refuses names of classes that a file of labels would not give back as they are.

    Raises:
        ValueError: beginning with `where`.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where} has a name that is not valid UTF-8: rename it.") from None
    if len(name.splitlines()) > 1 or printable(name) != name:
        raise ValueError(
            f"{where} has a tab, a line break or another control character in its name, {name!r}:"
            " rename it."
        )
    if not name or name.strip() != name:
        raise ValueError(
            f"{where} has a name that is empty, or begins or ends with a space, {name!r}: rename"
            " it."
        )


def printable(text: str) -> str:
    r"""A name from a file, so that it can be printed on one line and does nothing to a terminal.

    Control characters, line breaks, those that turn the direction of writing, and bytes that are no
    UTF-8 become escapes.

    >>> print(printable("caf\u00e9 \x1b[31m\n"))
    café \x1b[31m\n
    """
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING
        else character
        for character in text
    )


def _parse(text: str) -> tuple[Label, ...]:
    labels = []
    for number, line in enumerate(text.splitlines(), start=1):
        wnid, name = line.split("\t", 1) if "\t" in line else ("", line)
        if not name.strip():
            raise ValueError(f"line {number} has no name")
        labels.append(Label(wnid.strip(), name.strip()))
    return tuple(labels)


def _check_width(num_classes: int, labels: Sequence[Any]) -> None:
    if num_classes != len(labels):
        raise ValueError(
            f"The labels must be as many as the scores of a picture. Received: {num_classes:,} "
            f"scores and {len(labels):,} labels"
        )
