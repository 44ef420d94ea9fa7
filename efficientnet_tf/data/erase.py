"""Pictures of which a part is blanked: cutout and random erasing.

All take uint8 or float32 (height, width, 3) in [0, 255], static or dynamic, and return the same
shape and type. Where a seed is given, the result is a function of the picture and the seed alone.
"""

import math
from typing import Literal

import tensorflow as tf

_GRAY = 128

# Random erasing, as torchvision and timm draw it: shares of the picture's area, height / width.
_AREA = (0.02, 0.33)
_ASPECT = (0.3, 1 / 0.3)
_ATTEMPTS = 10


def _uniform(shape, seed):
    return tf.random.stateless_uniform(shape, seed, alg="philox")


def _replace(image, top, left, patch):
    """Puts a patch into a picture, with its upper left corner at (top, left)."""
    bottom, right = top + tf.shape(patch)[0], left + tf.shape(patch)[1]
    band = image[top:bottom]
    band = tf.concat([band[:, :left], tf.cast(patch, image.dtype), band[:, right:]], 1)
    return tf.ensure_shape(tf.concat([image[:top], band, image[bottom:]], 0), image.shape)


def _square(image, center, before, after):
    """Borders (top, left, bottom, right) of a square about a pixel, inside the picture.

    Args:
        image: (height, width, 3).
        center: float (2,) in [0, 1): row and column, as shares of height and width.
        before: pixels from the centre to the top and left.
        after: pixels from the centre to the bottom and right.
    """
    size = tf.shape(image)[:2]
    center = tf.cast(center * tf.cast(size, center.dtype), tf.int32)
    start, end = tf.maximum(center - before, 0), tf.minimum(center + after, size)
    return start[0], start[1], end[0], end[1]


def blank(image, center, half):
    """Makes a square gray: the operation Cutout of RandAugment.

    Args:
        image: uint8 or float32 (height, width, 3).
        center: float (2,) in [0, 1): row and column of the middle, as shares of height and width.
        half: pixels, half the square's side; what is outside the picture is left out.
    """
    half = tf.cast(half, tf.int32)
    top, left, bottom, right = _square(image, center, half, half)
    patch = tf.fill((bottom - top, right - left, 3), tf.constant(_GRAY, image.dtype))
    return _replace(image, top, left, patch)


def cutout(image, seed, share: float, fill: Literal["gray", "noise"] = "gray"):
    """Blanks a square at a random place (https://arxiv.org/abs/1708.04552).

    Its centre is uniform over the picture; what is outside of the picture is left out. The released
    fine-tuning code of EfficientNetV2 has a share of 0.5 and "noise" (google/automl
    `efficientnetv2/preprocessing.py`): uniform in [0, 1) where black is -1 and white 1, that is,
    from 127.5 to 255, for each pixel and channel. For uint8 it is rounded.

    Args:
        image: uint8 or float32 (height, width, 3).
        seed: int64 (2,).
        share: side of the square as a share of the picture's shorter side, 0 to 1.
        fill: "gray" (128) or "noise".
    """
    if fill not in ("gray", "noise"):
        raise ValueError(f"Expected fill='gray' or 'noise'. Received: fill={fill!r}")
    seeds = tf.random.split(seed, 2, alg="philox")
    shorter = tf.cast(tf.reduce_min(tf.shape(image)[:2]), tf.float32)
    side = tf.cast(tf.round(share * shorter), tf.int32)
    center = _uniform((2,), seeds[0])
    top, left, bottom, right = _square(image, center, side // 2, side - side // 2)
    shape = (bottom - top, right - left, 3)
    if fill == "gray":
        patch = tf.fill(shape, tf.constant(_GRAY, image.dtype))
    else:
        patch = 127.5 * (1 + _uniform(shape, seeds[1]))
        patch = tf.round(patch) if image.dtype.is_integer else patch
    return _replace(image, top, left, patch)


def random_erasing(image, seed, probability: float):
    """Replaces a rectangle by noise, sometimes (https://arxiv.org/abs/1708.04896).

    The paper's RE-R: each pixel and channel uniform over 0, 1, ... 255. The rectangle has 2 % to
    33 % of the picture's area, its height is 0.3 to 3.3 times its width (uniform logarithm), its
    place is uniform among those inside the picture. As in torchvision, up to 10 shapes are drawn,
    and a picture that none fits in stays as it is. (The paper goes to 40 % and draws the ratio, and
    places until one fits.)

    Args:
        image: uint8 or float32 (height, width, 3).
        seed: int64 (2,).
        probability: that a picture is changed at all, 0 to 1.
    """
    seeds = tf.random.split(seed, 2, alg="philox")
    draws = _uniform((2 * _ATTEMPTS + 3,), seeds[0])
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    shares = _AREA[0] + (_AREA[1] - _AREA[0]) * draws[3 : 3 + _ATTEMPTS]
    area = tf.reduce_prod(size) * shares
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspect = tf.exp(low + (high - low) * draws[3 + _ATTEMPTS :])
    shapes = tf.round(tf.sqrt(tf.stack([area * aspect, area / aspect], 1)))
    fits = tf.cast(tf.reduce_all(shapes < size, 1), tf.float32)
    apply = tf.cast(draws[0] < probability, tf.float32) * tf.reduce_max(fits)
    shape = shapes[tf.argmax(fits)] * apply  # the first that fits; 0 x 0 pixels change nothing
    place = tf.cast(draws[1:3] * (size - shape + 1), tf.int32)
    shape = tf.cast(shape, tf.int32)
    patch = tf.floor(256 * _uniform((shape[0], shape[1], 3), seeds[1]))
    return _replace(image, place[0], place[1], patch)
