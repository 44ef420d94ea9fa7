"""Learning rates against the papers' values and closed forms."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config import TrainConfig
from efficientnet_tf.train.schedule import WarmupSchedule


def _schedule(epochs=350, steps_per_epoch=100, **settings):
    config = TrainConfig(epochs=350, **settings)
    return WarmupSchedule(config, 0.256, steps_per_epoch, epochs)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.0), (2.5, 0.128), (5, 0.24087), (10, 0.22664), (100, 0.07343), (349.99, 0.00309)],
)
def test_exponential_has_the_papers_values(epoch, expected):
    # 0.256 * 0.97 ** floor(epoch / 2.4), the stairs counted from step 0, a ramp of 5 epochs.
    schedule = _schedule(schedule="exponential", warmup_epochs=5, decay_epochs=2.4, decay_rate=0.97)
    assert float(schedule(round(epoch * 100))) == pytest.approx(expected, rel=2e-3, abs=1e-9)


def test_exponential_equals_tensorflow_1s_at_every_step():
    schedule = _schedule(schedule="exponential", decay_epochs=2.4, decay_rate=0.97)
    steps = np.arange(0, 35000, 7)
    expected = [
        tf.compat.v1.train.exponential_decay(0.256, tf.constant(int(step)), 240, 0.97, True)()
        for step in steps[::100]
    ]
    np.testing.assert_allclose(schedule(steps)[::100], np.array(expected), rtol=1e-5)
    np.testing.assert_allclose(schedule(steps), 0.256 * 0.97 ** (steps // 240), rtol=2e-5)


STEPS = np.array([0, 1, 123, 499, 500, 501, 20000, 34999, 35000, 36000])


def _ramp(decayed):
    return np.where(STEPS < 500, 0.256 * STEPS / 500, decayed)


def test_cosine_is_a_half_wave_over_the_whole_run():
    done = np.minimum(STEPS / 35000, 1)
    expected = _ramp(0.256 * 0.5 * (1 + np.cos(np.pi * done)))
    found = _schedule(schedule="cosine", warmup_epochs=5)(STEPS)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert float(found[4]) < 0.256  # it does not wait for the warm-up


def test_cosine_without_warmup_equals_keras():
    found = _schedule(schedule="cosine")(STEPS)
    reference = keras.optimizers.schedules.CosineDecay(0.256, 35000)
    np.testing.assert_allclose(found, [float(reference(int(s))) for s in STEPS], atol=1e-7)


def test_linear_goes_to_zero_over_the_whole_run():
    expected = _ramp(0.256 * (1 - np.minimum(STEPS / 35000, 1)))
    found = _schedule(schedule="linear", warmup_epochs=5)(STEPS)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_polynomial_equals_tensorflow_1s_after_the_warmup():
    # V1 `utils.py`: polynomial_decay(peak, max(1, step - warmup), total - warmup + 1, end, 2).
    found = _schedule(schedule="polynomial", warmup_epochs=5, min_learning_rate=0.1)(STEPS)
    decayed = [
        tf.compat.v1.train.polynomial_decay(0.256, max(1, int(s) - 500), 34501, 0.1, 2.0)()
        for s in STEPS
    ]
    np.testing.assert_allclose(found, _ramp(np.array(decayed)), atol=1e-7)
    assert float(found[-1]) == pytest.approx(0.1, abs=1e-6)
    assert float(found[5]) == pytest.approx(0.256, rel=1e-3)  # no jump


def test_constant_starts_at_the_peak_without_warmup():
    np.testing.assert_allclose(_schedule(schedule="constant")(STEPS), np.full(10, 0.256), rtol=1e-7)
    found = _schedule(schedule="constant", warmup_epochs=5)(STEPS)
    np.testing.assert_allclose(found, _ramp(0.256), rtol=1e-6)


@pytest.mark.parametrize("name", ["exponential", "cosine", "linear"])
def test_floor_holds_after_the_warmup_only(name):
    free = _schedule(schedule=name, warmup_epochs=5)(STEPS).numpy()
    found = _schedule(schedule=name, warmup_epochs=5, min_learning_rate=0.1)(STEPS)
    expected = np.where(STEPS < 500, free, np.maximum(free, 0.1))
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert free.min() < 0.1 < free.max()
    assert float(found[1]) < 0.1


def test_decay_spans_the_epochs_that_the_run_has():
    # As many steps as `min_steps` asks for, not as `epochs` has.
    schedule = _schedule(epochs=700, schedule="cosine")
    assert float(schedule(35000)) == pytest.approx(0.128, rel=1e-5)
    assert float(schedule(70000)) == pytest.approx(0, abs=1e-7)


def test_warmup_of_part_of_a_step_is_cut():
    # int(warmup_epochs * steps_per_epoch) as in the released code: 2 of 2.5 steps.
    schedule = _schedule(steps_per_epoch=5, schedule="constant", warmup_epochs=0.5)
    np.testing.assert_allclose(schedule(np.arange(4)), [0, 0.128, 0.256, 0.256], rtol=1e-6)


def test_steps_of_any_kind_are_taken_in_graphs():
    schedule = _schedule(schedule="cosine", warmup_epochs=5)
    count = keras.Variable(250, dtype="int64", trainable=False)
    assert float(tf.function(lambda: schedule(count))()) == pytest.approx(0.128)
    found = schedule(tf.constant([[250, 500, 1000], [0, 0, 0]], tf.int64))
    assert found.shape == (2, 3)
    assert float(found[0, 0]) == pytest.approx(0.128)


def test_floor_above_the_peak_is_an_error():
    with pytest.raises(ValueError, match=r"data.batch_size / 256. Received: .*=0.3, .* 0.256"):
        _schedule(schedule="cosine", min_learning_rate=0.3)
