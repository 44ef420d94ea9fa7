"""TensorFlow checkpoints as published by tensorflow/tpu (V1) and google/automl (V2).

They are name-based checkpoints: a directory or an archive with `model.ckpt.index` and its data,
where every variable `NAME` may also be there as `NAME/ExponentialMovingAverage`. The averages are
what the published accuracy was measured with.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from absl import logging

from efficientnet_tf.weights.archive import extract
from efficientnet_tf.weights.source import Source, WeightsError, readable

ARCHIVES = (".tar.gz", ".tgz", ".tar")

_GZIP_MAGIC = b"\x1f\x8b"
_EMA = "/ExponentialMovingAverage"
_ANCHOR = "stem/conv2d/kernel"  # the first variable of every network: what is before it is prefix
# What else training leaves in a checkpoint: counters, and the optimizers' slots of a variable.
_COUNTERS = re.compile(r"(global_step|save_counter|beta[12]_power)$")
_SLOT = re.compile(r"(.+)/(RMSProp|RMSProp_1|Momentum|Adam|Adam_1)$")


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that is named like an archive, or is compressed by gzip."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return str(path).lower().endswith(ARCHIVES) or file.read(2) == _GZIP_MAGIC


@contextlib.contextmanager
def open_official(path: str | os.PathLike[str], ema: bool = True) -> Iterator[Source]:
    """Opens a name-based checkpoint.

    Args:
        path: a directory, a prefix (`…/model.ckpt`), one of its files, or a `.tar.gz`, `.tgz` or
            `.tar`, which is unpacked into a temporary directory while it is open.
        ema: whether to prefer the moving averages of the variables to their last values. A
            checkpoint that has only one of the two gives that one; the log says which.

    Yields:
        The `Source`; its arrays can be read inside the `with` block.

    Raises:
        WeightsError: no checkpoint there, or one of another kind.
    """
    with contextlib.ExitStack() as stack:
        where = pathlib.Path(path)
        if is_archive(where):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="efficientnet_tf-"))
            where = extract(where, pathlib.Path(folder) / "checkpoint")
        yield _open_prefix(_prefix(where, str(path)), str(path), ema)


def _prefix(where: pathlib.Path, shown: str) -> str:
    if not where.is_dir():
        prefix = re.sub(r"\.(index|data-\d+-of-\d+)$", "", str(where))
        if os.path.exists(prefix + ".index"):
            return prefix
        raise WeightsError(f"{shown} is no checkpoint: there is no {prefix}.index.")
    prefixes = sorted(str(index)[: -len(".index")] for index in where.rglob("*.index"))
    if len(prefixes) > 1:
        # The `checkpoint` file names the latest; its paths may be of the machine that wrote it.
        import tensorflow as tf

        states = [tf.train.get_checkpoint_state(str(file.parent)) for file in _states(where)]
        names = {os.path.basename(state.model_checkpoint_path) for state in states if state}
        prefixes = [p for p in prefixes if os.path.basename(p) in names] or prefixes
    if len(prefixes) != 1:
        found = ", ".join(os.path.basename(prefix) for prefix in prefixes) or "none"
        raise WeightsError(
            f"{shown} must hold one checkpoint (a file ending in .index). Found: {found}. Give the "
            "prefix of the one you mean, for example DIR/model.ckpt."
        )
    return prefixes[0]


def _states(where: pathlib.Path) -> list[pathlib.Path]:
    return sorted(where.rglob("checkpoint"))


def _open_prefix(prefix: str, shown: str, ema: bool) -> Source:
    import tensorflow as tf

    damaged = (tf.errors.OpError, ValueError, RuntimeError)
    with readable(shown, *damaged):
        reader = tf.train.load_checkpoint(prefix)
        stored = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    if "_CHECKPOINTABLE_OBJECT_GRAPH" in stored:
        raise WeightsError(
            f"{shown} is an object-based checkpoint (tf.train.Checkpoint); only name-based ones, "
            "as published, can be read. Save the model as .weights.h5 or .keras instead."
        )
    averaged = {name.removesuffix(_EMA) for name in stored if name.endswith(_EMA)}
    raw = {name for name in stored if not name.endswith(_EMA) and not _is_bookkeeping(name)}
    raw -= {name for name in raw if _is_slot(name, raw | averaged)}
    first, second = (averaged, raw) if ema else (raw, averaged)
    choice = {name: name in averaged if ema else name not in raw for name in first | second}

    head = _head(choice, shown)
    shapes, names = {}, {}
    for name, from_average in choice.items():
        # A name outside the prefix can not be mistaken for one inside: no variable starts with /.
        short = name.removeprefix(head) if name.startswith(head) else f"/{name}"
        names[short] = name + _EMA if from_average else name
        shapes[short] = stored[names[short]]
    num_averages = sum(choice.values())
    note = (
        f"{num_averages} of {len(choice)} variables from their exponential moving average, "
        f"{len(choice) - num_averages} from their last value"
    )
    logging.info("%s: %s (ema=%s)", shown, note, ema)

    def load(name: str):
        with readable(shown, *damaged):
            return reader.get_tensor(names[name])

    inventory = f"{len(averaged)} moving averages and {len(raw)} last values stored"
    return Source(shown, "TensorFlow checkpoint", "official", shapes, load, notes=(inventory, note))


def _is_bookkeeping(name: str) -> bool:
    return bool(_COUNTERS.match(name.rsplit("/", 1)[-1]))


def _is_slot(name: str, variables: set[str]) -> bool:
    match = _SLOT.match(name)
    return match is not None and match.group(1) in variables


def _head(names, shown: str) -> str:
    heads = sorted(n.removesuffix(_ANCHOR) for n in names if ("/" + n).endswith("/" + _ANCHOR))
    if len(heads) != 1:
        raise WeightsError(
            f"{shown} must hold one EfficientNet, that is one variable ending in {_ANCHOR!r}. "
            f"Found {len(heads)} in {len(names)} variables: {', '.join(sorted(names)[:5])} …"
        )
    return heads[0]
