"""Pictures are measured before they are decoded; Pillow writes them and says what they are."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from efficientnet_tf.serve import pictures
from efficientnet_tf.serve.errors import ServingError
from efficientnet_tf.serve.limits import Limits


def _encoded(kind, width=37, height=21, mode="RGB", **options):
    image = Image.effect_noise((width, height), 80).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _png(width, height):
    """A whole PNG of 8 bits gray, as small as zlib makes black."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(1 + width)) for _ in range(height)) + squeeze.flush()
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"mode": "L"}),
        ("JPEG", {"mode": "CMYK"}),
        ("JPEG", {"exif": b"Exif\0\0" + b"\xff\xc0\0\x11\x08\xff\xff\xff\xff" + b"\0" * 500}),
        ("JPEG", {"comment": b"\xff\xda" * 600}),
        ("PNG", {}),
        ("PNG", {"mode": "RGBA"}),
        ("PNG", {"mode": "I;16"}),
        ("PNG", {"mode": "P"}),
        ("GIF", {"mode": "P"}),
        ("BMP", {}),
        ("BMP", {"mode": "L"}),
        ("WebP", {}),
        ("WebP", {"lossless": True}),
        ("WebP", {"mode": "RGBA"}),
        ("WebP", {"exif": b"Exif\0\0MM"}),
    ],
)
def test_sizes_are_those_that_pillow_wrote(kind, options):
    content = _encoded(kind, **options)
    assert pictures.size(content) == pictures.Size(kind, 37, 21)
    for width, height in ((1, 1), (300, 2), (2, 3000)):
        got = pictures.size(_encoded(kind, width, height, **options))
        assert (got.width, got.height) == (width, height)


@pytest.mark.parametrize("kind", ["GIF", "WebP"])
def test_all_frames_of_an_animation_count(kind):
    random = np.random.default_rng(0)
    frames = [Image.fromarray(random.integers(0, 255, (8, 10, 3), np.uint8)) for _ in range(5)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=40)
    assert pictures.size(file.getvalue()) == pictures.Size(kind, 10, 8, 5)
    assert pictures.size(file.getvalue()).pixels == 400


def test_what_is_no_picture_has_no_size():
    texts = ("", "B", "BM", "BMW cars are made in Munich, and elsewhere", "RIFF and raffs", "hello")
    for content in (*(text.encode() for text in texts), bytes(100), _encoded("TIFF")):
        assert pictures.size(content) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WebP"])
def test_cut_pictures_are_refused_or_measured_but_never_fail_otherwise(kind):
    content = _encoded(kind, mode="P" if kind == "GIF" else "RGB")
    outcomes = set()
    for length in range(12, min(len(content), 700)):
        try:
            size = pictures.size(content[:length])
            outcomes.add((size.width, size.height) if size else None)
        except ValueError as error:
            outcomes.add(str(error))
    refused = {f"the {kind} is cut off before it tells its size"}
    refused.add("the PNG does not start with its header")
    assert outcomes <= {*refused, (37, 21), None}
    assert (37, 21) in outcomes
    assert outcomes & refused or kind == "GIF"


@functools.cache
def _bombs():
    deep = bytearray(_encoded("PNG", mode="I;16"))
    deep[16:24] = struct.pack(">II", 10000, 10000)
    jpeg = bytearray(_encoded("JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 10000, 10000)
    rubbish = bytes(jpeg[:2]) + b"\0\1\2" + bytes(jpeg[2:])  # libjpeg reads over it
    gif = bytearray(_encoded("GIF", mode="P"))
    gif[6:10] = struct.pack("<HH", 10000, 10000)
    bmp = bytearray(_encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 10000, -10000)
    webp = bytearray(_encoded("WebP", exif=b"Exif\0\0MM"))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (9999).to_bytes(3, "little") * 2
    return {
        "PNG": _png(10000, 10000),
        "PNG of 16 bits": bytes(deep),
        "JPEG": bytes(jpeg),
        "JPEG with rubbish": b"\xff\xd8\xff" + rubbish[3:],
        "GIF": bytes(gif),
        "BMP": bytes(bmp),
        "WebP": bytes(webp),
    }


def test_a_hundred_megapixels_in_a_few_kilobytes_are_refused_by_their_index():
    small = _encoded("PNG")
    limits = Limits()
    for name, content in _bombs().items():
        assert len(content) < 100_000, name
        inputs = {"image_bytes": np.array([small, content], object)}
        with pytest.raises(ServingError, match=r"image_bytes\[1\]: .*10000 x 10000") as caught:
            limits.check_pictures(inputs)
        assert caught.value.code == "INVALID_ARGUMENT", name
    Limits(max_pixels=10**8, max_total_pixels=2 * 10**8).check_pictures(inputs)


def test_pictures_inside_examples_are_found():
    import tensorflow as tf

    bomb = _bombs()["PNG of 16 bits"]
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(bomb)
    example.features.feature["label"].int64_list.value.append(3)
    with pytest.raises(ServingError, match=r"inputs\[0\]: the PNG has 10000 x 10000"):
        Limits().check_pictures({"inputs": np.array([example.SerializeToString()], object)})
    Limits().check_pictures({"inputs": np.array([b"\n\nno example"], object)})


def test_many_pictures_are_counted_together_and_rows_are_counted():
    limits = Limits(max_pixels=1000, max_total_pixels=2000, max_rows=4)
    picture = _encoded("PNG", 30, 30)
    limits.check_pictures({"image_bytes": np.array([picture] * 2, object)})
    with pytest.raises(ServingError, match=r"together. Received: 2700 up to image_bytes\[2\]"):
        limits.check_pictures({"image_bytes": np.array([picture] * 3, object)})
    limits.check_rows({"x": np.zeros((4, 9))})
    with pytest.raises(ServingError, match=r'"x" may have 4 rows\. Received: 5'):
        limits.check_rows({"x": np.zeros((5, 9))})


def test_files_that_keep_decoders_busy_are_refused():
    jpeg = _encoded("JPEG", progressive=True)
    with pytest.raises(ValueError, match="more than 500 scans"):
        pictures.size(jpeg + b"\xff\xda\0\x0c" * 500)
    gif = _encoded("GIF", mode="P")
    with pytest.raises(ValueError, match="more than 500000 blocks"):
        pictures.size(gif[:-1] + b"\x21\xfe" + b"\1a" * 500_001)
    with pytest.raises(ValueError, match="JPEG XL is not accepted"):
        pictures.size(b"\xff\x0a\xfa\x1f" + bytes(100))


def test_limits_must_be_above_zero():
    with pytest.raises(ValueError, match="max_rows must be above 0"):
        Limits(max_rows=0)
