"""Random crops: their distribution, and that decoding a part gives the same pixels."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_tf.data import crops, images

SEEDS = 4000


def _smooth(height, width):
    """A picture with soft colour edges, as a photograph has."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [128 + 120 * np.sin(x / a + y / b) for a, b in ((9, 23), (31, 7), (17, 13))]
    return np.stack(waves, -1).astype(np.uint8)


def _encoded(picture, kind, **settings):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **settings)
    return buffer.getvalue()


def _boxes(name, shape, image_size=32):
    draw = tf.function(
        lambda i: crops.draw(
            crops.CROPS[name],
            tf.constant(shape),
            image_size,
            tf.stack([tf.constant(7, tf.int64), i]),
        )
    )
    seeds = tf.data.Dataset.range(SEEDS).map(draw)
    return np.array(list(seeds.as_numpy_iterator()))


@pytest.mark.parametrize(
    ("name", "areas", "aspects"),
    # A box that covers a tenth of the picture has a tenth of its area, so V1's 8 % never occur.
    [("v1", (0.1, 1.0), (3 / 4, 4 / 3)), ("v2", (0.05, 1.0), (0.75, 1.33))],
)
def test_boxes_have_the_papers_ranges(name, areas, aspects):
    height, width = 375, 500
    top, left, rows, columns = _boxes(name, (height, width)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()
    area = rows * columns / (height * width)
    aspect = columns / rows
    # Whole pixels round a little; both ends of both ranges are reached.
    assert areas[0] - 0.003 < area.min() < areas[0] + 0.03
    assert 0.9 < area.max() <= areas[1]
    assert aspects[0] - 0.02 < aspect.min() < aspects[0] + 0.03
    assert aspects[1] - 0.03 < aspect.max() < aspects[1] + 0.02
    assert len({tuple(box) for box in zip(top, left, rows, columns, strict=True)}) > 0.99 * SEEDS


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_boxes_are_distributed_as_tensorflow_1_draws_them(name):
    height, width = 300, 400
    crop = crops.CROPS[name]
    tf.random.set_seed(1)
    expected = []
    for _ in range(1500):
        _, size, _ = tf.compat.v1.image.sample_distorted_bounding_box(
            (height, width, 3),
            bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=crop.covered,
            aspect_ratio_range=crop.aspect,
            area_range=crop.area,
            max_attempts=crop.attempts,
            use_image_if_no_bounding_boxes=True,
        )
        expected.append(size.numpy()[:2])
    expected = np.array(expected)
    received = _boxes(name, (height, width))[:, 2:]
    for measure in (lambda s: s[:, 0] * s[:, 1], lambda s: s[:, 1] / s[:, 0]):
        points = np.linspace(0.1, 0.9, 9)
        ours = np.quantile(measure(received), points)
        theirs = measure(expected)
        # Kolmogorov's distance at 1 % of two samples of 4000 and 1500 is 0.05.
        ranks = np.searchsorted(np.sort(theirs), ours) / len(theirs)
        assert np.abs(ranks - points).max() < 0.05


def test_v1_takes_the_centre_where_no_box_fits_and_v2_everything():
    # In a line of pixels, no box is nearly square.
    shape = (10, 1000)
    # 32 / (32 + 32) of the shorter side, in the middle, the offset rounded up.
    np.testing.assert_array_equal(np.unique(_boxes("v1", shape), axis=0), [[3, 498, 5, 5]])
    wide = crops.Crop(0.0, (90.0, 99.0), (0.999, 1.0), 1, "whole")
    box = crops.draw(wide, tf.constant((40, 30)), 32, tf.constant((1, 2), tf.int64))
    np.testing.assert_array_equal(box, (0, 0, 40, 30))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_decoding_a_part_of_a_jpeg_gives_the_same_pixels(subsampling):
    height, width = 97, 131
    encoded = _encoded(_smooth(height, width), "JPEG", quality=80, subsampling=subsampling)
    whole = images.decode(tf.constant(encoded)).numpy()
    rng = np.random.default_rng(0)
    # 16 x 16 pixels are coded together: boxes on, off and beside their borders.
    boxes = [(16, 32, 32, 48), (16, 32, 17, 47), (0, 0, height, width), (96, 130, 1, 1)]
    for _ in range(60):
        top, left = rng.integers(0, height), rng.integers(0, width)
        boxes.append(
            (top, left, rng.integers(1, height - top + 1), rng.integers(1, width - left + 1))
        )
    for top, left, rows, columns in boxes:
        box = tf.constant((top, left, rows, columns), tf.int32)
        part = crops.decode_and_cut(tf.constant(encoded), lambda shape, box=box: box)
        np.testing.assert_array_equal(part, whole[top : top + rows, left : left + columns])


def test_published_pictures_are_cut_exactly(shared_dir):
    import tarfile

    with tarfile.open(shared_dir / "data" / "imagenet-samples.tar") as archive:
        members = [member for member in archive if member.name.endswith(".JPEG")][:15]
        pictures = [archive.extractfile(member).read() for member in members]
    for number, encoded in enumerate(pictures):
        seed = tf.constant((3, number), tf.int64)
        draw = lambda shape, seed=seed: crops.draw(crops.CROPS["v1"], shape, 224, seed)  # noqa: E731
        whole = images.decode(tf.constant(encoded))
        expected = crops.cut(whole, draw(tf.shape(whole)[:2]))
        np.testing.assert_array_equal(crops.decode_and_cut(tf.constant(encoded), draw), expected)


def test_every_format_gets_the_same_box_and_its_own_decoder():
    picture = _smooth(60, 80)
    palette = np.asarray(Image.fromarray(picture).convert("P").convert("RGB"))
    gray = np.repeat(picture[..., :1], 3, -1)
    top, left, rows, columns = 7, 12, 31, 44
    cases = {
        "png": (_encoded(picture, "PNG"), picture),
        "bmp": (_encoded(picture, "BMP"), picture),
        "webp": (_encoded(picture, "WEBP", lossless=True), picture),
        "gray png": (_encoded(picture[..., 0], "PNG"), gray),
    }
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("P").save(buffer, "BMP")
    cases["palette bmp"] = (buffer.getvalue(), palette)
    shapes = []

    def boxed(shape):
        shapes.append(shape)
        return tf.constant((top, left, rows, columns))

    for encoded, pixels in cases.values():
        part = crops.decode_and_cut(tf.constant(encoded), boxed)
        np.testing.assert_array_equal(part, pixels[top : top + rows, left : left + columns])
    jpeg = crops.decode_and_cut(tf.constant(_encoded(picture, "JPEG", quality=95)), boxed)
    assert jpeg.shape == (rows, columns, 3)
    error = jpeg.numpy().astype(int) - picture[top : top + rows, left : left + columns]
    assert np.abs(error).mean() < 6
    assert all(np.array_equal(shape, (60, 80)) for shape in shapes)


@pytest.mark.parametrize("broken", [b"", b"\xff\xd8\xff", b"no picture at all", None])
def test_what_is_no_picture_fails(broken):
    if broken is None:
        broken = _encoded(_smooth(64, 64), "JPEG")[:600]
    with pytest.raises(tf.errors.InvalidArgumentError):
        crops.decode_and_cut(tf.constant(broken), lambda shape: tf.constant((0, 0, 64, 64)))
