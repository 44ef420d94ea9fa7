"""Checks of everything a served SavedModel does beyond answering prepared pictures.

What its graph does with picture files is compared with what Python does with them: files as PNG,
which loses nothing, pixels of any size, serialized examples, features and class activation maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from efficientnet_tf.data import images as images_lib
from efficientnet_tf.export.graph import FEATURES, LOGITS, PROBABILITIES
from efficientnet_tf.export.pictures import Pictures
from efficientnet_tf.export.runtimes import DEFAULT, Runtime
from efficientnet_tf.export.verify import Limits
from efficientnet_tf.preprocessing import Preprocessing

_PICTURES = 4

Expected = Callable[[np.ndarray], dict[str, np.ndarray]]


class _WrongAnswer(Exception):
    """A signature does not answer as it should."""


def check(
    runtime: Runtime,
    pictures: Pictures,
    rule: Preprocessing,
    expected: Expected,
    class_names: Sequence[str],
    limits: Limits,
) -> tuple[dict[str, float], str | None]:
    """Compares each signature but "images" with Python's preprocessing and the model.

    Args:
        runtime: has a SavedModel of `saved_model.write` open.
        pictures: the first few are used, as they were found.
        rule: how they are prepared.
        expected: the model: images to "probabilities", "logits" and "features".
        class_names: of the model.
        limits: its `tolerance` counts for the largest difference, its `max_error` for the mean.

    Returns:
        Signature to its largest difference, as a share of the spread of what was expected; and what
        is wrong with the first one that is wrong, or None.
    """
    some = list(itertools.islice(pictures.read(), _PICTURES))
    prepared = np.stack([images_lib.resize_and_crop(p.image, rule).numpy() for p in some])
    files = [tf.io.encode_png(picture.image).numpy() for picture in some]
    want = expected(prepared)
    found: dict[str, float] = {}

    def note(signature: str, got: np.ndarray, right: np.ndarray) -> None:
        if got.shape != right.shape:
            raise _WrongAnswer(f"has shape {got.shape}, expected {right.shape}")
        if not np.isfinite(got).all():
            raise _WrongAnswer("holds values that are not finite")
        differences = np.abs(got - right) / (float(np.ptp(right)) or 1.0)
        found[signature] = max(found.get(signature, 0.0), float(differences.max()))
        if not (differences.max() <= limits.tolerance and differences.mean() <= limits.max_error):
            raise _WrongAnswer(
                f"differs by up to {differences.max():.2g} of the spread, on average by"
                f" {differences.mean():.2g} (allowed: {limits.tolerance:g}, {limits.max_error:g})"
            )

    def served() -> None:
        got = runtime.ask({"image_bytes": files}, DEFAULT)
        note(DEFAULT, got[PROBABILITIES], want[PROBABILITIES])
        _check_best(got, got[PROBABILITIES], class_names)

    def pixels(signature: str, dtype: type) -> None:
        own = np.clip(np.rint(prepared), 0, 255).astype(dtype)
        got = runtime.ask({"images": own}, signature)
        right = expected(own.astype(np.float32))
        note(signature, got[PROBABILITIES], right[PROBABILITIES])
        image = some[0].image
        if image.shape == own.shape[1:]:
            image = image[1:]  # of another size, so that the graph prepares it
        right = expected(images_lib.resize_and_crop(image, rule).numpy()[np.newaxis])
        got = runtime.ask({"images": image[np.newaxis].astype(dtype)}, signature)
        for name in (PROBABILITIES, LOGITS):
            note(signature, got[name], right[name])

    def classified() -> None:
        got = runtime.ask({"inputs": [_example(file) for file in files]}, "classify")
        top = got["scores"].shape[1]
        note("classify", got["scores"], -np.sort(-want[PROBABILITIES], axis=1)[:, :top])
        served_names = runtime.ask({"image_bytes": files}, DEFAULT)["classes"]
        if not np.array_equal(got["classes"], served_names):
            raise _WrongAnswer("names other classes than serving_default")

    def features() -> None:
        got = runtime.ask({"images": prepared}, "features")
        note("features", got[FEATURES], want[FEATURES])

    def explained() -> None:
        inputs = {"image_bytes": files, "class_id": np.full(len(files), -1, np.int32)}
        got = runtime.ask(inputs, "explain")
        best = runtime.ask({"image_bytes": files}, DEFAULT)[PROBABILITIES].argmax(-1)
        if not np.array_equal(got["class_ids"], best):
            raise _WrongAnswer(f"explains {got['class_ids'].tolist()} for {best.tolist()}")
        maps = got["maps"]
        # nan compares as outside.
        if not (np.abs(maps - 0.5) <= 0.5 + 1e-6).all() or maps.ndim != 3:
            raise _WrongAnswer("gives maps that are not in [0, 1]")

    known = {
        DEFAULT: served,
        "images": lambda: pixels("images", np.float32),
        "images_uint8": lambda: pixels("images_uint8", np.uint8),
        "classify": classified,
        "features": features,
        "explain": explained,
    }
    for signature in runtime.signatures:
        try:
            known[signature]()
        except _WrongAnswer as error:
            return found, f"its signature {signature!r} {error}"
    return found, None


def _check_best(got: dict[str, np.ndarray], probabilities: np.ndarray, class_names) -> None:
    """Ids, scores and names of the best classes agree with the probabilities beside them."""
    ids, scores = got["class_ids"], got["scores"]
    right = np.argsort(-probabilities, axis=1, kind="stable")[:, : ids.shape[1]]
    if not np.array_equal(scores, np.take_along_axis(probabilities, right, 1)):
        raise _WrongAnswer("gives scores that are not the largest probabilities")
    if not np.array_equal(np.take_along_axis(probabilities, ids, 1), scores):
        raise _WrongAnswer("gives ids whose probabilities are not their scores")
    names = [[class_names[i].encode() for i in row] for row in ids] if class_names else None
    if names is not None and got["classes"].tolist() != names:
        raise _WrongAnswer("gives names that are not those of its ids")


def _example(file: bytes) -> bytes:
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(file)
    return example.SerializeToString()
