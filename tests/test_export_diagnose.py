"""Remedies: the diagnosis names what is wrong, and the cheapest that passes the gate is taken."""

import keras
import numpy as np
import pytest
import tiny_digits
from ai_edge_litert.interpreter import Interpreter

from efficientnet_tf.export import diagnose, graph, qat, quantize, tflite

WIDE = "block1a_project_conv"


@pytest.fixture(scope="module")
def wide():
    """A trained net with swish and squeeze-excite, one of whose channels is 300 times as large."""
    parts = graph.parts(tiny_digits.trained("silu", True))
    tiny_digits.widen(parts.model, WIDE, "block2a_expand_conv", [0], 300)
    return parts


def _calibration():
    return [tiny_digits.digits()[0][:200]]


def _training():
    pictures = tiny_digits.digits()[0]
    return [pictures[i : i + 32] for i in range(0, tiny_digits.TRAINING, 32)]


def test_fine_tuning_saves_a_net_that_ranges_cannot_save(wide, tmp_path):
    """The gate measures real int8 files; the widened net has the float answers it always had."""
    pictures = tiny_digits.digits()[0][-400:]
    before = tiny_digits.trained("silu", True).predict(pictures, verbose=0)
    expected = wide.model.predict(pictures, verbose=0)["probabilities"]
    np.testing.assert_allclose(expected, before, atol=1e-3)
    agreements = []

    def gate(candidate):
        path = tmp_path / f"{len(agreements)}.tflite"
        simulated = any(isinstance(x, quantize.FakeQuant) for x in candidate.model.layers)
        given = None if simulated else _calibration
        tflite.write(candidate, path, kind="int8", io="float32", calibration=given)
        run = Interpreter(str(path)).get_signature_runner("serving_default")
        answers = run(images=pictures)["probabilities"]
        agreements.append(float((answers.argmax(-1) == expected.argmax(-1)).mean()))
        return None if agreements[-1] >= 0.9 else f"agreement {agreements[-1]:.1%}"

    def tune(parts, ranges):
        feed = qat.from_pictures(_training)
        settings = {"steps": 40, "epochs": 2, "learning_rate": 2e-3}
        return qat.fine_tune(parts, ranges, feed, tmp_path / "qat", **settings)

    choice = diagnose.choose(wide, _calibration, gate, tune=tune, percentiles=(97,))
    assert choice.remedy == "qat"
    assert list(choice.refused) == ["plain", "percentile"]
    assert max(agreements[:2]) < 0.8
    assert agreements[2] >= 0.9


def test_the_percentile_is_the_one_that_keeps_more_classes(wide):
    """Of clipping the wide channel, or all channels to almost nothing."""
    pictures = _calibration()
    for percentiles in ((55, 97), (97, 55)):
        found = diagnose.best_ranges(wide, pictures, percentiles)
        assert found == quantize.ranges(wide.model, pictures, percentile=97)


def test_the_diagnosis_names_the_wide_layer_and_the_remedy(wide):
    pictures = tiny_digits.digits()[0][:100]
    found = diagnose.diagnose(wide, [pictures])
    rows = {row.layer: row for row in found.rows}
    assert list(rows) == list(quantize.ranges(wide.model, [pictures]))
    assert found.count == 100
    assert found.worst is rows[WIDE]
    assert found.worst.agreement_cost > 0.2
    assert max(row.agreement_cost for row in found.rows if row.layer != WIDE) < 0.05
    assert max(found.plain, found.percentile) < 0.8
    assert found.remedy == "qat"
    assert found.text(3).splitlines()[1].startswith(WIDE)
    assert len(found.text().splitlines()) == len(rows) + 5
    assert f"Worst: {WIDE}" in found.advice()
    assert "quantisation-aware fine-tuning" in found.advice()
    # The numbers of one row, written out.
    layer = wide.model.get_layer(WIDE)
    values = keras.Model(wide.model.inputs, layer.output).predict(pictures, verbose=0)
    extremes = values.min(), values.max()
    assert (rows[WIDE].low, rows[WIDE].high) == pytest.approx(extremes, rel=1e-4)
    step = np.ptp(values) / 255
    rounding = np.rint(values / step) * step - values
    ratio = np.square(values, dtype=np.float64).sum() / np.square(rounding, dtype=np.float64).sum()
    assert rows[WIDE].error == pytest.approx(10 * np.log10(ratio), abs=0.5)


def test_the_diagnosis_lets_a_healthy_net_be():
    parts = graph.parts(tiny_digits.trained("silu", True))
    before = parts.model.get_weights()
    found = diagnose.diagnose(parts, [tiny_digits.digits()[0][:100]])
    assert found.remedy == "plain"
    assert found.plain >= 0.97
    assert "Take plain int8" in found.advice()
    for one, other in zip(before, parts.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    # Rounding is switched off again, and the kernels are those of before.
    trial = diagnose._Trial(parts, quantize.ranges(parts.model, _calibration()))
    images = tiny_digits.digits()[0][:8]
    expected = parts.model.predict(images, verbose=0)["logits"]
    assert np.abs(trial.logits([images], trial.names) - expected).max() > 1e-3
    np.testing.assert_allclose(trial.logits([images], ()), expected, rtol=1e-4, atol=1e-4)


def test_the_first_remedy_that_passes_is_taken_and_failing_says_why():
    images = keras.Input((8, 8, 3), name="images")
    x = keras.layers.GlobalAveragePooling2D(name="mean")(images)
    parts = graph.parts(keras.Model(images, keras.layers.Dense(4, name="head")(x)))
    noise = np.random.default_rng(0).uniform(0, 255, (20, 8, 8, 3)).astype(np.float32)

    def pictures():
        return [noise]

    choice = diagnose.choose(parts, pictures, lambda candidate: None)
    assert (choice.remedy, choice.parts, dict(choice.refused)) == ("plain", parts, {})
    reasons = iter(["too far off", None])
    choice = diagnose.choose(parts, pictures, lambda candidate: next(reasons))
    assert (choice.remedy, choice.refused) == ("percentile", {"plain": "too far off"})
    assert any(isinstance(layer, quantize.FakeQuant) for layer in choice.parts.model.layers)
    nothing = r"plain: bad(.|\n)*qat: there are no pictures(.|\n)*Dynamic range"
    with pytest.raises(diagnose.NoRemedyError, match=nothing):
        diagnose.choose(parts, pictures, lambda candidate: "bad")
    with pytest.raises(ValueError, match=r"remedies must be some of .*\('float16',\)"):
        diagnose.choose(parts, pictures, lambda candidate: None, remedies=("float16",))
