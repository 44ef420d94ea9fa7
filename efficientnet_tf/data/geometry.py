"""Operations that move pixels: the geometric part of AutoAugment and RandAugment.

All take uint8 (height, width, 3), static or dynamic, and return the same shape and type; their
second argument is a Python number or a scalar tensor. Values come from the nearest pixel; what
comes from outside is gray, 128. Conventions are those of the released code (tensorflow/tpu
`models/official/efficientnet/autoaugment.py`) and of the kernel that it runs on, TensorFlow's
`ImageProjectiveTransform`: Pillow's rotations and translations, and shears half a row or column
away from Pillow's, times the level. Neither tensorflow_addons nor that kernel is needed: looking up
whole pixels by `tf.gather_nd` is three times as fast. Rotations differ from the kernel's where a
coordinate is half-way between pixels to within its single precision.
"""

import math

import tensorflow as tf

_GRAY = 128


def _nearest(coordinate, size):
    """Index of a pixel in a picture that has a border of one pixel on each side.

    Halves are rounded away from zero, as the kernel does: -0.5 is outside.
    """
    outside = tf.cast(coordinate == -0.5, tf.float64)
    index = tf.floor(coordinate + 0.5) - outside
    return tf.cast(tf.clip_by_value(index + 1, 0, tf.cast(size, tf.float64) + 1), tf.int32)


def _look_up(image, x, y):
    """Picture whose pixel (i, j) is the one at column x[i, j] and row y[i, j] of another.

    Args:
        image: uint8 (height, width, 3).
        x: float64, broadcast to (height, width) together with y. In double precision sums do not
            depend on their order, which TensorFlow changes when it optimises a graph.
        y: likewise.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    bordered = tf.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=_GRAY)
    index = _nearest(y, height) * (width + 2) + _nearest(x, width)
    result = tf.gather_nd(tf.reshape(bordered, (-1, 3)), index[..., None])
    return tf.ensure_shape(result, image.shape)


def _grid(image):
    """Columns (1, width) and rows (height, 1), float64."""
    size = tf.cast(tf.shape(image), tf.float64)
    return tf.range(size[1])[None], tf.range(size[0])[:, None]


def rotate(image, degrees):
    """Turns a picture about its centre, counterclockwise for positive angles."""
    x, y = _grid(image)
    angle = tf.cast(degrees, tf.float64) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    right, bottom = x[0, -1], y[-1, 0]
    x_offset = (right - (cos * right - sin * bottom)) / 2
    y_offset = (bottom - (sin * right + cos * bottom)) / 2
    return _look_up(image, cos * x - (sin * y - x_offset), sin * x + (cos * y + y_offset))


def _shift(level, lines):
    """Pixels that lines move by, rounded to single precision as the released code's are."""
    shift = tf.cast(level, tf.float32) * tf.cast(lines, tf.float32)
    return tf.cast(shift, tf.float64)


def shear_x(image, level):
    """Moves row i to the left by `level * i` pixels, rounded."""
    x, y = _grid(image)
    return _look_up(image, x + _shift(level, y), y)


def shear_y(image, level):
    """Moves column j up by `level * j` pixels, rounded."""
    x, y = _grid(image)
    return _look_up(image, x, y + _shift(level, x))


def _translate(image, pixels, axis: int):
    size = tf.shape(image)[axis]
    pixels = tf.cast(tf.floor(tf.cast(pixels, tf.float32) + 0.5), tf.int32)
    pixels = tf.clip_by_value(pixels, -size, size)
    before, after = tf.maximum(-pixels, 0), tf.maximum(pixels, 0)
    kept = image[:, after : size - before] if axis else image[after : size - before]
    pads = [(before, after) if i == axis else (0, 0) for i in range(3)]
    return tf.ensure_shape(tf.pad(kept, pads, constant_values=_GRAY), image.shape)


def translate_x(image, pixels):
    """Moves a picture to the left by a number of pixels, rounded; negative to the right."""
    return _translate(image, pixels, 1)


def translate_y(image, pixels):
    """Moves a picture up by a number of pixels, rounded; negative down."""
    return _translate(image, pixels, 0)
