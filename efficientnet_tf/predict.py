"""Classify pictures: arrays with `classify`, files with `classify_files`.

`classifier.load` opens a model together with the `Preprocessing` of its weights. All inference goes
through `models.inference.compiled`.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np

from efficientnet_tf.classifier import Classifier, load
from efficientnet_tf.labels import labels_for, top_classes
from efficientnet_tf.models.inference import check_shape, compiled
from efficientnet_tf.preprocessing import Preprocessing

__all__ = [
    "Classifier",
    "FilePrediction",
    "ScoredClass",
    "classify",
    "classify_files",
    "compiled",
    "load",
    "normalizes",
    "warn_if_normalized",
]


@dataclasses.dataclass(frozen=True)
class ScoredClass:
    """A class and the score that a picture got for it."""

    index: int
    wnid: str
    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class FilePrediction:
    """What came of one file: the best classes, or the reason why there are none.

    Attributes:
        path: of the file, as it was given.
        classes: by falling score; empty where the file could not be read.
        error: names the file; None where all went well.
    """

    path: str
    classes: tuple[ScoredClass, ...] = ()
    error: str | None = None


def classify(model: keras.Model, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
    """Scores pictures that are in memory.

    Args:
        model: a classifier; see `efficientnet_tf.build`.
        images: uint8 or floating (pictures, height, width, channels) of the model's input size. For
            a model that normalises its input, in [0, 255]: a batch that looks normalised already
            gets a warning.
        batch_size: pictures at a time.

    Returns:
        float32 (pictures, classes), the model's output.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
    images = np.asarray(images)
    check_shape(model, images.shape)
    if len(images) == 0:
        raise ValueError("images must hold at least one picture. Received: none")
    warn_if_normalized(model, images)
    predict = compiled(model)
    batches = range(0, len(images), batch_size)
    return np.concatenate([predict(images[start : start + batch_size]) for start in batches])


def warn_if_normalized(model: keras.Model, images: np.ndarray) -> None:
    """Warns where pictures seem to be normalised and the model would do it once more.

    Args:
        model: looked at for a layer that normalises.
        images: a batch as the model would get it. It looks normalised where it is floating and all
            values lie in [-1, 1], except for a batch of one single value, such as black frames.
    """
    images = np.asarray(images)
    if images.size == 0 or images.dtype.kind in "iub":
        return
    low, high = float(images.min()), float(images.max())
    if -1 <= low < high <= 1 and normalizes(model):
        warnings.warn(
            f"The pictures have values from {low:.4g} to {high:.4g}, but {model.name!r} normalises "
            "its input itself and expects pixels in [0, 255]. Pass the pixels as they are, or "
            "build the model with include_preprocessing=False.",
            stacklevel=3,
        )


def normalizes(model: keras.Model) -> bool:
    """Whether the model, or a model inside it, has a layer that normalises pixels."""
    return any(
        isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization))
        or (isinstance(layer, keras.Model) and normalizes(layer))
        for layer in model.layers
    )


def classify_files(
    paths: Iterable[str | os.PathLike],
    model: keras.Model,
    preprocessing: Preprocessing,
    top: int = 5,
    *,
    labels: Sequence[tuple[str, str]] | None = None,
    batch_size: int = 8,
) -> Iterator[FilePrediction]:
    """Names the best classes of picture files: JPEG, PNG, BMP, GIF or WebP.

    A file that is missing, empty or damaged does not stop the others.

    Args:
        paths: of the files.
        model: a classifier that normalises its input, as `build` makes them.
        preprocessing: of the model's weights. Its size must be the model's.
        top: how many classes for each picture; all, where there are fewer.
        labels: (wnid, name) of every class; None is what `preprocessing.labels` says.
        batch_size: pictures at a time.

    Returns:
        An iterator of one `FilePrediction` for each path, in order.

    Raises:
        ValueError: where the model, `preprocessing` and `labels` do not fit together.
    """
    if top < 1 or batch_size < 1:
        raise ValueError(
            f"top and batch_size must be at least 1. Received: top={top}, batch_size={batch_size}"
        )
    if isinstance(paths, (str, os.PathLike)):
        raise ValueError(f"paths must be several, such as a list. Received: {paths!r}")
    size = preprocessing.size
    check_shape(model, (batch_size, size, size, 3))
    num_classes = model.output_shape[-1]
    names = labels_for(preprocessing.labels, num_classes) if labels is None else labels
    if len(names) != num_classes:
        raise ValueError(
            f"labels must name the model's {num_classes} classes. Received: {len(names)} labels"
        )
    return _classify_files(list(paths), model, preprocessing, top, names, batch_size)


def _classify_files(paths, model, preprocessing, top, labels, batch_size):
    for start in range(0, len(paths), batch_size):
        pictures, errors = {}, {}
        for path in paths[start : start + batch_size]:
            try:
                pictures[path] = _read(path, preprocessing)
            except OSError as error:
                errors[path] = f"{path}: {error.strerror or error}"
            except ValueError as error:
                errors[path] = str(error)
        scores = {}
        if pictures:
            batch = compiled(model)(np.stack(list(pictures.values())))
            scores = dict(zip(pictures, batch, strict=True))
        for path in paths[start : start + batch_size]:
            if path in errors:
                yield FilePrediction(str(path), error=errors[path])
            else:
                yield FilePrediction(str(path), _best(scores[path], top, labels))


def _read(path, preprocessing: Preprocessing) -> np.ndarray:
    from efficientnet_tf.data import images

    return images.resize_and_crop(images.read_image(path), preprocessing).numpy()


def _best(scores: np.ndarray, top: int, labels) -> tuple[ScoredClass, ...]:
    best = []
    for index in top_classes(scores[np.newaxis], top)[0]:
        wnid, name = labels[index]
        best.append(ScoredClass(int(index), wnid, name, float(scores[index])))
    return tuple(best)
