"""Score a model on labelled pictures, each once, prepared the way its weights were evaluated."""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Callable, Sequence
from typing import Literal

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import scores as scores_lib
from efficientnet_tf.data import bad, pipeline
from efficientnet_tf.data.sources import SPLITS, Source
from efficientnet_tf.labels import Label, labels_for
from efficientnet_tf.models.inference import compiled
from efficientnet_tf.preprocessing import Preprocessing
from efficientnet_tf.scores import Evaluation, Mistake

ALL = "all"  # the split that `together` makes
Output = Literal["softmax", "sigmoid", "linear"]

_THUMBNAIL = 160  # pixels, longer side
_MOST_SCORES = 100_000_000  # kept for average precision: 400 MB
_MOST_NAMED = 10


def evaluate(
    model: keras.Model,
    source: Source,
    split: str,
    rule: Preprocessing,
    batch_size: int,
    *,
    labels: Sequence[tuple[str, str]] | None = None,
    worst: int = 0,
    max_bad: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores a model on every picture of a split.

    Args:
        model: one input, pictures in [0, 255]; one output, (batch, classes), from a softmax, a
            sigmoid or a linear last layer (logits).
        source: gives the pictures. Its classes are found among the model's (see `class_map`), which
            may be more.
        split: "train", "validation" or "test".
        rule: says how pictures are prepared, and the order of published classes.
        batch_size: pictures at a time.
        labels: (wnid, name) of the model's classes. None: what `rule` says, or for other weights
            the classes of the source, in its order.
        worst: how many mistakes are kept as pictures.
        max_bad: largest share of unreadable pictures; they are left out and named.
        progress: called after every batch with the number of pictures done and of all.

    Returns:
        The scores, in the order of the model's classes.

    Raises:
        ValueError: the model, its labels and the source do not fit together; there are no pictures,
            or too many unreadable ones; or scores are not numbers.
    """
    classes = model.output_shape[-1]
    if labels is None and rule.labels is None:
        _check_count(classes, source.num_classes)
        labels = [Label("", name) for name in source.class_names]
    labels = labels_for(rule.labels, classes) if labels is None else labels
    if len(labels) != classes:
        raise ValueError(
            f"labels must name the model's {classes:,} classes. Received: {len(labels):,} labels"
        )
    mapping = class_map(source.class_names, labels)
    names = _unique_names(labels)
    output = output_of(model)
    collected = _Collected(
        names=names,
        independent=source.multi_label or output == "sigmoid",
        multi_label=source.multi_label,
        keep_scores=classes * source.num_examples[split] <= _MOST_SCORES,
        worst=worst,
    )
    predict = compiled(model)
    found = bad.BadRecords(max_bad)
    batches = pipeline.evaluation(source, split, rule, batch_size, found=found)
    position = 0
    for images, targets, weights in bad.readable(batches):
        images, targets, weights = images.numpy(), targets.numpy(), weights.numpy()
        real = weights > 0
        probabilities = _probabilities(predict(images)[real], output, collected.independent)
        positions = position + np.flatnonzero(real)
        targets = _in_model_order(targets[real], mapping, classes)
        collected.add(probabilities, targets, positions, images[real])
        position += len(weights)
        if progress:
            progress(min(position, source.num_examples[split]), source.num_examples[split])
    return collected.result(source, split, (*source.bad, *found.names))


def output_of(model: keras.Model) -> Output:
    """What a model's scores are: "softmax" or "sigmoid" (probabilities), or "linear" (logits).

    Raises:
        ValueError: its last layer is none of these.
    """
    layer = model.layers[-1]
    if isinstance(layer, keras.Model):
        return output_of(layer)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    known: dict[object, Output] = {
        keras.activations.softmax: "softmax",
        keras.activations.sigmoid: "sigmoid",
        keras.activations.linear: "linear",
    }
    if activation not in known:
        raise ValueError(
            f"The last layer of {model.name!r} must end in softmax, sigmoid or linear (logits)."
            f" Received: {type(layer).__name__} {layer.name!r}"
        )
    return known[activation]


def class_map(class_names: Sequence[str], labels: Sequence[tuple[str, str]]) -> np.ndarray:
    """Finds the classes of a data set among those of a model.

    By WordNet id where the data set's names are such ("n01440764"), otherwise by name, whatever the
    order; the same names in the same order need not be unique (ImageNet has two cranes). A model
    with more classes than the data set, such as the background, is right. Where one side's classes
    have no names, the order counts, with a warning.

    >>> class_map(["dog", "cat"], [("", "background"), ("", "cat"), ("", "dog")]).tolist()
    [2, 1]

    Args:
        class_names: of the data set, in the order of its labels.
        labels: (wnid, name) of the model's classes.

    Returns:
        int64 (len(class_names),), the model's index of each class.

    Raises:
        ValueError: the model lacks classes; both sides' differences are named.
    """
    wnids = [wnid for wnid, _ in labels]
    names = [name for _, name in labels]
    for known in (names, wnids):
        for shift in (0, 1):  # the second for a background class
            if list(class_names) == known[shift:]:
                return np.arange(len(class_names)) + shift
    numbered = [f"class {index}" for index in range(len(names))]  # of a model without label file
    counted = [str(index) for index in range(len(class_names))]  # of arrays, and ImageNet-21k's
    if names == numbered or (list(class_names) == counted and len(counted) == len(names)):
        _check_count(len(names), len(class_names))
        logging.warning(
            "The classes of the %s have no names: they are taken in the same order.",
            "model" if names == numbered else "data set",
        )
        return np.arange(len(names))
    for known in (wnids, names):
        times = collections.Counter(known)
        indices = {name: index for index, name in enumerate(known) if times[name] == 1}
        if all(name in indices for name in class_names):
            return np.array([indices[name] for name in class_names])
    wanted, present = set(class_names), {*names, *wnids} - {""}
    times = collections.Counter(names)
    ambiguous = sorted(name for name in wanted if times[name] > 1)
    raise ValueError(
        "The data set's classes are not the model's."
        f" Only in the data set: {_first(sorted(wanted - present))}."
        f" Only in the model: {_first([name for name in names if name not in wanted])}."
        + (f" More than once in the model: {_first(ambiguous)}." if ambiguous else "")
        + " Rename class folders, or give a label file in the order of the model's outputs."
    )


def together(source: Source) -> Source:
    """Adds the split "all", which has the pictures of all three splits, each split in turn.

    For a folder of pictures that are all there to be evaluated on.
    """

    def records(split: str, seed: int | None, start: int = 0) -> tf.data.Dataset:
        if split != ALL:
            return source.records(split, seed, start)
        if seed is not None:
            raise ValueError("The pictures of all splits together are not there to be trained on.")
        first, *others = (source.records(part, None) for part in SPLITS)
        for other in others:
            first = first.concatenate(other)
        return first.skip(start)

    counts = {**source.num_examples, ALL: sum(source.num_examples[split] for split in SPLITS)}
    return dataclasses.replace(source, records=records, num_examples=counts)


class _Collected:
    """What is kept of the pictures seen so far."""

    def __init__(self, *, names, independent: bool, multi_label: bool, keep_scores: bool, worst):
        self._names, self.independent = names, independent
        self._multi_label, self._keep_scores = multi_label, keep_scores
        self._worst = worst
        self._batches: list[tuple[np.ndarray, ...]] = []
        self._scores: list[np.ndarray] = []
        self._mistakes: list[tuple] = []  # a heap: the smallest loss first

    def add(self, probabilities, targets, positions, images) -> None:
        """Adds a batch without filling; `positions` are those of its pictures in the split."""
        predicted = probabilities.argmax(1)
        places = scores_lib.ranks(probabilities, targets)
        losses = scores_lib.losses(probabilities, targets, self.independent)
        self._batches.append((targets, predicted, places, losses))
        if self._multi_label and self._keep_scores:
            self._scores.append(probabilities)
        for row in np.flatnonzero(places > 0) if self._worst else ():
            if len(self._mistakes) == self._worst and losses[row] <= self._mistakes[0][0]:
                continue
            own = np.flatnonzero(targets[row]) if targets.ndim == 2 else targets[row : row + 1]
            found = Mistake(
                name="",
                labels=tuple(self._names[index] for index in own),
                predicted=self._names[predicted[row]],
                probability=float(probabilities[row, predicted[row]]),
                label_probability=float(probabilities[row, own].max(initial=0)),
                loss=float(losses[row]),
                jpeg=_thumbnail(images[row]),
            )
            # The position, which is unique, keeps the mistakes themselves from being compared.
            heapq.heappush(self._mistakes, (found.loss, -int(positions[row]), found))
            if len(self._mistakes) > self._worst:
                heapq.heappop(self._mistakes)

    def result(self, source: Source, split: str, unreadable: tuple[str, ...]) -> Evaluation:
        columns = [np.concatenate(parts) for parts in zip(*self._batches, strict=True)]
        if not columns or not len(columns[0]):
            raise ValueError(f"{source.name} has no readable pictures in its {split} split.")
        targets, predicted, places, losses = columns
        classes = len(self._names)
        worst = sorted(self._mistakes, key=lambda entry: entry[:2], reverse=True)
        described = _describe(source, split, {-position for _, position, _ in worst})
        precision = confusion = mean = None
        if self._multi_label:
            counts = (targets > 0).sum(0)
            precision = np.full(classes, np.nan)
            if self._keep_scores:
                precision = scores_lib.average_precision(np.concatenate(self._scores), targets > 0)
                mean = float(np.nanmean(precision)) if counts.any() else None
        else:
            counts = np.bincount(targets, minlength=classes)
            precision = scores_lib.class_shares(targets, predicted, classes)
            if classes <= scores_lib.MOST_CONFUSION:
                confusion = scores_lib.confusion_matrix(targets, predicted, classes)
        return Evaluation(
            class_names=self._names,
            multi_label=self._multi_label,
            count=len(places),
            loss=float(losses.mean()),
            top1=float((places == 0).mean()),
            top5=float((places < 5).mean()) if classes > 5 else None,
            class_counts=counts,
            class_scores=precision,
            mean_average_precision=mean,
            confusion=confusion,
            mistakes=tuple(
                dataclasses.replace(found, name=described[-position])
                for _, position, found in worst
            ),
            unreadable=unreadable,
        )


def _describe(source: Source, split: str, positions: set[int]) -> dict[int, str]:
    """Names of the pictures at some positions of a split."""
    names: dict[int, str] = {}
    if not positions:
        return names
    for index, record in enumerate(source.records(split, None).take(max(positions) + 1)):
        if index in positions:
            name = source.describe(*record)
            name = name.numpy() if isinstance(name, tf.Tensor) else name
            names[index] = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return names


def _in_model_order(targets: np.ndarray, mapping: np.ndarray, classes: int) -> np.ndarray:
    if targets.ndim == 1:
        return mapping[targets]
    hot = np.zeros((len(targets), classes), targets.dtype)
    hot[:, mapping] = targets
    return hot


def _probabilities(scores: np.ndarray, output: Output, independent: bool) -> np.ndarray:
    if output != "linear":
        return scores
    if independent:
        return (1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -80, 80)))).astype(np.float32)
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _thumbnail(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    factor = _THUMBNAIL / max(height, width)
    if factor < 1:
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        image = tf.image.resize(image, size, "area").numpy()
    pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)  # legacy bicubic goes beyond
    return tf.io.encode_jpeg(pixels, quality=85).numpy()


def _unique_names(labels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Names, with the wnid where several classes have the same."""
    times = collections.Counter(name for _, name in labels)
    return tuple(f"{name} ({wnid})" if wnid and times[name] > 1 else name for wnid, name in labels)


def _check_count(model: int, data: int) -> None:
    if model != data:
        raise ValueError(
            f"The model has {model:,} classes without names and the data set {data:,}: they cannot"
            " be matched. Put labels.txt beside the model, or give a label file."
        )


def _first(names: Sequence[str]) -> str:
    rest = len(names) - _MOST_NAMED
    shown = ", ".join(map(repr, names[:_MOST_NAMED])) or "none"
    return shown + (f" and {rest} more" if rest > 0 else "")
