"""AutoAugment and RandAugment: what is drawn, how often, and that it is a function of the seed."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.data import augment, policies

RELEASED_V0 = (  # as printed in the released code's policy table
    "Equalize .8 1+ShearY .8 4 | Color .4 9+Equalize .6 3 | Color .4 1+Rotate .6 8 | "
    "Solarize .8 3+Equalize .4 7 | Solarize .4 2+Solarize .6 2 | Color .2 0+Equalize .8 8 | "
    "Equalize .4 8+SolarizeAdd .8 3 | ShearX .2 9+Rotate .6 8 | Color .6 1+Equalize 1.0 2 | "
    "Invert .4 9+Rotate .6 0 | Equalize 1.0 9+ShearY .6 3 | Color .4 7+Equalize .6 0 | "
    "Posterize .4 6+AutoContrast .4 7 | Solarize .6 8+Color .6 9 | Solarize .2 4+Rotate .8 9 | "
    "Rotate 1.0 7+TranslateY .8 9 | ShearX 0.0 0+Solarize .8 4 | ShearY .8 0+Color .6 4 | "
    "Color 1.0 0+Rotate .6 2 | Equalize .8 4+Equalize 0.0 8 | Equalize 1.0 4+AutoContrast .6 2 | "
    "ShearY .4 7+SolarizeAdd .6 7 | Posterize .8 2+Solarize .6 10 | "
    "Solarize .6 8+Equalize .6 1 | Color .8 6+Rotate .4 5"
)


def _picture(height=32, width=24):
    y, x = np.mgrid[:height, :width]
    waves = [120 + 90 * np.sin(y / 5 + c) * np.cos(x / 4 - c) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 9, (height, width, 3))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


PICTURE = _picture()


def _map(function, count, threads=2, image=PICTURE, dynamic=False):
    """Results for seeds (9, 0), (9, 1), ... (9, count - 1)."""
    dataset = tf.data.Dataset.range(count)
    if dynamic:
        signature = tf.TensorSpec((None, None, 3), tf.uint8)
        one = tf.data.Dataset.from_generator(lambda: [image], output_signature=signature)
        dataset = tf.data.Dataset.zip(dataset, one.repeat(count))
    else:
        image = tf.constant(image)
        dataset = dataset.map(lambda i: (i, image))

    def call(i, picture):
        return function(picture, tf.stack([tf.constant(9, tf.int64), i]))

    return np.stack(list(dataset.map(call, num_parallel_calls=threads).as_numpy_iterator()))


def test_policy_v0_is_the_published_table():
    rows = [[step.split() for step in row.split("+")] for row in RELEASED_V0.split(" | ")]
    expected = [[(name, float(p), float(level)) for name, p, level in row] for row in rows]
    assert len(expected) == 25
    assert [[tuple(step) for step in row] for row in policies.V0] == expected


@pytest.mark.parametrize("level", [0, 1, 2.5, 5, 9, 10, 15, 17, 28, 30])
def test_arguments_are_the_released_ones(level):
    enhance = level / 10 * 1.8 + 0.1
    expected = {
        "AutoContrast": 0, "Equalize": 0, "Invert": 0, "Rotate": 3 * level,
        "Posterize": np.floor(0.4 * level + 1e-9), "Solarize": np.floor(25.6 * level + 1e-9),
        "Color": enhance, "Contrast": enhance, "Brightness": enhance, "Sharpness": enhance,
        "ShearX": 0.03 * level, "ShearY": 0.03 * level, "TranslateX": 10 * level,
        "TranslateY": 10 * level, "Cutout": np.floor(4 * level + 1e-9),
        "SolarizeAdd": np.floor(11 * level + 1e-9),
    }  # fmt: skip
    assert tuple(expected) == policies.OPERATIONS
    for name, value in expected.items():
        ours = policies.argument(name, level, policies.RANDAUGMENT_SIZES)
        assert ours == pytest.approx(value, abs=1e-9), name
    wide = policies.AUTOAUGMENT_SIZES
    assert policies.argument("TranslateX", level, wide) == pytest.approx(25 * level)
    assert policies.argument("Cutout", level, wide) == np.floor(10 * level + 1e-9)


def test_arguments_of_an_unknown_operation_name_the_known_ones():
    with pytest.raises(ValueError, match=r"SolarizeAdd.*'Blur'"):
        policies.argument("Blur", 3, policies.RANDAUGMENT_SIZES)


def _outcomes(level, sizes):
    """Every picture that one layer can make but for Cutout: bytes to (name, sign)."""
    outcomes = {}
    for name in policies.OPERATIONS:
        if name == "Cutout":
            continue
        for sign in (1, -1) if name in policies.SIGNED else (1,):
            argument = sign * policies.argument(name, level, sizes)
            outcomes[augment.apply(name, PICTURE, argument).numpy().tobytes()] = (name, sign)
    return outcomes


def test_randaugment_draws_operations_and_signs_uniformly_and_always_applies_one():
    level, count = 6, 1600
    sizes = policies.Sizes(cutout=8, translate=9)
    outcomes = _outcomes(level, sizes)
    assert len(outcomes) == 15 + len(policies.SIGNED)  # all distinct, none the picture itself
    assert PICTURE.tobytes() not in outcomes
    results = _map(
        lambda i, s: augment.randaugment(i, s, num_layers=1, magnitude=level, sizes=sizes), count
    )
    drawn = collections.Counter(outcomes.get(r.tobytes(), ("Cutout", 1)) for r in results)
    for name in policies.OPERATIONS:
        number = drawn[name, 1] + drawn[name, -1]
        assert abs(number - 100) < 40, (name, number)  # standard deviation 9.7
        if name in policies.SIGNED:
            assert abs(drawn[name, 1] - number / 2) < 20, name  # standard deviation 5
    for result in results:
        if result.tobytes() not in outcomes:
            changed = (result != PICTURE).any(-1)
            assert (result[changed] == 128).all()
            assert changed.sum() <= 8 * 8  # half a side of int(0.6 * 8) = 4 pixels


def test_layers_are_drawn_independently_and_applied_in_turn():
    sizes = policies.Sizes(cutout=0, translate=9)  # Cutout does nothing
    results = _map(
        lambda i, s: augment.randaugment(i, s, num_layers=2, magnitude=6, sizes=sizes), 600
    )
    inverted_twice = np.mean([np.array_equal(r, PICTURE) for r in results])
    # Invert + Invert, Cutout + Cutout, and pairs of the same that cancel out by chance.
    assert 2 / 256 * 0.3 < inverted_twice < 2 / 256 * 3
    firsts, seconds = collections.Counter(), collections.Counter()
    single = _outcomes(6, sizes)
    for result in results:
        first = single.get(result.tobytes())  # the other layer was Cutout
        inverse = single.get((255 - result).tobytes())  # the second one was Invert
        firsts[first] += first is not None
        seconds[inverse] += inverse is not None
    assert len(firsts) > 10
    assert len(seconds) > 10


def test_autoaugment_draws_rows_uniformly_and_applies_steps_with_their_probabilities():
    policy = (
        (policies.Step("Invert", 0.3, 0), policies.Step("Posterize", 1.0, 5)),
        (policies.Step("Solarize", 0.0, 0), policies.Step("Brightness", 0.8, 2)),
    )
    bright = augment.apply("Brightness", PICTURE, 0.46).numpy()
    expected = {
        (PICTURE & 0xC0).tobytes(): 0.35,
        ((255 - PICTURE) & 0xC0).tobytes(): 0.15,
        PICTURE.tobytes(): 0.1,
        bright.tobytes(): 0.4,
    }
    results = _map(lambda i, s: augment.autoaugment(i, s, policy=policy), 2000)
    drawn = collections.Counter(r.tobytes() for r in results)
    assert set(drawn) == set(expected)
    for key, share in expected.items():
        assert abs(drawn[key] / 2000 - share) < 0.04  # standard deviation at most 0.011


def test_autoaugment_v0_reaches_every_row():
    reached = set()
    for row, steps in enumerate(policies.V0):
        image = PICTURE
        for step in steps:
            argument = policies.argument(step.operation, step.level, policies.AUTOAUGMENT_SIZES)
            if step.probability:
                image = augment.apply(step.operation, image, argument).numpy()
        reached.add((row, image.tobytes()))
    results = {r.tobytes() for r in _map(augment.autoaugment, 3000)}
    found = {row for row, outcome in reached if outcome in results}
    assert found == set(range(25))


RUNS = {
    "randaugment": lambda i, s: augment.randaugment(i, s, num_layers=2, magnitude=15),
    "released": lambda i, s: augment.randaugment(i, s, magnitude=9, bug_compat=True),
    "autoaugment": augment.autoaugment,
}


@pytest.mark.parametrize("name", RUNS)
def test_same_seed_same_picture_however_it_is_run(name):
    function, count = RUNS[name], 80
    eager = np.stack([function(PICTURE, tf.constant([9, i], tf.int64)) for i in range(count)])
    assert len({picture.tobytes() for picture in eager}) > count / 4
    np.testing.assert_array_equal(_map(function, count, threads=1), eager)
    np.testing.assert_array_equal(_map(function, count, threads=8), eager)
    np.testing.assert_array_equal(_map(function, count, dynamic=True), eager)
    graph = tf.function(function, input_signature=[
        tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((2,), tf.int64)
    ])  # fmt: skip
    for i in range(20):
        np.testing.assert_array_equal(graph(PICTURE, tf.constant([9, i], tf.int64)), eager[i])


def test_both_modes_differ_where_the_released_code_is_wrong_and_only_there():
    differing = {"AutoContrast", "Posterize", "Solarize", "Color", "Contrast", "Sharpness"}
    image = _picture(64, 64)
    for name in policies.OPERATIONS:
        argument = policies.argument(name, 25, policies.RANDAUGMENT_SIZES)
        mended = augment.apply(name, image, argument).numpy().astype(int)
        released = augment.apply(name, image, argument, bug_compat=True).numpy()
        if name in ("Posterize", "Solarize", "Contrast"):
            assert np.mean(np.abs(mended - released)) > 10, name
        elif name not in differing:
            np.testing.assert_array_equal(mended, released)


def test_other_pictures_are_refused():
    for wrong in (PICTURE.astype(np.float32), PICTURE[None]):
        with pytest.raises(ValueError, match="one picture, uint8"):
            augment.randaugment(wrong, tf.constant([1, 2], tf.int64))


def test_static_shape_is_kept():
    dataset = tf.data.Dataset.from_tensors(PICTURE).map(
        lambda i: augment.randaugment(i, tf.constant([1, 2], tf.int64))
    )
    assert dataset.element_spec == tf.TensorSpec((32, 24, 3), tf.uint8)
