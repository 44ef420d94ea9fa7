"""The example page in headless Chromium: its answers are those of LiteRT in Python."""

import dataclasses
import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from headless import chromium

from efficientnet_tf import preprocessing
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.export import graph, tflite
from efficientnet_tf.models.efficientnet import build

pytestmark = pytest.mark.backends

SIZE = 64
NAMES = ("ant", "bee", "café", "dog, or so", "<emu>")
# Side of the crop of a picture of 96 px: 96 * 64 / (64 + 32) = 64, so that nothing is resized.
RULE = preprocessing.v1_eval(SIZE, labels=None)
SCORES = """Array.from(document.querySelectorAll("#answers tr"), row =>
  [row.cells[0].textContent, row.querySelector("meter").value, row.cells[2].textContent])"""
STATE = "document.getElementById('status').dataset.state"


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """A copy of the page with the npm packages that it names.

    They are installed into the folder that EFFICIENTNET_TF_NPM names, or were before, and without
    it into a temporary one.
    """
    folder = tmp_path_factory.mktemp("site")
    packages = pathlib.Path(os.environ.get("EFFICIENTNET_TF_NPM") or folder)
    packages.mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "classify.js", "package.json"):
        shutil.copy(root / "scripts" / "browser" / name, folder)
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    if wanted != {name: _version(packages / "node_modules" / name) for name in wanted}:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(
                "npm is not installed, and EFFICIENTNET_TF_NPM names no folder in its place."
            )
        if packages != folder:
            shutil.copy(folder / "package.json", packages)
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=packages, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm install does not work here: {done.stderr[-500:]}")
    if packages != folder:
        (folder / "node_modules").symlink_to(packages.resolve() / "node_modules")
    return folder


def _version(package: pathlib.Path) -> str | None:
    file = package / "package.json"
    return json.loads(file.read_text())["version"] if file.is_file() else None


class _Handler(http.server.SimpleHTTPRequestHandler):
    def guess_type(self, path):
        types = {".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm"}
        return types.get(pathlib.Path(path).suffix, "application/octet-stream")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def page(site, tmp_path_factory):
    """The page, open in Chromium."""

    handler = functools.partial(_Handler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with chromium(tmp_path_factory.mktemp("profile")) as browser:
                browser.open(f"http://127.0.0.1:{server.server_port}/")
                yield browser
                problems = [e["params"] for e in browser.events if _is_problem(e)]
                assert not problems
        finally:
            server.shutdown()


def _is_problem(event) -> bool:
    if event["method"] == "Log.entryAdded":
        return event["params"]["entry"]["level"] == "error"
    return event["method"] == "Runtime.exceptionThrown"


@pytest.fixture(scope="module")
def parts():
    keras.utils.set_random_seed(3)
    variant = dataclasses.replace(find("efficientnet-b0"), name="narrow", width=0.25, depth=0.1)
    model = build(variant, classes=len(NAMES), input_shape=(SIZE, SIZE, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.1
    for _ in range(4):
        model(picture(8 * SIZE, SIZE).reshape(8, SIZE, SIZE, 3), training=True)
    kernel = model.layers[-1].kernel
    kernel.assign(np.random.default_rng(4).normal(0, 0.3, kernel.shape))
    return graph.parts(model)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(0, 255, (6, 6, 3))
    return tf.image.resize(coarse, (height, width)).numpy()


def choose(page, element: str, path: pathlib.Path) -> str:
    """Chooses a file, as a person does, and returns what state that leads to."""
    document = page.send("DOM.getDocument")["root"]["nodeId"]
    found = page.send("DOM.querySelector", nodeId=document, selector=f"#{element}")
    page.run(f"{STATE} = 'chosen'")
    page.send("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])
    page.wait(f"!['chosen', 'working'].includes({STATE})", seconds=120)
    return page.run(STATE)


def answers(page, model: pathlib.Path, image: pathlib.Path) -> list[tuple[str, float, str]]:
    choose(page, "model", model)
    state = choose(page, "picture", image)
    text = page.run("document.getElementById('status').textContent")
    assert state == "done", text
    return [tuple(row) for row in page.run(SCORES)]


def litert(path: pathlib.Path, image: np.ndarray) -> np.ndarray:
    """Probabilities of one picture, by LiteRT in Python."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    runner = interpreter.get_signature_runner("serving_default")
    (kind,) = (details["dtype"] for details in runner.get_input_details().values())
    (found,) = runner(images=image[None].astype(kind)).values()
    return found[0] / 256 if found.dtype == np.uint8 else found[0]


def same(rows, names, expected, tolerance) -> None:
    """The rows name the classes from the most likely one on, with their probabilities."""
    assert [name for name, _, _ in rows] == [names[i] for i in np.argsort(-expected)]
    np.testing.assert_allclose([p for _, p, _ in rows], np.sort(expected)[::-1], atol=tolerance)
    assert [text for _, _, text in rows] == [f"{100 * p:.1f} %" for _, p, _ in rows]


def test_float_model_with_names_and_rule(page, parts, tmp_path):
    path = tmp_path / "model.tflite"
    tflite.write(parts, path, class_names=NAMES, rule=RULE)
    wide = picture(96, 131).round().astype(np.uint8)
    tf.io.write_file(str(tmp_path / "wide.png"), tf.io.encode_png(wide))
    # The rule rounds the offset up: (131 - 64) / 2 = 33.5.
    expected = litert(path, wide[16:80, 34:98])
    assert np.ptp(expected) > 0.1
    assert np.abs(expected - litert(path, wide[16:80, 33:97])).max() > 1e-3
    same(answers(page, path, tmp_path / "wide.png"), NAMES, expected, 1e-5)


@pytest.mark.parametrize("output", ["uint8", "float32"])
def test_quantised_model_without_names_sees_the_centre_square(page, parts, tmp_path, output):
    path = tmp_path / "model.tflite"
    batches = [picture(SIZE, SIZE, seed)[None] for seed in range(16)]
    tflite.write(parts, path, kind="int8", output=output, calibration=lambda: batches)
    tall = picture(100, SIZE, 1).round().astype(np.uint8)
    tf.io.write_file(str(tmp_path / "tall.png"), tf.io.encode_png(tall))
    expected = litert(path, tall[18:82])
    assert len(set(expected)) == len(NAMES)
    names = [f"class {i}" for i in range(len(NAMES))]
    same(answers(page, path, tmp_path / "tall.png"), names, expected, 1.5 / 256)


def test_a_file_that_is_no_model_is_told_and_the_page_goes_on(page, parts, tmp_path):
    path, broken = tmp_path / "model.tflite", tmp_path / "broken.tflite"
    tflite.write(parts, path, class_names=NAMES, rule=RULE)
    broken.write_bytes(b"not a model " * 100)
    image = picture(96, 96).round().astype(np.uint8)
    tf.io.write_file(str(tmp_path / "image.png"), tf.io.encode_png(image))
    assert choose(page, "model", broken) == "failed"
    assert page.run("document.getElementById('status').textContent").startswith(
        "This does not work"
    )
    assert page.run("document.querySelectorAll('#answers tr').length") == 0
    same(
        answers(page, path, tmp_path / "image.png"), NAMES, litert(path, image[16:80, 16:80]), 1e-5
    )
