"""Mixup and cutmix against NumPy's Beta distribution and sums by hand."""

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.data import mix

CLASSES = 10


def _seed(number=0):
    return tf.constant((11, number), tf.int64)


def _batch(count, size=16, dtype=np.float32):
    """Pictures of one value each, so that a mixed pixel tells what it is made of."""
    values = np.arange(count, dtype=dtype)
    images = np.broadcast_to(values[:, None, None, None], (count, size, size, 3)).copy()
    return tf.constant(images), tf.one_hot(np.arange(count) % CLASSES, CLASSES)


@pytest.mark.parametrize("alpha", [0.01, 0.067, 0.2, 0.5, 1.0, 4.0])
def test_beta_has_the_moments_and_quantiles_of_the_distribution(alpha):
    count = 40000
    drawn = mix.beta(alpha, count, _seed()).numpy()
    assert np.isfinite(drawn).all()
    assert ((drawn >= 0) & (drawn <= 1)).all()
    variance = 1 / (4 * (2 * alpha + 1))  # closed form, the mean is 1/2
    assert drawn.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / count))
    assert drawn.var() == pytest.approx(variance, rel=0.02)
    expected = np.random.default_rng(0).beta(alpha, alpha, count)
    points = np.linspace(0.02, 0.98, 49)
    ours = np.array([(drawn <= q).mean() for q in points])
    theirs = np.array([(expected <= q).mean() for q in points])
    assert np.abs(ours - theirs).max() < 0.0115  # Kolmogorov, 1 % of two samples of 40000


@pytest.mark.parametrize("count", [8, 7, 1])
def test_mixup_takes_the_reversed_batch_as_partners(count):
    images, targets = _batch(count)
    mixed, labels = mix.mix(images, targets, 0.4, 0.0, _seed(count))
    own = np.arange(count)
    partner = own[::-1]
    for index in range(count):
        pixels = np.unique(mixed[index])
        assert len(pixels) == 1
        if own[index] == partner[index]:
            assert pixels[0] == pytest.approx(own[index], abs=1e-5)
            continue
        share = (pixels[0] - own[index]) / (partner[index] - own[index])
        assert -1e-5 < share <= 0.5 + 1e-5  # the own picture is never the lesser one
        expected = np.zeros(CLASSES)
        expected[own[index] % CLASSES] += 1 - share
        expected[partner[index] % CLASSES] += share
        np.testing.assert_allclose(labels[index], expected, atol=1e-5)


def test_mixup_shares_are_the_lesser_part_of_a_beta_variate():
    images, targets = _batch(2, size=1)
    shares = []
    function = tf.function(lambda i: mix.mix(images, targets, 0.3, 0.0, tf.stack([i, i]))[1])
    for number in range(2000):
        shares += [
            row[1 - index] for index, row in enumerate(function(tf.constant(number, tf.int64)))
        ]
    expected = np.random.default_rng(0).beta(0.3, 0.3, 200000)
    expected = np.minimum(expected, 1 - expected)
    points = np.linspace(0.01, 0.45, 30)
    ours = np.array([(np.array(shares) <= q).mean() for q in points])
    theirs = np.array([(expected <= q).mean() for q in points])
    assert np.abs(ours - theirs).max() < 0.027  # Kolmogorov, 1 % of 4000 against 200000


@pytest.mark.parametrize("count", [8, 7])
def test_cutmix_pastes_one_rectangle_and_weighs_labels_by_its_area(count):
    size = 20
    images, targets = _batch(count, size)
    different = 0
    for number in range(20):
        mixed, labels = mix.mix(images, targets, 0.0, 1.0, _seed(number))
        for index in range(count):
            partner = count - 1 - index
            if partner == index:
                np.testing.assert_array_equal(mixed[index], images[index])
                continue
            pasted = mixed[index, ..., 0].numpy() == partner
            assert (mixed[index, ..., 0].numpy()[~pasted] == index).all()
            rows, columns = np.nonzero(pasted)
            if len(rows):
                rectangle = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                assert rectangle == len(rows)
            area = len(rows) / size**2
            different += 0 < area < 1
            np.testing.assert_allclose(labels[index, partner % CLASSES], area, atol=1e-6)
            np.testing.assert_allclose(labels[index, index % CLASSES], 1 - area, atol=1e-6)
    assert different > 10 * count


def test_bug_compat_weighs_all_cutmix_targets_by_the_mean_area():
    images, targets = _batch(8, 20)
    for mixup in (0.0, 0.5):
        rule, labels = mix.mix(images, targets, mixup, 1.0, _seed(3))
        compat, same = mix.mix(images, targets, mixup, 1.0, _seed(3), bug_compat=True)
        np.testing.assert_array_equal(rule, compat)  # the pictures are the same
        first = 4 if mixup else 0
        np.testing.assert_array_equal(labels[:first], same[:first])
        partners = np.arange(first, 8)[::-1]
        pasted = compat[first:, ..., 0].numpy() == partners[:, None, None]
        mean = pasted.mean()
        assert 0 < mean < 1
        for index, partner in zip(range(first, 8), partners, strict=True):
            np.testing.assert_allclose(same[index, partner % CLASSES], mean, atol=1e-6)
            np.testing.assert_allclose(same[index, index % CLASSES], 1 - mean, atol=1e-6)


def test_patches_have_the_rules_size_place_and_clipping():
    size, count = 32, 4000
    masks = mix.patches(0.8, count, size, size, _seed()).numpy()[..., 0]
    rng = np.random.default_rng(1)
    # The rule as the released code states it, drawn by NumPy.
    side = (np.sqrt(1 - rng.beta(0.8, 0.8, count)) * size).astype(int) // 2
    shares = []
    for y, x, half in zip(*rng.integers(0, size, (2, count)), side, strict=True):
        rows = min(y + half, size) - max(y - half, 0)
        columns = min(x + half, size) - max(x - half, 0)
        shares.append(rows * columns / size**2)
    areas = masks.mean((1, 2))
    points = np.linspace(0.05, 0.9, 20)
    ours = np.array([(areas <= q).mean() for q in points])
    theirs = np.array([(np.array(shares) <= q).mean() for q in points])
    assert np.abs(ours - theirs).max() < 0.037  # Kolmogorov, 1 % of two samples of 4000
    # Centres are uniform, so the mean mask is the same upside down and transposed.
    mean = masks.mean(0)
    np.testing.assert_allclose(mean, mean.T, atol=0.05)
    np.testing.assert_allclose(mean[1:], mean[1:][::-1], atol=0.06)


@pytest.mark.parametrize("count", [10, 9, 2])
def test_with_both_each_half_of_the_batch_gets_one_of_them(count):
    size, half = 12, count // 2
    images, targets = _batch(count, size)
    patched = 0
    for number in range(10):
        mixed, labels = mix.mix(images, targets, 0.5, 1.0, _seed(number))
        assert mixed.shape == images.shape
        np.testing.assert_allclose(tf.reduce_sum(labels, 1), 1, atol=1e-6)
        for index in range(half):
            assert np.ptp(mixed[index]) == 0
            share = labels[index, half - 1 - index] if half - 1 - index != index else 0
            expected = index + (half - 1 - 2 * index) * share
            np.testing.assert_allclose(mixed[index, 0, 0, 0], expected, atol=1e-4)
        for index in range(half, count):
            partner = half + count - 1 - index
            assert set(np.unique(mixed[index])) <= {index, partner}
            patched += len(np.unique(mixed[index])) == 2
    assert patched > 0 or count == 2


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.067, 0.0), (0.0, 0.067), (0.067, 0.067)])
def test_sums_and_ranges_stay_and_nothing_is_not_a_number(mixup, cutmix):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(0, 255, (9, 8, 8, 3)).astype(np.float32))
    targets = tf.one_hot(rng.integers(0, CLASSES, 9), CLASSES)
    for number in range(50):
        mixed, labels = mix.mix(images, targets, mixup, cutmix, _seed(number))
        assert np.isfinite(mixed).all()
        assert mixed.numpy().min() >= 0
        assert mixed.numpy().max() <= 255.0001
        np.testing.assert_allclose(tf.reduce_sum(labels, 1), 1, atol=1e-5)


def test_without_alphas_nothing_changes_and_seeds_decide():
    images, targets = _batch(6)
    same, labels = mix.mix(images, targets, 0.0, 0.0, _seed())
    assert same is images
    assert labels is targets
    first, again, other = (mix.mix(images, targets, 0.5, 0.5, _seed(n))[0] for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first.numpy() != other.numpy()).any()
