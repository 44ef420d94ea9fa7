"""Pictures to check exported files on, and to calibrate them with.

They are read as files are, and prepared by the rule of the weights, so that a check begins where a
user begins. Labels are used where they are known and are the model's; they need not be there.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths
from efficientnet_tf.config import DataConfig
from efficientnet_tf.data import bad, images
from efficientnet_tf.data.arrays import open_digits
from efficientnet_tf.data.folder import EXTENSIONS, visible_folders
from efficientnet_tf.data.records import Source, first_few
from efficientnet_tf.data.sources import open_source
from efficientnet_tf.evaluate import class_map
from efficientnet_tf.paths import AnyPath
from efficientnet_tf.preprocessing import Preprocessing

BATCH = 8
_BATCH_SIZE = 320  # pixels, both sides, of the largest pictures that come in whole batches
MAX_BAD = 0.01
_SAMPLES = ("china.jpg", "flower.jpg")
_SAMPLE_DIGITS = 32


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture as it was found.

    Attributes:
        name: for people.
        image: uint8 (height, width, 3).
        label: the model's index of its class; float32 (classes,) of zeros and ones where pictures
            have several; None where it is not known.
    """

    name: str
    image: np.ndarray
    label: int | np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures that are prepared for a model.

    Attributes:
        names: of the pictures.
        images: float32 (batch, size, size, 3) in [0, 255].
        labels: int64 (batch,) or float32 (batch, classes); None where they are not known.
    """

    names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A set of pictures, that can be gone through any number of times.

    Attributes:
        name: what they are, for people.
        read: makes an iterator of them, the same ones in the same order each time.
        source: where they come from; None where that has no labels.
    """

    name: str
    read: Callable[[], Iterator[Picture]]
    source: Source | None = None

    def batches(self, rule: Preprocessing, batch_size: int | None = None) -> Iterator[Batch]:
        """Prepares the pictures.

        Args:
            rule: how they are cropped and resized.
            batch_size: pictures at a time; the last batch may have fewer. None is 8, or as many
                large ones as need the memory of 8 with 320 px.

        Raises:
            ValueError: too many cannot be read; the message names them.
        """
        if batch_size is None:
            batch_size = max(1, min(BATCH, BATCH * _BATCH_SIZE**2 // rule.size**2))
        rest = self.read()
        while some := list(itertools.islice(rest, batch_size)):
            pixels = [images.resize_and_crop(one.image, rule).numpy() for one in some]
            labels = None if some[0].label is None else np.stack([one.label for one in some])
            yield Batch(tuple(one.name for one in some), np.stack(pixels), labels)

    def count(self, fewest: int = 1) -> int:
        """Reads every picture once.

        Args:
            fewest: how many there must be.

        Returns:
            How many can be read.

        Raises:
            ValueError: they are too few, or too many cannot be read; the message names these.
        """
        found = sum(1 for _ in self.read())
        if found < fewest:
            raise ValueError(f"{self.name}: {found} pictures are too few, give at least {fewest}.")
        return found


def samples() -> Pictures:
    """64 pictures that come with scikit-learn: 32 parts of two photographs, and 32 digits.

    They have no labels. They show that a file answers as its model does; how good a quantised one
    is shows on pictures of the kind that the model was made for.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        folder = importlib.resources.files("sklearn.datasets") / "images"
        photos = {name: images.decode((folder / name).read_bytes()).numpy() for name in _SAMPLES}
        digits = from_source(open_digits(DataConfig()), "test", None, _SAMPLE_DIGITS)
    except ImportError:
        raise ImportError(
            "The sample pictures come with scikit-learn, which is not installed: pip install"
            " scikit-learn, or name other pictures (--verify=folder:PATH)"
        ) from None

    def read() -> Iterator[Picture]:
        for name, photo in photos.items():
            for box, part in _parts(photo):
                yield Picture(f"{name} {box}", part)
        for digit in digits.read():
            yield dataclasses.replace(digit, label=None)

    return Pictures("scikit-learn's sample pictures and digits", read)


def _parts(photo: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """16 parts of a photograph: whole, mirrored, five of 3/4 and nine of half its sides."""
    height, width = photo.shape[:2]
    yield "whole", photo
    yield "mirrored", photo[:, ::-1]
    for share, places in ((0.75, (0, 1)), (0.5, (0, 0.5, 1))):
        boxes = [(y, x) for y in places for x in places] + ([(0.5, 0.5)] if share > 0.5 else [])
        for y, x in boxes:
            tall, wide = int(height * share), int(width * share)
            top, left = int(y * (height - tall)), int(x * (width - wide))
            box = f"[{top}:{top + tall}, {left}:{left + wide}]"
            yield box, photo[top : top + tall, left : left + wide]


def named(
    config: DataConfig,
    split: str,
    labels: Sequence[tuple[str, str]] | None,
    count: int,
) -> Pictures:
    """Opens the pictures that a configuration names.

    Args:
        config: its `source` is "digits", "folder:PATH", "tfds:NAME", "tfrecord:PATH" or another of
            `data.sources`; PATH of a folder may hold class folders, or pictures themselves, without
            labels. Its splits and `max_bad` hold too.
        split: "train" or "test"; of pictures without labels all are taken.
        labels: (wnid, name) of the model's classes. Where the pictures have others, theirs are not
            used, with a warning. None where labels do not matter.
        count: how many to take, from all over the split.

    Raises:
        ValueError: there are no such pictures.
        ImportError: an optional package is missing.
    """
    kind, _, rest = config.source.partition(":")
    root = paths.of(rest) if kind == "folder" else None
    if root is not None and root.is_dir():
        files = sorted(p for p in root.iterdir() if p.suffix.lower() in EXTENSIONS)
        if files and not visible_folders(root):
            return _flat(config.source, files, count, config.max_bad)
    # Unreadable pictures are left out below, and most of the split may not be needed.
    config = dataclasses.replace(config, check_pictures=False)
    found = from_source(open_source(config), split, labels, count, max_bad=config.max_bad)
    if kind != "folder":
        return found

    def read() -> Iterator[Picture]:
        for picture in found.read():
            yield dataclasses.replace(picture, name=os.path.relpath(picture.name, str(root)))

    return dataclasses.replace(found, read=read)


def from_source(
    source: Source,
    split: str,
    labels: Sequence[tuple[str, str]] | None,
    count: int | None = None,
    *,
    max_bad: float = MAX_BAD,
) -> Pictures:
    """Pictures of a source, from all over one of its splits.

    Args:
        source: see `data.sources`.
        split: "train", "validation" or "test".
        labels: (wnid, name) of the model's classes; None for those of the source.
        count: how many to take; None for all.
        max_bad: largest share of unreadable ones, which are left out and named.
    """
    total = source.num_examples[split]
    count = total if count is None else min(count, total)
    mapping = np.arange(source.num_classes)
    if labels is not None:
        try:
            mapping = class_map(source.class_names, labels)
        except ValueError as error:
            message = "%s: its labels are not used, and accuracy is not counted: %s"
            logging.warning(message, source.name, error)
            mapping = None
    guarded = bad.guard(source, lambda _, *record: source.decode(*record))

    def example(position, record):
        name = tf.convert_to_tensor(source.describe(*record))
        if source.encoded is None:  # not a file, whose name says which one it is
            name = tf.strings.format("{} ({} {})", (name, split, position))
        return (*guarded(0, *record), name)

    def read() -> Iterator[Picture]:
        # One of every total / count.
        records = source.records(split, None).enumerate()
        records = records.filter(lambda i, _: (i + 1) * count // total != i * count // total)
        unreadable: list[str] = []
        for image, label, problem, name in records.map(example, tf.data.AUTOTUNE):
            if problem.numpy():
                unreadable.append(_text(problem))
                continue
            yield Picture(_text(name), image.numpy(), _label(label.numpy(), mapping, labels))
        _check(source.name, unreadable, count, max_bad)

    return Pictures(f"{count} pictures of {source.name}, {split}", read, source)


def _label(label: np.ndarray, mapping: np.ndarray | None, labels) -> int | np.ndarray | None:
    if mapping is None:
        return None
    if label.ndim == 0:
        return int(mapping[label])
    several = np.zeros(len(labels) if labels is not None else len(label), np.float32)
    several[mapping] = label
    return several


def _flat(text: str, files: Sequence[AnyPath], count: int, max_bad: float) -> Pictures:
    total, count = len(files), min(count, len(files))
    chosen = [files[i] for i in range(total) if (i + 1) * count // total != i * count // total]

    def read() -> Iterator[Picture]:
        unreadable: list[str] = []
        for path in chosen:
            try:
                image = images.read_image(path)
            except (ValueError, OSError):
                unreadable.append(str(path))
                continue
            yield Picture(path.name, image)
        _check(text, unreadable, count, max_bad)

    return Pictures(f"{count} pictures of {text}", read)


def _check(name: str, unreadable: Sequence[str], total: int, max_bad: float) -> None:
    if len(unreadable) > max_bad * total:
        raise ValueError(
            f"{name}: {len(unreadable)} of {total} pictures cannot be read: "
            f"{first_few(unreadable)}. Repair or remove them, or allow more than {max_bad:.2%}"
            " (--max_bad)."
        )
    if unreadable:
        logging.warning("%s: unreadable, and left out: %s", name, first_few(unreadable))


def _text(value: tf.Tensor) -> str:
    return value.numpy().decode("utf-8", "backslashreplace")
