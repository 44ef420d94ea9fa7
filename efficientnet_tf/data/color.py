"""Operations on the colours of a picture: the per-pixel half of AutoAugment and RandAugment.

All take uint8 (height, width, 3), static or dynamic, of at least 2 x 2 pixels, and return the same
shape and type; their second argument is a Python number or a scalar tensor. They restate
operations of the Python Imaging Library, which AutoAugment was searched with, and by default equal
Pillow's to the last bit (`autocontrast` and `posterize` say where not). With `bug_compat=True`
they equal the released code instead (tensorflow/tpu
`models/official/efficientnet/autoaugment.py`, google/automl `efficientnetv2/autoaugment.py`).

Written for throughput on TensorFlow's CPU kernels, where `tf.where`, broadcasting over a last axis
of 3, `tf.gather` of single bytes and `tf.stack` each cost ten times as much as an addition and
more: hence masks, rows of 3 * width numbers, and `tf.gather_nd`.
"""

import tensorflow as tf

# Pillow's weights of red, green and blue: ITU-R BT.601 in 1/65536. All sums of them and of bytes
# are below 2**24, hence exact in float32.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


def _float(number):
    return tf.cast(number, tf.float32)


def _rows(image):
    """float32 (height, 3 * width)."""
    return tf.reshape(_float(image), (tf.shape(image)[0], -1))


def _bytes(values, like):
    """Clips float32 to [0, 255], drops its fractions and gives it a picture's shape."""
    image = tf.reshape(tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8), tf.shape(like))
    return tf.ensure_shape(image, like.shape)


def _blend(degenerate, rows, factor):
    """Pillow's `Image.blend`, before its clipping, in the order that rounds as it does."""
    return degenerate + _float(factor) * (rows - degenerate)


def _gray(rows):
    """Pillow's `convert("L")`, three times per pixel, of float32 (height, 3 * width)."""
    pixels = tf.reshape(rows, (-1, 3))
    weights = tf.tile(tf.constant(_LUMA)[:, None], (1, 3))
    return tf.reshape(tf.floor(tf.matmul(pixels, weights) + 0.5), tf.shape(rows))


def autocontrast(image, *, bug_compat: bool = False):
    """Stretches each channel to the range 0 to 255; a channel of one value stays as it is.

    Rounds down exactly. Pillow and the released code round down what double and single precision
    make of it, which can be one level less: with `bug_compat` in single precision, as released.
    """
    rows = _rows(image)
    low = tf.reduce_min(tf.reshape(tf.reduce_min(rows, 0), (-1, 3)), 0)
    high = tf.reduce_max(tf.reshape(tf.reduce_max(rows, 0), (-1, 3)), 0)
    scale = 255.0 / (high - low)
    offset = -low * scale
    # Fractions are multiples of 1 / (high - low) > 1 / 256.
    start = low - 1 / (512 * scale)
    flat = tf.equal(low, high)
    scale, offset = tf.where(flat, 1.0, scale), tf.where(flat, 0.0, offset)
    start = tf.where(flat, 0.0, start)
    width = tf.shape(image)[1]
    scale, offset, start = (tf.tile(v, [width]) for v in (scale, offset, start))
    return _bytes(rows * scale + offset if bug_compat else (rows - start) * scale, image)


def equalize(image):
    """Makes the histogram of each channel as flat as a map of levels to levels can."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    # One histogram of 768 bins: red, green, blue.
    levels = tf.cast(tf.reshape(image, (height, -1)), tf.int32) + tf.tile([0, 256, 512], [width])
    histogram = tf.raw_ops.DenseBincount(
        input=tf.reshape(levels, [-1]), size=768, weights=tf.zeros([0], tf.int32)
    )
    histogram = tf.reshape(histogram, (3, 256))
    highest = tf.reduce_max(tf.range(256) * tf.cast(histogram > 0, tf.int32), 1)
    last = tf.gather(histogram, highest, batch_dims=1)
    step = ((height * width - last) // 255)[:, None]
    below = tf.cumsum(histogram, axis=1, exclusive=True)
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, tf.range(256)), tf.uint8)
    result = tf.gather_nd(tf.reshape(table, [-1]), levels[..., None])
    return tf.ensure_shape(tf.reshape(result, tf.shape(image)), image.shape)


def invert(image):
    """Makes the negative."""
    return tf.bitwise.invert(image)


def posterize(image, bits, *, bug_compat: bool = False):
    """Keeps the highest bits of each value.

    Args:
        image: uint8 (height, width, 3).
        bits: clamped to 1 to 8; below, Pillow blanks the picture.
        bug_compat: shifts by `8 - bits` modulo 256, as released: TensorFlow takes shifts above 7
            for 7, and more than 8 bits, from magnitude 23 on, leave one (tensorflow/tpu#495).
    """
    bits = tf.cast(bits, tf.int32)
    shift = tf.minimum((8 - bits) % 256, 7) if bug_compat else 8 - tf.clip_by_value(bits, 1, 8)
    mask = tf.bitwise.left_shift(255, shift) % 256
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image, threshold, *, bug_compat: bool = False):
    """Inverts values of at least a threshold: all for 0, none from 256 on.

    Args:
        image: uint8 (height, width, 3).
        threshold: integer. RandAugment's is 256 or more from magnitude 10 on.
        bug_compat: threshold modulo 256, as released: magnitudes 10 and 20 invert everything and
            15 inverts from 128 on (google-research/big_vision#110).
    """
    threshold = tf.cast(threshold, tf.int32)
    if bug_compat:
        threshold %= 256
    bright = image >= tf.cast(tf.clip_by_value(threshold, 0, 255), tf.uint8)
    flip = tf.cast(255 * tf.cast(threshold < 256, tf.int32), tf.uint8)
    return tf.bitwise.bitwise_xor(image, tf.cast(bright, tf.uint8) * flip)


def solarize_add(image, addition):
    """Adds to values below 128, up to 255. `addition`: integer, from 0 on."""
    addition = tf.cast(tf.clip_by_value(tf.cast(addition, tf.int32), 0, 255), tf.uint8)
    dark = tf.cast(image < 128, tf.uint8)
    return image + dark * tf.minimum(addition, tf.bitwise.invert(image))


def color(image, factor, *, bug_compat: bool = False):
    """Moves each pixel away from its gray by a factor: 0 is gray, 1 nothing.

    With `bug_compat` gray is `tf.image.rgb_to_grayscale`'s, as released: a level off at times.
    """
    rows = _rows(image)
    if bug_compat:
        gray = tf.reshape(
            _float(tf.repeat(tf.image.rgb_to_grayscale(image), 3, -1)), tf.shape(rows)
        )
    else:
        gray = _gray(rows)
    return _bytes(_blend(gray, rows, factor), image)


def contrast(image, factor, *, bug_compat: bool = False):
    """Moves each value away from the picture's mean gray by a factor: 0 is flat, 1 nothing.

    With `bug_compat` the mean is `height * width / 256`, at most 255, as released: 196 for every
    picture of 224 x 224 (tensorflow/tpu#825, #1057, google-research/big_vision#109).
    """
    rows = _rows(image)
    shape = tf.cast(tf.shape(image), tf.float64)
    if bug_compat:
        mean = tf.floor(tf.minimum(shape[0] * shape[1] / 256, 255))
    else:
        columns = tf.cast(tf.reduce_sum(_gray(rows), 0), tf.float64)  # each sum is exact
        mean = tf.floor(tf.reduce_sum(columns) / tf.reduce_prod(shape) + 0.5)
    return _bytes(_blend(_float(mean), rows, factor), image)


def brightness(image, factor):
    """Multiplies each value: 0 is black, 1 nothing."""
    return _bytes(_rows(image) * _float(factor), image)


def sharpness(image, factor, *, bug_compat: bool = False):
    """Moves each pixel away from a smoothed one by a factor: 0 is smooth, 1 nothing.

    Smooth is the mean of 3 x 3 pixels with 5 times the weight in the middle. The border stays.
    With `bug_compat` it is rounded down instead of to the nearest level, and comes from a
    convolution in single precision, as released: a level off at times, even on a flat picture.
    That needs 3 x 3 pixels.
    """
    rows = _rows(image)
    inner = rows[1:-1, 3:-3]
    if bug_compat:
        kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13.0
        kernel = tf.tile(kernel[..., None, None], (1, 1, 3, 1))
        smooth = tf.nn.depthwise_conv2d(_float(image)[None], kernel, (1, 1, 1, 1), "VALID")
        smooth = tf.reshape(tf.floor(tf.clip_by_value(smooth, 0.0, 255.0)), tf.shape(inner))
    else:
        columns = rows[:-2] + rows[1:-1] + rows[2:]
        total = columns[:, :-6] + columns[:, 3:-3] + columns[:, 6:] + 4 * inner
        smooth = tf.floor(total * (1 / 13) + 0.5)
    values = tf.clip_by_value(_blend(smooth, inner, factor), 0.0, 255.0)
    flat = tf.reshape(image, tf.shape(rows))
    middle = tf.concat([flat[1:-1, :3], tf.cast(values, tf.uint8), flat[1:-1, -3:]], 1)
    result = tf.concat([flat[:1], middle, flat[-1:]], 0)
    return tf.ensure_shape(tf.reshape(result, tf.shape(image)), image.shape)
