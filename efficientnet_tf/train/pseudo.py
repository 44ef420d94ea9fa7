"""Pseudo-labels: a teacher's probabilities for every unlabelled picture, computed once and stored.

The folder holds `about.json` (whose labels of what these are), `held-out.npz` (hashes of the
validation and test pictures, so that none of them is trained on) and parts of 1,024 pictures each.
A part is there whole or not at all: after a stop the next one is computed, from the same batches
and so to the same bytes. Noisy Student: Q. Xie et al., 2019, arXiv:1911.04252.
"""

import dataclasses
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import writing
from efficientnet_tf.arch import complexity
from efficientnet_tf.config import Config
from efficientnet_tf.config.model import describe
from efficientnet_tf.data import bad, pipeline
from efficientnet_tf.data import unlabeled as unlabeled_lib
from efficientnet_tf.data.bad import BadRecords
from efficientnet_tf.data.fingerprint import fingerprint
from efficientnet_tf.data.records import Source, first_few
from efficientnet_tf.models.inference import compiled
from efficientnet_tf.paths import AnyPath
from efficientnet_tf.train import teacher as teacher_lib
from efficientnet_tf.train.teacher import Teacher

FOLDER = "pseudo-labels"
ABOUT = "about.json"
HELD_OUT = "held-out.npz"
PART = 1024  # pictures; a multiple of the batch
_BATCH = 32
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """What a teacher says about every unlabelled picture.

    Attributes:
        probabilities: float32 (pictures, classes), in the order of the labelled pictures' classes;
            zeros where a picture cannot be read.
        usable: bool (pictures,): readable, and not a picture of the validation or test split.
        identity: what they were made of, as about.json has it.
    """

    probabilities: np.ndarray
    usable: np.ndarray
    identity: dict[str, Any]


def with_unlabeled(
    config: Config,
    source: Source,
    folder: AnyPath,
    *,
    overwrite: bool = False,
) -> tuple[Source, str | None]:
    """Adds the unlabelled pictures that a configuration names to what is trained on.

    Args:
        config: `student` is used, and of the other sections what it needs.
        source: the labelled pictures.
        folder: for the pseudo-labels. What is there already is used where it fits.
        overwrite: whether pseudo-labels that do not fit may be removed.

    Returns:
        (what is trained on, hash of what it was made of); (source, None) without a teacher.

    Raises:
        ValueError: teacher, pictures and settings do not fit together, or the folder holds other
            pseudo-labels.
        FileNotFoundError: there is no such teacher.
    """
    student = config.student
    if student.teacher is None or student.unlabeled is None:
        return source, None
    teacher = teacher_lib.load(student.teacher, source)
    _advise(config, teacher, source)
    unlabelled = unlabeled_lib.open_unlabeled(
        dataclasses.replace(
            config.data,
            source=student.unlabeled,
            train_split=None,
            validation_split=None,
            test_split=None,
            data_dir=config.data.data_dir if student.unlabeled.startswith("tfds:") else None,
        )
    )
    found = label(folder, teacher, unlabelled, source, config.data.max_bad, overwrite=overwrite)
    rows = unlabeled_lib.select(
        found.probabilities,
        found.usable,
        source.class_names,
        threshold=student.threshold,
        per_class=student.per_class,
        seed=config.train.seed,
    )
    targets, smoothing = found.probabilities, config.train.label_smoothing
    if student.labels == "hard":
        classes = source.num_classes
        targets = np.eye(classes, dtype=np.float32)[targets.argmax(1)]
        targets = targets * np.float32(1 - smoothing) + np.float32(smoothing / classes)
    logging.info(
        "%d labelled pictures, and for each of them %d of %d unlabelled ones (%d different).",
        source.num_examples["train"],
        student.ratio,
        len(rows),
        len(np.unique(rows)),
    )
    joined = unlabeled_lib.join(
        source, unlabelled, rows, targets, ratio=student.ratio, label_smoothing=smoothing
    )
    identity = hashlib.sha256(json.dumps(found.identity, sort_keys=True).encode())
    identity.update(rows.astype("<i8").tobytes())
    return joined, identity.hexdigest()[:16]


def _advise(config: Config, teacher: Teacher, source: Source) -> None:
    """Warns of a student that the method is not meant for (Sec. 2)."""
    variant, data = describe(config.model), config.data
    cost = complexity.count(variant, config.model.image_size, classes=source.num_classes).total
    size, teachers = cost.trainable + cost.statistics, teacher.model.count_params()
    if size < teachers:
        logging.warning(
            "The student has %d parameters and its teacher %d: Noisy Student expects as many or"
            " more.",
            size,
            teachers,
        )
    changed = data.augment != "none" or data.cutout or data.random_erasing or data.mixup
    if not (changed or data.cutmix or variant.dropout_rate or variant.drop_connect_rate):
        logging.warning(
            "The student is not noised, and can only learn to repeat its teacher: see data.augment,"
            " model.dropout_rate and model.drop_connect_rate."
        )


def label(
    folder: AnyPath,
    teacher: Teacher,
    unlabelled: Source,
    labelled: Source,
    max_bad: float = 0.01,
    *,
    overwrite: bool = False,
) -> PseudoLabels:
    """Has a teacher label pictures, or goes on with it, or reads what it said.

    The teacher sees each picture once, as its rule prepares it, without augmentation.

    Args:
        folder: to keep the pseudo-labels in; made where it is missing.
        teacher: of the classes of `labelled`.
        unlabelled: the training split is labelled.
        labelled: whose validation and test pictures are not to be trained on.
        max_bad: largest share of unlabelled pictures that may be unreadable.
        overwrite: whether pseudo-labels that do not fit may be removed.

    Raises:
        ValueError: the folder holds pseudo-labels of another teacher, of other pictures or classes;
            or too many pictures cannot be read.
    """
    identity = _identity(teacher, unlabelled, labelled)
    folder.mkdir(parents=True, exist_ok=True)
    with writing.lock(folder, wait=True):  # of several workers one labels, the others read it
        _claim(folder, identity, overwrite)
        return _complete(folder, identity, teacher, unlabelled, labelled, max_bad)


def _complete(
    folder: AnyPath,
    identity: dict[str, Any],
    teacher: Teacher,
    unlabelled: Source,
    labelled: Source,
    max_bad: float,
) -> PseudoLabels:
    """Reads the files that are whole, and makes the others."""
    writing.sweep(folder)
    held_out = _read(folder / HELD_OUT)
    if held_out is None:
        held_out = {"hashes": _held_out(teacher, labelled, max_bad)}
        _write(folder / HELD_OUT, held_out)
    count = unlabelled.num_examples["train"]
    starts = range(0, count, PART)
    parts = {start: _read(_part(folder, start)) for start in starts}
    missing = next((start for start in starts if parts[start] is None), None)
    if missing is not None:
        logging.info(
            "%s labels %d pictures of %s%s.",
            teacher.name,
            count,
            unlabelled.name,
            f"; {missing} are done" if missing else "",
        )
        stored = (parts[start]["readable"] for start in range(0, missing, PART))
        unreadable = sum(int((~readable).sum()) for readable in stored)
        found = BadRecords(max_bad, before=(unreadable, missing))
        for start, part in _labelled(teacher, unlabelled, missing, found):
            _write(_part(folder, start), part)
            parts[start] = part
    columns = [
        np.concatenate([part[name] for part in parts.values()])  # type: ignore[index]
        for name in ("probabilities", "readable", "hashes")
    ]
    probabilities, readable, hashes = columns
    seen = np.isin(hashes, held_out["hashes"]) & readable
    if seen.any():
        logging.warning(
            "%d of %d unlabelled pictures are in the validation or test split: they are left out.",
            seen.sum(),
            count,
        )
    return PseudoLabels(probabilities, readable & ~seen, identity)


def _labelled(
    teacher: Teacher, source: Source, first: int, found: BadRecords
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """The parts from a row on, each with the row that it begins with."""
    count, begun = source.num_examples["train"] - first, time.perf_counter()
    rest = dataclasses.replace(
        source,
        num_examples={"train": count},
        records=lambda split, seed: source.records(split, seed, first),
    )
    batches: list[tuple[np.ndarray, ...]] = []
    done = 0
    prepared = pipeline.evaluation(rest, "train", teacher.rule, _BATCH, found=found)
    for images, _, weights in bad.readable(prepared, "Unlabelled pictures: "):
        size = min(_BATCH, count - done)
        readable = weights.numpy()[:size] > 0
        probabilities = _probabilities(teacher, images.numpy())[:size]
        probabilities[~readable] = 0
        batches.append((probabilities, readable, _hashes(images.numpy()[:size])))
        done += size
        if done % PART == 0 or done == count:
            columns = map(np.concatenate, zip(*batches, strict=True))
            part = dict(zip(("probabilities", "readable", "hashes"), columns, strict=True))
            batches = []
            yield first + (done - 1) // PART * PART, part
            rate = done / (time.perf_counter() - begun)
            logging.info("Labelled: %d of %d, %.0f pictures/s", first + done, first + count, rate)
    if found.names:
        logging.warning("Unlabelled pictures that are left out: %s", first_few(found.names))


def _probabilities(teacher: Teacher, images: np.ndarray) -> np.ndarray:
    """float32 (batch, classes), in the order of the labelled pictures' classes."""
    logits = teacher.logits(compiled(teacher.model)(images))
    return tf.nn.softmax(logits).numpy()


def _held_out(teacher: Teacher, source: Source, max_bad: float) -> np.ndarray:
    """Hashes of the validation and test pictures."""
    hashes = []
    for split in ("validation", "test"):
        found = BadRecords(max_bad)
        batches = pipeline.pictures(source, split, teacher.rule, _BATCH, found=found)
        for images, _ in bad.readable(batches, f"The {split} split: "):
            hashes.append(_hashes(images))
    return np.unique(np.concatenate(hashes))


def _hashes(images: np.ndarray) -> np.ndarray:
    """uint64 (batch,), of pictures as they are prepared for the teacher."""
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), "<u8")


def _identity(teacher: Teacher, unlabelled: Source, labelled: Source) -> dict[str, Any]:
    """What pseudo-labels depend on."""
    known = fingerprint(labelled)
    return {
        "version": _VERSION,
        "teacher": teacher.sha256,
        "columns": teacher.columns.tolist(),
        "preprocessing": teacher.rule.to_dict(),
        "classes": list(labelled.class_names),
        "unlabeled": fingerprint(unlabelled)["train"],
        "validation": known["validation"],
        "test": known["test"],
    }


def _claim(folder: AnyPath, identity: dict[str, Any], overwrite: bool) -> None:
    """Makes sure that what is in the folder is of this teacher and these pictures."""
    about = folder / ABOUT
    if about.exists():
        try:
            stored = json.loads(about.read_text(encoding="utf-8"))
        except ValueError:
            stored = {}
        if stored == identity:
            return
        if not overwrite:
            differing = [name for name in identity if stored.get(name) != identity[name]]
            raise ValueError(
                f"{folder} holds pseudo-labels of another kind: {', '.join(differing)}"
                f" {'differs' if len(differing) == 1 else 'differ'}. Bring back what they were"
                " made of, choose another workdir, or ask to overwrite it (--overwrite)."
            )
    for path in (folder / HELD_OUT, *folder.glob("[0-9]*.npz")):  # of those, or of none
        path.unlink(missing_ok=True)
    with writing.whole(about) as temporary:
        temporary.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _part(folder: AnyPath, start: int) -> AnyPath:
    return folder / f"{start:09d}.npz"


def _write(path: AnyPath, arrays: dict[str, np.ndarray]) -> None:
    with writing.whole(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]


def _read(path: AnyPath) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged, and made anew: %s", path, error)
        return None
