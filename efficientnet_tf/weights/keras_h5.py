"""Keras files: `.h5` by layer name, `.weights.h5`, and `.keras` archives.

The old layout (`layer_names`, used by all of keras.applications' files and by qubvel's and
leondgarse's) names every array; the one of Keras 3 numbers the variables of a layer and gives the
layer's name as an attribute.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from efficientnet_tf.arch import Network
from efficientnet_tf.preprocessing import NORMALIZATIONS
from efficientnet_tf.weights import naming
from efficientnet_tf.weights.source import (
    METADATA,
    Normalization,
    Source,
    WeightsError,
    decode_normalization,
    encode_facts,
    readable,
)

if TYPE_CHECKING:
    import h5py
    import numpy as np

_KERAS_3_GROUPS = {"layers", "_layer_checkpoint_dependencies"}
# What Keras 3 saves beside the layers of a model.
_KERAS_3_STATE = ("optimizer", "compile_metrics", "metrics", "trainer", "vars", "seed_generator")
_LEGACY_STATE = ("optimizer_weights", "top_level_model_weights")
_NORMALIZATION = ("mean", "variance", "count")


@contextlib.contextmanager
def open_keras(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Opens a `.h5`, `.weights.h5` or `.keras` file.

    Yields:
        The `Source`; its arrays can be read inside the `with` block.

    Raises:
        WeightsError: not such a file, or damaged.
    """
    import h5py

    shown = str(path)
    with contextlib.ExitStack() as stack:
        content: str | os.PathLike[str] | io.BytesIO = path
        kind, config = "Keras weights", None
        if zipfile.is_zipfile(path):
            kind = "Keras archive"
            with readable(shown, zipfile.BadZipFile, KeyError), zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read("model.weights.h5"))
                config = archive.read("config.json")
        with readable(shown, OSError):
            file = stack.enter_context(h5py.File(content, "r"))
        recorded = decode_normalization(file.attrs, shown)
        config = file.attrs.get("model_config", config)  # of a whole model, as .h5 or .keras
        if recorded is None and config is not None:
            recorded = _rescaled(config, shown)
        if {"layer_names", "layer_names0"} & set(file.get("model_weights", file).attrs):
            yield _open_legacy(file, shown, recorded)
        elif _KERAS_3_GROUPS & set(file):
            yield _open_keras_3(file, shown, kind, recorded)
        else:
            raise WeightsError(
                f"{shown} is an HDF5 file, but not a Keras one: it has neither `layer_names` nor "
                f"`layers`. Found: {sorted(file)[:8]}"
            )


def _open_legacy(file: h5py.File, shown: str, recorded: Normalization | None) -> Source:
    group = file.get("model_weights", file)
    with readable(shown, KeyError, OSError):
        datasets = {}
        for layer in _names(group, "layer_names"):
            if layer in _LEGACY_STATE:
                continue
            for name in _names(group[layer], "weight_names"):
                # "stem_conv/kernel:0", in nested models "model/stem_conv/kernel:0"; the layer's
                # name is what counts.
                variable = name.rsplit("/", 1)[-1].split(":")[0]
                key = f"{layer}/{_variable(variable)}"
                if key in datasets:
                    raise WeightsError(f"{shown} holds {key} twice.")
                datasets[key] = group[layer][name]
                if datasets[key].file.filename != file.filename:
                    raise WeightsError(f"{shown} links to another file for {key}; refused.")
    return _source(datasets, shown, "Keras HDF5, by layer name", recorded)


def _open_keras_3(file: h5py.File, shown: str, kind: str, recorded: Normalization | None) -> Source:
    import h5py

    datasets: dict[str, h5py.Dataset] = {}

    def visit(name: str, item) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        parts = name.split("/")
        if parts[0] in _KERAS_3_STATE or "seed_generator" in parts:
            return
        layer = item.parent.attrs.get("name")
        if parts[-2] != "vars" or layer is None:
            key = name  # no variable of ours: reported as left over
        else:
            key = f"{layer}/{_numbered(str(layer), parts[-1], len(item.parent))}"
        if key in datasets:
            raise WeightsError(f"{shown} holds {key} twice.")
        datasets[key] = item

    with readable(shown, OSError, RuntimeError):
        file.visititems(visit)
    if datasets and all("/vars/" in key for key in datasets):
        raise WeightsError(
            f"{shown} does not name its layers (Keras before 3.2). Load it with that version and "
            "save it again as .h5."
        )
    return _source(datasets, shown, kind, recorded)


def _numbered(layer: str, index: str, count: int) -> str:
    """Name of variable number `index` in a layer that has `count` variables.

    Keras saves trainable variables first, both kinds in the order of their creation.
    """
    if layer.startswith("normalization"):
        order: tuple[str, ...] = _NORMALIZATION
    else:
        order = naming.BN_VARIABLES if count == len(naming.BN_VARIABLES) else ("kernel", "bias")
    place = int(index) if index.isdecimal() else len(order)
    return order[place] if place < len(order) else index


def _source(
    datasets: Mapping[str, h5py.Dataset], shown: str, kind: str, recorded: Normalization | None
) -> Source:
    datasets = dict(datasets)
    for name, dataset in datasets.items():
        if dataset.external or dataset.is_virtual:  # HDF5 would read any file of this machine
            raise WeightsError(f"{shown} takes {name} from another file; refused.")
    normalization = _pop_normalization(datasets) or recorded
    if "probs/kernel" in datasets:  # qubvel's name of the classifier
        for variable in ("kernel", "bias"):
            key = f"probs/{variable}"
            if key in datasets:
                datasets[f"{naming.CLASSIFIER}/{variable}"] = datasets.pop(key)
    scheme = "kecam" if any(name.startswith("stack_") for name in datasets) else "keras"

    def load(name: str) -> np.ndarray:
        with readable(shown, OSError):
            return datasets[name][()]

    shapes = {name: tuple(dataset.shape) for name, dataset in datasets.items()}
    return Source(shown, kind, scheme, shapes, load, normalization)


def _rescaled(config: str | bytes, shown: str) -> Normalization | None:
    """Normalisation of a saved model whose only normalising layer is one Rescaling."""
    import numpy as np

    with readable(shown, ValueError, KeyError, TypeError, AttributeError):
        layers = list(_layers(json.loads(config)))
        kinds = [layer["class_name"] for layer in layers]
    if kinds.count("Rescaling") != 1 or "Normalization" in kinds:
        return None
    constants = layers[kinds.index("Rescaling")]["config"]
    try:
        scale, offset = (
            np.resize(np.array(constants[name], "float64"), 3) for name in ("scale", "offset")
        )
    except (TypeError, ValueError):  # tensors, as old versions of Keras wrote them
        return None
    mean, std = (-offset / scale).tolist(), (1 / scale).tolist()
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Configs of all layers of a saved model, and of the models inside it."""
    inner = config.get("config")
    for layer in inner.get("layers", ()) if isinstance(inner, dict) else ():
        yield layer
        yield from _layers(layer)


def _pop_normalization(datasets: dict[str, h5py.Dataset]) -> Normalization | None:
    """Takes the variables of a Normalization layer out; keras.applications' V1 has one.

    Its graph divides pixels by 255 first. The published files hold the standard deviation where the
    layer expects its square, and keras.applications makes up for it after the layer
    (tensorflow/tensorflow issue 49930): such a file means the same as one with the square.
    """
    import numpy as np

    layers = {name.rsplit("/", 1)[0] for name in datasets if name.startswith("normalization")}
    if len(layers) != 1:
        return None
    (layer,) = layers
    if any(f"{layer}/{name}" not in datasets for name in _NORMALIZATION):
        return None  # its variables are then reported as left over
    values = {name: datasets.pop(f"{layer}/{name}") for name in _NORMALIZATION}
    mean = np.ravel(values["mean"][()]).astype("float64")
    variance = np.ravel(values["variance"][()]).astype("float64")
    published = np.array(NORMALIZATIONS["torch"][1]) / 255
    same = variance.shape == published.shape and np.allclose(variance, published, rtol=1e-3)
    std = variance if same else np.sqrt(variance)
    # As many constants as the input has channels; one stands for all.
    mean, std = np.resize(mean * 255, 3).tolist(), np.resize(std * 255, 3).tolist()
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Reads a list of names, which Keras splits over several attributes when it is long."""
    if attribute in group.attrs:
        values = list(group.attrs[attribute])
    else:
        values, part = [], 0
        while f"{attribute}{part}" in group.attrs:
            values += list(group.attrs[f"{attribute}{part}"])
            part += 1
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _variable(name: str) -> str:
    return "kernel" if name == "depthwise_kernel" else name


def write_keras_h5(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    network: Network,
    normalization: Normalization | None = None,
) -> None:
    """Writes a `.h5` by layer name that keras.applications' constructors load as `weights=`.

    Args:
        path: the file; an existing one is overwritten.
        arrays: {"layer/variable": array}; the classifier may be left out.
        network: what the arrays belong to.
        normalization: of the input that the weights expect. Written as the Normalization layer that
            V1 of keras.applications has (its V2 keeps the constants in the graph), and recorded
            for our reader.
    """
    import h5py
    import numpy as np

    rows: dict[str, dict[str, np.ndarray]] = {}
    if normalization is not None and network.variant.depthwise_name == "dwconv":
        mean = np.array(normalization.mean, "float32") / 255
        variance = np.square(np.array(normalization.std, "float64") / 255).astype("float32")
        rows["normalization"] = {"mean": mean, "variance": variance, "count": np.int64(0)}
    for row in naming.layers(network):
        found = {f"{name}:0": f"{row.name}/{name}" for name in row.variables}
        if row.kind == "depthwise":
            found = {"depthwise_kernel:0": f"{row.name}/kernel"}
        present = {name: arrays[key] for name, key in found.items() if key in arrays}
        if present:
            rows[row.name] = present
    with h5py.File(path, "w") as file:
        # Keras reads these attributes as bytes, the variables in the order of `weight_names`.
        file.attrs["layer_names"] = [name.encode() for name in rows]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.4.0"
        file.attrs[METADATA] = encode_facts(normalization)
        for name, variables in rows.items():
            group = file.create_group(name)
            names = [f"{name}/{variable}" for variable in variables]
            group.attrs["weight_names"] = [variable.encode() for variable in names]
            for key, array in zip(names, variables.values(), strict=True):
                group.create_dataset(key, data=array)


def record_normalization(path: str | os.PathLike[str], normalization: Normalization) -> None:
    """Notes the normalisation in a `.weights.h5`, in which Keras has no place for it.

    Keras ignores the note; `open_keras` gives it back.
    """
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs[METADATA] = encode_facts(normalization)
