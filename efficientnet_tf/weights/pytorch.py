"""State dicts of timm and lukemelas, and our own `.safetensors`.

`.pth` files are pickles: they are read by `torch.load(weights_only=True)` alone, which makes
nothing but tensors and plain containers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from absl import logging

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
    import numpy as np

_BOOKKEEPING = "num_batches_tracked"  # BatchNorm's counter; nothing is computed from it
# In training checkpoints (timm's train.py): the last values, and their moving averages.
_NESTED = ("state_dict", "model", "model_state_dict")
_AVERAGED = ("state_dict_ema", "model_ema")
_MIN_TORCH = (2, 6)  # before it, weights_only=True could be got round (CVE-2025-32434)


@contextlib.contextmanager
def open_safetensors(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Opens a `.safetensors` file: timm's, or one of `write_safetensors`.

    Yields:
        The `Source`; its arrays can be read inside the `with` block.

    Raises:
        WeightsError: damaged, or of no known naming.
        ImportError: the package `safetensors` is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs the package safetensors: pip install safetensors"
        ) from error

    shown = str(path)
    with contextlib.ExitStack() as stack:
        with readable(shown, SafetensorError, OSError, ValueError):
            file = stack.enter_context(safe_open(path, framework="numpy"))
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}

        def load(name: str) -> np.ndarray:
            with readable(shown, SafetensorError, TypeError):
                return file.get_tensor(name)

        yield _source(shown, "safetensors", shapes, load, decode_normalization(metadata, shown))


@contextlib.contextmanager
def open_pth(path: str | os.PathLike[str], ema: bool = True) -> Iterator[Source]:
    """Opens a state dict saved by `torch.save`, without unpickling anything but tensors.

    Args:
        path: the file.
        ema: whether to prefer the moving averages in a training checkpoint to its last values; one
            that has only one of the two gives that one.

    Yields:
        The `Source`.

    Raises:
        WeightsError: damaged, holds other objects than tensors, or is of no known naming.
        ImportError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {path} needs PyTorch: pip install torch. Files ending in .safetensors do not."
        ) from error
    import pickle

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _MIN_TORCH:
        raise ImportError(
            f"Reading {path} needs PyTorch {_MIN_TORCH[0]}.{_MIN_TORCH[1]} or newer, because older "
            f"ones can run code from such a file. Installed: {torch.__version__}"
        )
    shown = str(path)
    with readable(shown, RuntimeError, EOFError, ValueError, KeyError):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its message advises to run the file's code
            raise WeightsError(
                f"{shown} is damaged or not a weight file: it holds other things than tensors and "
                "plain containers, which are not loaded because they can run code."
            ) from error
    notes = ()
    for key in (*_AVERAGED, *_NESTED) if ema else (*_NESTED, *_AVERAGED):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            notes = (f"from {key!r} of a training checkpoint (ema={ema})",)
            logging.info("%s: %s", shown, notes[0])
    if not isinstance(content, Mapping):
        raise WeightsError(f"{shown} holds a {type(content).__name__}, expected a state dict.")
    tensors = {
        str(key).removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
    }
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}

    def load(name: str) -> np.ndarray:
        tensor = tensors[name]
        # NumPy has no bfloat16.
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    yield _source(shown, "PyTorch state dict", shapes, load, notes=notes)


def write_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    normalization: Normalization | None = None,
    **facts: Any,
) -> None:
    """Writes `{"layer/variable": array}` with its normalisation as a `.safetensors` file.

    Args:
        path: the file; an existing one is overwritten.
        arrays: in Keras' layouts, under our names.
        normalization: of the input that the weights expect; checked when the file is loaded.
        **facts: further values for the file's metadata that JSON can hold, for example
            `variant="efficientnet-b0"`.
    """
    import numpy as np
    from safetensors.numpy import save_file

    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    save_file(contiguous, path, metadata={METADATA: encode_facts(normalization, **facts)})


def _source(shown, kind, shapes, load, normalization=None, notes=()) -> Source:
    shapes = {k: shape for k, shape in shapes.items() if k.rsplit(".", 1)[-1] != _BOOKKEEPING}
    anchors = {
        "stem_conv/kernel": "keras",
        "conv_stem.weight": "timm",
        "_conv_stem.weight": "lukemelas",
    }
    found = [scheme for anchor, scheme in anchors.items() if anchor in shapes]
    if len(found) != 1:
        raise WeightsError(
            f"{shown} must hold exactly one of {', '.join(anchors)}: the stem as named by "
            f"efficientnet_tf, timm or lukemelas. Found arrays: {', '.join(sorted(shapes)[:5])} …"
        )
    return Source(shown, kind, found[0], shapes, load, normalization, notes)
