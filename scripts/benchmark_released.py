"""RandAugment as released with EfficientNetV2, to measure ours against: `benchmark.py --input`.

Restates what the released code (google/automl `efficientnetv2/autoaugment.py`) asks of TensorFlow:
for each operation the same kernels, on the same types, in the same order, and in each layer a
condition around every one of the 16. TensorFlow's own kernel that moves pixels stands in for that
of TensorFlow Addons. Of each layer's draws only the probability is missing, which the released code
uses for nothing, so that TensorFlow would leave it out of the graph. What comes out equals
`data.augment`'s with `bug_compat=True` (`tests/test_benchmark_released.py`), but where a rotation
looks half-way between two pixels.

Operations take uint8 (height, width, 3) and what `policies.argument` gives them, with its sign.
"""

import functools
import math

import tensorflow as tf

from efficientnet_tf.data import policies

_GRAY = 128
_where = tf.compat.v1.where  # as released: one condition for each row needs no broadcasting


def randaugment(image, num_layers: int, magnitude: float):
    """Applies operations that are drawn uniformly, with random numbers of TensorFlow's own seed.

    Args:
        image: uint8 (height, width, 3).
        num_layers: operations, one after the other.
        magnitude: level of all operations, above 5.

    Returns:
        uint8 (height, width, 3).
    """
    for _ in range(num_layers):
        drawn = tf.random.uniform((), maxval=len(OPERATIONS), dtype=tf.int32)
        for number, name in enumerate(policies.OPERATIONS):
            argument = policies.argument(name, magnitude, policies.RANDAUGMENT_SIZES)
            if name in policies.SIGNED:
                argument = _with_random_sign(argument)
            applied = functools.partial(OPERATIONS[name], image, argument)
            image = tf.cond(tf.equal(drawn, number), applied, lambda image=image: image)
    return image


def _with_random_sign(argument: float):
    positive = tf.cast(tf.floor(tf.random.uniform(()) + 0.5), tf.bool)
    return tf.cond(positive, lambda: argument, lambda: -argument)


# ---- Operations that move pixels


def _transform(image, matrix):
    """Pixel (x, y) of the result is the nearest to (a x + b y + c, d x + e y + f) of the picture.

    A fourth channel of ones comes back as zeros where pixels lie outside; these become gray.
    """
    shape = tf.shape(image)
    marked = tf.concat([image, tf.ones([shape[0], shape[1], 1], image.dtype)], 2)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.expand_dims(marked, 0),
        transforms=tf.expand_dims(tf.stack([*matrix, 0.0, 0.0]), 0),
        output_shape=shape[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )
    pixels = tf.reshape(moved, [-1, 4])
    gray = tf.ones_like(pixels) * tf.constant([_GRAY, _GRAY, _GRAY, 1], tf.uint8)
    filled = _where(tf.equal(pixels[:, 3], 0), gray, pixels)
    return tf.slice(tf.reshape(filled, tf.shape(marked)), [0, 0, 0], shape)


def _rotate(image, degrees):
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    size = tf.cast(tf.shape(image), tf.float32)
    bottom, right = size[0] - 1, size[1] - 1
    left_out = (right - (cos * right - sin * bottom)) / 2
    top_out = (bottom - (sin * right + cos * bottom)) / 2
    return _transform(image, (cos, -sin, left_out, sin, cos, top_out))


def _shear_x(image, level):
    return _transform(image, (1.0, level, 0.0, 0.0, 1.0, 0.0))


def _shear_y(image, level):
    return _transform(image, (1.0, 0.0, 0.0, level, 1.0, 0.0))


def _translate_x(image, pixels):
    return _transform(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def _translate_y(image, pixels):
    return _transform(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def _cutout(image, half):
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    row = tf.random.uniform((), maxval=height, dtype=tf.int32)
    column = tf.random.uniform((), maxval=width, dtype=tf.int32)
    above, below = tf.maximum(0, row - half), tf.maximum(0, height - row - half)
    left, right = tf.maximum(0, column - half), tf.maximum(0, width - column - half)
    square = tf.zeros([height - above - below, width - left - right], image.dtype)
    kept = tf.pad(square, [[above, below], [left, right]], constant_values=1)
    kept = tf.tile(tf.expand_dims(kept, -1), [1, 1, 3])
    return _where(tf.equal(kept, 0), tf.ones_like(image) * _GRAY, image)


# ---- Operations on colours


def _blend(degenerate, image, factor: float):
    """Away from a degenerate picture by a factor above 1, in float32."""
    degenerate = tf.cast(degenerate, tf.float32)
    values = degenerate + factor * (tf.cast(image, tf.float32) - degenerate)
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)


def _color(image, factor):
    gray = tf.image.rgb_to_grayscale(image)
    return _blend(tf.image.grayscale_to_rgb(gray), image, factor)


def _contrast(image, factor):
    gray = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
    histogram = tf.histogram_fixed_width(gray, [0, 255], nbins=256)
    mean = tf.reduce_sum(tf.cast(histogram, tf.float32)) / 256  # the number of pixels, over 256
    flat = tf.clip_by_value(tf.ones_like(gray, tf.float32) * mean, 0.0, 255.0)
    return _blend(tf.image.grayscale_to_rgb(tf.cast(flat, tf.uint8)), image, factor)


def _brightness(image, factor):
    return _blend(tf.zeros_like(image), image, factor)


def _sharpness(image, factor):
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
    kernel = tf.tile(tf.reshape(kernel, [3, 3, 1, 1]), [1, 1, 3, 1])
    values = tf.expand_dims(tf.cast(image, tf.float32), 0)
    smooth = tf.nn.depthwise_conv2d(values, kernel, [1, 1, 1, 1], "VALID")
    smooth = tf.squeeze(tf.cast(tf.clip_by_value(smooth, 0.0, 255.0), tf.uint8), [0])
    border = [[1, 1], [1, 1], [0, 0]]
    inside = tf.equal(tf.pad(tf.ones_like(smooth), border), 1)
    return _blend(_where(inside, tf.pad(smooth, border), image), image, factor)


def _of_channels(function, image):
    return tf.stack([function(image[:, :, channel]) for channel in range(3)], 2)


def _autocontrast(channel):
    low = tf.cast(tf.reduce_min(channel), tf.float32)
    high = tf.cast(tf.reduce_max(channel), tf.float32)

    def stretched():
        scale = 255.0 / (high - low)
        values = tf.cast(channel, tf.float32) * scale + -low * scale
        return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)

    return tf.cond(high > low, stretched, lambda: channel)


def _equalize(channel):
    levels = tf.cast(channel, tf.int32)
    histogram = tf.histogram_fixed_width(levels, [0, 255], nbins=256)
    filled = tf.reshape(tf.gather(histogram, tf.where(tf.not_equal(histogram, 0))), [-1])
    step = (tf.reduce_sum(filled) - filled[-1]) // 255

    def flattened():
        upper = (tf.cumsum(histogram) + step // 2) // step
        table = tf.clip_by_value(tf.concat([[0], upper[:-1]], 0), 0, 255)
        return tf.gather(table, levels)

    return tf.cast(tf.cond(tf.equal(step, 0), lambda: levels, flattened), tf.uint8)


def _posterize(image, bits: int):
    shift = (8 - bits) % 256  # a byte, as all arguments of the next three
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def _solarize(image, threshold: int):
    return _where(image < threshold % 256, image, 255 - image)


def _solarize_add(image, addition: int):
    brighter = tf.clip_by_value(tf.cast(image, tf.int64) + addition, 0, 255)
    return _where(image < 128, tf.cast(brighter, tf.uint8), image)


OPERATIONS = {
    "AutoContrast": lambda image, _: _of_channels(_autocontrast, image),
    "Equalize": lambda image, _: _of_channels(_equalize, image),
    "Invert": lambda image, _: 255 - image,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Cutout": _cutout,
    "SolarizeAdd": _solarize_add,
}
