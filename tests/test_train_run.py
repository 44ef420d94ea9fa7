"""Training runs: stages, what is left behind, and what goes wrong cleanly."""

import csv
import dataclasses
import itertools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnet_tf import predict, stages, writing
from efficientnet_tf.config import from_json, override
from efficientnet_tf.config.model import describe
from efficientnet_tf.data import arrays, images, pipeline, sources
from efficientnet_tf.preprocessing import rescaling
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.train import feed, loop, network, run, workdir
from efficientnet_tf.train import optimizer as optimizer_lib

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
    picture = np.random.default_rng(0).integers(0, 256, (20, 70, 3), np.uint8)  # not square
    Image.fromarray(picture).save(tmp_path / "wide.png")
    source = dataclasses.replace(
        result.source,
        num_examples={"test": 1},
        records=lambda *_, **__: tf.data.Dataset.from_tensors((picture, np.int64(0), 0)),
    )
    ((expected, _),) = pipeline.pictures(source, "test", result.rule, 1)

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
    images, labels = zip(
        *pipeline.pictures(result.source, "validation", result.rule, 500), strict=True
    )
    probabilities = saved(images[0]).numpy()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert (probabilities.argmax(-1) == labels[0]).mean() == pytest.approx(max(values))
    for a, b in zip(saved.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_with_another_run_is_not_overwritten_unasked(finished, tmp_path):
    workdir, _ = finished
    before = (workdir / "best.keras").read_bytes()
    with pytest.raises(FileExistsError, match=r"with other settings: train\.seed=0 \(1\).*--overw"):
        run.train(override(TINY, "train.seed=1"), workdir)
    assert (workdir / "best.keras").read_bytes() == before
    for name in ("config.json", "best.keras"):
        shutil.copy(workdir / name, tmp_path)
    with pytest.raises(FileExistsError, match=r"without checkpoints to go on from.*--overwrite"):
        run.train(TINY, tmp_path)


def test_evaluation_takes_the_parts_that_training_takes(tmp_path, monkeypatch):
    sizes, evaluate = [], run.evaluate

    def evaluated(model, source, split, rule, batch_size, **kwargs):
        sizes.append(batch_size)
        return evaluate(model, source, split, rule, batch_size, **kwargs)

    monkeypatch.setattr(run, "evaluate", evaluated)
    config = override(TINY, "data.batch_size=64", "train.accumulate=4", "train.epochs=1")
    result = run.train(config, tmp_path)
    assert sizes == [16]
    rule = result.rule
    strategy, source = tf.distribute.get_strategy(), result.source
    batches = feed.evaluation_batches(config, source, "validation", strategy, rule)
    assert {images.shape[0] for images, *_ in batches} == {16}


@pytest.mark.parametrize(
    ("settings", "fewest"), [(("data.mixup=0.2", "data.cutmix=0.2"), 4), (("data.mixup=0.2",), 2)]
)
def test_pictures_that_could_not_be_mixed_are_an_error(settings, fewest, tmp_path):
    config = override(TINY, *settings, f"data.batch_size={fewest - 1}", "train.epochs=1")
    with pytest.raises(ValueError, match=rf"at least {fewest} here\. Received: data\.batch_size"):
        run.train(config, tmp_path)


def test_a_stage_without_cutmix_has_no_use_for_its_released_error():
    config = override(
        TINY,
        "data.cutmix=0.5",
        "data.bug_compat=true",
        "progressive.stages=2",
        "progressive.image_size=16",
        "progressive.cutmix=0",
    )
    first, last = stages.expand(config, 2)
    assert (first.cutmix, last.cutmix) == (0, 0.5)
    source, strategy = sources.open_source(config.data), tf.distribute.get_strategy()
    for stage in (first, last):
        next(iter(feed.training_batches(config, source, strategy, stage)))


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
    with pytest.raises(NotADirectoryError, match=r"must be a folder to write to. .*file is a file"):
        run.train(config, tmp_path / "file" / "run")
    monkeypatch.setattr(writing.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match=r"read-only"):
        run.train(config, tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def _scored(monkeypatch, scores):
    """Makes evaluation return these scores, one after the other."""
    answers = iter(scores)
    monkeypatch.setattr(loop, "evaluator", lambda *_, **__: lambda *_: next(answers))
    return override(TINY, "train.ema_decay=0", f"train.epochs={len(scores)}")


def test_a_model_that_answers_nan_is_never_the_best(tmp_path, monkeypatch):
    nan = loop.Scores(float("nan"), 0.9, 1.0, 10)  # class 0 may be the commonest
    config = _scored(monkeypatch, [nan, loop.Scores(1.0, 0.5, 1.0, 10), nan])
    assert run.train(config, tmp_path).best_epoch == 2


def test_a_run_without_any_finite_validation_fails(tmp_path, monkeypatch):
    config = _scored(monkeypatch, [loop.Scores(float("nan"), 0.9, 1.0, 10)])
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
        workdir.save(model, tmp_path)
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

    def diverging(*args, **kwargs):
        optimizer = create(*args, **kwargs)
        optimizer._learning_rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [5], [0.01, 1e30]
        )
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer_lib, "create", diverging)
        with pytest.raises(FloatingPointError, match=r"not finite in step .* Lower train"):
            run.train(config, tmp_path)
    model = keras.models.load_model(tmp_path / "best.keras")
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_bfloat16_trains_and_the_kept_model_is_float32(tmp_path):
    config = override(TINY, "train.precision=mixed_bfloat16", "train.epochs=1")
    result = run.train(config, tmp_path)
    assert np.isfinite(result.history[0]["train_loss"])
    assert {layer.compute_dtype for layer in result.model.layers} == {"float32"}


def test_a_batch_that_replicas_cannot_share_is_refused(tmp_path):
    class Three:
        num_replicas_in_sync = 3

    with pytest.raises(ValueError, match=r"multiple of the number of replicas times .* 3 \* 1"):
        run.train(TINY, tmp_path, strategy=Three())


@pytest.mark.parametrize("name", ["best.keras", "best.weights.h5", "best-raw.weights.h5"])
def test_training_can_start_from_an_earlier_run_with_other_classes(finished, name):
    folder, result = finished
    config = override(TINY, f"model.weights={folder / name}", "train.epochs=1")
    variant = describe(config.model)
    model = network.trained(config.model, variant, 4, result.stages)
    assert model.output_shape == (None, 4)
    saved = network.kept(config, variant, result.model)
    saved.load_weights(folder / name.replace(".keras", ".weights.h5"))
    for layer in saved.layers:
        if layer.name != "predictions":
            for a, b in zip(
                layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    assert [layer.name for layer in model.layers] == [layer.name for layer in saved.layers]


def test_raw_weights_are_saved_beside_their_average(finished):
    folder, result = finished
    raw = network.kept(TINY, describe(TINY.model), result.model)
    raw.load_weights(folder / "best-raw.weights.h5")
    pictures, labels = next(pipeline.pictures(result.source, "validation", result.rule, 500))
    accuracies = [
        (model(pictures).numpy().argmax(-1) == labels).mean() for model in (raw, result.model)
    ]
    row = result.history[result.best_epoch - 1]
    assert accuracies == pytest.approx([row["validation_accuracy"], row["ema_accuracy"]])
    assert not np.array_equal(raw.get_weights()[0], result.model.get_weights()[0])


STAGED = override(
    TINY,
    "train.epochs=5",
    "data.shift=0",
    "train.steps_per_epoch=2",
    "data.augment=randaugment",
    "data.magnitude=9",
    "data.mixup=0.3",
    "model.blocks=r1_k3_s22_e1_i8_o8_c1,r2_k3_s22_e2_i8_o16_se0.25",
    "model.dropout_rate=0.4",
    "model.drop_connect_rate=0.3",
    "progressive.stages=2",
    "progressive.image_size=16",
    "progressive.dropout_rate=0.1",
    "progressive.drop_connect_rate=0.15",
    "progressive.magnitude=3",
    "progressive.mixup=0",
    "finetune.head_epochs=1",
)


def test_stages_have_one_static_trace_each_and_share_everything_learnt(tmp_path, monkeypatch):
    functions, sizes, settings, weights = [], [], [], []
    make_steps, make_batches = loop.training_steps, pipeline.training

    def steps(strategy, trainee, *args):
        weights.append({v.path: v.numpy() for v in trainee.model.weights})
        functions.append(make_steps(strategy, trainee, *args))
        drops = [y for y in trainee.model.layers if isinstance(y, keras.layers.Dropout)]
        settings.append({layer.name: round(layer.rate, 6) for layer in drops})
        return functions[-1]

    def batches(source, data, size, *args, **kwargs):
        dataset = make_batches(source, data, size, *args, **kwargs)
        sizes.append((dataset.element_spec[0].shape, data.magnitude, data.mixup, kwargs["start"]))
        return dataset

    monkeypatch.setattr(loop, "training_steps", steps)
    monkeypatch.setattr(pipeline, "training", batches)
    result = run.train(STAGED, tmp_path)
    assert [function.experimental_get_tracing_count() for function in functions] == [1, 1, 1]
    pictures = 2 * 64  # of an epoch
    assert sizes == [
        ((64, 16, 16, 3), 3, 0, 0),
        ((64, 16, 16, 3), 3, 0, pictures),
        ((64, 32, 32, 3), 9, 0.3, 3 * pictures),
    ]
    # The third of three blocks, the only one with a shortcut, has 2/3 of the stage's rate.
    early = {"block2b_drop": 0.1, "top_dropout": 0.1}
    assert settings == [early, early, {"block2b_drop": 0.2, "top_dropout": 0.4}]
    assert [row["step"] for row in result.history] == [2, 4, 6, 8, 10]
    assert [row["stage"] for row in result.history] == [1, 2, 2, 3, 3]
    # In the first stage the classifier learnt alone; afterwards everything did.
    moved = [
        {path for path in after if not np.array_equal(before[path], after[path])}
        for before, after in itertools.pairwise(weights)
    ]
    assert moved[0] == {"predictions/kernel", "predictions/bias"}
    assert moved[1] == set(weights[0])
    # One schedule: the rate falls on from stage to stage.
    rates = [row["learning_rate"] for row in result.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_training_stops_when_validation_no_longer_improves(tmp_path, monkeypatch):
    scores = [loop.Scores(1.0, accuracy, 1.0, 10) for accuracy in (0.5, 0.7, 0.6, 0.7, 0.9, 0.9)]
    config = override(_scored(monkeypatch, scores), "train.patience=2")
    result = run.train(config, tmp_path)
    assert (result.best_epoch, len(result.history)) == (2, 4)


def test_a_run_has_at_least_min_steps(tmp_path):
    config = override(TINY, "train.epochs=1", "train.steps_per_epoch=3", "train.min_steps=7")
    result = run.train(config, tmp_path)
    assert [row["step"] for row in result.history] == [3, 6, 9]


def test_a_batch_is_chosen_to_fit_memory(tmp_path, monkeypatch):
    from efficientnet_tf.train import memory

    config = override(TINY, "data.batch_size=none", "train.epochs=1", "train.steps_per_epoch=1")
    monkeypatch.setattr(memory, "free_memory", lambda: 1 << 40)
    assert run.train(config, tmp_path / "roomy").config.data.batch_size == 64
    variant = describe(config.model)
    need = {size: memory.training_memory(config, variant, 10, size) for size in (1, 8, 16)}
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * need[8])
    assert run.train(config, tmp_path / "tight").config.data.batch_size == 8
    monkeypatch.setattr(memory, "free_memory", lambda: need[1])
    with pytest.raises(ValueError, match=r"needs about \d+ MiB for one picture"):
        run.train(config, tmp_path / "none")


def _folder_with_broken_pictures(root, broken):
    """Two classes of 40 pictures each, of which the first `broken` of one are cut off."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(40):
            path = root / name / f"{number:02}.png"
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(path)
            if name == "a" and number < broken:
                path.write_bytes(path.read_bytes()[:200])
    return override(
        TINY,
        f"data.source=folder:{root}",
        "data.check_pictures=false",
        "data.batch_size=8",
        "train.steps_per_epoch=20",
    )


def test_unreadable_pictures_are_left_out_and_named(tmp_path):
    config = _folder_with_broken_pictures(tmp_path / "pictures", 2)
    run.train(override(config, "data.max_bad=0.2"), tmp_path / "run")
    names = (tmp_path / "run" / "unreadable.txt").read_text().split()
    assert {name.rsplit("/", 1)[1] for name in names} <= {"00.png", "01.png"}
    assert names


def test_too_many_unreadable_pictures_stop_the_run_by_name(tmp_path):
    config = _folder_with_broken_pictures(tmp_path / "pictures", 20)
    with pytest.raises(ValueError, match=r"more than data\.max_bad=0\.01 .*/a/\d\d\.png"):
        run.train(config, tmp_path / "run")


def test_pictures_given_in_python_are_not_mistaken_for_the_recipes(tmp_path):
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (60, 32, 32, 3), np.uint8)
    source = arrays.from_arrays(pictures, np.arange(60) % 3)
    config = override(TINY, "train.epochs=1", "train.steps_per_epoch=2", "data.batch_size=8")
    result = run.train(config, tmp_path, source=source)
    assert result.model.output_shape == (None, 3)
    saved = from_json((tmp_path / "config.json").read_text())
    assert saved.data.source == "given"
    with pytest.raises(ValueError, match=r"given in Python.*--data=folder:PATH"):
        sources.open_source(saved.data)
