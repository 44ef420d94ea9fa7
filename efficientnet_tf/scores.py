"""How good a classifier's answers are, in NumPy: the numbers of an evaluation."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

MOST_CONFUSION = 2000  # classes, above which there is no confusion matrix (32 MB there)


class Confusion(NamedTuple):
    """How many pictures of one class were taken for another one."""

    label: int
    predicted: int
    pictures: int


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A picture that was taken for something else.

    Attributes:
        name: of the picture, such as its path; "" where it has none.
        labels: names of its classes.
        predicted: name of the class that it was taken for.
        probability: of that class.
        label_probability: of the likeliest of its own classes; 0 where it has none.
        loss: of this picture, nats.
        jpeg: a small version of what the model saw.
    """

    name: str
    labels: tuple[str, ...]
    predicted: str
    probability: float
    label_probability: float
    loss: float
    jpeg: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model reaches on the pictures of a split, each counted once.

    Attributes:
        class_names: of the model, in the order of its outputs.
        multi_label: whether a picture can have several classes, or none.
        count: pictures.
        loss: mean over the pictures, nats: the cross-entropy, or the sum over all classes of binary
            cross-entropies where a picture can have several classes or the model ends in a sigmoid.
        top1: share of pictures whose likeliest class is (one of) theirs.
        top5: share of pictures with a class of theirs among the five likeliest; None for a model
            of five classes or fewer.
        class_counts: int64 (classes,), pictures of every class.
        class_scores: float64 (classes,), nan for a class without pictures: the share of its
            pictures whose likeliest class it is; with several labels, its average precision.
        mean_average_precision: over the classes that have pictures; None without several labels.
        confusion: int64 (classes, classes), pictures of the row's class that were taken for the
            column's; None with several labels, or above `MOST_CONFUSION` classes.
        mistakes: the pictures with the largest loss that were taken for something else, that one
            first.
        unreadable: names of pictures that were left out, here and (in any split) by the source's
            check.
    """

    class_names: tuple[str, ...]
    multi_label: bool
    count: int
    loss: float
    top1: float
    top5: float | None
    class_counts: np.ndarray
    class_scores: np.ndarray
    mean_average_precision: float | None = None
    confusion: np.ndarray | None = None
    mistakes: tuple[Mistake, ...] = ()
    unreadable: tuple[str, ...] = ()


def ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Places that pictures' own classes reach, 0 for the likeliest class.

    Args:
        scores: (batch, classes), higher is likelier.
        targets: int (batch,), or multi-hot (batch, classes), of which the likeliest counts.

    Returns:
        int64 (batch,): how many classes are likelier; equal ones in index order, as
        `labels.top_classes` puts them. The number of classes where a picture has none.

    Raises:
        ValueError: scores that are not numbers.
    """
    if np.isnan(scores).any():
        raise ValueError("The scores contain NaN: the model has broken weights or inputs.")
    classes = scores.shape[1]
    best = targets
    if targets.ndim == 2:
        best = np.where(targets > 0, scores, -np.inf).argmax(1)
    own = scores[np.arange(len(scores)), best][:, np.newaxis]
    before = (scores == own) & (np.arange(classes) < best[:, np.newaxis])
    places = np.sum((scores > own) | before, axis=1)
    if targets.ndim == 2:
        places = np.where((targets > 0).any(1), places, classes)
    return places


def losses(probabilities: np.ndarray, targets: np.ndarray, independent: bool) -> np.ndarray:
    """Loss of every picture, nats.

    Args:
        probabilities: (batch, classes).
        targets: int (batch,), or multi-hot (batch, classes).
        independent: whether classes are judged each on its own: binary cross-entropies, summed
            over classes. Otherwise the cross-entropy, for which `targets` must be int.

    Returns:
        float64 (batch,). Probabilities of 0 count as the smallest float32, so that none is inf.
    """
    smallest = np.finfo(np.float32).smallest_normal
    probabilities = probabilities.astype(np.float64)
    if not independent:
        own = probabilities[np.arange(len(targets)), targets]
        return -np.log(np.maximum(own, smallest))
    hot = targets > 0 if targets.ndim == 2 else one_hot(targets, probabilities.shape[1])
    right = np.where(hot, probabilities, 1 - probabilities)
    # A float32 sigmoid rounds to 1 from logits of 17 on: no smaller distance to 1 can be seen.
    floor = np.where(hot, smallest, np.finfo(np.float32).epsneg)
    return -np.log(np.maximum(right, floor)).sum(1)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns bool (batch, classes) of int (batch,)."""
    return labels[:, np.newaxis] == np.arange(classes)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 (classes, classes): pictures of the row's class taken for the column's."""
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def confusions(matrix: np.ndarray, most: int) -> tuple[Confusion, ...]:
    """The most frequent confusions of one class with another, by falling count.

    Args:
        matrix: of `confusion_matrix`.
        most: how many; fewer where there are fewer.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    rows, columns = np.nonzero(wrong)
    counts = wrong[rows, columns]
    order = np.argsort(-counts, kind="stable")[:most]
    return tuple(Confusion(int(rows[i]), int(columns[i]), int(counts[i])) for i in order)


def average_precision(scores: np.ndarray, hot: np.ndarray) -> np.ndarray:
    """Area under each class's precision-recall steps, without interpolation.

    The sum over thresholds of (rise of recall) * precision; pictures with equal scores share a
    threshold.

    Args:
        scores: (pictures, classes), higher is likelier.
        hot: bool (pictures, classes), the pictures' classes.

    Returns:
        float64 (classes,); nan for a class that no picture has.
    """
    result = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(hot.any(0)):
        order = np.argsort(-scores[:, index], kind="stable")
        ordered, hits = scores[order, index], hot[order, index].cumsum()
        last = np.append(ordered[1:] != ordered[:-1], True)  # of those with the same score
        precision = (hits / np.arange(1, len(hits) + 1))[last]
        rise = np.diff(hits[last], prepend=0) / hits[-1]
        result[index] = np.sum(rise * precision)
    return result


def class_shares(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Share of every class's pictures that are right: float64 (classes,), nan without pictures."""
    counts = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    shares = np.full(classes, np.nan)
    np.divide(hits, counts, out=shares, where=counts > 0)
    return shares
