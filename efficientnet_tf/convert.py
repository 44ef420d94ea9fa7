"""Weights from one file format into another, and what a weight file holds.

`scripts/convert.py` is its command line.
"""

from __future__ import annotations

import math
import os
import pathlib
from typing import TYPE_CHECKING

from efficientnet_tf import paths, writing
from efficientnet_tf import preprocessing as preprocessing_lib
from efficientnet_tf.arch import Network, resolve
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.weights import load, naming, registry, source
from efficientnet_tf.weights.keras_h5 import record_normalization, write_keras_h5
from efficientnet_tf.weights.pytorch import write_safetensors
from efficientnet_tf.weights.source import Normalization, Source, WeightsError

if TYPE_CHECKING:
    import numpy as np

# What the name of a target may end in.
TARGETS = (".weights.h5", ".keras", ".h5", ".safetensors")


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    variant: str | None = None,
    include_top: bool = True,
    ema: bool = True,
    preprocessing: str | None = None,
) -> None:
    """Reads weights of any format and writes them in another.

    Args:
        src: a path (see `weights.load.open_weights`) or, with `variant`, a tag.
        dst: what to write, by its end: `.weights.h5` or `.keras` (Keras 3), `.h5` (what the
            constructors of keras.applications take as `weights=`), or `.safetensors` (arrays named
            "layer/variable"). It appears under this name only when it is complete. All of them
            record the normalisation, which is checked when they are loaded.
        variant: what `src` holds. None is found out from the shapes.
        include_top: whether the classifier is converted.
        ema: whether to prefer moving averages; see `weights.load.open_weights`.
        preprocessing: name of the normalisation that the weights expect. None is the one recorded
            with them, in the registry or in the file, or else the variant's.

    Raises:
        WeightsError: `src` does not hold exactly one variant's weights.
        ValueError: an unknown tag, variant, ending or preprocessing.
        FileNotFoundError: no such source, or no such folder for the target.
    """
    dst = paths.local(dst, "dst")
    if not dst.name.endswith(TARGETS):
        raise ValueError(f"dst must end in one of {', '.join(TARGETS)}. Received: {dst}")
    if not dst.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {dst.parent} to write {dst.name} into.")
    if variant is None and any(str(src) == record.tag for record in registry.list_weights()):
        raise ValueError(f"{src!r} is a tag of published weights: say of which variant.")
    record = None if variant is None else registry.lookup(variant, src)
    path = src if record is None else load.locate(record, include_top=include_top)
    with load.open_weights(path, ema=ema) as found:
        network = resolve(variant or _only_candidate(found))
        arrays = source.read(found, network, include_top)
        if record is None and found.normalization is None:
            record = registry.published(network.variant.name, src)
    constants = _constants(network, record, found, preprocessing)
    with writing.whole(dst) as temporary:
        _write(temporary, arrays, network, constants)


def describe(found: Source) -> list[str]:
    """Lines that say what an opened file holds: format, variant, classes, and every array."""
    fits = load.candidates(found)
    num_classes = source.classes(found, resolve(fits[0])) if fits else None
    total = sum(math.prod(shape) for shape in found.shapes.values())
    lines = [
        f"format      {found.format}, names as in {found.naming}",
        f"variant     {' or '.join(fits) or 'none of the known ones'}",
        f"arrays      {len(found.shapes)} with {total:,} numbers",
    ]
    if fits:
        lines.append(f"classes     {num_classes or 'no classifier'}")
    if found.normalization is not None:
        constants = found.normalization
        lines.append(f"normalised  (x - {constants.mean}) / {constants.std}")
    lines += [f"note        {note}" for note in found.notes]
    return [*lines, *(f"{name}  {shape}" for name, shape in sorted(found.shapes.items()))]


def _only_candidate(found: Source) -> str:
    fits = load.candidates(found)
    if len(fits) != 1:
        raise WeightsError(
            f"{found.path} must fit exactly one variant, or `variant` must say which it is. "
            f"It fits: {', '.join(fits) or 'none'}."
        )
    return fits[0]


def _constants(
    network: Network,
    record: registry.WeightsRecord | None,
    found: Source,
    name: str | None,
) -> Preprocessing:
    size = network.variant.resolution
    if name is None and record is not None:
        return record.preprocessing
    if name is None and found.normalization is not None:
        return Preprocessing("stored", found.normalization.mean, found.normalization.std, size)
    return preprocessing_lib.default(name or network.variant.preprocessing, size)


def _write(
    path: pathlib.Path,
    arrays: dict[str, np.ndarray],
    network: Network,
    constants: Preprocessing,
) -> None:
    normalization = Normalization(constants.mean, constants.std)
    if path.name.endswith(".safetensors"):
        write_safetensors(path, arrays, normalization, variant=network.variant.name)
        return
    if path.name.endswith(".h5") and not path.name.endswith(".weights.h5"):
        write_keras_h5(path, arrays, network, normalization)
        return
    bias = arrays.get(f"{naming.CLASSIFIER}/bias")
    model = build(
        network.variant,
        include_top=bias is not None,
        classes=None if bias is None else len(bias),
        preprocessing=constants,
    )
    load.assign(model, arrays)
    if path.name.endswith(".keras"):
        model.save(path)
    else:
        model.save_weights(path)
        record_normalization(path, normalization)
