"""Classify pictures: arrays with `classify`, files with `classify_files`.

`load` opens a model by name, or from a file, together with the `Preprocessing` of its weights. All
inference goes through `models.inference.compiled`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np

from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.labels import Label, labels_for, read_labels, top_classes
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.models.inference import check_shape, compiled
from efficientnet_tf.models.layers import with_fast_layers
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.weights import fetch, registry

IMAGENET21K_LABELS_URL = registry.OFFICIAL_URL + "v2/imagenet21k_labels.txt"

_LABEL_MAPS: dict[int, preprocessing_lib.LabelMap] = {
    1000: "imagenet",
    1001: "imagenet-background",
    21_843: "imagenet21k",
}


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


class Classifier(NamedTuple):
    """A model with what it takes to use it on files.

    Attributes:
        model: gives probabilities (batch, classes).
        preprocessing: of its weights.
        labels: of its classes.
    """

    model: keras.Model
    preprocessing: Preprocessing
    labels: tuple[Label, ...]


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
                errors[path] = f"{os.fspath(path)}: {error.strerror or error}"
            except ValueError as error:
                errors[path] = str(error)
        scores = {}
        if pictures:
            batch = compiled(model)(np.stack(list(pictures.values())))
            scores = dict(zip(pictures, batch, strict=True))
        for path in paths[start : start + batch_size]:
            if path in errors:
                yield FilePrediction(os.fspath(path), error=errors[path])
            else:
                yield FilePrediction(os.fspath(path), _best(scores[path], top, labels))


def _read(path, preprocessing: Preprocessing) -> np.ndarray:
    from efficientnet_tf.data import images

    return images.resize_and_crop(images.read_image(path), preprocessing).numpy()


def _best(scores: np.ndarray, top: int, labels) -> tuple[ScoredClass, ...]:
    best = []
    for index in top_classes(scores[np.newaxis], top)[0]:
        wnid, name = labels[index]
        best.append(ScoredClass(int(index), wnid, name, float(scores[index])))
    return tuple(best)


def load(
    model: str | os.PathLike,
    weights: str | None = None,
    *,
    labels: str | os.PathLike | None = None,
) -> Classifier:
    """Opens a classifier, the preprocessing that belongs to its weights, and its labels.

    Args:
        model: name of a variant, such as "efficientnetv2-s", or path of a `.keras` file.
        weights: for a variant: a tag (see `list_weights`), path of a checkpoint, or None for random
            weights. A `.keras` file has its own.
        labels: a label file (see `labels.read_labels`). None is what the weights were trained on
            (ImageNet-21k: the published file, from the cache, the mirror or the network); for a
            `.keras` file, `labels.txt` beside it.

    Returns:
        A `Classifier`, whose model gives probabilities. `preprocessing.json` beside a `.keras` file
        (`Preprocessing.to_dict`, as `scripts/train.py` leaves it) says how pictures are prepared.
        Without it, ImageNet classes with a published normalisation get that family's rule; for all
        others, whole pictures are resized (bilinear) to the model's size.

    Raises:
        ValueError: for an unknown name or tag, or parts that do not fit together.
        OSError: where a file cannot be read.
    """
    path = pathlib.Path(model)
    if path.suffix == ".keras":
        if weights is not None:
            raise ValueError(
                f"{path} has its own weights: weights must be None. Received: {weights!r}"
            )
        network, preprocessing = _load_file(path)
        if labels is None and path.with_name("labels.txt").is_file():
            labels = path.with_name("labels.txt")
    else:
        network, preprocessing = _build(os.fspath(model), weights, labels)
    if labels is None and preprocessing.labels == "imagenet21k":
        labels = fetch.fetch(IMAGENET21K_LABELS_URL)
    names = labels_for(preprocessing.labels, network.output_shape[-1], labels)
    return Classifier(network, preprocessing, names)


def _build(name: str, weights: str | None, labels) -> tuple[keras.Model, Preprocessing]:
    variant = find(name)
    record = None if weights is None else registry.published(variant.name, weights)
    if record is not None:
        classes, preprocessing = record.classes, record.preprocessing
    else:
        classes = len(read_labels(labels)) if labels else variant.classes
        preprocessing = preprocessing_lib.default(
            variant.preprocessing, variant.resolution, _LABEL_MAPS.get(classes)
        )
    network = build(
        variant,
        weights=weights,
        input_shape=(preprocessing.size, preprocessing.size, 3),
        classes=classes,
        classifier_activation=_activation(preprocessing.labels),
        preprocessing=preprocessing if record is not None else None,
    )
    return network, preprocessing


def _load_file(path: pathlib.Path) -> tuple[keras.Model, Preprocessing]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        model = keras.saving.load_model(path, compile=False)
    except (KeyError, TypeError) as error:  # Keras: for files that are damaged or need other code
        raise ValueError(f"{path}: cannot be read as a Keras model: {error}") from error
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (3, None):
        raise ValueError(f"{path}: not a classifier of RGB pictures: its input has shape {shape}")
    model = with_fast_layers(model)
    if getattr(model.layers[-1], "activation", None) is keras.activations.linear:
        probabilities = keras.layers.Activation(
            _activation(_LABEL_MAPS.get(model.output_shape[-1])), name="probabilities"
        )
        model = keras.Model(model.inputs, probabilities(model.outputs[0]), name=model.name)
    description = path.with_name(preprocessing_lib.FILE)
    if description.is_file():
        return model, _read_preprocessing(description)
    if shape[1] is None or shape[1] != shape[2]:
        raise ValueError(
            f"{path}: pictures are made square, of the model's size, but its input is {shape}; "
            f"{preprocessing_lib.FILE} beside it can say the size"
        )
    return model, _preprocessing_of(model, shape[1])


def _read_preprocessing(path: pathlib.Path) -> Preprocessing:
    try:
        return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _activation(labels: preprocessing_lib.LabelMap | None) -> str:
    # The ImageNet-21k checkpoints were trained with a sigmoid: a picture shows several classes.
    return "sigmoid" if labels == "imagenet21k" else "softmax"


def _preprocessing_of(model: keras.Model, size: int) -> Preprocessing:
    """The published rule where normalisation and classes are published ones, else "squash"."""
    scale, offset = np.ones(3), np.zeros(3)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Rescaling):
            scale, offset = (np.broadcast_to(v, 3) for v in (layer.scale, layer.offset))
    labels = _LABEL_MAPS.get(model.output_shape[-1])
    own = preprocessing_lib.own(size, scale, offset, labels)
    for name, constants in preprocessing_lib.NORMALIZATIONS.items():
        if labels and np.allclose([own.mean, own.std], constants, rtol=1e-5):
            return preprocessing_lib.default(name, size, labels)
    return own
