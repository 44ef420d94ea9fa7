"""The page of the development server, in a real browser, against the answers of Keras."""

import base64
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import perturbed
from headless import chromium
from PIL import Image

from efficientnet_tf import predict
from efficientnet_tf.config.model import describe
from efficientnet_tf.export import graph, saved_model, serving
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import NORMALIZATIONS, Preprocessing
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.serve import limits, server

SIZE = 96
HEIGHT, WIDTH = 320, 480
TOP, LEFT, SIDE = 40, 120, 240  # of what the rule below leaves: 96 / (96 + 32) of the height
NAMES = ("ant", "<b>bee</b>", "cow & calf", "dog", "emu", "<img src=x onerror=alert(1)>", "gnu")
HEAT = np.array([[40, 10, 90], [170, 30, 110], [245, 125, 20], [250, 240, 120]], float)
ROWS = """[...document.querySelectorAll(".class")].map((row) => [
  row.querySelector(".name").textContent,
  row.querySelector(".score").textContent,
  row.querySelector(".bar span").getBoundingClientRect().width
    / row.querySelector(".bar").getBoundingClientRect().width,
])"""
DONE = (
    "!document.getElementById('map-switch').hidden && !document.getElementById('status').innerText"
)
FOCUSED = "document.activeElement"


@pytest.fixture(scope="module")
def model():
    """A network whose answers and maps differ from picture to picture."""
    keras.utils.set_random_seed(7)
    model = build(
        describe(RECIPES["digits"].model), classes=len(NAMES), input_shape=(SIZE, SIZE, 3)
    )
    return perturbed(model, 0.5)


@pytest.fixture(scope="module")
def rule():
    mean, std = NORMALIZATIONS["torch"]
    return Preprocessing("torch", mean, std, SIZE, "bilinear", "pad32")


@pytest.fixture(scope="module")
def exported(model, rule, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "saved_model" / "1"
    saved_model.write(graph.parts(model), path, rule=rule, class_names=NAMES)
    return path


@pytest.fixture(scope="module")
def served(exported):
    """A running server."""
    running = server.start(exported.parent, name="insects", host="127.0.0.1", port=0)
    assert running.wait_ready(120)
    yield running
    running.stop(5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two PNG files with patterns of their own; the second is too small to be drawn as it is."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(1)
    for name, size in (("first.png", (HEIGHT, WIDTH)), ("second.png", (60, 40))):
        coarse = random.uniform(0, 255, (1, 4, 6, 3)).astype(np.float32)
        pixels = tf.image.resize(coarse, size, "bicubic")[0]
        (folder / name).write_bytes(tf.io.encode_png(tf.saturate_cast(pixels, tf.uint8)).numpy())
    return folder / "first.png", folder / "second.png"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def _choose(browser, path):
    document = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def _expected(model, rule, path):
    """Names, scores and class numbers of Keras' five best."""
    labels = [("", name) for name in NAMES]
    (found,) = predict.classify_files([path], model, rule, 5, labels=labels)
    return [(entry.name, entry.score, entry.index) for entry in found.classes]


def _shows(browser, model, rule, path):
    """Whether the page shows Keras' answers for a file."""
    expected = _expected(model, rule, path)
    rows = browser.run(ROWS)
    assert [name for name, _, _ in rows] == [name for name, _, _ in expected]
    for (_, score, share), (_, probability, _) in zip(rows, expected, strict=True):
        assert abs(float(score.removesuffix(" %")) - 100 * probability) < 0.006
        assert abs(share - probability) < 0.01
    assert path.name in browser.run("document.getElementById('caption').textContent")


def _map(model, rule, path, index):
    """The class activation map, from the weights of the last layer."""
    from efficientnet_tf.data import images

    pixels = images.resize_and_crop(images.decode(path.read_bytes()), rule)[np.newaxis]
    features = keras.Model(model.inputs, model.get_layer("top_activation").output)(pixels)[0]
    found = np.maximum(features.numpy() @ model.layers[-1].kernel.numpy()[:, index], 0)
    return found / found.max()


def _canvas(browser):
    data = browser.run("document.getElementById('picture').toDataURL('image/png')")
    content = base64.b64decode(data.partition("base64,")[2])
    return tf.io.decode_png(content, channels=3).numpy().astype(float)


def _switch_map(browser):
    browser.run("document.getElementById('map').click()")


def _draws(browser, values, pixels):
    """Whether the canvas shows a map over the gray picture, at the middle of each of its values."""
    drawn = _canvas(browser)
    assert drawn.shape == pixels.shape
    gray = pixels @ [0.2126, 0.7152, 0.0722]
    outside = np.r_[drawn[:TOP].ravel(), drawn[:, :LEFT].ravel()]
    assert outside.mean() < 0.5 * np.r_[pixels[:TOP].ravel(), pixels[:, :LEFT].ravel()].mean()
    for (row, column), value in np.ndenumerate(values):
        y = TOP + int((row + 0.5) * SIDE / values.shape[0])
        x = LEFT + int((column + 0.5) * SIDE / values.shape[1])
        heat = [np.interp(3 * value, range(4), HEAT[:, channel]) for channel in range(3)]
        opacity = 210 / 255 * value
        wanted = opacity * np.array(heat) + (1 - opacity) * gray[y, x]
        np.testing.assert_allclose(drawn[y, x], wanted, atol=8, err_msg=f"{row}, {column}")


def test_page_shows_keras_answers_and_the_map_of_each_class(browser, served, model, rule, pictures):
    path = pictures[0]
    browser.events.clear()
    browser.open(f"http://127.0.0.1:{served.port}/")
    assert browser.wait("document.getElementById('model').value") == "insects"
    _choose(browser, path)
    browser.wait(DONE)
    _shows(browser, model, rule, path)
    expected = _expected(model, rule, path)
    pixels = tf.io.decode_png(path.read_bytes(), channels=3).numpy().astype(float)
    maps = [_map(model, rule, path, index) for _, _, index in expected]
    assert np.abs(maps[0] - maps[1]).max() > 0.2
    _draws(browser, maps[0], pixels)
    _switch_map(browser)
    np.testing.assert_allclose(_canvas(browser), pixels, atol=1)
    _switch_map(browser)

    # By keyboard to the next class.
    browser.run("document.querySelector('.class input').focus()")
    browser.press("ArrowDown", 40)
    browser.wait(f"document.querySelectorAll('.class input')[1].checked && {DONE}")
    _draws(browser, maps[1], pixels)

    problems = [
        event
        for event in browser.events
        if event["method"] == "Runtime.exceptionThrown"
        or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")
    ]
    assert not problems
    hosts = {
        event["params"]["request"]["url"].split("/")[2]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
        and event["params"]["request"]["url"].startswith("http")
    }
    assert hosts == {f"127.0.0.1:{served.port}"}


def test_a_picture_can_be_dropped_and_replaced(browser, served, model, rule, pictures):
    browser.open(f"http://127.0.0.1:{served.port}/")
    for path in pictures:
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            browser.send("Input.dispatchDragEvent", type=kind, x=300, y=100, data=data)
        browser.wait(f"document.getElementById('caption').innerText.includes('{path.name}')")
        browser.wait(DONE)
        _shows(browser, model, rule, path)
    assert _canvas(browser).shape == (480, 320, 3)
    assert not browser.run("document.querySelector('.over')")


def test_the_keyboard_reaches_everything(browser, served, pictures):
    browser.open(f"http://127.0.0.1:{served.port}/")
    browser.wait("document.getElementById('model').value")
    _choose(browser, pictures[0])
    browser.wait(DONE)
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(4):
        browser.press("Tab", 9)
        reached.append(browser.run(f"{FOCUSED}.id || {FOCUSED}.name"))
        outline = "getComputedStyle({}).outlineStyle"
        focused = browser.run(outline.format(FOCUSED))
        assert "solid" in (focused, browser.run(outline.format(f"{FOCUSED}.closest('label,body')")))
    assert reached == ["model", "file", "map", "class"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.png", b"\x89PNG\r\n\x1a\n rubbish", "The server says: image_bytes[0]"),
        ("text.jpg", b"no picture at all", "image_bytes[0] is not a JPEG, PNG, GIF"),
        ("empty.jpg", b"", "empty.jpg is empty"),
    ],
)
def test_what_is_wrong_is_said_in_words_and_the_next_picture_works(
    browser, served, model, rule, pictures, tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    browser.open(f"http://127.0.0.1:{served.port}/")
    _choose(browser, tmp_path / name)
    text = browser.wait(
        "document.getElementById('status').className === 'bad'"
        " && document.getElementById('status').innerText"
    )
    assert message in text
    assert browser.run("document.getElementById('result').hidden")
    _choose(browser, pictures[0])
    browser.wait(DONE)
    _shows(browser, model, rule, pictures[0])
    assert browser.run("document.getElementById('status').className") != "bad"


def test_page_says_when_the_server_is_gone(browser, exported, pictures):
    running = server.start(exported.parent, name="insects", host="127.0.0.1", port=0)
    try:
        browser.open(f"http://127.0.0.1:{running.port}/")
        browser.wait("document.getElementById('model').value")
    finally:
        running.stop(5)
    _choose(browser, pictures[0])
    browser.wait(
        "document.getElementById('status').innerText.startsWith('The server did not answer')"
    )


def test_page_says_when_a_picture_is_too_large(browser, exported, pictures):
    small = limits.Limits(max_body=1000)
    running = server.start(exported.parent, name="insects", port=0, limits=small)
    try:
        assert running.wait_ready(120)
        browser.open(f"http://127.0.0.1:{running.port}/")
        _choose(browser, pictures[0])
        text = browser.wait(
            "document.getElementById('status').className === 'bad'"
            " && document.getElementById('status').innerText"
        )
    finally:
        running.stop(5)
    assert "The server says: " in text
    assert "1000" in text


def test_a_model_without_maps_still_names_classes(browser, served, model, rule, pictures):
    browser.open(f"http://127.0.0.1:{served.port}/")
    browser.run(
        """window.fetch = ((real) => (path, options) => options?.body?.includes("explain")
          ? Promise.resolve(new Response('{"error": "no <i>explain</i>"}', { status: 400 }))
          : real(path, options))(window.fetch); 0"""
    )
    _choose(browser, pictures[0])
    text = browser.wait(
        "document.getElementById('status').innerText.includes('explain')"
        " && document.getElementById('status').innerText"
    )
    assert text == "There is no activation map: The server says: no <i>explain</i> (status 400)"
    _shows(browser, model, rule, pictures[0])
    assert browser.run("document.getElementById('map-switch').hidden")
    pixels = tf.io.decode_png(pictures[0].read_bytes(), channels=3).numpy()
    np.testing.assert_allclose(_canvas(browser), pixels, atol=1)


def test_an_answer_that_comes_late_does_not_replace_a_later_picture(
    browser, served, model, rule, pictures
):
    browser.open(f"http://127.0.0.1:{served.port}/")
    browser.run(
        """window.state = "";
        window.fetch = ((real) => async (path, options) => {
          if (options.method === "POST" && !window.state) {
            window.state = "waiting";
            await new Promise((resolve) => setTimeout(resolve, 1500));
            window.state = "asked";
          }
          return real(path, options);
        })(window.fetch); 0"""
    )
    _choose(browser, pictures[0])
    browser.wait("window.state === 'waiting'")
    _choose(browser, pictures[1])
    browser.wait(f"{DONE} && document.getElementById('caption').innerText")
    browser.wait("window.state === 'asked'")
    browser.run("new Promise((resolve) => setTimeout(resolve, 300))")
    _shows(browser, model, rule, pictures[1])
    assert browser.run("document.getElementById('status').innerText") == ""


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_picture_is_drawn_as_the_network_sees_it_not_turned(browser, served, tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = tmp_path / f"turned.{kind}"
    Image.linear_gradient("L").convert("RGB").resize((600, 500)).save(path, exif=exif)
    browser.open(f"http://127.0.0.1:{served.port}/")
    _choose(browser, path)
    browser.wait(DONE)
    _switch_map(browser)
    drawn = _canvas(browser)
    assert drawn.shape == (500, 600, 3)
    assert drawn[:50].mean() < 20
    assert drawn[-50:].mean() > 235


def test_page_is_dark_where_the_reader_likes_it_dark(browser, served):
    browser.open(f"http://127.0.0.1:{served.port}/")
    sums = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.send("Emulation.setEmulatedMedia", features=[feature])
        for part in ("backgroundColor", "color"):
            color = browser.run(f"getComputedStyle(document.body).{part}")
            sums[scheme, part] = sum(int(v) for v in color[4:-1].split(","))
    browser.send("Emulation.setEmulatedMedia", features=[])
    assert sums["light", "backgroundColor"] - sums["light", "color"] > 400
    assert sums["dark", "color"] - sums["dark", "backgroundColor"] > 400


def test_health_check_of_the_compose_file_finds_the_model(served, tmp_path):
    yaml = pytest.importorskip("yaml")
    pytest.importorskip("tensorflow_serving")
    for name, healthy in (("insects", True), ("others", False)):
        *_, path = serving.configs(tmp_path / name, name)
        (service,) = yaml.safe_load(path.read_text())["services"].values()
        command = [
            part.replace("/8501 ", f"/{served.port} ") for part in service["healthcheck"]["test"]
        ]
        done = subprocess.run(command[1:], timeout=30, capture_output=True)
        assert (done.returncode == 0) is healthy
