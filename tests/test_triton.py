"""An exported model behind NVIDIA Triton, a server that this project has no part in.

TRITON_PYTHON names a Python that has nvidia-pytriton and tensorflow. It is a process of its own
since nvidia-pytriton wants numpy 1 and a Python as Debian builds it; see README.
"""

import os
import pathlib
import signal
import socket
import subprocess
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import perturbed

from efficientnet_tf.config.model import describe
from efficientnet_tf.data import images
from efficientnet_tf.export import graph, saved_model
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import NORMALIZATIONS, Preprocessing
from efficientnet_tf.recipes import RECIPES

PROGRAM = pathlib.Path(__file__).with_name("triton_model.py")
NAMES = ("ant", "bee", "cow", "dog", "emu", "fox", "gnu")
SIZE = 48

pytestmark = [
    pytest.mark.backends,
    pytest.mark.skipif(
        "TRITON_PYTHON" not in os.environ, reason="TRITON_PYTHON names no Python with Triton."
    ),
]


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [entry.getsockname()[1] for entry in sockets]
    for entry in sockets:
        entry.close()
    return ports


def _model():
    """A network whose answers differ from picture to picture."""
    keras.utils.set_random_seed(9)
    model = build(
        describe(RECIPES["digits"].model), classes=len(NAMES), input_shape=(SIZE, SIZE, 3)
    )
    return perturbed(model, 0.5)


def _pictures():
    """PNG files of six sizes, each with a pattern of its own."""
    random = np.random.default_rng(1)
    for height, width in ((60, 90), (48, 48), (200, 71), (33, 40), (90, 60), (120, 120)):
        coarse = random.uniform(0, 255, (1, 5, 5, 3)).astype(np.float32)
        pixels = tf.image.resize(coarse, (height, width), "bicubic")[0]
        yield tf.io.encode_png(tf.saturate_cast(pixels, tf.uint8)).numpy()


def _await_ready(process, seconds):
    ready = threading.Event()

    def read():
        for line in process.stdout:
            if line.strip() == "ready":
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    return ready.wait(seconds)


def test_triton_gives_the_answers_of_keras_over_http_and_grpc(tmp_path):
    model = _model()
    mean, std = NORMALIZATIONS["torch"]
    rule = Preprocessing("torch", mean, std, SIZE, "bicubic_legacy", "pad32")
    folder = tmp_path / "1"
    saved_model.write(graph.parts(model), folder, rule=rule, class_names=NAMES)

    pictures = list(_pictures())
    cropped = np.stack([images.resize_and_crop(images.decode(p), rule) for p in pictures])
    expected = model(cropped).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1  # the pictures can be told apart

    python, (http, grpc, metrics) = os.environ["TRITON_PYTHON"], _free_ports(3)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [python, PROGRAM, "serve", folder, str(http), str(grpc), str(metrics)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            assert _await_ready(process, 300), (tmp_path / "log").read_text()[-4000:]
            questions, answers = tmp_path / "questions.npz", tmp_path / "answers.npz"
            np.savez(questions, bytes=np.array(pictures, object), pixels=cropped)
            subprocess.run(
                [python, PROGRAM, "ask", str(http), str(grpc), questions, answers],
                check=True,
                timeout=300,
                env=environment,
            )
            process.stdin.close()
            assert process.wait(timeout=120) == 0
        finally:
            if process.poll() is None:
                # Triton is a child of its own, in this group.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(timeout=30)

    got = np.load(answers)
    best = np.argsort(-expected, axis=-1)[:, :5]
    for protocol in ("http", "grpc"):
        assert got[f"{protocol}/ready"]
        np.testing.assert_allclose(got[f"{protocol}/pixels/probabilities"], expected, atol=1e-5)
        np.testing.assert_allclose(got[f"{protocol}/bytes/probabilities"], expected, atol=1e-5)
        np.testing.assert_array_equal(got[f"{protocol}/bytes/class_ids"], best)
        np.testing.assert_array_equal(got[f"{protocol}/bytes/classes"], np.array(NAMES)[best])
        # The second picture of that request is none.
        assert "no picture" not in (error := str(got[f"{protocol}/error"]))
        assert "1" in error
    for index, row in enumerate(expected):
        answer = got[f"single/{index}/probabilities"]
        np.testing.assert_allclose(answer, row[np.newaxis], atol=1e-5)
