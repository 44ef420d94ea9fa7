"""Training runs: the loss that is descended, what is left behind, and what goes wrong cleanly."""

import csv
import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_tf import predict
from efficientnet_tf.config import Config, from_json, override
from efficientnet_tf.data import images, pipeline, sources
from efficientnet_tf.preprocessing import rescaling
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import loop, run
from efficientnet_tf.train import optimizer as optimizer_lib

ONE = tf.distribute.get_strategy()
TINY = override(
    RECIPES["digits"],
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r1_k3_s22_e2_i8_o16_se0.25",
    "model.stem_filters=8",
    "model.head_filters=32",
    "train.epochs=2",
    "train.steps_per_epoch=6",
    "train.steps_per_call=4",
    "train.warmup_epochs=0",
)


def _linear(classes=3):
    """Logits are a linear function of the pixels' mean, which can be computed by hand."""
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes, name="dense"),
        ]
    )


def _softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_one_step_descends_smoothed_cross_entropy_and_half_squared_kernels():
    model = _linear()
    kernel, bias = (v.numpy().astype(np.float64) for v in model.trainable_variables)
    random = np.random.default_rng(0)
    images = random.normal(size=(8, 4, 4, 3)).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[random.integers(0, 3, 8)]
    config = override(
        Config(),
        "train.optimizer=sgd",
        "train.momentum=0",
        "train.learning_rate=32",  # for 256 pictures; 1 for 8
        "train.schedule=constant",
        "data.batch_size=8",
    )
    optimizer = optimizer_lib.create(config, model.trainable_variables, 1)
    trainee = loop.Trainee(model, optimizer)
    steps = loop.training_steps(ONE, trainee, 8, label_smoothing=0.3, loss_decay=0.01)
    steps(iter(tf.data.Dataset.from_tensors((images, labels))), tf.constant(1))

    features = images.astype(np.float64).mean((1, 2))
    probabilities = _softmax(features @ kernel + bias)
    target = labels * 0.7 + 0.3 / 3
    slope = (probabilities - target) / 8
    expected = [kernel - (features.T @ slope + 0.01 * kernel), bias - slope.sum(0)]
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, atol=1e-6)
    scores = trainee.scores()
    # What is reported has neither smoothing nor decay.
    assert scores.loss == pytest.approx(-(labels * np.log(probabilities)).sum(-1).mean(), rel=1e-5)
    assert scores.accuracy == (probabilities.argmax(-1) == labels.argmax(-1)).mean()
    assert scores.count == 8


def test_steps_in_one_call_are_the_same_as_one_by_one():
    weights = []
    for calls in ((5,), (1, 1, 2, 1)):
        config = override(Config(), "data.batch_size=16")
        model = _linear(10)
        optimizer = optimizer_lib.create(config, model.trainable_variables, 5)
        steps = loop.training_steps(ONE, loop.Trainee(model, optimizer), 16)
        images = tf.random.stateless_normal((160, 4, 4, 3), (1, 2))
        labels = tf.one_hot(tf.range(160) % 10, 10)
        batches = iter(tf.data.Dataset.from_tensor_slices((images, labels)).batch(16))
        for count in calls:
            steps(batches, tf.constant(count))
        assert int(optimizer.iterations.numpy()) == 5
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch_size", [7, 64, 400])
def test_evaluation_equals_scoring_every_picture_by_hand(batch_size):
    source = sources.open_source(Config().data)
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    optimizer = optimizer_lib.create(Config(), model.trainable_variables, 1)
    trainee = loop.Trainee(model, optimizer)
    trainee.add(tf.constant(1e9), tf.constant(5.0), tf.constant(7.0))  # must be forgotten
    batches = iter(pipeline.evaluation(source, "test", 32, batch_size))
    steps = pipeline.evaluation_steps(source, "test", batch_size)
    scores = loop.evaluator(ONE, trainee)(batches, steps)

    images, labels = zip(*pipeline.pictures(source, "test", 32, 359), strict=True)
    probabilities = _softmax(model.predict(images[0], verbose=0).astype(np.float64))
    assert scores.count == 359
    assert scores.accuracy == pytest.approx(
        (probabilities.argmax(-1) == labels[0]).mean(), abs=1e-7
    )
    own = probabilities[np.arange(359), labels[0]]
    assert scores.loss == pytest.approx(-np.log(own).mean(), rel=1e-5)


def test_filling_that_gives_nan_does_not_count():
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    trainee = loop.Trainee(model, optimizer_lib.create(Config(), model.trainable_variables, 1))
    images = np.ones((3, 4, 4, 3), np.float32)
    images[2] = np.nan
    batch = (images, np.array([0, 0, 0]), np.array([1, 1, 0], np.float32))
    scores = loop.evaluator(ONE, trainee)(iter(tf.data.Dataset.from_tensors(batch)), 1)
    assert np.isfinite(scores.loss)
    assert scores.count == 2
    assert trainee.scores().count == 0  # nothing was added since


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run in a folder with a file of somebody else's."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "notes.txt").write_text("mine")
    return workdir, run.train(TINY, workdir)


def test_a_run_leaves_its_record(finished):
    workdir, result = finished
    assert from_json((workdir / "config.json").read_text()) == TINY
    assert (workdir / "labels.txt").read_text().split() == list("0123456789")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(result.history)
    with open(workdir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items()} for row in rows] == lines
    assert [line["step"] for line in lines] == [6, 12]
    assert lines[0]["learning_rate"] == pytest.approx(TINY.scaled_learning_rate)
    assert (workdir / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not [p for p in workdir.iterdir() if p.name.startswith(".")]


def test_prediction_prepares_pictures_as_the_run_did(finished, tmp_path):
    workdir, result = finished
    size = TINY.model.image_size
    picture = np.random.default_rng(0).integers(0, 256, (20, 70, 3), np.uint8)  # not square
    Image.fromarray(picture).save(tmp_path / "wide.png")
    source = dataclasses.replace(
        result.source,
        num_examples={"test": 1},
        records=lambda *_: tf.data.Dataset.from_tensors((picture, np.int64(0))),
    )
    ((expected, _),) = pipeline.pictures(source, "test", size, 1)

    model, rule, labels = predict.load(workdir / "best.keras")
    prepared = images.resize_and_crop(images.read_image(tmp_path / "wide.png"), rule)
    np.testing.assert_allclose(prepared, expected[0], atol=1e-4)
    layer = result.model.get_layer("rescaling")
    np.testing.assert_allclose(rescaling(rule), [layer.scale, layer.offset], rtol=1e-12)

    (answer,) = predict.classify_files([tmp_path / "wide.png"], model, rule, top=10, labels=labels)
    scores = np.asarray(result.model(expected))[0]
    assert [scored.name for scored in answer.classes] == [str(i) for i in np.argsort(-scores)]
    np.testing.assert_allclose(
        [scored.score for scored in answer.classes], np.sort(scores)[::-1], atol=1e-5
    )


def test_the_best_model_is_what_is_kept(finished):
    workdir, result = finished
    values = [row["ema_accuracy"] for row in result.history]
    assert result.validation.accuracy == max(values)
    saved = keras.models.load_model(workdir / "best.keras")
    images, labels = zip(*pipeline.pictures(result.source, "validation", 32, 500), strict=True)
    probabilities = saved(images[0]).numpy()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (probabilities.argmax(-1) == labels[0]).mean() == pytest.approx(max(values))
    for a, b in zip(saved.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_with_a_run_is_not_overwritten_unasked(finished):
    workdir, _ = finished
    before = (workdir / "best.keras").read_bytes()
    with pytest.raises(FileExistsError, match=r"holds a run already.*--overwrite"):
        run.train(TINY, workdir)
    assert (workdir / "best.keras").read_bytes() == before


def test_a_folder_that_only_looks_like_a_run_is_left_alone(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.py").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"holds export, but no config\.json"):
            run.train(TINY, tmp_path, overwrite=overwrite)
    assert (tmp_path / "export" / "mine.py").read_text() == "precious"


def test_a_workdir_that_cannot_be_written_is_refused_before_data_is_read(tmp_path, monkeypatch):
    config = override(TINY, "data.source=folder:nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"must be a folder. .*file is a file"):
        run.train(config, tmp_path / "file" / "run")
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"read-only"):
        run.train(config, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def _scored(monkeypatch, scores):
    """Makes evaluation return these scores, one after the other."""
    answers = iter(scores)
    monkeypatch.setattr(loop, "evaluator", lambda *_: lambda *_: next(answers))
    return override(TINY, "train.ema_decay=0", f"train.epochs={len(scores)}")


def test_a_model_that_answers_nan_is_never_the_best(tmp_path, monkeypatch):
    nan = loop.Scores(float("nan"), 0.9, 10)  # class 0 may be the commonest
    config = _scored(monkeypatch, [nan, loop.Scores(1.0, 0.5, 10), nan])
    assert run.train(config, tmp_path).best_epoch == 2


def test_a_run_without_any_finite_validation_fails(tmp_path, monkeypatch):
    config = _scored(monkeypatch, [loop.Scores(float("nan"), 0.9, 10)])
    with pytest.raises(FloatingPointError, match=r"was not finite after any epoch"):
        run.train(config, tmp_path)
    assert not (tmp_path / "best.keras").exists()


def test_a_save_that_fails_leaves_no_half_file(finished, tmp_path, monkeypatch):
    model = finished[1].model

    def half(path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save_weights", half)
    with pytest.raises(OSError, match="No space"):
        run._save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.keras"]


def test_the_same_seed_gives_the_same_weights_and_overwrite_starts_anew(finished):
    workdir, result = finished
    again = run.train(TINY, workdir, overwrite=True)
    for a, b in zip(again.model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
    assert (workdir / "notes.txt").read_text() == "mine"


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_best_model(tmp_path):
    config = override(TINY, "train.optimizer=sgd", "train.ema_decay=0", "train.epochs=3")
    create = optimizer_lib.create

    def diverging(*args):
        optimizer = create(*args)
        optimizer._learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [5], [0.01, 1e30]
        )
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_lib, "create", diverging)
        with pytest.raises(FloatingPointError, match=r"The loss is .* after .* steps. Lower train"):
            run.train(config, tmp_path)
    model = keras.models.load_model(tmp_path / "best.keras")
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_bfloat16_trains_and_the_kept_model_is_float32(tmp_path):
    config = override(TINY, "train.precision=mixed_bfloat16", "train.epochs=1")
    result = run.train(config, tmp_path)
    assert np.isfinite(result.history[0]["train_loss"])
    assert {layer.compute_dtype for layer in result.model.layers} == {"float32"}


def test_blocks_and_coefficients_of_the_configuration_make_the_network():
    variant = run.describe(TINY.model)
    assert [block.output_filters for block in variant.blocks] == [8, 16]
    assert variant.stem_filters == 8
    narrow = dataclasses.replace(Config().model, width=0.5, depth=0.5)
    assert run.describe(narrow).width == 0.5
    assert run.describe(Config().model).name == "efficientnetv2-b0"
    with pytest.raises(ValueError, match=r"Did you mean 'efficientnet-b0'"):
        run.describe(dataclasses.replace(Config().model, variant="efficientnet_b0"))
    with pytest.raises(ValueError, match=r"Token 'x3'"):
        run.describe(dataclasses.replace(Config().model, blocks=("r1_x3",)))


def test_a_batch_that_replicas_cannot_share_is_refused(tmp_path):
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(ValueError, match=r"multiple of the number of replicas, 3"):
        run.train(TINY, tmp_path, strategy=Three())


@pytest.mark.parametrize("name", ["best.keras", "best.weights.h5"])
def test_training_can_start_from_an_earlier_run_with_other_classes(finished, name):
    workdir, result = finished
    config = dataclasses.replace(TINY.model, weights=str(workdir / name))
    model = run.build_model(config, run.describe(config), 4, None)
    assert model.output_shape == (None, 4)
    for layer in result.model.layers:
        if layer.name != "predictions":
            for a, b in zip(
                layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in model.layers] == [layer.name for layer in result.model.layers]
