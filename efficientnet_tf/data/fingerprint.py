"""What tells the pictures of a source from others, found out in seconds."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.data.records import SPLITS, Source

_READ = 64  # picture files of a split whose content is hashed
_SIZED = 100_000  # files of a split whose sizes are
_BATCH = 1024


def of_classes(source: Source) -> str:
    """Hash of the classes' names and their order (of SHA-256, 16 hexadecimal digits)."""
    names = "\n".join(source.class_names).encode("utf-8", "surrogateescape")
    return hashlib.sha256(names).hexdigest()[:16]


def fingerprint(source: Source) -> dict[str, Any]:
    """Identifies the pictures of a source and their labels.

    The hash of a split covers all pictures and labels where they are in memory; of files, all their
    names below the folder that they share, all labels, their sizes (of 100,000 at most, evenly
    spread) and the content of 64, evenly spread; of records that can only be read one after the
    other, the first 64.

    Args:
        source: is read from, in order.

    Returns:
        "classes": hash of their names, and for each of `SPLITS` its "examples" and "hash" (both of
        SHA-256, 16 hexadecimal digits).
    """
    found: dict[str, Any] = {"classes": of_classes(source)}
    for split in SPLITS:
        digest = hashlib.sha256()
        if source.row is None:
            for record in source.records(split, None).take(_READ):
                _add_picture(digest, source, record)
        else:
            _add_rows(digest, source, split)
        found[split] = {
            "examples": source.num_examples[split],
            "hash": digest.hexdigest()[:16],
        }
    return found


def _add_rows(digest, source: Source, split: str) -> None:
    """Adds the records of a split, any of which can be reached at once."""
    files: list[bytes] = []
    for batch in source.records(split, None).batch(_BATCH).as_numpy_iterator():
        for column in batch:
            if column.dtype == object:
                files += column.tolist()
            else:
                digest.update(np.ascontiguousarray(column).tobytes())
    if not files:
        return
    shared = _shared([os.path.dirname(path) for path in files])
    for path in files:
        digest.update(path[shared:] + b"\0")
    for path in _spread(files, _SIZED):
        if os.path.isfile(path):  # those elsewhere would have to be asked for one by one
            digest.update(b"%d," % os.path.getsize(path))
    for position in _spread(range(source.num_examples[split]), _READ):
        _add_picture(digest, source, source.row(split, tf.constant(position, tf.int64)))


def _add_picture(digest, source: Source, record: tuple[tf.Tensor, ...]) -> None:
    try:
        for part in (source.encoded or source.decode)(*record):
            value = part.numpy()
            digest.update(value if isinstance(value, bytes) else value.tobytes())
    except tf.errors.OpError:
        digest.update(b"unreadable")


def _shared(paths: Sequence[bytes]) -> int:
    """How many bytes all paths begin with, which are those that the first and the last share."""
    pairs = zip(min(paths), max(paths), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _spread(items: Sequence, most: int) -> Sequence:
    return items[:: -(-len(items) // most)]
