import gc
import json
import os
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

from efficientnet_tf import labels, predict, preprocessing
from efficientnet_tf.models import inference
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import Preprocessing

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="about TensorFlow's compiled functions"
)
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def network():
    return build("efficientnetv2-b0", input_shape=(64, 64, 3), classes=7)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def _colour_model(size=32, activation="softmax"):
    """Says which channel of a picture is the brightest; normalises like V2."""
    images = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1.0)(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    dense = keras.layers.Dense(3, activation=activation, kernel_initializer="identity")
    return keras.Model(images, dense(x), name="colours")


COLOURS = [("", "red"), ("", "green"), ("", "blue")]
WHOLE = Preprocessing("v2", (128,) * 3, (128,) * 3, 32, resize_method="bilinear", crop="squash")


# ---- arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 3])
def test_compiled_gives_what_the_model_gives(network, pictures, dtype, count):
    batch = pictures[:count].astype(dtype)
    scores = predict.compiled(network)(batch)
    assert scores.dtype == np.float32
    expected = network.predict(batch.astype(np.float32), verbose=0)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)


class _Counting(keras.layers.Layer):
    """Counts how often Python runs its call: once per trace in a compiled function."""

    runs = 0

    def call(self, inputs):
        _Counting.runs += 1
        return inputs


@tensorflow_only
def test_a_model_is_traced_once_per_dtype():
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, _Counting()(images))
    before = _Counting.runs
    for size in (1, 4, 2, 1, 8):
        predict.compiled(model)(np.ones((size, 8, 8, 3), np.uint8))
    assert _Counting.runs == before + 1
    predict.classify(model, np.full((9, 8, 8, 3), 7.0), batch_size=4)
    assert _Counting.runs == before + 2


def test_compiled_sees_new_weights():
    model = _colour_model()
    predictor = predict.compiled(model)
    gray = np.full((1, 32, 32, 3), 200, np.uint8)
    np.testing.assert_allclose(predictor(gray)[0], 1 / 3, atol=1e-6)
    model.layers[-1].bias.assign([0.0, 50.0, 0.0])
    np.testing.assert_allclose(predictor(gray)[0], [0, 1, 0], atol=1e-6)


def test_the_cache_does_not_keep_models_alive():
    gc.collect()
    before = len(inference._functions)
    predictor = predict.compiled(_colour_model())
    gc.collect()
    # The function keeps its model for as long as it is held itself, and no longer.
    assert predictor(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 3)
    assert len(inference._functions) == before + 1
    del predictor
    keras.backend.clear_session()
    gc.collect()
    assert len(inference._functions) == before


def test_classify_is_the_same_for_every_batch_size(network, pictures):
    together = predict.classify(network, pictures)
    assert together.shape == (5, 7)
    apart = predict.classify(network, pictures, batch_size=2)
    np.testing.assert_allclose(apart, together, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64, 64, 3), r"\(any, 64, 64, 3\). Received: \(64, 64, 3\)"),
        ((2, 32, 32, 3), r"\(any, 64, 64, 3\). Received: \(2, 32, 32, 3\)"),
        ((0, 64, 64, 3), "at least one picture"),
    ],
)
def test_classify_refuses_other_shapes(network, shape, message):
    with pytest.raises(ValueError, match=message):
        predict.classify(network, np.zeros(shape, np.uint8))


# ---- pictures that are normalised already


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_normalised_pictures_get_a_warning(network, pictures, low):
    # tensorflow#48412, keras#14950: pictures normalised twice.
    normalised = low + (1 - low) * pictures.astype(np.float32) / 255
    with pytest.warns(UserWarning, match=r"'efficientnetv2-b0'.*pixels in \[0, 255\]"):
        predict.classify(network, normalised)


@pytest.mark.parametrize(
    "images",
    [
        np.eye(64, dtype=np.uint8)[None, :, :, None].repeat(3, -1),  # integers are pixels
        np.zeros((1, 64, 64, 3), np.float32),  # black
        np.full((1, 64, 64, 3), 0.5) + np.eye(64)[None, :, :, None],  # above 1
    ],
)
def test_pixels_get_no_warning(network, images):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predict.classify(network, images)


def test_a_model_without_preprocessing_takes_normalised_pictures(pictures):
    model = build(
        "efficientnet-b0", input_shape=(64, 64, 3), classes=3, include_preprocessing=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        predict.warn_if_normalized(model, pictures / 255)


def test_a_model_inside_a_model_is_found(network):
    outer_images = keras.Input((64, 64, 3))
    outer = keras.Model(outer_images, network(outer_images))
    assert predict.normalizes(outer)
    assert not predict.normalizes(keras.Model(outer_images, outer_images))


# ---- files


def _save(path, colour, size=(60, 40)):
    Image.new("RGB", size, colour).save(path)
    return path


def test_files_get_answers_and_broken_ones_are_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    paths = [
        _save(tmp_path / "red.png", (200, 10, 10)),
        tmp_path / "empty.png",
        _save(tmp_path / "blue.bmp", (10, 10, 200)),
        tmp_path / "missing.jpg",
        tmp_path / "broken.jpg",
        _save(tmp_path / "green.gif", (10, 200, 10)),
    ]
    answers = list(
        predict.classify_files(paths, _colour_model(), WHOLE, top=2, labels=COLOURS, batch_size=4)
    )
    assert [answer.path for answer in answers] == [str(path) for path in paths]
    names = [answer.classes[0].name if answer.classes else None for answer in answers]
    assert names == ["red", None, "blue", None, None, "green"]
    for answer in answers:
        assert (answer.error is None) == bool(answer.classes)
        if answer.error:
            assert answer.path in answer.error
    best, second = answers[0].classes
    logits = np.array([200, 10, 10]) / 128 - 1
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([best.score, second.score], expected[:2], rtol=1e-4)
    assert (best.index, second.index) == (0, 1)


def test_files_follow_the_rule_of_the_weights(tmp_path):
    picture = np.zeros((64, 320, 3), np.uint8)
    picture[:, :, 0] = 255  # red, but for
    picture[:, 128:192] = (0, 0, 255)  # a blue square in the middle
    Image.fromarray(picture).save(tmp_path / "wide.png")
    best = {}
    for rule in (WHOLE, preprocessing.v1_eval(32), preprocessing.lite_eval(32)):
        (answer,) = predict.classify_files(
            [tmp_path / "wide.png"], _colour_model(), rule, labels=COLOURS
        )
        best[rule.crop, rule.resize_method] = answer.classes[0].name
    assert best == {
        ("squash", "bilinear"): "red",
        ("pad32", "bicubic_legacy"): "blue",
        ("pad32", "bilinear_legacy"): "blue",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessing": preprocessing.v2_eval(48)}, r"\(any, 32, 32, 3\).*48, 48"),
        ({"labels": COLOURS[:2]}, "3 classes. Received: 2 labels"),
        ({"labels": None, "preprocessing": preprocessing.v2_eval(32)}, "3 scores and 1,000"),
        ({"top": 0}, "at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_file(changes, message):
    arguments = {"preprocessing": WHOLE, "labels": COLOURS} | changes
    with pytest.raises(ValueError, match=message):
        predict.classify_files(["nowhere.jpg"], _colour_model(), **arguments)


def test_a_single_path_is_not_taken_for_its_letters():
    with pytest.raises(ValueError, match=r"paths must be several.*'cat\.jpg'"):
        predict.classify_files("cat.jpg", _colour_model(), WHOLE, labels=COLOURS)


# ---- opening a classifier


@pytest.mark.parametrize(
    ("name", "file", "golden", "first_label"),
    [
        ("efficientnet-b0", "efficientnet-b0.tar.gz", "efficientnet-b0", "tench"),
        ("efficientnet-edgetpu-s", "efficientnet-edgetpu-S.tar.gz", "efficientnet-edgetpu-S", None),
    ],
)
def test_load_opens_a_published_checkpoint(shared_dir, name, file, golden, first_label):
    fixtures = shared_dir / "fixtures"
    classifier = predict.load(name, str(fixtures / file))
    assert classifier.preprocessing.size == 224
    assert classifier.labels[0].name == (first_label or "background")
    expected = np.load(fixtures / f"{golden}.golden.npz")
    scores = predict.classify(classifier.model, expected["images"])
    logits = expected["logits_ema"].astype(np.float64)
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    np.testing.assert_allclose(scores, softmax, atol=1e-3)
    order = np.argsort(-logits)[:, :5]
    np.testing.assert_array_equal(labels.top_classes(scores, 5)[:, :1], order[:, :1])


def test_load_says_what_there_is():
    with pytest.raises(ValueError, match="Did you mean 'efficientnetv2-s'"):
        predict.load("efficientnetv2s")
    with pytest.raises(ValueError, match="Did you mean 'imagenet'"):
        predict.load("efficientnetv2-s", "imagenat")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar\.gz"):
        predict.load("efficientnetv2-s", "nowhere.tar.gz")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.keras"):
        predict.load("nowhere.keras")


def test_load_opens_a_keras_file_with_its_labels(tmp_path):
    path = tmp_path / "colours.keras"
    _colour_model(activation=None).save(path)
    classifier = predict.load(path)
    assert [label.name for label in classifier.labels] == ["class 0", "class 1", "class 2"]
    assert (classifier.preprocessing.crop, classifier.preprocessing.size) == ("squash", 32)
    np.testing.assert_allclose(classifier.preprocessing.mean, 128, rtol=1e-6)
    np.testing.assert_allclose(classifier.preprocessing.std, 128, rtol=1e-6)
    # The file gives logits; the classifier gives probabilities.
    scores = predict.classify(classifier.model, np.full((1, 32, 32, 3), (255, 0, 0), np.uint8))
    np.testing.assert_allclose(scores.sum(), 1, atol=1e-6)
    assert scores[0, 0] > 0.7
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    assert predict.load(path).labels == tuple(COLOURS)
    with pytest.raises(ValueError, match="has its own weights"):
        predict.load(path, "imagenet")
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"colours\.keras"):
        predict.load(path)


@tensorflow_only
def test_a_keras_file_is_opened_with_the_fused_kernel_and_the_same_scores(tmp_path, pictures):
    import tensorflow as tf

    model = build("efficientnet-b0", input_shape=(64, 64, 3), classes=7, classifier_activation=None)
    model.save(tmp_path / "m.keras")
    opened = predict.load(tmp_path / "m.keras").model
    kernels = []
    for network in (model, opened, keras.saving.load_model(tmp_path / "m.keras")):
        graph = tf.function(network).get_concrete_function(tf.TensorSpec((1, 64, 64, 3))).graph
        types = [operation.type for operation in graph.get_operations()]
        kernels.append(types.count("FusedBatchNormV3"))
    assert kernels[0] == kernels[1] > 30
    assert kernels[2] == 0
    expected = keras.ops.softmax(model(pictures))
    np.testing.assert_allclose(predict.classify(opened, pictures), expected, atol=1e-6)


def test_a_file_that_keras_cannot_read_is_named(tmp_path):
    class Unknown(keras.layers.Identity):
        """Known to nobody who reads the file."""

    images = keras.Input((8, 8, 3))
    keras.Model(images, Unknown()(images)).save(tmp_path / "own.keras")
    with pytest.raises(ValueError, match=r"(?s)own\.keras: cannot be read.*'Unknown'"):
        predict.load(tmp_path / "own.keras")


def test_a_21k_file_of_logits_gets_a_sigmoid(tmp_path):
    images = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    keras.Model(images, keras.layers.Dense(21_843)(x)).save(tmp_path / "own.keras")
    names = "\n".join(f"name {index}" for index in range(21_843))
    (tmp_path / "labels.txt").write_text(names)
    scores = predict.classify(predict.load(tmp_path / "own.keras").model, np.zeros((1, 8, 8, 3)))
    np.testing.assert_allclose(scores, 0.5)


def test_the_rule_beside_a_keras_file_counts(tmp_path):
    path = tmp_path / "colours.keras"
    _colour_model(size=None).save(path)
    with pytest.raises(ValueError, match=r"preprocessing\.json beside it can say the size"):
        predict.load(path)
    rule = preprocessing.v2_eval(48, labels=None)
    beside = tmp_path / "preprocessing.json"
    beside.write_text(json.dumps(rule.to_dict()))
    assert predict.load(path).preprocessing == rule
    for wrong in ("{", '{"size": 3}'):
        beside.write_text(wrong)
        with pytest.raises(ValueError, match=r"preprocessing\.json: "):
            predict.load(path)


def test_a_keras_file_of_published_classes_gets_the_published_rule(tmp_path):
    images = keras.Input((64, 64, 3))
    scale, offset = preprocessing.rescaling(preprocessing.v1_eval(64))
    x = keras.layers.Rescaling(scale, offset)(images)
    x = keras.layers.GlobalAveragePooling2D()(x)
    keras.Model(images, keras.layers.Dense(1000)(x)).save(tmp_path / "b0.keras")
    classifier = predict.load(tmp_path / "b0.keras")
    assert classifier.preprocessing == preprocessing.v1_eval(64)
    assert classifier.labels == labels.imagenet_labels()


def test_21k_names_come_from_the_mirror(tmp_path, monkeypatch):
    mirror = tmp_path / "mirror" / "efficientnet" / "v2"
    mirror.mkdir(parents=True)
    lines = [f"n{index:08d}\tname {index}" for index in range(21_843)]
    (mirror / "imagenet21k_labels.txt").write_text("\n".join(lines))
    monkeypatch.setenv("EFFICIENTNET_TF_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("EFFICIENTNET_TF_HOME", str(tmp_path / "cache"))
    images = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(images)
    keras.Model(images, keras.layers.Dense(21_843)(x)).save(tmp_path / "own.keras")
    classifier = predict.load(tmp_path / "own.keras")
    assert classifier.labels[21_842] == ("n00021842", "name 21842")


# ---- the script


def _run(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "predict.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_script_prints_names_for_people(tmp_path):
    _colour_model().save(tmp_path / "colours.keras")
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    picture = _save(tmp_path / "picture.png", (10, 250, 10))
    done = _run(picture, f"--model={tmp_path / 'colours.keras'}", "--top=2")
    assert done.returncode == 0, done.stderr
    path, best, second = done.stdout.splitlines()
    assert path == str(picture)
    assert best.split()[-1] == "green"
    assert best.split()[0].endswith("%")
    assert second.split()[-1] == "red"


def test_script_prints_json_and_goes_on_after_a_bad_file(shared_dir, tmp_path):
    good = _save(tmp_path / "good.jpg", (10, 250, 10))
    (tmp_path / "bad.jpg").write_bytes(b"")
    weights = shared_dir / "fixtures" / "efficientnet-b0.tar.gz"
    done = _run(
        tmp_path / "bad.jpg", good, "--model=efficientnet-b0", f"--weights={weights}", "--json"
    )
    assert done.returncode == 1, done.stderr
    bad, answer = [json.loads(line) for line in done.stdout.splitlines()]
    assert bad["file"] == str(tmp_path / "bad.jpg")
    assert bad["classes"] == []
    assert bad["error"] == f"{tmp_path / 'bad.jpg'}: the file is empty"
    assert (answer["file"], answer["error"]) == (str(good), None)
    assert len(answer["classes"]) == 5
    for scored in answer["classes"]:
        assert labels.imagenet_labels()[scored["index"]] == (scored["wnid"], scored["name"])
    scores = [scored["score"] for scored in answer["classes"]]
    assert scores == sorted(scores, reverse=True)


def test_script_exits_with_2_where_the_model_is_broken(tmp_path):
    model = _colour_model()
    model.layers[-1].bias.assign([float("nan")] * 3)
    model.save(tmp_path / "colours.keras")
    picture = _save(tmp_path / "picture.png", (10, 250, 10))
    done = _run(picture, f"--model={tmp_path / 'colours.keras'}")
    assert done.returncode == 2
    assert "NaN" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no picture"),
        (["a.jpg", "--modle=efficientnet-b0"], "modle"),
        (["a.jpg", "--top=0"], "--top=0"),
        (["a.jpg", "--model=efficientnetv2s"], "Did you mean 'efficientnetv2-s'"),
    ],
)
def test_script_exits_with_2_on_wrong_usage(arguments, message):
    done = _run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
