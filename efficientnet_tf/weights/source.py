"""An opened weight file of any format, and the strict match between it and a network."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from efficientnet_tf.arch import Network
from efficientnet_tf.weights import naming

if TYPE_CHECKING:
    import numpy as np

METADATA = "efficientnet_tf"  # key of what our own files say of themselves, as JSON
_SHOWN = 8  # names per complaint


class WeightsError(ValueError):
    """A weight file is damaged, incomplete, or not one of the wanted network."""


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Input normalisation that a file holds: the network sees ``(x - mean) / std``.

    Attributes:
        mean: of red, green and blue, on pixels in [0, 255].
        std: same order and units.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def encode_facts(normalization: Normalization | None, **facts: Any) -> str:
    """Writes what goes under `METADATA` in our own files: JSON."""
    if normalization is not None:
        facts["normalization"] = {"mean": normalization.mean, "std": normalization.std}
    return json.dumps(facts)


def decode_normalization(metadata: Mapping[str, Any], shown: str) -> Normalization | None:
    """Reads the normalisation out of a file's metadata, where `encode_facts` put it."""
    if METADATA not in metadata:
        return None
    with readable(shown, ValueError, KeyError, TypeError, IndexError, AttributeError):
        facts = json.loads(metadata[METADATA]).get("normalization")
        if facts is None:
            return None
        mean, std = ([float(value) for value in facts[name]] for name in ("mean", "std"))
        return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened weight file.

    Attributes:
        path: as given by the user; used in messages.
        format: what was recognised, for people.
        naming: key in `naming.NAMINGS`: what the file calls its arrays.
        shapes: array name to shape, without the file's known bookkeeping.
        load: reads one array by its name.
        normalization: of the input, where the file holds it.
        notes: further facts for people, for example how many EMA values there are.
    """

    path: str
    format: str
    naming: str
    shapes: Mapping[str, tuple[int, ...]]
    load: Callable[[str], np.ndarray]
    normalization: Normalization | None = None
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def readable(path: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Turns a library's complaint about a damaged file into a `WeightsError` with its path."""
    try:
        yield
    except kinds as error:
        raise WeightsError(f"{path} is damaged or not a weight file: {error}") from error


def problems(source: Source, network: Network, include_top: bool = True) -> list[str]:
    """Compares a file's array names and shapes with a network's, without reading arrays.

    Args:
        source: the file.
        network: what it should hold.
        include_top: whether the classifier must be there. Without it, it may be.

    Returns:
        One sentence per kind of difference; empty if the file is complete and nothing is left over.
    """
    table = naming.NAMINGS[source.naming](network)
    missing, misshaped = [], []
    for key, expected in naming.shapes(network).items():
        stored = table[key]
        if stored.name not in source.shapes:
            if include_top or not _in_classifier(key):
                missing.append(stored.name)
            continue
        found = _permuted(source.shapes[stored.name], stored.axes)
        if len(found) != len(expected) or any(
            want is not None and want != have for want, have in zip(expected, found, strict=False)
        ):
            wanted = tuple("any" if length is None else length for length in expected)
            misshaped.append(f"{stored.name} (expected {wanted} for {key}, found {found})")
    extra = sorted(set(source.shapes) - {stored.name for stored in table.values()})
    sentences = (("missing", missing), ("not part of the network", extra), ("shape", misshaped))
    return [_sentence(what, names) for what, names in sentences if names]


def read(source: Source, network: Network, include_top: bool = True) -> dict[str, np.ndarray]:
    """Reads all variables of a network from a file.

    Args:
        source: the file.
        network: what it must hold, exactly.
        include_top: whether the classifier is read. Without it the file need not have one.

    Returns:
        {"layer/variable": array} in Keras' layouts, float32.

    Raises:
        WeightsError: names the arrays that are missing, left over or of a wrong shape.
    """
    found = problems(source, network, include_top)
    if found:
        raise WeightsError(_mismatch(source, network, include_top, found))
    table = naming.NAMINGS[source.naming](network)
    arrays = {}
    for key, stored in table.items():
        if _in_classifier(key) and not include_top:
            continue
        array = source.load(stored.name)
        array = array if stored.axes is None else array.transpose(stored.axes)
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise WeightsError(
                f"{source.path}: {stored.name} holds {array.dtype}, expected floats."
            )
        arrays[key] = array.astype("float32")
    return arrays


def classes(source: Source, network: Network) -> int | None:
    """Number of classes of a file's classifier; None if it has none."""
    stored = naming.NAMINGS[source.naming](network)[f"{naming.CLASSIFIER}/bias"]
    shape = source.shapes.get(stored.name)
    return shape[0] if shape else None


def _mismatch(source: Source, network: Network, include_top: bool, found: list[str]) -> str:
    hint = ""
    if include_top and not problems(source, network, include_top=False):
        hint = " Only the classifier is missing: pass include_top=False to do without it."
    else:
        from efficientnet_tf.arch import VARIANTS, resolve

        fits = [n for n, v in VARIANTS.items() if not problems(source, resolve(v), include_top)]
        if fits:
            hint = f" The file fits {' or '.join(fits)}."
    return (
        f"{source.path} ({source.format}, names as in {source.naming}) is not a complete "
        f"{network.variant.name}.{hint}\n  " + "\n  ".join(found)
    )


def _sentence(what: str, names: list[str]) -> str:
    more = f", … ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"


def _permuted(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is None or len(axes) != len(shape):
        return tuple(shape)
    return tuple(shape[axis] for axis in axes)


def _in_classifier(key: str) -> bool:
    return key.startswith(naming.CLASSIFIER + "/")
