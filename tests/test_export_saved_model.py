"""The SavedModel for serving: its signatures, through the C++ loader, against Keras and PIL."""

import dataclasses
import hashlib
import io
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from exporting import perturbed
from PIL import Image

from efficientnet_tf import cam, preprocessing
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.data import images as images_lib
from efficientnet_tf.export import graph, saved_model
from efficientnet_tf.models.efficientnet import build

SIZE = 64
NAMES = ("ant", "bee", "cow", "dog", "emu", "fox", "gnu")
RULE = preprocessing.v1_eval(SIZE, labels=None)


def make_model(name="efficientnet-b0"):
    variant = find(name)
    variant = dataclasses.replace(variant, name="small", width=0.5, blocks=variant.blocks[:4])
    keras.utils.set_random_seed(3)
    return perturbed(build(variant, input_shape=(SIZE, SIZE, 3), classes=len(NAMES)))


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "1"
    saved_model.write(graph.parts(model), path, rule=RULE, class_names=NAMES)
    return path


class Served:
    """A SavedModel in a session of its own, called by tensor names, as TensorFlow Serving does."""

    def __init__(self, path):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            meta = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = meta.signature_def
        self.definition = meta.graph_def

    def __call__(self, signature, **inputs):
        signature = self.signatures[signature]
        return self.session.run(
            {name: info.name for name, info in signature.outputs.items()},
            {signature.inputs[name].name: value for name, value in inputs.items()},
        )


@pytest.fixture(scope="module")
def served(folder):
    return Served(folder)


def picture(seed=0, size=(90, 70), mode="RGB", kind="PNG"):
    height, width = size
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.convert(mode).save(content, kind)
    return content.getvalue()


def keras_answer(model, contents):
    """The model's own, on pictures decoded by PIL."""
    decoded = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    batch = [images_lib.resize_and_crop(np.asarray(image), RULE) for image in decoded]
    return model(np.stack(batch)).numpy()


def test_picture_files_are_named_as_keras_names_them(served, model):
    contents = [picture(seed, size) for seed, size in enumerate([(90, 70), (64, 64), (33, 200)])]
    want = keras_answer(model, contents)
    found = served("serving_default", image_bytes=contents)
    np.testing.assert_allclose(found["probabilities"], want, atol=2e-6)
    order = np.argsort(-want)[:, :5]
    np.testing.assert_array_equal(found["class_ids"], order)
    np.testing.assert_array_equal(found["classes"], np.array(NAMES, "S")[order])
    np.testing.assert_allclose(found["scores"], np.take_along_axis(want, order, 1), atol=2e-6)
    assert found["class_ids"].dtype == np.int32


def test_classify_takes_examples(served, model):
    assert served.signatures["classify"].method_name == "tensorflow/serving/classify"
    assert served.signatures["images"].method_name == "tensorflow/serving/predict"
    contents = [picture(4), picture(5)]
    examples = []
    for content in contents:
        example = tf.train.Example()
        example.features.feature["image/encoded"].bytes_list.value.append(content)
        examples.append(example.SerializeToString())
    found = served("classify", inputs=examples)
    assert sorted(found) == ["classes", "scores"]
    want = np.sort(keras_answer(model, contents))[:, ::-1][:, :5]
    np.testing.assert_allclose(found["scores"], want, atol=2e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"inputs\[1\] is no tf.train.Example"):
        served("classify", inputs=[examples[0], b"", examples[1]])


def test_arrays_of_the_right_size_are_left_alone_and_others_resized(served, model):
    batch = np.random.default_rng(6).uniform(0, 255, (3, SIZE, SIZE, 3)).astype(np.float32)
    want = model(batch).numpy()
    for count in (1, 3):
        found = served("images", images=batch[:count])
        np.testing.assert_allclose(found["probabilities"], want[:count], atol=2e-6)
        powers = np.exp(found["logits"])
        np.testing.assert_allclose(powers / powers.sum(-1, keepdims=True), want[:count], atol=2e-6)
    large = np.random.default_rng(7).integers(0, 256, (2, 81, 130, 3)).astype(np.uint8)
    want = model(np.stack([images_lib.resize_and_crop(one, RULE) for one in large])).numpy()
    for name, images in (("images_uint8", large), ("images", large.astype(np.float32))):
        np.testing.assert_allclose(served(name, images=images)["probabilities"], want, atol=2e-6)


def test_features_are_what_the_classifier_sees(served, model):
    batch = np.random.default_rng(8).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    want = keras.Model(model.input, model.get_layer("avg_pool").output)(batch).numpy()
    found = served("features", images=batch)["features"]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_the_map_of_a_class_is_the_class_activation_map(served, model):
    contents = [picture(9), picture(10, (200, 100))]
    top = keras_answer(model, contents).argmax(-1)
    found = served("explain", image_bytes=contents, class_id=[-1, 2])
    np.testing.assert_array_equal(found["class_ids"], [top[0], 2])
    batch = np.stack(
        [images_lib.resize_and_crop(images_lib.decode(content), RULE) for content in contents]
    )
    maps = keras.Model(model.input, model.get_layer("top_activation").output)(batch).numpy()
    kernel = model.get_layer("predictions").get_weights()[0]
    for index, chosen in enumerate((top[0], 2)):
        want = np.maximum(maps[index] @ kernel[:, chosen], 0)
        np.testing.assert_allclose(found["maps"][index], want / want.max(), atol=1e-4)
    side = int(100 * 64 / 96)
    np.testing.assert_array_equal(
        found["boxes"][1], [(201 - side) // 2, (101 - side) // 2] + [side] * 2
    )
    for wrong in ([7, 0], [-2, 0], [0]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="class_id must"):
            served("explain", image_bytes=contents, class_id=wrong)


def test_explained_are_the_maps_that_python_gives(served, model):
    contents = [picture(9), picture(10, (200, 100))]
    decoded = [images_lib.decode(content) for content in contents]
    batch = np.stack([images_lib.resize_and_crop(image, RULE) for image in decoded])
    for classes, asked in ((None, [-1, -1]), ([6, 0], [6, 0])):
        found = served("explain", image_bytes=contents, class_id=asked)
        for method in ("cam", "gradcam"):
            want = cam.cam(model, batch, classes, method=method)
            np.testing.assert_allclose(found["maps"], want, atol=1e-4)
    boxes = [cam.covered(image.shape[:2], RULE) for image in decoded]
    np.testing.assert_array_equal(found["boxes"], boxes)


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),
    [
        ("L", "PNG", 2e-6),
        ("RGBA", "PNG", 2e-6),
        ("P", "PNG", 2e-6),
        ("I;16", "PNG", 2e-6),
        ("P", "GIF", 2e-6),
        ("RGB", "BMP", 2e-6),
        ("RGB", "WEBP", 0.02),
        ("RGB", "JPEG", 0.02),
        ("L", "JPEG", 0.02),
        ("CMYK", "JPEG", 0.02),
    ],
)
def test_every_kind_of_picture_is_read(served, model, mode, kind, tolerance):
    content = picture(11, mode=mode if mode != "I;16" else "L", kind=kind)
    if mode == "I;16":
        gray = np.asarray(Image.open(io.BytesIO(content))).astype(np.uint16) * 257
        file = io.BytesIO()
        Image.fromarray(gray).save(file, "PNG")
        want = keras_answer(model, [content])
        content = file.getvalue()
        assert content[24] == 16  # bits
    else:
        want = keras_answer(model, [content])
    found = served("serving_default", image_bytes=[content])["probabilities"]
    np.testing.assert_allclose(found, want, atol=tolerance)


def test_bad_pictures_are_named_by_their_place_in_the_batch(served):
    good = picture(12, kind="JPEG")
    batch = [good, b"", picture(13)[:200], b"no picture at all", good]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        served("serving_default", image_bytes=batch)
    message = caught.value.message
    assert "image_bytes[1] is empty" in message
    assert "image_bytes[2] is damaged, cut short" in message
    assert "image_bytes[3] is not a JPEG, PNG, GIF, BMP or WebP file" in message
    assert "image_bytes[0]" not in message
    assert "image_bytes[4]" not in message
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[0\] is not a JPEG"):
        served("serving_default", image_bytes=[b"x"])
    assert served("serving_default", image_bytes=[good])["scores"].shape == (1, 5)


def test_an_empty_batch_is_refused(served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="image_bytes must hold at least one"):
        served("serving_default", image_bytes=np.array([], object))


def test_the_graph_holds_operations_of_tensorflow_only(served):
    nodes = list(served.definition.node)
    for function in served.definition.library.function:
        nodes.extend(function.node_def)
    functions = {function.signature.name for function in served.definition.library.function}
    used = {node.op for node in nodes} - functions
    assert not {op for op in used if "PyFunc" in op}
    assert used <= set(tf.raw_ops.__dict__) | {"_Arg", "_Retval"}


def test_weights_are_stored_once_and_labels_as_an_asset(folder, model):
    assert (folder / "assets" / "labels.txt").read_text().splitlines() == list(NAMES)
    data = (folder / "variables" / "variables.data-00000-of-00001").stat().st_size
    weights = 4 * graph.parts(model).model.count_params()
    assert weights < data < weights + 50_000  # and the names of the variables


def test_frozen_and_bfloat16(model, tmp_path):
    contents = [picture(14), picture(15)]
    want = keras_answer(model, contents)
    plain = tmp_path / "frozen"
    saved_model.write(graph.parts(model), plain, rule=RULE, class_names=NAMES, frozen=True)
    assert not [f for f in (plain / "variables").iterdir() if f.stat().st_size > 10_000]
    served = Served(plain)
    found = served("serving_default", image_bytes=contents)
    np.testing.assert_allclose(found["probabilities"], want, atol=2e-6)
    assert served("explain", image_bytes=contents, class_id=[1, 1])["maps"].max() == 1
    half = tmp_path / "half"
    saved_model.write(graph.parts(model), half, rule=RULE, class_names=NAMES, precision="bfloat16")
    served = Served(half)
    functions = {f.signature.name: f for f in served.definition.library.function}
    kinds = [
        node.attr["T"].type
        for function in functions.values()
        for node in function.node_def
        if node.op == "Conv2D"
    ]
    assert kinds
    assert set(kinds) == {tf.bfloat16.as_datatype_enum}
    found = served("serving_default", image_bytes=contents)["probabilities"]
    assert 1e-6 < np.abs(found - want).max() < 0.02
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    sizes = [path.joinpath("saved_model.pb").stat().st_size for path in (half, plain)]
    assert sizes[0] < 0.9 * sizes[1]  # most of so small a network is its graph


def test_the_same_model_gives_the_same_bytes_in_another_process(folder, root):
    code = f"""
import sys
sys.path.insert(0, {str(root / "tests")!r})
import tensorflow as tf
tf.function(lambda x: x + 1)(tf.constant(1))
from test_export_saved_model import *
path = sys.argv[1]
saved_model.write(graph.parts(make_model()), path, rule=RULE, class_names=NAMES)
"""
    other = folder.parent / "other"
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, timeout=180, cwd=root)

    def hashes(path: pathlib.Path):
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {
            str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }

    assert hashes(other) == hashes(folder)
    assert len(hashes(other)) == 5


def test_the_plain_saved_model_and_the_frozen_function(model, tmp_path):
    parts = graph.parts(model)
    saved_model.write_core(parts, tmp_path / "core", batch=2, outputs=("logits",))
    signature = tf.saved_model.load(tmp_path / "core").signatures["serving_default"]
    spec = signature.structured_input_signature[1]["images"]
    assert spec.shape.as_list() == [2, SIZE, SIZE, 3]
    batch = np.random.default_rng(16).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    want = model(batch).numpy()
    powers = np.exp(signature(images=tf.constant(batch))["logits"])
    np.testing.assert_allclose(powers / powers.sum(-1, keepdims=True), want, atol=2e-6)
    function = saved_model.core_function(
        parts, outputs=("logits", "probabilities"), dynamic_size=True
    )
    assert not function.captured_inputs
    assert [tensor.name for tensor in function.outputs] == ["Identity:0", "Identity_1:0"]
    np.testing.assert_allclose(function(images=tf.constant(batch))[1], want, atol=2e-6)
    assert function(images=tf.zeros((1, 96, 80, 3)))[0].shape == (1, len(NAMES))


def test_wrong_arguments_are_refused(model, tmp_path):
    parts = graph.parts(model)
    arguments = {"rule": RULE, "class_names": NAMES}
    for wrong, message in (
        ({"class_names": ("x", "y")}, "must name 7 classes. Received: 2 names"),
        ({"class_names": ("a\nb", *NAMES[1:])}, "one line of text"),
        ({"rule": preprocessing.v1_eval(96)}, "64 x 64 px, the rule makes them 96 x 96"),
        ({"precision": "float16"}, "precision must be"),
        ({"top": 0}, "top must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            saved_model.write(parts, tmp_path / "new", **{**arguments, **wrong})
    with pytest.raises(ValueError, match="outputs must be some of"):
        saved_model.core_function(parts, outputs=("boxes",))
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        saved_model.write(parts, tmp_path / "there", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
