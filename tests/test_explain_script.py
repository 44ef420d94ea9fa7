"""`scripts/explain.py`: a sheet that opens, with every picture and model in its place."""

import dataclasses
import json

import numpy as np
import pytest
from exporting import network
from PIL import Image
from scripting import call_all

from efficientnet_tf import cam, labels, preprocessing
from efficientnet_tf.classifier import Classifier
from efficientnet_tf.data import images as images_lib
from efficientnet_tf.figures import drawing, explanation
from efficientnet_tf.labels import Label

NAMES = ("tabby cat", "tiger cat", "dog", "emu", "3")
RULE = dataclasses.replace(preprocessing.v1_eval(48, labels=None), name="tiny")


@pytest.fixture(scope="module")
def classifier():
    classes = tuple(Label(f"n{index:08}", name) for index, name in enumerate(NAMES))
    return Classifier(network(), RULE, classes)


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*shape, 3), np.uint8) for shape in ((60, 90), (80, 50))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier, pictures):
    path = tmp_path_factory.mktemp("explain")
    (path / "run").mkdir()
    classifier.model.save(path / "run" / "best.keras")
    (path / "run" / "labels.txt").write_text("\n".join(NAMES) + "\n")
    (path / "run" / preprocessing.FILE).write_text(json.dumps(RULE.to_dict()))
    for name, picture in zip(("wide.png", "tall.png"), pictures, strict=True):
        Image.fromarray(picture).save(path / name)
    (path / "bad.jpg").write_bytes(b"not a picture")
    return path


def test_explanations_are_the_models_answers_and_maps(classifier, pictures):
    batch = np.stack([images_lib.resize_and_crop(p, RULE).numpy() for p in pictures])
    scores = np.asarray(classifier.model(batch))
    found = explanation.explain(classifier, pictures, batch_size=1)
    for index, (one, row) in enumerate(zip(found, scores, strict=True)):
        assert one.name == one.best[0] == NAMES[row.argmax()]
        np.testing.assert_allclose([one.score, one.best[1]], row.max(), rtol=1e-4)
        want = cam.cam(classifier.model, batch, int(row.argmax()))[index]
        np.testing.assert_allclose(one.heat, want, atol=1e-4)
    chosen = explanation.explain(classifier, pictures, "Dog", method="gradcam")
    np.testing.assert_allclose([one.score for one in chosen], scores[:, 2], rtol=1e-4)
    assert {one.name for one in chosen} == {"dog"}


@pytest.mark.parametrize(
    ("text", "index"), [("DOG", 2), ("tabby_cat", 0), ("n00000003", 3), ("3", 4), ("1", 1)]
)
def test_classes_are_found_by_name_wnid_and_number(classifier, text, index):
    assert explanation.find_class(text, classifier.labels) == index


@pytest.mark.parametrize(
    ("text", "hint"),
    [("cat", "'tabby cat' or 'tiger cat'"), ("dgo", "Did you mean 'dog'"), ("5", "from 0 to 4")],
)
def test_a_missing_class_says_what_there_is(classifier, text, hint):
    with pytest.raises(ValueError, match=hint):
        explanation.find_class(text, classifier.labels)


def test_the_sheet_holds_each_picture_in_its_own_aspect(classifier, pictures, tmp_path):
    found = explanation.explain(classifier, pictures)
    rows = [("wide", pictures[0]), ("tall", pictures[1])]
    figure = explanation.sheet(rows, [("one", found), ("two", found)])
    axes = [a for a in figure.axes if len(a.images) and a.images[0].get_array().shape[0] > 1]
    assert len(axes) == 6
    for index, place in enumerate(axes):
        shown = place.images[0].get_array()
        picture = pictures[index // 3]
        factor = shown.shape[0] // picture.shape[0]
        large = picture.repeat(factor, 0).repeat(factor, 1)
        if index % 3:
            large = cam.overlay(large, found[index // 3].heat, RULE)
            assert len(place.patches) == 2  # the outline of the crop, in black and white
        np.testing.assert_array_equal(shown, large)
    texts = [text.get_text() for text in figure.texts]
    assert [t for t in texts if t in ("picture", "one", "two", "wide", "tall")] == [
        "picture", "one", "two", "wide", "tall"
    ]  # fmt: skip
    assert sum(t == f"{found[0].name}  {found[0].score:.1%}" for t in texts) == 2
    drawing.save(figure, tmp_path / "sheet.png")
    opened = Image.open(tmp_path / "sheet.png")
    np.testing.assert_allclose(opened.size, 120 * figure.get_size_inches(), atol=1)
    _assert_nothing_overlaps(figure)


def _assert_nothing_overlaps(figure):
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer).padded(-1) for t in figure.texts if t.get_text()]
    boxes += [a.get_window_extent(renderer).padded(-1) for a in figure.axes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0


MISTAKES = {
    "no picture. Usage:": [],
    "must end in .png, .pdf, .svg. Received: other.jpg": ["wide.png", "--out=other.jpg"],
    "there is no folder": ["wide.png", "--out=no/other.png"],
    "run: The model has no class 'cow'": ["wide.png", "--model=run", "--class=cow"],
    "Did you mean 'top_conv'": ["wide.png", "--model=run", "--layer=top_con"],
    "--weights is given once": ["wide.png", "--model=run", "--weights=imagenet"],
    "efficientnet-b9": ["wide.png", "--model=efficientnet-b9"],
    "bad.jpg: not a complete": ["bad.jpg", "--model=run"],
}


def test_script_explains_pictures_and_tells_what_is_wrong(root, folder):
    models = ["--model=run", "--model=run/best.keras"]
    pictures = ["wide.png", "bad.jpg", "tall.png", *models, "--class=emu"]
    first, *answers = call_all(root, "explain", folder, [pictures, *MISTAKES.values()])
    code, out, err = first
    assert (code, out) == (1, "sheet.png\n")
    assert err.startswith("error: bad.jpg: not a complete")
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size[0] == pytest.approx(120 * (3 * 2.42 + 0.12), abs=1)
    for message, (code, out, err) in zip(MISTAKES, answers, strict=True):
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert message in line
        assert (code, out) == (2, "")
    left = {path.name for path in folder.iterdir()}
    assert left == {"run", "wide.png", "tall.png", "bad.jpg", "sheet.png"}


def test_labels_of_published_networks_are_found():
    assert explanation.find_class("tabby", labels.imagenet_labels()) == 281


def test_model_that_does_not_fit_the_rule(classifier, pictures):
    other = classifier._replace(preprocessing=dataclasses.replace(RULE, size=64))
    with pytest.raises(ValueError, match="takes pictures of shape"):
        explanation.explain(other, pictures)
