"""An exported classifier behind the server gives the Keras model's answers, merged or not."""

import base64
import concurrent.futures
import contextlib

import numpy as np
import pytest
import serve_models
import tensorflow as tf
from exporting import NAMES, RULE, SIZE, images, network

from efficientnet_tf.data.images import resize_and_crop
from efficientnet_tf.export import graph, saved_model, serving
from efficientnet_tf.serve import server
from efficientnet_tf.serve.batching import Batching


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def pictures():
    return images(6)


@pytest.fixture(scope="module")
def expected(model, pictures):
    """Keras' probabilities."""
    batch = np.stack([resize_and_crop(picture, RULE) for picture in pictures])
    return model.predict(batch, verbose=0)


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    path = folder / "saved_model" / "1"
    saved_model.write(graph.parts(model), path, rule=RULE, class_names=NAMES)
    with contextlib.suppress(ImportError):  # then it is tested without warm-up records
        serving.warm_up(path, batch_sizes=(1, 2), size=SIZE)
    running = server.start(folder, name="tiny", port=0, batching=Batching(8, 0.02, 1))
    assert running.wait_ready(120), running.repository.statuses()
    yield running
    running.stop()


@pytest.fixture
def url(served):
    return f"http://127.0.0.1:{served.port}/v1/models/tiny"


def _b64(content):
    return {"b64": base64.b64encode(content).decode()}


def _png(picture):
    return tf.io.encode_png(picture).numpy()


def test_picture_files_are_classified(url, pictures, expected):
    document = {"instances": [_b64(_png(picture)) for picture in pictures]}
    status, answer = serve_models.ask(f"{url}:predict", document)
    assert status == 200, answer
    for row, want in zip(answer["predictions"], expected, strict=True):
        np.testing.assert_allclose(row["probabilities"], want, atol=1e-5)
        order = np.argsort(-want)
        assert row["class_ids"] == order.tolist()
        assert row["classes"] == [NAMES[index] for index in order]


def test_pixels_and_examples_are_classified(url, pictures, expected):
    pixels = np.asarray(resize_and_crop(pictures[0], RULE))
    document = {"signature_name": "images", "instances": [pixels.tolist()]}
    _, answer = serve_models.ask(f"{url}:predict", document)
    np.testing.assert_allclose(answer["predictions"][0]["probabilities"], expected[0], atol=1e-5)
    document = {
        "signature_name": "classify",
        "examples": [{"image/encoded": _b64(_png(picture))} for picture in pictures],
    }
    _, answer = serve_models.ask(f"{url}:classify", document)
    for row, want in zip(answer["results"], expected, strict=True):
        assert row[0][0] == NAMES[want.argmax()]
        assert abs(row[0][1] - want.max()) < 1e-5


def test_a_bad_picture_is_one_clients_error_with_its_own_index(served, url, pictures, expected):
    """Requests that wait together are one run; the bad one's neighbours are answered."""
    good = [_b64(_png(picture)) for picture in pictures]
    bad = [good[0], _b64(_png(pictures[1])[:-30])]
    predict = f"{url}:predict"
    documents = [{"instances": [item]} for item in good] + [{"instances": bad}] * 2
    with concurrent.futures.ThreadPoolExecutor(len(documents)) as pool:
        for _ in range(4):
            answers = list(pool.map(lambda d: serve_models.ask(predict, d), documents))
            for (status, answer), want in zip(answers, expected, strict=False):
                assert status == 200, answer
                got = answer["predictions"][0]["probabilities"]
                np.testing.assert_allclose(got, want, atol=1e-5)
            for status, answer in answers[len(good) :]:
                assert status == 400
                assert "image_bytes[1]" in answer["error"], answer
    with served.repository.use() as loaded:
        assert all(signature.merges for signature in loaded.session.signatures.values())


def test_the_map_of_a_class_is_given(url, pictures, expected):
    inputs = {"image_bytes": [_b64(_png(pictures[0]))], "class_id": [-1]}
    status, answer = serve_models.ask(
        f"{url}:predict", {"signature_name": "explain", "inputs": inputs}
    )
    assert status == 200, answer
    assert answer["outputs"]["class_ids"] == [int(expected[0].argmax())]
    maps = np.array(answer["outputs"]["maps"])
    assert maps.ndim == 3
    assert 0 <= maps.min() < maps.max() <= 1
