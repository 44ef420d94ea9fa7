"""TFRecord files of pictures: their records, how many there are, and what they hold.

A record has the keys of ImageNet's official files: `image/encoded`, `image/class/label` (counted
from 1; several for several labels), and for people `image/class/text`, `image/filename`,
`image/height`, `image/width`, `image/format`. `scripts/prepare_data.py` writes them beside a
`dataset.json` with the names of the classes and the files of each split.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths, stores
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import images
from efficientnet_tf.data.records import (
    SPLITS,
    Source,
    first_few,
    multi_hot,
    passes,
    valid_labels,
)
from efficientnet_tf.paths import AnyPath, Remote

MANIFEST = "dataset.json"
VERSION = 1
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_CYCLE = 16  # files that are read at a time; part of what the order of a pass depends on
_FRAME = 12  # bytes in front of a record: its length, and a checksum of that
_CHECKSUM = 4  # bytes after a record
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file, or a part of one.

    Attributes:
        path: of the file.
        count: records that are read.
        skip: records in front of them.
        whole: whether the file ends where a record ends.
    """

    path: str
    count: int
    skip: int = 0
    whole: bool = True


def open_tfrecord(config: DataConfig) -> Source:
    """Opens what `scripts/prepare_data.py` wrote.

    Args:
        config: `source` is "tfrecord:PATH"; `max_bad` is used too. Its splits are those that it was
            written with.

    Raises:
        ValueError: there is no manifest, or files are missing or cut off.
    """
    root = paths.of(config.source.partition(":")[2])
    manifest = read_manifest(root)
    found, expected = {}, 0
    changed: list[str] = []
    for split, shards in manifest["splits"].items():
        files = []
        for shard in shards:
            path = root / _plain(shard["file"])
            file = RecordFile(str(path), shard["num_examples"])
            expected += file.count
            if not path.exists():
                raise ValueError(f"{path} is missing. Copy it again, or write the data again.")
            if paths.size(path) != shard["bytes"]:
                changed.append(file.path)
                # Never more records than there were: the rest would not be pictures.
                counted = count_records(file.path)
                file = dataclasses.replace(counted, count=min(counted.count, file.count))
            files.append(file)
        found[split] = files
    missing = expected - sum(file.count for files in found.values() for file in files)
    _report_cut(changed, missing, expected, config.max_bad)
    found.setdefault("validation", found["test"])
    labels = tuple(manifest["class_names"])
    multi_label = manifest["multi_label"]
    source = record_source(config.source, labels, found, parse_example, multi_label)
    bad = tuple(f"{path} (cut off)" for path in changed)
    # Not `checked`, although the pictures were: files are copied, and disks fail.
    return dataclasses.replace(source, bad=bad)


def _plain(name: object) -> str:
    """A name that a manifest gives, where it is one of a file in its own folder.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str) or not _FILE.fullmatch(name):
        raise ValueError(f"{MANIFEST} names {name!r}, which is no file beside it.")
    return name


def read_manifest(root: AnyPath) -> dict[str, Any]:
    """Reads `dataset.json`.

    Raises:
        ValueError: there is none, or it is not of this version.
    """
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"There is no {path}, which scripts/prepare_data.py writes when it is done. For"
            " ImageNet's official files, data.source is imagenet:PATH."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise ValueError(f"{path}: expected version {VERSION}, as scripts/prepare_data.py writes.")
    names = manifest.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: class_names must be a list of names.")
    return manifest


def record_source(
    name: str,
    class_names: tuple[str, ...],
    files: Mapping[str, Sequence[RecordFile]],
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    multi_label: bool,
) -> Source:
    """A source whose records are serialized examples in files.

    Args:
        name: as in the configuration.
        class_names: in the order of the labels.
        files: of each split.
        parse: serialized example to (content of the picture file, labels int64 (any,)
            from 0).
        multi_label: whether a picture may have several labels.
    """
    num_classes = len(class_names)

    def encoded(serialized, path, number):
        name = describe(serialized, path, number)
        readable = tf.debugging.Assert(serialized != b"", ["The file is damaged before", name])
        with tf.control_dependencies([readable]):
            content, labels = parse(tf.identity(serialized))
        labels = valid_labels(labels, num_classes, name)
        if multi_label:
            return content, multi_hot(labels, num_classes)
        return content, tf.reshape(labels, ())  # fails where there is not one label

    def decode(serialized, path, number):
        content, label = encoded(serialized, path, number)
        return images.decode(content), label

    def describe(serialized, path, number):
        return tf.strings.join([path, ": record ", tf.strings.as_string(number)])

    def records(split: str, seed: int | None, start: int = 0) -> tf.data.Dataset:
        return read(files[split], seed, start)

    return Source(
        name=name,
        class_names=class_names,
        num_examples={split: sum(file.count for file in files[split]) for split in SPLITS},
        records=records,
        decode=decode,
        encoded=encoded,
        describe=describe,
        multi_label=multi_label,
    )


def read(files: Sequence[RecordFile], seed: int | None, start: int = 0) -> tf.data.Dataset:
    """Records of files: once in order, or endlessly, every pass in another order.

    Every pass has as many records as the files are said to hold. Where a file cannot be read to its
    end, what is missing comes as empty records, which are no pictures: so they are counted and
    named like other bad pictures, instead of missing without a word.

    Args:
        files: to read.
        seed: of the order of the files and of the records, see `records.passes`; None for none.
        start: records to leave out at the front.

    Returns:
        A dataset of (serialized string, path string, number int64 of the record in its file).
    """
    with tf.device("CPU"):
        paths = tf.constant([file.path for file in files])
        skips = tf.constant([file.skip for file in files], tf.int64)
        counts = tf.constant([file.count for file in files], tf.int64)

    def records(index: tf.Tensor) -> tf.data.Dataset:
        path, skip, count = (tf.gather(each, index) for each in (paths, skips, counts))
        empty = tf.data.Dataset.from_tensors(tf.constant(b"")).repeat()
        found = _stored(path, files[0].path).ignore_errors().concatenate(empty)
        numbers = tf.data.Dataset.range(tf.int64.max)
        numbered = tf.data.Dataset.zip(found, numbers).skip(skip).take(count)
        return numbered.map(lambda serialized, number: (serialized, path, number))

    def one_pass(key: tf.Tensor | None) -> tf.data.Dataset:
        indices = tf.data.Dataset.range(len(files))
        if key is None:
            return indices.flat_map(records)
        last = tf.constant(len(files) - 1, tf.int64)
        order = indices.map(
            lambda index: tf.random.experimental.index_shuffle(index, seed=key, max_index=last)
        )
        return order.interleave(
            records, cycle_length=_CYCLE, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        )

    return passes(one_pass, sum(file.count for file in files), seed, start)


def _stored(path: tf.Tensor, example: str) -> tf.data.Dataset:
    """The records of a file, up to where it is damaged.

    Args:
        path: of the file, scalar string.
        example: path of such a file.
    """
    located = paths.of(example)
    if not isinstance(located, Remote) or stores.read_by_tensorflow(located.scheme):
        return tf.data.TFRecordDataset(path)

    def records(path: bytes) -> Iterator[bytes]:
        with paths.of(os.fsdecode(path)).open("rb") as file:
            while len(frame := file.read(_FRAME)) == _FRAME:
                content = file.read(int.from_bytes(frame[:8], "little"))
                check = file.read(_CHECKSUM)
                if frame[8:] != _sum(frame[:8]) or check != _sum(content):
                    return
                yield content

    return tf.data.Dataset.from_generator(
        records, output_signature=tf.TensorSpec((), tf.string), args=(path,)
    )


def count_all(paths: Sequence[str], max_bad: float) -> tuple[list[RecordFile], tuple[str, ...]]:
    """Counts the records of files, by their lengths, without reading the records.

    Args:
        paths: of the files.
        max_bad: largest share of records that may be missing, because files are cut off. How many
            are missing is guessed by the files that are whole.

    Returns:
        The files, and the names of those that are cut off.

    Raises:
        ValueError: too many are missing.
    """
    with futures.ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(count_records, paths))
    usual = int(np.median([file.count for file in files if file.whole] or [1]))
    cut = [file for file in files if not file.whole]
    missing = sum(max(1, usual - file.count) for file in cut)
    total = missing + sum(file.count for file in files)
    _report_cut([file.path for file in cut], missing, total, max_bad)
    logging.info("%d records in %d files", total - missing, len(files))
    return files, tuple(f"{file.path} (cut off)" for file in cut)


def count_records(path: str) -> RecordFile:
    """Counts the records of a file up to where it is cut off, if it is.

    A record is its length (8 bytes, little-endian), a checksum of that (4), the data, and a
    checksum of those (4), see `tensorflow/core/lib/io/record_writer.h`.
    """
    located = paths.of(path)
    size = paths.size(located)
    count = position = 0
    opened = located.open("rb") if isinstance(located, Remote) else located.open("rb", buffering=0)
    with opened as file:
        while position < size:
            file.seek(position)
            frame = file.read(_FRAME)
            if len(frame) < _FRAME or frame[8:] != _sum(frame[:8]):
                break
            end = position + _FRAME + int.from_bytes(frame[:8], "little") + _CHECKSUM
            if end > size:
                break
            position = end
            count += 1
    return RecordFile(path, count, whole=position == size and count > 0)


def _report_cut(paths: Sequence[str], missing: int, total: int, max_bad: float) -> None:
    if not paths:
        return
    message = (
        f"{len(paths)} record files are cut off or damaged, about {missing} of {total} records are"
        f" missing: {first_few(paths)}"
    )
    if missing > max_bad * total:
        raise ValueError(
            f"{message}. Copy them again, or allow more than {max_bad:.2%} (data.max_bad)."
        )
    logging.warning("%s", message)


def parse_example(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads an example with ImageNet's keys, whose labels count from 1.

    Args:
        serialized: scalar string.

    Returns:
        (content of the picture file, labels int64 (any number,) from 0).
    """
    features = {
        "image/encoded": tf.io.FixedLenFeature((), tf.string),
        "image/class/label": tf.io.VarLenFeature(tf.int64),
    }
    example = tf.io.parse_single_example(serialized, features)
    return example["image/encoded"], example["image/class/label"].values - 1


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reversed
        table.append(byte)
    return table


_TABLE = _checksum_table()


def _sum(data: bytes) -> bytes:
    """Checksum: CRC-32C as TFRecord files have it: rotated, and a constant added."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little")
