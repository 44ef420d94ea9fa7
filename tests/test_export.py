"""Export: the files answer as the model does, and a file that does not is never put in place."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.export import artifacts, saved_model, tflite, verify
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import network

NAMES = ("ant", "bee", "cow", "dog", "emu")


@pytest.fixture(scope="module")
def model():
    """A small V2 with statistics that are not the initial ones, so that their loss would show."""
    config = RECIPES["digits"].model
    keras.utils.set_random_seed(5)
    variant = network.describe(config)
    model = build(variant, classes=len(NAMES), input_shape=(32, 32, 3))
    random = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
        if variable.path.endswith(("beta", "bias", "moving_mean")):
            variable.assign(random.uniform(-0.2, 0.2, variable.shape))
    return model


@pytest.fixture(scope="module")
def pictures():
    """19 pictures with labels, in batches of 8, 8 and 3."""
    random = np.random.default_rng(1)
    images = random.uniform(0, 255, (19, 32, 32, 3)).astype(np.float32)
    labels = random.integers(0, len(NAMES), 19)
    return [(images[i : i + 8], labels[i : i + 8]) for i in (0, 8, 16)]


@pytest.fixture(scope="module")
def exported(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    return folder, artifacts.export(model, folder, NAMES, lambda: pictures)


def test_everything_is_in_place_and_reported(exported, model, pictures):
    folder, reports = exported
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "model.tflite",
        "report.json",
        "saved_model/1/assets/labels.txt",
        "saved_model/1/fingerprint.pb",
        "saved_model/1/saved_model.pb",
        "saved_model/1/variables/variables.data-00000-of-00001",
        "saved_model/1/variables/variables.index",
    ]
    assert (folder / "saved_model/1/assets/labels.txt").read_text().split() == list(NAMES)
    hits = [model(images).numpy().argmax(-1) == labels for images, labels in pictures]
    accuracy = np.concatenate(hits).mean()
    assert [report.name for report in reports] == ["saved_model", "model.tflite"]
    for report in reports:
        assert report.count == 19
        assert report.accuracy == report.model_accuracy == accuracy
        assert report.agreement == 1
        assert 0 <= report.difference < 1e-5
    assert json.loads((folder / "report.json").read_text())[1]["name"] == "model.tflite"
    table = artifacts.table(reports).splitlines()
    assert [line.split()[0] for line in table] == [
        "artefact",
        "keras",
        "saved_model",
        "model.tflite",
    ]
    assert all(f"{accuracy:.2%}" in line for line in table[1:])


def test_each_variable_is_stored_once(exported, model):
    folder, _ = exported
    size = (folder / "saved_model/1/variables/variables.data-00000-of-00001").stat().st_size
    assert size < 1.1 * 4 * model.count_params()


def test_saved_model_answers_in_a_process_without_keras(exported, model, pictures, tmp_path):
    folder, _ = exported
    images = pictures[2][0]
    np.save(tmp_path / "images.npy", images)
    code = """
import sys
import numpy as np
import tensorflow as tf
sys.modules["keras"] = sys.modules["efficientnet_tf"] = None
loaded = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2] + "/images.npy")
serve, logits = loaded.signatures["serving_default"], loaded.signatures["logits"]
assert serve.structured_input_signature[1]["images"].shape.as_list() == [None, 32, 32, 3]
assert list(serve.structured_outputs) == ["probabilities"]
np.save(sys.argv[2] + "/probabilities.npy", serve(images=images)["probabilities"])
np.save(sys.argv[2] + "/logits.npy", logits(images=images[:1])["logits"])
"""
    subprocess.run(
        [sys.executable, "-c", code, str(folder / "saved_model/1"), str(tmp_path)],
        check=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    expected = model(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), expected, atol=1e-6)
    powers = np.exp(np.load(tmp_path / "logits.npy"))
    np.testing.assert_allclose(powers / powers.sum(), expected[:1], atol=1e-6)


def test_tflite_takes_any_batch_size(exported, model):
    folder, _ = exported
    answer = verify.tflite_answers(folder / "model.tflite")
    images = np.random.default_rng(2).uniform(0, 255, (5, 32, 32, 3)).astype(np.float32)
    for count in (1, 5, 2):
        probabilities = answer(images[:count])["probabilities"]
        np.testing.assert_allclose(probabilities, model(images[:count]).numpy(), atol=1e-6)


def test_a_poisoned_saved_model_fails_and_nothing_is_put_in_place(
    model, pictures, tmp_path, monkeypatch
):
    write = saved_model.write

    def poisoned(model, path, names):
        kernel = model.get_layer("predictions").kernel
        before = kernel.numpy()
        kernel.assign(before * 1.01)
        write(model, path, names)
        kernel.assign(before)

    monkeypatch.setattr(saved_model, "write", poisoned)
    with pytest.raises(verify.ParityError, match=r"saved_model does not give the model's answers"):
        artifacts.export(model, tmp_path / "out", NAMES, lambda: pictures)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_poisoned_tflite_file_fails_and_nothing_is_put_in_place(
    model, pictures, tmp_path, monkeypatch
):
    write = tflite.write

    def poisoned(source, path):
        write(source, path)
        content = path.read_bytes()
        # The classifier's bias is in the file as it is in the model.
        bias = model.get_layer("predictions").bias.numpy()
        assert content.count(bias.tobytes()) == 1
        other = bias + np.float32([0.01, 0, 0, 0, 0])
        path.write_bytes(content.replace(bias.tobytes(), other.tobytes()))

    monkeypatch.setattr(tflite, "write", poisoned)
    with pytest.raises(
        verify.ParityError, match=r"model\.tflite does not give the model's answers"
    ):
        artifacts.export(model, tmp_path / "out", NAMES, lambda: pictures)
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_are_compared_in_full_float32(model, pictures, tmp_path, monkeypatch):
    """TensorFloat-32, which GPUs use by default, is coarser than the tolerance."""
    settings = tf.config.experimental
    compare, seen = verify.compare, []

    def watching(*args):
        seen.append(settings.tensor_float_32_execution_enabled())
        return compare(*args)

    monkeypatch.setattr(verify, "compare", watching)
    assert settings.tensor_float_32_execution_enabled()
    artifacts.export(model, tmp_path / "out", NAMES, lambda: pictures)
    assert seen == [False, False]
    assert settings.tensor_float_32_execution_enabled()


def test_nan_fails_even_where_the_model_gives_it_too():
    nan = lambda images: {"probabilities": np.full((len(images), 2), np.nan)}  # noqa: E731
    batch = (np.zeros((3, 4, 4, 3), np.float32), np.zeros(3, int))
    with pytest.raises(verify.ParityError, match=r"file: probabilities holds values that are not"):
        verify.compare("file", nan, nan, [batch])


def test_differences_count_in_units_of_the_spread():
    def answer(shift):
        return lambda images: {"probabilities": np.array([[0.0, 50.0 + shift]] * len(images))}

    batch = (np.zeros((3, 4, 4, 3), np.float32), np.ones(3, int))
    report = verify.compare("file", answer(0.004), answer(0.0), [batch])
    assert report.difference == pytest.approx(0.004 / 50)
    with pytest.raises(verify.ParityError, match=r"differ by 0\.00012 of their spread"):
        verify.compare("file", answer(0.006), answer(0.0), [batch])


def test_comparing_on_nothing_proves_nothing():
    with pytest.raises(ValueError, match=r"no pictures"):
        verify.compare("file", lambda x: {}, lambda x: {}, [])


def test_wrong_models_and_names_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"must name 5 classes. Received: 2 names"):
        saved_model.write(model, tmp_path / "a", ("x", "y"))
    headless = build("efficientnetv2-b0", include_top=False, pooling="avg", input_shape=(32, 32, 3))
    with pytest.raises(ValueError, match=r"must end in a dense layer"):
        saved_model.write(headless, tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(FileExistsError, match=r"exists already"):
        saved_model.write(model, tmp_path / "c", NAMES)
    (tmp_path / "d/saved_model/1").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"another version"):
        artifacts.export(model, tmp_path / "d", NAMES, list)


def test_sigmoid_models_and_several_labels_are_exported_and_counted(pictures, tmp_path):
    keras.utils.set_random_seed(6)
    variant = network.describe(RECIPES["digits"].model)
    model = build(
        variant, classes=len(NAMES), input_shape=(32, 32, 3), classifier_activation="sigmoid"
    )
    several = np.random.default_rng(2).integers(0, 2, (19, len(NAMES))).astype(np.float32)
    batches = [(pictures[i][0], several[8 * i : 8 * i + 8]) for i in range(3)]
    reports = artifacts.export(model, tmp_path, NAMES, lambda: batches)
    images = np.concatenate([batch for batch, _ in batches])
    features = keras.Model(model.inputs, model.layers[-1].input).predict(images, verbose=0)
    kernel, bias = model.layers[-1].get_weights()
    expected = 1 / (1 + np.exp(-(features.astype(np.float64) @ kernel + bias)))
    served = tf.saved_model.load(tmp_path / "saved_model" / "1").signatures["serving_default"]
    answers = served(images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    hits = several[np.arange(19), expected.argmax(-1)].mean()
    assert [report.accuracy for report in reports] == pytest.approx([hits, hits])
