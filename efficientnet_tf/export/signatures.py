"""What a served classifier does with pictures, made of TensorFlow's own operations only.

The functions here are traced into the graph of a SavedModel; see `saved_model.write`.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from efficientnet_tf.cam import evidence
from efficientnet_tf.data import images as images_lib
from efficientnet_tf.preprocessing import Preprocessing

EXAMPLE_KEY = "image/encoded"  # as in the ImageNet TFRecords
_PARALLEL = 4  # pictures of a batch that are decoded at a time
_TOLD = 10  # bad pictures that a message names


def pictures(encoded, rule: Preprocessing, name: str):
    """Turns the contents of picture files into a batch for the network.

    Args:
        encoded: string (batch,), each a JPEG, PNG, GIF (its first frame), BMP or WebP file.
        rule: how they are cropped and resized.
        name: what the messages call `encoded`.

    Returns:
        float32 (batch, size, size, 3) in [0, 255], and what part of each picture that is: int32
        (batch, 4), top, left, height and width in pixels of the file. Where the graph runs, a file
        that cannot be read is an INVALID_ARGUMENT error that says which one of the batch it is.
    """

    def reasons(content):
        # Longer by zeros, since a position behind the end of a string is an error.
        start = tf.strings.substr(tf.strings.join([content, "\0" * 12]), 0, 12)
        known = tf.reduce_any(
            [
                tf.strings.substr(start, 0, 3) == b"\xff\xd8\xff",
                tf.strings.substr(start, 0, 4) == b"\x89PNG",
                tf.strings.substr(start, 0, 4) == b"GIF8",
                tf.strings.substr(start, 0, 2) == b"BM",
                (tf.strings.substr(start, 0, 4) == b"RIFF")
                & (tf.strings.substr(start, 8, 4) == b"WEBP"),
            ],
            axis=0,
        )
        unknown = tf.where(
            tf.strings.length(content) == 0,
            "is empty",
            "is not a JPEG, PNG, GIF, BMP or WebP file",
        )
        return tf.where(known, "is damaged, cut short or of an unsupported kind", unknown)

    return _prepared(encoded, rule, lambda content: content, reasons, name)


def pictures_of_examples(serialized, rule: Preprocessing, name: str):
    """The same as `pictures`, from serialized `tf.train.Example`s.

    Args:
        serialized: string (batch,), each with the feature "image/encoded", one picture file.
        rule: how they are cropped and resized.
        name: what the messages call `serialized`.

    Returns:
        As `pictures`.
    """
    feature = {EXAMPLE_KEY: tf.io.FixedLenFeature((), tf.string)}

    def content(one):
        return tf.io.parse_single_example(one, feature)[EXAMPLE_KEY]

    def reasons(items):
        text = f"is no tf.train.Example with a readable picture file in {EXAMPLE_KEY!r}"
        return tf.fill(tf.shape(items), text)

    return _prepared(serialized, rule, content, reasons, name)


def _prepared(items, rule: Preprocessing, content: Callable, reasons: Callable, name: str):
    """Decodes, crops and resizes; items that fail are found by their absence.

    A graph cannot catch an error, but a dataset can leave out what fails.
    """
    shape = (rule.size, rule.size, 3)

    def prepare(index, item):
        image = images_lib.decode(content(item))
        size = tf.shape(image)[:2]
        whole = tf.concat([(0, 0), size], 0)
        box = whole if rule.crop_ratio is None else images_lib.center_box(size, rule)
        return index, images_lib.resize_and_crop(image, rule), box

    count = tf.shape(items, tf.int64)[0]
    numbered = tf.data.Dataset.from_tensor_slices((tf.range(count), items))
    readable = numbered.map(
        prepare, num_parallel_calls=_PARALLEL, deterministic=True
    ).ignore_errors()
    # One more, or there would be no batch to get where all fail.
    last = tf.data.Dataset.from_tensors((count, tf.zeros(shape), tf.zeros(4, tf.int32)))
    indices, batch, boxes = readable.concatenate(last).batch(count + 1).get_single_element()
    found = tf.shape(indices, tf.int64)[0] - 1

    def complain():
        is_read = tf.reduce_any(tf.range(count)[:, tf.newaxis] == indices, axis=1)
        bad = tf.where(~is_read)[:_TOLD, 0]
        which = tf.strings.join([f"{name}[", tf.strings.as_string(bad), "] "])
        told = tf.strings.reduce_join(
            tf.strings.join([which, reasons(tf.gather(items, bad))]), separator="; "
        )
        none = f"{name} must hold at least one picture"
        return tf.debugging.Assert(False, [tf.where(count == 0, none, told)])

    checked = tf.cond((found == count) & (count > 0), tf.no_op, complain)
    with tf.control_dependencies([checked]):
        return tf.ensure_shape(batch[:-1], (None, *shape)), boxes[:-1]


def fitted(images, rule: Preprocessing):
    """Crops and resizes a batch by the rule, or passes it on where it has the right size.

    Args:
        images: uint8 or float32 (batch, height, width, 3) in [0, 255].
        rule: of the weights.

    Returns:
        float32 (batch, size, size, 3).
    """
    size = rule.size
    fits = tf.reduce_all(tf.shape(images)[1:3] == size)
    fitting = tf.cond(
        fits,
        lambda: tf.cast(images, tf.float32),
        lambda: images_lib.resize_and_crop(images, rule),
    )
    return tf.ensure_shape(fitting, (None, size, size, 3))


def best(probabilities, names, top: int) -> dict[str, tf.Tensor]:
    """The most likely classes by falling score.

    Args:
        probabilities: float32 (batch, classes).
        names: string (classes,).
        top: how many, at most `classes`.

    Returns:
        "classes" string, "class_ids" int32 and "scores" float32, all (batch, top).
    """
    scores, ids = tf.math.top_k(probabilities, top)
    return {"classes": tf.gather(names, ids), "class_ids": ids, "scores": scores}


def checked(class_id, images, classes: int):
    """Class numbers, one for each picture; where the graph runs, others are an error.

    Args:
        class_id: int32 (batch,), -1 or a class.
        images: (batch, …).
        classes: of the network.

    Returns:
        `class_id`.
    """
    with tf.control_dependencies(
        [
            tf.debugging.assert_equal(
                tf.shape(class_id)[0],
                tf.shape(images)[0],
                "class_id must have one number for each picture",
            ),
            tf.debugging.assert_greater_equal(class_id, -1, "class_id must be -1 or a class"),
            tf.debugging.assert_less(class_id, classes, "class_id must be a class of the model"),
        ]
    ):
        return tf.identity(class_id)


def class_map(maps, logits, class_id):
    """Where in a picture the evidence for a class is (Grad-CAM, arXiv 1610.02391).

    The feature maps are weighted by the means of the logit's derivatives, summed, and what is
    negative is cut off. Behind global average pooling and one dense layer that is, but for a
    factor, the class activation map of arXiv 1512.04150.

    Args:
        maps: float32 (batch, height, width, channels), the network's last feature map.
        logits: float32 (batch, classes), computed from `maps`.
        class_id: int32 (batch,); -1 for the most likely class.

    Returns:
        float32 (batch, height, width) in [0, 1], where each picture's largest value is 1 (or all
        are 0 where nothing speaks for the class), and the classes, int32 (batch,).
    """
    likely = tf.argmax(logits, -1, output_type=tf.int32)
    ids = tf.where(class_id < 0, likely, class_id)
    chosen = tf.gather(logits, ids, batch_dims=1)
    (derivatives,) = tf.gradients(chosen, maps)
    return evidence.shown(maps, evidence.gradcam(derivatives)), ids
