"""Proof that exported files answer as the model does, on pictures with labels."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.export.saved_model import classifier

TOLERANCE = 1e-4  # of the spread of the model's outputs; float32 reordering stays far below

Answer = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Report:
    """How one artefact compares with the model.

    Attributes:
        name: of the artefact.
        accuracy: of its answers, as a share.
        model_accuracy: of the model's, on the same pictures.
        difference: largest absolute difference of any output from the model's, over the spread
            (largest minus smallest) of the model's outputs.
        agreement: share of pictures with the same most likely class as the model's.
        count: pictures.
    """

    name: str
    accuracy: float
    model_accuracy: float
    difference: float
    agreement: float
    count: int


class ParityError(RuntimeError):
    """An artefact does not give the model's answers."""


def compare(
    name: str,
    answer: Answer,
    expected: Answer,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    tolerance: float = TOLERANCE,
) -> Report:
    """Compares an artefact with the model it came from.

    Args:
        name: of the artefact, for messages.
        answer: the artefact: images to its outputs by name, "probabilities" among them.
        expected: the model, with every output that the artefact has.
        batches: of (images float32 (batch, height, width, 3) in [0, 255], labels int (batch,), or
            (batch, classes) of zeros and ones where pictures have several).
        tolerance: largest difference allowed, as a share of the spread.

    Returns:
        The comparison.

    Raises:
        ParityError: an output is not finite, has another shape, or differs by more than tolerance.
        ValueError: there are no pictures.
    """
    count = hits = expected_hits = agreements = 0
    worst: dict[str, float] = {}
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for images, labels in batches:
        got, want = answer(images), expected(images)
        for key, value in got.items():
            if value.shape != want[key].shape:
                raise ParityError(
                    f"{name}: {key} has shape {value.shape}, the model's {want[key].shape}."
                )
            if not np.isfinite(value).all():
                raise ParityError(f"{name}: {key} holds values that are not finite.")
            worst[key] = max(worst.get(key, 0.0), float(np.abs(value - want[key]).max()))
            low[key] = min(low.get(key, math.inf), float(want[key].min()))
            high[key] = max(high.get(key, -math.inf), float(want[key].max()))
        classes, expected_classes = (outputs["probabilities"].argmax(-1) for outputs in (got, want))
        count += len(labels)
        hits += _hits(classes, labels)
        expected_hits += _hits(expected_classes, labels)
        agreements += int((classes == expected_classes).sum())
    if not count:
        raise ValueError(f"{name}: there are no pictures to compare on.")
    # An untrained model's outputs may all be equal; then the difference counts as it is.
    shares = {key: worst[key] / ((high[key] - low[key]) or 1.0) for key in worst}
    report = Report(
        name=name,
        accuracy=hits / count,
        model_accuracy=expected_hits / count,
        difference=max(shares.values()),
        agreement=agreements / count,
        count=count,
    )
    if not report.difference <= tolerance:
        raise ParityError(
            f"{name} does not give the model's answers on {count} pictures: the outputs differ by"
            f" {report.difference:.2g} of their spread (allowed {tolerance:g}), and"
            f" {report.agreement:.2%} of the classes agree."
        )
    return report


def _hits(classes: np.ndarray, labels: np.ndarray) -> int:
    if labels.ndim == 2:
        return int(labels[np.arange(len(classes)), classes].sum())
    return int((classes == labels).sum())


def keras_answers(model: keras.Model) -> Answer:
    """The model's own answers: "probabilities" and "logits".

    Args:
        model: ends in a dense layer with softmax or sigmoid.
    """
    head = classifier(model)
    both = keras.Model(model.inputs, {"features": head.input, "probabilities": model.output})
    run = tf.function(lambda images: both(images, training=False), reduce_retracing=True)

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = run(tf.constant(images))
        logits = outputs["features"].numpy() @ head.kernel.numpy() + head.bias.numpy()
        return {"probabilities": outputs["probabilities"].numpy(), "logits": logits}

    return answer


def saved_model_answers(path: str | os.PathLike) -> Answer:
    """Loads a SavedModel of ours and answers with both of its signatures."""
    loaded = tf.saved_model.load(os.fspath(path))

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        images = tf.constant(images)
        outputs: dict[str, np.ndarray] = {}
        for signature in loaded.signatures.values():
            outputs |= {key: value.numpy() for key, value in signature(images=images).items()}
        return outputs

    return answer


def tflite_answers(path: str | os.PathLike) -> Answer:
    """Loads a TFLite file of ours and answers with its signature."""
    signature = _interpreter(os.fspath(path)).get_signature_runner("serving_default")
    return lambda images: signature(images=images)


def _interpreter(path: str):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter  # the same, with a deprecation warning
    return Interpreter(model_path=path, num_threads=os.cpu_count())
