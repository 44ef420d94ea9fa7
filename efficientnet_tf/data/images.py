"""Decode pictures, and crop and resize them as a set of weights expects.

Everything but `read_image` is made of TensorFlow operations: it runs eagerly, in `tf.data` and
inside a SavedModel, with the same result.
"""

import os

import numpy as np
import tensorflow as tf

from efficientnet_tf import paths
from efficientnet_tf.paths import Remote
from efficientnet_tf.preprocessing import Preprocessing

_HEADER = 54  # bytes: as long as BMP's, and longer than what is looked at of WebP's


def decode(encoded):
    """Decodes one picture: JPEG, PNG, BMP, GIF (its first frame) or WebP.

    Grayscale becomes three equal channels, CMYK and palettes become RGB, 16-bit PNGs keep their
    high byte. Transparency is dropped without blending, as in the published pipelines and in
    `PIL.Image.convert("RGB")`: a pixel has the colour that the file stores for it. Orientation
    tags (EXIF) are not applied. JPEG goes through TensorFlow's default, fast transform, as it did
    when the weights were evaluated; other decoders differ by a few levels. Animated WebP, and BMP
    of 1, 4 or 16 bits, are refused.

    Args:
        encoded: scalar string, the content of the file.

    Returns:
        uint8 (height, width, 3).

    Raises:
        tf.errors.InvalidArgumentError: for anything that is not a complete picture.
    """
    header = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_HEADER)
    image = tf.cond(
        _is_webp_with_alpha(header),
        lambda: tf.io.decode_image(encoded, channels=4, expand_animations=False)[..., :3],
        # Never channels=0: with it, TensorFlow 2.21 writes past its buffer for animated WebP.
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    image = tf.cond(
        _starts_with(header, {0: b"BM", 28: b"\x08\x00"}),
        lambda: _look_up_palette(image, encoded, header),
        lambda: image,
    )
    return tf.ensure_shape(image, (None, None, 3))


def _starts_with(header, expected: dict[int, bytes]):
    """Whether a header holds these bytes from these offsets on."""
    return tf.reduce_all(
        [tf.reduce_all(header[at : at + len(b)] == list(b)) for at, b in expected.items()]
    )


def _is_webp_with_alpha(header):
    """Whether this is a still WebP with transparency, which has to be asked for as 4 channels."""
    extended = _starts_with(header, {0: b"RIFF", 8: b"WEBPVP8X"})
    lossless = _starts_with(header, {0: b"RIFF", 8: b"WEBPVP8L"})
    extended_alpha = tf.bitwise.bitwise_and(header[20], 0x12) == 0x10  # alpha, and no animation
    lossless_alpha = tf.bitwise.bitwise_and(header[24], 0x10) == 0x10
    return (extended & extended_alpha) | (lossless & lossless_alpha)


def _look_up_palette(indices, encoded, header):
    """Gives an 8-bit BMP its colours, whose indices TensorFlow takes for shades of gray."""
    palette_start = 14 + tf.bitcast(header[14:18], tf.int32)
    pixels_start = tf.bitcast(header[10:14], tf.int32)
    entries = tf.strings.substr(encoded, palette_start, pixels_start - palette_start)
    palette = tf.reshape(tf.io.decode_raw(entries, tf.uint8), (-1, 4))
    blue_green_red = tf.gather(palette, tf.cast(indices[..., 0], tf.int32))[..., :3]
    return blue_green_red[..., ::-1]


def center_crop(image, preprocessing: Preprocessing):
    """Takes the part of a picture that the weights' crop rule leaves.

    Args:
        image: (height, width, channels), or a batch of them, any dtype.
        preprocessing: its `crop` and `size` count.

    Returns:
        (side, side, channels), or a batch of them, of the same dtype; the whole image where the
        rule is "squash".
    """
    image = tf.convert_to_tensor(image)
    if preprocessing.crop_ratio is None:
        return image
    box = center_box(tf.shape(image)[-3:-1], preprocessing)
    top, left, height, width = tf.unstack(box)
    return image[..., top : top + height, left : left + width, :]


def center_box(shape, preprocessing: Preprocessing):
    """Where `center_crop` crops, by a rule other than "squash".

    Args:
        shape: int32 (2,), height and width of the picture.
        preprocessing: its `crop` and `size` count.

    Returns:
        int32 (4,): top, left, height, width.
    """
    # The references multiply in float32 and truncate; exact arithmetic is a pixel larger at times.
    shorter = tf.cast(tf.reduce_min(shape), tf.float32)
    side = tf.maximum(tf.cast(preprocessing.crop_ratio * shorter, tf.int32), 1)
    round_up = 0 if preprocessing.crop == "pad32_floor" else 1
    corner = (shape - side + round_up) // 2
    return tf.stack([corner[0], corner[1], side, side])


def resize(image, size: int, method: str):
    """Resizes to a square by one of `preprocessing.RESIZE_METHODS`.

    Args:
        image: uint8 or floating (height, width, channels), or a batch of them, in [0, 255].
        size: pixels.
        method: "bicubic_legacy" overshoots [0, 255] a little at edges, as in the published
            evaluation; the other methods stay inside.

    Returns:
        float32 (size, size, channels), or a batch of them.
    """
    image = tf.convert_to_tensor(image)
    single = image.shape.rank == 3
    batch = image[tf.newaxis] if single else image
    if method == "bicubic_legacy":
        resized = tf.raw_ops.ResizeBicubic(images=batch, size=(size, size))
    elif method == "bilinear_legacy":
        resized = tf.raw_ops.ResizeBilinear(images=batch, size=(size, size))
    elif method == "bilinear":
        resized = tf.image.resize(batch, (size, size), "bilinear")
    elif method == "bicubic":
        resized = tf.image.resize(batch, (size, size), "bicubic", antialias=True)
        resized = tf.clip_by_value(resized, 0.0, 255.0)
    else:
        raise ValueError(f"No resize method {method!r}; see preprocessing.RESIZE_METHODS.")
    resized = tf.cast(resized, tf.float32)
    return resized[0] if single else resized


def resize_and_crop(image, preprocessing: Preprocessing):
    """Crops and resizes a picture the way the weights were evaluated.

    Normalisation is not applied: the model's first layer does it.

    Args:
        image: uint8 or floating (height, width, channels), or a batch of them, in [0, 255].
        preprocessing: of the weights.

    Returns:
        float32 (size, size, channels), or a batch of them, in [0, 255] (but see `resize` for
        "bicubic_legacy").
    """
    cropped = center_crop(image, preprocessing)
    return resize(cropped, preprocessing.size, preprocessing.resize_method)


def from_bytes(encoded, preprocessing: Preprocessing):
    """Turns encoded pictures into a batch for the model, in graph.

    Args:
        encoded: string (batch,), each the content of a file; see `decode`.
        preprocessing: of the weights.

    Returns:
        float32 (batch, size, size, 3) in [0, 255].
    """
    size = preprocessing.size
    return tf.map_fn(
        lambda picture: resize_and_crop(decode(picture), preprocessing),
        encoded,
        fn_output_signature=tf.TensorSpec((size, size, 3), tf.float32),
    )


def read_image(path: str | os.PathLike | Remote) -> np.ndarray:
    """Reads a picture file; see `decode` for what it takes.

    Returns:
        uint8 (height, width, 3).

    Raises:
        OSError: where there is no readable file at `path`.
        ValueError: naming the file, where it is not a complete picture.
    """
    encoded = paths.of(path).read_bytes()
    if not encoded:
        raise ValueError(f"{path}: the file is empty")
    try:
        return decode(encoded).numpy()
    except tf.errors.InvalidArgumentError as error:
        reason = error.message.rpartition("}} ")[2].removesuffix(" [Op:DecodeImage]")
        raise ValueError(
            f"{path}: not a complete JPEG, PNG, BMP, GIF or WebP picture ({reason})"
        ) from None
