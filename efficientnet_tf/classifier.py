"""Open a classifier: a model with the preprocessing of its weights and the names of its classes.

`load` takes the name of a variant, a run of `scripts/train.py`, or a file; `origin` says where the
weights of such a source come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np

from efficientnet_tf import config as config_lib
from efficientnet_tf import paths
from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.arch import files
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.config.model import describe
from efficientnet_tf.labels import Label, check_class_name, labels_for, read_labels
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.models.layers import with_fast_layers
from efficientnet_tf.paths import AnyPath, Remote
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.weights import fetch, registry
from efficientnet_tf.weights import load as weights_lib

IMAGENET21K_LABELS_URL = registry.OFFICIAL_URL + "v2/imagenet21k_labels.txt"
# What a run leaves (`train.workdir`).
BEST, CONFIG, LABELS = "best.keras", "config.json", "labels.txt"
WEIGHTS_SUFFIX = ".weights.h5"

_LABEL_MAPS: dict[int, preprocessing_lib.LabelMap] = {
    1000: "imagenet",
    1001: "imagenet-background",
    21_843: "imagenet21k",
}


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


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a classifier's weights come from.

    Attributes:
        variant: name of the network; of a `.keras` file, the name that it gives itself.
        weights: a tag, or the name of the file; None for random weights.
        sha256: of the file's content, in hexadecimal digits; of a checkpoint of several files, of
            their names and contents; None for random weights.
    """

    variant: str
    weights: str | None = None
    sha256: str | None = None


def load(
    model: str | os.PathLike | Remote,
    weights: str | None = None,
    *,
    labels: str | os.PathLike | Remote | None = None,
) -> Classifier:
    """Opens a classifier, the preprocessing that belongs to its weights, and its labels.

    Args:
        model: name of a variant, such as "efficientnetv2-s"; path of a `.keras` file; folder of a
            run of `scripts/train.py`, whose best model is taken; or path of a `.weights.h5` file
            of a run, with the run's config.json beside it. Paths may be URLs, see `paths`.
        weights: for a variant: a tag (see `list_weights`), path of a checkpoint, or None for random
            weights. All others have their own.
        labels: a label file (see `labels.read_labels`). None is what the weights were trained on
            (ImageNet-21k: the published file, from the cache, the mirror or the network); for a
            file, `labels.txt` beside it.

    Returns:
        A `Classifier`, whose model gives probabilities. `preprocessing.json` beside a file
        (`Preprocessing.to_dict`, as `scripts/train.py` leaves it) says how pictures are prepared;
        or the manifest that `scripts/export.py` leaves beside a `.keras` file, which has labels
        too. Beside a `.keras` file both may be missing: ImageNet classes with a published
        normalisation then get that family's rule; for all others, whole pictures are resized
        (bilinear) to the model's size.

    Raises:
        ValueError: for an unknown name or tag, or parts that do not fit together.
        OSError: where a file cannot be read.
    """
    path = file_of(model)
    if path is None:
        network, preprocessing = _build(str(model), weights, labels)
    else:
        if weights is not None:
            raise ValueError(
                f"{path} has its own weights: weights must be None. Received: {weights!r}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        is_keras = path.suffix == ".keras"
        network, preprocessing = _load_file(path) if is_keras else _load_weights(path)
        if labels is None and (names := _exported(path).get("labels")):
            return Classifier(network, preprocessing, _labels(path, names, network))
        if labels is None and path.with_name(LABELS).is_file():
            labels = path.with_name(LABELS)
    if labels is None and preprocessing.labels == "imagenet21k":
        labels = fetch.fetch(IMAGENET21K_LABELS_URL)
    names = labels_for(preprocessing.labels, network.output_shape[-1], labels)
    return Classifier(network, preprocessing, names)


def origin(model: str | os.PathLike | Remote, weights: str | None = None) -> Origin:
    """Says where the weights of a source come from.

    Args:
        model: as for `load`.
        weights: as for `load`.

    Raises:
        ValueError: for an unknown name or tag.
        OSError: where a file cannot be read.
    """
    path = file_of(model)
    if path is not None:
        return Origin(_name(path), path.name, sha256(path))
    variant = find(str(model)).name
    if weights is None:
        return Origin(variant)
    record = registry.lookup(variant, weights)
    if record is not None:
        return Origin(variant, record.tag, sha256(weights_lib.locate(record)))
    checkpoint = paths.of(weights)
    return Origin(variant, checkpoint.name, sha256(checkpoint))


def sha256(path: str | os.PathLike | Remote) -> str:
    """Hash of a file's content, or of the names and contents of what belongs together.

    Args:
        path: a file, a folder, or the prefix of a checkpoint's files.

    Returns:
        64 hexadecimal digits.
    """
    path = paths.of(path)
    digest = hashlib.sha256()
    if path.is_file():
        files = [path]
    else:
        folder = path if path.is_dir() else path.parent
        found = folder.rglob("*") if path.is_dir() else folder.glob(f"{path.name}*")
        files = sorted(file for file in found if file.is_file())
    for file in files:
        if file != path:
            digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: AnyPath) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            yield block


def file_of(model: str | os.PathLike | Remote) -> AnyPath | None:
    """The file that a source means; None for the name of a variant.

    Args:
        model: as for `load`.

    Raises:
        ValueError: it is something that cannot be opened, such as a picture.
        FileNotFoundError: it is a path where nothing is.
    """
    path = paths.of(model)
    if path.name.endswith((".keras", WEIGHTS_SUFFIX)):
        return path
    if files.is_path(path) and path.is_file():
        return None
    if path.is_dir() and ((path / CONFIG).exists() or (path / BEST).exists()):
        if not (path / BEST).is_file():
            raise ValueError(f"{path} has no {BEST}: the run has not finished an epoch yet")
        return path / BEST
    if path.exists() or len(path.parts) != 1 or path.suffix:
        expected = (
            f"expected the folder of a run (with {BEST}), a .keras file, a .weights.h5 file beside"
            " a run's config.json, or the name of a variant (with weights=FILE for a checkpoint)"
        )
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder; {expected}")
        if not path.is_dir() or len(path.parts) != 1 or not _is_variant(path.name):
            raise ValueError(f"{path} is no model that can be opened: {expected}")
    return None


def _is_variant(name: str) -> bool:
    try:
        find(name)
    except ValueError:
        return False
    return True


def _name(path: AnyPath) -> str:
    """What the network in a file is called."""
    if path.suffix == ".keras":
        with paths.fetched(path) as local, zipfile.ZipFile(local) as archive:
            return str(json.loads(archive.read("config.json"))["config"].get("name", ""))
    return describe(_run_config(path).model).name


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


def _load_file(path: AnyPath) -> tuple[keras.Model, Preprocessing]:
    try:
        with paths.fetched(path) as local:
            model = keras.saving.load_model(local, compile=False)
    except (KeyError, TypeError) as error:  # Keras: for files that are damaged or need other code
        raise ValueError(f"{path}: cannot be read as a Keras model: {error}") from error
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (3, None):
        raise ValueError(f"{path}: not a classifier of RGB pictures: its input has shape {shape}")
    model = with_fast_layers(model)
    if getattr(layers(model)[-1], "activation", None) is keras.activations.linear:
        probabilities = keras.layers.Activation(
            _activation(_LABEL_MAPS.get(model.output_shape[-1])), name="probabilities"
        )
        model = keras.Model(model.inputs, probabilities(model.outputs[0]), name=model.name)
    description = path.with_name(preprocessing_lib.FILE)
    if "preprocessing" in (exported := _exported(path)):
        return model, Preprocessing.from_dict(exported["preprocessing"])
    if description.is_file():
        return model, _read_preprocessing(description)
    if shape[1] is None or shape[1] != shape[2]:
        raise ValueError(
            f"{path}: pictures are made square, of the model's size, but its input is {shape}; "
            f"{preprocessing_lib.FILE} beside it can say the size"
        )
    return model, _preprocessing_of(model, shape[1])


def _exported(path: AnyPath) -> dict:
    """The manifest of an exported file; empty where there is none."""
    manifest = path.with_name(f"{path.name}.manifest.json")
    if not manifest.is_file():
        return {}
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{manifest}: {error}") from None


def _labels(path: AnyPath, names: object, network: keras.Model) -> tuple[Label, ...]:
    """The labels that a manifest lists: "name", or "wnid<TAB>name"."""
    count = network.output_shape[-1]
    if not isinstance(names, list) or len(names) != count:
        raise ValueError(f"The manifest of {path} must have {count} labels.")
    labels = []
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"The manifest of {path} has a label that is no text: {name!r}")
        wnid, _, plain = name.rpartition("\t")
        for part in filter(None, (wnid, plain or name)):
            check_class_name(part, f"The manifest of {path}")
        labels.append(Label(wnid, plain))
    return tuple(labels)


def _load_weights(path: AnyPath) -> tuple[keras.Model, Preprocessing]:
    """Builds the network of a run and loads a file of its weights."""
    run = _run_config(path)
    preprocessing = _read_preprocessing(path.with_name(preprocessing_lib.FILE))
    network = build(
        describe(run.model),
        weights=str(path),
        input_shape=(preprocessing.size, preprocessing.size, 3),
        classes=len(read_labels(path.with_name(LABELS))),
        classifier_activation="sigmoid" if run.train.loss == "sigmoid" else "softmax",
        preprocessing=preprocessing,
    )
    return network, preprocessing


def _run_config(path: AnyPath) -> config_lib.Config:
    missing = [
        name
        for name in (CONFIG, preprocessing_lib.FILE, LABELS)
        if not path.with_name(name).is_file()
    ]
    if missing:
        raise ValueError(
            f"{path} holds weights without a network: expected {', '.join(missing)} of its run"
            " beside it. Weights of a published network are opened as weights= of its variant."
        )
    try:
        return config_lib.from_json(path.with_name(CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.with_name(CONFIG)}: {error}") from None


def _read_preprocessing(path: AnyPath) -> Preprocessing:
    try:
        return Preprocessing.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _activation(labels: preprocessing_lib.LabelMap | None) -> str:
    # The ImageNet-21k checkpoints were trained with a sigmoid: a picture shows several classes.
    return "sigmoid" if labels == "imagenet21k" else "softmax"


def layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, with those of the models inside it in their place."""
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        found += layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def _preprocessing_of(model: keras.Model, size: int) -> Preprocessing:
    """The published rule where normalisation and classes are published ones, else "squash"."""
    scale, offset = np.ones(3), np.zeros(3)
    for layer in layers(model):
        if isinstance(layer, keras.layers.Rescaling):
            scale, offset = (np.broadcast_to(v, 3) for v in (layer.scale, layer.offset))
    labels = _LABEL_MAPS.get(model.output_shape[-1])
    own = preprocessing_lib.own(size, scale, offset, labels)
    for name, constants in preprocessing_lib.NORMALIZATIONS.items():
        if labels and np.allclose([own.mean, own.std], constants, rtol=1e-5):
            return preprocessing_lib.default(name, size, labels)
    return own
