"""Weights into a model: finds the file, recognises its format, checks everything, then assigns.

Nothing is assigned before all of it is known to fit, so that a failed load leaves the model as it
was; it never continues with random weights.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.arch import VARIANTS, Network, resolve
from efficientnet_tf.paths import Remote
from efficientnet_tf.weights import fetch, naming, registry, source
from efficientnet_tf.weights.keras_h5 import open_keras
from efficientnet_tf.weights.official import is_archive, open_official
from efficientnet_tf.weights.pytorch import open_pth, open_safetensors
from efficientnet_tf.weights.registry import WeightsRecord
from efficientnet_tf.weights.source import Normalization, Source, WeightsError, readable

if TYPE_CHECKING:
    import keras
    import numpy as np

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_STEM = "stem_conv/kernel"
_BACKGROUND = 1001  # classes of ImageNet with the background as class 0


@contextlib.contextmanager
def open_weights(path: str | os.PathLike[str] | Remote, *, ema: bool = True) -> Iterator[Source]:
    """Opens a weight file of any format, by its content.

    Args:
        path: an official checkpoint (directory, prefix or archive), `.h5`, `.weights.h5`,
            `.keras`, `.safetensors` or `.pth`. Of a URL (see `paths`) a copy is opened.
        ema: whether to prefer moving averages to last values, in formats that can hold both: see
            `official.open_official` and `pytorch.open_pth`.

    Yields:
        The `Source`; its arrays can be read inside the `with` block.

    Raises:
        WeightsError: not a weight file, or a damaged one.
        ValueError: `ema=False` for a format that has no moving averages beside the values.
    """
    path = paths.of(path)
    if isinstance(path, Remote):
        prefix = path.with_name(path.name.removesuffix(".index"))
        with paths.fetched(prefix) as copy, open_weights(copy, ema=ema) as found:
            yield found
        return
    path = str(path)
    is_prefix = os.path.exists(path + ".index") or path.endswith(".index")
    if not is_prefix and not os.path.exists(path):
        raise FileNotFoundError(f"There are no weights at {path}.")
    if is_prefix or os.path.isdir(path) or is_archive(path):
        opened = open_official(path, ema=ema)
    else:
        opened = _open_file(path, ema)
    with opened as found:
        yield found


def stored_normalization(path: str | os.PathLike[str] | Remote) -> Normalization | None:
    """Reads the input normalisation that a file of weights says it expects.

    Args:
        path: see `open_weights`.

    Returns:
        None where the file does not say; official checkpoints never do.
    """
    path = paths.of(path)
    if not path.is_file() or path.name.endswith(".index"):
        return None
    if not isinstance(path, Remote) and is_archive(path):
        return None
    with open_weights(path) as found:
        return found.normalization


def _open_file(path: str, ema: bool):
    with open(path, "rb") as file:
        start = file.read(9)
    is_keras = start.startswith(_HDF5_MAGIC)
    is_zip = not is_keras and zipfile.is_zipfile(path)
    if is_zip:
        with readable(path, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            is_keras = "model.weights.h5" in archive.namelist()
    is_safetensors = path.endswith(".safetensors") or start[8:9] == b"{"
    if not is_keras and (is_zip or path.endswith((".pth", ".pt"))):
        return open_pth(path, ema=ema)
    if not ema and (is_keras or is_safetensors):
        raise ValueError(f"{path} holds one value per variable: ema=False does not apply to it.")
    if is_keras:
        return open_keras(path)
    if is_safetensors:
        return open_safetensors(path)
    raise WeightsError(
        f"{path} is no weight file that can be read: an official TensorFlow checkpoint (directory, "
        f"prefix, .tar.gz, .tgz), .h5, .weights.h5, .keras, .safetensors or .pth. Its first bytes "
        f"are {start!r}."
    )


def read(
    path: str | os.PathLike[str], network: Network, *, include_top: bool = True, ema: bool = True
) -> dict[str, np.ndarray]:
    """Reads a file that must hold exactly the variables of a network.

    Args:
        path: see `open_weights`.
        network: what it must hold.
        include_top: whether the classifier is read. Without it the file need not have one.
        ema: see `open_weights`.

    Returns:
        {"layer/variable": array} in Keras' layouts, float32.

    Raises:
        WeightsError: names the arrays that are missing, left over or of a wrong shape.
    """
    with open_weights(path, ema=ema) as found:
        return source.read(found, network, include_top)


def candidates(found: Source) -> list[str]:
    """Names of the variants whose variables a file holds exactly, with or without classifier."""
    return [
        name
        for name, variant in VARIANTS.items()
        if not source.problems(found, resolve(variant), include_top=False)
    ]


def locate(
    record: WeightsRecord,
    *,
    include_top: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Returns the verified local file of a record, downloading it if need be.

    Args:
        record: the weights.
        include_top: whether the classifier is needed. Without it the smaller file is taken where
            there is one, unless only the other is here already.
        cache_dir: see `fetch.cache_folder`.

    Raises:
        fetch.FetchError: it can not be obtained, or is not the published file.
        ImportError: it is on the Hugging Face hub and `huggingface_hub` is not installed.
    """
    if record.hub:
        return _locate_hub(record, record.hub, cache_dir)
    files = [(record.url, record.hash)]
    if not include_top and record.url_notop:
        files.insert(0, (record.url_notop, record.hash_notop))
    here = [
        (url, digits)
        for url, digits in files
        if url and fetch.find_local(url, by_name=_unique(url), cache_dir=cache_dir)
    ]
    url, digits = (here or files)[0]
    if url is None:
        raise fetch.FetchError(f"{record.variant} {record.tag} has no address.")
    return fetch.fetch(url, digits, by_name=_unique(url), cache_dir=cache_dir)


def _unique(url: str) -> bool:
    return registry.unique_file_name(url)


def _locate_hub(record: WeightsRecord, name: str, cache_dir) -> pathlib.Path:
    """The hub's safetensors; the file of the GitHub release where it is here or the hub is not."""
    hub_url = f"https://huggingface.co/{name}/resolve/main/model.safetensors"
    names = (f"{name}/model.safetensors", f"{name.rsplit('/', 1)[1]}.safetensors")
    if fetch.find_local(hub_url, names=names, by_name=False, cache_dir=cache_dir):
        return fetch.fetch(hub_url, names=names, by_name=False, cache_dir=cache_dir)
    if record.url and fetch.find_local(record.url, cache_dir=cache_dir):
        return fetch.fetch(record.url, record.hash, cache_dir=cache_dir)
    if os.environ.get(fetch.MIRROR_VARIABLE):
        tried = (*names, *([record.url.rsplit("/", 1)[1]] if record.url else []))
        raise fetch.FetchError(
            f"{fetch.MIRROR_VARIABLE}={os.environ[fetch.MIRROR_VARIABLE]} does not hold "
            f"{record.tag}, and with it set nothing is downloaded. Looked for: {', '.join(tried)}"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        if record.url:
            logging.info("huggingface_hub is not installed; using %s", record.url)
            return fetch.fetch(record.url, record.hash, cache_dir=cache_dir)
        raise ImportError(
            f"{record.tag} is on the Hugging Face hub only: pip install huggingface_hub"
        ) from error
    try:
        path = huggingface_hub.hf_hub_download(
            name, "model.safetensors", cache_dir=fetch.cache_folder(cache_dir) / "huggingface"
        )
    except Exception as error:  # the hub's and its HTTP client's own classes, which vary
        raise fetch.FetchError(f"{name} can not be downloaded: {error}") from error
    return pathlib.Path(path)


def load_weights(
    model: keras.Model,
    network: Network,
    weights: str | os.PathLike[str],
    *,
    include_top: bool = True,
    classes: int | None = None,
    ema: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> WeightsRecord | None:
    """Loads published weights, or a file, into a model that was built from a network.

    A stem with another number of channels than the file's three is adapted by `adapt_stem`. Of a
    classifier with 1001 classes (EdgeTPU: ImageNet and the background) a model with 1000 gets all
    but the background; any other difference is an error.

    Args:
        model: functional, with our layer names. It may end before the classifier, and before the
            last convolution.
        network: what it was built from.
        weights: a tag of the variant (see `registry.list_weights`) or the path of a file.
        include_top: whether the model has the classifier.
        classes: of the model; None where it has no classifier.
        ema: see `open_weights`.
        cache_dir: where downloads are kept; see `fetch.cache_folder`.

    Returns:
        The record of a tag; None for a path.

    Raises:
        WeightsError: the file does not fit; the model is left as it was.
        ValueError: an unknown tag.
        fetch.FetchError: the file can not be obtained, or is not the published one.
    """
    record = registry.lookup(network.variant.name, weights)
    path = os.fspath(weights)
    if record is not None:
        if include_top:
            check_classes(record.classes, classes, f"weights={record.tag!r}")
        path = os.fspath(locate(record, include_top=include_top, cache_dir=cache_dir))
    with open_weights(path, ema=ema) as found:
        if record is None:  # else the record says how, and the model is built from it
            _check_normalization(model, found)
        if include_top:
            stored = source.classes(found, network)
            if stored is not None:
                check_classes(stored, classes, str(path))
        arrays = source.read(found, network, include_top)
    assign(model, arrays)
    logging.info("Loaded %d arrays from %s into %s", len(arrays), path, model.name)
    return record


def check_classes(stored: int, wanted: int | None, name: str) -> None:
    """Raises unless a model with `wanted` classes can take a classifier with `stored`.

    Args:
        stored: classes of the weights.
        wanted: classes of the model; None is as many as the weights have.
        name: of the weights, for the message.

    Raises:
        WeightsError: says what is allowed.
    """
    allowed = (stored, stored - 1) if stored == _BACKGROUND else (stored,)
    if wanted is not None and wanted not in allowed:
        counts = f"classes={stored}"
        if stored == _BACKGROUND:
            counts += f", classes={stored - 1} (without the background)"
        raise WeightsError(
            f"{name} has {stored} classes; received: classes={wanted}. Pass {counts}, or "
            "include_top=False to put a classifier of your own on top."
        )


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts a stem kernel for RGB to another number of channels.

    One channel gets the sum: on normalised x the response is that of (x, x, x). N channels get the
    RGB kernels in turn, times 3 / N, which keeps the scale of the response.

    Args:
        kernel: float (height, width, 3, filters).
        channels: of the model's input.

    Returns:
        float (height, width, channels, filters).
    """
    import numpy as np

    if channels == kernel.shape[2]:
        return kernel
    if kernel.shape[2] != 3:
        raise WeightsError(
            f"Only a stem for 3 channels can be adapted. The file's has {kernel.shape[2]}, the "
            f"model's {channels}."
        )
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % 3] * np.float32(3 / channels)


def assign(model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
    """Sets all variables of a model, after checking that each has an array of its shape.

    Args:
        model: has our layer names.
        arrays: {"layer/variable": array}; may have more than the model.

    Raises:
        WeightsError: names what does not fit; nothing is assigned then.
    """
    pairs, missing, misshaped = [], [], []
    for key, variable in model_variables(model).items():
        array = arrays.get(key)
        if array is None:
            missing.append(key)
            continue
        array = _adapt(key, array, tuple(variable.shape))
        if array.shape != tuple(variable.shape):
            misshaped.append(f"{key} (model {tuple(variable.shape)}, file {array.shape})")
        pairs.append((variable, array))
    if missing or misshaped:
        raise WeightsError(
            f"The weights do not fit the model {model.name}. No arrays for: {missing[:8]} "
            f"({len(missing)} in all). Other shapes: {misshaped[:8]} ({len(misshaped)} in all)."
        )
    for variable, array in pairs:
        variable.assign(array)


def _adapt(key: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if key == _STEM and array.shape[:2] == shape[:2] and array.shape[2] != shape[2]:
        return adapt_stem(array, shape[2])
    is_classifier = key.startswith(naming.CLASSIFIER + "/")
    if is_classifier and (array.shape[-1], shape[-1]) == (_BACKGROUND, _BACKGROUND - 1):
        return array[..., 1:]
    return array


def model_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """All weights of a model, keyed "layer/variable" as in `naming.shapes`."""
    return {
        f"{layer.name}/{variable.name.replace('depthwise_kernel', 'kernel')}": variable
        for layer in model.layers
        for variable in layer.weights
    }


def model_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """All weights of a model as float32 arrays, keyed "layer/variable"."""
    import keras

    return {
        key: keras.ops.convert_to_numpy(variable.value).astype("float32")
        for key, variable in model_variables(model).items()
    }


def _check_normalization(model: keras.Model, found: Source) -> None:
    """A file that says how its pictures are normalised must agree with the model."""
    import numpy as np

    names = [layer.name for layer in model.layers]
    if found.normalization is None or "rescaling" not in names:
        return
    rescaling = model.get_layer("rescaling")
    scale, offset = np.ravel(rescaling.scale), np.ravel(rescaling.offset)
    mean, std = found.normalization.mean, found.normalization.std
    # The model may have more channels than three, with the constants in turn.
    size = max(len(scale), len(mean))
    expected = np.resize(1 / np.array(std), size), np.resize(-np.array(mean) / np.array(std), size)
    given = np.resize(scale, size), np.resize(offset, size)
    if not all(
        np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(expected, given, strict=True)
    ):
        raise WeightsError(
            f"{found.path} was saved with the normalisation (x - mean) / std of pixels in [0, 255] "
            f"with mean={_rounded(mean)}, std={_rounded(std)}; the model has another, "
            f"mean={_rounded(-offset / scale)}, std={_rounded(1 / scale)}. Pass these numbers as "
            "preprocessing=Preprocessing(...), or include_preprocessing=False to normalise outside."
        )


def _rounded(values) -> tuple[float, ...]:
    return tuple(round(float(value), 3) for value in values)
