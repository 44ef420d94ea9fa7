import dataclasses
import io
import pathlib
import tarfile

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image

from efficientnet_tf import preprocessing
from efficientnet_tf.data import images

PHOTO = pathlib.Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640 x 427


@pytest.fixture(scope="module")
def smooth():
    """uint8 (40, 51, 3): large smooth shapes that span all values."""
    y, x, channel = np.ogrid[0:40, 0:51, 0:3]
    waves = np.sin(y / 7 + channel) + np.cos(x / 9 - channel) + np.sin((x + y) / 13)
    return np.clip(128 + 50 * waves, 0, 255).astype(np.uint8)


def _encode(picture, kind, mode="RGB", **options):
    picture = Image.fromarray(picture).convert(mode)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _as_pil_sees_it(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


# ---- decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_give_the_pixels(smooth, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = images.decode(_encode(smooth, kind, **options))
    assert decoded.dtype == tf.uint8
    np.testing.assert_array_equal(decoded, smooth)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "P"),
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "1"),
        ("BMP", "P"),  # whose palette indices TensorFlow alone would show as gray
        ("BMP", "L"),
        ("BMP", "RGBA"),
        ("GIF", "P"),
        ("GIF", "L"),
    ],
)
def test_modes_become_rgb(smooth, kind, mode):
    encoded = _encode(smooth, kind, mode)
    np.testing.assert_array_equal(images.decode(encoded), _as_pil_sees_it(encoded))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True, "exact": True}, 0),
        ("WEBP", {"lossless": False, "exact": True, "quality": 100}, 12),  # VP8X with alpha
    ],
)
def test_transparency_is_dropped_without_blending(smooth, kind, options, tolerance):
    alpha = np.full((*smooth.shape[:2], 1), 255, np.uint8)
    alpha[:20] = 3
    rgba = Image.fromarray(np.concatenate([smooth, alpha], -1))
    file = io.BytesIO()
    rgba.save(file, kind, **options)
    decoded = images.decode(file.getvalue()).numpy()
    assert np.abs(decoded.astype(int) - smooth).max() <= tolerance


def test_16_bit_png_keeps_the_high_byte(smooth):
    wide = smooth[..., 0].astype(np.uint16) * 256 + 77
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    decoded = images.decode(file.getvalue())
    np.testing.assert_array_equal(decoded, np.repeat(smooth[..., :1], 3, -1))


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})],
)
def test_jpegs_agree_with_pil(smooth, mode, options):
    encoded = _encode(smooth, "JPEG", mode, quality=95, subsampling=0, **options)
    decoded = images.decode(encoded).numpy().astype(int)
    # TensorFlow's fast transform differs from PIL's accurate one by a few levels.
    difference = np.abs(decoded - _as_pil_sees_it(encoded))
    assert difference.max() <= 8
    assert difference.mean() < 2
    if mode == "L":
        assert np.ptp(decoded, axis=-1).max() == 0


def test_a_photo_is_read():
    photo = images.read_image(PHOTO)
    assert photo.shape == (427, 640, 3)
    difference = np.abs(photo.astype(int) - np.asarray(Image.open(PHOTO)))
    assert difference.mean() < 2


def test_imagenet_pictures_are_read(shared_dir):
    with tarfile.open(shared_dir / "data" / "imagenet-samples.tar") as tar:
        members = [member for member in tar if member.name.endswith(".JPEG")]
        files = [tar.extractfile(member).read() for member in members]
    gray = 0
    for encoded in files:
        picture = Image.open(io.BytesIO(encoded))
        decoded = images.decode(encoded).numpy()
        assert decoded.shape == (picture.height, picture.width, 3)
        if picture.mode == "L":
            gray += 1
            assert np.ptp(decoded, axis=-1).max() == 0
    assert len(files) == 200
    assert gray > 0


def test_the_first_frame_of_a_gif_counts(smooth):
    other = Image.fromarray(255 - smooth).quantize(64)
    encoded = _encode(smooth, "GIF", "P", save_all=True, append_images=[other])
    decoded = images.decode(encoded)
    assert decoded.shape == smooth.shape
    np.testing.assert_array_equal(decoded, _as_pil_sees_it(encoded))


def _broken_files(picture):
    animated = {"save_all": True, "append_images": [Image.fromarray(255 - picture)]}
    clear = Image.fromarray(np.zeros((*picture.shape[:2], 4), np.uint8))
    animated_alpha = {"save_all": True, "append_images": [clear]}
    kinds = ["JPEG", "PNG", "BMP", "GIF", "WEBP"]
    return {
        "empty": b"",
        "text": b"this is no picture at all",
        "tiff": _encode(picture, "TIFF"),
        "animated-webp": _encode(picture, "WEBP", **animated),
        "animated-webp-alpha": _encode(picture, "WEBP", "RGBA", **animated_alpha),
        "bmp-1-bit": _encode(picture, "BMP", "1"),
        **{f"half-{kind}": _encode(picture, kind)[: 3 * 300] for kind in kinds},
    }


@pytest.mark.parametrize("name", _broken_files(np.zeros((4, 4, 3), np.uint8)))
def test_broken_files_are_named(smooth, tmp_path, name):
    noisy = np.random.default_rng(0).integers(0, 256, smooth.shape, np.uint8)
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(_broken_files(noisy)[name])
    with pytest.raises(ValueError, match=rf"{name}\.jpg: (the file is empty|not a complete)"):
        images.read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        images.read_image(tmp_path / "nowhere.jpg")


# ---- cropping

RULES = {
    "pad32": preprocessing.v1_eval,
    "pad32_floor": lambda size: dataclasses.replace(preprocessing.v2_eval(224), size=size),
    "fraction": lambda size: dataclasses.replace(
        preprocessing.v1_eval(size), crop="fraction", crop_fraction=0.875
    ),
}


def _cropped_box(height, width, rule):
    rows, columns = np.mgrid[0:height, 0:width].astype(np.int32)
    cropped = images.center_crop(np.stack([rows, columns], -1), rule).numpy()
    (top, left), (bottom, right) = cropped[0, 0], cropped[-1, -1]
    assert cropped.shape[:2] == (bottom - top + 1, right - left + 1)
    return top, left, cropped.shape[0], cropped.shape[1]


def test_crops_worked_out_by_hand():
    # 375 * 224 / 256 = 328.1; (500 - 328) / 2 = 86; (375 - 328) / 2 = 23.5
    assert _cropped_box(500, 375, RULES["pad32"](224)) == (86, 24, 328, 328)
    assert _cropped_box(500, 375, RULES["pad32_floor"](224)) == (86, 23, 328, 328)
    # 300 px: 427 * 300 / 332 = 385.8 with 32 px, and 427 * 300 / 343 = 373.5 with 43 px
    assert _cropped_box(427, 640, RULES["pad32"](300)) == (21, 128, 385, 385)
    assert _cropped_box(427, 640, RULES["fraction"](300)) == (27, 134, 373, 373)
    assert _cropped_box(1, 9, RULES["pad32"](224)) == (0, 4, 1, 1)


@pytest.mark.parametrize("rule", RULES)
def test_crops_follow_the_formula(rule):
    generator = np.random.default_rng(1)
    for height, width, size in generator.integers(33, 700, (25, 3)):
        made = RULES[rule](int(size))
        padding = 32 if rule != "fraction" else round(size * (1 / 0.875 - 1))
        ratio = np.float32(size / (size + padding))
        side = int(ratio * np.float32(min(height, width)))
        extra = 0 if rule == "pad32_floor" else 1
        expected = (height - side + extra) // 2, (width - side + extra) // 2, side, side
        assert _cropped_box(height, width, made) == expected


def test_squash_keeps_the_whole_picture(smooth):
    whole = images.center_crop(smooth, preprocessing.v2_eval(384))
    np.testing.assert_array_equal(whole, smooth)


# ---- resizing


def _legacy_bicubic_matrix(source, target):
    """(target, source) weights: Keys' cubic with a = -0.75, positions in 1/1024, edges repeated."""
    matrix = np.zeros((target, source))
    for row in range(target):
        position = row * (np.float32(source) / np.float32(target))
        first = int(np.floor(position))
        fraction = np.rint((position - first) * 1024) / 1024
        for tap in range(-1, 3):
            x = abs(fraction - tap)
            near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            weight = near if x <= 1 else far
            matrix[row, min(max(first + tap, 0), source - 1)] += weight
    return matrix


def _linear_matrix(source, target, half_pixel):
    rows = np.arange(target)
    positions = (rows + 0.5) * source / target - 0.5 if half_pixel else rows * source / target
    identity = np.eye(source)
    return np.stack([np.interp(positions, np.arange(source), row) for row in identity], 1)


@pytest.mark.parametrize(("size", "dtype"), [(23, np.uint8), (64, np.uint8), (33, np.float32)])
@pytest.mark.parametrize(
    ("method", "matrix"),
    [
        ("bicubic_legacy", _legacy_bicubic_matrix),
        ("bilinear_legacy", lambda source, target: _linear_matrix(source, target, False)),
        ("bilinear", lambda source, target: _linear_matrix(source, target, True)),
    ],
)
def test_resizing_is_its_closed_form(smooth, method, matrix, size, dtype):
    resized = images.resize(tf.constant(smooth.astype(dtype)), size, method)
    assert resized.dtype == tf.float32
    down, across = matrix(40, size), matrix(51, size)
    expected = np.einsum("yh,xw,hwc->yxc", down, across, smooth.astype(np.float64))
    # float32 positions shift the interpolation point by up to 1e-5 pixels of at most 255 levels.
    np.testing.assert_allclose(resized, expected, atol=5e-3)


def test_legacy_bicubic_is_the_raw_op_and_not_the_modern_resize(smooth):
    resized = images.resize(tf.constant(smooth), 30, "bicubic_legacy")
    batch = tf.constant(smooth[np.newaxis])
    raw = tf.raw_ops.ResizeBicubic(
        images=batch, size=(30, 30), align_corners=False, half_pixel_centers=False
    )
    np.testing.assert_array_equal(resized, raw[0])
    v1 = tf.compat.v1.image.resize_bicubic(batch, (30, 30))
    np.testing.assert_array_equal(resized, v1[0])
    modern = tf.image.resize(batch, (30, 30), "bicubic")
    assert np.abs(resized - modern[0]).mean() > 0.5


@pytest.mark.parametrize("size", [17, 80])
def test_bicubic_is_pils(smooth, size):
    channels = [Image.fromarray(smooth[..., c].astype(np.float32)) for c in range(3)]
    bicubic = Image.Resampling.BICUBIC
    expected = np.stack([c.resize((size, size), bicubic) for c in channels], -1)
    resized = images.resize(tf.constant(smooth), size, "bicubic")
    np.testing.assert_allclose(resized, expected.clip(0, 255), atol=1e-3)


def test_an_unknown_method_is_refused(smooth):
    with pytest.raises(ValueError, match="No resize method 'area'"):
        images.resize(tf.constant(smooth), 32, "area")


# ---- all of it


@pytest.mark.parametrize(
    "rule",
    [preprocessing.v1_eval(64), preprocessing.lite_eval(64), preprocessing.v2_eval(64)],
    ids=["v1", "lite", "v2"],
)
def test_a_gray_picture_stays_gray(rule):
    picture = np.full((90, 70, 3), 77, np.uint8)
    out = images.resize_and_crop(picture, rule)
    np.testing.assert_allclose(out, np.full((64, 64, 3), 77.0), atol=1e-3)


def test_a_saved_model_gives_what_eager_gives(smooth, tmp_path):
    rule = preprocessing.v1_eval(48)
    photos = [
        PHOTO.read_bytes(),
        _encode(smooth, "PNG", "RGBA"),
        _encode(smooth, "BMP", "P"),
        _encode(smooth, "JPEG", "CMYK"),
    ]

    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def __call__(self, encoded):
            return images.from_bytes(encoded, rule)

    tf.saved_model.save(Reader(), str(tmp_path))
    batch = tf.saved_model.load(str(tmp_path))(tf.constant(photos))
    assert batch.shape == (4, 48, 48, 3)
    for encoded, got in zip(photos, batch, strict=True):
        path = tmp_path / "picture"
        path.write_bytes(encoded)
        eager = images.resize_and_crop(images.read_image(path), rule)
        np.testing.assert_allclose(got, eager, atol=1e-4)


def test_tf_data_knows_the_shape():
    data = tf.data.Dataset.from_tensors(PHOTO.read_bytes()).map(
        lambda encoded: images.resize_and_crop(images.decode(encoded), preprocessing.v2_eval(384))
    )
    assert data.element_spec == tf.TensorSpec((384, 384, 3), tf.float32)
    (picture,) = data
    whole = np.asarray(Image.open(PHOTO), np.float32)
    np.testing.assert_allclose(np.mean(picture), np.mean(whole), atol=1)
