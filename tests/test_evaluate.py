"""Scores of models on labelled pictures."""

import dataclasses
import io

import keras
import numpy as np
import pytest
import sklearn.metrics as sk
import tensorflow as tf
from PIL import Image

from efficientnet_tf import evaluate, preprocessing, scores
from efficientnet_tf.data import arrays
from efficientnet_tf.labels import imagenet_labels

CLASSES = 7
RULE = preprocessing.Preprocessing("own", (0,) * 3, (1,) * 3, 16)
NAMES = [("", name) for name in ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")]


def _linear(classes=CLASSES, activation=None, size=16, seed=0):
    """A model whose logits are known: a random linear map of the mean colour."""
    images = keras.Input((size, size, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 32)(images))
    dense = keras.layers.Dense(classes, activation=activation, name="predictions")
    model = keras.Model(images, dense(x), name="linear")
    kernel = np.random.default_rng(seed).normal(0, 1, (3, classes))
    dense.set_weights([kernel, np.zeros(classes)])
    return model


def _logits(model, images):
    kernel, bias = model.get_layer("predictions").get_weights()
    return images.mean((1, 2)).astype(np.float64) / 32 @ kernel + bias


def _pictures(count, seed=0, size=16):
    """Plain pictures of random colours: resizing does not change them."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3))
    return np.broadcast_to(colours, (count, size, size, 3)).astype(np.uint8)


def _source(labels, class_names=None, images=None):
    """A source whose test split has these labels."""
    images = _pictures(len(labels)) if images is None else images
    class_names = class_names or [name for _, name in NAMES]
    rows = np.arange(len(labels))
    return dataclasses.replace(
        arrays.from_arrays(
            images, labels, class_names=class_names, validation=(images, labels), holdout=0
        ),
        records=lambda split, seed, start=0: tf.data.Dataset.from_tensor_slices(
            (images, labels, rows)
        ),
        decode=lambda image, label, _: (image, label),
        describe=lambda _, label, row: tf.strings.join(["row ", tf.strings.as_string(row)]),
    )


def _softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("activation", [None, "softmax"])
@pytest.mark.parametrize("batch_size", [8, 50])
def test_scores_are_scikit_learns(activation, batch_size):
    model = _linear(activation=activation)
    labels = np.random.default_rng(1).integers(0, CLASSES - 1, 45)  # no gnu
    source = _source(labels)
    calls = []
    found = evaluate.evaluate(
        model, source, "test", RULE, batch_size, labels=NAMES, progress=lambda *n: calls.append(n)
    )
    assert calls[-1] == (45, 45)
    assert len(calls) == -(-45 // batch_size)
    logits = _logits(model, _pictures(45))
    predicted = logits.argmax(1)
    assert found.count == 45
    assert found.top1 == pytest.approx(sk.accuracy_score(labels, predicted))
    top5 = sk.top_k_accuracy_score(labels, logits, k=5, labels=range(CLASSES))
    assert found.top5 == pytest.approx(top5)
    assert top5 < 1
    loss = sk.log_loss(labels, _softmax(logits), labels=range(CLASSES))
    assert found.loss == pytest.approx(loss, rel=1e-4)
    matrix = sk.confusion_matrix(labels, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(found.confusion, matrix)
    assert found.confusion.dtype == np.int64
    np.testing.assert_array_equal(found.class_counts, matrix.sum(1))
    recall = sk.recall_score(
        labels, predicted, labels=range(CLASSES), average=None, zero_division=np.nan
    )
    np.testing.assert_allclose(found.class_scores, recall)
    assert np.isnan(found.class_scores[-1])
    assert found.class_names == tuple(name for _, name in NAMES)
    assert found.mean_average_precision is None
    assert found.unreadable == ()


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_several_labels_get_average_precision(activation):
    model = _linear(activation=activation)
    hot = (np.random.default_rng(2).random((45, CLASSES)) < 0.3).astype(np.float32)
    hot[:, 5] = 0  # nobody is a fox
    hot[3] = 0
    found = evaluate.evaluate(model, _source(hot), "test", RULE, 8, labels=NAMES)
    logits = _logits(model, _pictures(45))
    present = [0, 1, 2, 3, 4, 6]
    expected = sk.average_precision_score(hot[:, present], logits[:, present], average=None)
    np.testing.assert_allclose(found.class_scores[present], expected, rtol=1e-6)
    assert np.isnan(found.class_scores[5])
    assert found.mean_average_precision == pytest.approx(expected.mean())
    assert found.top1 == pytest.approx(hot[np.arange(45), logits.argmax(1)].mean())
    order = np.argsort(-logits)[:, :5]
    assert found.top5 == pytest.approx(np.take_along_axis(hot, order, 1).max(1).mean())
    sigmoid = 1 / (1 + np.exp(-logits))
    loss = -np.log(np.where(hot > 0, sigmoid, 1 - sigmoid)).sum(1).mean()
    assert found.loss == pytest.approx(loss, rel=1e-4)
    assert found.confusion is None
    np.testing.assert_array_equal(found.class_counts, hot.sum(0))


def test_average_precision_shares_thresholds_between_equal_scores():
    rng = np.random.default_rng(3)
    values = rng.integers(0, 4, (60, 5)).astype(np.float32)
    hot = rng.random((60, 5)) < 0.4
    expected = sk.average_precision_score(hot, values, average=None)
    np.testing.assert_allclose(scores.average_precision(values, hot), expected)


def test_equal_scores_rank_in_index_order():
    answers = np.array([[0.2, 0.4, 0.4, 0.0]] * 4)
    assert scores.ranks(answers, np.arange(4)).tolist() == [2, 0, 1, 3]
    hot = np.array([[1, 0, 1, 0], [0, 0, 0, 0]])
    assert scores.ranks(answers[:2], hot).tolist() == [1, 4]


def test_scores_that_are_no_numbers_are_refused():
    model = _linear()
    model.get_layer("predictions").bias.assign([np.nan] * CLASSES)
    with pytest.raises(ValueError, match="NaN"):
        evaluate.evaluate(model, _source(np.zeros(9, int)), "test", RULE, 4, labels=NAMES)


def test_the_worst_mistakes_are_pictures_with_their_names():
    model = _linear()
    labels = np.random.default_rng(1).integers(0, CLASSES, 45)
    found = evaluate.evaluate(model, _source(labels), "test", RULE, 8, labels=NAMES, worst=6)
    images = _pictures(45)
    probabilities = _softmax(_logits(model, images))
    predicted = probabilities.argmax(1)
    own = probabilities[np.arange(45), labels]
    rows = [row for row in np.argsort(own) if predicted[row] != labels[row]][:6]
    assert len(rows) == len(found.mistakes) == 6
    for row, mistake in zip(rows, found.mistakes, strict=True):
        assert mistake.name == f"row {row}"
        assert mistake.labels == (NAMES[labels[row]][1],)
        assert mistake.predicted == NAMES[predicted[row]][1]
        assert mistake.probability == pytest.approx(probabilities[row].max(), rel=1e-4)
        assert mistake.label_probability == pytest.approx(own[row], rel=1e-3)
        assert mistake.loss == pytest.approx(-np.log(own[row]), rel=1e-3)
        picture = np.asarray(Image.open(io.BytesIO(mistake.jpeg)))
        np.testing.assert_allclose(picture, images[row], atol=4)


def test_thumbnails_of_large_pictures_are_small():
    model = _linear(size=400)
    rule = dataclasses.replace(RULE, size=400)
    labels = _logits(model, _pictures(2, size=400)).argmin(1)  # all wrong
    source = _source(labels, images=_pictures(2, size=400))
    found = evaluate.evaluate(model, source, "test", rule, 2, labels=NAMES, worst=5)
    assert [Image.open(io.BytesIO(m.jpeg)).size for m in found.mistakes] == [(160, 160)] * 2


def test_unreadable_pictures_are_left_out_and_named(tmp_path):
    images = _pictures(9)
    for row, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{row}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    paths = [str(tmp_path / f"{row}.png") for row in range(9)]
    model = _linear()
    labels = _logits(model, images).argmax(1)
    labels[8] = (labels[8] + 1) % CLASSES
    source = dataclasses.replace(
        _source(labels),
        records=lambda split, seed, start=0: tf.data.Dataset.from_tensor_slices((paths, labels)),
        decode=lambda path, label: (tf.io.decode_png(tf.io.read_file(path), 3), label),
        describe=lambda path, label: path,
        checked=False,
        bad=("before.png",),
    )
    found = evaluate.evaluate(model, source, "test", RULE, 4, labels=NAMES, worst=3, max_bad=0.2)
    assert found.count == 8
    assert found.top1 == pytest.approx(7 / 8)
    assert found.unreadable == ("before.png", paths[4])
    assert [mistake.name for mistake in found.mistakes] == [paths[8]]
    with pytest.raises(ValueError, match=r"^1 of .*4\.png"):
        evaluate.evaluate(model, source, "test", RULE, 4, labels=NAMES)


# ---- which class is which


def test_classes_are_found_by_name_whatever_the_order():
    mapping = evaluate.class_map(["gnu", "ant", "cat"], NAMES)
    assert mapping.tolist() == [6, 0, 2]
    model = _linear()
    labels = np.random.default_rng(1).integers(0, 3, 20)
    source = _source(labels, ["gnu", "ant", "cat"])
    found = evaluate.evaluate(model, source, "test", RULE, 8, labels=NAMES)
    predicted = _logits(model, _pictures(20)).argmax(1)
    assert found.top1 == pytest.approx(np.mean(predicted == mapping[labels]))
    np.testing.assert_array_equal(
        found.confusion, sk.confusion_matrix(mapping[labels], predicted, labels=range(CLASSES))
    )
    hot = np.eye(3, dtype=np.float32)[labels]
    hot[:, 0] = 1
    several = _source(hot, ["gnu", "ant", "cat"])
    found = evaluate.evaluate(model, several, "test", RULE, 8, labels=NAMES)
    assert found.class_counts.tolist() == [hot[:, 1].sum(), 0, hot[:, 2].sum(), 0, 0, 0, 20]


def test_imagenet_folders_are_found_by_wnid_and_names_behind_the_background():
    with_background = imagenet_labels(background=True)
    some = ["n02123045", "n01440764"]  # tabby, tench
    assert evaluate.class_map(some, imagenet_labels()).tolist() == [281, 0]
    assert evaluate.class_map(some, with_background).tolist() == [282, 1]
    for names in ([name for _, name in imagenet_labels()], [w for w, _ in imagenet_labels()]):
        assert len(set(names)) >= 998
        np.testing.assert_array_equal(
            evaluate.class_map(names, with_background), np.arange(1000) + 1
        )
        np.testing.assert_array_equal(evaluate.class_map(names, imagenet_labels()), np.arange(1000))
    # The background shifts the labels of a whole evaluation.
    model = _linear(1001)
    labels = np.random.default_rng(1).integers(0, 1000, 20)
    labels[:3] = _logits(model, _pictures(20)).argmax(1)[:3] - 1
    source = dataclasses.replace(
        _source(labels, [wnid for wnid, _ in imagenet_labels()]),
        class_names=tuple(name for _, name in imagenet_labels()),
    )
    rule = dataclasses.replace(RULE, labels="imagenet-background")
    found = evaluate.evaluate(model, source, "test", rule, 8)
    predicted = _logits(model, _pictures(20)).argmax(1)
    assert found.top1 == np.mean(predicted == labels + 1) >= 3 / 20
    assert found.class_names[0] == "background"
    assert found.confusion.shape == (1001, 1001)


@pytest.mark.parametrize(
    ("class_names", "labels", "message"),
    [
        (["ant", "yak", "zebra"], NAMES, "Only in the data set: 'yak', 'zebra'. Only in the model"),
        (["ant", "yak"], NAMES, "'bee', 'cat', 'dog', 'elk', 'fox', 'gnu'"),
        (["crane", "tench"], imagenet_labels(), "More than once in the model: 'crane'"),
        (["a", "b"], [("", "class 0"), ("", "class 1"), ("", "class 2")], "3 classes without"),
    ],
)
def test_classes_that_the_model_lacks_are_named(class_names, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate.class_map(class_names, labels)


def test_a_model_without_names_takes_the_order_of_the_data():
    assert evaluate.class_map(["b", "a"], [("", "class 0"), ("", "class 1")]).tolist() == [0, 1]
    found = evaluate.evaluate(_linear(), _source(np.zeros(9, int)), "test", RULE, 4)
    assert found.class_names[0] == "ant"
    labels = [("n1", "b"), ("n2", "a")]
    assert evaluate.class_map(["0", "1"], labels).tolist() == [0, 1]
    with pytest.raises(ValueError, match="Only in the data set: '0'"):
        evaluate.class_map(["0"], labels)
    with pytest.raises(ValueError, match="7 classes without names and the data set 3"):
        evaluate.evaluate(_linear(), _source(np.zeros(9, int), ["a", "b", "c"]), "test", RULE, 4)


def test_a_last_layer_that_says_nothing_is_refused():
    images = keras.Input((16, 16, 3))
    x = keras.layers.Flatten()(images)
    assert evaluate.output_of(keras.Model(images, keras.layers.Softmax()(x))) == "softmax"
    dense = keras.layers.Dense(3, activation="sigmoid")
    inner = keras.Model(images, dense(x))
    assert evaluate.output_of(keras.Model(images, inner(images))) == "sigmoid"
    with pytest.raises(ValueError, match="Flatten"):
        evaluate.output_of(keras.Model(images, x))
    with pytest.raises(ValueError, match="Dense"):
        evaluate.output_of(keras.Model(images, keras.layers.Dense(3, "relu")(x)))


def test_all_splits_together_have_every_picture_once():
    images, labels = _pictures(40), np.arange(40) % 4
    source = evaluate.together(arrays.from_arrays(images, labels))
    assert source.num_examples["all"] == 40
    seen = [image.numpy()[0, 0].tolist() for image, *_ in source.records("all", None)]
    assert sorted(seen) == sorted(images[:, 0, 0].tolist())
    assert len(list(source.records("test", None))) == source.num_examples["test"]
