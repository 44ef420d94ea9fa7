"""Export: what is put in place, what is said about it, and that it is the same every time."""

import fcntl
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import NAMES, ORIGIN, RULE, classifier, hashes, network, pictures, prepared
from resuming import end_after

from efficientnet_tf import classifier as classifier_lib
from efficientnet_tf import paths, writing
from efficientnet_tf.export import artifacts, place, runtimes, verify
from efficientnet_tf.export.formats import Options

LABELS = np.random.default_rng(3).integers(0, len(NAMES), 19)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    formats = ("saved_model", "tflite", "keras")
    reports = artifacts.export(classifier(model), folder, formats, pictures(LABELS), origin=ORIGIN)
    return folder, reports


def test_everything_is_in_place_and_reported(exported, model):
    folder, reports = exported
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.keras",
        "model.keras.manifest.json",
        "model.tflite",
        "model.tflite.manifest.json",
        "report.json",
        "saved_model",
    ]
    assert [p.name for p in (folder / "saved_model").iterdir()] == ["1"]
    assert (folder / "saved_model/1/assets/labels.txt").read_text().split() == list(NAMES)
    answers = model(prepared()).numpy()
    assert len(set(answers.argmax(-1))) > 1  # or agreement would mean nothing
    accuracy = np.mean(answers.argmax(-1) == LABELS)
    assert [report.name for report in reports] == ["saved_model", "model.tflite", "model.keras"]
    for report in reports:
        assert report.failure is None
        assert report.count == 19
        assert report.accuracy == report.model_accuracy == pytest.approx(accuracy)
        assert report.agreement == 1
        assert 0 <= report.error <= report.difference < 1e-5
        assert [row.model for row in report.rows] == answers.argmax(-1).tolist()
        assert [row.label for row in report.rows] == LABELS.tolist()
        np.testing.assert_allclose(
            [row.model_probability for row in report.rows], answers.max(-1), rtol=1e-5
        )
    assert set(reports[0].checks) >= {"serving_default", "images_uint8", "classify", "features"}
    written = json.loads((folder / "report.json").read_text())
    assert [entry["name"] for entry in written] == [report.name for report in reports]
    assert written[1]["rows"][2]["name"] == "picture 2"
    table = verify.table(reports).splitlines()
    assert [line.split()[0] for line in table] == [
        "artefact",
        "keras",
        "saved_model",
        "model.tflite",
        "model.keras",
    ]
    assert all(f"{accuracy:.2%}" in line for line in table[1:])


def test_manifests_tell_what_the_files_are(exported):
    folder, reports = exported
    places = {
        "saved_model": folder / "saved_model/1/manifest.json",
        "tflite": folder / "model.tflite.manifest.json",
    }
    found = hashes(folder)
    for (artefact, path), report in zip(places.items(), reports[:2], strict=True):
        content = json.loads(path.read_text())
        assert content["artefact"] == artefact
        assert (content["variant"], content["weights"]["sha256"]) == ("tiny", "0" * 64)
        assert content["labels"] == list(NAMES)
        assert content["preprocessing"] == RULE.to_dict()
        assert content["versions"]["tensorflow"] == tf.__version__
        assert content["gate"]["difference"] == report.difference
        assert content["gate"]["count"] == 19
        prefix = "saved_model/1/" if artefact == "saved_model" else ""
        files = {prefix + name: entry["sha256"] for name, entry in content["files"].items()}
        assert files.items() <= found.items()
        others = [name for name in found if name.startswith(prefix or "model.tflite")]
        assert set(files) == {name for name in others if not name.endswith("manifest.json")}
    images = json.loads(places["tflite"].read_text())["signatures"]["serving_default"]["inputs"]
    assert images == {"images": {"dtype": "float32", "shape": [None, 48, 48, 3]}}


def test_the_same_input_gives_the_same_bytes(exported, model, tmp_path):
    folder, _ = exported
    formats = ("saved_model", "tflite", "keras")
    artifacts.export(classifier(model), tmp_path, formats, pictures(LABELS), origin=ORIGIN)
    assert hashes(tmp_path) == hashes(folder)


def test_answers_come_from_a_process_without_keras(exported, model, tmp_path, monkeypatch):
    """Modules that leave a mark where they are imported, before the real ones on the path."""
    folder, _ = exported
    fake = tmp_path / "fake"
    for name in ("keras", "efficientnet_tf"):
        (fake / name).mkdir(parents=True)
        mark = f"open({str(tmp_path / name)!r}, 'w').close()\nraise ImportError('the fake one')\n"
        (fake / name / "__init__.py").write_text(mark)
    monkeypatch.setenv("PYTHONPATH", str(fake))
    expected = model(prepared(3)).numpy()
    for kind, path in (("tflite", "model.tflite"), ("saved_model", "saved_model/1")):
        found = runtimes.answer(kind, folder / path, prepared(3))["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not (tmp_path / "keras").exists()
    with pytest.raises(runtimes.RuntimeFailure, match="the fake one"):
        runtimes.answer("keras", folder / "model.keras", prepared(3))
    assert (tmp_path / "keras").exists()  # the marks do work
    assert not (tmp_path / "efficientnet_tf").exists()


def test_an_exported_keras_file_is_opened_with_its_manifest(exported, model):
    folder, _ = exported
    opened = classifier_lib.load(folder / "model.keras")
    assert opened.preprocessing == RULE
    assert opened.labels == classifier(model).labels
    np.testing.assert_allclose(opened.model(prepared(3)), model(prepared(3)), atol=1e-6)


def test_the_next_version_is_free_and_a_given_one_must_be(exported, model):
    folder, _ = exported
    before = hashes(folder)
    with pytest.raises(FileExistsError, match=r"saved_model/1 exists already. Give another"):
        artifacts.export(
            classifier(model),
            folder,
            ("saved_model",),
            pictures(),
            origin=ORIGIN,
            options=Options(version=1),
        )
    assert hashes(folder) == before
    (folder / "saved_model" / "7").mkdir()
    finished = folder / ".finished"
    finished.mkdir()
    (finished / "saved_model.pb").write_text("new")
    moves = artifacts._moves([artifacts.FORMATS["saved_model"]], finished, folder, None, {})
    assert list(moves.values())[-1] == folder / "saved_model" / "8"
    (finished / "saved_model.pb").unlink()
    finished.rmdir()
    (folder / "saved_model" / "7").rmdir()


@pytest.mark.parametrize("moved", [0, 1, 2, 3])
def test_an_export_that_is_killed_while_it_is_put_in_place_can_be_repeated(
    moved, model, tmp_path, monkeypatch
):
    def export():
        formats, options = ("saved_model", "tflite"), Options(version=5)
        artifacts.export(
            classifier(model), tmp_path, formats, pictures(), origin=ORIGIN, options=options
        )

    with monkeypatch.context() as patch:
        calls = end_after(patch, writing, "put", moved)
        with pytest.raises(KeyboardInterrupt):
            export()
    export()
    names = [to.name for _, to in calls]
    assert names == ["model.tflite", "model.tflite.manifest.json", "report.json"][:moved]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.tflite",
        "model.tflite.manifest.json",
        "report.json",
        "saved_model",
    ]
    assert (tmp_path / "saved_model/5/saved_model.pb").is_file()


def test_half_a_version_in_a_store_is_none(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    finished, version = tmp_path / "finished", paths.of("memory://half/saved_model/5")
    finished.mkdir()
    (finished / "saved_model.pb").write_text("whole")
    with fsspec.open(f"{version}/variables/left.index", "w") as file:
        file.write("of an upload that was killed")
    place.move({finished: version}, tmp_path)
    assert [path.name for path in version.iterdir()] == ["saved_model.pb"]
    with pytest.raises(FileExistsError, match=r"saved_model/5 exists already"):
        place.move({finished: version}, tmp_path)


def test_a_file_is_replaced_with_its_manifest(tmp_path):
    aside = tmp_path / ".writing-x"
    aside.mkdir()
    (aside / "model.tflite").write_text("new")
    (tmp_path / "model.tflite").write_text("old")
    (tmp_path / "model.tflite.manifest.json").write_text("old")
    # The process ends between the two: no manifest is better than that of another file.
    moves = {aside / "model.tflite": tmp_path / "model.tflite"}
    missing = aside / "model.tflite.manifest.json"
    moves[missing] = tmp_path / "model.tflite.manifest.json"
    with pytest.raises(FileNotFoundError):
        place.move(moves, aside)
    assert (tmp_path / "model.tflite").read_text() == "new"
    assert not (tmp_path / "model.tflite.manifest.json").exists()
    (aside / "openvino").mkdir()
    (aside / "openvino" / "model.xml").write_text("new")
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "old.xml").write_text("old")
    place.move({aside / "openvino": tmp_path / "openvino"}, aside)
    assert [p.name for p in (tmp_path / "openvino").iterdir()] == ["model.xml"]


def test_what_dead_processes_left_is_swept_and_what_living_ones_write_is_not(tmp_path):
    dead, living = tmp_path / ".writing-dead", tmp_path / ".writing-living"
    for folder in (dead, living):
        (folder / "saved_model").mkdir(parents=True)
        (folder / "saved_model" / "saved_model.pb").write_text("half")
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # what a process has for as long as it lives
    try:
        with place.aside(tmp_path) as folder:
            assert not dead.exists()
            assert (living / "saved_model" / "saved_model.pb").exists()
            with place.aside(tmp_path) as other:  # a second export at the same time
                assert folder.exists()
                assert other != folder
    finally:
        os.close(descriptor)
    assert [p.name for p in tmp_path.iterdir()] == [".writing-living"]
    with place.aside(tmp_path):
        assert not living.exists()


def test_a_model_inside_a_sequential_model_with_a_head_of_ones_own(tmp_path):
    """Each class on its own, and several labels per picture."""
    trunk = network(top=False)
    random = np.random.default_rng(4)
    model = keras.Sequential(
        [
            keras.Input((48, 48, 3)),
            trunk,
            keras.layers.Dense(16, "relu"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(len(NAMES), "sigmoid"),
        ]
    )
    for variable in (model.layers[1].kernel, model.layers[3].kernel):
        variable.assign(random.normal(0, 1, variable.shape))
    several = random.integers(0, 2, (19, len(NAMES))).astype(np.float32)
    reports = artifacts.export(
        classifier(model), tmp_path, ("saved_model", "tflite"), pictures(several), origin=ORIGIN
    )
    images = prepared()
    expected = model(images, training=False).numpy()
    assert not np.allclose(expected.sum(-1), 1, atol=0.1)
    for kind, path in (("saved_model", "saved_model/1"), ("tflite", "model.tflite")):
        found = runtimes.answer(kind, tmp_path / path, images)["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    hits = several[np.arange(19), expected.argmax(-1)].mean()
    assert [report.accuracy for report in reports] == pytest.approx([hits, hits])
    assert {row.label for row in reports[0].rows} == {None}


def test_pictures_are_compared_in_full_float32(model, tmp_path, monkeypatch):
    """TensorFloat-32, which GPUs use by default, is coarser than the tolerance."""
    settings = tf.config.experimental
    compare, seen = verify.compare, []

    def watching(*args):
        seen.append(settings.tensor_float_32_execution_enabled())
        return compare(*args)

    monkeypatch.setattr(verify, "compare", watching)
    assert settings.tensor_float_32_execution_enabled()
    artifacts.export(classifier(model), tmp_path, ("tflite",), pictures(), origin=ORIGIN)
    assert seen == [False]
    assert settings.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ((), "Received: none"),
        (("tflite", "tflite"), "each once"),
        (("tflight",), "saved_model, tflite,.* Received: tflight"),
        (("tflite-int8",), "tflite-int8 needs pictures .* --calibrate"),
    ],
)
def test_formats_that_cannot_be_written_are_refused_before_anything_is(
    model, tmp_path, formats, message
):
    with pytest.raises(ValueError, match=message):
        artifacts.export(classifier(model), tmp_path / "to", formats, pictures(), origin=ORIGIN)
    assert not (tmp_path / "to").exists()


def test_a_missing_package_is_named_before_anything_is_written(model, tmp_path, monkeypatch):
    find = artifacts.importlib.util.find_spec
    hidden = ("tf2onnx", "ai_edge_litert")
    monkeypatch.setattr(
        artifacts.importlib.util, "find_spec", lambda name: None if name in hidden else find(name)
    )
    for format_, extra in (("onnx", "onnx"), ("tflite", "tflite")):
        with pytest.raises(ImportError, match=rf'pip install "efficientnet_tf\[{extra}\]"'):
            artifacts.export(
                classifier(model), tmp_path / "to", (format_,), pictures(), origin=ORIGIN
            )
    assert not (tmp_path / "to").exists()
