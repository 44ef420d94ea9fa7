"""Each operation of AutoAugment and RandAugment against Pillow, or NumPy where they differ."""

import tarfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from efficientnet_tf.data import augment, color, geometry

GRAY = 128
FACTORS = (0.1, 0.37, 1.0, 1.9, 2.8)


def _synthetic(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours and noise, with a narrow range in one channel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(y / 9 + c) * np.cos(x / 7 - c) for c in range(3)]
    image = np.stack(waves, -1) + rng.normal(0, 8, (height, width, 3))
    image[..., 2] = 90 + image[..., 2] / 8
    return np.clip(image, 0, 255).astype(np.uint8)


FLAT = np.full((9, 7, 3), (13, 128, 250), np.uint8)
TWO_PIXELS = np.array([[[0, 255, 7], [255, 0, 7]], [[1, 2, 8], [3, 4, 8]]], np.uint8)
SYNTHETIC = [_synthetic(64, 48, 0), _synthetic(37, 53, 1), FLAT, TWO_PIXELS]


@pytest.fixture(scope="module", params=["synthetic", "photographs"])
def images(request):
    if request.param == "synthetic":
        return SYNTHETIC
    folder = request.getfixturevalue("shared_dir")
    found = []
    with tarfile.open(folder / "data" / "imagenet-samples.tar") as tar:
        names = sorted(n for n in tar.getnames() if n.endswith(".JPEG"))[:3]
        for name in names:
            picture = Image.open(tar.extractfile(name)).convert("RGB")
            found.append(np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR)))
    assert found
    return found


def _equal(operation, reference, images):
    for image in images:
        np.testing.assert_array_equal(operation(image).numpy(), np.asarray(reference(image)))


def _pil(function):
    return lambda image: function(Image.fromarray(image))


def test_invert_is_pillows(images):
    _equal(color.invert, _pil(ImageOps.invert), images)


def test_equalize_is_pillows(images):
    _equal(color.equalize, _pil(ImageOps.equalize), images)


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillows(images, bits):
    _equal(lambda i: color.posterize(i, bits), _pil(lambda p: ImageOps.posterize(p, bits)), images)


@pytest.mark.parametrize("threshold", [0, 1, 77, 128, 255, 256, 384])
def test_solarize_is_pillows(images, threshold):
    reference = _pil(lambda p: ImageOps.solarize(p, threshold))
    _equal(lambda i: color.solarize(i, threshold), reference, images)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_are_pillows(images, name, factor):
    enhancer = getattr(ImageEnhance, name)
    reference = _pil(lambda p: enhancer(p).enhance(factor))
    _equal(lambda i: augment.apply(name, i, factor), reference, images)


def _stretched(image):
    low, high = (f(image, (0, 1)).astype(int) for f in (np.min, np.max))
    stretched = (image.astype(int) - low) * 255 // np.maximum(high - low, 1)
    return np.where(high > low, stretched, image)


def test_autocontrast_is_exact_and_pillows_but_for_its_rounding(images):
    _equal(color.autocontrast, _stretched, images)
    for image in images:
        pillow = np.asarray(ImageOps.autocontrast(Image.fromarray(image))).astype(int)
        difference = color.autocontrast(image).numpy() - pillow
        assert difference.min() >= 0
        assert difference.max() <= 1


def test_autocontrast_is_exact_for_every_range():
    levels = np.arange(256, dtype=np.uint8)
    for low in range(0, 256, 5):
        for high in range(low, 256, 7):
            row = np.clip(levels, low, high)
            image = np.repeat(row[None, :, None], 3, -1)
            np.testing.assert_array_equal(color.autocontrast(image), _stretched(image))


@pytest.mark.parametrize("addition", [0, 1, 55, 110, 165, 330])
def test_solarize_add(images, addition):
    def reference(image):
        return np.where(image < 128, np.minimum(image.astype(int) + addition, 255), image)

    _equal(lambda i: color.solarize_add(i, addition), reference, images)


# ---- What the released code computes, from its formulas.


def _released_blend(degenerate, image, factor):
    degenerate, image = np.float32(degenerate), np.float32(image)
    return np.clip(degenerate + np.float32(factor) * (image - degenerate), 0, 255).astype(np.uint8)


def _released_gray(image):
    weights = np.float32([0.2989, 0.5870, 0.1140])
    gray = (np.float32(image) / 255) @ weights
    return np.repeat((gray * np.float32(255.5)).astype(np.uint8)[..., None], 3, -1)


def _released_contrast(image, factor):
    mean = np.uint8(min(image.shape[0] * image.shape[1] / 256, 255))
    return _released_blend(mean, image, factor)


def _released_autocontrast(image):
    low, high = (np.float32(f(image, (0, 1))) for f in (np.min, np.max))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.float32(255) / (high - low)
        stretched = np.clip(np.float32(image) * scale + -low * scale, 0, 255)
        return np.where(high > low, stretched, image).astype(np.uint8)


def _released_sharpness(image, factor):
    around = np.lib.stride_tricks.sliding_window_view(image.astype(int), (3, 3), (0, 1))
    smooth = image.astype(int)
    smooth[1:-1, 1:-1] = (around.sum((-1, -2)) + 4 * smooth[1:-1, 1:-1]) // 13
    return _released_blend(smooth, image, factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_released_contrast(images, factor):
    _equal(
        lambda i: color.contrast(i, factor, bug_compat=True),
        lambda i: _released_contrast(i, factor),
        images,
    )


def test_released_contrast_has_one_mean_for_all_pictures_of_a_size():
    dark = np.full((224, 224, 3), 10, np.uint8)
    assert color.contrast(dark, 0.0, bug_compat=True).numpy().max() == 196
    assert color.contrast(dark, 0.0).numpy().max() == 10


@pytest.mark.parametrize("bits", [0, 1, 2, 4, 6, 8, 9, 11])
def test_released_posterize(images, bits):
    shift = min((8 - bits) % 256, 7)  # bytes wrap; TensorFlow shifts by 7 at most
    _equal(
        lambda i: color.posterize(i, bits, bug_compat=True), lambda i: i >> shift << shift, images
    )
    if bits in (0, 9, 11):
        assert set(np.unique(color.posterize(images[0], bits, bug_compat=True))) == {0, 128}


def test_posterize_clamps():
    np.testing.assert_array_equal(color.posterize(SYNTHETIC[0], 11), SYNTHETIC[0])
    np.testing.assert_array_equal(color.posterize(SYNTHETIC[0], 0), SYNTHETIC[0] & 128)


@pytest.mark.parametrize("threshold", [0, 25, 128, 255, 256, 384, 512, 716])
def test_released_solarize(images, threshold):
    _equal(
        lambda i: color.solarize(i, threshold, bug_compat=True),
        lambda i: np.where(i < threshold % 256, i, 255 - i),
        images,
    )


def test_solarize_is_monotone_and_the_released_one_is_not():
    thresholds = [int(level / 10 * 256) for level in range(31)]

    def changed(bug_compat):
        image = SYNTHETIC[0]
        return [
            np.mean(color.solarize(image, t, bug_compat=bug_compat) != image) for t in thresholds
        ]

    assert np.all(np.diff(changed(False)) <= 0)
    assert changed(False)[0] == 1
    assert changed(False)[10] == 0
    assert changed(True)[10] == changed(True)[20] == 1


@pytest.mark.parametrize("factor", FACTORS)
def test_released_operations_that_round_otherwise(images, factor):
    pairs = [
        (color.autocontrast, (), _released_autocontrast),
        (color.color, (factor,), lambda i, f: _released_blend(_released_gray(i), i, f)),
        (color.sharpness, (factor,), _released_sharpness),
    ]
    for operation, arguments, reference in pairs:
        for image in (i for i in images if min(i.shape[:2]) > 2):
            ours = operation(image, *arguments, bug_compat=True).numpy().astype(int)
            off = np.abs(ours - reference(image, *arguments))
            # A sum that is a whole number may come out below it in single precision: a level of
            # gray or of smooth, which the factor then multiplies.
            assert off.max() <= max(1, np.ceil(abs(1 - factor)))
            if image.shape[0] > 9:
                assert np.mean(off > 0) < 0.1


# ---- Geometry


def _kernel(image, transform):
    """TensorFlow's own kernel, which the released code runs on."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=np.float32([[*transform, 0, 0]]),
        output_shape=image.shape[:2],
        fill_value=float(GRAY),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    ).numpy()[0]


def _sampled(image, x, y):
    """Nearest pixels in double precision, halves away from zero."""
    x, y = (np.trunc(v + np.copysign(0.5, v)).astype(int) for v in np.broadcast_arrays(x, y))
    height, width = image.shape[:2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    result = np.full_like(image, GRAY)
    result[inside] = image[y[inside], x[inside]]
    return result


@pytest.mark.parametrize("degrees", [-90, -45, -24, 0, 3, 30, 84, 180])
def test_rotate(images, degrees):
    for image in images:
        height, width = image.shape[:2]
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        # About the centre, and counterclockwise: the y axis points down.
        u, v = np.arange(width) - (width - 1) / 2, np.arange(height)[:, None] - (height - 1) / 2
        x, y = cos * u - sin * v + (width - 1) / 2, sin * u + cos * v + (height - 1) / 2
        ours = geometry.rotate(image, degrees).numpy()
        tie = lambda c: np.abs(c - np.floor(c) - 0.5) < 1e-3  # noqa: E731
        sure = ~(tie(x) | tie(y))
        assert sure.mean() > 0.9 or degrees in (-90, 180) or image.size < 1000
        np.testing.assert_array_equal(ours[sure], _sampled(image, x, y)[sure])
        offsets = (
            (width - 1 - cos * (width - 1) + sin * (height - 1)) / 2,
            (height - 1 - sin * (width - 1) - cos * (height - 1)) / 2,
        )
        kernel = _kernel(image, [cos, -sin, offsets[0], sin, cos, offsets[1]])
        np.testing.assert_array_equal(ours[sure], kernel[sure])
        pillow = Image.fromarray(image).rotate(degrees, fillcolor=(GRAY,) * 3)
        differing = (ours != np.asarray(pillow)).any(-1) & sure  # Pillow counts in 1/65536 pixels
        assert differing.sum() <= 1e-3 * sure.sum()


@pytest.mark.parametrize("level", [-0.84, -0.45, -0.03, 0, 0.12, 0.3, 0.45])
def test_shear(images, level):
    for image in images:
        height, width = image.shape[:2]
        x, y = np.arange(width)[None], np.arange(height)[:, None]
        cases = [
            (geometry.shear_x, (x + np.float32(level) * np.float32(y), y), [1, level, 0, 0, 1, 0]),
            (geometry.shear_y, (x, y + np.float32(level) * np.float32(x)), [1, 0, 0, level, 1, 0]),
        ]
        for operation, coordinates, transform in cases:
            ours = operation(image, level).numpy()
            np.testing.assert_array_equal(ours, _sampled(image, *coordinates))
            # The kernel adds in single precision: it may round sums that are nearly halves.
            assert np.mean(ours != _kernel(image, transform)) < 0.01
            # Pillow shears about the corner of the first pixel, this about its centre.
            moved = list(transform)
            moved[2 if operation is geometry.shear_x else 5] = -level / 2
            pillow = Image.fromarray(image).transform(
                image.shape[1::-1], Image.Transform.AFFINE, moved, fillcolor=(GRAY,) * 3
            )
            differing = np.mean(ours != np.asarray(pillow))
            assert differing < 0.05 or image.size < 1000  # ties


@pytest.mark.parametrize("pixels", [-1000, -150, -20.4, -3, 0, 1, 7.6, 31, 100, 250])
def test_translate(images, pixels):
    for image in images:
        whole = int(np.floor(pixels + 0.5))
        for operation, transform in (
            (geometry.translate_x, [1, 0, whole, 0, 1, 0]),
            (geometry.translate_y, [1, 0, 0, 0, 1, whole]),
        ):
            ours = operation(image, pixels).numpy()
            np.testing.assert_array_equal(ours, _kernel(image, transform))
            pillow = Image.fromarray(image).transform(
                image.shape[1::-1], Image.Transform.AFFINE, transform, fillcolor=(GRAY,) * 3
            )
            np.testing.assert_array_equal(ours, np.asarray(pillow))


def test_geometry_gets_stronger_with_its_argument():
    image = _synthetic(64, 64, 3) | 1  # no pixel is gray 128
    for operation, arguments in (
        (geometry.rotate, (0, 10, 20, 30)),
        (geometry.shear_x, (0, 0.1, 0.2, 0.3, 0.9)),
        (geometry.shear_y, (0, 0.1, 0.2, 0.3, 0.9)),
        (geometry.translate_x, (0, 5, 20, 60, 100)),
        (geometry.translate_y, (0, 5, 20, 60, 100)),
    ):
        outside = [np.mean(operation(image, a).numpy() == GRAY) for a in arguments]
        assert np.all(np.diff(outside) > 0), operation
