"""Cutout and random erasing against NumPy, and their statistics against closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.data import erase

IMAGE = np.random.default_rng(0).integers(0, 100, (40, 60, 3)).astype(np.uint8)


def _seed(number):
    return tf.constant([5, number], tf.int64)


def _map(function, count, image=IMAGE):
    """Results for seeds 0, 1, ... count - 1."""
    image = tf.constant(image)
    dataset = tf.data.Dataset.range(count).map(
        lambda i: function(image, tf.stack([tf.constant(5, tf.int64), i])), num_parallel_calls=2
    )
    return np.stack(list(dataset.as_numpy_iterator()))


def _rectangle(mask):
    """Borders (top, left, bottom, right) of a mask that is a full rectangle; None if empty."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return top, left, bottom, right


@pytest.mark.parametrize(
    ("center", "half", "borders"),
    [
        ((0.5, 0.5), 6, (14, 24, 26, 36)),
        ((0.0, 0.0), 6, (0, 0, 6, 6)),
        ((0.999, 0.999), 6, (33, 53, 40, 60)),
        ((0.5, 0.5), 0, (0, 0, 0, 0)),
        ((0.3, 0.9), 100, (0, 0, 40, 60)),
    ],
)
def test_blank(center, half, borders):
    expected = IMAGE.copy()
    expected[borders[0] : borders[2], borders[1] : borders[3]] = 128
    result = erase.blank(tf.constant(IMAGE), tf.constant(center), half)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_cutout_is_a_square_clipped_at_the_border_about_a_uniform_centre(dtype):
    results = _map(lambda i, s: erase.cutout(i, s, 0.5), 600, IMAGE.astype(dtype))
    assert results.dtype == dtype
    centers = []
    for result in results:
        changed = (result != IMAGE).any(-1)
        top, left, bottom, right = _rectangle(changed)
        assert changed[top:bottom, left:right].all()
        assert (result[top:bottom, left:right] == 128).all()
        assert bottom - top == 20 or top == 0 or bottom == 40  # half of the shorter side
        assert right - left == 20 or left == 0 or right == 60
        centers.append(
            (bottom - 10 if top == 0 else top + 10, right - 10 if left == 0 else left + 10)
        )
    # Uniform over 0..39 and 0..59: mean 19.5 and 29.5, standard error of it 0.47 and 0.71.
    np.testing.assert_allclose(np.mean(centers, 0), (19.5, 29.5), atol=2.5)
    assert np.min(centers, 0).tolist() == [0, 0]
    assert np.max(centers, 0).tolist() == [39, 59]


def test_cutout_noise_is_between_gray_and_white():
    image = np.zeros((50, 50, 3), np.float32)
    values = _map(lambda i, s: erase.cutout(i, s, 1.0, "noise"), 20, image)
    values = values[values > 0]
    assert values.min() >= 127.5
    assert values.max() <= 255
    assert abs(values.mean() - 191.25) < 1
    assert abs(values.std() - 127.5 / np.sqrt(12)) < 1
    whole = _map(lambda i, s: erase.cutout(i, s, 1.0, "noise"), 20, image.astype(np.uint8))
    assert np.abs(whole[whole > 0] - values).max() <= 0.5


def test_cutout_refuses_other_fills():
    with pytest.raises(ValueError, match="gray"):
        erase.cutout(IMAGE, _seed(0), 0.5, "grey")


def test_random_erasing_has_the_stated_shapes_places_and_rate():
    image = np.full((80, 100, 3), 300, np.float32)  # no noise is 300
    results = _map(lambda i, s: erase.random_erasing(i, s, 0.4), 1500, image)
    masks = (results != image).any(-1)
    rectangles = [(m, _rectangle(m)) for m in masks if m.any()]
    assert abs(len(rectangles) / 1500 - 0.4) < 0.04  # standard error 0.013
    shares, aspects, places = [], [], []
    for mask, (top, left, bottom, right) in rectangles:
        height, width = bottom - top, right - left
        assert mask.sum() == height * width
        shares.append(height * width / 8000)
        aspects.append(np.log(height / width))
        places.append((top / (80 - height), left / (100 - width)))
    assert 0.017 < min(shares) < 0.04
    assert 0.30 < max(shares) < 0.345
    assert abs(np.mean(shares) - 0.175) < 0.012
    assert abs(np.mean(aspects)) < 0.1
    assert np.log(0.27) < min(aspects) < np.log(0.4)
    assert np.log(2.5) < max(aspects) < np.log(3.7)
    np.testing.assert_allclose(np.mean(places, 0), 0.5, atol=0.05)
    noise = results[results < 300]
    assert set(np.unique(noise)) == set(range(256))
    assert abs(noise.mean() - 127.5) < 1


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_random_erasing_never_and_always(probability):
    results = _map(lambda i, s: erase.random_erasing(i, s, probability), 50)
    assert np.mean((results != IMAGE).any((1, 2, 3))) == probability


def test_same_seed_same_picture_eagerly_and_in_parallel():
    image = tf.constant(IMAGE)
    for function in (
        lambda i, s: erase.cutout(i, s, 0.4, "noise"),
        lambda i, s: erase.random_erasing(i, s, 0.7),
    ):
        eager = np.stack([function(image, _seed(n)) for n in range(20)])
        np.testing.assert_array_equal(_map(function, 20), eager)
        assert len({picture.tobytes() for picture in eager}) > 10
