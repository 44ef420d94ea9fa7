"""The gate: what is wrong is found, in a process of its own, and never put in place."""

import dataclasses
import json
import os

import numpy as np
import pytest
from exporting import NAMES, ORIGIN, RULE, classifier, images, network, pictures, prepared
from PIL import Image

from efficientnet_tf.config import DataConfig
from efficientnet_tf.export import artifacts, int8, qat, runtimes, saved_model, tflite, verify
from efficientnet_tf.export import pictures as pictures_lib
from efficientnet_tf.export.formats import BFLOAT16, FORMATS, Options
from efficientnet_tf.export.pictures import Batch
from efficientnet_tf.export.verify import GateError, Limits


@pytest.fixture(scope="module")
def model():
    return network()


def _export(model, folder, formats, **options):
    return artifacts.export(
        classifier(model),
        folder,
        formats,
        pictures(),
        origin=ORIGIN,
        options=Options(**options),
    )


# ---- the numbers


def _answers(logits):
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return {"probabilities": powers / powers.sum(-1, keepdims=True), "logits": logits}


def _compare(got, want, limits=verify.EXACT, labels=None):
    count = len(want["logits"])
    batch = Batch(tuple("abcdefgh"[:count]), np.zeros((count, 2, 2, 3)), labels)
    return verify.compare("file", lambda _: got, lambda _: want, [batch], limits)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails_whatever_the_limits(value):
    want = _answers(np.eye(4) * 9)
    for key in want:
        got = {name: array.copy() for name, array in want.items()}
        got[key][2, 1] = value
        report = _compare(got, want, Limits())
        assert report.failure == f"file: {key} holds values that are not finite."
    nothing = {name: np.full_like(array, value) for name, array in want.items()}
    assert "the model's own" in _compare(want, nothing).failure


def test_other_shapes_and_missing_probabilities_fail():
    want = _answers(np.eye(4) * 9)
    assert (
        "has shape (4, 3), the model's (4, 4)"
        in _compare({"probabilities": want["probabilities"][:, :3]}, want, Limits()).failure
    )
    assert (
        "gives no probabilities, but logits"
        in _compare({"logits": want["logits"]}, want, Limits()).failure
    )


def test_differences_count_in_units_of_the_spread():
    logits = np.array([[0.0, 50.0], [10.0, 30.0]])
    want = _answers(logits)
    for shift, fails in ((0.004, False), (0.006, True)):
        got = {**want, "logits": logits + np.array([[0, shift], [0, 0]])}
        report = _compare(got, want)
        assert report.difference == pytest.approx(shift / 50)
        assert report.error == pytest.approx(shift / 50 / 2)  # of one picture in two
        assert bool(report.failure) == fails
    assert "differ by up to 0.00012 of their spread (allowed: 0.0001)" in report.failure
    # Without logits, probabilities count.
    got = {"probabilities": want["probabilities"] + np.array([[0.01, 0], [0, 0]])}
    assert _compare(got, want).compared == "probabilities"
    assert _compare(got, want).difference == pytest.approx(0.01 / np.ptp(want["probabilities"]))


def test_quantised_files_pass_by_agreement_and_mean_error():
    want = _answers(np.eye(4) * 8)
    logits = np.eye(4) * 8
    logits[3, 2] = 9.0  # one of four pictures changes its class
    got = _answers(logits)
    labels = np.array([0, 1, 0, 2])
    report = _compare(got, want, Limits(min_agreement=0.75, max_error=0.3), labels)
    assert report.failure is None
    assert report.agreement == 0.75
    assert report.error == pytest.approx(9 / 8 / 4)
    assert (report.accuracy, report.model_accuracy) == (0.75, 0.5)
    assert [(row.name, row.model, row.artefact) for row in report.rows][2:] == [
        ("c", 2, 2),
        ("d", 3, 2),
    ]
    failure = _compare(got, want, Limits(min_agreement=0.8, max_error=0.2)).failure
    assert "75.0% of them (at least 80.0%)" in failure
    assert "0.28 of their spread on average (allowed: 0.2)" in failure


def test_comparing_on_nothing_proves_nothing():
    with pytest.raises(ValueError, match=r"no pictures"):
        verify.compare("file", dict, dict, [])


def test_limits_can_be_set_and_are_checked():
    options = Options(tolerance=1e-3, min_agreement=0.5, max_error=0.5, precision="bfloat16")
    assert options.limits(FORMATS["tflite"]) == Limits(tolerance=1e-3)
    assert options.limits(FORMATS["tflite-int8"]) == Limits(min_agreement=0.5, max_error=0.5)
    assert options.limits(FORMATS["saved_model"]) == Limits(min_agreement=0.5, max_error=0.5)
    assert Options(precision="bfloat16").limits(FORMATS["saved_model"]) == BFLOAT16
    for wrong in ({"tolerance": -1.0}, {"min_agreement": 1.1}, {"max_error": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)


# ---- files that are wrong


def _refused(model, folder, formats, match, **options):
    """Exports, which fails; returns the report that is kept."""
    with pytest.raises(GateError, match=match):
        _export(model, folder, formats, **options)
    (kept,) = folder.iterdir()
    assert kept.name.startswith("failed-")
    return json.loads(kept.read_text())


def test_a_poisoned_saved_model_fails_and_nothing_is_put_in_place(model, tmp_path, monkeypatch):
    write = saved_model.write

    def poisoned(parts, path, **options):
        write(dataclasses.replace(parts, model=_poisoned(parts.model)), path, **options)

    monkeypatch.setattr(saved_model, "write", poisoned)
    entries = _refused(
        model,
        tmp_path,
        ("tflite", "saved_model"),
        r"^saved_model does not give the model's answers",
    )
    # The other one passed, and is not put in place either.
    assert [(entry["name"], entry["failure"] is None) for entry in entries] == [
        ("model.tflite", True),
        ("saved_model", False),
    ]
    assert len(entries[1]["rows"]) == 19
    assert entries[1]["difference"] > 1e-4


def _poisoned(model):
    """A copy with one number changed by a per cent."""
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kernel = copy.get_layer("predictions").kernel
    value = kernel.numpy()
    value.flat[np.abs(value).argmax()] *= 1.01
    kernel.assign(value)
    return copy


def test_a_poisoned_tflite_file_fails(model, tmp_path, monkeypatch):
    write = tflite.write

    def poisoned(parts, path, **options):
        write(parts, path, **options)
        content = path.read_bytes()
        # The classifier's bias is in the file as it is in the model.
        bias = model.get_layer("predictions").bias.numpy()
        assert content.count(bias.tobytes()) == 1
        other = bias + np.float32([0.05, 0, 0, 0, 0])
        path.write_bytes(content.replace(bias.tobytes(), other.tobytes()))

    monkeypatch.setattr(tflite, "write", poisoned)
    _refused(model, tmp_path, ("tflite",), r"^model\.tflite does not give the model's answers")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        # Served pictures are squashed, which the weights never saw.
        ({"rule": dataclasses.replace(RULE, crop="squash")}, r"its signature '\w+' differs by"),
        ({"class_names": NAMES[::-1]}, r"'serving_default' gives names that are not those"),
    ],
)
def test_a_graph_that_prepares_pictures_otherwise_fails(
    model, tmp_path, monkeypatch, change, match
):
    write = saved_model.write
    monkeypatch.setattr(
        saved_model,
        "write",
        lambda parts, path, **options: write(parts, path, **{**options, **change}),
    )
    _refused(model, tmp_path, ("saved_model",), match)


def test_a_file_that_its_runtime_cannot_load_or_run_fails(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "write", lambda parts, path, **_: path.write_bytes(b"TFL3" * 99))
    (entry,) = _refused(model, tmp_path, ("tflite",), r"^model\.tflite: ")
    assert entry["count"] == 0


def test_int8_takes_the_remedy_asked_for_and_names_others(model, tmp_path):
    calibration = pictures(count=24)
    options = {"calibration": calibration, "int8_input": "float32"}
    with pytest.raises(
        GateError, match=r"(?s)No int8 file is good enough.*plain: .*\(allowed: 0\)"
    ):
        _export(model, tmp_path, ("tflite-int8",), max_error=0.0, **options)
    (kept,) = tmp_path.iterdir()
    kept.unlink()
    # Three of the other formats beside it.
    formats = ("tflite-float16", "tflite-dynamic", "tflite-int8")
    reports = _export(model, tmp_path, formats, remedy="percentile", **options)
    assert [report.name for report in reports] == [
        "model-float16.tflite",
        "model-dynamic.tflite",
        "model-int8.tflite",
    ]
    content = json.loads((tmp_path / "model-int8.tflite.manifest.json").read_text())
    assert content["options"]["remedy"] == "percentile"
    assert content["options"]["input"] == "float32"
    assert content["gate"]["limits"] == {"tolerance": None, "min_agreement": 0.9, "max_error": 0.1}
    assert 0 < content["gate"]["error"] < 0.1
    images = prepared(5)
    found = runtimes.answer("tflite", tmp_path / "model-int8.tflite", images)["probabilities"]
    difference = np.abs(found - model(images).numpy()).max()
    assert 1e-4 < difference < 0.3  # it is quantised


def test_what_a_killed_training_left_is_gone_on_with_or_removed_but_by_int8_alone(
    model, tmp_path, caplog
):
    state = tmp_path / int8.STATE / qat.STATE
    state.parent.mkdir()
    state.write_bytes(b"of another network")
    _export(model, tmp_path, ("tflite",))
    assert state.read_bytes() == b"of another network"
    options = {"calibration": pictures(count=24), "min_agreement": 0.0, "max_error": 9.0}
    _export(model, tmp_path, ("tflite-int8",), remedy="qat", **options)
    assert "is left by an export that was killed" in caplog.text
    assert not state.parent.exists()
    content = json.loads((tmp_path / "model-int8.tflite.manifest.json").read_text())
    assert content["options"]["remedy"] == "qat"


def test_formats_of_other_runtimes_pass(model, tmp_path):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    reports = _export(model, tmp_path, ("onnx", "openvino"))
    assert [report.compared for report in reports] == ["logits", "logits"]
    assert (tmp_path / "openvino" / "manifest.json").is_file()
    for kind, path in (("onnx", "model.onnx"), ("openvino", "openvino")):
        found = runtimes.answer(kind, tmp_path / path, prepared(3))["probabilities"]
        np.testing.assert_allclose(found, model(prepared(3)), atol=1e-5)


# ---- processes


def test_a_runtime_that_hangs_or_dies_is_told_and_ended(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"no model")
    with (
        pytest.raises(runtimes.RuntimeFailure, match=r"^model\.tflite: "),
        runtimes.start("tflite", path),
    ):
        pass
    fake = tmp_path / "fake" / "ai_edge_litert"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    (fake / "interpreter.py").write_text("import os\nos.write(2, b'broken kernel\\n')\nos._exit(9)")
    with (
        pytest.raises(runtimes.RuntimeFailure, match=r"exit code 9\): .*broken kernel"),
        runtimes.start("tflite", path),
    ):
        pass
    (fake / "interpreter.py").write_text("import time\ntime.sleep(600)")
    with (
        pytest.raises(runtimes.RuntimeFailure, match=r"no answer in 1 s"),
        runtimes.start("tflite", path, timeout=1),
    ):
        pass


# ---- pictures


def _save(folder, count, names=("ant", "bee")):
    for i, image in enumerate(images(count)):
        place = folder / names[i % len(names)] if names else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.png")


def test_pictures_of_a_folder_come_from_all_over_it_with_the_models_labels(tmp_path):
    _save(tmp_path, 40)
    labels = classifier(None).labels[::-1]
    found = list(pictures_lib.named(DataConfig(f"folder:{tmp_path}"), "train", labels, 6).read())
    assert len(found) == 6
    assert [picture.label for picture in found] == [4] * 3 + [3] * 3  # ant and bee, from behind
    whole = list(pictures_lib.named(DataConfig(f"folder:{tmp_path}"), "train", labels, 999).read())
    assert len(whole) == 32  # two of each class are for the test split, two for validation
    half = DataConfig(f"folder:{tmp_path}", holdout=0.4)
    assert pictures_lib.named(half, "test", labels, 999).count() == 16
    names = [picture.name for picture in found]
    assert names[0].startswith(f"ant{os.sep}")
    stored = np.asarray(Image.open(tmp_path / names[0]))
    np.testing.assert_array_equal(found[0].image, stored)


def test_classes_that_are_not_the_models_are_not_counted(tmp_path):
    _save(tmp_path, 40, names=("cat", "yak"))
    found = pictures_lib.named(DataConfig(f"folder:{tmp_path}"), "test", classifier(None).labels, 9)
    assert {picture.label for picture in found.read()} == {None}


def test_a_folder_of_pictures_needs_no_classes(tmp_path):
    _save(tmp_path, 12, names=())
    (tmp_path / "005.png").write_bytes(b"cut off")
    labels = classifier(None).labels
    found = pictures_lib.named(DataConfig(f"folder:{tmp_path}", max_bad=0.1), "test", labels, 99)
    assert found.count() == 11
    assert {picture.label for picture in found.read()} == {None}
    strict = pictures_lib.named(DataConfig(f"folder:{tmp_path}"), "test", labels, 99)
    with pytest.raises(ValueError, match=r"1 of 12 pictures cannot be read: .*005\.png"):
        strict.count()


def test_calibration_pictures_that_are_few_or_corrupt_stop_the_export(model, tmp_path):
    _save(tmp_path / "few", 19, names=())
    _save(tmp_path / "bad", 40)
    (tmp_path / "bad" / "bee" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    labels = classifier(None).labels
    for name, match in (("few", "19 pictures are too few, give at least 20"), ("bad", "003.png")):
        calibration = pictures_lib.named(
            DataConfig(f"folder:{tmp_path / name}"), "train", labels, 99
        )
        with pytest.raises(ValueError, match=match):
            _export(model, tmp_path / "to", ("tflite-int8",), calibration=calibration)
    assert not (tmp_path / "to").exists()


def test_sample_pictures_are_real_ones_without_labels():
    found = list(pictures_lib.samples().read())
    assert len(found) == 64
    assert len({picture.name for picture in found}) == 64
    assert found[0].image.shape == (427, 640, 3)
    np.testing.assert_array_equal(found[1].image, found[0].image[:, ::-1])
    assert {picture.label for picture in found} == {None}
