"""The released RandAugment that ours is measured against: that it does the same work."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.data import augment, policies

# They may look half-way between two pixels, to within the single precision of TensorFlow's kernel.
HALF_WAY = ("Rotate", "ShearX", "ShearY")


@pytest.fixture(scope="module")
def released(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "scripts")
        import benchmark_released

        yield benchmark_released


@pytest.fixture(scope="module")
def picture():
    """Uint8 (176, 160, 3): waves and noise, with a narrow range in one channel."""
    y, x = np.mgrid[:176, :160]
    waves = np.stack([128 + 100 * np.sin(y / 9 + c) * np.cos(x / 7 - c) for c in range(3)], -1)
    waves += np.random.default_rng(0).normal(0, 8, waves.shape)
    waves[..., 2] = 90 + waves[..., 2] / 8
    return np.clip(waves, 0, 255).astype(np.uint8)


def _ours(name, picture, argument, center=(0.5, 0.5)):
    return augment.apply(name, picture, argument, center, bug_compat=True).numpy()


@pytest.mark.parametrize("magnitude", [15, 28])
@pytest.mark.parametrize("name", [n for n in policies.OPERATIONS if n != "Cutout"])
def test_each_operation_gives_what_bug_compat_gives(released, picture, name, magnitude):
    argument = policies.argument(name, magnitude, policies.RANDAUGMENT_SIZES)
    for signed in (argument, -argument) if name in policies.SIGNED else (argument,):
        theirs = tf.function(released.OPERATIONS[name])(tf.constant(picture), signed).numpy()
        assert theirs.dtype == np.uint8
        differing = np.mean(theirs != _ours(name, picture, signed))
        assert differing <= (0.01 if name in HALF_WAY else 0)
        assert np.any(theirs != picture)


def test_a_flat_channel_stays(released):
    flat = np.full((9, 7, 3), (13, 128, 250), np.uint8)
    for name in ("AutoContrast", "Equalize"):
        np.testing.assert_array_equal(released.OPERATIONS[name](tf.constant(flat), 0), flat)


def test_cutout_gives_what_bug_compat_gives_about_the_same_pixel(released, picture):
    tf.random.set_seed(3)
    bright = tf.constant(picture | 1)  # no value is gray's, 128
    half, centers = 20, []
    for _ in range(20):
        theirs = released.OPERATIONS["Cutout"](bright, half).numpy()
        blank = (theirs == 128).all(2)
        center = []
        for lines in (np.flatnonzero(blank.any(1)), np.flatnonzero(blank.any(0))):
            first, last = lines[0], lines[-1]
            center.append(last + 1 - half if first == 0 else first + half)
        shares = [(c + 0.5) / size for c, size in zip(center, blank.shape, strict=True)]
        np.testing.assert_array_equal(theirs, _ours("Cutout", bright, half, shares))
        centers.append(center)
    assert np.all(np.std(centers, 0) > 20)  # uniform over 176 and 160 pixels: 51 and 46


def _each(released, picture):
    """What one layer at magnitude 15 can make of a picture; Cutout, of a random place, left out."""
    for name in policies.OPERATIONS:
        argument = policies.argument(name, 15, policies.RANDAUGMENT_SIZES)
        for signed in (argument, -argument) if name in policies.SIGNED else (argument,):
            if name != "Cutout":
                yield name, released.OPERATIONS[name](picture, signed)


def _drawn(released, picture, num_layers, count):
    tf.random.set_seed(1)
    made = tf.data.Dataset.range(count).map(lambda _: released.randaugment(picture, num_layers, 15))
    return [image.tobytes() for image in made.as_numpy_iterator()]


def test_operations_and_signs_are_drawn_uniformly_and_one_is_always_applied(released, picture):
    picture = tf.constant(picture)
    names = {image.numpy().tobytes(): name for name, image in _each(released, picture)}
    assert len(names) == 20  # 15 operations, 5 of them with two signs
    drawn = _drawn(released, picture, 1, 640)
    assert set(names) <= set(drawn)
    counts = collections.Counter(names.get(image, "Cutout") for image in drawn)
    assert picture.numpy().tobytes() not in drawn
    for name in policies.OPERATIONS:
        assert 18 < counts[name] < 62, name  # 40 expected; 3.5 standard deviations


def test_layers_are_applied_one_after_the_other(released, picture):
    picture = tf.constant(picture)
    known = {
        second.numpy().tobytes()
        for _, first in _each(released, picture)
        for _, second in _each(released, first)
    }
    drawn = _drawn(released, picture, 2, 100)
    # Neither is Cutout: 0.88 expected.
    assert sum(image in known for image in drawn) > 75
