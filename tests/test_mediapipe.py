"""MediaPipe's ImageClassifier, which has nothing of ours, on exported files and real pictures.

It needs Python packages that do not go with TensorFlow's, so that it runs in an environment of its
own, whose interpreter MEDIAPIPE_PYTHON names: `python3 -m venv DIR; DIR/bin/pip install mediapipe;
export MEDIAPIPE_PYTHON=DIR/bin/python`.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import tarfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.arch.scaling import find
from efficientnet_tf.export import graph, metadata, quantize, tflite
from efficientnet_tf.models.efficientnet import build

pytestmark = pytest.mark.backends

SIZE = 32
CLASSES = ("automobile", "frog", "ship")
CHILD = pathlib.Path(__file__).with_name("mediapipe_classify.py")


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """What MediaPipe answers: path of a file and uint8 pictures to its JSON."""
    python = os.environ.get("MEDIAPIPE_PYTHON")
    if not python:
        pytest.skip("MEDIAPIPE_PYTHON does not name an interpreter that has mediapipe.")
    folder = tmp_path_factory.mktemp("pictures")

    def run(path, pictures):
        np.save(folder / "pictures.npy", pictures)
        done = subprocess.run(
            [python, CHILD, path, folder / "pictures.npy"],
            check=True,
            timeout=300,
            stdout=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def photos(shared_dir):
    """CIFAR-10's photographs of three classes: 1200 a class to train with, 40 a class to test."""
    wanted = {("train", 1200): ([], []), ("test", 40): ([], [])}
    with tarfile.open(shared_dir / "data" / "cifar10-jpeg.tar.gz", "r|gz") as archive:
        for member in archive:
            pieces = pathlib.PurePath(member.name).parts[-3:]
            for (part, count), (images, labels) in wanted.items():
                if len(pieces) == 3 and pieces[0] == part and pieces[1] in CLASSES:
                    label = CLASSES.index(pieces[1])
                    if labels.count(label) < count:
                        encoded = archive.extractfile(member).read()
                        images.append(tf.io.decode_jpeg(encoded, channels=3).numpy())
                        labels.append(label)
    return [(np.stack(images), np.array(labels)) for images, labels in wanted.values()]


@pytest.fixture(scope="module")
def model(photos):
    """A Lite network, trained for some seconds: enough for answers that are sure."""
    (images, labels), _ = photos
    keras.utils.set_random_seed(3)
    lite = find("efficientnet-lite0")
    variant = dataclasses.replace(lite, width=0.5, depth=0.1, blocks=lite.blocks[:4])
    model = build(variant, classes=len(CLASSES), input_shape=(SIZE, SIZE, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # so few steps
    targets = np.eye(len(CLASSES))[labels]
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(keras.optimizers.Adam(3e-3), smoothed)
    model.fit(images.astype(np.float32), targets, batch_size=64, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def pictures(photos, model):
    """100 photographs that the model has not seen, and its probabilities for them."""
    order = np.random.default_rng(0).permutation(len(photos[1][1]))[:100]
    images, labels = (array[order] for array in photos[1])
    assert images.shape == (100, SIZE, SIZE, 3)
    expected = model.predict(images.astype(np.float32), verbose=0)
    assert (expected.argmax(-1) == labels).mean() > 0.7
    return images, expected


def test_float32_gives_the_models_answers(classify, model, pictures, tmp_path):
    images, expected = pictures
    path = tmp_path / "model.tflite"
    tflite.write(graph.parts(model), path, class_names=CLASSES, description="three classes")
    answers = classify(path, images)["answers"]
    assert [answer["index"] for answer in answers] == expected.argmax(-1).tolist()
    assert [answer["name"] for answer in answers] == [CLASSES[a["index"]] for a in answers]
    scores = [answer["score"] for answer in answers]
    np.testing.assert_allclose(scores, expected.max(-1), atol=1e-5)


@pytest.mark.parametrize("output", ["float32", "uint8"])
def test_uint8_gives_the_models_answers(output, classify, model, photos, pictures, tmp_path):
    (training, _), (images, expected) = photos[0], pictures
    parts = graph.parts(model)
    ranges = quantize.ranges(parts.model, [training[::18].astype(np.float32)])
    path = tmp_path / "model.tflite"
    tflite.write(
        quantize.with_fake_quant(parts.model, ranges),
        path,
        kind="int8",
        output=output,
        class_names=CLASSES,
    )
    answers = classify(path, images)["answers"]
    classes = np.array([answer["index"] for answer in answers])
    assert [answer["name"] for answer in answers] == [CLASSES[index] for index in classes]
    ordered = np.sort(expected)
    sure = ordered[:, -1] - ordered[:, -2] > 0.2  # where two are even, rounding decides
    assert sure.sum() >= 85
    assert (classes == expected.argmax(-1))[sure].all()
    assert (classes == expected.argmax(-1)).sum() >= 96
    scores = np.array([answer["score"] for answer in answers])
    assert np.abs(scores - expected.max(-1)).mean() < 0.03


def test_pictures_of_other_shapes_are_stretched(classify, model, pictures, tmp_path):
    """MediaPipe crops nothing: it computes what the model does on the whole picture, squashed."""
    images, _ = pictures
    # Twice as wide: every pixel twice, so that any way to halve the width gives the picture back.
    wide = np.repeat(images, 2, axis=2)
    path = tmp_path / "model.tflite"
    tflite.write(graph.parts(model), path, class_names=CLASSES)
    answers = [answer["index"] for answer in classify(path, wide)["answers"]]
    squashed = tf.image.resize(wide, (SIZE, SIZE)).numpy()
    assert answers == model.predict(squashed, verbose=0).argmax(-1).tolist()


def test_its_own_schema_reads_the_metadata(classify, model, pictures, tmp_path):
    path = tmp_path / "model.tflite"
    tflite.write(graph.parts(model), path, class_names=CLASSES, description="three classes")
    value = classify(path, pictures[0][:1])["metadata"]
    assert value["name"] == model.name
    assert value["description"] == "three classes"
    assert value["minParserVersion"] == metadata.PARSER_VERSION
    (subgraph,) = value["subgraphMetadata"]
    (images,), (scores,) = subgraph["inputTensorMetadata"], subgraph["outputTensorMetadata"]
    assert images["content"]["contentPropertiesType"] == 2  # ImageProperties
    assert images["content"]["contentProperties"] == {
        "colorSpace": 1,
        "defaultSize": {"width": SIZE, "height": SIZE},
    }
    assert images["processUnits"] == [
        {"optionsType": 1, "options": {"mean": [0.0], "std": [1.0]}}  # NormalizationOptions
    ]
    assert images["stats"] == {"max": [255.0], "min": [0.0]}
    assert scores["stats"] == {"max": [1.0], "min": [0.0]}
    assert [(f["name"], f["type"]) for f in scores["associatedFiles"]] == [("labels.txt", 2)]
